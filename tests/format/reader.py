"""A second reader of vzarr's files, written from ``docs/format.md`` alone.

It imports nothing of vzarr and shares no idea with it but the page: slow, strict, and short. All of
a file is read into plain dictionaries; what is not as the page says is refused with ``Damaged``.
Section numbers are the page's.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import lmdb
import msgpack
import xxhash
from blake3 import blake3

VERSION = 1
DATABASES = (
    "meta",
    "chunks",
    "checksums",
    "nodes",
    "commits",
    "branches",
    "tags",
    "reflog",
    "sessions",
)
SEALED = ("meta", "branches", "tags", "reflog", "sessions")
DOCUMENTS = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")
MAX_ENTRIES = 1024
FIRST_TIME, LAST_TIME = -62_135_596_800_000_000, 253_402_300_799_999_999


class Damaged(Exception):
    """The file is not as the page says."""


class Unsupported(Exception):
    """The file is of a version that this reader does not know."""


def demand(condition: object, what: str) -> None:
    if not condition:
        raise Damaged(what)


# ── 2 conventions ────────────────────────────────────────────────────────────────────────────────


def decode(data: bytes, what: str) -> Any:
    """Decode MessagePack in its one spelling."""
    try:
        value = msgpack.unpackb(data, strict_map_key=False)
        again = msgpack.packb(value)
    except Exception as error:
        raise Damaged(f"{what}: {error}") from error
    demand(again == data, f"{what}: not spelled in the shortest way")
    return value


def decode_array(data: bytes, length: int, what: str) -> list[Any]:
    fields = decode(data, what)
    demand(type(fields) is list and len(fields) == length, f"{what}: not an array of {length}")
    return fields


def demand_digest(*values: object) -> None:
    for value in values:
        demand(type(value) is bytes and len(value) == 32, "not a digest")


def demand_natural(*values: object) -> None:
    for value in values:
        demand(type(value) is int and 0 <= value < 2**64, "not a natural")


def demand_text(*values: object) -> None:
    for value in values:
        demand(type(value) is str, "not text")


def demand_time(value: object) -> None:
    demand(type(value) is int and FIRST_TIME <= value <= LAST_TIME, "not a time")


# ── 3 digests ────────────────────────────────────────────────────────────────────────────────────


def digest(data: bytes, kind: str) -> bytes:
    """Hash an object: a chunk plainly, the other kinds with their key."""
    if kind == "chunk":
        return blake3(data).digest()
    return blake3(data, key=f"vzarr.{kind}".encode().ljust(32, b"\0")).digest()


def unsealed(database: str, key: bytes, data: bytes) -> bytes:
    """Take the seal off a record, and compare it."""
    record, seal = data[:-4], data[-4:]
    place = database.encode() + b"\0" + struct.pack("<H", len(key)) + key
    demand(digest(place + record, "seal")[:4] == seal, f"{database}: a seal is broken")
    return record


def ends_node(level: int, key: bytes) -> bool:
    """Rule 3 of section 7."""
    number = int.from_bytes(blake3(key).digest()[:8], "little")
    return level < 12 and number >> 5 * level & 31 == 0


# ── 6 chunks ─────────────────────────────────────────────────────────────────────────────────────


class Reference(NamedTuple):
    digest: bytes
    length: int


def decode_reference(data: object) -> Reference:
    demand(type(data) is bytes and len(data) == 36, "not a reference")
    assert isinstance(data, bytes)
    return Reference(data[:32], int.from_bytes(data[32:], "little"))


def encode_reference(value: bytes) -> bytes:
    return digest(value, "chunk") + struct.pack("<I", len(value))


# ── 7 trees ──────────────────────────────────────────────────────────────────────────────────────

Item = tuple[bytes, bytes]
Measure = Callable[[bytes], tuple[int, int]]


class TreeReference(NamedTuple):
    digest: bytes
    count: int
    nbytes: int


class Node(NamedTuple):
    level: int
    items: list[Item]


def decode_tree_reference(fields: object) -> TreeReference | None:
    if fields is None:
        return None
    demand(type(fields) is list and len(fields) == 3, "not a tree reference")
    assert isinstance(fields, list)
    demand_digest(fields[0])
    demand_natural(*fields[1:])
    demand(fields[1] > 0, "a reference to the empty tree")
    return TreeReference(*fields)


def decode_node(data: bytes) -> Node:
    level, n, key_widths, keys, value_widths, values = decode_array(data, 6, "node")
    demand_natural(level, n)
    demand(level <= 31 and 1 <= n <= MAX_ENTRIES, "node: impossible level or size")
    demand(level == 0 or value_widths == 48, "node: values are no node references")
    columns = (decode_column(n, key_widths, keys), decode_column(n, value_widths, values))
    items = list(zip(*columns, strict=True))
    demand(all(a[0] < b[0] for a, b in pairwise(items)), "node: key order")
    return Node(level, items)


def decode_column(n: int, widths: object, data: object) -> list[bytes]:
    demand(type(data) is bytes, "node: a column is not bytes")
    assert isinstance(data, bytes)
    if type(widths) is int:
        ends = [widths * (index + 1) for index in range(n)]
    else:
        demand(type(widths) is bytes and len(widths) == 4 * n, "node: widths")
        assert isinstance(widths, bytes)
        ends = list(struct.unpack(f"<{n}I", widths))
    starts = [0, *ends[:-1]]
    demand(all(a <= b for a, b in zip(starts, ends, strict=True)), "node: offsets go back")
    demand(ends[-1] == len(data), "node: a column has another length")
    items = [data[a:b] for a, b in zip(starts, ends, strict=True)]
    equal = len({len(item) for item in items}) == 1
    demand(equal == (type(widths) is int), "node: widths are spelled in the other way")
    return items


def encode_node(level: int, items: list[Item]) -> bytes:
    fields: list[object] = [level, len(items)]
    for column in zip(*items, strict=True):
        lengths = [len(item) for item in column]
        if len(set(lengths)) == 1:
            fields.append(lengths[0])
        else:
            fields.append(struct.pack(f"<{len(lengths)}I", *accumulate(lengths)))
        fields.append(b"".join(column))
    return msgpack.packb(fields)


def build(items: list[Item], measure: Measure) -> TreeReference | None:
    """Make the tree of a map, from the definition: nodes level by level, until there is one."""
    if not items:
        return None
    demand(all(a[0] < b[0] for a, b in pairwise(items)), "tree: key order")
    level, sums = 0, [measure(value) for _, value in items]
    while True:
        nodes: list[tuple[bytes, TreeReference]] = []
        start = 0
        for index, (key, _) in enumerate(items):
            size = index + 1 - start
            if ends_node(level, key) or size == MAX_ENTRIES or index + 1 == len(items):
                count, nbytes = map(sum, zip(*sums[start : index + 1], strict=True))
                encoded = encode_node(level, items[start : index + 1])
                nodes.append((key, TreeReference(digest(encoded, "node"), count, nbytes)))
                start = index + 1
        if len(nodes) == 1:
            return nodes[0][1]
        items = [(key, struct.pack("<32sQQ", *reference)) for key, reference in nodes]
        sums = [(reference.count, reference.nbytes) for _, reference in nodes]
        level += 1


# ── 8 snapshots ──────────────────────────────────────────────────────────────────────────────────


class Layout(NamedTuple):
    spelling: int
    ndim: int


class Entry(NamedTuple):
    documents: dict[str, Reference]
    layout: Layout | None
    index: TreeReference | None
    directory: TreeReference | None
    file: Reference | None


def decode_entry(data: bytes) -> Entry:
    documents, layout, index, directory, file = decode_array(data, 5, "entry")
    demand(type(documents) is list and len(documents) % 2 == 0, "entry: documents")
    codes = documents[::2]
    demand_natural(*codes)
    ascending = all(a < b for a, b in pairwise(codes))
    demand(ascending and all(code < 5 for code in codes), "entry: codes of documents")
    if layout is not None:
        demand(type(layout) is list and len(layout) == 2, "entry: layout")
        demand_natural(*layout)
        demand(layout[0] <= 3 and layout[1] <= 64, "entry: layout")
    demand(index is None or layout is not None, "entry: an index without a layout")
    return Entry(
        {
            DOCUMENTS[code]: decode_reference(reference)
            for code, reference in zip(codes, documents[1::2], strict=True)
        },
        None if layout is None else Layout(*layout),
        decode_tree_reference(index),
        decode_tree_reference(directory),
        None if file is None else decode_reference(file),
    )


def measure_reference(data: bytes) -> tuple[int, int]:
    return 1, decode_reference(data).length


def measure_entry(data: bytes) -> tuple[int, int]:
    entry = decode_entry(data)
    references = [*entry.documents.values(), *([entry.file] if entry.file else [])]
    trees = [tree for tree in (entry.index, entry.directory) if tree is not None]
    count = len(references) + sum(tree.count for tree in trees)
    return count, sum(r.length for r in references) + sum(tree.nbytes for tree in trees)


def chunk_key(layout: Layout, rest: str) -> bytes | None:
    """The index key of a chunk key, or None for any other."""
    separator = "/" if layout.spelling in (0, 3) else "."
    prefixed = layout.spelling in (0, 1)
    if layout.ndim == 0:
        return b"" if rest == ("c" if prefixed else "0") else None
    parts = rest.split(separator)
    if prefixed and parts.pop(0) != "c":
        return None
    if len(parts) != layout.ndim:
        return None
    for part in parts:
        digits = part != "" and all(character in "0123456789" for character in part)
        if not digits or (part[0] == "0" and part != "0") or len(part) > 10 or int(part) >= 2**32:
            return None
    return struct.pack(f">{layout.ndim}I", *map(int, parts))


def spell_chunk_key(layout: Layout, index_key: bytes) -> str:
    demand(len(index_key) == 4 * layout.ndim, "index: a key of other dimensions")
    parts = [str(number) for number in struct.unpack(f">{layout.ndim}I", index_key)]
    if layout.spelling in (0, 1):
        parts.insert(0, "c")
    return ("/" if layout.spelling in (0, 3) else ".").join(parts) or "0"


def layout_of(documents: Mapping[str, bytes]) -> Layout | None:
    """The layout that follows from an entry's documents."""
    document = parse(documents.get("zarr.json"))
    if document.get("zarr_format") == 3:
        if document.get("node_type") == "group":
            return None
        ndim = dimensions(document.get("shape"))
        if document.get("node_type") == "array" and ndim is not None:
            encoding = document.get("chunk_key_encoding")
            encoding = {"name": encoding} if isinstance(encoding, str) else as_object(encoding)
            configuration = as_object(encoding.get("configuration"))
            if encoding.get("name") == "default":
                return spelled({"/": 0, ".": 1}, configuration.get("separator", "/"), ndim)
            if encoding.get("name") == "v2":
                return spelled({".": 2, "/": 3}, configuration.get("separator", "."), ndim)
            return None
    document = parse(documents.get(".zarray"))
    if document.get("zarr_format") == 2:
        ndim = dimensions(document.get("shape"))
        if ndim is not None:
            return spelled({".": 2, "/": 3}, document.get("dimension_separator", "."), ndim)
    return None


