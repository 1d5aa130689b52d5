"""``vzarr gc`` and ``vzarr expire``."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.unit.test_garbage import make_garbage


def vzarr(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vzarr", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_gc_says_what_it_would_do_and_does_it(repo):
    make_garbage(repo)
    dry = vzarr("gc", repo.path, "--dry-run")
    assert dry.returncode == 0
    assert "11" in dry.stdout
    facts = json.loads(vzarr("gc", repo.path, "--json").stdout)
    assert facts["commits"] == 11
    assert json.loads(vzarr("gc", repo.path, "--json").stdout)["commits"] == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["--older-than", "x"], 2),
        (["--older-than", "30"], 0),
        (["--older-than", "2026-03-01", "--keep-last", "3", "--branch", "main", "-n"], 0),
        (["--keep-last", "0", "--json"], 0),
        (["--keep-last", "0", "--branch", "nix"], 1),
    ],
)
def test_expire_tells_usage_from_problems(repo, arguments, code):
    run = vzarr("expire", repo.path, *arguments)
    assert run.returncode == code, run.stderr
    assert "Traceback" not in run.stderr
