"""What a disk may hold after the power failed: a model of files, names, and what syncs promise.

Until it is synced, a write is in the page cache, from where the system may have written any of its
sectors in any order. So every sector is on disk as it was at the last sync, or as any of the writes
since have left it; each on its own. What is assumed:

* A sector of 512 bytes is written whole or not at all, and bytes that were written stay.
* ``fdatasync`` and ``fsync`` return when all earlier writes to the file, and its size, are on disk.
  A write to a descriptor with O_DSYNC returns when it is there itself. Nothing else syncs: not
  close, not rename, not ``sync_file_range``; a sync of a file does not sync its name.
* A file's size may be on disk before or after the data. What was never written reads as zeros.
* A change of names (create, rename, unlink) is atomic, and is on disk by itself or once the
  directory is synced; in any order.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from tests.power.recording import Event, Recording

SECTOR_BYTES = 512
# What the system writes back at once, if it does not tear it.
PAGE_BYTES = 4096

Kind = Literal[
    "prefix", "synced", "lost", "only", "late", "torn", "pages", "sectors", "sizes", "names"
]
KINDS: dict[Kind, str] = {
    "prefix": "all calls up to one, in order",
    "synced": "only what was synced",
    "lost": "all but one page",
    "only": "one page alone",
    "late": "the last pages without the first",
    "torn": "one page torn at 512 bytes",
    "pages": "random pages",
    "sectors": "random sectors",
    "sizes": "sizes without data, or data without sizes",
    "names": "random changes of names",
}
INDEXED: frozenset[Kind] = frozenset({"lost", "only", "late", "torn"})
"""Kinds of which there is one state for each page that is not synced."""


@dataclass(frozen=True, slots=True)
class Crash:
    """A crash state: after so many events of a recording, with this choice of what is on disk."""

    position: int
    kind: Kind
    seed: int


@dataclass(frozen=True, slots=True)
class Change:
    """A write within one page, or a new size (without data), that is not synced yet."""

    offset: int
    data: bytes
    size: int


class File:
    """A file: what is on disk for sure, what programs see, and the changes between both."""

    def __init__(self) -> None:
        self.durable = b""
        self.seen = bytearray()
        self.pending: list[Change] = []

    def write(self, offset: int, data: bytes) -> None:
        self._grow(offset)
        self.seen[offset : offset + len(data)] = data
        for start, part in _split(offset, data, PAGE_BYTES):
            self.pending.append(Change(start, part, len(self.seen)))

    def resize(self, size: int) -> None:
        del self.seen[size:]
        self._grow(size)
        self.pending.append(Change(size, b"", size))

    def allocate(self, size: int) -> None:
        if size > len(self.seen):
            self.resize(size)

    def _grow(self, size: int) -> None:
        self.seen.extend(bytes(max(0, size - len(self.seen))))

    def sync(self) -> None:
        self.durable = bytes(self.seen)
        self.pending = []

    def sync_range(self, start: int, end: int) -> None:
        """Put some sectors on disk, as O_DSYNC does, and no others."""
        start -= start % SECTOR_BYTES
        end = min(end + -end % SECTOR_BYTES, len(self.seen))
        durable = bytearray(self.durable)
        durable.extend(bytes(max(0, len(self.seen) - len(durable))))
        durable[start:end] = self.seen[start:end]
        self.durable = bytes(durable)
        kept: list[Change] = []
        for change in self.pending:
            if not change.data:
                continue
            for offset, part in _split(change.offset, change.data, SECTOR_BYTES):
                if not start <= offset < end:
                    kept.append(Change(offset, part, len(self.seen)))
        self.pending = kept

    def after_crash(
        self, keep: Callable[[Change, int], bool], choose_size: Callable[[list[int]], int]
    ) -> bytes:
        """Give what is on disk: each sector as of the last of its changes that is kept.

        ``keep`` is asked for each sector of each change; ``choose_size`` chooses among the sizes
        that the file may have, of which the first is that of the data that is there.
        """
        last: dict[int, int] = {}
        sizes = {len(self.durable)}
        needed = len(self.durable)
        for number, change in enumerate(self.pending):
            sizes.add(change.size)
            if not change.data and keep(change, change.offset):
                needed = change.size
            for offset, part in _split(change.offset, change.data, SECTOR_BYTES):
                if keep(change, offset):
                    last[offset // SECTOR_BYTES] = number
                    needed = max(needed, offset + len(part))
        longest = max(sizes)
        image = bytearray(self.durable)
        image.extend(bytes(max(0, longest - len(image))))
        for number, change in enumerate(self.pending):
            for offset, part in _split(change.offset, change.data, SECTOR_BYTES):
                # Later writes into a sector were made on top of earlier ones.
                if number <= last.get(offset // SECTOR_BYTES, -1):
                    image[offset : offset + len(part)] = part
        return bytes(image[: choose_size([needed, *sorted(sizes)])])


def _split(offset: int, data: bytes, unit: int) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        step = unit - (offset + at) % unit
        yield offset + at, data[at : at + step]
        at += step


@dataclass(frozen=True, slots=True)
class _Rename:
    """A change of names: some go, and a file may get one."""

    removed: tuple[str, ...]
    added: tuple[str, File] | None

    def apply(self, names: dict[str, File]) -> None:
        for name in self.removed:
            names.pop(name, None)
        if self.added is not None:
            names[self.added[0]] = self.added[1]


@dataclass(slots=True)
class Disk:
    """The files of one directory, as a recording is replayed."""

    names: dict[str, File] = field(default_factory=dict)
    durable_names: dict[str, File] = field(default_factory=dict)
    renames: list[_Rename] = field(default_factory=list)
    inodes: dict[int, File] = field(default_factory=dict)

    def apply(self, event: Event) -> None:
        """Do what an event did."""
        if event.kind in "wtas":
            # What has no name any more cannot come back.
            file = self.inodes.get(event.inode)
            if file is not None:
                _change(file, event)
        elif event.kind == "c":
            self.inodes[event.inode] = File()
            self._rename(_Rename((), (event.name, self.inodes[event.inode])))
        elif event.kind == "r":
            self._rename(_Rename((event.name,), (event.new_name, self.inodes[event.inode])))
        elif event.kind == "l":
            self._rename(_Rename((), (event.new_name, self.inodes[event.inode])))
        elif event.kind == "u":
            self._rename(_Rename((event.name,), None))
        elif event.kind == "d":
            self._sync_names()
        elif event.kind == "S":
            self._sync_names()
            for file in self.names.values():
                file.sync()
        elif event.kind == "M":
            # Readers and writers count themselves in LMDB's lock file. Of the data file a writable
            # map would hide changes from us.
            lock = self.inodes.get(event.inode)
            assert all(
                name.endswith("-lock") for name, file in self.names.items() if file is lock
            ), "the data file is mapped writable"
        else:
            assert event.kind == "m", event

    def _rename(self, rename: _Rename) -> None:
        rename.apply(self.names)
        self.renames.append(rename)

    def _sync_names(self) -> None:
        self.durable_names = dict(self.names)
        self.renames = []

    def unsynced(self) -> list[Change]:
        """List the changes that a crash may undo, of files that a name leads to."""
        return [change for file in self._files() for change in file.pending if change.data]

    def _files(self) -> Iterable[File]:
        """Give all files with a name, now or on disk, except LMDB's lock files."""
        found: dict[int, File] = {}
        for names in (self.durable_names, self.names):
            for name, file in sorted(names.items()):
                if not name.endswith("-lock"):
                    found[id(file)] = file
        return found.values()

    def after_crash(self, crash: Crash) -> dict[str, bytes]:
        """Give the directory as the crash leaves it."""
        # Not hash(): it is another one in each process.
        draw = random.Random(f"{crash.kind}-{crash.position}-{crash.seed}")
        keep = _keeper(crash, self.unsynced(), draw)
        size = _sizer(crash.kind, draw)
        found = {
            name: bytes(file.seen) if crash.kind == "prefix" else file.after_crash(keep, size)
            for name, file in sorted(self._names_after(crash.kind, draw).items())
            if not name.endswith("-lock")
        }
        return found | _lock_files(found, draw)

    def _names_after(self, kind: Kind, draw: random.Random) -> dict[str, File]:
        names = dict(self.durable_names)
        if kind == "prefix":
            chosen = list(self.renames)
        elif kind == "synced":
            chosen = []
        else:
            part = draw.choice((0.0, 0.5, 1.0))
            chosen = [rename for rename in self.renames if draw.random() < part]
        for rename in chosen:
            rename.apply(names)
        return names


