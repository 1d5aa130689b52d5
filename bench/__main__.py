"""Measure vzarr and its peers side by side: ``python -m bench [--size SIZE] [--only NAME ...]``.

Every engine takes its turn in every round, in a process of its own, and the order rotates: so a
slow moment of the machine hits all of them in turn. The results are kept as JSON, and written as
docs/benchmarks.md, with plots, if ``--report`` says so.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from unittest.mock import patch

from bench import system
from bench.engines import Engine
from bench.harness import SIZES, Case, Size, Workload, environment
from bench.report import write_report
from bench.results import Measured, Results
from bench.run import measure
from bench.workloads import all_workloads

RUN_SECONDS = 3600
"""How long one run may take."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ── one run ──────────────────────────────────────────────────────────────────────────────────────


def measure_apart(
    workload: Workload, engine: Engine, size: Size, case: Case, directory: Path, kept: Path
) -> dict[str, Any]:
    """Measure in a fresh process."""
    names = [workload.name, engine.name, size, str(directory)]
    command = [sys.executable, "-m", "bench.run", *names, "--case", case.name, "--kept", str(kept)]
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            cwd=system.ROOT,
            env=environment(engine),
            check=True,
            timeout=RUN_SECONDS,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        # One that was killed, or ran out of memory, is a finding about it; the others go on.
        how = "timed out" if isinstance(error, subprocess.TimeoutExpired) else "died"
        return {
            "figures": [],
            "durable": engine.durable,
            "versions": {},
            "seconds": 0,
            "failed": f"its process {how}",
        }
    return json.loads(done.stdout)


def measure_here(
    workload: Workload, engine: Engine, case: Case, directory: Path, kept: Path
) -> dict[str, Any]:
    """Measure in this process: for a quick try. Memory and caches are those of all before."""
    with patch.dict(os.environ, environment(engine), clear=True):
        return measure(workload, engine, case, directory, kept)


# ── all of them ──────────────────────────────────────────────────────────────────────────────────


class Suite:
    """What was asked for: workloads, engines, size and rounds; and what was found so far."""

    def __init__(self, options: argparse.Namespace, directory: Path) -> None:
        self.options = options
        self.directory = directory
        self.results = Results(
            size=options.size,
            date=dt.datetime.now(dt.UTC).date().isoformat(),
            machine=system.machine(self.directory),
        )
        if options.add:
            self._add_to(Results.load(options.results))

    def _add_to(self, before: Results) -> None:
        """Keep what was measured before, without the workloads that are measured now."""
        if (before.size, before.machine) != (self.results.size, self.results.machine):
            raise SystemExit(f"{self.options.results} is of another size or another machine")
        self.results.versions = before.versions
        self.results.runs = [run for run in before.runs if run.workload not in self.options.only]

    def measure(self, workload: Workload) -> None:
        missing = workload.missing()
        if missing:
            say(f"{workload.name} is left out: {missing}")
            self.results.skipped[workload.title] = missing
            return
        for case in workload.sizes[self.options.size]:
            engines = list(self._present(workload, case))
            if not engines:
                continue
            rounds = min(self.options.rounds, case.rounds or self.options.rounds)
            with tempfile.TemporaryDirectory(dir=self.directory, prefix="kept-") as kept:
                for number in range(rounds):
                    # Whoever comes first in a round comes last in the next one.
                    turn = number % len(engines)
                    for engine in engines[turn:] + engines[:turn]:
                        place = Path(kept) / str(engines.index(engine))
                        self._run(workload, engine, case, number, place)
                        self._save()

    def _present(self, workload: Workload, case: Case) -> Iterator[Engine]:
        """Give the engines that are wanted and installed; say a word about the others."""
        for engine in workload.engines_of(case):
            if not any(matches(engine, pattern) for pattern in self.options.engines or ["*"]):
                continue
            missing = engine.missing()
            if not missing:
                yield engine
            elif engine.name not in self.results.skipped:
                say(f"{engine.name} is left out: {missing}")
                self.results.skipped[engine.name] = missing

    def _run(self, workload: Workload, engine: Engine, case: Case, number: int, kept: Path) -> None:
        say(f"{workload.name} · {case.name} · round {number + 1} · {engine.name}")
        if self.options.here:
            found = measure_here(workload, engine, case, self.directory, kept)
        else:
            size = self.options.size
            found = measure_apart(workload, engine, size, case, self.directory, kept)
        self.results.versions |= found["versions"]
        figures = {f["name"]: (f["value"], f["unit"]) for f in found["figures"]}
        self.results.runs.append(
            Measured(
                workload=workload.name,
                case=case.name,
                engine=engine.name,
                round=number,
                figures=figures,
                durable=found["durable"],
                seconds=found["seconds"],
                failed=found["failed"],
            )
        )
        told = [f"{name} {value:,.4g} {unit}" for name, (value, unit) in figures.items()]
        say(f"    {', '.join(told)}")
        if found["failed"]:
            say(f"    failed: {found['failed']}")

    def _save(self) -> None:
        if self.options.results:
            self.results.save(self.options.results)


def matches(engine: Engine, pattern: str) -> bool:
    return fnmatch(engine.name.lower(), pattern.lower())


def parse(arguments: list[str] | None) -> argparse.Namespace:
    workloads = all_workloads()
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="laptop")
    parser.add_argument("--only", nargs="+", metavar="WORKLOAD", choices=workloads, default=[])
    parser.add_argument("--engines", nargs="+", metavar="NAME", default=[], help="or 'vzarr*'")
    parser.add_argument("--rounds", type=int, default=None, help="default: 3, and 1 if tiny")
    parser.add_argument("--directory", type=Path, default=Path(), help="where the files go")
    parser.add_argument("--results", type=Path, metavar="FILE.json", help="keep every value there")
    parser.add_argument("--add", action="store_true", help="measure --only these anew in --results")
    parser.add_argument("--report", type=Path, metavar="FILE.md", help="write tables and plots")
    parser.add_argument("--render", type=Path, metavar="FILE.json", help="measure nothing")
    parser.add_argument("--here", action="store_true", help="no processes: quick, less exact")
    parser.add_argument("--list", action="store_true", help="say what there is")
    options = parser.parse_args(arguments)
    engines = [engine for workload in workloads.values() for engine in workload.engines]
    for pattern in options.engines:
        if not any(matches(engine, pattern) for engine in engines):
            names = sorted({engine.name for engine in engines}, key=str.lower)
            parser.error(f"no engine is called {pattern}; there are: {', '.join(names)}")
    if not options.directory.is_dir():
        parser.error(f"{options.directory} is not a directory")
    if options.render and not options.report:
        parser.error("--render needs --report")
    if options.add and not (options.results and options.only):
        parser.error("--add needs --results and --only")
    if options.rounds is None:
        options.rounds = 1 if options.size == "tiny" else 3
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    workloads = all_workloads()
    if options.list:
        for workload in workloads.values():
            print(f"{workload.name:<12} {workload.title}")
            print(f"{'':<12} {' · '.join(engine.name for engine in workload.engines)}")
        return
    if options.render:
        write_report(Results.load(options.render), options.report)
        return
    with tempfile.TemporaryDirectory(dir=options.directory, prefix=".bench-") as place:
        suite = Suite(options, Path(place).resolve())
        for name in options.only or workloads:
            suite.measure(workloads[name])
    if options.report:
        write_report(suite.results, options.report)
    failed = sorted({run.engine for run in suite.results.runs if run.failed})
    if failed:
        sys.exit(f"some runs failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
