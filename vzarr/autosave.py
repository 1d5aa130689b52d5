"""Checkpoints in the background, for work of hours that nobody wants to do twice."""

from __future__ import annotations

import threading
import weakref
from typing import Protocol, final

from vzarr.errors import InvalidInputError


class Saveable(Protocol):
    """A session, as far as it matters here."""

    def save_if_changed(self) -> None:
        """Save what has changed since the last time."""
        ...


@final
class Autosave:
    """A thread that saves a session again and again, until the session is closed or let go of."""

    def __init__(self, session: Saveable, seconds: float) -> None:
        """Begin. Raises ``InvalidInputError`` unless ``seconds`` is a positive number."""
        number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not number or not 0 < seconds <= threading.TIMEOUT_MAX:
            raise InvalidInputError(
                f"checkpoint_every= is a number of seconds above 0, not {seconds!r}"
            )
        self._failure: Exception | None = None
        self._stopped = threading.Event()
        reference = weakref.ref(session, lambda _: self._stopped.set())
        threading.Thread(
            target=self._run, args=(reference, seconds), name="vzarr-autosave", daemon=True
        ).start()

    def stop(self) -> None:
        """Save no more. A checkpoint that is under way ends."""
        self._stopped.set()

    def raise_failure(self) -> None:
        """Raise what stopped a checkpoint since this was last asked."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _run(self, reference: weakref.ref[Saveable], seconds: float) -> None:
        while not self._stopped.wait(seconds):
            session = reference()
            if session is None:
                return
            # One that failed does not matter any more if this one does not.
            self._failure = None
            try:
                session.save_if_changed()
            except Exception as error:  # noqa: BLE001 - work is not being saved, for any reason
                # For the thread that writes: its next write raises it.
                self._failure = error
            del session
