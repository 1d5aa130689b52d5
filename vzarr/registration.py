"""``vzarr.register()``: let zarr and xarray open ``"ocean.vzarr"`` by its name. Opt-in.

zarr 3 has no registry of stores: a path becomes a directory store in ``make_store``. This puts a
function in front of that one. Where zarr has changed so much that it cannot, ``register`` says so
and changes nothing; ``zarr.open(repo.store())`` works everywhere without it.

xarray, given a path, does not know what store is behind it and so consolidates metadata, which a
repository has no use for. Two more functions stand in front of zarr's for that.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

import zarr
import zarr.storage._common as common

from vzarr.errors import SessionStateError
from vzarr.store import SCHEME, SUFFIX, VzarrStore, open_store

_MARK = "_vzarr_original"
_REPLACED = ((common, "make_store"), (zarr, "open_consolidated"), (zarr, "consolidate_metadata"))


def register() -> None:
    """Make ``zarr.open("ocean.vzarr")``, ``zarr.save``, ``xr.open_zarr`` … reach vzarr.

    Paths that end with ``.vzarr``, or begin with ``vzarr://`` and end so, open the file's branch
    main: with mode "r" its present snapshot, else with autocommit, where each write is durable and
    the consecutive writes of one store are one commit. As with a directory store, any mode but
    "r" and "r+" creates the file, and these raise ``FileNotFoundError``. Directories keep going to
    zarr's own store. ``zarr.consolidate_metadata`` does nothing on vzarr's stores from then on.

    Can be repeated. Raises ``SessionStateError`` if this zarr release is built in another way.
    """
    if hasattr(getattr(common, "make_store", None), _MARK):
        return
    if not _is_as_we_know_it():
        raise SessionStateError(
            f"vzarr.register() does not know zarr {zarr.__version__}; pass a store instead: "
            "zarr.open(vzarr.open('ocean.vzarr').store('main', autocommit=True))"
        )
    _replace(common, "make_store", _make_store)
    _replace(zarr, "open_consolidated", _open_consolidated)
    _replace(zarr, "consolidate_metadata", _consolidate_metadata)


def unregister() -> None:
    """Undo ``register``. Stores that are open stay open."""
    for module, name in _REPLACED:
        function = getattr(module, name)
        setattr(module, name, getattr(function, _MARK, function))


def _is_as_we_know_it() -> bool:
    make_store = getattr(common, "make_store", None)
    return (
        inspect.iscoroutinefunction(make_store)
        and "store_like" in inspect.signature(make_store).parameters
        and hasattr(common, "make_store_path")
    )


def _replace(module: Any, name: str, replacement: Callable[..., Any]) -> None:
    original = getattr(module, name)
    function = functools.partial(replacement, original)
    setattr(module, name, functools.update_wrapper(function, original))
    setattr(function, _MARK, original)


async def _make_store(original: Any, store_like: Any, **options: Any) -> Any:
    path = _repository_path(store_like)
    if path is None or options.get("storage_options"):
        return await original(store_like, **options)
    mode = options.get("mode")
    if mode == "r":
        return open_store(path, "r")
    return open_store(path, "r+" if mode == "r+" else "a", autocommit=True)


def _open_consolidated(original: Any, store: Any, *arguments: Any, **options: Any) -> Any:
    if not _is_ours(store):
        return original(store, *arguments, **options)
    options.pop("use_consolidated", None)
    return zarr.open_group(store, *arguments, use_consolidated=False, **options)


def _consolidate_metadata(original: Any, store: Any, *arguments: Any, **options: Any) -> Any:
    if not _is_ours(store):
        return original(store, *arguments, **options)
    path, zarr_format = [*arguments, None, None][:2]
    options = {"path": path, "zarr_format": zarr_format, **options}
    return zarr.open_group(store, mode="r+", use_consolidated=False, **options)


def _is_ours(store: Any) -> bool:
    return isinstance(store, VzarrStore) or _repository_path(store) is not None


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
