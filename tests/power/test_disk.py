"""The model of a disk allows what it should, and no more; the shim hears all that it knows."""

from __future__ import annotations

import mmap
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.power.campaign import all_crashes
from tests.power.disk import Crash, Disk, File, Kind, replay
from tests.power.recording import (
    Event,
    Recording,
    build_shim,
    is_heard,
    obstacle,
    parse_log,
    record,
)

needs_shim = pytest.mark.skipif(bool(obstacle()), reason=f"NO POWER LOSS IS TRIED: {obstacle()}")

CREATE = Event("c", inode=1, name="a.vzarr")
SYNC, SYNC_NAMES = Event("s", inode=1), Event("d")


def write(offset: int, data: bytes, *, synchronous: bool = False) -> Event:
    return Event("w", synchronous=synchronous, inode=1, offset=offset, data=data)


def outcomes(events: list[Event], kind: Kind, seeds: int = 60) -> set[bytes | None]:
    """Give all that a file may hold at the end; None where it is not there."""
    recording = Recording("test", tuple(events))
    crashes = [Crash(len(events), kind, seed) for seed in range(seeds)]
    return {disk.after_crash(crash).get("a.vzarr") for crash, disk in replay(recording, crashes)}


def page(letter: bytes) -> bytes:
    return letter * 4096


DURABLE = [CREATE, SYNC_NAMES, write(0, page(b"a") + page(b"b")), SYNC]


def test_what_is_synced_stays() -> None:
    for kind in ("prefix", "synced", "sectors", "pages", "sizes", "names"):
        assert outcomes(DURABLE, kind) == {page(b"a") + page(b"b")}


def test_pages_reach_the_disk_in_any_order() -> None:
    events = [*DURABLE, write(0, page(b"c")), write(4096, page(b"d"))]
    assert outcomes(events, "pages") == {
        x + y for x in map(page, (b"a", b"c")) for y in map(page, (b"b", b"d"))
    }
    assert outcomes(events, "only", 1) == {page(b"c") + page(b"b")}
    assert outcomes(events, "lost", 1) == {page(b"a") + page(b"d")}
    assert outcomes([*events, write(0, page(b"e"))], "late", 3) - outcomes(events, "late", 2) == {
        page(b"e") + page(b"b"),
        page(b"e") + page(b"d"),
    }


def test_a_page_is_torn_between_sectors_only() -> None:
    found = outcomes([*DURABLE, write(0, page(b"c"))], "sectors")
    assert len(found) > 30
    for data in found:
        assert data is not None
        sectors = [data[at : at + 512] for at in range(0, 4096, 512)]
        assert all(sector in (b"a" * 512, b"c" * 512) for sector in sectors)


def test_a_sector_has_the_writes_up_to_one_of_them() -> None:
    events = [*DURABLE, write(0, b"1"), write(1, b"2"), write(2, b"3")]
    assert {data and data[:3] for data in outcomes(events, "pages")} == {
        b"aaa",
        b"1aa",
        b"12a",
        b"123",
    }


def test_a_size_may_be_there_without_the_data_and_not_be_there_with_it() -> None:
    found = outcomes([*DURABLE, write(8192, page(b"c"))], "sizes")
    old = page(b"a") + page(b"b")
    assert {old, old + page(b"\0"), old + page(b"c")} <= found
    assert outcomes([*DURABLE, Event("a", inode=1, offset=10_000)], "sizes") == {
        old,
        old + bytes(10_000 - 8192),
    }
    assert outcomes([*DURABLE, Event("t", inode=1, offset=100)], "sizes") == {old, old[:100]}


def test_a_synchronous_write_is_durable_and_nothing_else_is() -> None:
    events = [*DURABLE, write(0, page(b"c")), write(512, b"d" * 10, synchronous=True)]
    expected = page(b"a")[:512] + b"d" * 10 + b"c" * 502 + page(b"a")[1024:] + page(b"b")
    assert outcomes(events, "synced") == {expected}
    for data in outcomes(events, "sectors"):
        assert data is not None
        assert data[512:522] == b"d" * 10


def test_names_need_a_sync_of_their_own() -> None:
    draft = Event("c", inode=1, name="draft")
    rename = Event("r", inode=1, name="draft", new_name="a.vzarr")
    events = [draft, write(0, b"x"), SYNC, rename]
    assert outcomes(events, "synced") == {None}
    assert outcomes(events, "names") == {None, b"x"}
    assert outcomes([*events, SYNC_NAMES], "names") == {b"x"}
    assert outcomes([*events, SYNC_NAMES, Event("u", inode=1, name="a.vzarr")], "names") == {
        None,
        b"x",
    }


def test_a_rename_over_a_file_leaves_one_of_both() -> None:
    new = Event("c", inode=2, name="draft")
    data = Event("w", inode=2, data=b"new")
    synced = Event("s", inode=2)
    rename = Event("r", inode=2, name="draft", new_name="a.vzarr")
    events = [CREATE, write(0, b"old"), SYNC, SYNC_NAMES, new, data, synced, rename]
    assert outcomes(events, "names") == {b"old", b"new"}
    # Without a sync of its data, the name may come before the bytes.
    assert b"" in outcomes([*events[:6], rename], "sectors")


def test_a_file_grows_by_writes_behind_its_end() -> None:
    file = File()
    file.write(10, b"x")
    assert bytes(file.seen) == bytes(10) + b"x"


