"""What the workers of the torture test do to a repository, told twice: with zarr, and on a model.

An operation goes into the metadata of its commit, so that whoever reads the history can do it
again. ``perform`` does it to a store; ``apply`` does it to a ``State``, a plain dictionary of numpy
arrays. Every value that is written is there once in the whole test, unless an operation says so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import zarr
from numpy.typing import NDArray

State = Mapping[str, Any]
"""A snapshot: arrays by path, None for a group, attributes of the root under ``@name``.

Arrays in it are never changed, so that the states of thousands of commits can share them.
"""

GRID = (32, 32)
CONTESTED, CONTESTED_CHUNK = 24, 8
OWN_ROWS = 4
BULK = 16_384
_MODULUS = 1_000_003


class Operation(ABC):
    """One change; its fields are plain, so that it fits into a commit's metadata."""

    kinds: ClassVar[dict[str, type[Operation]]] = {}

    def __init_subclass__(cls) -> None:
        Operation.kinds[cls.__name__] = cls

    @abstractmethod
    def perform(self, store: Any) -> None:
        """Do it to a store, as a user would."""

    @abstractmethod
    def apply(self, state: State) -> State:
        """Give what it makes of a state."""

    def encode(self) -> dict[str, Any]:
        return {"do": type(self).__name__, **asdict(self)}  # type: ignore[call-overload]


def decode(fields: Mapping[str, Any]) -> Operation:
    rest = dict(fields)
    return Operation.kinds[rest.pop("do")](**rest)


def apply_all(operations: Sequence[Mapping[str, Any]], state: State) -> State:
    for operation in operations:
        state = decode(operation).apply(state)
    return state


def _array(store: Any, path: str) -> Any:
    return zarr.open_array(store, path=path, mode="r+")


def _edit(state: State, path: str, change: Callable[[NDArray[Any]], None]) -> State:
    array = state[path].copy()
    change(array)
    return {**state, path: array}


