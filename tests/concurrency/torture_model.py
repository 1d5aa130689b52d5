"""The model of the torture test: snapshots as dictionaries, merged, replayed, and read back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

import vzarr
from tests.concurrency.torture_operations import CONTESTED_CHUNK, State, apply_all
from vzarr.history import Commit
from vzarr.resolution import Conflict

LARGER = "larger"
"""A strategy of the test: where both changed an element, the larger value."""
_MISSING = object()


class OverlapError(Exception):
    """Both sides changed one thing to different values, and nobody says what to take."""


def strategy(name: str) -> Any:
    """Give what vzarr takes for ``merge=``."""
    return _take_larger if name == LARGER else name


def _take_larger(conflict: Conflict) -> NDArray[Any]:
    return np.maximum(conflict.decode("ours"), conflict.decode("theirs"))


# ── three-way merge ──────────────────────────────────────────────────────────────────────────────


def merge(base: State, ours: State, theirs: State, prefer: str) -> State:
    """Merge arrays by element and all else as a whole. Raises ``OverlapError`` for "fail"."""
    merged = {}
    for path in {**base, **ours, **theirs}:
        sides = [side.get(path, _MISSING) for side in (base, ours, theirs)]
        value = _merge_values(path, *sides, prefer)
        if value is not _MISSING:
            merged[path] = value
    return merged


def _merge_values(path: str, base: Any, ours: Any, theirs: Any, prefer: str) -> Any:
    if theirs is base or ours is theirs or _equal(theirs, base) or _equal(ours, theirs):
        return ours
    if _equal(ours, base):
        return theirs
    sides = (base, ours, theirs)
    if all(isinstance(side, np.ndarray) for side in sides) and len({it.shape for it in sides}) == 1:
        return _merge_elements(path, base, ours, theirs, prefer)
    raise OverlapError(path)


def _merge_elements(
    path: str, base: NDArray[Any], ours: NDArray[Any], theirs: NDArray[Any], prefer: str
) -> NDArray[Any]:
    overlap = (ours != base) & (theirs != base) & (ours != theirs)
    merged = np.where(ours == base, theirs, ours)
    if not overlap.any():
        return merged
    match prefer:
        case "fail":
            raise OverlapError(f"{path}: {np.argwhere(overlap).tolist()}")
        case "theirs":
            merged[overlap] = theirs[overlap]
        case "larger":
            for box in _boxes(path, overlap):
                merged[box] = np.maximum(ours[box], theirs[box])
    return merged


def _boxes(path: str, overlap: NDArray[np.bool_]) -> Iterator[slice]:
    """Find the smallest box around the overlap in each chunk: what a function is asked for."""
    assert path == "contested", "nobody else writes these elements"
    for start in range(0, len(overlap), CONTESTED_CHUNK):
        found = np.flatnonzero(overlap[start : start + CONTESTED_CHUNK])
        if len(found):
            yield slice(start + found[0], start + found[-1] + 1)


def _equal(one: Any, two: Any) -> bool:
    if isinstance(one, np.ndarray) and isinstance(two, np.ndarray):
        return one.shape == two.shape and bool((one == two).all())
    return type(one) is type(two) and bool(one == two)


# ── replay ───────────────────────────────────────────────────────────────────────────────────────


class Replay:
    """The states of commits, made one after the other from what their metadata say.

    ``how`` a commit came about is one of

    * ``apply``: its operations on top of its parent, as if nobody else had been there;
    * ``session``: its operations on top of an older commit, merged with what came since; or in
      several steps, a rebase each;
    * ``merge``: of its two parents, which come from ``base``;
    * ``pick`` and ``revert``: what another commit changed, or the reverse of it.
    """

    def __init__(self, commits: Mapping[str, Commit]) -> None:
        """``commits`` has, by id, all that are to be replayed and all that these come from."""
        self._commits = commits
        self.states: dict[str, State] = {}
        for commit in commits:
            self._add(commit)

    def _add(self, commit: str) -> None:
        """Replay a commit after those that it comes from; one that was picked may be elsewhere."""
        waiting = [commit]
        while waiting:
            found = self._commits[waiting[-1]]
            missing = [it for it in _sources(found) if it not in self.states]
            if missing:
                waiting += missing
            else:
                self.states.setdefault(found.id, self._state(found))
                waiting.pop()

    def _state(self, commit: Commit) -> State:
        if not commit.parents:
            return {}
        note, parent = commit.metadata, self.states[commit.parents[0]]
        match note["how"]:
            case "apply":
                return apply_all(note["operations"], parent)
            case "session":
                return self._rebased(note["operations"], note["steps"], parent)
            case "merge":
                assert len(commit.parents) == 2
                base, other = self.states[note["base"]], self.states[commit.parents[1]]
                return merge(base, parent, other, note["strategy"])
            case "pick":
                before, after = self._around(note["commit"])
                return merge(before, parent, after, note["strategy"])
            case "revert":
                before, after = self._around(note["commit"])
                return merge(after, parent, before, note["strategy"])
        raise AssertionError(note)

    def _rebased(
        self,
        operations: Sequence[Mapping[str, Any]],
        steps: Sequence[tuple[str, str]],
        parent: State,
    ) -> State:
        """Replay a session: for each step the commit it was on, and who won on the way on."""
        bases = [self.states[base] for base, _ in steps]
        state = apply_all(operations, bases[0])
        for base, head, (_, prefer) in zip(bases, [*bases[1:], parent], steps, strict=True):
            state = merge(base, state, head, prefer)
        return state

    def _around(self, commit: str) -> tuple[State, State]:
        (parent,) = self._commits[commit].parents
        return self.states[parent], self.states[commit]


def _sources(commit: Commit) -> list[str]:
    """List the commits whose states a commit's own is made of."""
    note = commit.metadata
    named = [note[name] for name in ("base", "commit") if name in note]
    return [*commit.parents, *named, *(base for base, _ in note.get("steps", ()))]


# ── what is there ────────────────────────────────────────────────────────────────────────────────


def read_state(store: Any) -> State:
    """Read a whole snapshot through zarr."""
    assert store.session.get("will") is None, "the note of a checkpoint has got into a commit"
    if store.session.get("zarr.json") is None:
        return {}
    root = zarr.open_group(store, mode="r")
    state: dict[str, Any] = {f"@{name}": value for name, value in root.attrs.items()}
    for path, member in root.members(max_depth=None):
        state[path] = member[:] if isinstance(member, zarr.Array) else None
    return state


def assert_equal(found: State, expected: State, what: str) -> None:
    assert sorted(found) == sorted(expected), what
    for path, value in expected.items():
        assert _equal(found[path], value), f"{what}: {path} is {found[path]}, should be {value}"


def assert_consistent(state: State, what: str) -> None:
    """Check what holds at every moment, whoever has done how much."""
    if state:
        assert state["@counter"] == state["tally"].sum(), what
        assert len(np.unique(state["rows"])) == len(state["rows"]), what


def history_of(repo: vzarr.Repository, ref: str) -> list[Commit]:
    """List the commits that a ref reaches, parents before children; each is there once."""
    commits = list(repo.log(ref))
    assert len({commit.id for commit in commits}) == len(commits)
    return commits[::-1]