def spelled(spellings: Mapping[str, int], separator: object, ndim: int) -> Layout | None:
    spelling = spellings.get(separator) if isinstance(separator, str) else None
    return None if spelling is None else Layout(spelling, ndim)


def as_object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def parse(data: bytes | None) -> Mapping[str, Any]:
    try:
        document = json.loads((data or b"null").decode()) if len(data or b"") <= 2**26 else None
    except (ValueError, RecursionError):
        return {}
    level = [document]
    for _ in range(100):
        level = [
            item
            for value in level
            if isinstance(value, list | dict)
            for item in (value.values() if isinstance(value, dict) else value)
        ]
    too_deep = any(isinstance(value, list | dict) for value in level)
    return {} if too_deep else as_object(document)


def dimensions(shape: object) -> int | None:
    if (
        isinstance(shape, list)
        and len(shape) <= 64
        and all(type(n) is int and n >= 0 for n in shape)
    ):
        return len(shape)
    return None


def root_id(snapshot: Mapping[str, bytes]) -> bytes:
    """The root id of a snapshot, made from its keys and values alone."""
    return digest(encode_snapshot(snapshot), "entry")


def encode_snapshot(keys: Mapping[str, bytes], file: bytes | None = None) -> bytes:
    """Encode the entry of the keys below a path; ``file`` is the value of the path itself."""
    documents = {name: keys[name] for name in DOCUMENTS if name in keys}
    # No document's name is a chunk key, so rule 1 does not take any of them away.
    layout = layout_of(documents)
    chunks: dict[bytes, bytes] = {}
    members: dict[str, dict[str, bytes]] = {}
    files: dict[str, bytes] = {}
    for key, value in keys.items():
        coordinates = None if layout is None else chunk_key(layout, key)
        name, slash, rest = key.partition("/")
        if coordinates is not None:
            chunks[coordinates] = encode_reference(value)
        elif key in documents:
            continue
        elif slash:
            members.setdefault(name, {})[rest] = value
        else:
            files[name] = value
    directory = {
        name.encode(): encode_snapshot(members.get(name, {}), files.get(name))
        for name in {*members, *files}
    }
    index = build(sorted(chunks.items()), measure_reference)
    below = build(sorted(directory.items()), measure_entry)
    fields = [
        [
            field
            for name, value in documents.items()
            for field in (DOCUMENTS.index(name), encode_reference(value))
        ],
        layout,
        index,
        below,
        None if file is None else encode_reference(file),
    ]
    return msgpack.packb(fields)


