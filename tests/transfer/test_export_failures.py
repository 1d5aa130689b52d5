"""Exports that fail leave nothing: killed, interrupted, on full disks, of damaged files."""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

import vzarr
from tests.limits.conftest import Disk, disk  # noqa: F401 - a fixture
from tests.processes import Child
from tests.transfer.exports import files, left_in
from vzarr import exporting, outlets

NAMES = ("out.zarr", "out.zip", "out.car")
COUNT, SIZE = 40, 300_000


@pytest.fixture
def values(repo) -> dict[str, bytes]:
    """Twelve megabytes, so that there are several batches."""
    found = {f"a/{number}": os.urandom(SIZE) for number in range(COUNT)} | {".zgroup": b"{}"}
    with repo.transaction() as store:
        for key, data in found.items():
            store.session.set(key, data)
    return found


def drafts(directory: Path) -> list[str]:
    return [name for name in os.listdir(directory) if name.startswith(".vzarr-")]


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_in_the_middle_the_target_is_as_before(repo, path, values, tmp_path, overwrite):
    """With threads that write; the crash scenarios kill at each system call of a small export."""
    target = tmp_path / "out.zarr"
    if overwrite:
        with repo.transaction("main", "another") as store:
            store.session.set("other/.zgroup", b"{}")
        repo.export_to(target, path="other")
    before = files(target)
    repo.close()

    def work(pipe: Connection) -> None:
        written = outlets._write_file
        left = iter(range(COUNT // 2))

        def write(name: str, data: bytes) -> None:
            if next(left, None) is None:
                pipe.send("in the middle")
                signal.pause()
            written(name, data)

        outlets._write_file = write
        with vzarr.open(path, "r") as again:
            again.export_to(target, overwrite=overwrite)

    child = Child(work)
    assert child.receive() == "in the middle"
    child.kill()
    assert files(target) == before
    (draft,) = drafts(tmp_path)
    assert files(tmp_path / draft)
    with vzarr.open(path, "r") as again:
        again.export_to(target, overwrite=overwrite)
    found = {key: value for key, value in files(target).items() if value is not None}
    assert found == values | ({"other/.zgroup": b"{}"} if overwrite else {})
    assert drafts(tmp_path) == []


def test_a_draft_that_is_being_written_is_not_taken_for_a_dead_one(repo, values, tmp_path):
    begun, go_on = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        begun.set()
        assert go_on.wait(30)

    first = threading.Thread(
        target=repo.export_to, args=[tmp_path / "out.zarr"], kwargs={"progress": wait}
    )
    first.start()
    assert begun.wait(30)
    try:
        with pytest.raises(vzarr.BusyError, match="is being written by another"):
            repo.export_to(tmp_path / "out.zarr")
    finally:
        go_on.set()
        first.join()
    assert len(files(tmp_path / "out.zarr")) == COUNT + 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("raised", [KeyboardInterrupt, RuntimeError])
def test_what_the_progress_raises_ends_it(repo, values, tmp_path, name, raised):
    def stop(done: int, total: int, what: str) -> None:
        if what == "flush":
            raise raised

    with pytest.raises(raised):
        repo.export_to(tmp_path / name, progress=stop)
    assert left_in(tmp_path) == set()


@pytest.mark.parametrize("name", NAMES)
def test_no_room_is_said_before_anything_is_written(repo, values, disk, name):  # noqa: F811
    disk.fill(leave=COUNT * SIZE - 4096)
    with pytest.raises(vzarr.FullError, match=r"takes some [\d,]+ bytes.*make room"):
        repo.export_to(disk.where / name)
    assert os.listdir(disk.where) == ["ballast"]


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_fills_up_meanwhile(repo, values, disk, monkeypatch, name):  # noqa: F811
    # Others take the room after it was looked at.
    room = exporting._require_room

    def look(*arguments: object) -> None:
        room(*arguments)
        disk.fill(leave=COUNT * SIZE // 2)

    monkeypatch.setattr(exporting, "_require_room", look)
    with pytest.raises(vzarr.FullError, match="make room"):
        repo.export_to(disk.where / name)
    assert os.listdir(disk.where) == ["ballast"]
    disk.make_room()
    monkeypatch.undo()
    repo.export_to(disk.where / name)
    assert os.listdir(disk.where) == [name]


def test_a_directory_that_may_not_be_written(repo, values, disk):  # noqa: F811
    disk.remount("ro")
    for name in NAMES:
        with pytest.raises(vzarr.StorageError, match="Read-only file system"):
            repo.export_to(disk.where / name)
    disk.remount("rw")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verify", ["always", "never"])
def test_a_damaged_chunk_is_found_and_nothing_left(tmp_path, name, verify):
    path = tmp_path / "damaged.vzarr"
    needle = b"to be damaged" * 1000
    with vzarr.open(path) as repo, repo.transaction() as store:
        for number in range(10):
            store.session.set(f"a/{number}", bytes([number]) * SIZE)
        store.session.set("a/x", needle)
    data = bytearray(path.read_bytes())
    data[data.index(needle[:100]) + 50] ^= 1
    path.write_bytes(data)
    refused = pytest.raises(vzarr.CorruptError, match="do not match its digest")
    with vzarr.open(path, "r", verify=verify) as repo, refused:
        repo.export_to(tmp_path / name)
    assert set(os.listdir(tmp_path)) <= {"damaged.vzarr", "damaged.vzarr-lock"}


def test_others_commit_and_collect_garbage_meanwhile(repo, values, tmp_path):
    """The session of the export keeps its commit, also from a gc of its own process."""

    def disturb(done: int, total: int, what: str) -> None:
        if done == 0 and what == "write":
            with repo.transaction("main", "clear") as store:
                store.session.delete_below("")
            repo.branches.reset("main", repo.log("main")[-1].id)
            repo.expire(keep_last=0)
            repo.gc()

    repo.export_to(tmp_path / "out.zarr", progress=disturb)
    found = {k: v for k, v in files(tmp_path / "out.zarr").items() if v is not None}
    assert found == values
