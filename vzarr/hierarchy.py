"""A snapshot as zarr sees it: a flat map from keys to bytes, kept as a tree of groups and arrays.

Where a key lies follows from the snapshot's content alone, so that equal maps are equal trees
whatever the order of writes. A key is looked at from the root down, and at each entry it is

1. a chunk, if the entry's documents make it an array and the rest of the key is spelled the way
   that array spells its chunks' keys;
2. a document, if the rest is a document's name;
3. else it belongs to the member that its next name names.

So when an array's metadata arrive after its chunks, or change how they are spelled, the keys below
move from one place to the other in the same edit (``_respell``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import final

from vzarr.btree import Tree
from vzarr.errors import AlreadyExistsError, CorruptError, InvalidInputError, NotFoundError
from vzarr.format import (
    DIGEST_BYTES,
    DOCUMENTS,
    EMPTY_ENTRY,
    MAX_DEPTH,
    Blob,
    Entry,
    Layout,
    TreeRef,
    blob_measure,
    decode_blob,
    decode_entry,
    decode_name,
    encode_blob,
    encode_coordinates,
    encode_entry,
    entry_measure,
    keep_entry,
)
from vzarr.metadata import NodeMetadata, layout_of, node_metadata
from vzarr.objects import Overlay, Store, cache_entry, cached_entry

_NO_EDIT = object()


@dataclass(slots=True)
class _MemberEdit:
    """What is to change at one name of a directory."""

    tails: dict[str, Blob | None] = field(default_factory=dict)
    file: object = _NO_EDIT


@final
class Hierarchy:
    """One immutable state of the tree; edits give a new one.

    Costs are in node reads, each a lookup in memory when warm: ``d`` is the depth of the path,
    ``n`` the number of chunks or members beside the one that is touched.
    """

    __slots__ = ("_array", "_directories", "_indexes", "_store", "root")

    def __init__(self, store: Store, root: Entry) -> None:
        # Where the last chunk was looked for: the next one is mostly of the same array.
        self._array: tuple[str, Layout, Entry] | None = None
        self.root = root
        self._store = store
        self._indexes = Tree(store, blob_measure)
        self._directories = Tree(store, entry_measure)

    # ── looking up ───────────────────────────────────────────────────────────────────────────────

    def find(self, key: str) -> Blob | None:
        """Find the value of a key. O(d log n)."""
        array = self._array
        if array is not None and key.startswith(array[0]):
            index_key = array[1].parse(key[len(array[0]) :])
            if index_key is not None:
                return self._chunk(array[2], index_key)
        entry, tail, below_array = self.root, key, False
        while True:
            if entry.layout is not None:
                index_key = entry.layout.parse(tail)
                if index_key is not None:
                    if not below_array:
                        self._array = key[: -len(tail)], entry.layout, entry
                    return self._chunk(entry, index_key)
                # Other keys of what is below may be chunks of this one.
                below_array = True
            name, slash, rest = tail.partition("/")
            if not slash and name in DOCUMENTS:
                return entry.documents.get(name)
            member = self._member(entry, name)
            if member is None:
                return None
            if not slash:
                return member.file
            entry, tail = member, rest

    def entry(self, path: str) -> Entry | None:
        """Find the entry of a path; the root's is ``""``. O(d log n)."""
        entry: Entry | None = self.root
        for name in path.split("/") if path else ():
            if entry is None:
                return None
            entry = self._member(entry, name)
        return entry

    def node(self, path: str) -> NodeMetadata | None:
        """Read the metadata of the node at a path; None if there is none. O(d log n)."""
        entry = self.entry(path)
        return None if entry is None else self.metadata(entry)

    def metadata(self, entry: Entry) -> NodeMetadata | None:
        """Read the metadata that an entry's documents give. O(size of the documents)."""
        return node_metadata(entry.documents, self._store.read)

    def chunk(self, entry: Entry, coordinates: tuple[int, ...]) -> Blob | None:
        """Find a chunk of an array by its coordinates, below 2^32 each. O(log n)."""
        return self._chunk(entry, encode_coordinates(coordinates))

    def _chunk(self, entry: Entry, index_key: bytes) -> Blob | None:
        value = self._indexes.get(entry.index, index_key)
        return None if value is None else decode_blob(value)

    def read(self, blob: Blob) -> bytes:
        """Give the bytes behind a reference, staged or on disk."""
        return self._store.read(blob)

    def _member(self, entry: Entry, name: str) -> Entry | None:
        if entry.directory is None:
            return None
        digest = entry.directory.digest
        member = cached_entry(digest, name)
        if member is None:
            data = self._directories.get(entry.directory, _encoded(name))
            if data is None:
                return None
            member = decode_entry(data)
            cache_entry(digest, name, member)
        return member

    # ── listing ──────────────────────────────────────────────────────────────────────────────────

    def items(self, path: str = "") -> Iterator[tuple[str, Blob]]:
        """List every key below a path with its value, lazily. O(d log n + keys)."""
        for base, entry, prefix in self._chunk_spaces(path):
            assert entry.layout is not None
            for index_key, value in self._indexes.scan(entry.index, prefix=prefix):
                yield base + entry.layout.spell(index_key), decode_blob(value)
        entry_here = self.entry(path)
        if entry_here is not None:
            yield from self._items(entry_here, f"{path}/" if path else "")

    def keys(self, path: str = "") -> Iterator[str]:
        """List every key below a path, lazily. O(d log n + keys)."""
        for base, entry, prefix in self._chunk_spaces(path):
            assert entry.layout is not None
            for index_key, _ in self._indexes.scan(entry.index, prefix=prefix):
                yield base + entry.layout.spell(index_key)
        entry_here = self.entry(path)
        if entry_here is not None:
            yield from self._keys(entry_here, f"{path}/" if path else "")

    def children(self, path: str = "") -> list[str]:
        """List the names that follow a path in keys. O(d log n + names), not O(keys)."""
        names: dict[str, None] = {}
        for _, entry, prefix in self._chunk_spaces(path):
            names.update(dict.fromkeys(self._next_coordinates(entry, prefix)))
        entry_here = self.entry(path)
        if entry_here is not None:
            names.update(dict.fromkeys(entry_here.documents))
            names.update(dict.fromkeys(self._first_names(entry_here)))
            names.update(dict.fromkeys(name for name, _ in self.members(entry_here)))
        return list(names)

    def sums(self, path: str = "") -> tuple[int, int]:
        """Count the keys below a path, and the bytes of their values. O(d log n)."""
        count = nbytes = 0
        for _, entry, prefix in self._chunk_spaces(path):
            chunks, size = self._indexes.sums(entry.index, prefix, _after(prefix))
            count, nbytes = count + chunks, nbytes + size
        entry_here = self.entry(path)
        if entry_here is not None:
            below = replace(entry_here, file=None)
            count, nbytes = count + below.count, nbytes + below.nbytes
        return count, nbytes

    def members(self, entry: Entry) -> Iterator[tuple[str, Entry]]:
        """List the members of an entry by name, lazily. O(members)."""
        for name, data in self._directories.scan(entry.directory):
            yield decode_name(name), decode_entry(data)

    def nodes(self, path: str = "") -> Iterator[tuple[str, Entry, NodeMetadata]]:
        """List the groups and arrays at and below a path, parents first. O(nodes)."""
        entry = self.entry(path)
        if entry is not None:
            yield from self._nodes(path, entry)

    def _nodes(self, path: str, entry: Entry) -> Iterator[tuple[str, Entry, NodeMetadata]]:
        metadata = self.metadata(entry)
        if metadata is not None:
            yield path, entry, metadata
        for name, member in self.members(entry):
            yield from self._nodes(join(path, name), member)

    def _items(self, entry: Entry, base: str) -> Iterator[tuple[str, Blob]]:
        for name, blob in entry.documents.items():
            yield base + name, blob
        if entry.index is not None and entry.layout is not None:
            for index_key, value in self._indexes.scan(entry.index):
                yield base + entry.layout.spell(index_key), decode_blob(value)
        for name, member in self.members(entry):
            if member.file is not None:
                yield base + name, member.file
            yield from self._items(member, _base(base, name))

    def _keys(self, entry: Entry, base: str) -> Iterator[str]:
        for name in entry.documents:
            yield base + name
        if entry.index is not None and entry.layout is not None:
            spell = entry.layout.spell
            for index_key, _ in self._indexes.scan(entry.index):
                yield base + spell(index_key)
        for name, member in self.members(entry):
            if member.file is not None:
                yield base + name
            yield from self._keys(member, _base(base, name))

    def _chunk_spaces(self, path: str) -> Iterator[tuple[str, Entry, bytes]]:
        """Find the arrays above a path for which it is the beginning of chunk keys.

        Gives the array's path with a slash, its entry, and the index keys' prefix.
        """
        entry: Entry | None = self.root
        base, tail = "", path
        while tail and entry is not None:
            if entry.layout is not None and entry.index is not None:
                prefix = chunk_prefix(entry.layout, tail)
                if prefix is not None:
                    yield base, entry, prefix
            name, _, tail = tail.partition("/")
            base = f"{base}{name}/"
            entry = self._member(entry, name)

    def _first_names(self, entry: Entry) -> Iterator[str]:
        """List the first names of an array's chunk keys."""
        if entry.index is None or entry.layout is None:
            return
        if entry.layout.separator == "/" and entry.layout.ndim > 0:
            yield from ["c"] if entry.layout.prefixed else self._next_coordinates(entry, b"")
        else:
            for index_key, _ in self._indexes.scan(entry.index):
                yield entry.layout.spell(index_key)

    def _next_coordinates(self, entry: Entry, prefix: bytes) -> Iterator[str]:
        """Skip from one value of the next coordinate to the following one."""
        start = prefix
        while True:
            found = self._indexes.first(entry.index, start)
            if found is None or not found[0].startswith(prefix):
                return
            number = found[0][len(prefix) : len(prefix) + 4]
            yield str(int.from_bytes(number, "big"))
            following = _after(prefix + number)
            if following is None:
                return
            start = following

    # ── editing ──────────────────────────────────────────────────────────────────────────────────

    def edit(self, edits: Mapping[str, Blob | None]) -> Hierarchy:
        """Set, or with None delete, the values of keys. O(k d log n); writes touched nodes only."""
        return self._with_root(self._edit(self.root, dict(edits)))

    def remove(self, path: str) -> Hierarchy:
        """Delete every key below a path, however many. O(d log n), but O(keys) in a chunk space."""
        if not path:
            return self._with_root(EMPTY_ENTRY)
        chunks = {
            base + entry.layout.spell(index_key): None
            for base, entry, prefix in self._chunk_spaces(path)
            if entry.layout is not None
            for index_key, _ in self._indexes.scan(entry.index, prefix=prefix)
        }
        remaining = self.edit(chunks) if chunks else self
        entry = remaining.entry(path)
        if entry is None:
            return remaining
        root = self._replace(remaining.root, path, Entry({}, file=entry.file))
        return self._with_root(root)

    def move(self, source: str, destination: str) -> Hierarchy:
        """Move a group or array, with all below it, without touching a chunk. O(d log n).

        Raises ``NotFoundError`` if there is nothing at ``source``, ``AlreadyExistsError`` if there
        is something at ``destination``, and ``InvalidInputError`` if the destination lies in
        ``source``, in an array, or in a group that does not exist.
        """
        entry = self.entry(source)
        if not source or entry is None or entry.is_empty:
            raise NotFoundError(
                f"cannot move {source or '/'!r}: there is no group or array", name=source
            )
        if destination == source or f"{destination}/".startswith(f"{source}/"):
            raise InvalidInputError(f"cannot move {source!r} into itself, to {destination!r}")
        there = self.entry(destination)
        if there is not None or not destination:
            raise AlreadyExistsError(
                f"cannot move {source!r} to {destination!r}: that exists; delete it first",
                name=destination,
            )
        self._require_group_above(source, destination)
        without = self._replace(self.root, source, EMPTY_ENTRY)
        return self._with_root(self._replace(without, destination, entry))

    def _require_group_above(self, source: str, destination: str) -> None:
        """Refuse a destination where the keys of what is moved would not be found again."""
        what = f"cannot move {source!r} to {destination!r}"
        require_depth(destination)
        parent, _, name = destination.rpartition("/")
        if name in DOCUMENTS:
            raise InvalidInputError(f"{what}: {name!r} is the name of a metadata document")
        metadata = self.node(parent)
        if parent and (metadata is None or metadata.kind != "group"):
            raise InvalidInputError(f"{what}: there is no group {parent!r}; create it first")
        names = destination.split("/")
        for depth in range(len(names)):
            above = self.entry("/".join(names[:depth]))
            if above is not None and above.layout is not None:
                raise InvalidInputError(f"{what}: {'/'.join(names[:depth]) or '/'} is an array")

    def _with_root(self, root: Entry) -> Hierarchy:
        return Hierarchy(self._store, root)

    def _replace(self, parent: Entry, path: str, entry: Entry) -> Entry:
        """Put an entry at a path below another as it is; an empty one deletes."""
        name, slash, rest = path.partition("/")
        if slash:
            entry = self._replace(self._member(parent, name) or EMPTY_ENTRY, rest, entry)
        return replace(parent, directory=self._write_members(parent, {name: entry}))

    def _write_members(self, parent: Entry, members: Mapping[str, Entry]) -> TreeRef | None:
        edits = [
            (name.encode(), None if entry.is_empty else _encode(entry))
            for name, entry in members.items()
        ]
        return self._directories.apply(parent.directory, sorted(edits, key=_first))

    def _edit(self, entry: Entry, tails: dict[str, Blob | None]) -> Entry:
        changed = [name for name in DOCUMENTS if name in tails]
        if changed:
            documents = dict(entry.documents)
            for name in changed:
                blob = tails.pop(name)
                if blob is None:
                    documents.pop(name, None)
                else:
                    documents[name] = blob
            # In the order in which they are read again.
            documents = {name: documents[name] for name in DOCUMENTS if name in documents}
            layout = layout_of(documents, self._store.read)
            entry = replace(entry, documents=documents)
            if layout != entry.layout:
                entry, tails = self._respell(entry, layout, tails)
        return self._edit_below(entry, tails)

    def _respell(
        self, entry: Entry, layout: Layout | None, tails: dict[str, Blob | None]
    ) -> tuple[Entry, dict[str, Blob | None]]:
        """Take out of the entry all keys that another layout puts elsewhere, as further edits."""
        moved: dict[str, Blob | None] = {}
        if entry.index is not None and entry.layout is not None:
            for index_key, value in self._indexes.scan(entry.index):
                moved[entry.layout.spell(index_key)] = decode_blob(value)
        entry = replace(entry, index=None, layout=None)
        if layout is not None:
            files = {
                key: blob
                for name, member in self.members(entry)
                if _may_be_chunk(layout, name)
                for key, blob in self._member_items(name, member)
                if layout.parse(key) is not None
            }
            if files:
                entry = self._edit_below(entry, dict.fromkeys(files))
                moved.update(files)
        return replace(entry, layout=layout), {**moved, **tails}

    def _member_items(self, name: str, member: Entry) -> Iterator[tuple[str, Blob]]:
        if member.file is not None:
            yield name, member.file
        yield from self._items(member, f"{name}/")

    def _edit_below(self, entry: Entry, tails: Mapping[str, Blob | None]) -> Entry:
        """Edit chunks and members; the entry's own documents are done."""
        chunks: list[tuple[bytes, bytes | None]] = []
        edits: dict[str, _MemberEdit] = {}
        parse = entry.layout.parse if entry.layout is not None else None
        for tail, blob in tails.items():
            index_key = parse(tail) if parse is not None else None
            if index_key is not None:
                chunks.append((index_key, None if blob is None else encode_blob(blob)))
                continue
            name, slash, rest = tail.partition("/")
            edit = edits.get(name)
            if edit is None:
                edit = edits[name] = _MemberEdit()
            if slash:
                edit.tails[rest] = blob
            else:
                edit.file = blob
        if chunks:
            chunks.sort(key=_first)
            entry = replace(entry, index=self._indexes.apply(entry.index, chunks))
        if edits:
            members = {
                name: self._edit_member(self._member(entry, name) or EMPTY_ENTRY, edit)
                for name, edit in edits.items()
            }
            entry = replace(entry, directory=self._write_members(entry, members))
        return entry

    def _edit_member(self, member: Entry, edit: _MemberEdit) -> Entry:
        if edit.tails:
            member = self._edit(member, edit.tails)
        if edit.file is not _NO_EDIT:
            assert edit.file is None or isinstance(edit.file, Blob)
            member = replace(member, file=edit.file)
        return member


