"""Count what power losses were tried, as a table: ``python -m tests.power.table [--sample N]``.

Without ``--sample`` these are all states that ``all_crashes`` lists, which takes some ten minutes.
"""

from __future__ import annotations

import argparse
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.power.campaign import Outcome, all_crashes, report, run, sample
from tests.power.disk import KINDS
from tests.power.recording import build_shim, memory_directory, obstacle, record
from tests.power.workloads import WORKLOADS


def main() -> int:
    """Run the campaign, print the table; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, help="states of each kind and workload")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--repeat", type=int, default=5, help="random states a kind and moment")
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS))
    options = parser.parse_args()
    if obstacle():
        print(f"nothing was tried: {obstacle()}", file=sys.stderr)
        return 1
    begin = time.monotonic()
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory(dir=memory_directory(Path(tempfile.gettempdir()))) as name:
        shim = build_shim(Path(name))
        for workload in options.workloads:
            directory = Path(name) / workload
            directory.mkdir()
            recording = record(workload, shim, directory)
            draw = random.Random(options.seed)
            crashes = all_crashes(recording, draw, repeat=options.repeat)
            if options.sample is not None:
                crashes = sample(crashes, draw, each=options.sample)
            outcomes[workload] = run(recording, crashes)
            done = f"{workload}: {outcomes[workload].tried.total():,} states"
            print(f"{done}, {time.monotonic() - begin:.0f} s", file=sys.stderr)
            if outcomes[workload].broken:
                kept = Path(tempfile.mkdtemp(prefix="vzarr-power-"))
                print(report(recording, outcomes[workload], kept), file=sys.stderr)
    print(_table(outcomes))
    print(f"\nSeed {options.seed}, {time.monotonic() - begin:.0f} s.")
    return int(any(outcome.broken for outcome in outcomes.values()))


def _table(outcomes: dict[str, Outcome]) -> str:
    names = {workload: (WORKLOADS[workload].__doc__ or "").split("\n")[0] for workload in outcomes}
    rows = [
        ["crash state", *outcomes, "all"],
        ["---", *("--:" for _ in (*outcomes, "all"))],
    ]
    for kind, meaning in KINDS.items():
        counts = [outcome.tried[kind] for outcome in outcomes.values()]
        rows.append([meaning, *(f"{count:,}" for count in (*counts, sum(counts)))])
    for label, counts in {
        "**states**": [outcome.tried.total() for outcome in outcomes.values()],
        "different ones": [outcome.distinct for outcome in outcomes.values()],
        "without a tail that was never written": [outcome.short for outcome in outcomes.values()],
        "that lost one acknowledged commit": [outcome.lost[1] for outcome in outcomes.values()],
        "that lost more": [_more_than_one(outcome.lost) for outcome in outcomes.values()],
        "**promises broken**": [len(outcome.broken) for outcome in outcomes.values()],
    }.items():
        rows.append([label, *(f"{count:,}" for count in (*counts, sum(counts)))])
    told = [f"* *{workload}*: {meaning}" for workload, meaning in names.items()]
    return "\n".join([*("| " + " | ".join(row) + " |" for row in rows), "", *told])


def _more_than_one(lost: Counter[int]) -> int:
    return sum(count for number, count in lost.items() if number > 1)


if __name__ == "__main__":
    sys.exit(main())
