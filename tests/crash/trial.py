"""One scenario run once: with a fault at one system call, and a look at what is left.

``serve`` is the process that makes the trials of a campaign. For each it copies the scenario's
file and forks a child, which gets ready and stops; strace takes hold of it, and it goes on with the
steps, and says of each how it went. What it leaves is then judged here: with a file that was open
all the time, as another process would have it, or opened afresh.
"""

from __future__ import annotations

import faulthandler
import importlib
import math
import os
import pickle
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import warnings
import zipfile
import zlib
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, final

import vzarr
from tests.crash.scenarios import AUTHOR, Scenario, World, commit, find
from tests.crash.strace import Call, Fault, Trace, allow_tracing, stop_here, why_not
from vzarr import changes, flushes
from vzarr.car import CarFile
from vzarr.errors import VzarrError
from vzarr.session import Session

# What vzarr imports inside functions, so that no trace shows how that is done.
for _name in (
    "adoption",
    "backup",
    "compaction",
    "elements",
    "expiry",
    "exporting",
    "fork",
    "garbage",
    "importing",
    "redaction",
    "sources",
    "store",
):
    importlib.import_module(f"vzarr.{_name}")

# On a slow disk a writer looks who comes next, so that the calls would depend on the disk's mood.
flushes._SLOW = math.inf

PATIENCE = 20
"""How many seconds a child may take for a story of milliseconds."""
DRAFT = re.compile(r"\.vzarr-[0-9a-f]{16}")
_END = "/vzarr-marker-end"
_STACKS = "-stacks"

KILLED_AT = (
    *("pwrite64", "pwritev", "pwritev2", "write", "writev", "fdatasync", "fsync", "msync"),
    *("ftruncate", "fallocate", "openat", "rename", "renameat", "renameat2", "link", "linkat"),
    *("unlink", "unlinkat", "rmdir", "mmap", "flock", "fcntl"),
)
"""Before each of these calls on files of the repository the process is killed."""

_SHORT = "retval=512"
_WRITING = ("error=EIO", "error=ENOSPC", "error=EINTR", _SHORT)
_NAMING = ("error=EIO", "error=ENOSPC")
FAILS_WITH = {
    **dict.fromkeys(("pwrite64", "pwritev", "pwritev2", "write", "writev"), _WRITING),
    **dict.fromkeys(("fdatasync", "fsync"), ("error=EIO", "error=ENOSPC", "error=EINTR")),
    "msync": ("error=EIO",),
    **dict.fromkeys(("ftruncate", "fallocate"), ("error=EIO", "error=ENOSPC", "error=EINTR")),
    **dict.fromkeys(("rename", "renameat", "renameat2", "link", "linkat"), _NAMING),
    **dict.fromkeys(("unlink", "unlinkat", "rmdir"), ("error=EIO",)),
    "openat": ("error=EIO", "error=EMFILE", "error=ENOSPC", "error=EINTR"),
    "mmap": ("error=ENOMEM",),
    **dict.fromkeys(("flock", "fcntl"), ("error=ENOLCK", "error=EINTR")),
    **dict.fromkeys(("pread64", "read"), ("error=EIO",)),
    **dict.fromkeys(("newfstatat", "stat", "fstat", "statx"), ("error=EIO",)),
}
"""How each call on these files can fail: a short write is one that says it wrote 512 bytes."""

_TRACED = (*dict.fromkeys((*KILLED_AT, *FAILS_WITH)), "access", "faccessat")


@dataclass(frozen=True)
class Outcome:
    """What became of one trial; ``verdict`` is one word, and ``problems`` is why it is bad."""

    scenario: str
    fault: Fault
    verdict: str
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.scenario}: {self.fault}: {self.verdict}\n" + "\n".join(self.problems)


# ── what a repository shows ──────────────────────────────────────────────────────────────────────


def see(repo: vzarr.Repository) -> dict[str, Any]:
    """Give all that a user sees: each branch with its history, moves and values, and the tags."""
    seen: dict[str, Any] = {}
    for name in repo.branches:
        view = repo.session(name)
        seen[name] = (
            [each.message for each in repo.log(name)],
            [each.operation for each in repo.reflog(name)],
            _values(view),
        )
        view.close()
    seen["tags"] = {tag.name: repo.show(tag.name).message for tag in repo.tags.details()}
    return seen


def see_file(path: str) -> dict[str, Any] | None:
    """Give what is to be seen in a file, or None if there is none."""
    if not os.path.lexists(path):
        return None
    with vzarr.open(path, "r", author=AUTHOR) as repo:
        return see(repo)