def collect(overlay: Overlay, *roots: Entry) -> tuple[dict[bytes, bytes], set[bytes]]:
    """Find what snapshots need of a session's new objects: nodes, and digests of bytes.

    The digests are all those that the new nodes name, also of bytes which the repository has.
    O(new nodes): the walk ends where a node is not the session's own.
    """
    nodes: dict[bytes, bytes] = {}
    blobs: set[bytes] = set()
    fresh = overlay.fresh

    def visit(entry: Entry) -> None:
        blobs.update(blob.digest for blob in entry.documents.values())
        if entry.file is not None:
            blobs.add(entry.file.digest)
        for tree, leaf in ((entry.index, visit_chunks), (entry.directory, visit_members)):
            if tree is not None and tree.digest in fresh:
                walk(tree.digest, leaf)

    def visit_chunks(values: list[bytes]) -> None:
        blobs.update([value[:DIGEST_BYTES] for value in values])

    def visit_members(values: list[bytes]) -> None:
        for value in values:
            visit(decode_entry(value))

    def walk(digest: bytes, leaf: Callable[[list[bytes]], None]) -> None:
        if digest in nodes:
            return
        nodes[digest] = fresh[digest]
        node = overlay.load(digest)
        if node.level == 0:
            leaf(node.values)
            return
        for value in node.values:
            # Few children are new, out of dozens.
            if (child := value[:DIGEST_BYTES]) in fresh:
                walk(child, leaf)

    for root in roots:
        visit(root)
    return nodes, blobs