# ── 9 to 11: commits, branches, tags, reflog, sessions ───────────────────────────────────────────


class Commit(NamedTuple):
    parents: tuple[bytes, ...]
    root: bytes
    author: str
    time: int
    message: str
    metadata: dict[str, Any]


class Tag(NamedTuple):
    commit: bytes
    message: str
    author: str
    time: int


class Move(NamedTuple):
    old: bytes | None
    new: bytes | None
    author: str
    time: int
    operation: str


class Lease(NamedTuple):
    kind: int
    token: int
    pid: int
    process_started: int
    host: str
    command: str
    parent: bytes | None
    branch: str
    base: bytes
    created: int
    updated: int
    nbytes: int
    staged: bytes | None
    checkpoint: bytes | None
    checkpointed: int | None


def decode_commit(data: bytes) -> Commit:
    parents, *rest = decode_array(data, 6, "commit")
    demand(type(parents) is list, "commit: parents")
    commit = Commit(tuple(parents), *rest)
    demand_digest(*commit.parents, commit.root)
    demand_text(commit.author, commit.message)
    demand_time(commit.time)
    demand(type(commit.metadata) is dict, "commit: metadata")
    demand_json(commit.metadata)
    return commit


def demand_json(value: object) -> None:
    if isinstance(value, dict):
        demand_text(*value)
        for item in value.values():
            demand_json(item)
    elif isinstance(value, list):
        for item in value:
            demand_json(item)
    else:
        demand(value is None or type(value) in (bool, int, float, str), "not of JSON's types")


