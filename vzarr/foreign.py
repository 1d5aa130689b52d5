"""Stores as sources of an import: any store of zarr's, also at a URL, and snapshots of vzarr."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, final

from vzarr.documents import parse_document
from vzarr.errors import InvalidInputError, StorageError, VzarrError
from vzarr.fork import Fork
from vzarr.format import Blob, chunk_digest, encode_coordinates
from vzarr.intake import (
    CONSOLIDATED,
    NODE_DOCUMENTS,
    Piece,
    Survey,
    Values,
    changed,
    is_document,
    is_skipped,
    is_value,
    join,
    look,
    require_key,
    require_size,
    without_consolidated,
)
from vzarr.metadata import ArrayMetadata, node_metadata
from vzarr.progress import Meter
from vzarr.session import Session

# A server that answers late is kept busy by many who ask.
_WORKERS = 16
_V2_DOCUMENTS = (".zgroup", ".zarray", ".zattrs")


@final
class SnapshotSource:
    """Reads what a session of this or another repository shows now."""

    workers = 2

    def __init__(self, session: Session, label: str, close: Any = None) -> None:
        """``close`` is called at the end."""
        self.label = label
        self.identity = session.environment.path
        self.state = session.root_id()
        self._session = session
        self._view = session.hierarchy
        self._close = close

    def close(self) -> None:
        """Let go of what was opened for the import."""
        if self._close is not None:
            self._close()

    def survey(self, meter: Meter) -> Survey:
        """Count and measure the values: 2 µs each."""
        meter.stage("look", self._view.sums("")[0])
        return look(
            self._view.items(),
            lambda key, blob: without_consolidated(key, bytes(self._session.read(blob))),
            lambda _, blob: blob.length,
            meter,
        )

    def pieces(self) -> Iterator[Piece]:
        """Give all values with their digests, so that equal ones are not read."""
        for key, blob in self._view.items():
            if is_value(key):
                yield Piece((key,), blob.length, blob)

    def read(self, piece: Piece) -> Values:
        """Read a value, verified."""
        assert piece.blob is not None, "a piece of another source"
        return [(piece.keys[0], self._session.read(piece.blob))]

    def is_as_read(self, piece: Piece, since: int) -> bool:  # noqa: ARG002 - snapshots stay
        """Say yes."""
        return True

    def has(self, key: str) -> bool:
        """Whether there is such a key."""
        return self._view.find(key) is not None

    def require_unchanged(self, meter: Meter) -> None:
        """Do nothing: snapshots stay as they are."""


@final
class StoreSource:
    """Reads a store of zarr's, or what wants to be one.

    Some cannot list, as most web servers: then the documents say which keys there may be, provided
    that consolidated metadata say where the documents are.
    """

    state = None
    workers = _WORKERS

    def __init__(self, store: Any, label: str, identity: str | None) -> None:
        """``identity`` is None unless another run can tell that it has the same store."""
        from zarr.core.buffer import default_buffer_prototype

        self.label = label
        self.identity = identity
        self._store = store
        self._prototype = default_buffer_prototype()
        self._keys: list[str] | None = None
        self._documents: dict[str, bytes] = {}

    def close(self) -> None:
        """Do nothing: the store is its owner's."""

    # ── looking ──────────────────────────────────────────────────────────────────────────────────

    def survey(self, meter: Meter) -> Survey:
        """List all keys, and read all documents."""
        meter.stage("look", 0)
        self._keys = self._list()
        if self._keys is None:
            names = list(self._documents_by_name())
            chunks, skipped = sum(1 for _ in self._chunks_of(self._read_documents(names))), 0
        else:
            names = [key for key in self._keys if is_document(key) and not is_skipped(key)]
            skipped = sum(map(is_skipped, self._keys))
            chunks = len(self._keys) - len(names) - skipped
        self._documents = self._read_documents(names)
        meter.step(len(names))
        return Survey(self._documents, chunks, 0, skipped)

    def pieces(self) -> Iterator[Piece]:
        """Give all keys that are neither documents nor skipped."""
        keys = self._chunks_of(self._documents) if self._keys is None else iter(self._keys)
        for key in keys:
            if is_value(key):
                yield Piece((key,), 0)

    def has(self, key: str) -> bool:
        """Whether the store has a key."""
        return self._get(key) is not None

    def is_as_read(self, piece: Piece, since: int) -> bool:  # noqa: ARG002 - stores tell no times
        """Say yes: a store does not tell, and to read all of it again may take hours."""
        return True

    def require_unchanged(self, meter: Meter) -> None:
        """List all keys and read all documents again."""
        meter.stage("look again", len(self._documents))
        if self._keys is not None and sorted(self._list() or ()) != sorted(self._keys):
            raise changed(self.label)
        for key, data in self._documents.items():
            if self._document(key) != data:
                raise changed(self.label, key)
            meter.step(1)

    def _list(self) -> list[str] | None:
        """List the keys; None if the store does not tell them."""
        if not getattr(self._store, "supports_listing", True):
            return None

        async def collect() -> list[str]:
            return [key async for key in self._store.list_prefix("")]

        try:
            keys: list[str] = _wait(collect())
        except VzarrError:
            raise
        except Exception:  # noqa: BLE001 - a server without listings answers with whatever it likes
            return None
        # One that has nothing to list may still have what is asked for by name.
        return [require_key(key, self.label) for key in keys] or None

    # ── keys that nobody lists ───────────────────────────────────────────────────────────────────

    def _documents_by_name(self) -> Iterator[str]:
        """Find the documents by consolidated metadata, or those of a single array."""
        root = self._get("zarr.json")
        if root is not None:
            yield "zarr.json"
            document = parse_document(root) or {}
            found = _object(_object(document.get("consolidated_metadata")).get("metadata"))
            if not found and document.get("node_type") == "group":
                raise self._unlisted()
            yield from (join(require_key(path, self.label), "zarr.json") for path in found)
            return
        consolidated = self._get(CONSOLIDATED)
        if consolidated is not None:
            found = _object((parse_document(consolidated) or {}).get("metadata"))
            yield from (require_key(key, self.label) for key in found if is_document(key))
            return
        names = [name for name in _V2_DOCUMENTS if self._get(name) is not None]
        if ".zgroup" in names:
            raise self._unlisted()
        yield from names

    def _unlisted(self) -> InvalidInputError:
        return InvalidInputError(
            f"{self.label} does not list what it has, and its root group has no consolidated "
            "metadata that would tell: import its arrays one by one, or a copy in a directory"
        )

    def _chunks_of(self, documents: Mapping[str, bytes]) -> Iterator[str]:
        """Give the keys of all chunks that arrays of these shapes may have."""
        for path, array in _arrays(documents):
            if array.grid is None or array.layout is None:
                raise InvalidInputError(
                    f"{self.label} does not list what it has, and the chunk grid of "
                    f"{path or 'its array'} is unknown here: import a copy in a directory"
                )
            whole = tuple(slice(0, length) for length in array.shape)
            for coordinates in itertools.product(*array.chunks_of(whole) or ()):
                yield join(path, array.layout.spell(encode_coordinates(coordinates)))

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    def read(self, piece: Piece) -> Values:
        """Read a value."""
        (key,) = piece.keys
        data = self._get(key)
        if data is None:
            if self._keys is not None:
                raise changed(self.label, key)
            # One that was never written.
            return []
        return [(key, data)]

    def _read_documents(self, names: list[str]) -> dict[str, bytes]:
        return {name: self._document(name) for name in names}

    def _document(self, key: str) -> bytes:
        data = self._get(key)
        if data is None:
            raise changed(self.label, key)
        return without_consolidated(key, data)

    def _get(self, key: str) -> bytes | None:
        try:
            value = _wait(self._store.get(key, self._prototype))
        except VzarrError:
            raise
        except Exception as error:
            # Whatever a file system of fsspec's, and the libraries below it, may raise.
            raise StorageError(
                f"cannot read {key} of {self.label}: {type(error).__name__}: {error}",
                code=getattr(error, "errno", None),
            ) from error
        if value is None:
            return None
        data: bytes = value.to_bytes()
        require_size(key, len(data), self.label)
        return data


