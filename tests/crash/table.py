"""``python -m tests.crash.table``: crash and fail at every system call, and print a table.

Markdown for docs/design.md. Takes a few minutes; what went wrong goes to standard error, and makes
the exit code 1. With names of scenarios, it takes these alone.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterable

from tests.crash.runner import Runner
from tests.crash.scenarios import SCENARIOS
from tests.crash.trial import Outcome

KINDS = {
    "write": ("pwrite64", "pwritev", "pwritev2", "write", "writev"),
    "flush": ("fdatasync", "fsync", "msync"),
    "extend": ("ftruncate", "fallocate"),
    "name": ("rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat", "rmdir"),
    "open": ("openat",),
    "map": ("mmap",),
    "lock": ("flock", "fcntl"),
    "read": ("pread64", "read", "newfstatat", "stat", "fstat", "statx"),
}
_COLUMNS = (*KINDS, "killed", "old / new", "failed", "raised / went on")


def table(outcomes: Iterable[Outcome]) -> str:
    """Give the table: a row for each scenario, kills + errors of each kind of call."""
    rows: dict[str, Counter[str]] = {}
    for each in outcomes:
        row = rows.setdefault(each.scenario, Counter())
        (kind,) = [kind for kind, calls in KINDS.items() if each.fault.call in calls]
        row[f"{kind} killed" if each.fault.kills else f"{kind} failed"] += 1
        row["killed" if each.fault.kills else "failed"] += 1
        row[each.verdict if each.verdict in ("old", "new", "unharmed") else "raised"] += 1
    total: Counter[str] = Counter()
    for row in rows.values():
        total += row
    lines = [("scenario", *_COLUMNS), ("---", *["--:"] * len(_COLUMNS))]
    lines += [_line(name, row) for name, row in rows.items()]
    lines.append(_line("**all**", total))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _line(name: str, row: Counter[str]) -> tuple[str, ...]:
    calls = [_pair(row[f"{kind} killed"], row[f"{kind} failed"], "+") for kind in KINDS]
    ends = _pair(row["old"], row["new"], "/"), _pair(row["raised"], row["unharmed"], "/")
    return name, *calls, f"{row['killed']:,}", ends[0], f"{row['failed']:,}", ends[1]


def _pair(one: int, other: int, sign: str) -> str:
    return f"{one:,} {sign} {other:,}" if one or other else ""


def main() -> int:
    """Make all trials."""
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as directory, Runner(directory) as runner:
        if runner.why_not:
            print(runner.why_not, file=sys.stderr)
            return 2
        for name in sys.argv[1:] or SCENARIOS:
            kills, errors = runner.begin(name)
            for fault in (*kills, *errors):
                outcome = runner.attempt(fault)
                if outcome.problems or outcome.verdict == "missed":
                    print(outcome, file=sys.stderr, flush=True)
                # Where several threads run, a call may not be made: nothing befell it then.
                if outcome.problems or outcome.verdict != "missed":
                    outcomes.append(outcome)
    print(table(outcomes))
    bad = sum(bool(each.problems) for each in outcomes)
    print(f"\n{len(outcomes):,} trials, {bad} with a problem.")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
