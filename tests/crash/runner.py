"""The process that makes the trials, as the tests and the table use it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from tests.crash.strace import Fault
from tests.crash.trial import Outcome, serve
from tests.processes import Other

_TRIES = 4


class Runner:
    """A process of its own: it forks, has no threads, and may die of a repository."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = os.fspath(directory)
        self._faults: dict[str, tuple[list[Fault], list[Fault]]] = {}
        self._name = ""
        self._attempts = 0
        self._start()

    def _start(self) -> None:
        self._other = Other(serve, self._directory)
        self.why_not: str = self._other.receive()

    def begin(self, name: str) -> tuple[list[Fault], list[Fault]]:
        """Turn to a scenario; give the kills and the errors that a run of it can meet."""
        if name != self._name:
            self._name = name
            self._faults[name] = self._ask(("scenario", name))
        return self._faults[name]

    def attempt(self, fault: Fault) -> Outcome:
        """Make one trial; with another process beside it every second time.

        Where several threads run, the call may not be made each time: then it is tried again.
        """
        self._attempts += 1
        for _ in range(_TRIES):
            try:
                outcome: Outcome = self._ask(("fault", (fault, self._attempts % 2 == 0)))
            except EOFError:
                problem = "to look at what is left kills the process that does so"
                outcome = Outcome(self._name, fault, "died", [problem])
                self._begin_anew()
            if outcome.verdict != "missed":
                break
        return outcome

    def _begin_anew(self) -> None:
        name, self._name = self._name, ""
        self._start()
        self.begin(name)

    def _ask(self, request: Any) -> Any:
        self._other.send(request)
        answer = self._other.receive()
        if isinstance(answer, tuple) and answer[0] == "crash":
            self._name = ""
            self._start()
            raise AssertionError(answer[1])
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._other.send(None)
        self._other.result()


def spread(faults: Sequence[Fault], number: int) -> list[Fault]:
    """Choose so many, spread evenly, the first and the last among them."""
    last = len(faults) - 1
    if number > last:
        return list(faults)
    return [faults[round(each * last / (number - 1))] for each in range(number)]
