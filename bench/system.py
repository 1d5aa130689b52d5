"""What the suite asks of the system: memory, files, the page cache, and what machine this is.

It asks Linux; other systems tell of memory in other ways.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
"""Where the checkout is: the working directory of every process that is started."""

# ── memory ───────────────────────────────────────────────────────────────────────────────────────


def reset_peak() -> None:
    """Let the peak of resident memory begin anew at what it is now."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Give the peak of resident memory."""
    # Not getrusage's, with which a child begins at its parent's.
    return _status("VmHWM")


def resident_bytes() -> int:
    return _status("VmRSS")


def warm_memory(size: int) -> None:
    """Touch free memory of this size once, so that what needs it next finds it ready.

    A virtual machine may give free memory back to its host, and then the first use of each page
    takes several times as long as copying it. Who comes first would pay for that.
    """
    np.ones(size, "u1")


def _status(name: str) -> int:
    match = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match, name
    return int(match[1]) << 10


# ── files ────────────────────────────────────────────────────────────────────────────────────────


def files(path: Path) -> Iterator[Path]:
    """Give the files of a tree, or the one that this is."""
    if path.is_dir():
        yield from (item for item in path.rglob("*") if item.is_file())
    elif path.exists():
        yield path


def disk_bytes(path: Path) -> int:
    """Give the bytes that a tree has on the disk: holes do not count, the rest of a block does."""
    return sum(item.stat().st_blocks * 512 for item in files(path))


def count_files(path: Path) -> int:
    return sum(1 for _ in files(path))


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Make a file, or each file and directory of a tree, durable."""
    for item in (path, *path.rglob("*")) if path.is_dir() else (path,):
        descriptor = os.open(item, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def evict(path: Path) -> None:
    """Drop a file, or the files of a tree, from the page cache.

    Raises ``RuntimeError`` where the system kept more than a hundredth of them: a file system in
    memory, or somebody who still maps the file. A cold read would measure nothing then.
    """
    fsync(path)
    for item in files(path):
        descriptor = os.open(item, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    left, whole = resident_share(path)
    if left > whole // 100 + 16:
        raise RuntimeError(f"{left} of {whole} pages of {path.name} stay in the page cache")


def resident_share(path: Path) -> tuple[int, int]:
    """Count the pages of a tree's files that are in the page cache, and all of them."""
    system = ctypes.CDLL(None, use_errno=True)
    system.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    resident = whole = 0
    for item in files(path):
        size = item.stat().st_size
        if not size:
            continue
        with item.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as mapped:
            pages = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
            start = ctypes.c_char.from_buffer(mapped)
            failed = system.mincore(ctypes.addressof(start), size, pages)
            del start
            if failed:
                raise OSError(ctypes.get_errno(), "mincore", str(item))
        resident += sum(page & 1 for page in pages.raw)
        whole += len(pages.raw)
    return resident, whole


# ── the machine ──────────────────────────────────────────────────────────────────────────────────


def machine(directory: Path) -> dict[str, str]:
    """Describe the machine and the file system of a directory; no names of either."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / (1 << 30):.0f} GiB",
        "file system": _file_system(directory),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "Python": platform.python_version(),
    }


def _processor() -> str:
    match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return match[1].strip() if match else platform.machine()


def _file_system(directory: Path) -> str:
    """Look up the type of the file system in the kernel's list: the longest mount that fits."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    above = {str(parent) for parent in (directory.resolve(), *directory.resolve().parents)}
    return max((m for m in mounts if m[1] in above), key=lambda mount: len(mount[1]))[2]
