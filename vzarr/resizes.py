"""Tell apart whether two sides that resized an axis to one length agree, or each appended.

Three-way merge takes the same change on both sides for an agreement. For the length of an axis that
is right where two writers grow an array to its final size and fill different chunks of it. It is
wrong where each appends rows to what it saw: what one wrote would lie over what the other wrote,
and if the rows are equal, or hold nothing but the fill value, for which zarr stores no chunk, no
chunk conflicts either. Here is the rule that tells these apart, and errs for a conflict.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import final

from vzarr.btree import Tree
from vzarr.format import (
    Entry,
    TreeRef,
    blob_measure,
    decode_coordinates,
    decode_entry,
    decode_name,
    encode_coordinates,
    entry_measure,
)
from vzarr.hierarchy import join
from vzarr.metadata import ArrayMetadata, node_metadata
from vzarr.objects import Store
from vzarr.resolution import Conflict, Resolver, Strategy, is_side, refusal

# The index holds chunks with lesser coordinates; others are plain files.
_COORDINATE_LIMIT = 2**32


def _maybe(_: str) -> bool:
    """Say that a session may have written to an array."""
    return True


def racing_resizes(
    store: Store,
    base: Entry,
    ours: Entry,
    theirs: Entry,
    wrote: Callable[[str], bool] = _maybe,
    deleted: Callable[[str], bool] = _maybe,
    strategy: Strategy = "fail",
) -> list[Conflict]:
    """Find arrays of which both sides resized one axis to one length, and may have meant two.

    The trees tell what differs; what a session wrote without effect, it must say itself:
    ``wrote(path)``, whether it set or deleted any chunk of the array at that path, and
    ``deleted(path)``, whether it deleted any, also one that was not there. Where it does not know,
    it may have.

    No conflict is where this side wrote nothing, or where both sides changed chunks in the part
    that both grew, no chunk both, and none that this side may have written without a trace. An axis
    that both shrank is none where this side changed no chunk; otherwise it may have taken rows off
    the end, and a merge would take off those of one side. Where vzarr does not understand the
    chunks' grid, all that this side wrote may be in the part that grew.

    "ours" and "theirs" accept all of that; a function is asked, and accepts it with either.
    Raises ``InvalidInputError`` for another answer, and what the function raises.
    O(changes · depth).
    """
    resolver = Resolver(strategy, store)
    if resolver.favourite is None:
        for conflict in _Resizes(store, wrote, deleted).below("", base, ours, theirs):
            answer = resolver.ask(conflict)
            if answer is not None and (not is_side(answer) or answer == "base"):
                raise refusal(conflict, answer, "ours or theirs accepts the merge as it is")
    return resolver.open


@final
class _Resizes:
    def __init__(
        self, store: Store, wrote: Callable[[str], bool], deleted: Callable[[str], bool]
    ) -> None:
        self._store = store
        self._wrote = wrote
        self._deleted = deleted
        self._directories = Tree(store, entry_measure)
        self._indexes = Tree(store, blob_measure)

    def below(self, path: str, base: Entry, ours: Entry, theirs: Entry) -> Iterator[Conflict]:
        """Find the conflicts at and below a path that both sides changed."""
        if base.documents not in (ours.documents, theirs.documents):
            reasons = "; ".join(self._reasons(path, base, ours, theirs))
            if reasons:
                name = "zarr.json" if "zarr.json" in ours.documents else ".zarray"
                sides = (base, ours, theirs)
                blobs = tuple(side.documents.get(name) for side in sides)
                yield Conflict(
                    path,
                    "document",
                    document=name,
                    reason=reasons,
                    _blobs=(blobs[0], blobs[1], blobs[2]),
                    _read=self._store.read,
                )
        for member, before, after in self._directories.diff(base.directory, ours.directory):
            their = self._directories.get(theirs.directory, member)
            # What one side made or deleted, both did not resize.
            if before is None or after is None or their is None or their == before:
                continue
            entries = map(decode_entry, (before, after, their))
            yield from self.below(join(path, decode_name(member)), *entries)

    def _reasons(self, path: str, *sides: Entry) -> Iterator[str]:
        """Say which axes of an array were resized by both sides, and may have been twice."""
        nodes = [node_metadata(side.documents, self._store.read) for side in sides]
        arrays = [node.array for node in nodes if node is not None and node.array is not None]
        if len(arrays) < 3 or len({len(array.shape) for array in arrays}) > 1:
            return
        shapes = [array.shape for array in arrays]
        for axis, (before, ours, theirs) in enumerate(zip(*shapes, strict=True)):
            if before == ours or ours != theirs:
                continue
            # Where chunks are plain files to vzarr, a session cannot tell that it wrote some.
            indexed = all(
                _is_indexed(side, array) for side, array in zip(sides, arrays, strict=True)
            )
            if indexed and not self._wrote(path):
                continue
            if ours < before:
                if not indexed or next(self._indexes.diff(sides[0].index, sides[1].index), None):
                    yield f"both sides shrank axis {axis} from {before} to {ours}"
            elif not indexed or self._may_race(path, axis, before, sides, arrays):
                yield f"both sides grew axis {axis} from {before} to {ours}"

    def _may_race(
        self,
        path: str,
        axis: int,
        length: int,
        sides: Sequence[Entry],
        arrays: Sequence[ArrayMetadata],
    ) -> bool:
        """Whether both may have written one chunk of the part beyond a length, for all we see."""
        first = _chunk_at(arrays[1], axis, length)
        # A chunk that held the fill value before and after: no trace is left of that.
        if first is None or len({array.encoding for array in arrays}) > 1 or self._deleted(path):
            return True
        base, ours, theirs = (side.index for side in sides)
        mine = {key for key, _ in self._changes(base, ours, axis, first)}
        others = 0
        for key, before in self._changes(base, theirs, axis, first):
            # Where there were bytes before, we may have written the same ones.
            if key in mine or before is not None:
                return True
            others += 1
        return not mine or not others

    def _changes(
        self, base: TreeRef | None, side: TreeRef | None, axis: int, first: int
    ) -> Iterator[tuple[bytes, bytes | None]]:
        """Give key and former value of the changed chunks that are not before ``first``."""
        start = encode_coordinates((first,)) if axis == 0 else b""
        for key, before, _ in self._indexes.diff(base, side, start):
            if decode_coordinates(key)[axis] >= first:
                yield key, before


def _is_indexed(entry: Entry, array: ArrayMetadata) -> bool:
    """Whether all chunks of an array are in its index, and none is a plain file."""
    if entry.layout is None:
        return False
    chunks = array.chunks_of(tuple(slice(0, length) for length in array.shape))
    # A chunk of an unknown grid has one element or more.
    ends = array.shape if chunks is None else [part.stop for part in chunks]
    return max(ends, default=0) <= _COORDINATE_LIMIT


def _chunk_at(array: ArrayMetadata, axis: int, index: int) -> int | None:
    """Find the chunk of an element along an axis; None where the grid is not known."""
    if array.grid is None:
        return None
    chunks = array.grid[axis]
    if isinstance(chunks, int):
        return index // max(chunks, 1)
    return bisect_right(list(accumulate(chunks)), index)
