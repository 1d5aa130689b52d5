"""What faults at every system call have found once, each by itself and without strace."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

import vzarr
from tests.crash.scenarios import World, grows_and_shrinks, left_by_the_dead, plain
from vzarr import access, backup, draft, environment, presence, refs
from vzarr.errors import BusyError, StorageError


class Once:
    """Stands in for a function, and fails the first time that it is called."""

    def __init__(self, function: Any, error: Exception) -> None:
        self._function = function
        self._error: Exception | None = error

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._function(*arguments, **options)


def test_commit_without_a_lock_for_it(repo: vzarr.Repository, monkeypatch: pytest.MonkeyPatch):
    """What fails in a commit fails before the branch has moved, and the edits are kept."""
    session = repo.session("main")
    session.set("key", b"value")
    head = repo.branches["main"]
    monkeypatch.setattr(presence, "_lock", Once(presence._lock, StorageError("no locks")))
    with pytest.raises(StorageError, match="no locks"):
        session.commit("one")
    assert repo.branches["main"] == head
    session.commit("one")
    assert repo.session("main").get("key") == b"value"


def test_commit_and_a_look_that_fails(repo: vzarr.Repository, monkeypatch: pytest.MonkeyPatch):
    """A commit that is made does not raise, because its file cannot be looked at after it."""
    session = repo.session("main")
    session.set("key", b"value")
    complete = access.Access.complete_file

    def complete_badly(opened: access.Access) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(access.os, "fstat", Once(os.fstat, OSError(errno.EIO, "broken")))
            complete(opened)

    monkeypatch.setattr(access.Access, "complete_file", complete_badly)
    session.commit("one")
    assert repo.log("main", limit=1)[0].message == "one"


def test_commit_reads_nothing_after_its_txn(
    repo: vzarr.Repository, monkeypatch: pytest.MonkeyPatch
):
    """What fails then would leave a session that does not know that its edits are committed."""
    session = repo.session("main")
    session.set("key", b"value")
    move = refs.move_branch

    def broken(*_: Any, **__: Any) -> None:
        raise StorageError("broken")

    with monkeypatch.context() as patch:

        def move_and_break(*arguments: Any, **options: Any) -> None:
            move(*arguments, **options)
            patch.setattr(access.Access, "begin", broken)

        patch.setattr(refs, "move_branch", move_and_break)
        session.commit("one")
    assert not session.has_changes
    session.set("key", b"another")
    session.commit("two")


def test_resume_that_failed_is_made_again(path: Path, monkeypatch: pytest.MonkeyPatch):
    """Who tries again at once, with the error still at hand, does not find the session in use."""
    left_by_the_dead(os.fspath(path))
    with vzarr.open(path) as repo:
        (dead,) = [each for each in repo.sessions() if each.checkpointed]
        monkeypatch.setattr(presence, "_lock", Once(presence._lock, StorageError("no locks")))
        with pytest.raises(StorageError, match="no locks") as failed:
            repo.resume(dead.id)
        repo.resume(dead.id).commit("resumed")
        assert failed.value.__traceback__ is not None
        repo.gc()


def test_file_that_lacks_pages_that_were_freed(path: Path, monkeypatch: pytest.MonkeyPatch):
    """A writer that is killed before it adds them leaves a file that is no reason for alarm."""
    plain(os.fspath(path))
    world = World(os.fspath(path))
    with world.open() as repo:
        with monkeypatch.context() as patch:
            patch.setattr(access, "extend", Once(access.extend, StorageError("killed")))
            grows_and_shrinks(world)
        size = path.stat().st_size
        assert repo.check("full").ok
        assert path.stat().st_size > size


def test_creation_never_leaves_an_empty_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The name is taken together with the content, where the system can do that."""
    seen = []

    def look(directory: str) -> None:
        seen.append(os.path.getsize(tmp_path / "new.vzarr"))

    monkeypatch.setattr(draft, "sync_directory", look)
    monkeypatch.setattr(draft.os, "replace", None)
    vzarr.open(tmp_path / "new.vzarr", "w-").close()
    assert seen[0] > 0


def test_creation_where_a_rename_may_replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Elsewhere an empty file takes the name first, so that nothing is overwritten."""
    monkeypatch.setattr(draft, "_rename_in_one_step", lambda path, target, flag: False)
    vzarr.open(tmp_path / "new.vzarr", "w-").close()
    with pytest.raises(vzarr.AlreadyExistsError):
        vzarr.open(tmp_path / "new.vzarr", "w-")
    assert os.listdir(tmp_path) == ["new.vzarr"] or "new.vzarr-lock" in os.listdir(tmp_path)


def test_backup_over_a_file_in_use(repo: vzarr.Repository, tmp_path: Path, monkeypatch: Any):
    """What is busy is called so, although a ``TimeoutError`` is an ``OSError`` as well."""
    repo.backup(tmp_path / "copy.vzarr")

    def busy(*_: Any, **__: Any) -> None:
        raise BusyError("in use")

    monkeypatch.setattr(environment.Environment, "overwrite", busy)
    assert backup.Environment is environment.Environment
    with pytest.raises(BusyError, match="in use"):
        repo.backup(tmp_path / "copy.vzarr", overwrite=True)


def test_draft_that_cannot_be_looked_at(
    repo: vzarr.Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nothing of it is left behind."""
    monkeypatch.setattr(draft, "_is_at", Once(draft._is_at, OSError(errno.EIO, "broken")))
    with pytest.raises(StorageError, match="broken"):
        repo.backup(tmp_path / "copy.vzarr")
    assert not [name for name in os.listdir(tmp_path) if name.startswith((".vzarr", "copy"))]
