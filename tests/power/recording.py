"""Run a workload under the shim, and read back what it did to its files, call by call."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
_HEADER = struct.Struct("=BBHHQQQ")
_PATIENCE = 120
# Where files are in memory, a state is built and opened in a few milliseconds.
_MEMORY = "/dev/shm"


@dataclass(frozen=True, slots=True)
class Event:
    """One call that changed a file or made changes durable, or a mark of the workload.

    ``kind`` is a letter of the shim's; ``offset`` of a resize or an allocation is the size.
    """

    kind: str
    synchronous: bool = False
    inode: int = 0
    offset: int = 0
    data: bytes = b""
    name: str = ""
    new_name: str = ""

    @property
    def mark(self) -> dict[str, Any]:
        """What the workload noted."""
        return dict(json.loads(self.data))


@dataclass(frozen=True, slots=True)
class Recording:
    """What a workload did below one directory. Names of files are those in the directory."""

    workload: str
    events: tuple[Event, ...]


def obstacle() -> str:
    """Say why nothing can be recorded on this system, or nothing."""
    if not sys.platform.startswith("linux"):
        return f"LD_PRELOAD and /proc are Linux's, and this is {sys.platform}"
    if _compiler() is None:
        return "there is no C compiler (gcc, cc) to build the shim with"
    return ""


def _compiler() -> str | None:
    return shutil.which("gcc") or shutil.which("cc")


def memory_directory(fallback: Path) -> Path:
    """Choose where to put files that are written anew for each state."""
    return Path(_MEMORY) if os.access(_MEMORY, os.W_OK) else fallback


def build_shim(directory: Path) -> Path:
    """Compile the shim."""
    shim = directory / "shim.so"
    compiler = _compiler()
    assert compiler is not None
    command = [compiler, "-Wall", "-Wextra", "-O2", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", shim, HERE / "shim.c", "-ldl"], check=True)
    return shim


def is_heard(shim: Path) -> bool:
    """Whether the shim gets into a process: LD_PRELOAD may be forbidden, or Python be static."""
    script = "import ctypes; ctypes.CDLL(None).power_mark"
    environment = {**os.environ, "LD_PRELOAD": os.fspath(shim)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    return done.returncode == 0


def record(workload: str, shim: Path, directory: Path, *, under: Sequence[str] = ()) -> Recording:
    """Run a workload in an empty directory, which it is left to fill; under another program."""
    # The shim compares names as the kernel has them.
    directory = directory.resolve()
    log = directory.parent / f"{directory.name}.log"
    environment = {
        **os.environ,
        "LD_PRELOAD": os.fspath(shim),
        "POWER_DIRECTORY": os.fspath(directory),
        "POWER_LOG": os.fspath(log),
    }
    command = [*under, sys.executable, "-m", "tests.power.workloads", workload]
    command.append(os.fspath(directory))
    done = subprocess.run(
        command,
        env=environment,
        cwd=HERE.parent.parent,
        timeout=_PATIENCE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"workload {workload} failed:\n{done.stdout}{done.stderr}"
    recording = Recording(workload, tuple(parse_log(log.read_bytes(), f"{directory}/")))
    log.unlink()
    return recording


def parse_log(log: bytes, prefix: str) -> list[Event]:
    events: list[Event] = []
    at = 0
    while at < len(log):
        kind, synchronous, first, second, inode, offset, length = _HEADER.unpack_from(log, at)
        at += _HEADER.size
        name, new_name = log[at : at + first].decode(), log[at + first : at + first + second]
        at += first + second
        event = Event(
            chr(kind),
            bool(synchronous),
            inode,
            offset,
            log[at : at + length],
            name.removeprefix(prefix),
            new_name.decode().removeprefix(prefix),
        )
        assert event.kind != "?", f"the shim does not understand a call: {event}"
        events.append(event)
        at += length
    return events
