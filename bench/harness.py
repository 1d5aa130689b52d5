"""What the benchmark suite is made of: workloads, their cases, and the run that measures one.

A **workload** is a question, such as "how fast is a bulk write". Its **cases** ask it of different
data, and its **engines** are those that can answer. One **run** is one engine at one case, once, in
a process of its own: so caches and peak memory are its own, and no engine warms up for another.

To write a workload, put a module into ``bench/workloads`` that has ``WORKLOADS``, a tuple of
``Workload``. Modules there import what engines need only inside functions, since every process
imports them all. A workload's ``measure(run, **case.options)`` begins with ``run.warm_up()`` if
imports are not to count, does its work in ``run.directory``, which is empty, and tells what it
found with ``run.clock``, ``run.record``, ``run.peak`` and ``run.space``.
The report takes its columns from those names, in the order in which they first appear.
"""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench import system
from bench.engines import Engine, missing_modules

MIB = 1 << 20

Size = Literal["tiny", "laptop", "large"]
SIZES: tuple[Size, ...] = ("tiny", "laptop", "large")


@dataclass(frozen=True, slots=True)
class Case:
    """One variant of a workload: what it is called in the report, and what makes it so.

    ``options`` are the keywords of the workload's ``measure``. ``engines`` are the names of those
    that take part, all of the workload's if there are none. ``rounds`` is the most rounds that are
    worth their time here.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    engines: tuple[str, ...] = ()
    rounds: int | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """A question to several engines.

    ``number`` orders the workloads in the report. ``sentence`` says, in plain words, what is
    measured and how. ``chart`` names the figures that the plot shows, ``modules`` those that it
    needs, whatever the engine.
    """

    number: int
    name: str
    title: str
    sentence: str
    engines: tuple[Engine, ...]
    sizes: Mapping[Size, tuple[Case, ...]]
    measure: Callable[..., None]
    chart: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()

    def missing(self) -> str:
        """Say why it cannot be asked; empty if it can."""
        return missing_modules(self.modules)

    def engines_of(self, case: Case) -> tuple[Engine, ...]:
        """Give the engines that take part in a case, in the workload's order."""
        known = {engine.name for engine in self.engines}
        assert known.issuperset(case.engines), f"{case.name}: {set(case.engines) - known}"
        return tuple(e for e in self.engines if not case.engines or e.name in case.engines)


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that a run found. A unit that ends in "/s" is better when it is more."""

    name: str
    value: float
    unit: str


@dataclass(slots=True)
class Run:
    """One engine at one case, once.

    ``directory`` is empty at the start and deleted afterwards. ``kept`` is the same for all rounds
    of this engine at this case: a place for files that are costly to fill and that a round copies.
    """

    engine: Engine
    directory: Path
    kept: Path
    figures: list[Figure] = field(default_factory=list)
    durable: bool | None = None

    def __post_init__(self) -> None:
        self.durable = self.engine.durable

    @property
    def path(self) -> Path:
        """Where the engine's data go: a file or a directory, which is not there at the start."""
        return self.directory / "data"

    def warm_up(self, *, compressed: bool = False) -> None:
        """Let the engine import what it needs, so that the clock does not see it."""
        with tempfile.TemporaryDirectory(dir=self.directory) as name:
            self.engine.warm_up(Path(name) / "data", compressed=compressed)

    def record(self, name: str, value: float, unit: str) -> None:
        """Note a number."""
        assert all(figure.name != name for figure in self.figures), f"{name} is noted twice"
        self.figures.append(Figure(name, float(value), unit))

    @contextmanager
    def clock(
        self, name: str, unit: str = "s", *, amount: float = 1, cpu: bool = False
    ) -> Iterator[None]:
        """Note how long the block takes, in "s", "ms" or "µs", for each of so many pieces.

        With a unit that ends in "/s" it is a rate: so many of the amount a second. With ``cpu`` the
        time of all processors is noted, too, which others on the machine disturb less.
        """
        begin, cpu_begin = time.perf_counter(), time.process_time()
        yield
        seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
        is_rate = unit.endswith("/s")
        scale = 1 if is_rate else {"s": 1, "ms": 1e3, "µs": 1e6}[unit] / amount
        self.record(name, amount / seconds if is_rate else seconds * scale, unit)
        if cpu:
            self.record(f"{name}, CPU", cpu_seconds * scale, "s" if is_rate else unit)

    @contextmanager
    def peak(self, name: str = "peak RSS") -> Iterator[None]:
        """Note by how much resident memory rises, at most, above what it is before the block."""
        system.reset_peak()
        before = system.resident_bytes()
        yield
        self.record(name, max(0, system.peak_bytes() - before) / MIB, "MiB")

    def space(self, path: Path | None = None, name: str = "on disk") -> None:
        """Note the bytes of a file or a tree, and how many files it has."""
        path = path or self.path
        self.record(name, system.disk_bytes(path) / MIB, "MiB")
        self.record("files", system.count_files(path), "files")

    def prepared(self, name: str, fill: Callable[[Path], object]) -> Path:
        """Give a copy, in this run's directory, of data that the first round has filled."""
        original, copy = self.kept / name, self.directory / name
        if not original.exists():
            draft = self.kept / f"{name}.draft"
            fill(draft)
            draft.rename(original)
        system.copy(original, copy)
        return copy

    def afresh(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a module's function in a new Python, and give its result: for cold starts.

        The function and its arguments are pickled. Its process has the engine's environment.
        """
        command = [sys.executable, "-m", "bench.afresh"]
        done = subprocess.run(
            command,
            input=pickle.dumps((function, arguments)),
            capture_output=True,
            check=False,
            cwd=system.ROOT,
            env=environment(self.engine),
        )
        if done.returncode:
            raise RuntimeError(done.stderr.decode(errors="replace").strip())
        return pickle.loads(done.stdout)


def environment(engine: Engine) -> dict[str, str]:
    """Give the environment variables of an engine's process.

    Settings of zarr and vzarr that this shell has are left out: only the engine's own count.
    """
    # A package that is installed has its modules compiled; so that a cold start means the same.
    foreign = re.compile(r"(ZARR_|VZARR_|PYTHONDONTWRITEBYTECODE$)")
    inherited = {name: value for name, value in os.environ.items() if not foreign.match(name)}
    return inherited | dict(engine.environment)
