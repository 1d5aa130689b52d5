"""Ctrl-C at any moment of vzarr: what is interrupted, how, and what must be true afterwards."""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import vzarr
from tests.support import assert_sound
from vzarr import environment

PLACES = (str(Path(vzarr.__file__).parent), threading.__file__, contextlib.__file__)
AUTHOR = "Test <test@example.org>"
# Long enough for a machine that is busy, and an end for what would wait for ever.
TIMEOUT = 10.0


class Terminated(BaseException):
    """What a handler of SIGTERM raises in our tests: nothing that anybody catches."""


class Interrupter:
    """Raises at the N-th moment of this thread in vzarr, and counts them.

    CPython looks for signals where a function begins, and when one that is written in C returns:
    these are the moments, in the package and in the standard library's locks and contexts.
    """

    def __init__(self, number: int | None, kind: type[BaseException] = KeyboardInterrupt) -> None:
        self.moments = 0
        self.where = ""
        self._number = number
        self._kind = kind

    def _at(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event not in ("call", "c_return") or not code.co_filename.startswith(PLACES):
            return
        # What a finalizer raises nobody gets; the next moment comes soon.
        if _is_finalizing(frame):
            return
        self.moments += 1
        if self.moments == self._number:
            sys.setprofile(None)
            name = Path(code.co_filename).name
            after = f" after {argument.__name__}" if event == "c_return" else ""
            self.where = f"{name}:{frame.f_lineno} {code.co_name}{after}"
            raise self._kind

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        sys.setprofile(self._at)
        try:
            yield
        finally:
            sys.setprofile(None)


def _is_finalizing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


@dataclass(frozen=True)
class Scenario:
    """Something to interrupt. ``prepare`` makes the file and what the work is done on."""

    fill: Callable[[vzarr.Repository], None]
    begin: Callable[[vzarr.Repository], Any]
    work: Callable[[vzarr.Repository, Any], Any]


def set_keys(session: vzarr.Session, count: int, value: bytes) -> None:
    for number in range(count):
        session.set(f"a/{number}", value + b"%d" % number)


def state(repo: vzarr.Repository) -> dict[str, str]:
    return {name: repo.root_id(name) for name in repo.branches}


def open_(path: Path) -> vzarr.Repository:
    return vzarr.open(path, author=AUTHOR, timeout=TIMEOUT)


# ── the scenarios ────────────────────────────────────────────────────────────────────────────────


def fill(repo: vzarr.Repository) -> None:
    """Two branches, each ahead of where they parted, and garbage."""
    session = repo.session("main")
    set_keys(session, 3, b"first")
    session.commit("first")
    repo.branches.create("dev")
    repo.branches.create("gone")
    for branch, key in (("main", "m"), ("dev", "d"), ("gone", "g")):
        with repo.transaction(branch, branch) as store:
            store.session.set(key, b"x" * 10)
    repo.branches.delete("gone")
    repo.expire(keep_last=0)


def nothing(repo: vzarr.Repository) -> None:
    return None


def edited(repo: vzarr.Repository) -> vzarr.Session:
    session = repo.session("main")
    set_keys(session, 2, b"new")
    return session


def transaction(repo: vzarr.Repository, _: Any) -> None:
    with repo.transaction("main", "new") as store:
        set_keys(store.session, 2, b"new")


def exclusive(repo: vzarr.Repository, _: Any) -> None:
    with repo.transaction("main", "new", exclusive=True) as store:
        set_keys(store.session, 2, b"new")


def close(repo: vzarr.Repository, session: vzarr.Session) -> None:
    session.close()
    repo.close()


def open_and_close(repo: vzarr.Repository, _: Any) -> None:
    path = repo.path
    repo.close()
    open_(Path(path)).close()


def commit_on_moved_branch(repo: vzarr.Repository) -> vzarr.Session:
    session = edited(repo)
    with repo.transaction("main", "faster") as store:
        store.session.set("other", b"faster")
    return session


def with_fork(repo: vzarr.Repository) -> vzarr.Session:
    session = repo.session("main")
    session.fork().set("a/0", b"new")
    return session


def run(repo: vzarr.Repository, _: Any) -> None:
    repo.run(lambda store: store.session.set("a/0", b"new"), "main", "new")


SCENARIOS = {
    "read": Scenario(fill, lambda repo: repo.session("main"), lambda _, s: s.get("a/1")),
    "transaction": Scenario(fill, nothing, transaction),
    "exclusive": Scenario(fill, nothing, exclusive),
    "run": Scenario(fill, nothing, run),
    "commit": Scenario(fill, edited, lambda _, s: s.commit("new")),
    "rebase and commit": Scenario(fill, commit_on_moved_branch, lambda _, s: s.commit("new")),
    "checkpoint": Scenario(fill, edited, lambda _, s: s.checkpoint()),
    "merge": Scenario(fill, nothing, lambda repo, _: repo.merge("dev")),
    "gc": Scenario(fill, nothing, lambda repo, _: repo.gc()),
    "branch": Scenario(fill, nothing, lambda repo, _: repo.branches.create("new")),
    "merge a fork": Scenario(fill, with_fork, lambda _, s: s.merge_fork()),
    "close": Scenario(fill, edited, close),
    "open": Scenario(fill, nothing, open_and_close),
}


# ── one interruption ─────────────────────────────────────────────────────────────────────────────


def clear(path: Path) -> None:
    for leftover in (path, Path(f"{path}-lock")):
        leftover.unlink(missing_ok=True)


def count_moments(
    scenario: Scenario, template: Path, path: Path
) -> tuple[int, list[dict[str, str]]]:
    """Count the moments of a scenario, and give the states before and after."""
    clear(path)
    shutil.copy(template, path)
    with open_(path) as repo:
        begun = scenario.begin(repo)
        states = [state(repo)]
        interrupter = Interrupter(None)
        with interrupter():
            scenario.work(repo, begun)
        del begun
    with open_(path) as repo:
        states.append(state(repo))
    return interrupter.moments, states


def interrupt(
    scenario: Scenario,
    template: Path,
    path: Path,
    number: int,
    states: list[dict[str, str]],
    commit_elsewhere: Callable[[str], None],
    kind: type[BaseException] = KeyboardInterrupt,
) -> str:
    """Interrupt a scenario at its N-th moment; give where that was. Raises what is wrong then."""
    clear(path)
    shutil.copy(template, path)
    threads = set(threading.enumerate())
    repo = open_(path)
    begun = scenario.begin(repo)
    interrupter = Interrupter(number, kind)
    try:
        with interrupter():
            scenario.work(repo, begun)
    except kind:
        pass
    where = interrupter.where
    try:
        look(repo, path, states, commit_elsewhere)
        del begun
        repo.close()
        close_what_is_left()
        new = {
            thread.name
            for thread in set(threading.enumerate()) - threads
            if not thread.name.startswith("vzarr-stage")
        }
        assert not new, new
        assert_sound(path)
    except BaseException as error:
        error.add_note(f"interrupted at {where}, moment {number}")
        raise
    return where


def close_what_is_left() -> None:
    """Close a file whose opening or closing was interrupted: it is open until somebody does."""
    for access, shared in list(environment._registry._known.values()):
        access.users = max(access.users, 1)
        while access.users:
            shared.close()
    assert environment._registry._known == {}, "the file cannot be closed"


def look(
    repo: vzarr.Repository,
    path: Path,
    states: list[dict[str, str]],
    commit_elsewhere: Callable[[str], None],
) -> None:
    """See that nothing is held, all is as before or after, and the handle goes on."""
    for access in environment._registry.accesses():
        assert not access.activity.inside(), "inside still"
        assert not access.gate.mine(), "the gate is held"
    commit_elsewhere(str(path))
    if repo._close.alive:
        found = state(repo)
        with repo.transaction("main", "after") as store:
            store.session.set("after", b"1")
    else:
        with open_(path) as again:
            found = state(again)
    found.pop("elsewhere")
    assert found in states, "neither the old state nor the new one"
