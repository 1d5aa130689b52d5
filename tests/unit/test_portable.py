"""What systems do differently, on this one; and what is done for Windows, where it can be told."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

import vzarr
from tests.support import posix
from vzarr import memorymap, portable
from vzarr.lmdbfile import probe


@pytest.fixture
def place(tmp_path: Path) -> Path:
    target = tmp_path / "data"
    target.write_bytes(bytes(range(100)))
    return target


def opened(path: Path) -> int:
    return portable.open_file(str(path), os.O_RDWR | portable.CLOEXEC)


# ---- locks on whole files -------------------------------------------------------------------


def test_a_lock_keeps_others_out_until_it_is_given_back(place):
    one, other = opened(place), opened(place)
    try:
        assert portable.try_lock_file(one)
        assert not portable.try_lock_file(other)
        assert not portable.try_lock_file(other, shared=True)
        portable.unlock_file(one)
        assert portable.try_lock_file(other)
    finally:
        os.close(one)
        os.close(other)


def test_shared_locks_go_together(place):
    one, other, third = opened(place), opened(place), opened(place)
    try:
        assert portable.try_lock_file(one, shared=True)
        assert portable.try_lock_file(other, shared=True)
        assert not portable.try_lock_file(third)
    finally:
        for descriptor in (one, other, third):
            os.close(descriptor)


def test_a_lock_ends_with_its_descriptor_and_nothing_is_lost(place):
    one = opened(place)
    assert portable.try_lock_file(one)
    os.close(one)
    other = opened(place)
    try:
        assert portable.try_lock_file(other)
        # What is locked is nothing that anybody reads.
        assert place.read_bytes() == bytes(range(100))
    finally:
        os.close(other)


# ---- files ----------------------------------------------------------------------------------


def test_reading_and_writing_in_places(place):
    descriptor = opened(place)
    try:
        assert portable.pread(descriptor, 5, 10) == bytes(range(10, 15))
        assert portable.pread(descriptor, 50, 90) == bytes(range(90, 100))
        assert portable.pread(descriptor, 5, 1000) == b""
        assert portable.pread(descriptor, 0, 5) == b""
        assert portable.pwrite(descriptor, b"xyz", 20) == 3
        assert portable.pread(descriptor, 5, 19) == bytes([19, *b"xyz", 23])
        buffer = bytearray(8)
        os.lseek(descriptor, 96, os.SEEK_SET)
        assert portable.read_into(descriptor, memoryview(buffer)) == 4
        assert bytes(buffer) == bytes([96, 97, 98, 99, 0, 0, 0, 0])
        assert portable.read_into(descriptor, memoryview(buffer)) == 0
    finally:
        os.close(descriptor)


def test_an_open_file_can_be_renamed_and_deleted(place):
    descriptor = opened(place)
    try:
        aside = place.with_name("aside")
        os.replace(place, aside)
        assert portable.pread(descriptor, 1, 7) == b"\7"
        os.unlink(aside)
    finally:
        os.close(descriptor)
    assert os.listdir(place.parent) == []


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (os.O_RDWR | os.O_CREAT | os.O_EXCL, FileExistsError),
        (os.O_RDONLY, FileNotFoundError),
    ],
)
def test_what_cannot_be_opened_says_why(place, flags, error):
    path = str(place) if flags & os.O_CREAT else str(place) + "-not"
    with pytest.raises(error) as caught:
        portable.open_file(path, flags | portable.CLOEXEC)
    assert caught.value.filename == path


def test_a_directory_can_be_opened_and_told(tmp_path):
    descriptor = portable.open_file(
        str(tmp_path), os.O_RDONLY | portable.DIRECTORY | portable.CLOEXEC
    )
    try:
        assert os.path.samestat(os.fstat(descriptor), os.stat(tmp_path))
    finally:
        os.close(descriptor)


@posix
def test_a_link_is_not_followed(place):
    link = place.with_name("link")
    link.symlink_to(place)
    with pytest.raises(OSError, match="symbolic") as caught:
        portable.open_file(str(link), os.O_RDONLY | portable.NO_LINK)
    assert caught.value.errno == errno.ELOOP


def test_allocating_never_shortens(place):
    descriptor = opened(place)
    try:
        portable.allocate(descriptor, 40, 10)
        assert place.read_bytes() == bytes(range(100))
        portable.allocate(descriptor, 199, 1)
        assert place.read_bytes() == bytes(range(100)) + bytes(100)
    finally:
        os.close(descriptor)


def test_flushing(place):
    descriptor = opened(place)
    try:
        portable.fsync(descriptor)
        portable.flush_data(descriptor)
    finally:
        os.close(descriptor)
    portable.sync_path(str(place))
    portable.sync_directory(str(place.parent))
    with pytest.raises(OSError, match=r"."):
        portable.fsync(descriptor)


def test_room_and_limits(tmp_path):
    assert portable.free_bytes(str(tmp_path)) > 0
    names, path = portable.name_limits(str(tmp_path))
    assert 100 < names < path
    assert not portable.is_read_only(str(tmp_path))
    assert not portable.is_remote(str(tmp_path))


# What names are none, whatever they look like: devices, streams, and those that are cut.
REFUSED = ["a:b", "C:", "a\\b", "..\\x", "a?", "a*", "<", "|", '"', "a\x1f", "a.", "a ", "NUL"]
REFUSED += ["con", "Com1", "lpt9.zarr", "aux .txt"]
GIVEN = [
    "a",
    "c",
    "0",
    "zarr.json",
    ".zattrs",
    "console",
    "com",
    "com10x",
    "a.b c",
    "ä",
    "a;b",
    "nul1",
]


@pytest.mark.parametrize("name", REFUSED)
def test_names_that_windows_refuses(name):
    assert portable.NOT_ON_WINDOWS.search(name)
    assert portable.is_file_name(name) == (os.name != "nt")


@pytest.mark.parametrize("name", GIVEN)
def test_names_that_windows_takes(name):
    assert portable.NOT_ON_WINDOWS.search(name) is None
    assert portable.is_file_name(name)


# ---- processes ------------------------------------------------------------------------------


def test_a_process_is_known_while_it_lives():
    begun = portable.process_started(os.getpid())
    assert begun is not None
    assert begun == portable.process_started(os.getpid())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        other = portable.process_started(child.pid)
        assert other is not None
        child.kill()
        child.wait()
        assert portable.process_started(child.pid) is None
    if sys.platform in ("linux", "win32"):
        assert 0 < begun < other


@posix
def test_a_function_is_called_in_a_child_alone():
    from tests.processes import Child

    called: list[int] = []
    portable.at_fork(after_in_child=lambda: called.append(os.getpid()))
    assert Child(lambda _: called[-1] == os.getpid()).result() is True
    assert called == []


def test_linux_calls_are_those_of_linux():
    assert portable.linux_call("no_such_function") is None
    assert (portable.linux_call("renameat2") is not None) == (sys.platform == "linux")


# ---- maps that make files as long as they are -----------------------------------------------


@pytest.fixture
def short_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, but for LMDB itself, which leaves files as they are here."""
    monkeypatch.setattr(memorymap, "MAP_IS_FILE", True)
    monkeypatch.setattr("vzarr.access.MAP_IS_FILE", True)
    monkeypatch.setattr(memorymap, "_SHORT_MAP_BYTES", 1 << 20)


