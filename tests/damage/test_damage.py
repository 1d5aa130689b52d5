"""Whatever has happened to a file: the right answer or a typed error, and the process lives.

The default is a sample of each kind of damage. ``VZARR_TORTURE=1`` takes all; so does
``python -m tests.damage.table``, which counts.
"""

from __future__ import annotations

import os
import random
import signal
import socket
from pathlib import Path
from typing import Any

import lmdb
import pytest

import vzarr
from tests.damage import sample
from tests.damage.cases import KINDS, PAGE, Case, anatomy, numbers
from tests.damage.runner import run_all
from tests.damage.table import choose, make_sample, table
from tests.damage.trial import (
    CHECK,
    FAILURES,
    HANG,
    READ,
    REFUSED,
    RIGHT,
    SIGNAL,
    WRITE,
    WRONG,
    Result,
)
from vzarr.check import check_file
from vzarr.datafile import DATABASES
from vzarr.errors import CorruptError, FormatError, StorageError, VzarrError
from vzarr.guard import Guard

TORTURE = "VZARR_TORTURE" in os.environ
SAMPLE = 24
PROCESSES = (os.cpu_count() or 1) if TORTURE else 1


@pytest.fixture(scope="module")
def made() -> tuple[bytes, sample.Facts]:
    return make_sample()


def outcomes(made: tuple[bytes, sample.Facts], *tasks: tuple[Case, int]) -> list[Result]:
    return [result for _, result in run_all(*made, tasks)]


def test_the_sample_has_something_of_everything(made):
    data, facts = made
    known = anatomy(data)
    assert 15 < len(known.tree_pages) < known.pages
    assert any(data[page * PAGE + 10] == 1 for page in known.tree_pages), "no branch page"
    assert any(data[page * PAGE + 10] == 4 for page in range(known.pages)), "no large value"
    assert len(facts["branches"]) == len(facts["tags"]) == 2
    assert len(facts["sessions"]) == 1
    assert len(facts["log of dev"]) > 5
    assert len(facts["reflog of main"]) > 3
    assert set(facts["data of main"]) < set(facts["data of dev"])