def saved_by_the_dead(repo: vzarr.Repository) -> list[dict[str, str]]:
    """Resume what can be resumed, and give what it shows."""
    saved = []
    for each in repo.sessions():
        if each.checkpointed is not None and each.alive is False:
            session = repo.resume(each.id)
            saved.append(_values(session))
            session.close()
    return sorted(saved, key=repr)


def _values(session: Session) -> dict[str, str]:
    """Give keys with length and checksum of their values."""
    values = {}
    for key in sorted(session.keys()):
        data = session.get(key)
        assert data is not None, key
        values[key] = f"{len(data)}:{zlib.crc32(data):x}"
    return values


@final
class Line:
    """A pipe for objects without the system calls that files know: sockets have others."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._end.settimeout(PATIENCE)

    @classmethod
    def pair(cls) -> tuple[Line, Line]:
        one, other = socket.socketpair()
        return cls(one), cls(other)

    def send(self, message: Any) -> None:
        data = pickle.dumps(message)
        self._end.sendall(len(data).to_bytes(8, "big") + data)

    def receive(self) -> Any:
        """Wait for a message; None once nobody can send one. Raises ``TimeoutError``."""
        try:
            size = int.from_bytes(self._end.recv(8, socket.MSG_WAITALL), "big")
            data = self._end.recv(size, socket.MSG_WAITALL)
        except ConnectionResetError:
            return None
        return pickle.loads(data) if data else None

    def close(self) -> None:
        self._end.close()


# ── the child ────────────────────────────────────────────────────────────────────────────────────


def _child(scenario: Scenario, path: str, line: Line, steps: int | None) -> None:
    """Get ready, stop to be traced, take the steps; ``steps`` if it is not traced."""
    failures: list[str] = []

    def failed(unraisable: Any) -> None:
        shown = traceback.format_exception(unraisable.exc_type, unraisable.exc_value, None)
        failures.append("".join(shown))

    faulthandler.register(signal.SIGUSR1, open(path + _STACKS, "w"))  # noqa: SIM115
    sys.unraisablehook = failed
    threading.excepthook = failed
    warnings.simplefilter("error")
    try:
        allow_tracing()
        world = World(path)
        scenario.ready(world)
        line.send(("ready", _thread(scenario.thread)))
        if steps is None:
            stop_here()
        for number, step in enumerate(scenario.steps[:steps]):
            _take(step, number, world, line)
        if steps is None:
            if world.repo is not None:
                world.repo.close()
            os.access(_END, os.F_OK)
            line.send(("done", failures))
    except BaseException:
        line.send(("crash", _shown_error()))
    os.kill(os.getpid(), signal.SIGKILL)


def _shown_error() -> str:
    return traceback.format_exc(limit=-4)


def _take(step: Any, number: int, world: World, line: Line) -> None:
    failed: tuple[str, str] | None = None
    try:
        step(world)
    except VzarrError as error:
        failed = type(error).__name__, str(error)
    if failed:
        # What the same handle shows then; and the step once more.
        shown = see(world.repo) if world.repo is not None else see_file(world.path)
        line.send(("error", (number, *failed, shown)))
        line.receive()
        step(world)
    line.send(("step", number))


def _thread(which: str) -> int:
    if which != "stage":
        return threading.get_native_id()
    found: list[int] = []
    changes.submit(lambda: found.append(threading.get_native_id())).result()
    return found[0]


# ── one campaign ─────────────────────────────────────────────────────────────────────────────────


class Campaign:
    """All trials of one scenario: its file, and the states that its steps lead to."""

    def __init__(self, scenario: Scenario, directory: str) -> None:
        self.scenario = scenario
        self._template = os.path.join(directory, "template.vzarr")
        self._directory = os.path.join(directory, "here")
        self._path = os.path.join(self._directory, "test.vzarr")
        self._log = os.path.join(directory, "strace.log")
        if scenario.prepare is not None:
            scenario.prepare(self._template)
        self.states = [self._state_after(steps) for steps in range(len(scenario.steps) + 1)]

    def _state_after(self, steps: int) -> Any:
        self._lay_out()
        messages, code, _ = self._run(steps=steps)
        assert code == -signal.SIGKILL, messages
        assert "crash" not in dict(messages), messages
        assert "error" not in dict(messages), messages
        seen = see_file(self._path)
        if seen is None:
            return None, []
        with vzarr.open(self._path, "r+", author=AUTHOR) as repo:
            return seen, saved_by_the_dead(repo)

    def _lay_out(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)
        os.mkdir(self._directory)
        if self.scenario.prepare is not None:
            shutil.copyfile(self._template, self._path)

    def _run(
        self, *, steps: int | None = None, fault: Fault | None = None, witnessed: bool = False
    ) -> tuple[list[tuple[str, Any]], int, vzarr.Repository | None]:
        """Let a child take the steps; give what it said, its exit code, and who looked on."""
        ours, theirs = Line.pair()
        pid = os.fork()
        if not pid:
            ours.close()
            _child(self.scenario, self._path, theirs, steps)
        theirs.close()
        messages: list[tuple[str, Any]] = []
        witness = None
        try:
            kind, thread = ours.receive()
            assert kind == "ready", thread
            if steps is None:
                os.waitpid(pid, os.WUNTRACED)
                if witnessed:
                    witness = self._open()
                together = self.scenario.thread == "all"
                self._trace = Trace(thread, self._log, _TRACED, fault, all_threads=together)
                os.kill(pid, signal.SIGCONT)
            while (message := ours.receive()) is not None:
                messages.append(message)
                if message[0] == "error" and steps is None:
                    # A thread that begins now would meet the fault again.
                    self._trace.stop()
                    ours.send("go on")
        except TimeoutError:
            messages.append(("crash", f"it hangs:\n{self._stacks(pid)}"))
        finally:
            os.kill(pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            ours.close()
        if steps is None:
            self._trace.end()
        return messages, code, witness

    def _stacks(self, pid: int) -> str:
        """Ask a child where it hangs."""
        os.kill(pid, signal.SIGUSR1)
        deadline = time.monotonic() + 2
        while not os.path.getsize(self._path + _STACKS) and time.monotonic() < deadline:
            time.sleep(0.01)
        with open(self._path + _STACKS) as file:
            return file.read()

    def _open(self) -> vzarr.Repository:
        return vzarr.open(
            self._path, "r+", author=AUTHOR, timeout=2.0, durability="normal", verify="always"
        )

    def record(self) -> list[Call]:
        """List the calls of a run without a fault that concern files of the repository."""
        self._lay_out()
        messages, _, _ = self._run()
        assert messages[-1] == ("done", []), messages
        calls = []
        for call in self._trace.calls():
            if _END in call.text:
                break
            calls.append(call)
        # Where several threads are traced, each may have its third call of a name.
        others = {call[:2] for call in calls if not self._is_ours(call)}
        return [call for call in calls if call[:2] not in others]

    def _is_ours(self, call: Call) -> bool:
        if self._directory not in call.text:
            return False
        # To ask for a lock and to give one back cannot fail; nor is an end of a story to be killed.
        if call.name == "fcntl":
            return "SETLK" in call.text
        return True

    def faults(self) -> tuple[list[Fault], list[Fault]]:
        """List what can befall a run: kills, and errors, each in the order of its calls."""
        calls = self.record()
        calls = list({call[:2]: call for call in reversed(calls)}.values())[::-1]
        kills = [
            Fault(call.name, call.number, "signal=SIGKILL")
            for call in calls
            if call.name in KILLED_AT
        ]
        errors = [
            Fault(call.name, call.number, action)
            for call in calls
            if not ("UNLCK" in call.text or "LOCK_UN" in call.text)
            for action in FAILS_WITH.get(call.name, ())
            if action != "error=ENOSPC" or call.name != "openat" or "O_CREAT" in call.text
            if action != _SHORT or self.scenario.short_writes
        ]
        return kills, errors

    def attempt(self, fault: Fault, *, witnessed: bool) -> Outcome:
        """Make one trial and judge what it left."""
        self._lay_out()
        witnessed = witnessed and self.scenario.shared
        messages, _, witness = self._run(fault=fault, witnessed=witnessed)
        if messages[-1:] == [("done", [])] and (fault.kills or not self._trace.injected):
            return Outcome(self.scenario.name, fault, "missed")
        try:
            verdict, problems = self._judge(fault, messages, witness)
        finally:
            if witness is not None:
                witness.close()
        return Outcome(self.scenario.name, fault, verdict, problems)

    def _judge(
        self, fault: Fault, messages: list[tuple[str, Any]], witness: vzarr.Repository | None
    ) -> tuple[str, list[str]]:
        steps, verdict, problems = 0, "unharmed", []
        for kind, value in messages:
            if kind == "step":
                steps += 1
            elif kind == "error":
                number, name, text, shown = value
                verdict = name
                expected = self.scenario.look is None
                if expected and shown not in [seen for seen, _ in self.states[number : number + 2]]:
                    problems.append(f"after {name} ({text}) the handle shows {shown}")
            elif kind == "crash":
                problems.append(value)
            else:
                problems += value
        try:
            if fault.kills:
                later, found = self._look(fault, steps, witness)
                verdict = "new" if later or steps == len(self.scenario.steps) else "old"
            else:
                _, found = self._look(fault, len(self.scenario.steps), witness)
            problems += found
        except Exception:
            problems.append(_shown_error())
        if problems:
            problems += [f"said: {message}" for message in messages]
        return verdict, problems

    def _copy_problems(self, seen: dict[str, Any], steps: int) -> list[str]:
        """Look at the copy that the scenario makes; a step that is acknowledged has made it."""
        path = os.path.join(self._directory, self.scenario.copy)
        if not self.scenario.copy or not os.path.lexists(path):
            return ["the copy is not there"] if self.scenario.copy and steps else []
        if not path.endswith(".vzarr"):
            expected = {
                key.removeprefix("a/"): value
                for key, value in seen["main"][2].items()
                if key.startswith("a/")
            }
            found = _exported(path)
            return [] if found == expected else [f"the export has {found}, not {expected}"]
        with vzarr.open(path, "r", author=AUTHOR) as copy:
            shown = see(copy)
            problems = _unsound(copy)
        return problems if shown == seen else [*problems, f"the copy shows {shown}, not {seen}"]

    def _look(
        self, fault: Fault, steps: int, witness: vzarr.Repository | None
    ) -> tuple[bool, list[str]]:
        """Look at what is left after so many steps, or one more if killed; then go on with it.

        Tells whether it is the later state, and what is wrong.
        """
        if self.scenario.look is not None:
            return False, self.scenario.look(self._path)
        excused = fault.kills or fault.call.startswith("unlink")
        # To remove a directory, it must be read.
        excused = excused or self.scenario.copy.endswith(".zarr")
        ends = ("", "-lock", _STACKS)
        names = {name + end for name in ("test.vzarr", self.scenario.copy) for end in ends}
        problems = [
            f"{name} is left behind"
            for name in sorted(set(os.listdir(self._directory)) - names)
            if not (excused and self.scenario.drafts and DRAFT.match(name))
        ]
        states = self.states[steps : steps + fault.kills + 1]
        if not os.path.lexists(self._path):
            state: Any = (None, [])
        else:
            with witness or self._open() as repo:
                problems += _unsound(repo)
                state = see(repo), saved_by_the_dead(repo)
                problems += self._copy_problems(state[0], steps)
        if state not in states:
            problems.append(f"it shows {state}, and not {states}")
        with vzarr.open(self._path, "a", author=AUTHOR, timeout=2.0) as repo:
            commit(repo, "main", "next", {"next": b"one"})
            if repo.session("main").get("next") != b"one":
                problems.append("the next commit is not to be seen")
            repo.gc()
            problems += _unsound(repo, garbage=0)
        return state != states[0], problems


def _exported(path: str) -> dict[str, str]:
    """Give the keys of an export, with length and checksum of their values."""
    if os.path.isdir(path):
        files = [os.path.join(base, name) for base, _, names in os.walk(path) for name in names]
        found = {os.path.relpath(name, path): Path(name).read_bytes() for name in files}
    elif path.endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            found = {name: archive.read(name) for name in archive.namelist()}
    else:
        with CarFile(path) as file:
            found = dict(file.items())
    return {key: f"{len(data)}:{zlib.crc32(data):x}" for key, data in sorted(found.items())}


def _unsound(repo: vzarr.Repository, garbage: int | None = None) -> list[str]:
    report = repo.check("full")
    problems = [str(problem) for problem in report.problems]
    if garbage is not None and report.garbage != garbage:
        problems.append(f"{report.garbage} objects of garbage are left")
    return problems


def serve(pipe: Connection, directory: str) -> str:
    """Make trials for another process: told a scenario's name, then a fault or nothing."""
    pipe.send(why_not(directory))
    campaign = None
    while (request := pipe.recv()) is not None:
        kind, value = request
        if kind == "scenario":
            campaign = Campaign(find(value), tempfile.mkdtemp(dir=directory))
            pipe.send(campaign.faults())
        else:
            assert campaign is not None
            fault, witnessed = value
            pipe.send(campaign.attempt(fault, witnessed=witnessed))
    return "over"
