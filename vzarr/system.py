"""What the operating system tells: who holds a lock, and where a file lies."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

from vzarr import portable
from vzarr.errors import Holder, StorageError

# Locks, shared mappings or both do not work between the machines that mount these.
_NETWORK_FILE_SYSTEMS = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "gfs2", "glusterfs", "gpfs"),
        *("lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "smb2", "smb3"),
        *("smb", "smbfs", "vboxsf", "virtiofs", "fuse.ceph", "fuse.davfs", "fuse.gcsfuse"),
        *("fuse.glusterfs", "fuse.goofys", "fuse.juicefs", "fuse.mount-s3", "fuse.rclone"),
        *("fuse.s3fs", "fuse.sshfs"),
    }
)

# A little less than glibc's DEFAULT_MMAP_THRESHOLD_MAX.
_LARGEST_KEPT_BYTES = 31 << 20
_keeps_freed_memory = False


def cores() -> int:
    """Count the processor's cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def flock_holder(descriptor: int) -> Holder | None:
    """Find who holds the ``flock`` of a file, where the system tells."""
    if sys.platform != "win32":
        status = os.fstat(descriptor)
        pid = _flock_pid(os.major(status.st_dev), os.minor(status.st_dev), status.st_ino)
        if pid is not None:
            return Holder(pid, socket.gethostname(), _command(pid), _started(pid))
    return None


def running(pid: int, since: datetime | None) -> Holder:
    """Describe a process of this machine that has held something since then."""
    return Holder(pid, socket.gethostname(), _command(pid), since)


def process_namespace() -> int:
    """Give the number of the namespace in which this process has its pid; 0 where there is none.

    The same pid in another one, as containers have them, is another process.
    """
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _flock_pid(major: int, minor: int, inode: int) -> int | None:
    likely = None
    # 2: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF
    for line in _lines("/proc/locks"):
        fields = line.split()
        if len(fields) < 6 or fields[1] != "FLOCK" or not fields[5].endswith(f":{inode}"):
            continue
        # Zero stands for a process that we cannot see from our container.
        pid = int(fields[4]) or None
        if fields[5] == f"{major:02x}:{minor:02x}:{inode}":
            return pid
        if major == 0:
            # stat() gives volumes numbers of their own (btrfs), which the kernel does not use here.
            likely = pid
    return likely


def _command(pid: int) -> str:
    # Shortened, because it may hold a whole script.
    return " ".join(_lines(f"/proc/{pid}/cmdline")).replace("\0", " ").strip()[:200]


def _started(pid: int) -> datetime | None:
    """When a process began, from the clock ticks between the start of the machine and its own."""
    booted = [line.split()[1] for line in _lines("/proc/stat") if line.startswith("btime ")]
    # The command in parentheses may hold anything; the fields follow the last one.
    fields = "".join(_lines(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    if sys.platform != "win32" and booted and len(fields) >= 20:
        seconds = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return datetime.fromtimestamp(int(booted[0]) + seconds, UTC)
    return None


def maps_of(inode: int) -> Iterator[tuple[int, int]]:
    """Give address and length of each shared map that this process has of a file."""
    # 7f0a1c000000-7f1a1c000000 r--s 00000000 fe:00 5678    /home/ada/ocean.vzarr
    wanted = f" {inode} "
    for line in _lines("/proc/self/maps"):
        # A process has hundreds of maps.
        if wanted not in line:
            continue
        places, access, _, _, number = line.split(None, 5)[:5]
        if int(number) == inode and "s" in access:
            start, end = (int(place, 16) for place in places.split("-"))
            yield start, end - start


def _lines(path: str) -> list[str]:
    """Read a file of /proc; nothing where there is none or it is not for us."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []


def require_local(path: str) -> None:
    """Raise ``StorageError`` if the path is on a file system that several machines mount."""
    kind = "smb" if portable.is_remote(path) else _file_system(path)
    if kind in _NETWORK_FILE_SYSTEMS:
        raise StorageError(
            f"{path} is on a network file system ({kind}), where LMDB's locks and shared memory do "
            "not work between machines and the repository would be damaged: use a local disk, or "
            "pass unsafe_network_filesystem=True if only one machine ever opens it",
            code=errno.EOPNOTSUPP,
        )


def _file_system(path: str) -> str:
    """Give the type of the file system that a real path is on, or nothing where unknown."""
    best, kind = "", ""
    for line in _lines("/proc/self/mountinfo"):
        mount, _, source = line.partition(" - ")
        fields = mount.split(" ")
        if len(fields) < 5 or not source:
            continue
        point = _unescape(fields[4])
        # What was mounted last on the same point covers what was there.
        if len(point) >= len(best) and _below(path, point):
            best, kind = point, source.split(" ")[0]
    return kind


def _unescape(field: str) -> str:
    # Blanks and backslashes in mount points are written as three octal digits.
    head, *tail = field.split("\\")
    return head + "".join(chr(int(part[:3], 8)) + part[3:] for part in tail)


def _below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next one who asks. O(1), never touches it.

    LMDB takes memory for all that a write txn puts, and frees it with the txn. glibc gives large
    pieces back to the system at once, to be faulted in again a moment later, until it has seen that
    such pieces are freed: from then on it keeps 64 MiB, also in a child process. Other C libraries
    take no notice.
    """
    global _keeps_freed_memory  # noqa: PLW0603 - it is the whole process that has learnt it
    if not _keeps_freed_memory:
        _keeps_freed_memory = True
        # Again, it could be in memory that was kept, and would be filled with zeros.
        bytes(_LARGEST_KEPT_BYTES)
