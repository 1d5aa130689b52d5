"""Media that cannot be written, and what others do to a file that is open."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import vzarr
from tests.limits.conftest import Disk
from tests.processes import Child
from tests.support import assert_sound
from vzarr.check import check_file


def make(path: Path, value: bytes = b"1") -> None:
    with vzarr.open(path) as repo, repo.transaction("main", "fill") as store:
        store.session.set("a", value)


def read(repo: vzarr.Repository) -> bytes:
    return bytes(repo.session("main").get("a"))


@pytest.mark.parametrize("lock_file", [True, False])
def test_a_disk_that_is_mounted_for_reading(disk: Disk, lock_file: bool) -> None:
    path = disk.where / "test.vzarr"
    make(path)
    if not lock_file:
        os.unlink(f"{path}-lock")
    before = sorted(os.listdir(disk.where))
    disk.remount("ro")
    with vzarr.open(path, "r") as repo:
        assert read(repo) == b"1"
        assert repo.check("full").ok
        with pytest.raises(vzarr.ReadOnlyError), repo.transaction() as store:
            store.session.set("a", b"2")
    with pytest.raises(vzarr.StorageError, match=r"[Rr]ead-only"):
        vzarr.open(path, "r+")
    with pytest.raises(vzarr.StorageError, match=r"[Rr]ead-only"):
        vzarr.open(disk.where / "new.vzarr")
    assert check_file(str(path), "full").ok
    assert sorted(os.listdir(disk.where)) == before
    disk.remount("rw")
    make(path, b"2")
    assert_sound(path)


def test_a_file_that_is_deleted_while_it_is_open(path: Path) -> None:
    make(path)
    with vzarr.open(path) as repo:
        session = repo.session("main")
        session.set("a", b"2")
        os.unlink(path)
        with pytest.raises(vzarr.StorageError, match="deleted or moved"):
            session.commit("into nothing")
        with pytest.raises(vzarr.StorageError, match="deleted or moved"), repo.transaction() as s:
            s.session.set("a", b"3")
        session.discard()


def test_a_file_that_is_moved_while_it_is_open(path: Path) -> None:
    make(path)
    moved = path.with_name("moved.vzarr")
    with vzarr.open(path) as repo:
        session = repo.session("main")
        session.set("a", b"2")
        os.rename(path, moved)
        with pytest.raises(vzarr.StorageError, match="deleted or moved"):
            session.commit("into nothing")
        os.rename(moved, path)
        # It is back, and nothing is lost.
        session.commit("edit")
    with vzarr.open(path) as repo:
        assert read(repo) == b"2"


def test_a_file_that_is_replaced_while_it_is_open(path: Path, tmp_path: Path) -> None:
    make(path)
    other = tmp_path / "other.vzarr"
    make(other, b"of another file")
    with vzarr.open(path) as repo:
        session = repo.session("main")
        session.set("a", b"2")
        os.replace(other, path)
        with pytest.raises(vzarr.StorageError, match="replaced"):
            session.commit("into nothing")
        with pytest.raises(vzarr.StorageError, match="replaced"):
            vzarr.open(path)
        session.discard()
    with vzarr.open(path) as repo:
        assert read(repo) == b"of another file"


def test_a_directory_that_is_renamed(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    make(tmp_path / "old" / "test.vzarr")
    with vzarr.open(tmp_path / "old" / "test.vzarr") as repo:
        os.rename(tmp_path / "old", tmp_path / "new")
        with pytest.raises(vzarr.StorageError, match="deleted or moved"), repo.transaction() as s:
            s.session.set("a", b"2")
        assert read(repo) == b"1"
    with vzarr.open(tmp_path / "new" / "test.vzarr") as repo:
        assert read(repo) == b"1"
    assert_sound(tmp_path / "new" / "test.vzarr")


def test_a_link_that_is_set_to_another_file(tmp_path: Path) -> None:
    """Who has it open goes on with the file that the link led to; who opens it gets the other."""
    one, two, link = (tmp_path / name for name in ("one.vzarr", "two.vzarr", "link.vzarr"))
    make(one, b"one")
    make(two, b"two")
    link.symlink_to(one)
    with vzarr.open(link) as repo:
        link.unlink()
        link.symlink_to(two)
        with repo.transaction() as store:
            store.session.set("a", b"one more")
        with vzarr.open(link) as other:
            assert read(other) == b"two"
        assert read(repo) == b"one more"
    with vzarr.open(one) as repo:
        assert read(repo) == b"one more"
    assert_sound(one)
    assert_sound(two)


def test_a_lock_file_that_is_deleted_while_nobody_uses_it(path: Path) -> None:
    make(path)
    os.unlink(f"{path}-lock")
    make(path, b"2")


def test_a_lock_file_that_is_deleted_while_it_is_used(path: Path) -> None:
    """Two processes then have two lock files; writers still come one after the other."""
    make(path)
    with vzarr.open(path) as repo:
        os.unlink(f"{path}-lock")

        def work(pipe) -> int:
            with vzarr.open(path) as theirs:
                for number in range(30):
                    theirs.run(lambda store, n=number: store.session.set(f"theirs{n}", b"1"))
            return 30

        child = Child(work)
        for number in range(30):
            repo.run(lambda store, n=number: store.session.set(f"ours{n}", b"1"))
        assert child.result() == 30
        session = repo.session("main")
        keys = {*session.keys("")}
        assert keys == {"a"} | {f"{who}{n}" for who in ("ours", "theirs") for n in range(30)}


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, bytes(70_000), b"\xff" * 70_000])
def test_a_lock_file_of_garbage(path: Path, content: bytes) -> None:
    """LMDB makes it anew when nobody uses the file."""
    make(path)
    Path(f"{path}-lock").write_bytes(content)
    make(path, b"2")
    with vzarr.open(path) as repo:
        assert read(repo) == b"2"


def test_a_directory_in_place_of_the_lock_file(path: Path) -> None:
    make(path)
    os.unlink(f"{path}-lock")
    os.mkdir(f"{path}-lock")
    for mode in ("r", "r+"):
        with pytest.raises(vzarr.StorageError, match=r"-lock|directory"):
            vzarr.open(path, mode)
    os.rmdir(f"{path}-lock")


def test_a_copy_made_while_the_file_is_written(path: Path, tmp_path: Path) -> None:
    """It is right, or says that it is not; a backup is always right."""
    make(path, os.urandom(1 << 20))
    with vzarr.open(path) as repo:

        def work(pipe) -> None:
            with vzarr.open(path) as theirs:
                number = 0
                while not pipe.poll():
                    number += 1
                    with theirs.transaction("main", str(number)) as store:
                        store.session.set("a", os.urandom(100_000))
                        store.session.set(f"b{number}", os.urandom(5_000))

        child = Child(work)
        try:
            for number in range(4):
                copy = tmp_path / f"copy{number}.vzarr"
                shutil.copyfile(path, copy)
                report = check_file(str(copy), "full")
                if report.ok:
                    with vzarr.open(copy) as other:
                        assert other.log()
                backup = tmp_path / f"backup{number}.vzarr"
                repo.backup(backup)
                assert check_file(str(backup), "full").ok
                os.unlink(copy)
                os.unlink(backup)
        finally:
            child.pipe.send("stop")
            child.result()


def test_a_reader_notices_that_the_lock_file_was_deleted(path: Path) -> None:
    """It would be unknown to writers, who use the pages that it reads again."""
    make(path)
    with vzarr.open(path, "r") as repo:
        assert read(repo) == b"1"
        os.unlink(f"{path}-lock")

        def work(_) -> None:
            with vzarr.open(path) as theirs:
                for number in range(20):
                    with theirs.transaction() as store:
                        store.session.set("a", str(number).encode())

        Child(work).result()
        assert read(repo) == b"19"
        assert repo._environment.info().readers >= 1
        with repo._environment.read(), repo._environment.read():
            os.unlink(f"{path}-lock")
            with repo._environment.read() as inner:
                # Inside of others it goes on as it is; the map cannot be changed there.
                assert inner.get("meta", b"format")
        assert read(repo) == b"19"
        assert os.path.exists(f"{path}-lock")