def test_an_undamaged_file_gives_right_answers(made):
    case = Case("none", "", lambda data: None)
    assert outcomes(made, (case, READ | CHECK | WRITE)) == [Result(RIGHT)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_damage(made, kind):
    tasks = choose(made[0], None if TORTURE else SAMPLE, kinds=[kind])
    assert len(tasks) >= SAMPLE
    failed = [
        (case.kind, case.name, result)
        for case, result in run_all(*made, tasks, processes=PROCESSES)
        if result.outcome in FAILURES
    ]
    assert failed == []


# ── the harness itself ───────────────────────────────────────────────────────────────────────────


def test_without_the_guard_the_interpreter_dies(made, monkeypatch):
    """The trials do find what they are there for."""
    for name in ("roots", "length", "leaf", "table", "small", "free_list"):
        monkeypatch.setattr(Guard, f"require_{name}", lambda *_: None)
    monkeypatch.setattr(Guard, "require_neighbours", lambda *_: (b"", None))
    cases = random.Random(1).sample(list(numbers(made[0])), 60)
    found = {result.outcome for result in outcomes(made, *((case, READ | WRITE) for case in cases))}
    assert SIGNAL in found


def test_wrong_data_is_found(made):
    data, facts = made
    case = Case("none", "", lambda data: None)
    for change in (
        {"data of main": {**facts["data of main"], "a/c/1": b"other"}},
        {"branches": {}},
    ):
        ((_, result),) = run_all(data, facts | change, [(case, READ)])
        assert result.outcome == WRONG


@pytest.mark.parametrize(("end", "outcome"), [(os.abort, SIGNAL), (signal.pause, HANG)])
def test_what_ends_a_process_is_found(made, monkeypatch, end, outcome):
    monkeypatch.setattr("tests.damage.runner.HANG_SECONDS", 1 if outcome == HANG else 60)
    cases = [Case("none", "", lambda _: end()), Case("none", "", lambda _: None)]
    found = outcomes(made, *((case, READ) for case in cases))
    assert [result.outcome for result in found] == [outcome, RIGHT]


def test_the_table(made):
    tasks = choose(made[0], 1)
    text, failures = table((case, Result(REFUSED)) for case, _ in tasks)
    assert not failures
    assert text.splitlines()[-1].startswith(f"| **all** | {len(tasks)} | 0 | {len(tasks)} | 0 ")


# ── other files ──────────────────────────────────────────────────────────────────────────────────


def _foreign(path: Path, name: str) -> None:
    options: dict[str, Any] = {"subdir": False, "lock": False, "max_dbs": 16, "lib_version": 0}
    if name == "other LMDB 1.0":
        options["lib_version"] = 1
    names = ["users", "groups"] if name == "other names" else DATABASES
    with lmdb.open(str(path), **options) as handle, handle.begin(write=True) as txn:
        flags = {"dupsort": True} if name == "duplicates" else {}
        for database in names:
            opened = handle.open_db(database.encode(), txn=txn, **flags)
            if name != "empty databases":
                for number in range(300):
                    txn.put(b"%d" % number, b"v" * (number + 1), db=opened)
                txn.put(b"format", b"v" * 20, db=opened)


LMDBS = ("other names", "empty databases", "same names", "duplicates", "other LMDB 1.0")
BYTES = {
    "empty": b"",
    "one byte": b"\0",
    "text": b"All happy families are alike.\n" * 1000,
    "zeros": bytes(100_000),
    "ones": b"\xff" * 100_000,
    "noise": random.Random(0).randbytes(100_000),
    "magic only": bytes(16) + b"\xde\xc0\xef\xbe" + bytes(100_000),
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(10_000),
    "zip": b"PK\x03\x04" + bytes(10_000),
}
SPECIAL = ("directory", "fifo", "socket", "broken link", "device")


@pytest.fixture(params=[*LMDBS, *BYTES, *SPECIAL])
def stranger(request, tmp_path: Path) -> Path:
    """A file that is no repository."""
    path = tmp_path / "stranger"
    name = request.param
    if name in LMDBS:
        _foreign(path, name)
    elif name in BYTES:
        path.write_bytes(BYTES[name])
    elif name == "directory":
        path.mkdir()
    elif name == "fifo":
        os.mkfifo(path)
    elif name == "socket":
        # A path that is short enough for one.
        with socket.socket(socket.AF_UNIX) as listening:
            here = os.open(tmp_path, os.O_RDONLY)
            listening.bind(f"/proc/self/fd/{here}/stranger")
            os.close(here)
    elif name == "broken link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path = Path("/dev/zero")
    return path


@pytest.mark.parametrize("mode", ["r", "r+", "a"])
def test_files_of_other_programs_are_refused_and_left_alone(stranger, mode):
    before = stranger.read_bytes() if stranger.is_file() else None
    beside = os.listdir(stranger.parent)
    if mode == "a" and stranger.is_symlink():
        pytest.skip("a link to nowhere is where a file is to be made")
    with pytest.raises((FormatError, StorageError, vzarr.errors.NotFoundError)):
        vzarr.open(stranger, mode)
    # With our databases, it is LMDB's to look further, which needs its lock file.
    ours = before is not None and all(name.encode() in before for name in DATABASES)
    assert set(os.listdir(stranger.parent)) <= {*beside, *(["stranger-lock"] if ours else [])}
    assert before is None or stranger.read_bytes() == before


@pytest.mark.parametrize("level", ["quick", "full"])
def test_checks_of_files_of_other_programs_end(stranger, level):
    try:
        report = check_file(str(stranger), level)
    except VzarrError:
        return
    assert not report.ok


# ── while it is open ─────────────────────────────────────────────────────────────────────────────


def test_a_file_cut_off_while_it_is_open(made, tmp_path):
    data, facts = made
    path = tmp_path / "test.vzarr"
    path.write_bytes(data)
    with vzarr.open(path) as repo:
        session = repo.session("main")
        os.truncate(path, len(data) // 2)
        with pytest.raises(CorruptError, match="cut off"):
            session.get("a/c/1")
        with pytest.raises(CorruptError, match="cut off"):
            dict(repo.branches)
        session.set("a/c/1", b"new")
        with pytest.raises(CorruptError, match="cut off"):
            session.commit("new")
        session.discard()
        session.close()
    # Put back, nothing is lost.
    path.write_bytes(data)
    assert sample.observe(path) == facts
