"""Small disks, and processes that may use little."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

import vzarr
from tests.processes import Child

MIB = 1 << 20


class Disk:
    """A disk of its own, in memory, that another file can fill."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self._ballast = where / "ballast"

    @property
    def free(self) -> int:
        """How many bytes a file could grow."""
        status = os.statvfs(self.where)
        return status.f_bavail * status.f_frsize

    def fill(self, leave: int) -> None:
        """Let another file grow until so many bytes are free."""
        with self._ballast.open("ab") as file:
            os.posix_fallocate(file.fileno(), file.tell(), max(1, self.free - leave))

    def make_room(self) -> None:
        """Delete the other file."""
        self._ballast.unlink(missing_ok=True)

    def remount(self, option: str) -> None:
        """Mount it again, "ro" or "rw"."""
        mount("-o", f"remount,{option}", str(self.where))


def mount(*arguments: str) -> None:
    """Call mount, or skip the test where that is not allowed."""
    try:
        result = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no command mount: disks of a known size cannot be tested here")
    if result.returncode:
        pytest.skip(
            f"mounting is not allowed here ({result.stderr.strip()}): no small disk to test"
        )


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of 48 MiB."""
    where = tmp_path / "disk"
    where.mkdir()
    mount("-t", "tmpfs", "-o", "size=48m", "tmpfs", str(where))
    try:
        yield Disk(where)
    finally:
        # Lazily: the test's repositories may still be open when it fails.
        subprocess.run(["umount", "--lazy", str(where)], check=True)


def limited(work: Callable[[], Any], *, more_space: int | None = None, **limits: int) -> Any:
    """Run a function in a child process under soft limits: ``NOFILE=…`` files, ``FSIZE=…`` bytes.

    ``more_space`` is how many bytes of address space it may use besides what it begins with.
    """

    def child(_: Connection) -> Any:
        for name, value in limits.items():
            limit(name, value)
        if more_space is not None:
            # Counted in the child, which gives up the maps of its parent.
            limit("AS", address_space() + more_space)
        try:
            return work()
        except vzarr.VzarrError as error:
            # One that the function does not expect is as bad as any other.
            raise AssertionError(f"{type(error).__name__}: {error}") from error

    return Child(child).result()


def limit(name: str, value: int | None) -> None:
    """Set a soft limit of this process; None lifts it."""
    which = getattr(resource, f"RLIMIT_{name}")
    hard = resource.getrlimit(which)[1]
    resource.setrlimit(which, (hard if value is None else value, hard))


def address_space() -> int:
    """Give the bytes of address space that this process uses now."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