def decode_tag(data: bytes) -> Tag:
    tag = Tag(*decode_array(data, 4, "tag"))
    demand_digest(tag.commit)
    demand_text(tag.message, tag.author)
    demand_time(tag.time)
    return tag


def decode_move(data: bytes) -> Move:
    move = Move(*decode_array(data, 5, "reflog"))
    heads = [head for head in move[:2] if head is not None]
    demand(heads, "reflog: no head")
    demand_digest(*heads)
    demand_text(move.author, move.operation)
    demand_time(move.time)
    return move


def decode_lease(data: bytes) -> Lease:
    lease = Lease(*decode_array(data, 15, "lease"))
    demand_natural(lease.kind, lease.token, lease.pid, lease.process_started, lease.nbytes)
    demand(lease.kind <= 2, "lease: kind")
    demand_text(lease.host, lease.command, lease.branch)
    demand((lease.parent is None) == (lease.kind == 0), "lease: parent")
    demand(lease.parent is None or type(lease.parent) is bytes, "lease: parent")
    demand(lease.parent is None or len(lease.parent) == 16, "lease: parent")
    roots = [root for root in (lease.staged, lease.checkpoint) if root is not None]
    demand_digest(lease.base, *roots)
    demand((lease.checkpoint is None) == (lease.checkpointed is None), "lease: checkpoint")
    times = [lease.created, lease.updated]
    for time in times if lease.checkpointed is None else [*times, lease.checkpointed]:
        demand_time(time)
    return lease


def decode_journal(data: bytes) -> list[tuple[str, bytes | None]]:
    edits = []
    fields = decode(data, "journal")
    demand(type(fields) is list, "journal: not an array")
    for edit in fields:
        demand(type(edit) is list and len(edit) == 2, "journal: edit")
        key, value = edit
        demand_text(key)
        demand(value is None or (type(value) is bytes and len(value) == 36), "journal: value")
        edits.append((key, value))
    return edits


def decode_name(key: bytes) -> str:
    """The name of a branch or tag, by the rules of section 10."""
    try:
        name = key.decode()
    except UnicodeDecodeError as error:
        raise Damaged("name: not UTF-8") from error
    parts = name.split("/")
    demand(1 <= len(key) <= 400, "name: length")
    demand(all(byte > 0x20 and byte != 0x7F for byte in key), "name: control characters")
    demand(not any(bad in name for bad in [*"~^:?*[\\", "..", "@{", "//"]), "name: characters")
    demand(name[0] not in "-/" and name[-1] not in "./", "name: ends")
    demand(not any(p.startswith(".") or p.endswith(".lock") for p in parts), "name: parts")
    demand(name not in ("@", "HEAD"), "name: reserved")
    return name


