"""Measure one engine at one case, once: ``python -m bench.run WORKLOAD ENGINE SIZE DIRECTORY``.

The suite starts it for every round. What was found goes to standard output, as JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.engines import Engine
from bench.harness import SIZES, Case, Run, Workload
from bench.workloads import all_workloads


def measure(workload: Workload, engine: Engine, case: Case, directory: Path, kept: Path) -> Any:
    """Run a workload once, and give what it found; an error that it raises is a finding too."""
    kept.mkdir(parents=True, exist_ok=True)
    # Not the system's temporary directory, which may be in memory.
    with tempfile.TemporaryDirectory(dir=directory, prefix="run-") as own:
        run = Run(engine, Path(own), kept)
        begin, failed = time.perf_counter(), ""
        try:
            workload.measure(run, **case.options)
        except Exception as error:
            # The end of it is enough: the rest is calls between packages.
            traceback.print_exc(limit=-3, chain=False)
            failed = f"{type(error).__name__}: {error}".partition("\n")[0]
        # What is open still would keep files of the directory mapped.
        gc.collect()
        return {
            "figures": [asdict(figure) for figure in run.figures],
            "durable": run.durable,
            "versions": engine.versions(),
            "seconds": round(time.perf_counter() - begin, 3),
            "failed": failed,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    workloads = all_workloads()
    parser.add_argument("workload", choices=workloads)
    parser.add_argument("engine", help="its name in the report")
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("directory", type=Path, help="where the files go")
    parser.add_argument("--case", help="its name in the report; the first if it is not given")
    parser.add_argument("--kept", type=Path, help="what lives through the rounds")
    options = parser.parse_args()
    workload = workloads[options.workload]
    cases = {case.name: case for case in workload.sizes[options.size]}
    case = cases[options.case] if options.case else next(iter(cases.values()))
    engines = {engine.name: engine for engine in workload.engines_of(case)}
    if options.engine not in engines:
        parser.error(f"the engines of {workload.name} are {', '.join(engines)}")
    engine = engines[options.engine]
    # What engines print must not mix with the result.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    kept = options.kept or options.directory / "kept"
    with answer:
        json.dump(measure(workload, engine, case, options.directory, kept), answer)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
