"""Time the B-tree by itself, on nodes in a dict: ``python -m bench.btree [ENTRIES ...]``.

Keys of 8 bytes, values of 36, as in the index of an array with two dimensions. Microseconds; the
median of many single calls where there are many. "Cold" is without any decoded node.
"""

from __future__ import annotations

import gc
import random
import statistics
import struct
import sys
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from vzarr.btree import Tree
from vzarr.format import TreeRef, blob_measure, node_digest
from vzarr.node import Node, decode_node, encode_node

SIZES = (1_000, 100_000, 1_000_000)
SAMPLES = 300

T = TypeVar("T")


class Nodes:
    """Nodes in a dict, and decoded ones in another."""

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}
        self.decoded: dict[bytes, Node] = {}
        self.saved = 0
        self.saved_bytes = 0

    def load(self, digest: bytes) -> Node:
        node = self.decoded.get(digest)
        if node is None:
            node = self.decoded[digest] = decode_node(self.data[digest])
        return node

    def save(self, node: Node) -> bytes:
        node_bytes = encode_node(node.level, node.keys, node.values)
        digest = node_digest(node_bytes)
        self.data[digest] = node_bytes
        self.saved += 1
        self.saved_bytes += len(node_bytes)
        return digest


def once(call: Callable[[], object]) -> float:
    """Microseconds of one call."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e6


def median(call: Callable[[T], object], arguments: Iterable[T]) -> float:
    """Median of the microseconds of a call for each argument."""
    return statistics.median(once(lambda value=argument: call(value)) for argument in arguments)


def exhaust(iterable: Iterable[object]) -> None:
    for _ in iterable:
        pass


def rows(size: int) -> Iterable[tuple[str, float]]:
    """Run every workload on a tree of this size."""
    rng = random.Random(size)
    keys = [struct.pack(">II", n // 1000, n % 1000) for n in range(size)]
    items = [(key, rng.randbytes(32) + struct.pack("<I", 1000)) for key in keys]
    some = rng.sample(keys, min(SAMPLES, size))
    new = struct.pack("<I", 2000).rjust(36, b"x")
    nodes = Nodes()
    tree = Tree(nodes, blob_measure)

    built: list[TreeRef | None] = []
    yield "build, an entry", once(lambda: built.append(tree.build(items))) / size
    root = built[0]
    gc.collect()
    gc.freeze()

    def cold_get(key: bytes) -> None:
        nodes.decoded.clear()
        tree.get(root, key)

    yield "get, cold", median(cold_get, some)
    exhaust(tree.get(root, key) for key in some)
    yield "get", median(lambda key: tree.get(root, key), some)
    exhaust(tree.apply(root, [(key, new)]) for key in some)
    nodes.saved = nodes.saved_bytes = 0
    yield "update one", median(lambda key: tree.apply(root, [(key, new)]), some)
    yield "… nodes", nodes.saved / len(some)
    yield "… bytes", nodes.saved_bytes / len(some)
    absent = [struct.pack(">II", n, 1000) for n in range(max(1, size // 1000))]
    exhaust(tree.get(root, key) for key in absent)
    yield "insert one", median(lambda key: tree.apply(root, [(key, new)]), absent[:SAMPLES])
    yield "delete one", median(lambda key: tree.apply(root, [(key, None)]), some)
    after = struct.pack(">II", 2**31, 0)
    yield "append one", median(lambda _: tree.apply(root, [(after, new)]), some)
    batch = [(key, new) for key in sorted(some)]
    yield (
        f"update {len(some)}, each",
        median(lambda _: tree.apply(root, batch), range(5)) / len(some),
    )
    other: list[TreeRef | None] = []
    everything = [(key, new) for key in keys]
    yield "update all, each", once(lambda: other.append(tree.apply(root, everything))) / size

    one = [tree.apply(root, [(key, new)]) for key in some[:50]]
    many = tree.apply(root, batch)
    yield "diff, 1 changed", median(lambda changed: exhaust(tree.diff(root, changed)), one)
    yield f"diff, {len(some)} changed", median(lambda _: exhaust(tree.diff(root, many)), range(5))
    yield (
        f"merge 1 with {len(some)}",
        median(lambda changed: tree.merge(root, many, changed, lambda *_: new), one),
    )
    yield "diff, all changed, each", once(lambda: exhaust(tree.diff(root, other[0]))) / size
    nodes.decoded.clear()
    yield "scan cold, an entry", once(lambda: exhaust(tree.scan(root))) / size
    yield "scan, an entry", once(lambda: exhaust(tree.scan(root))) / size
    yield "sums of a range", median(lambda key: tree.sums(root, key, keys[-1]), some)
    yield "check, an entry", once(lambda: tree.check(root)) / size
    gc.unfreeze()


def main() -> None:
    sizes = [int(argument) for argument in sys.argv[1:]] or SIZES
    columns = [dict(rows(size)) for size in sizes]
    print(f"{'µs':24}" + "".join(f"{size:>14,}" for size in sizes))
    names = list(dict.fromkeys(name for column in columns for name in column))
    for name in names:
        cells = (f"{column[name]:14,.2f}" if name in column else " " * 14 for column in columns)
        print(f"{name:24}" + "".join(cells))


if __name__ == "__main__":
    main()