# ── 1 the container ──────────────────────────────────────────────────────────────────────────────


class File:
    """All of a file, in plain dictionaries. The file must not be open elsewhere in this process."""

    def __init__(self, path: str) -> None:
        self._databases = {
            name: records if name not in SEALED else _unseal_all(name, records)
            for name, records in _read_databases(path).items()
        }
        meta = self._databases["meta"]
        self.version = self._read_version(meta.get(b"format"))
        self.id, self.created = self._read_repository(meta.get(b"repository"))
        self.commits = {
            key: decode_commit(self._verified(key, data, "commit"))
            for key, data in self._databases["commits"].items()
        }
        self.branches = {decode_name(k): v for k, v in self._databases["branches"].items()}
        self.tags = {decode_name(k): decode_tag(v) for k, v in self._databases["tags"].items()}
        self.reflog = self._read_reflog()
        self.leases, self.batches = self._read_sessions()
        self._trees: dict[TreeReference, list[Item]] = {}

    def snapshot(self, root: bytes) -> dict[str, bytes]:
        """Read the keys and values of a root id. Every digest and the shape are verified."""
        data = self._databases["nodes"].get(root)
        demand(data is not None, "root entry: missing")
        assert data is not None
        entry = decode_entry(self._verified(root, data, "entry"))
        demand(entry.file is None, "root entry: has a file")
        found = list(self._keys("", entry))
        snapshot = dict(found)
        demand(len(found) == len(snapshot), "snapshot: a key lies in two places")
        demand(root_id(snapshot) == root, "snapshot: it is not the one tree of its content")
        return snapshot

    def verify(self) -> dict[bytes, dict[str, bytes]]:
        """Check all of the file; give the snapshot of each commit."""
        for key, data in self._databases["chunks"].items():
            self._verified(key, data, "chunk")
        for key, checksum in self._databases["checksums"].items():
            data = self._databases["chunks"].get(key)
            demand(data is not None, "checksum: of no chunk")
            demand(xxhash.xxh3_128_digest(data) == checksum, "checksum: not that of its chunk")
        for key, data in self._databases["nodes"].items():
            self._verified_node(key, data)
        for head in self.branches.values():
            demand(head in self.commits, "branch: its head is no commit")
        for tag in self.tags.values():
            demand(tag.commit in self.commits, "tag: names no commit")
        for commit in self.commits.values():
            demand(all(parent in self.commits for parent in commit.parents), "commit: no parent")
        for lease in self.leases.values():
            for root in (lease.staged, lease.checkpoint):
                demand(root is None or self.snapshot(root) is not None, "session: its snapshot")
        roots = {commit.root for commit in self.commits.values()}
        snapshots = {root: self.snapshot(root) for root in roots}
        return {key: snapshots[commit.root] for key, commit in self.commits.items()}

    def _verified(self, key: bytes, data: bytes, kind: str) -> bytes:
        demand(digest(data, kind) == key, f"{kind}: does not match its digest")
        return data

    def _verified_node(self, key: bytes, data: bytes) -> None:
        if digest(data, "node") == key:
            decode_node(data)
        else:
            decode_entry(self._verified(key, data, "entry"))

    def _read_version(self, data: bytes | None) -> int:
        demand(data is not None, "meta: no format")
        assert data is not None
        fields = decode(data, "format")
        demand(
            type(fields) is list and fields[:1] == ["vzarr"] and len(fields) >= 3, "no vzarr file"
        )
        demand_natural(*fields[1:3])
        version, oldest = fields[1:3]
        demand(1 <= oldest <= version, "format: versions")
        if oldest > VERSION:
            raise Unsupported(f"format version {version}")
        demand(version > 1 or len(fields) == 3, "format: fields")
        return version

    def _read_repository(self, data: bytes | None) -> tuple[bytes, int]:
        demand(data is not None, "meta: no repository")
        assert data is not None
        identity, created, algorithm = decode_array(data, 3, "repository")
        demand(type(identity) is bytes and len(identity) == 16, "repository: id")
        demand_time(created)
        demand(algorithm == "blake3-256", "repository: digest algorithm")
        return identity, created

    def _read_reflog(self) -> dict[str, list[Move]]:
        reflog: dict[str, list[Move]] = {}
        for key, data in self._databases["reflog"].items():
            demand(len(key) >= 10 and key[-9] == 0, "reflog: key")
            reflog.setdefault(decode_name(key[:-9]), []).append(decode_move(data))
        return reflog

    def _read_sessions(self) -> tuple[dict[bytes, Lease], dict[bytes, list[bytes]]]:
        leases: dict[bytes, Lease] = {}
        batches: dict[bytes, list[bytes]] = {}
        # The lease comes before the rest of its session.
        for key, data in sorted(self._databases["sessions"].items()):
            demand(len(key) == 20, "session: key")
            session, number = key[:16], int.from_bytes(key[16:], "big")
            if number == 0:
                leases[session] = decode_lease(data)
                continue
            demand(session in leases, "session: a batch without a lease")
            if leases[session].kind:
                digests = [value[:32] for _, value in decode_journal(data) if value is not None]
            else:
                demand(len(data) % 32 == 0, "session: batch")
                digests = [data[at : at + 32] for at in range(0, len(data), 32)]
            demand(all(d in self._databases["chunks"] for d in digests), "session: chunk missing")
            batches.setdefault(session, []).extend(digests)
        return leases, batches

    def _keys(self, base: str, entry: Entry) -> Iterator[tuple[str, bytes]]:
        documents = {name: self._value(r) for name, r in entry.documents.items()}
        demand(entry.layout == layout_of(documents), "entry: layout does not follow")
        for name, value in documents.items():
            yield base + name, value
        if entry.index is not None:
            assert entry.layout is not None
            for key, value in self._tree(entry.index, measure_reference):
                spelled = spell_chunk_key(entry.layout, key)
                yield base + spelled, self._value(decode_reference(value))
        if entry.directory is not None:
            for key, value in self._tree(entry.directory, measure_entry):
                demand(b"/" not in key, "directory: a name with a slash")
                name = _utf8(key)
                member = decode_entry(value)
                demand(measure_entry(value)[0] > 0, "directory: an empty member")
                if member.file is not None:
                    yield base + name, self._value(member.file)
                yield from self._keys(f"{base}{name}/", member)

    def _value(self, reference: Reference) -> bytes:
        data = self._databases["chunks"].get(reference.digest)
        demand(data is not None, "chunk: missing")
        assert data is not None
        demand(len(data) == reference.length, "chunk: another length")
        return self._verified(reference.digest, data, "chunk")

    def _tree(self, reference: TreeReference, measure: Measure) -> list[Item]:
        """The items of a tree, which is built from them anew and must be the same."""
        items = self._trees.get(reference)
        if items is None:
            items = list(self._items(reference.digest, None, None))
            demand(build(items, measure) == reference, "tree: not the one tree of its content")
            self._trees[reference] = items
        return items

    def _items(self, key: bytes, level: int | None, last: bytes | None) -> Iterator[Item]:
        data = self._databases["nodes"].get(key)
        demand(data is not None, "node: missing")
        assert data is not None
        node = decode_node(self._verified(key, data, "node"))
        demand(level is None or node.level == level, "node: another level than its parent says")
        demand(last is None or node.items[-1][0] == last, "node: another last key")
        if node.level == 0:
            yield from node.items
        else:
            for child_last, reference in node.items:
                yield from self._items(reference[:32], node.level - 1, child_last)


def _utf8(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Damaged("directory: a name is not UTF-8") from error


def _unseal_all(database: str, records: dict[bytes, bytes]) -> dict[bytes, bytes]:
    known = (b"format", b"repository") if database == "meta" else records
    return {key: unsealed(database, key, records[key]) for key in known if key in records}


def _read_databases(path: str) -> dict[str, dict[bytes, bytes]]:
    environment = lmdb.open(path, subdir=False, readonly=True, lock=False, max_dbs=64, create=False)
    try:
        with environment.begin() as transaction:
            names = set(transaction.cursor().iternext(values=False))
        demand(names.issuperset(map(str.encode, DATABASES)), "a database is missing")
        opened = {name: environment.open_db(name.encode(), create=False) for name in DATABASES}
        with environment.begin() as transaction:
            return {
                name: dict(transaction.cursor(database).iternext())
                for name, database in opened.items()
            }
    finally:
        environment.close()
