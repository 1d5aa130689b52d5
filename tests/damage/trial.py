"""Use a damaged file as a user would, and say how it went."""

from __future__ import annotations

import contextlib
import os
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vzarr
from tests.damage.sample import DAMAGED, NEW, READS, WRITES, Facts
from vzarr import objects
from vzarr.check import check_file
from vzarr.errors import VzarrError

RIGHT = "right answer"
REFUSED = "typed error"
WRONG = "wrong data"
UNTYPED = "untyped exception"
MISSED = "missed by check"
SIGNAL = "signal"
HANG = "hang"
OUTCOMES = (RIGHT, REFUSED, WRONG, UNTYPED, MISSED, SIGNAL, HANG)
FAILURES = frozenset(OUTCOMES) - {RIGHT, REFUSED}

READ, WRITE, CHECK = 1, 2, 4
"""What to do with the file; to be added up."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a trial went, and what is to be known of it where it failed."""

    outcome: str
    detail: str = ""


class _Failure(Exception):
    def __init__(self, outcome: str, detail: str) -> None:
        super().__init__(detail)
        self.result = Result(outcome, detail)


def run(path: Path, facts: Facts, steps: int) -> Result:
    """Try a file of which ``facts`` were known to be true before it was damaged."""
    trial = _Trial(path, facts)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if steps & READ:
                trial.read()
            if steps & CHECK:
                trial.check()
            if steps & WRITE:
                trial.write()
    except _Failure as failure:
        return failure.result
    finally:
        for name in (path, Path(f"{path}-lock")):
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                os.unlink(name)
    return Result(REFUSED if trial.refused else RIGHT)


class _Trial:
    def __init__(self, path: Path, facts: Facts) -> None:
        self.path = path
        self.facts = facts
        self.refused = False
        _forget()

    def attempt(self, what: str, do: Callable[[], Any]) -> Any:
        """Do something; None where it is refused with a typed error."""
        try:
            return do()
        except VzarrError:
            self.refused = True
            return None
        except BaseException as error:
            detail = "".join(traceback.format_exception(error)[-6:])
            raise _Failure(UNTYPED, f"{what}: {detail}") from error

    def open(self, mode: Any) -> Any:
        return self.attempt(f"open {mode}", lambda: vzarr.open(self.path, mode, author="A <a@b>"))

    def read(self) -> None:
        repo = self.open("r")
        if repo is None:
            return
        try:
            self._read_all(repo, self.facts)
        finally:
            repo.close()

    def _read_all(self, repo: Any, facts: Facts) -> None:
        for what, fact in facts.items():
            found = self.attempt(what, lambda what=what: READS[what](repo))
            if isinstance(found, dict) and DAMAGED in found.values():
                self.refused = True
                found = {key: fact.get(key) if v == DAMAGED else v for key, v in found.items()}
            if found is not None and found != fact:
                raise _Failure(WRONG, f"{what}: {found!r:.2000} instead of {fact!r:.2000}")

    def check(self) -> None:
        """A check raises nothing, and what could not be read must be in its report."""
        for level in ("quick", "full"):
            _forget()
            report = self.attempt(
                f"check {level}", lambda level=level: check_file(os.fspath(self.path), level)
            )
            if report is not None and not report.ok:
                self.refused = True
        if report is not None and report.ok and self.refused:
            raise _Failure(MISSED, "a full check finds nothing")

    def write(self) -> None:
        """Write, and look whether all that was to stay is still what it was."""
        _forget()
        repo = self.open("r+")
        if repo is None:
            return
        facts = {what: self.facts[what] for what in ("id", "data of main")}
        try:
            done = {}
            for what, write in WRITES.items():
                refused, self.refused = self.refused, False
                self.attempt(what, lambda write=write: write(repo))
                done[what] = not self.refused
                self.refused |= refused
            if done["commit"] or done["commit again"]:
                facts["data of main"] = {**facts["data of main"], **NEW}
            self._read_all(repo, facts)
        finally:
            repo.close()
        _forget()
        repo = self.open("r")
        if repo is not None:
            try:
                self._read_all(repo, facts)
            finally:
                repo.close()


def _forget() -> None:
    """Empty the caches: objects of an earlier trial would hide that the file has them no more."""
    for cache in (objects._nodes, objects._entries):
        cache._young.clear()
        cache._old.clear()
