"""Damage the sample in all ways and count the outcomes: ``python -m tests.damage.table``.

``--sample N`` takes N cases of each kind, ``--seconds S`` as many as that time allows, in random
order. The table goes to standard output, failures to standard
error, and the exit code tells whether there were any.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path

from tests.damage import sample
from tests.damage.cases import KINDS, Case, Kind
from tests.damage.runner import Task, directory, run_all
from tests.damage.trial import CHECK, FAILURES, OUTCOMES, READ, WRITE, Result

# Checks and writes take longer than reading; of many cases only every so many get them.
_SELDOM = 16


def make_sample() -> tuple[bytes, sample.Facts]:
    """Make the file, and what is to be read from it."""
    with tempfile.TemporaryDirectory(dir=directory(), prefix="vzarr-sample-") as name:
        path = Path(name) / "sample.vzarr"
        sample.make(path)
        facts = sample.observe(path)
        return path.read_bytes(), facts


def choose(data: bytes, number: int | None, *, kinds: Sequence[Kind] = KINDS) -> list[Task]:
    """List what to try: so many cases of each kind, or all of them."""
    tasks: list[Task] = []
    for kind in kinds:
        cases = list(kind(data))
        if number is not None and len(cases) > number:
            cases = random.Random(len(cases)).sample(cases, number)
        few = len(cases) <= 5000
        for index, case in enumerate(cases):
            everything = few or index % _SELDOM == 0
            tasks.append((case, READ | CHECK | WRITE if everything else READ))
    # Those that take long are spread evenly.
    random.Random(0).shuffle(tasks)
    return tasks


def table(results: Iterable[tuple[Case, Result]]) -> tuple[str, int]:
    """Count outcomes by kind of damage; also give the number of failures."""
    counts: dict[str, Counter[str]] = {}
    failures = 0
    for case, result in results:
        counts.setdefault(case.kind, Counter())[result.outcome] += 1
        if result.outcome in FAILURES:
            failures += 1
            print(f"{case.kind}, {case.name}: {result.outcome}\n{result.detail}", file=sys.stderr)
    counts["**all**"] = sum(counts.values(), Counter())
    lines = [f"| damage | cases | {' | '.join(OUTCOMES)} |", "|---" * (len(OUTCOMES) + 2) + "|"]
    for kind, found in sorted(counts.items(), key=lambda item: (item[0] == "**all**", item[0])):
        numbers = " | ".join(f"{found[outcome]:,}" for outcome in OUTCOMES)
        lines.append(f"| {kind} | {found.total():,} | {numbers} |")
    return "\n".join(lines), failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, help="cases of each kind; all, if not given")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="when to stop")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    data, facts = make_sample()
    tasks = choose(data, arguments.sample)
    begin = time.monotonic()
    end = begin + arguments.seconds
    results = run_all(data, facts, tasks, processes=arguments.processes)
    with contextlib.closing(results):
        text, failures = table(takewhile(lambda _: time.monotonic() < end, results))
    print(text)
    print(f"of {len(tasks):,} cases, in {time.monotonic() - begin:.0f} s", file=sys.stderr)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
