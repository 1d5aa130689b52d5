"""A drawing of a snapshot's groups and arrays."""

from __future__ import annotations

from itertools import islice
from typing import final

from vzarr.hierarchy import Hierarchy
from vzarr.metadata import NodeMetadata
from vzarr.printable import printable

MAX_NODES = 50_000
"""As many are drawn. A few kilobytes can hold a group a million times over, by groups that
share it."""


@final
class Tree(str):
    """A drawing; prints as itself, also at the prompt."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        from vzarr.notebook import tree_html

        return tree_html(self)


def draw(hierarchy: Hierarchy, path: str = "", *, limit: int = MAX_NODES) -> Tree:
    """Draw the groups and arrays at and below a path, or the first of very many. O(nodes)."""
    found = islice(hierarchy.nodes(path), limit + 1)
    nodes = [(node, _label(metadata)) for node, _, metadata in found]
    more = len(nodes) > limit
    del nodes[limit:]
    children: dict[str, list[str]] = {}
    labels = dict(nodes)
    for node in labels:
        if node != path:
            children.setdefault(_nearest(node, path, labels), []).append(node)
    lines = [f"/{printable(path)}{labels.get(path, '')}"]

    def add(parent: str, indent: str) -> None:
        below = children.get(parent, [])
        for number, node in enumerate(below, 1):
            last = number == len(below)
            name = printable(node[len(parent) :].lstrip("/"))
            lines.append(f"{indent}{'└── ' if last else '├── '}{name}{labels[node]}")
            add(node, indent + ("    " if last else "│   "))

    add(path, "")
    if more:
        lines.append(f"… and more than these {limit:,}")
    return Tree("\n".join(lines))


def _nearest(node: str, root: str, labels: dict[str, str]) -> str:
    """Find the closest node above, since a name on the way may have no metadata of its own."""
    parent = node.rpartition("/")[0]
    while parent != root and parent not in labels and parent:
        parent = parent.rpartition("/")[0]
    return parent


def _label(metadata: NodeMetadata) -> str:
    array = metadata.array
    return "" if array is None else f" {array.shape} {printable(array.dtype)}"