def _wait(coroutine: Any) -> Any:
    from zarr.core.sync import sync

    return sync(coroutine)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _arrays(documents: Mapping[str, bytes]) -> Iterator[tuple[str, ArrayMetadata]]:
    for key, data in documents.items():
        path, _, name = key.rpartition("/")
        if name in NODE_DOCUMENTS:
            blob = Blob(chunk_digest(data), len(data))
            metadata = node_metadata({name: blob}, {blob: data}.__getitem__)
            if metadata is not None and metadata.array is not None:
                yield path, metadata.array


def from_store(store: Any, label: str | None = None) -> SnapshotSource | StoreSource:
    """Make a source of a store, which is called what it calls itself, or ``label``."""
    from vzarr.store import VzarrStore

    if isinstance(store, VzarrStore) and not isinstance(store.session, Fork):
        return SnapshotSource(store.session, str(store))
    return StoreSource(store, str(store) if label is None else label, None)


def from_url(url: str, label: str, storage_options: Mapping[str, Any] | None) -> StoreSource:
    """Make a source of what is at a URL. Raises ``InvalidInputError`` if nothing can read that."""
    from zarr.storage import FsspecStore

    try:
        store = FsspecStore.from_url(
            url, storage_options=dict(storage_options or {}), read_only=True
        )
    except ImportError as error:
        raise InvalidInputError(
            f"{label} cannot be read: {error}. URLs need the package fsspec, and what it asks for "
            "their kind: pip install fsspec"
        ) from error
    except (ValueError, TypeError, OSError) as error:
        raise InvalidInputError(f"{label} cannot be read: {error}") from error
    return StoreSource(store, label, url)