def _change(file: File, event: Event) -> None:
    if event.kind == "w":
        file.write(event.offset, event.data)
        if event.synchronous:
            file.sync_range(event.offset, event.offset + len(event.data))
    elif event.kind == "t":
        file.resize(event.offset)
    elif event.kind == "a":
        file.allocate(event.offset)
    else:
        file.sync()


def _keeper(
    crash: Crash, unsynced: list[Change], draw: random.Random
) -> Callable[[Change, int], bool]:
    """Give what decides whether a sector of a change is on disk."""
    numbers = {id(change): number for number, change in enumerate(unsynced)}
    part = draw.choice((0.1, 0.5, 0.9))

    def sector(change: Change, offset: int) -> bool:
        return draw.random() < part

    kept = {id(change) for change in unsynced if draw.random() < part}

    def page(change: Change, offset: int) -> bool:
        return id(change) in kept

    def indexed(change: Change, offset: int) -> bool:
        number = numbers.get(id(change), -1)
        if crash.kind == "torn" and number == crash.seed:
            return sector(change, offset)
        if crash.kind == "late":
            return number >= crash.seed
        return (number == crash.seed) == (crash.kind == "only")

    if crash.kind in INDEXED:
        return indexed
    if crash.kind == "sectors":
        return sector
    if crash.kind == "pages" or (crash.kind == "sizes" and crash.seed % 2):
        return page
    everything = crash.kind in ("prefix", "names", "sizes")
    return lambda change, offset: everything


def _sizer(kind: Kind, draw: random.Random) -> Callable[[list[int]], int]:
    if kind in ("sizes", "sectors", "pages"):
        return draw.choice
    # A whole history ends with the size it ended with.
    return lambda sizes: sizes[0]


def _lock_files(found: dict[str, bytes], draw: random.Random) -> dict[str, bytes]:
    """Invent a lock file: LMDB never syncs it, and it may hold anything of any age."""
    files: dict[str, bytes] = {}
    for name in found:
        choice = draw.randrange(4)
        if name.endswith(".vzarr") and choice:
            size = draw.choice((0, 100, 4096, 65536))
            files[f"{name}-lock"] = draw.randbytes(size) if choice == 1 else bytes(size)
    return files


def replay(recording: Recording, crashes: Iterable[Crash]) -> Iterator[tuple[Crash, Disk]]:
    """Give each crash, with the disk as it is at its position; they must come in order."""
    disk = Disk()
    position = 0
    for crash in crashes:
        assert crash.position >= position
        for event in recording.events[position : crash.position]:
            disk.apply(event)
        position = crash.position
        yield crash, disk


def digest(files: dict[str, bytes]) -> bytes:
    """Tell states apart, so that none is opened twice."""
    hashed = hashlib.blake2b()
    for name, data in sorted(files.items()):
        hashed.update(f"{name}\0{len(data)}\0".encode() + data)
    return hashed.digest()