@pytest.mark.usefixtures("short_maps")
def test_a_file_outgrows_its_map_and_ends_with_its_last_page(path):
    data = np.random.default_rng(1).integers(0, 255, (6, 1 << 20), dtype="u1")
    with vzarr.open(path) as repo, vzarr.open(path, mode="r") as reader:
        assert repo._environment.info().map_bytes == 1 << 20
        for number, part in enumerate(data):
            with repo.transaction("main", f"part {number}") as store:
                array = zarr.create_array(
                    store, name=f"a{number}", shape=part.shape, dtype="u1", compressors=None
                )
                array[:] = part
        assert repo._environment.info().map_bytes > 6 << 20
        seen = zarr.open_array(reader.store("main"), path="a5", mode="r")
        assert np.array_equal(seen[:], data[5])
        # What LMDB reserves there.
        os.truncate(path, 32 << 20)
    assert os.path.getsize(path) == probe(str(path)).required_bytes < 8 << 20
    with vzarr.open(path, mode="r") as repo:
        assert repo._environment.info().map_bytes >= os.path.getsize(path)
        assert np.array_equal(zarr.open_array(repo.store("main"), path="a0", mode="r")[:], data[0])


@pytest.mark.usefixtures("short_maps")
def test_nothing_is_cut_off_while_somebody_writes(path):
    vzarr.open(path).close()
    length = os.path.getsize(path)
    other = opened(path)
    try:
        repo = vzarr.open(path)
        assert portable.try_lock_file(other)
        os.truncate(path, 32 << 20)
        repo.close()
        assert os.path.getsize(path) == 32 << 20
    finally:
        os.close(other)
    vzarr.open(path).close()
    assert os.path.getsize(path) == length


@posix
@pytest.mark.parametrize("pid", [2**31, 2**63, 2**64 - 1])
def test_a_number_that_no_process_can_have(pid):
    """A file may name it."""
    assert portable.process_started(pid) is None
