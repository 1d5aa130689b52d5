"""Open what a power failure left, and say what is there: ``python -m tests.power.judge``.

Runs in a process of its own, since a damaged file might end it, and tells the one that started it
which state it is about to open, and then what it found.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import traceback
from contextlib import closing
from pathlib import Path
from typing import Any

import vzarr
from tests.power.contents import AUTHOR, contents_of, refs_of
from tests.power.disk import Crash, digest, replay
from tests.power.recording import Recording
from vzarr import objects
from vzarr.check import check_file
from vzarr.errors import CorruptError, NotARepositoryError

Verdict = dict[str, Any]
"""Of one file: that it is "empty", or its "refs", the "contents" of their commits, what sessions
had "saved", and whether it is "short"; or a "problem"."""


def judge(files: dict[str, bytes], directory: Path) -> dict[str, Verdict]:
    """Write the files of a state, and look at each repository among them."""
    for old in os.scandir(directory):
        os.unlink(old)
    for name, data in files.items():
        (directory / name).write_bytes(data)
    verdicts: dict[str, Verdict] = {}
    for name in files:
        if name.endswith(".vzarr"):
            # What an earlier state had in memory must not stand in for what is missing here.
            for cache in (objects._nodes, objects._entries):
                cache._young.clear()
                cache._old.clear()
            try:
                verdicts[name] = _judge(os.fspath(directory / name), digest(files)[0] % 4)
            except Exception:
                verdicts[name] = {"problem": traceback.format_exc()}
    return verdicts


def _judge(path: str, upkeep: int) -> Verdict:
    if not os.path.getsize(path):
        try:
            vzarr.open(path, "r").close()
        except NotARepositoryError:
            return {"empty": True}
        raise AssertionError("an empty file was opened")
    is_short = _is_short(path)
    refs = None
    if not is_short:
        # Before anybody mends anything: as it is found by one who may only read.
        _require_sound(check_file(path, "full"))
        with vzarr.open(path, "r") as repo:
            refs = refs_of(repo)
    with vzarr.open(path, "r+", author=AUTHOR) as repo:
        if is_short:
            _require_sound(repo.check("full"))
        assert refs in (None, refs_of(repo)), "opened for writing, it has other refs"
        refs = refs_of(repo)
        commits = {*refs["branches"].values(), *refs["tags"].values()}
        found: Verdict = {
            "refs": refs,
            "contents": {commit: _contents(repo, commit) for commit in commits},
            "saved": _resume(repo),
            "short": is_short,
        }
        _go_on(repo, "first")
        # What the crash left behind is in nobody's way.
        if upkeep == 1:
            repo.gc()
        elif upkeep == 2:
            repo.compact(verify=None)
        if upkeep in (1, 2):
            _go_on(repo, "second")
    return found


def _is_short(path: str) -> bool:
    """Whether a reader is told that pages at the end are missing, which a writer adds."""
    try:
        vzarr.open(path, "r").close()
    except CorruptError as error:
        if "open it once for writing" not in str(error):
            raise
        return True
    return False


def _contents(repo: vzarr.Repository, commit: str) -> str:
    # Closed, or the session would keep its commit from being collected.
    with closing(repo.session(commit)) as session:
        return contents_of(session)


def _resume(repo: vzarr.Repository) -> dict[str, str]:
    """Resume every session that saved its work, and say what it has."""
    found = {}
    for info in repo.sessions():
        if info.checkpointed is not None:
            session = repo.resume(info.id)
            found[session.id] = contents_of(session)
            session.close()
    return found


def _go_on(repo: vzarr.Repository, key: str) -> None:
    """Commit, as a user would after the crash; and everything is there."""
    value = os.urandom(10_000)
    session = repo.session("main")
    session.set(f"after/{key}", value)
    commit = session.commit("after the crash")
    session.close()
    assert repo.branches["main"] == commit
    assert bytes(repo.session("main").get(f"after/{key}") or b"") == value
    _require_sound(repo.check("full"))


def _require_sound(report: vzarr.Report) -> None:
    # The workloads store files of any kind; what they hold is nobody's business here.
    assert report.ok, str(report)


def main(task: str, directory: str) -> None:
    """Judge the states of a task, and print a line before and one after each."""
    recording: Recording
    crashes: list[Crash]
    with open(task, "rb") as file:
        recording, crashes = pickle.load(file)
    known: dict[bytes, dict[str, Verdict]] = {}
    for number, (crash, disk) in enumerate(replay(recording, crashes)):
        print(number, flush=True)
        files = disk.after_crash(crash)
        key = digest(files)
        is_new = key not in known
        if is_new:
            known[key] = judge(files, Path(directory))
        print(json.dumps([is_new, known[key]]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
