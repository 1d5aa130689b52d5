"""What an engine is: one way to keep arrays, behind a handful of calls that all engines have."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np


@dataclass(frozen=True, slots=True)
class Layout:
    """The array of a workload, which may grow along its first axis.

    ``compressed`` asks for the engine's own default codec, else the bytes are stored as they are.
    ``names`` are those of the arrays to make, all alike.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    compressed: bool = False
    names: tuple[str, ...] = ("a",)

    @property
    def chunk_bytes(self) -> int:
        return int(np.prod(self.chunks)) * np.dtype(self.dtype).itemsize


class Opened(Protocol):
    """Arrays that are open, the first of which is called "a". Its own context manager closes it.

    Arrays are those of the engine, or look like zarr's: they have ``shape``, ``resize(shape)``,
    ``array[region]`` and ``array[region] = values``.
    """

    @property
    def array(self) -> Any:
        """The first array as it was last committed, to read."""
        ...

    def change(self, message: str, name: str = "a") -> AbstractContextManager[Any]:
        """Give an array to write; what was written is committed when the block ends.

        An engine without commits flushes.
        """
        ...

    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


class Closing:
    """The context manager of an array that is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what needs it."""


def missing_modules(names: Iterable[str]) -> str:
    """Say which of these modules are not installed; nothing if all are."""
    absent = [name for name in names if find_spec(name) is None]
    return f"{', '.join(absent)} is not installed" if absent else ""


@dataclass(frozen=True)
class Engine:
    """One way to keep arrays.

    ``family`` is what it is a variant of. ``durable`` tells whether what was committed survives a
    power cut without further ado; None if nothing is on disk. ``environment`` has variables for
    the processes that measure it.
    """

    name: str
    family: str = ""
    durable: bool | None = False
    environment: tuple[tuple[str, str], ...] = ()

    packages: ClassVar[tuple[str, ...]] = ()
    """The distributions that it needs, and whose versions the report names."""
    modules: ClassVar[tuple[str, ...]] = ()
    """Their modules, where they have another name."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", self.family or self.name)

    def missing(self) -> str:
        """Say why it cannot take part; empty if it can."""
        return missing_modules(self.modules or self.packages)

    def versions(self) -> dict[str, str]:
        """Give the versions of its packages."""
        found = {}
        for name in self.packages:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                continue
        return found

    def warm_up(self, path: Path, *, compressed: bool = False) -> None:
        """Import what it needs, and start its threads, with a small array that is deleted."""
        values = np.arange(16, dtype="f4")
        layout = Layout(values.shape, (8,), "f4", compressed=compressed)
        with self.create(path, layout) as opened:
            with opened.change("warm up") as array:
                array[:] = values
            assert np.array_equal(opened.array[:], values)

    def create(self, path: Path, layout: Layout) -> Opened:
        """Make arrays without chunks."""
        raise NotImplementedError

    def open(self, path: Path, *, write: bool = False) -> Opened:
        """Open what is there."""
        raise NotImplementedError
