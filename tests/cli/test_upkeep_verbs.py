"""``vzarr gc``, ``vzarr expire``, ``vzarr compact`` and ``vzarr backup``."""

from __future__ import annotations

import json
import os
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


def test_sessions_lists_who_is_there(repo):
    reader = repo.session(repo.branches["main"])
    with repo.transaction("main", "on") as store:
        store.session.set("file", b"0")
    session = repo.session("main")
    session.set("file", b"1")
    saved = session.checkpoint()
    (found, other) = sorted(
        json.loads(vzarr("sessions", repo.path, "--json").stdout)["sessions"],
        key=lambda each: each["kind"],
        reverse=True,
    )
    assert (found["id"], found["branch"], found["alive"]) == (saved, "main", True)
    assert found["nbytes"] == 1
    assert found["owner"]["pid"] == os.getpid()
    assert other["kind"] == "reader"
    assert reader.base.startswith(other["base"])
    lines = vzarr("sessions", repo.path).stdout.splitlines()
    assert any(saved in line and "alive" in line and " 1 " in line for line in lines)


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


def test_compact_makes_the_file_smaller(repo):
    make_garbage(repo)
    size = os.path.getsize(repo.path)
    repo.close()
    facts = json.loads(vzarr("compact", repo.path, "--no-gc", "--json").stdout)
    assert set(facts) == {"before", "after", "garbage", "verified", "seconds"}
    assert (facts["before"], facts["garbage"], facts["verified"]) == (size, 0, "full")
    run = vzarr("compact", repo.path, "--verify", "none")
    assert run.returncode == 0, run.stderr
    assert f"{os.path.getsize(repo.path):,} after" in run.stdout
    assert os.path.getsize(repo.path) < size


def test_compact_names_who_has_the_file_open(repo):
    run = vzarr("compact", repo.path, "--timeout", "0.05")
    assert run.returncode == 1
    assert f"process {os.getpid()}" in run.stderr
    assert "Traceback" not in run.stderr


def test_backup_makes_a_copy_and_overwrites_none(repo, tmp_path):
    target = tmp_path / "copy.vzarr"
    facts = json.loads(vzarr("backup", repo.path, str(target), "--json").stdout)
    assert set(facts) == {
        *("path", "file_bytes", "source_bytes", "commits"),
        *("heads", "verified", "seconds"),
    }
    assert facts["heads"] == dict(repo.branches)
    assert facts["file_bytes"] == target.stat().st_size
    again = vzarr("backup", repo.path, str(target))
    assert again.returncode == 1
    assert "exists already" in again.stderr
    run = vzarr("backup", repo.path, str(target), "--overwrite", "--verify", "quick")
    assert run.returncode == 0, run.stderr
    assert "quick check" in run.stdout
    assert vzarr("check", str(target)).returncode == 0
    assert vzarr("backup", repo.path).returncode == 2
