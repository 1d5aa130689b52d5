"""The engines: one small adapter each, behind the protocol of ``bench.engines.base``."""

from bench.engines.base import Engine, Layout, Opened, missing_modules
from bench.engines.chunked import (
    ICECHUNK,
    LOCAL_STORE,
    MEMORY_STORE,
    MEMORY_STORE_FUSED,
    VZARR,
    VZARR_FIRST,
    VZARR_NEVER,
    VZARR_ZARR_PIPELINE,
    ZIP_STORE,
)
from bench.engines.files import (
    H5PY,
    MEMCPY,
    OCDBT,
    OCDBT_TUNED,
    RAW,
    TENSORSTORE,
    VERSIONED_HDF5,
)

__all__ = [
    "H5PY",
    "ICECHUNK",
    "LOCAL_STORE",
    "MEMCPY",
    "MEMORY_STORE",
    "MEMORY_STORE_FUSED",
    "OCDBT",
    "OCDBT_TUNED",
    "RAW",
    "TENSORSTORE",
    "VERSIONED_HDF5",
    "VZARR",
    "VZARR_FIRST",
    "VZARR_NEVER",
    "VZARR_ZARR_PIPELINE",
    "ZIP_STORE",
    "Engine",
    "Layout",
    "Opened",
    "missing_modules",
]
