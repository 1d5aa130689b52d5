"""Processes that are killed in the middle, and collections of garbage at the same time."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest
import zarr

import vzarr
from tests.support import assert_sound
from tests.sync.conftest import AUTHOR, fill, values
from vzarr.reception import Reception

# Gives the answers of a server up to so many bytes, says that they are all gone, and waits.
_RELAY = """
import os, subprocess, sys
limit, signal, *command = sys.argv[1:]
server = subprocess.Popen(command, stdin=0, stdout=subprocess.PIPE)
left = int(limit)
while left and (data := os.read(server.stdout.fileno(), min(left, 1 << 16))):
    os.write(1, data)
    left -= len(data)
with open(signal, "w") as fifo:
    fifo.write("reached")
server.wait()
with open(signal, "w") as fifo:
    fifo.write("ended")
"""
# Clones, and stops for ever once so much has arrived and is safe.
_CLONE = """
import signal, sys, vzarr, vzarr.arrivals as arrivals
source, target, fifo, number = sys.argv[1:]
arrivals._SAVE_BYTES = 20_000
save, left = arrivals.Arrivals.save, int(number)
def save_and_stop(self):
    global left
    save(self)
    left -= 1
    if not left:
        with open(fifo, "w") as file:
            file.write("reached")
        signal.pause()
arrivals.Arrivals.save = save_and_stop
vzarr.clone(source, target)
"""


@pytest.fixture
def fifo(tmp_path):
    """Where another process tells how far it is."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


@pytest.fixture
def relay(tmp_path, fifo):
    """Let the connection to a file stop after some bytes, and tell a fifo."""
    script = tmp_path / "relay.py"
    script.write_text(_RELAY)

    def relay(path: str, limit: int, *options: str) -> dict[str, str]:
        server = [sys.executable, "-m", "vzarr", "serve", "--stdio", *options, path]
        command = [sys.executable, str(script), str(limit), str(fifo), *server]
        ssh = tmp_path / "ssh.sh"
        ssh.write_text(f"exec {shlex.join(command)}\n")
        return {**os.environ, "VZARR_SSH": f"sh {ssh}", "VZARR_AUTHOR": AUTHOR}

    return relay


def _run_and_kill(fifo, code: str, *arguments: object, environment=None) -> None:
    """Run some Python until a fifo says how far it is, and kill it."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, env=environment) as process:
        assert fifo.read_text() == "reached"
        process.send_signal(signal.SIGKILL)


def _much(repo) -> None:
    with repo.transaction("main", "much") as store:
        array = zarr.create_array(store, name="m", shape=(9000,), chunks=(3,), dtype="i4")
        array[:] = np.arange(9000)


def test_a_clone_that_was_killed_goes_on(first, fifo, tmp_path):
    _much(first)
    path = tmp_path / "clone.vzarr"
    _run_and_kill(fifo, _CLONE, first.path, path, fifo, 10)
    assert not path.exists()
    part = tmp_path / "clone.vzarr.part"
    assert_sound(part)
    with vzarr.open(part, "r+", author=AUTHOR) as left:
        assert [info.alive for info in left.sessions() if info.checkpointed] == [False]
        assert left.gc().kept_chunks > 0
    report = vzarr.clone(first.path, path, author=AUTHOR)
    assert 0 < report.chunks < first.info().chunks
    assert report.commits == 0
    assert not part.exists()
    assert_sound(path)
    with vzarr.open(path, "r") as clone:
        assert clone.root_id() == first.root_id()
        assert values(clone, path="m") == list(range(9000))


def test_one_who_is_pushed_to_keeps_what_came(first, second, relay, fifo):
    """Who pushes is killed; the other side notices, and keeps it for the next one."""
    _much(second)
    before = first.branches["main"]
    # What comes back are requests: some for nodes, and two of 400 chunks each.
    environment = relay(first.path, 40_000)
    code = f"import vzarr; vzarr.open({second.path!r}, 'r').push('buoy:x')"
    _run_and_kill(fifo, code, environment=environment)
    assert fifo.read_text() == "ended"
    assert [info.alive for info in first.sessions() if info.branch == "~transfer"] == [False]
    assert first.branches["main"] == before
    assert_sound(first.path)
    report = second.push()
    assert 0 < report.chunks < 3000
    assert first.root_id() == second.root_id()


def test_what_was_garbage_and_is_gone_at_the_end_is_brought_again(first, second, monkeypatch):
    """The objects of a fetch are found in the file, unreachable, and collected before its end."""
    commit = fill(first, "theirs", 40, 6)
    second.fetch()
    second.remotes.remove("origin")
    second.expire(keep_last=0)
    with second.transaction("main", "newer") as store:
        zarr.open_array(store, path="t")[0] = 1
    assert second.gc(dry_run=True).nodes
    finish, collected = Reception._finish, []

    def collect_first(reception, move):
        if not collected:
            collected.append(second.gc())
        return finish(reception, move)

    # The commits go first of all: without one there is nothing to find.
    with second._environment.write() as txn:
        txn.delete("commits", bytes.fromhex(commit))
    monkeypatch.setattr(Reception, "_finish", collect_first)
    report = second.fetch(first.path)
    assert collected[0].nodes
    assert report.commits == 1
    assert values(second, "FETCH_HEAD/main") == values(first)
    assert_sound(second.path)


def test_a_transfer_that_is_under_way_is_kept_from_gc(first, second, monkeypatch):
    fill(first, "theirs", 40, 6)
    _much(first)
    finish, collected = Reception._finish, []

    def collect_first(reception, move):
        reception._arrivals.save()
        collected.append(second.gc())
        return finish(reception, move)

    monkeypatch.setattr(Reception, "_finish", collect_first)
    second.fetch()
    assert len(collected) == 1
    assert values(second, "origin/main", path="m") == list(range(9000))


def test_a_redaction_takes_what_came_along(first, second, monkeypatch):
    """It rewrites what is known of branches elsewhere, too."""
    fill(first, "theirs", 40, 6)
    second.fetch()
    report = second.redact("t", force=True)
    assert report.rewritten
    assert set(values(second, "origin/main")) == {0}
