"""vzarr for xarray: ``xr.open_dataset("ocean.vzarr")``, with ``branch=`` and ``ref=``.

xarray finds this through the entry point ``xarray.backends``; nothing is imported before it is used.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, final

from xarray.backends import BackendEntrypoint
from xarray.backends.zarr import ZarrBackendEntrypoint

from vzarr.errors import InvalidInputError
from vzarr.repository import open as open_repository

if TYPE_CHECKING:
    import xarray

    from vzarr.store import VzarrStore

SUFFIX = ".vzarr"
SCHEME = "vzarr://"

_PARAMETERS = (
    "mask_and_scale",
    "decode_times",
    "concat_characters",
    "decode_coords",
    "drop_variables",
    "use_cftime",
    "decode_timedelta",
    "group",
    "zarr_format",
    "branch",
    "ref",
)


@final
class VzarrBackendEntrypoint(BackendEntrypoint):
    """Open snapshots of vzarr repositories as datasets and data trees, lazily.

    ``branch=`` names a branch, ``ref=`` any branch, tag, commit id, ``main~2`` or datetime; default
    is branch main. What is opened is that one snapshot: later commits do not show in it. Datasets
    are written with ``ds.to_zarr(store)``, in a transaction or session.
    """

    description = "Open vzarr repositories (.vzarr): versioned Zarr in one file"
    url = "https://vzarr.readthedocs.io"
    supports_groups = True
    open_dataset_parameters = _PARAMETERS

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether a path looks like a vzarr repository's."""
        if not isinstance(filename_or_obj, str | os.PathLike):
            return False
        path = os.fspath(filename_or_obj)
        return isinstance(path, str) and (path.startswith(SCHEME) or path.endswith(SUFFIX))

    def open_dataset(  # type: ignore[override]
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        branch: str | None = None,
        ref: str | datetime | None = None,
        **options: Any,
    ) -> xarray.Dataset:
        """Open one group of a snapshot; lazy. Raises as ``vzarr.open`` and ``session`` do."""
        store = _snapshot(filename_or_obj, branch, ref)
        return ZarrBackendEntrypoint().open_dataset(
            store, drop_variables=drop_variables, consolidated=False, **options
        )

    def open_datatree(  # type: ignore[override]
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        branch: str | None = None,
        ref: str | datetime | None = None,
        **options: Any,
    ) -> xarray.DataTree:
        """Open all groups of a snapshot as a tree; lazy."""
        store = _snapshot(filename_or_obj, branch, ref)
        return ZarrBackendEntrypoint().open_datatree(
            store, drop_variables=drop_variables, consolidated=False, **options
        )

    def open_groups_as_dict(  # type: ignore[override]
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        branch: str | None = None,
        ref: str | datetime | None = None,
        **options: Any,
    ) -> dict[str, xarray.Dataset]:
        """Open all groups of a snapshot by path; lazy."""
        store = _snapshot(filename_or_obj, branch, ref)
        return ZarrBackendEntrypoint().open_groups_as_dict(
            store, drop_variables=drop_variables, consolidated=False, **options
        )


def _snapshot(path: Any, branch: str | None, ref: str | datetime | None) -> VzarrStore:
    if branch is not None and ref is not None:
        raise InvalidInputError("branch= and ref= both say what to open; give one of them")
    target = os.fspath(path).removeprefix(SCHEME)
    repository = open_repository(target, "r")
    # The store's session keeps the file open for as long as the dataset needs it.
    return repository.store(branch or ref or "main")
