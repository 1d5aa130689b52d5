"""``repo.backup``: a copy of one moment, whole under its name or not there."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

import vzarr
from tests.processes import PATIENCE, Child, Other, threads
from tests.support import assert_sound
from tests.unit.test_garbage import entries, make_garbage, write
from tests.unit.test_session import commit
from vzarr import draft
from vzarr.draft import Draft, draft_path
from vzarr.errors import (
    AlreadyExistsError,
    BusyError,
    CorruptError,
    FullError,
    InvalidInputError,
    NotARepositoryError,
    NotFoundError,
    SessionStateError,
    StorageError,
)


@pytest.fixture
def target(tmp_path: Path):
    """Where the copy goes; it is checked when the test has ended."""
    path = tmp_path / "copies" / "copy.vzarr"
    path.parent.mkdir()
    yield path
    if path.exists():
        assert_sound(path)


def names(target: Path) -> list[str]:
    return sorted(os.listdir(target.parent))


def test_the_copy_holds_the_same_and_no_free_pages(repo, target):
    make_garbage(repo)
    repo.gc()
    report = repo.backup(target)
    assert names(target) == ["copy.vzarr"]
    assert report.file_bytes == target.stat().st_size < report.source_bytes
    assert report.heads == dict(repo.branches)
    assert (report.path, report.verified) == (str(target), "full")
    assert "full check" in str(report)
    with vzarr.open(target) as copy:
        assert entries(copy) == entries(repo)
        assert (copy.id, copy.root_id("main")) == (repo.id, repo.root_id("main"))
        facts = copy._environment.info()
        assert facts.used_bytes == facts.file_bytes
        write(copy, b"a repository of its own")
        assert dict(copy.branches) != dict(repo.branches)


@pytest.mark.parametrize("verify", ["full", "quick", None])
def test_verification_can_be_chosen(repo, target, verify):
    commit(repo.session("main"), "one", one=b"1" * 10_000)
    stages = set()
    report = repo.backup(target, verify=verify, progress=lambda done, total, what: stages.add(what))
    assert report.verified == verify
    assert ("objects" in stages) == (verify is not None)
    assert "copy" in stages


def test_of_sessions_the_checkpoints_are_kept(repo, target):
    living, dead, staged = (repo.session("main") for _ in range(3))
    living.set("living", b"1" * 9_000)
    dead.set("dead", b"2" * 9_000)
    saved = [living.checkpoint(), dead.checkpoint()]
    dead.close()
    staged.set("staged", b"3")
    repo.backup(target)
    living.commit("living")
    with vzarr.open(target, author="Test") as copy:
        assert sorted(info.id for info in copy.sessions() if info.checkpointed) == sorted(saved)
        copy.gc()
        for name, key in zip(saved, ("living", "dead"), strict=True):
            with_edits = copy.resume(name)
            assert len(with_edits.get(key)) == 9_000
            with_edits.commit(key)


def test_a_reader_can_make_it(repo, target):
    write(repo, b"1")
    repo.close()
    with vzarr.open(repo.path, "r") as reader:
        reader.backup(target)
    with vzarr.open(target, "r") as copy:
        assert copy.store("main").session.get("file") == b"1"


def test_nobody_reads_the_copy_who_could_not_read_the_original(repo, target):
    os.chmod(repo.path, 0o600)
    repo.backup(target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


# ── the target ───────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_overwritten_unless_asked(repo, target):
    target.write_bytes(b"something")
    with pytest.raises(AlreadyExistsError):
        repo.backup(target)
    with pytest.raises(NotARepositoryError, match="overwritten"):
        repo.backup(target, overwrite=True)
    assert target.read_bytes() == b"something"
    target.unlink()
    repo.backup(target)
    write(repo, b"newer")
    with pytest.raises(AlreadyExistsError):
        repo.backup(target)
    repo.backup(target, overwrite=True)
    with vzarr.open(target, "r") as copy:
        assert copy.branches["main"] == repo.branches["main"]


def test_what_appears_meanwhile_is_not_overwritten(repo, target):
    def appear(_done: int, _total: int, what: str) -> None:
        target.write_bytes(b"somebody else's")

    with pytest.raises(AlreadyExistsError):
        repo.backup(target, progress=appear)
    assert names(target) == ["copy.vzarr"]
    assert target.read_bytes() == b"somebody else's"
    target.unlink()


def test_an_empty_or_damaged_file_may_be_overwritten(repo, target):
    target.touch()
    repo.backup(target, overwrite=True)
    whole = target.read_bytes()
    target.write_bytes(whole[:5000])
    repo.backup(target, overwrite=True)
    assert len(target.read_bytes()) == len(whole)


def test_the_file_itself_is_refused(repo, target):
    for overwrite in (False, True):
        with pytest.raises(InvalidInputError, match="itself"):
            repo.backup(repo.path, overwrite=overwrite)
    target.symlink_to(repo.path)
    with pytest.raises(InvalidInputError, match="itself"):
        repo.backup(target, overwrite=True)
    target.unlink()


def test_other_bad_targets(repo, target):
    with pytest.raises(NotFoundError):
        repo.backup(target.parent / "no" / "copy.vzarr")
    for path in (target.parent, b"bytes", "", None):
        with pytest.raises((InvalidInputError, AlreadyExistsError, NotARepositoryError)):
            repo.backup(path)
    with pytest.raises(NotARepositoryError):
        repo.backup(target.parent, overwrite=True)
    with pytest.raises(InvalidInputError):
        repo.backup(target, verify="some")
    repo.close()
    with pytest.raises(SessionStateError):
        repo.backup(target)
    assert names(target) == []


def hold_open(pipe, path: str) -> None:
    with vzarr.open(path):
        pipe.send("open")
        pipe.recv()


def test_a_target_that_is_open_is_not_overwritten(repo, target):
    repo.backup(target)
    before = target.stat().st_ino
    with vzarr.open(target), pytest.raises(SessionStateError, match="close"):
        repo.backup(target, overwrite=True)
    other = Other(hold_open, str(target))
    assert other.receive() == "open"
    with pytest.raises(BusyError, match="open"):
        repo.backup(target, overwrite=True)
    assert target.stat().st_ino == before
    other.send()
    other.result()
    repo.backup(target, overwrite=True)
    assert [name for name in names(target) if name.startswith(".")] == []


def test_a_damaged_page_is_told_and_never_kills(path, target):
    """LMDB would walk into it."""
    with vzarr.open(path, author="Test") as repo:
        make_garbage(repo)
    whole, step = path.read_bytes(), 1 if "VZARR_TORTURE" in os.environ else 7

    def copy(_) -> str:
        try:
            with vzarr.open(path, "r") as repo:
                repo.backup(target, verify=None)
            target.unlink()
        except CorruptError:
            return "told"
        return "copied"

    outcomes = []
    for page in range(2, len(whole) // 4096, step):
        for filling in (b"\0", b"\xff"):
            path.write_bytes(whole[: 4096 * page] + filling * 4096 + whole[4096 * (page + 1) :])
            outcomes.append(Child(copy).result())
    path.unlink()
    # What is in values and on free pages does not concern LMDB.
    assert {"told", "copied"} == set(outcomes)


def test_two_at_a_time_to_one_target(repo, target):
    with Draft(str(target), 0o600), pytest.raises(BusyError, match="written"):
        repo.backup(target)
    repo.backup(target)


# ── what goes wrong ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stage", ["copy", "structure", "objects"])
def test_an_interruption_leaves_nothing_behind(repo, target, stage):
    def interrupt(_done: int, _total: int, what: str) -> None:
        if what == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repo.backup(target, progress=interrupt)
    assert names(target) == []
    write(repo, b"on")
    repo.backup(target)


def test_a_copy_that_is_interrupted_stops_at_once(repo, target, monkeypatch):
    """LMDB ends with an error of its own, not when it has written all."""
    commit(repo.session("main"), "much", much=os.urandom(8 << 20))
    sizes = []

    def interrupt(_done: int, _total: int, what: str) -> None:
        sizes.append(os.stat(draft_path(str(target))).st_size)
        raise KeyboardInterrupt

    monkeypatch.setattr("vzarr.copying.INTERVAL", 0)
    with pytest.raises(KeyboardInterrupt):
        repo.backup(target, progress=interrupt)
    assert len(sizes) == 1
    assert names(target) == []
    assert threading.active_count() < 20


def test_a_full_disk(repo, target, monkeypatch):
    def no_space(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(draft, "sync_directory", no_space)
        with pytest.raises(FullError):
            repo.backup(target)
    assert names(target) == []
    repo.backup(target)


def test_a_directory_that_is_not_ours(repo, target, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Draft, "_create", refuse)
    with pytest.raises(StorageError, match="Permission"):
        repo.backup(target)


# ── while others write ───────────────────────────────────────────────────────────────────────────


def test_it_is_of_one_moment_while_threads_write(repo, target):
    done = threading.Event()

    def write_on() -> None:
        number = 0
        while not done.is_set() or number < 5:
            number += 1
            value = b"%d" % number
            commit(repo.session("main"), "both", left=value, right=value)

    with threads(write_on):
        try:
            for _ in range(5):
                report = repo.backup(target, overwrite=True)
                with vzarr.open(target, "r") as copy:
                    session = copy.session("main")
                    assert session.base == report.heads["main"]
                    assert session.get("left") == session.get("right")
                    assert copy.check("full").ok
                assert report.heads["main"] in [one.id for one in repo.log("main")]
        finally:
            done.set()


def keep_writing(pipe, path: str, name: str) -> list[str]:
    made = []
    with vzarr.open(path, author="Test") as repo:
        pipe.send("ready")
        while not pipe.poll():
            with repo.transaction("main", name, merge="ours") as store:
                value = b"%d" % len(made)
                store.session.set(f"{name}/left", value)
                store.session.set(f"{name}/right", value)
            made.append(repo.branches["main"])
    return made


def test_it_is_of_one_moment_while_processes_write(repo, target):
    writers = [Other(keep_writing, repo.path, name) for name in ("ada", "bob")]
    assert [writer.receive() for writer in writers] == ["ready", "ready"]
    states = []
    for _ in range(4):
        report = repo.backup(target, overwrite=True)
        assert report.verified == "full"
        with vzarr.open(target, "r") as copy:
            assert copy.check("full").ok
            session = copy.session("main")
            for name in ("ada", "bob"):
                assert session.get(f"{name}/left") == session.get(f"{name}/right")
        states.append(report.heads["main"])
    for writer in writers:
        writer.send("enough")
        writer.result()
    history = [one.id for one in repo.log("main")]
    found = [history.index(state) for state in states]
    assert found == sorted(found, reverse=True)


def test_writers_do_not_wait_for_it(repo, target):
    written, copying = threading.Event(), threading.Event()

    def write_meanwhile() -> None:
        assert copying.wait(PATIENCE)
        write(repo, b"meanwhile")
        written.set()

    def wait_for_the_writer(_done: int, _total: int, what: str) -> None:
        copying.set()
        assert written.wait(PATIENCE)

    head = repo.branches["main"]
    with threads(write_meanwhile):
        report = repo.backup(target, progress=wait_for_the_writer)
    assert report.heads["main"] == head != repo.branches["main"]
