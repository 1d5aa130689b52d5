"""``vzarr.register()``: let zarr and xarray open ``"ocean.vzarr"`` by its name. Opt-in.

zarr 3 has no registry of stores: a path becomes a directory store in ``make_store``. This puts a
function in front of that one. Where zarr has changed so much that it cannot, ``register`` says so
and changes nothing; ``zarr.open(repo.store())`` works everywhere without it.
"""

from __future__ import annotations

import functools
import inspect
import os
from typing import Any

import zarr

from vzarr.errors import SessionStateError
from vzarr.store import SCHEME, SUFFIX, open_store

_MARK = "_vzarr_original"


def register() -> None:
    """Make ``zarr.open("ocean.vzarr")``, ``zarr.save``, ``xr.open_zarr`` … reach vzarr.

    Paths that end with ``.vzarr``, or begin with ``vzarr://`` and end so, open the file's branch
    main: with mode "r" its present snapshot, else with autocommit, where each write is durable and
    the consecutive writes of one store are one commit. As with a directory store, any mode but
    "r" and "r+" creates the file, and these raise ``FileNotFoundError``. Directories keep going to
    zarr's own store. Can be repeated. Raises ``SessionStateError`` if this zarr release is built in
    another way.
    """
    import zarr.storage._common as common

    original = getattr(common, "make_store", None)
    if original is not None and hasattr(original, _MARK):
        return
    if (
        original is None
        or not inspect.iscoroutinefunction(original)
        or "store_like" not in inspect.signature(original).parameters
        or not hasattr(common, "make_store_path")
    ):
        raise SessionStateError(
            f"vzarr.register() does not know zarr {zarr.__version__}; pass a store instead: "
            "zarr.open(vzarr.open('ocean.vzarr').store('main', autocommit=True))"
        )

    @functools.wraps(original)
    async def make_store(store_like: Any, **options: Any) -> Any:
        path = _repository_path(store_like)
        if path is None or options.get("storage_options"):
            return await original(store_like, **options)
        mode = options.get("mode")
        if mode == "r":
            return open_store(path, "r")
        return open_store(path, "r+" if mode == "r+" else "a", autocommit=True)

    setattr(make_store, _MARK, original)
    common.make_store = make_store


def unregister() -> None:
    """Undo ``register``. Stores that are open stay open."""
    import zarr.storage._common as common

    common.make_store = getattr(common.make_store, _MARK, common.make_store)


def _repository_path(store_like: Any) -> str | None:
    """Find the file that zarr is to open; None for what is zarr's own business."""
    if not isinstance(store_like, str | os.PathLike):
        return None
    path = os.fspath(store_like)
    if not isinstance(path, str) or not path.rstrip("/").endswith(SUFFIX):
        return None
    path = path.removeprefix(SCHEME).rstrip("/")
    # A directory may have any name.
    return None if "://" in path or os.path.isdir(path) else path
