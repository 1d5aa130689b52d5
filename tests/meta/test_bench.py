"""The benchmarks run, at sizes that only prove it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["bench.figures", "--tiny"], ["one-chunk commit", "cold open", "list_prefix", "vzarr "]),
        (["bench.btree", "1000"], ["update", "diff"]),
        (["bench.merging", "--tiny"], ["merge", "blame"]),
    ],
)
def test_a_benchmark_runs(command, expected):
    result = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    for figure in expected:
        assert figure in result.stdout