def _encoded(name: str) -> bytes:
    try:
        return name.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"the path {name!r} is not valid Unicode: {error}") from error


def join(path: str, name: str) -> str:
    """Join a node's path and a member's name. Raises ``CorruptError`` where that is too deep."""
    if path.count("/") >= MAX_DEPTH:
        raise _too_deep(path)
    return f"{path}/{name}" if path else name


def require_depth(key: str) -> None:
    """Raise ``InvalidInputError`` for a key or path with too many names. O(length)."""
    if key.count("/") > MAX_DEPTH:
        raise InvalidInputError(
            f"the key {key[:40]!r}... has more than {MAX_DEPTH} groups; nest them less deeply"
        )


def _base(base: str, name: str) -> str:
    """Join the beginning of keys, which is empty or ends with a slash, and a member's name."""
    if base.count("/") > MAX_DEPTH:
        raise _too_deep(base)
    return f"{base}{name}/"


def _too_deep(path: str) -> CorruptError:
    return CorruptError(
        f"groups are nested more than {MAX_DEPTH} deep below {path[:40]!r}; no key may be set "
        "there, and if a move has brought them there, move them up"
    )


def _encode(entry: Entry) -> bytes:
    """Encode an entry of a directory, which is mostly looked at again at once."""
    data = encode_entry(entry)
    keep_entry(data, entry)
    return data


def _first(pair: tuple[bytes, object]) -> bytes:
    return pair[0]


def _after(prefix: bytes) -> bytes | None:
    """Find the first key after all that begin with a prefix; None if there is none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None


def chunk_prefix(layout: Layout, tail: str) -> bytes | None:
    """Find the index keys' common prefix for chunk keys that begin with ``tail`` and a slash."""
    if layout.separator != "/":
        return None
    numbers = tail.split("/")
    if layout.prefixed and numbers.pop(0) != "c":
        return None
    if not len(numbers) < layout.ndim:
        return None
    # The tail is a row of coordinates exactly if it is the whole key of an array with as many axes.
    return Layout(3, len(numbers)).parse("/".join(numbers)) if numbers else b""


def _may_be_chunk(layout: Layout, name: str) -> bool:
    """Whether a chunk key can begin with a member's name."""
    return name[:1] == "c" if layout.prefixed else name[:1].isdigit()
