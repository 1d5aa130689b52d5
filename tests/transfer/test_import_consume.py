"""Imports that delete their source: killed at any moment, they lose nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import zipfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import vzarr
from tests.processes import Child
from tests.transfer.sources import files_of, unfinished, values_of
from vzarr import changes, directories, importing
from vzarr.directories import DirectorySource
from vzarr.environment import Environment, Txn
from vzarr.errors import (
    AlreadyExistsError,
    BusyError,
    ConflictError,
    FullError,
    InvalidInputError,
    NotFoundError,
    StorageError,
)
from vzarr.intake import MOVED


@pytest.fixture
def whole(source: Path) -> dict[str, bytes]:
    return files_of(source)


def in_small_steps(patch: Any) -> None:
    """Have a source deleted four chunks at a time."""
    patch.setattr(importing, "_CHECKPOINT_VALUES", 4)
    patch.setattr(importing, "_PIECES_AT_ONCE", 1)
    patch.setattr(DirectorySource, "workers", 1)
    patch.setattr(changes, "BATCH_BYTES", 2000)


def consumed(repo: vzarr.Repository, source: Path, whole: dict[str, bytes], **options: Any) -> None:
    """Run to the end, and see that all is there and nothing is left."""
    report = repo.import_from(source, consume=True, path="sea", **options)
    assert values_of(repo, "sea") == whole
    assert report.consumed
    assert (report.arrays, report.groups, report.chunks, report.files) == (2, 2, 18, 1)
    assert report.nbytes == sum(map(len, whole.values()))
    assert not source.exists()
    assert list(repo.branches) == ["main"]
    assert unfinished(repo) == []
    assert [each.message for each in repo.log("main")] == ["import sea.zarr", "create repository"]


# ── what is deleted, and when ────────────────────────────────────────────────────────────────────


def test_the_source_goes_and_all_of_it_is_there(repo, source, whole):
    consumed(repo, source, whole)


def test_chunks_go_once_they_are_durable(repo, source, whole, monkeypatch):
    """At each deletion, what is deleted is in a checkpoint and on a branch, and was flushed."""
    in_small_steps(monkeypatch)
    real_delete, real_sync, real_put = DirectorySource.delete, Environment.sync, Txn.put
    unsynced, seen = False, 0

    def put(self, name, *args, **options):
        nonlocal unsynced
        unsynced |= name == "branches"
        real_put(self, name, *args, **options)

    def sync(self):
        nonlocal unsynced
        real_sync(self)
        unsynced = False

    def delete(self, key):
        nonlocal seen
        seen += 1
        with vzarr.open(repo.path, "r") as other:
            (branch,) = [name for name in other.branches if name != "main"] or ["main"]
            assert values_of(other, "sea", branch)[key] == whole[key]
        assert not unsynced
        # Documents wait for the commit.
        assert not key.endswith("zarr.json") or branch == "main"
        assert (source / MOVED).exists()
        real_delete(self, key)

    monkeypatch.setattr(Txn, "put", put)
    monkeypatch.setattr(Environment, "sync", sync)
    monkeypatch.setattr(DirectorySource, "delete", delete)
    repo.import_from(source, consume=True, path="sea")
    assert seen == len(whole)
    assert values_of(repo, "sea") == whole


def test_what_is_not_taken_over_goes_too(repo, source):
    (source / "raw" / "c" / f"3.{'0a' * 16}.partial").write_bytes(b"half")
    (source / "deep" / "empty").mkdir()
    repo.import_from(source, consume=True)
    assert not source.exists()


def test_what_the_repository_had_goes_too(repo, source, whole):
    repo.import_from(source, path="sea")
    report = repo.import_from(source, path="sea", consume=True)
    assert report.commit is None
    assert report.consumed
    assert values_of(repo, "sea") == whole
    assert not source.exists()


def test_a_zip_file_goes_as_a_whole(repo, source, whole, tmp_path):
    archive = tmp_path / "sea.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for key, data in whole.items():
            file.writestr(key, data)
    report = repo.import_from(archive, consume=True)
    assert values_of(repo) == whole
    assert report.consumed
    assert not archive.exists()


# ── what is not deleted ──────────────────────────────────────────────────────────────────────────


def test_links_are_refused(repo, source, whole, tmp_path, monkeypatch):
    in_small_steps(monkeypatch)
    (source / "raw" / "c").rename(tmp_path / "elsewhere")
    (source / "raw" / "c").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(InvalidInputError, match="is a link"):
        repo.import_from(source, consume=True)
    assert files_of(tmp_path / "elsewhere").keys() == {str(number) for number in range(12)}
    assert values_of(repo) == {}


def test_something_else_at_the_path(repo, source, whole):
    session = repo.session("main")
    session.set("sea/zarr.json", b"{}")
    session.commit("there first")
    with pytest.raises(AlreadyExistsError):
        repo.import_from(source, consume=True, path="sea")
    assert files_of(source) == whole


def test_what_cannot_be_consumed(repo, tmp_path):
    (tmp_path / "a.nc").write_bytes(b"\x89HDF\r\n\x1a\n")
    store = repo.store("main")
    with pytest.raises(InvalidInputError, match="cannot be consumed"):
        repo.import_from(store, consume=True)


def test_a_chunk_that_is_written_after_it_was_read_stays(repo, source, monkeypatch):
    in_small_steps(monkeypatch)
    real = DirectorySource.mark

    def mark(self, record):
        (source / "raw" / "c" / "0").write_bytes(b"x" * 800)
        (source / "deep" / "coded" / "c" / "0" / "0").write_bytes(b"new")
        real(self, record)

    monkeypatch.setattr(DirectorySource, "mark", mark)
    with pytest.raises(ConflictError, match="was changed"):
        repo.import_from(source, consume=True)
    assert (source / "deep" / "coded" / "c" / "0" / "0").read_bytes() == b"new"
    assert values_of(repo) == {}
    monkeypatch.undo()
    # What the next run finds is taken, with what is not there any more.
    repo.import_from(source, consume=True)
    values = values_of(repo)
    assert (values["raw/c/0"], values["deep/coded/c/0/0"]) == (b"x" * 800, b"new")
    assert len(values) == 23


def test_what_appears_after_the_commit_stays(repo, source, whole, monkeypatch):
    real = DirectorySource.remove

    def remove(self):
        (source / "raw" / "c" / "99").write_bytes(b"new")
        real(self)

    monkeypatch.setattr(DirectorySource, "remove", remove)
    repo.import_from(source, consume=True)
    assert files_of(source) == {"raw/c/99": b"new"}
    assert values_of(repo) == whole


def test_nobody_else_imports_it_meanwhile(repo, source, tmp_path):
    def other(done: int, total: int, what: str) -> None:
        if what == "look" and not done:
            with vzarr.open(tmp_path / "other.vzarr") as another, pytest.raises(BusyError):
                another.import_from(source, consume=not consume)

    for consume in (False, True):
        repo.import_from(source, consume=consume, path=str(consume), progress=other)


def test_a_full_disk(repo, source, whole, monkeypatch):
    """Whatever write meets it, nothing is lost, and the next run ends it."""
    real = Environment.write
    for number in range(1, 100):
        count = 0

        def write(self, number=number, **options):
            nonlocal count
            count += 1
            if count >= number:
                raise FullError("no room: make room")
            return real(self, **options)

        with monkeypatch.context() as patch:
            in_small_steps(patch)
            patch.setattr(Environment, "write", write)
            try:
                repo.import_from(source, consume=True, path="sea")
            except FullError:
                assert "main" in repo.branches
            else:
                break
    assert number > 8
    assert values_of(repo, "sea") == whole
    assert not source.exists()
    assert list(repo.branches) == ["main"]


def test_a_file_that_cannot_be_deleted(repo, source, whole, monkeypatch):
    in_small_steps(monkeypatch)
    real = os.unlink

    def unlink(path, *args, **options):
        if str(path).endswith("raw/c/7"):
            raise PermissionError(13, "Permission denied")
        real(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(directories.os, "unlink", unlink)
        with pytest.raises(StorageError, match=r"cannot delete .*raw/c/7: Permission"):
            repo.import_from(source, consume=True, path="sea")
    consumed(repo, source, whole)


def test_a_source_that_cannot_be_written_is_imported_without(repo, source, whole, monkeypatch):
    def mark(self, record):
        raise StorageError("cannot write it: Read-only file system")

    with monkeypatch.context() as patch:
        in_small_steps(patch)
        patch.setattr(DirectorySource, "mark", mark)
        with pytest.raises(StorageError, match="Read-only"):
            repo.import_from(source, consume=True)
    assert files_of(source) == whole
    report = repo.import_from(source)
    assert report.resumed
    assert values_of(repo) == whole
    # The branch that held what was to be deleted is of no use any more.
    assert list(repo.branches) == ["main"]


# ── a source of which a part is gone ─────────────────────────────────────────────────────────────


def half_consumed(repo: vzarr.Repository, source: Path, **options: Any) -> None:
    """Let an import die when it has deleted eight chunks."""

    def work(_pipe: object) -> None:
        with pytest.MonkeyPatch.context() as patch:
            in_small_steps(patch)
            real, count = DirectorySource.delete, 0

            def delete(self, key):
                nonlocal count
                real(self, key)
                count += 1
                if count == 8:
                    os.kill(os.getpid(), signal.SIGKILL)

            patch.setattr(DirectorySource, "delete", delete)
            with vzarr.open(repo.path, "r+") as other:
                other.import_from(source, consume=True, path="sea", **options)

    Child(work).reap()
    assert (source / MOVED).exists()


def test_nobody_else_believes_it(repo, source, tmp_path):
    half_consumed(repo, source)
    match = "has been moved already, to 'sea' on branch 'main' of .*: run that one again"
    with vzarr.open(tmp_path / "other.vzarr") as other:
        for consume in (False, True):
            with pytest.raises(InvalidInputError, match=match):
                other.import_from(source, consume=consume, path="sea")
    for options in ({"path": "sea"}, {"path": "there", "consume": True}):
        with pytest.raises(InvalidInputError, match=match):
            repo.import_from(source, **options)


def test_it_survives_a_collection_of_garbage(repo, source, whole):
    half_consumed(repo, source)
    repo.gc(checkpoints_older_than=timedelta())
    assert unfinished(repo) == []
    consumed(repo, source, whole)


def test_it_survives_being_moved(repo, source, whole, tmp_path):
    half_consumed(repo, source)
    source.rename(tmp_path / "moved.zarr")
    repo.import_from(tmp_path / "moved.zarr", consume=True, path="sea")
    assert values_of(repo, "sea") == whole
    assert not (tmp_path / "moved.zarr").exists()
    assert list(repo.branches) == ["main"]


def test_a_file_that_lacks_the_rest_says_so(repo, source, tmp_path):
    copy = tmp_path / "copy.vzarr"
    repo.backup(copy)
    half_consumed(repo, source)
    before = files_of(source)
    with vzarr.open(copy) as other, pytest.raises(NotFoundError, match="open a backup that has"):
        other.import_from(source, consume=True, path="sea")
    assert files_of(source) == before


def test_a_commit_that_is_not_on_the_branch_any_more_does_not_count(repo, source, monkeypatch):
    def fail(self):
        raise StorageError("cannot delete it")

    first = repo.branches["main"]
    with monkeypatch.context() as patch, pytest.raises(StorageError):
        patch.setattr(DirectorySource, "remove", fail)
        repo.import_from(source, consume=True, path="sea")
    before = files_of(source)
    committed = repo.branches["main"]
    repo.branches.reset("main", first)
    with pytest.raises(NotFoundError, match="open a backup that has"):
        repo.import_from(source, consume=True, path="sea")
    assert files_of(source) == before
    repo.branches.reset("main", committed)
    report = repo.import_from(source, consume=True, path="sea")
    assert (report.commit, report.arrays, report.chunks) == (committed, 2, 18)
    assert not source.exists()


def test_what_is_left_and_is_another_thing_stays(repo, source, monkeypatch):
    def fail(self):
        raise StorageError("cannot delete it")

    with monkeypatch.context() as patch, pytest.raises(StorageError):
        patch.setattr(DirectorySource, "remove", fail)
        repo.import_from(source, consume=True, path="sea")
    (source / "raw" / "c" / "3").write_bytes(b"new")
    before = files_of(source)
    with pytest.raises(ConflictError, match=r"raw/c/3 of .* was changed"):
        repo.import_from(source, consume=True, path="sea")
    assert files_of(source) == before


def test_the_mark_says_where_the_rest_is(repo, source):
    half_consumed(repo, source)
    mark = json.loads((source / MOVED).read_text())
    assert (mark["file"], mark["branch"], mark["path"]) == (repo.path, "main", "sea")
    assert "run vzarr import --consume again" in mark["why"]
    (name,) = [name for name in repo.branches if name != "main"]
    assert name == f"importing/{mark['import'][:12]}"


# ── killed ───────────────────────────────────────────────────────────────────────────────────────


def _events(patch: Any, hit: Callable[[], None]) -> None:
    """Call a function before and after all that changes the file or the source."""

    def around(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            hit()
            result = real(*args, **options)
            hit()
            return result

        return call

    for owner, name in (
        (directories.os, "unlink"),
        (directories.os, "rmdir"),
        (directories.os, "replace"),
        (directories, "sync_directory"),
        (Environment, "sync"),
        (vzarr.Session, "checkpoint"),
        (vzarr.Session, "commit"),
        (importing.unfinished, "protect"),
        (importing.unfinished, "release"),
        (vzarr.Repository, "resume"),
    ):
        patch.setattr(owner, name, around(getattr(owner, name)))


def _import_and_die(path: str, source: Path, number: int, durability: str) -> int:
    """Import in a process that is killed at an event; give how many there were before the end."""

    def work(pipe):
        count = 0

        def hit() -> None:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

        with pytest.MonkeyPatch.context() as patch:
            in_small_steps(patch)
            with vzarr.open(path, "r+", durability=durability) as repo:
                _events(patch, hit)
                repo.import_from(source, consume=True, path="sea")
            return count

    child = Child(work)
    if child.pipe.poll(30):
        try:
            kind, value = child.pipe.recv()
        except EOFError:
            child.reap()
            return -1
        child.reap()
        assert kind == "result", value
        return value
    raise AssertionError("the child hangs")


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_killed_at_every_event(tmp_path, source, whole, durability):
    """Before and after each deletion, rename, flush, checkpoint and commit; once, and twice."""
    original = tmp_path / "original.zarr"
    source.rename(original)
    empty = tmp_path / "empty.vzarr"
    vzarr.open(empty).close()

    def lay_out() -> Path:
        shutil.rmtree(source, ignore_errors=True)
        shutil.copytree(original, source)
        file = tmp_path / "test.vzarr"
        shutil.copyfile(empty, file)
        return file

    file = lay_out()
    events = _import_and_die(str(file), source, -1, durability)
    assert events > 80
    step = 1 if "VZARR_TORTURE" in os.environ else 25
    for number in range(1, events + 1, step):
        file = lay_out()
        assert _import_and_die(str(file), source, number, durability) == -1
        # The next run is killed as well, and the third one comes to its end.
        if source.exists() and any(source.iterdir()):
            _import_and_die(str(file), source, number // 2 + 1, durability)
        with vzarr.open(file) as repo:
            # All is in one place or the other.
            held = {
                key: data
                for name in repo.branches
                for key, data in values_of(repo, "sea", name).items()
            }
            left = files_of(source) if source.exists() else {}
            assert {**held, **{k: v for k, v in left.items() if k in whole}} == whole, number
            if source.exists() and any(source.iterdir()):
                repo.import_from(source, consume=True, path="sea")
            assert values_of(repo, "sea") == whole, number
            assert not (source / MOVED).exists()
            assert list(repo.branches) == ["main"]
            assert repo.check("full").ok