def test_all_pages_and_moments_are_visited() -> None:
    events = [*DURABLE, write(0, page(b"c") + page(b"d")), SYNC, write(0, page(b"e"))]
    crashes = all_crashes(Recording("test", tuple(events)), random.Random(1), repeat=2)
    prefixes = {crash.position for crash in crashes if crash.kind == "prefix"}
    assert prefixes == set(range(len(events) + 1))
    lost = {(crash.position, crash.seed) for crash in crashes if crash.kind == "lost"}
    assert lost == {(3, 0), (3, 1), (5, 0), (5, 1), (7, 0)}


def test_a_writable_map_of_the_data_is_noticed() -> None:
    disk = Disk()
    disk.apply(CREATE)
    with pytest.raises(AssertionError, match="mapped writable"):
        disk.apply(Event("M", inode=1))


# ---- the shim ---------------------------------------------------------------------------------

CALLS = """
import ctypes, mmap, os, sys
os.chdir(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)

def check(result):
    assert result >= 0, os.strerror(ctypes.get_errno())

fd = os.open("a", os.O_RDWR | os.O_CREAT, 0o666)
os.write(fd, b"0123456789")
os.writev(fd, [b"abc", b"", b"defg"])
os.pwrite(fd, b"XY", 3)
os.pwritev(fd, [b"P", b"QR"], 12)
os.ftruncate(fd, 5000)
os.posix_fallocate(fd, 4000, 2000)
check(libc.fallocate(fd, 0, ctypes.c_long(0), ctypes.c_long(7000)))
os.fdatasync(fd)
os.lseek(fd, 100, os.SEEK_SET)
with open("b", "wb", buffering=0) as other:
    assert os.sendfile(other.fileno(), fd, 0, 20) == 20
    assert os.copy_file_range(fd, other.fileno(), 50, offset_src=0, offset_dst=30) == 50
    os.write(other.fileno(), b"behind")
os.fsync(fd)
os.write(fd, b"at 100")
with open("a", "ab", buffering=0) as appending:
    appending.write(b"appended")
with open("c", "wb") as file:
    file.write(b"gone")
with open("c", "wb") as file:
    file.write(b"c")
os.truncate("c", 3)
os.link("c", "d")
os.unlink("c")
os.rename("b", "e")
directory = os.open(".", os.O_RDONLY)
os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=directory)
os.rename("f", "g", src_dir_fd=directory, dst_dir_fd=directory)
synchronous = os.open("g", os.O_WRONLY | os.O_DSYNC)
os.write(synchronous, b"now")
os.fsync(directory)
"""


def built_shim(directory: Path) -> Path:
    shim = build_shim(directory)
    if not is_heard(shim):
        pytest.skip("NO POWER LOSS IS TRIED: LD_PRELOAD has no effect on this Python")
    return shim


def listen(script: str, tmp_path: Path) -> list[Event]:
    """Run a script under the shim, and give what was recorded."""
    directory = tmp_path / "files"
    directory.mkdir()
    shim = built_shim(tmp_path)
    environment = {
        **os.environ,
        "LD_PRELOAD": str(shim),
        "POWER_DIRECTORY": str(directory),
        "POWER_LOG": str(tmp_path / "log"),
    }
    command = [sys.executable, "-c", script, str(directory)]
    subprocess.run(command, env=environment, check=True)
    return parse_log((tmp_path / "log").read_bytes(), f"{directory}/")


@needs_shim
def test_the_shim_hears_every_call(tmp_path: Path) -> None:
    events = listen(CALLS, tmp_path)
    disk = Disk()
    for event in events:
        disk.apply(event)
    there = {path.name: path.read_bytes() for path in (tmp_path / "files").iterdir()}
    assert {name: bytes(file.seen) for name, file in disk.names.items()} == there
    assert set(there) == {"a", "d", "e", "g"}
    assert [event.kind for event in events].count("s") == 2
    assert [event.data for event in events if event.synchronous] == [b"now"]
    # The directory was synced after all that has to do with names.
    assert events[-1].kind == "d"
    assert not disk.renames


@needs_shim
def test_the_shim_hears_of_a_writable_map(tmp_path: Path) -> None:
    script = (
        "import mmap, os, sys; fd = os.open(sys.argv[1] + '/a', os.O_RDWR | os.O_CREAT, 0o666);"
        f"os.ftruncate(fd, {mmap.PAGESIZE}); mmap.mmap(fd, 0)"
    )
    assert "M" in [event.kind for event in listen(script, tmp_path)]


@needs_shim
def test_strace_sees_the_same_calls(tmp_path: Path) -> None:
    """What the shim stands before is all that goes to the system."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("NOT COMPARED: there is no strace")
    directory, log = tmp_path / "files", tmp_path / "strace.log"
    directory.mkdir()
    if subprocess.run([strace, "-o", log, "true"], capture_output=True, check=False).returncode:
        pytest.skip("NOT COMPARED: strace may not trace here")
    calls = "write,writev,pwrite64,pwritev,pwritev2,fdatasync,fsync,msync,sync_file_range"
    others = "ftruncate,truncate,fallocate,copy_file_range,sendfile,splice,io_uring_enter"
    under = [strace, "-f", "-y", "-o", str(log), "-e", f"trace={calls},{others}"]
    recording = record("creation", built_shim(tmp_path), directory, under=under)
    pattern = re.compile(rf"\b(\w+)\(\d+<{re.escape(str(directory))}(?:/[^>]*)?>.* = \d")
    traced = [match[1] for match in map(pattern.search, log.read_text().splitlines()) if match]
    kinds = {"writev": "w", "pwrite64": "w", "fdatasync": "s", "fsync": "s", "fallocate": "a"}
    recorded = [event.kind for event in recording.events if event.kind in "wsdatS"]
    # A directory is synced as files are.
    assert [kinds[call] for call in traced] == ["s" if kind == "d" else kind for kind in recorded]
