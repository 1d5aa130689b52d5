"""Who uses a resource now, and a way to be the only one."""

from __future__ import annotations

import _thread
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from threading import get_ident
from typing import TypeVar, final

from vzarr.errors import SessionStateError

_T = TypeVar("_T")


@final
class Activity:
    """Who is inside LMDB, and a way to be alone there.

    Every txn is inside. Growth, reopening, closing and ``fork`` pull the map away from under
    whoever is, so they must be alone; while one of them waits, nobody else gets in, except a thread
    that is inside already.

    Entering takes no lock, because dict operations are atomic: who enters writes its name and then
    looks whether the door is shut, who wants to be alone shuts the door and then looks who is
    inside. At least one of them sees the other.
    """

    __slots__ = ("_changed", "_inside", "_lock", "_shut")

    def __init__(self) -> None:
        self._inside: dict[object, int] = {}
        # The thread that shut the door, or 0.
        self._shut = 0
        # Taken by itself and not by the condition, whose way in and out Ctrl-C can interrupt.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)

    def enter(self, who: object) -> None:
        """Come in; wait if somebody wants to be alone, unless this thread is inside already."""
        self._inside[who] = get_ident()
        if self._shut:
            self._queue(who)

    def leave(self, who: object) -> None:
        """Go; nothing happens to one who is not inside."""
        self._inside.pop(who, None)
        if self._shut:
            with self._lock:
                self._changed.notify_all()

    def here(self) -> bool:
        """Tell whether this thread is inside."""
        return get_ident() in list(self._inside.values())

    def is_nested(self) -> bool:
        """Tell whether this thread is inside more than once."""
        return list(self._inside.values()).count(get_ident()) > 1

    def inside(self) -> list[object]:
        """List who is inside."""
        return list(self._inside)

    def shut(self, timeout: float | None = None) -> bool:
        """Wait until nobody is inside and keep it so until ``open``; False if it cannot be had."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            # Shut by this very thread: Ctrl-C came before it could open the door again.
            free = (0, get_ident())
            if self.here() or not self._wait(lambda: self._shut in free, deadline):
                return False
            alone = False
            try:
                self._shut = get_ident()
                alone = self._wait(lambda: not self._inside, deadline)
            finally:
                if not alone:
                    self.open()
            return alone

    def open(self) -> None:
        """Let the others in again, if it was this thread that kept them out."""
        if self._shut == get_ident():
            with self._lock:
                self._shut = 0
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only one, for as long as the block takes."""
        try:
            if not self.shut():
                raise self._not_here()
            yield
        finally:
            try:
                self.open()
            except BaseException:
                # Ctrl-C, at its first step or a later one.
                self.open()
                raise

    def require_outside(self) -> None:
        """Raise ``SessionStateError`` if this thread is inside."""
        if self.here():
            raise self._not_here()

    def _not_here(self) -> SessionStateError:
        return SessionStateError(
            "the file must be opened or mapped anew, which cannot be done inside a txn of the same "
            "thread: end that txn first"
        )

    def _queue(self, who: object) -> None:
        with self._lock:
            self._inside.pop(who, None)
            # Whoever wants to be alone waits for this thread to leave: it must not wait in turn.
            if not self.here():
                self._changed.notify_all()
                self._changed.wait_for(lambda: not self._shut)
            self._inside[who] = get_ident()

    def _wait(self, condition: Callable[[], bool], deadline: float | None) -> bool:
        remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
        return self._changed.wait_for(condition, remaining)


def uninterrupted(work: Callable[[], _T]) -> _T:
    """Run something short that must not end half way; Ctrl-C is raised when it has ended.

    Signals are handled in the main thread alone: so it is done in another one, if there is one to
    be had.
    """
    results: list[_T] = []
    failures: list[BaseException] = []
    begun: list[int] = []
    running = _thread.allocate_lock()
    running.acquire()

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits
            failures.append(error)
        finally:
            running.release()

    interruption: BaseException | None = None
    while not (results or failures):
        try:
            if not begun:
                # Begun, and known to be, in one step that Ctrl-C cannot come between.
                begun.extend(map(_thread.start_new_thread, [run], [()]))
            running.acquire()
        except BaseException as error:  # noqa: BLE001 - as it is, when the work is done
            if begun or not isinstance(error, RuntimeError):
                interruption = error
            else:
                # The system gives us no thread.
                run()
    if failures:
        raise failures[0]
    if interruption is not None:
        raise interruption
    return results[0]
