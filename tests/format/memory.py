"""A snapshot's objects in dictionaries: what trees and hierarchies need, without a file."""

from __future__ import annotations

from collections.abc import Mapping

from vzarr.format import (
    EMPTY_ENTRY,
    Blob,
    Digest,
    chunk_digest,
    encode_entry,
    entry_digest,
    node_digest,
)
from vzarr.hierarchy import Hierarchy
from vzarr.node import Node, decode_node, encode_node


class Memory:
    """Nodes and chunks by digest."""

    def __init__(self) -> None:
        self.nodes: dict[bytes, bytes] = {}
        self.chunks: dict[bytes, bytes] = {}

    def load(self, digest: bytes) -> Node:
        return decode_node(self.nodes[digest])

    def save(self, node: Node) -> bytes:
        return self.keep(encode_node(node.level, node.keys, node.values))

    def keep(self, node_bytes: bytes) -> bytes:
        digest = node_digest(node_bytes)
        self.nodes[digest] = node_bytes
        return digest

    def read(self, blob: Blob) -> bytes:
        return self.chunks[blob.digest]

    def blob(self, data: bytes) -> Blob:
        blob = Blob(chunk_digest(data), len(data))
        self.chunks[blob.digest] = data
        return blob

    def hierarchy(self, snapshot: Mapping[str, bytes]) -> Hierarchy:
        """Put a snapshot into the dictionaries."""
        blobs = {key: self.blob(value) for key, value in snapshot.items()}
        return Hierarchy(self, EMPTY_ENTRY).edit(blobs)

    def put_root(self, hierarchy: Hierarchy) -> Digest:
        """Put a snapshot's root entry there too, and give the root id."""
        data = encode_entry(hierarchy.root)
        digest = entry_digest(data)
        self.nodes[digest] = data
        return digest
