"""strace: which system calls a thread makes, and what befalls it at one of them.

A thread that has stopped itself is traced from where it goes on, so that "the third pwrite64" is
the third one of the work under test, whatever the interpreter did to get there. strace counts the
calls of each thread by itself, so mostly one thread is traced; a signal still ends them all. Where
all are, the first one that comes to its N-th call meets the fault, and so may others after it.

What ``signal=SIGKILL`` does: the kernel stops the thread at the entry of the call, strace lets it
go on with the signal, and the call is not made. So the process dies *before* its N-th call, and
kills before all calls of a run pass through each state that the calls have between them. What
``error=`` and ``retval=`` do: the call is not made, and its caller is told that it failed, or that
so many bytes were written.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

# prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY): a process that lets any other of its user trace it.
_SET_PTRACER, _ANY = 0x59616D61, ctypes.c_ulong(-1)
# With several threads traced, each line begins with the number of its thread.
_LINE = re.compile(r"(?:(\d+) +)?(\w+)\((.*)")


class Call(NamedTuple):
    """One system call of a recorded run."""

    name: str
    number: int
    """Which one of that name it is in its thread, from 1."""
    text: str
    """Its arguments and result, as strace prints them, with the files behind descriptors."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is to happen at one call: ``signal=SIGKILL``, ``error=EIO``, ``retval=512``."""

    call: str
    number: int
    action: str

    @property
    def kills(self) -> bool:
        return self.action.startswith("signal=")

    @property
    def what(self) -> str:
        return self.action.partition("=")[2] if self.action.startswith("error") else self.action

    def __str__(self) -> str:
        return f"{self.call}:{self.action}:when={self.number}"


class CannotTraceError(Exception):
    """strace is not there, or this system does not let it trace."""


class Trace:
    """strace at work on a thread that is stopped."""

    def __init__(
        self, thread: int, log: str, calls: Iterable[str], fault: Fault | None, *, all_threads: bool
    ) -> None:
        program = shutil.which("strace")
        if program is None:
            raise CannotTraceError("strace is not installed (Debian: apt-get install strace)")
        self._log = log
        traced = ",".join(f"?{call}" for call in calls)
        options = ["-y", "-o", log, "-e", f"trace={traced}", "-e", "signal=none"]
        options += ["-f"] if all_threads else []
        if fault is not None:
            options += ["-e", f"inject={fault}"]
        self._process = subprocess.Popen(
            [program, *options, "-p", str(thread)], stderr=subprocess.PIPE, text=True
        )
        assert self._process.stderr is not None
        said = self._process.stderr.readline()
        if "attached" not in said:
            self.end()
            raise CannotTraceError(f"strace cannot trace here: {said.strip()}")

    def stop(self) -> None:
        """Let the traced process go on by itself."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        self.end()

    def end(self) -> None:
        """Wait until the traced process is gone, and strace with it."""
        self._process.communicate(timeout=30)

    @property
    def injected(self) -> bool:
        """Whether a call was made to fail."""
        with open(self._log, encoding="utf-8", errors="replace") as lines:
            return any("(INJECTED)" in line for line in lines)

    def calls(self) -> list[Call]:
        """List the calls that were made, in order."""
        counts: dict[tuple[str, str], int] = {}
        found = []
        with open(self._log, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                match = _LINE.match(line)
                if match is not None:
                    thread, name, text = match.groups()
                    number = counts[thread, name] = counts.get((thread, name), 0) + 1
                    found.append(Call(name, number, text))
        return found


def allow_tracing() -> None:
    """Let strace, which is no ancestor of this process, trace it; where that has to be said."""
    ctypes.CDLL(None).prctl(_SET_PTRACER, _ANY, 0, 0, 0)


def stop_here() -> None:
    """Stop, until strace is at work and somebody lets this process go on."""
    os.kill(os.getpid(), signal.SIGSTOP)


def why_not(directory: str) -> str:
    """Say why no fault can be injected here; nothing if it works, which is tried."""
    if sys.platform != "linux":
        return f"strace is a program of Linux, and this is {sys.platform}"
    target = os.path.join(directory, "probe")
    pid = os.fork()
    if not pid:
        allow_tracing()
        descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        stop_here()
        os.pwrite(descriptor, b"1", 0)
        os.pwrite(descriptor, b"2", 1)
        os._exit(0)
    os.waitpid(pid, os.WUNTRACED)
    try:
        fault = Fault("pwrite64", 2, "signal=SIGKILL")
        trace = Trace(pid, target + ".log", ["pwrite64"], fault, all_threads=False)
    except CannotTraceError as error:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return str(error)
    os.kill(pid, signal.SIGCONT)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    trace.end()
    with open(target, "rb") as file:
        written = file.read()
    if (code, written) != (-signal.SIGKILL, b"1"):
        return f"strace does not inject signals here: exit code {code}, written {written!r}"
    return ""
