"""Which crash states to try, and what must be found in each.

What a repository may hold after a crash follows from the marks before it: the refs of the last
commit that ``durability="full"`` acknowledged, or of any later one, as far as the commit that was
under way; with ``durability="normal"`` at most the last acknowledged one is lost. Always one of
the states that there were, never a mixture.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import select
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.power.disk import INDEXED, KINDS, Crash, Disk, Kind, replay
from tests.power.judge import Verdict
from tests.power.recording import HERE, Event, Recording, memory_directory

_PATIENCE_SECONDS = 60


# ---- what was promised ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _State:
    """The refs of a file from an event on, and whether they were promised for sure."""

    position: int
    refs: dict[str, Any]
    durable: bool


def _require_distinct(name: str, refs: list[dict[str, Any]]) -> None:
    """Refuse refs that come back: an old state that was lost to could not be told from a new one.

    The same refs may be promised again, as long as nothing else was in between.
    """
    changes = [now for before, now in zip([None, *refs], refs, strict=False) if now != before]
    for number, now in enumerate(changes):
        assert now not in changes[:number], f"{name}: state {number} is one that there was before"


class Promises:
    """What the marks of a recording say of the states of its files."""

    def __init__(self, recording: Recording) -> None:
        self._states: dict[str, list[_State]] = {}
        # From an event on, the state of a file with this number is on disk, or a later one.
        self._kept: dict[str, list[tuple[int, int]]] = {}
        self._contents: dict[str, str] = {}
        # Of each session, what it had saved from an event on; None once it is about to end.
        self._saved: dict[str, list[tuple[int, str | None]]] = {}
        for position, event in enumerate(recording.events, 1):
            if event.kind == "m":
                self._note(position, event.mark)
        for name, states in self._states.items():
            _require_distinct(name, [state.refs for state in states])

    def _note(self, position: int, mark: dict[str, Any]) -> None:
        if mark["kind"] == "refs":
            states = self._states.setdefault(mark["file"], [])
            # The same refs again may be promised for sure.
            states.append(_State(position, mark["refs"], mark["durable"]))
        elif mark["kind"] == "kept":
            # Of several threads, others may have moved other branches since.
            branch, states = mark["branch"], self._states[mark["file"]]
            heads = [state.refs["branches"].get(branch) for state in states]
            self._kept.setdefault(mark["file"], []).append((position, heads.index(mark["commit"])))
        elif mark["kind"] == "contents":
            self._contents[mark["commit"]] = mark["digest"]
        elif mark["kind"] == "saved":
            self._saved.setdefault(mark["session"], []).append((position, mark["digest"]))
        elif mark["kind"] == "ending":
            self._saved.setdefault(mark["session"], []).append((position, None))

    def broken(self, position: int, verdicts: dict[str, Verdict]) -> str:
        """Say which promise of the events before a position a state breaks, or nothing."""
        for name, states in self._states.items():
            reason = self._broken(name, states, position, verdicts.get(name))
            if reason:
                return f"{name}: {reason}"
        return ""

    def lost(self, position: int, verdicts: dict[str, Verdict]) -> int:
        """Count the acknowledged moves of refs that are gone, of all files of a sound state."""
        total = 0
        for name, states in self._states.items():
            refs = verdicts.get(name, {}).get("refs")
            acknowledged = [state.refs for state in states if state.position <= position]
            if refs in acknowledged:
                total += acknowledged[::-1].index(refs)
        return total

    def _broken(
        self, name: str, states: list[_State], position: int, verdict: Verdict | None
    ) -> str:
        acknowledged = sum(state.position <= position for state in states)
        if verdict is None or verdict.get("empty"):
            return "the file is not there" if acknowledged else ""
        if "problem" in verdict:
            return str(verdict["problem"])
        first = max(0, acknowledged - 2)
        for number, state in enumerate(states[:acknowledged]):
            if state.durable:
                first = max(first, number)
        for kept_at, number in self._kept.get(name, []):
            if kept_at <= position:
                first = max(first, number)
        allowed = [state.refs for state in states[first : acknowledged + 1]]
        if verdict["refs"] not in allowed:
            found = [number for number, state in enumerate(states) if state.refs == verdict["refs"]]
            return (
                f"has the state {found or 'that never was'}, not one of {first} to {acknowledged}"
            )
        for commit, digest in verdict["contents"].items():
            if self._contents[commit] != digest:
                return f"commit {commit} has other contents"
        return self._lost_work(position, verdict["saved"])

    def _lost_work(self, position: int, found: dict[str, str]) -> str:
        """Say which acknowledged checkpoint is gone."""
        for session, states in self._saved.items():
            before = [digest for at, digest in states if at <= position]
            if not before or before[-1] is None:
                continue
            # The next checkpoint may be there already.
            after = [digest for at, digest in states if at > position][:1]
            if found.get(session, "") not in (before[-1], *after):
                return f"the checkpoint of session {session} is lost"
        return ""


# ---- which states ---------------------------------------------------------------------------


def verify(recording: Recording) -> int:
    """Compare the replay with the files at each mark of their bytes; give how many there were."""
    disk, compared = Disk(), 0
    for event in recording.events:
        disk.apply(event)
        if event.kind == "m" and event.mark["kind"] == "bytes":
            name, expected = event.mark["file"], event.mark["digest"]
            assert hashlib.blake2b(disk.names[name].seen).hexdigest() == expected, "writes missed"
            compared += 1
    return compared


def all_crashes(recording: Recording, draw: random.Random, *, repeat: int) -> list[Crash]:
    """List crash states: every prefix; and before each sync, after each mark, and at the end all
    choices of one page that is or is not on disk, and ``repeat`` random ones of each kind.

    A sync makes fewer states possible and a write more, so that the moments between need no visit.
    """
    crashes = [Crash(position, "prefix", 0) for position in range(len(recording.events) + 1)]
    disk = Disk()
    for position, event in enumerate((*recording.events, Event("m"))):
        follows_mark = bool(position) and recording.events[position - 1].kind == "m"
        if event.kind in "sdS" or follows_mark or position == len(recording.events):
            crashes += _choices(disk, position, draw, repeat)
        if position < len(recording.events):
            disk.apply(event)
    return crashes


def _choices(disk: Disk, position: int, draw: random.Random, repeat: int) -> Iterator[Crash]:
    def some(kind: Kind, count: int) -> Iterator[Crash]:
        for _ in range(count):
            yield Crash(position, kind, draw.randrange(1 << 32))

    pages = len(disk.unsynced())
    if pages:
        yield Crash(position, "synced", 0)
        for kind in sorted(INDEXED):
            for number in range(pages):
                yield Crash(position, kind, number)
        for kind in ("pages", "sectors", "sizes"):
            yield from some(kind, repeat)
    if disk.renames:
        yield from some("names", repeat)


def sample(crashes: list[Crash], draw: random.Random, *, each: int) -> list[Crash]:
    """Choose at most so many of each kind."""
    chosen: list[Crash] = []
    for kind in KINDS:
        of_kind = [crash for crash in crashes if crash.kind == kind]
        chosen += draw.sample(of_kind, min(each, len(of_kind)))
    return chosen


# ---- opening them ---------------------------------------------------------------------------


@dataclass(slots=True)
class Outcome:
    """What became of a campaign: states by kind, how many differ, and what was wrong.

    ``lost`` counts the states by the number of acknowledged commits that are gone, ``short`` those
    that lack pages at the end which were never written.
    """

    tried: Counter[str] = field(default_factory=Counter)
    distinct: int = 0
    short: int = 0
    lost: Counter[int] = field(default_factory=Counter)
    broken: list[tuple[Crash, str]] = field(default_factory=list)


def run(recording: Recording, crashes: list[Crash], *, stop_after: int = 10) -> Outcome:
    """Open each state, in another process, and compare it with what was promised."""
    promises = Promises(recording)
    outcome = Outcome()
    crashes = sorted(crashes, key=lambda crash: (crash.position, crash.kind, crash.seed))
    with ExitStack() as stack:
        memory = memory_directory(Path(tempfile.gettempdir()))
        name = stack.enter_context(tempfile.TemporaryDirectory(dir=memory))
        judged = stack.enter_context(closing(_judge(recording, crashes, Path(name))))
        for crash, is_new, verdicts in judged:
            outcome.tried[crash.kind] += 1
            outcome.distinct += is_new
            outcome.short += any(verdict.get("short") for verdict in verdicts.values())
            reason = promises.broken(crash.position, verdicts)
            if reason:
                outcome.broken.append((crash, reason))
                if len(outcome.broken) >= stop_after:
                    break
            else:
                outcome.lost[promises.lost(crash.position, verdicts)] += 1
    return outcome


def _judge(
    recording: Recording, crashes: list[Crash], directory: Path
) -> Generator[tuple[Crash, bool, dict[str, Verdict]], None, None]:
    """Have the states judged, and go on with the next one after each that kills the judge."""
    files = directory / "files"
    files.mkdir()
    done = 0
    while done < len(crashes):
        task = directory / "task"
        task.write_bytes(pickle.dumps((recording, crashes[done:])))
        judge = _Judge(task, files)
        try:
            for crash in crashes[done:]:
                line = judge.judge_next()
                done += 1
                if line is None:
                    problem = f"the process that opened it ended: {judge.end()}"
                    yield crash, True, {"test.vzarr": {"problem": problem}}
                    break
                is_new, verdicts = line
                yield crash, is_new, verdicts
        finally:
            judge.close()


class _Judge:
    """A process that judges states, one after the other."""

    def __init__(self, task: Path, files: Path) -> None:
        command = [sys.executable, "-m", "tests.power.judge", os.fspath(task), os.fspath(files)]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=HERE.parent.parent,
        )
        self._rest = b""
        self._is_over = False

    def judge_next(self) -> tuple[bool, dict[str, Verdict]] | None:
        """Give the next verdict, or None if the process died of the state, or hangs."""
        if self._line() is None:
            # It had not begun with this state.
            raise AssertionError(f"the judge failed: {self.end()}")
        line = self._line()
        return None if line is None else tuple(json.loads(line))

    def _line(self) -> bytes | None:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._rest:
            if not select.select([descriptor], [], [], _PATIENCE_SECONDS)[0]:
                return None
            data = os.read(descriptor, 1 << 16)
            if not data:
                self._is_over = True
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def end(self) -> str:
        """End the process unless it ended by itself; say how it did."""
        hung = "" if self._is_over else ", killed because it hung"
        if not self._is_over:
            self._process.kill()
        self._errors.seek(0)
        return f"exit code {self._process.wait()}{hung}\n{self._errors.read()}"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()


def report(recording: Recording, outcome: Outcome, directory: Path) -> str:
    """Describe what is wrong, and leave the first such state in a directory; nothing if sound."""
    if not outcome.broken:
        return ""
    crash, reason = outcome.broken[0]
    ((_, disk),) = replay(recording, [crash])
    for name, data in disk.after_crash(crash).items():
        (directory / name).write_bytes(data)
    (directory / "recording.pickle").write_bytes(pickle.dumps((recording, [crash])))
    around = recording.events[max(0, crash.position - 4) : crash.position]
    calls = "\n".join(f"  {event.kind} {event.offset} {event.data[:80]!r}" for event in around)
    return (
        f"{len(outcome.broken)} of {outcome.tried.total()} states of {recording.workload!r} break "
        f"a promise; the first is {crash}, and lies in {directory}, after the calls\n{calls}\n"
        f"{reason}"
    )


# ---- a disk that lies -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sync:
    """A sync, as a lie may be about it."""

    kind: str
    written: Event
    """The last write before it."""
    is_first: bool
    """Whether it is of the file that was created first; of a directory, the first time."""


def without(recording: Recording, is_lost: Callable[[Sync], bool], *, created: bool) -> Recording:
    """Give the recording of a system on which some syncs do nothing; only once a file is there?"""
    events: list[Event] = []
    written, files, lies, directories = Event("w"), [0], not created, 0
    for event in recording.events:
        lies = lies or event.kind == "m"
        if event.kind == "w":
            written = event
        elif event.kind == "c":
            files.append(event.inode)
        elif event.kind in "sdS":
            is_first = not directories if event.kind == "d" else event.inode == files[1]
            directories += event.kind == "d"
            if lies and is_lost(Sync(event.kind, written, is_first)):
                # In its place stands what changes nothing: positions stay.
                event = Event("m", data=b'{"kind": "a sync that did nothing"}')
        events.append(event)
    return replace(recording, events=tuple(events))
