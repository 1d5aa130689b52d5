"""vzarr for xarray: ``xr.open_dataset("ocean.vzarr", branch=…)``, and ``to_vzarr`` for dask.

xarray finds the first through the entry point ``xarray.backends`` and imports it when it is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, final

from xarray.backends import BackendEntrypoint
from xarray.backends.zarr import ZarrBackendEntrypoint

from vzarr.errors import InvalidInputError, VzarrError
from vzarr.fork import Fork
from vzarr.session import Session
from vzarr.store import SCHEME, SUFFIX, VzarrStore, open_store

if TYPE_CHECKING:
    import xarray

# ── reading ──────────────────────────────────────────────────────────────────────────────────────

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


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def to_vzarr(
    data: xarray.Dataset | xarray.DataArray | xarray.DataTree,
    session: Session,
    *,
    group: str | None = None,
    mode: Literal["w", "w-", "a", "a-", "r+"] | None = None,
    append_dim: Hashable | None = None,
    region: Mapping[str, slice | Literal["auto"]] | Literal["auto"] | None = None,
    encoding: Mapping[str, Any] | None = None,
    safe_chunks: bool = True,
    align_chunks: bool = False,
    zarr_format: Literal[2, 3] | None = None,
    write_empty_chunks: bool | None = None,
    chunkmanager_store_kwargs: Mapping[str, Any] | None = None,
    compute: bool = True,
) -> DelayedWrite | None:
    """Write a dataset, data array or tree in a session; dask's workers write into the file.

    Works with all schedulers of dask: workers may be threads, processes, or a distributed cluster
    on this machine. Arguments are those of ``to_zarr``; nothing is on the branch before the session
    commits. With ``compute=False`` only metadata and what is in memory are written, and the rest by
    the result's ``compute``.

    Where there are dask arrays, the session has all of it when this returns and nothing of it when
    it raises. Else it is ``to_zarr`` on the session's store, which may stop half way. Raises what
    xarray does, also for dask chunks that share a zarr chunk, and what ``Session.fork`` and
    ``merge_fork`` do. Cost: a flush of the disk for every few chunks of each worker.
    """
    if not isinstance(session, Session):
        raise InvalidInputError(
            f"to_vzarr writes in a session, not in {session!r}: repo.session(...) gives one, and "
            "in a transaction it is store.session"
        )
    chosen = {
        "group": group,
        "mode": mode,
        "append_dim": append_dim,
        "region": region,
        "encoding": encoding,
        "safe_chunks": safe_chunks,
        # Only what was asked for: earlier releases of xarray do not know all.
        "align_chunks": align_chunks or None,
        "zarr_format": zarr_format,
        "write_empty_chunks": write_empty_chunks,
        "chunkmanager_store_kwargs": chunkmanager_store_kwargs,
    }
    options = {name: value for name, value in chosen.items() if value is not None}
    # Not what mypy knows: a union of three methods with overloads.
    to_zarr: Any = data.to_zarr
    if compute and not _is_lazy(data):
        to_zarr(session.store, consolidated=False, **options)
        return None
    fork = session.fork()
    with _discarding(fork):
        delayed = to_zarr(fork.store, consolidated=False, compute=compute, **options)
        if compute:
            session.merge_fork(fork)
            return None
    return DelayedWrite(session, fork, delayed)


@final
class DelayedWrite:
    """What ``to_vzarr(compute=False)`` has yet to write. Not for ``dask.compute``."""

    def __init__(self, session: Session, fork: Fork, delayed: Any) -> None:
        self._session = session
        self._fork = fork
        self._delayed = delayed

    def compute(self, **options: Any) -> None:
        """Write the chunks, and let the session have all of it. ``options`` are for dask.

        Raises what computing them does, ``ConflictError`` where the session has changed the same
        things meanwhile, and ``SessionStateError`` once it has ended, or has it already. After an
        error it can be repeated.
        """
        self._delayed.compute(**options)
        self._session.merge_fork(self._fork)

    def discard(self) -> None:
        """Give it up: the session does not get anything of it."""
        self._fork.discard()


@contextmanager
def _discarding(fork: Fork) -> Iterator[None]:
    """Discard a fork if the block fails."""
    try:
        yield
    except BaseException as error:
        try:
            fork.discard()
        except VzarrError as failure:
            error.add_note(f"What was written before it failed could not be dropped: {failure}")
        raise


def _is_lazy(data: xarray.Dataset | xarray.DataArray | xarray.DataTree) -> bool:
    """Whether dask, or another that computes by chunks, has to make some of the values."""
    import xarray

    if isinstance(data, xarray.DataArray):
        variables = [data.variable, *(coordinate.variable for coordinate in data.coords.values())]
    else:
        nodes = data.subtree if isinstance(data, xarray.DataTree) else [data]
        variables = [variable for node in nodes for variable in node.variables.values()]
    return any(variable.chunks is not None for variable in variables)
