"""The benchmarks run, at sizes that only prove it, and the one with several writers can count."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.concurrent import CHUNK, Part, Written, judge

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["bench.figures", "--tiny"], ["one-chunk commit", "cold open", "list_prefix", "vzarr "]),
        (["bench.btree", "1000"], ["update", "diff"]),
        (["bench.merging", "--tiny"], ["merge", "blame"]),
        (["bench.trust", "--tiny"], ["check full", "backup", "verify=always", "gc, "]),
        (["bench.concurrent", "--tiny"], ["vzarr transaction  ", "vzarr run  ", "lost commits"]),
    ],
)
def test_a_benchmark_runs(command, expected):
    result = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    for figure in expected:
        assert figure in result.stdout


def test_two_writers_are_judged_by_the_history_and_the_values():
    """Of four acknowledged commits one is not in the history, and one's chunk is overwritten."""
    one = Part(
        written=[
            Written(chunk=0, base="start", commit="a", committing=10.5),
            Written(chunk=1, base="a", commit="gone", committing=12.0, conflicts=2),
        ],
        begins=[10.0, 11.0],
        ends=[11.0, 13.0],
    )
    two = Part(
        written=[
            Written(chunk=2, base="start", commit="b", committing=10.5),
            Written(chunk=3, base="b", commit="c", committing=11.5),
        ],
        begins=[10.25, 11.0],
        ends=[11.0, 12.0],
        failures=["StorageError: no"],
    )
    parents = {"c": "b", "b": "a", "a": "start", "start": ""}
    values = np.repeat(np.arange(4), CHUNK).reshape(4, CHUNK)
    values[3, -1] = -1
    result = judge([one, two], parents, values)
    assert (result.lost_commits, result.lost_chunks) == (1, 1)
    assert (result.rebased, result.conflicts) == (1, 2)
    assert result.failures == ["StorageError: no"]
    assert result.rate == 4 / (13.0 - 10.0)
    assert result.waits == [1.0, 2.0, 0.75, 1.0]
    assert result.commits == [0.5, 1.0, 0.5, 0.5]
