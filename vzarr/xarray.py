"""vzarr for xarray: ``xr.open_dataset("ocean.vzarr")``, with ``branch=`` and ``ref=``.

xarray finds this through the entry point ``xarray.backends`` and imports it when it is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, final

from xarray.backends import BackendEntrypoint
from xarray.backends.zarr import ZarrBackendEntrypoint

from vzarr.errors import InvalidInputError
from vzarr.store import SCHEME, SUFFIX, VzarrStore, open_store

if TYPE_CHECKING:
    import xarray

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
    is branch main. What is opened is that one snapshot: later commits do not show in it. Closing it
    closes the file, so that what was not loaded cannot be read any more. Datasets are written with
    ``ds.to_zarr(store)``, in a transaction or session.

    Raises ``FileNotFoundError``, ``RefNotFoundError``, ``InvalidInputError``, and what
    ``vzarr.open`` and xarray raise for a file or group that they cannot read.
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

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        branch: str | None = None,
        ref: str | datetime | None = None,
        **options: Any,
    ) -> xarray.Dataset:
        """Open one group of a snapshot."""
        with _snapshot(filename_or_obj, branch, ref) as store:
            dataset = ZarrBackendEntrypoint().open_dataset(
                store, drop_variables=drop_variables, consolidated=False, **options
            )
            _close_with({"": dataset}, store)
        return dataset

    def open_datatree(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        branch: str | None = None,
        ref: str | datetime | None = None,
        **options: Any,
    ) -> xarray.DataTree:
        """Open all groups of a snapshot as a tree."""
        with _snapshot(filename_or_obj, branch, ref) as store:
            tree = ZarrBackendEntrypoint().open_datatree(
                store, drop_variables=drop_variables, consolidated=False, **options
            )
            _close_with({node.path: node for node in tree.subtree}, store)
        return tree

    def open_groups_as_dict(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        branch: str | None = None,
        ref: str | datetime | None = None,
        **options: Any,
    ) -> dict[str, xarray.Dataset]:
        """Open all groups of a snapshot by path."""
        with _snapshot(filename_or_obj, branch, ref) as store:
            groups = ZarrBackendEntrypoint().open_groups_as_dict(
                store, drop_variables=drop_variables, consolidated=False, **options
            )
            _close_with(groups, store)
        return groups


@contextmanager
def _snapshot(
    path: str | os.PathLike[str], branch: str | None, ref: str | datetime | None
) -> Iterator[Any]:
    """Open a store for a block that makes something of it; closed if the block fails."""
    if branch is not None and ref is not None:
        raise InvalidInputError("branch= and ref= both say what to open; give one of them")
    if ref is None:
        ref = "main" if branch is None else branch
    store = open_store(os.fspath(path).removeprefix(SCHEME), "r", ref)
    try:
        yield store
    except BaseException:
        store.close()
        raise


def _close_with(
    parts: Mapping[str, xarray.Dataset] | Mapping[str, xarray.DataTree], store: VzarrStore
) -> None:
    """Let the store be closed with the last of the parts that read it."""
    still_open = set(parts)
    for name, part in parts.items():
        # Not a closure, which could not be pickled, as datasets are.
        part.set_close(partial(_close_part, name, part._close, still_open, store))  # noqa: SLF001


def _close_part(
    name: str, close: Callable[[], None] | None, still_open: set[str], store: VzarrStore
) -> None:
    if close is not None:
        close()
    still_open.discard(name)
    if not still_open:
        store.close()