# ── the beginning ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class SetUp(Operation):
    """Make what all share. A slot is a share of it; one worker at a time has each slot."""

    slots: int

    def perform(self, store: Any) -> None:
        root = zarr.create_group(store, attributes={"counter": 0})
        root.create_array("grid", shape=GRID, chunks=(4, 4), shards=(8, 8), dtype="i8")
        shape = (self.slots * OWN_ROWS, 16)
        root.create_array("own", shape=shape, chunks=(OWN_ROWS, 8), dtype="i8")
        root.create_array("contested", shape=(CONTESTED,), chunks=(CONTESTED_CHUNK,), dtype="i8")
        root.create_array("tally", shape=(self.slots,), chunks=(4,), dtype="i8")
        root.create_array("rows", shape=(0,), chunks=(8,), dtype="i8")
        ledger = (self.slots, 2)
        root.create_array("ledger", shape=ledger, chunks=ledger, dtype="i8", compressors=None)
        for slot in range(self.slots):
            root.create_group(f"nodes/{slot}")
            root.create_array(
                f"bulk/{slot}", shape=(BULK,), chunks=(BULK // 8,), dtype="i8", compressors=None
            )

    def apply(self, state: State) -> State:
        zeros = {
            "grid": GRID,
            "own": (self.slots * OWN_ROWS, 16),
            "contested": (CONTESTED,),
            "tally": (self.slots,),
            "rows": (0,),
            "ledger": (self.slots, 2),
        }
        zeros |= {f"bulk/{slot}": (BULK,) for slot in range(self.slots)}
        groups = ["nodes", "bulk", *(f"nodes/{slot}" for slot in range(self.slots))]
        arrays = {path: np.zeros(shape, "i8") for path, shape in zeros.items()}
        return {**state, **arrays, **dict.fromkeys(groups), "@counter": 0}


# ── elements ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class WriteGrid(Operation):
    """Set the slot's own elements of a box; in each chunk and shard every slot has some."""

    slot: int
    slots: int
    box: Sequence[int]
    value: int

    def _edit(self, array: Any) -> None:
        top, bottom, left, right = self.box
        part = array[top:bottom, left:right].copy()
        rows, columns = np.mgrid[top:bottom, left:right]
        part[(rows * GRID[1] + columns) % self.slots == self.slot] = self.value
        array[top:bottom, left:right] = part

    def perform(self, store: Any) -> None:
        self._edit(_array(store, "grid"))

    def apply(self, state: State) -> State:
        return _edit(state, "grid", self._edit)


@dataclass(frozen=True)
class WriteOwn(Operation):
    """Fill the slot's own rows: whole chunks, which nobody else writes."""

    slot: int
    value: int

    def _edit(self, array: Any) -> None:
        array[self.slot * OWN_ROWS : (self.slot + 1) * OWN_ROWS] = self.value

    def perform(self, store: Any) -> None:
        self._edit(_array(store, "own"))

    def apply(self, state: State) -> State:
        return _edit(state, "own", self._edit)


@dataclass(frozen=True)
class WriteContested(Operation):
    """Set elements that everybody sets. The value may be 0, which is no chunk at all."""

    start: int
    stop: int
    value: int

    def _edit(self, array: Any) -> None:
        array[self.start : self.stop] = self.value

    def perform(self, store: Any) -> None:
        self._edit(_array(store, "contested"))

    def apply(self, state: State) -> State:
        return _edit(state, "contested", self._edit)


@lru_cache(maxsize=64)
def _noise(seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(1, 1 << 60, BULK, dtype="i8")


@dataclass(frozen=True)
class WriteBulk(Operation):
    """Write so much that it is staged in several batches."""

    slot: int
    seed: int

    def perform(self, store: Any) -> None:
        _array(store, f"bulk/{self.slot}")[:] = _noise(self.seed)

    def apply(self, state: State) -> State:
        return {**state, f"bulk/{self.slot}": _noise(self.seed)}


# ── what rests on what was read ──────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Count(Operation):
    """Add one to a counter among the attributes, and to one element; many write the same value."""

    element: int

    def _edit(self, array: Any) -> None:
        array[self.element] += 1

    def perform(self, store: Any) -> None:
        attributes = zarr.open_group(store, mode="r+").attrs
        attributes["counter"] = attributes["counter"] + 1
        self._edit(_array(store, "tally"))

    def apply(self, state: State) -> State:
        return _edit({**state, "@counter": state["@counter"] + 1}, "tally", self._edit)


@dataclass(frozen=True)
class Add(Operation):
    """Add the same to elements that everybody adds it to."""

    start: int
    stop: int

    def _edit(self, array: Any) -> None:
        array[self.start : self.stop] = array[self.start : self.stop] + 1

    def perform(self, store: Any) -> None:
        self._edit(_array(store, "contested"))

    def apply(self, state: State) -> State:
        return _edit(state, "contested", self._edit)


@dataclass(frozen=True)
class Triple(Operation):
    """Make each of the contested elements from what it was."""

    value: int

    def perform(self, store: Any) -> None:
        array = _array(store, "contested")
        array[:] = (array[:] * 3 + self.value) % _MODULUS

    def apply(self, state: State) -> State:
        return {**state, "contested": (state["contested"] * 3 + self.value) % _MODULUS}


@dataclass(frozen=True)
class Sum(Operation):
    """Note the sum of the contested elements, which are only read, in the slot's own place."""

    slot: int
    value: int

    def perform(self, store: Any) -> None:
        total = int(_array(store, "contested")[:].sum())
        _array(store, "ledger")[self.slot] = [total, self.value]

    def apply(self, state: State) -> State:
        def edit(array: NDArray[Any]) -> None:
            array[self.slot] = [state["contested"].sum(), self.value]

        return _edit(state, "ledger", edit)


@dataclass(frozen=True)
class Append(Operation):
    """Append a row with a number of its own."""

    value: int

    def perform(self, store: Any) -> None:
        _array(store, "rows").append(np.array([self.value]))

    def apply(self, state: State) -> State:
        return {**state, "rows": np.append(state["rows"], self.value)}


# ── attributes and nodes ─────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class SetAttribute(Operation):
    """Set an attribute of the root, or delete it with None."""

    name: str
    value: Any

    def perform(self, store: Any) -> None:
        attributes = zarr.open_group(store, mode="r+").attrs
        if self.value is None:
            attributes.pop(self.name, None)
        else:
            attributes[self.name] = self.value

    def apply(self, state: State) -> State:
        rest = {key: value for key, value in state.items() if key != f"@{self.name}"}
        return rest if self.value is None else {**rest, f"@{self.name}": self.value}


@dataclass(frozen=True)
class CreateArray(Operation):
    """Make an array, at a path that was never used."""

    path: str
    length: int
    value: int

    def perform(self, store: Any) -> None:
        array = zarr.create_array(
            store, name=self.path, shape=(self.length,), chunks=(4,), dtype="i8"
        )
        array[:] = self.value

    def apply(self, state: State) -> State:
        return {**state, self.path: np.full(self.length, self.value, "i8")}


@dataclass(frozen=True)
class CreateGroup(Operation):
    """Make a group with an array in it, at a path that was never used."""

    path: str
    value: int

    @property
    def _array(self) -> CreateArray:
        return CreateArray(f"{self.path}/array", 6, self.value)

    def perform(self, store: Any) -> None:
        zarr.create_group(store, path=self.path)
        self._array.perform(store)

    def apply(self, state: State) -> State:
        return self._array.apply({**state, self.path: None})


@dataclass(frozen=True)
class Delete(Operation):
    """Delete a group or an array."""

    path: str

    def perform(self, store: Any) -> None:
        parent, _, name = self.path.rpartition("/")
        del zarr.open_group(store, path=parent, mode="r+")[name]

    def apply(self, state: State) -> State:
        assert self.path in state
        return {path: value for path, value in state.items() if not _is_below(path, self.path)}


@dataclass(frozen=True)
class Move(Operation):
    """Move a group or an array, to a path that was never used."""

    source: str
    destination: str

    def perform(self, store: Any) -> None:
        store.session.move(self.source, self.destination)

    def apply(self, state: State) -> State:
        assert self.source in state
        assert self.destination not in state
        return {self._after(path): value for path, value in state.items()}

    def _after(self, path: str) -> str:
        if _is_below(path, self.source):
            return self.destination + path.removeprefix(self.source)
        return path


def _is_below(path: str, top: str) -> bool:
    return path == top or path.startswith(f"{top}/")
