"""What an export takes out of a snapshot: keys, their bytes, and whether a place can hold them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, final

from vzarr import portable
from vzarr.activity import uninterrupted
from vzarr.errors import CorruptError, InvalidInputError, NotFoundError
from vzarr.format import Blob
from vzarr.objects import Bytes, require_digest
from vzarr.session import Session
from vzarr.system import cores

_T = TypeVar("_T")
Batch = list[tuple[str, Blob]]

WORKERS = min(4, cores())
"""Threads that read and write files at once."""
_AHEAD = 2
_BATCH_BYTES = 4 << 20
_BATCH_KEYS = 256
# So many keys that cannot be exported are named.
_MAX_NAMED = 5
_SHOWN = 200


@final
class Contents:
    """The keys at and below a path of a snapshot, seen from that path.

    Every value is compared with its digest, whatever the session verifies: what leaves the file has
    no other proof.
    """

    def __init__(self, session: Session, path: str) -> None:
        """Look at a path. Raises ``NotFoundError`` if there is nothing below it. O(log n)."""
        self.path = path.strip("/")
        self._session = session
        self._start = f"{self.path}/" if self.path else ""
        self.count, self.nbytes = session.sums(self.path)
        if not self.count:
            raise NotFoundError(
                f"there is nothing to export at {self.path or '/'!r} of commit "
                f"{session.base[:12]}: vzarr tree lists what is there",
                name=self.path,
            )

    def items(self) -> Iterator[tuple[str, Blob]]:
        """List the keys as they are below the path, always in the same order. O(keys)."""
        skip = len(self._start)
        for key, blob in self._counted(self._session.hierarchy.items(self.path)):
            yield key[skip:], blob

    def __iter__(self) -> Iterator[str]:
        # The keys alone, in the same order.
        skip = len(self._start)
        for key in self._counted(self._session.hierarchy.keys(self.path)):
            yield key[skip:]

    def _counted(self, found: Iterable[_T]) -> Iterator[_T]:
        """Hold what is found against the sums, by which room was looked for."""
        number = 0
        for number, each in enumerate(found, 1):
            if number > self.count:
                break
            yield each
        if number != self.count:
            raise CorruptError(
                f"{self.path or '/'!r} has other keys than the {self.count:,} that its sums tell "
                "of: vzarr check says what is wrong"
            )

    def find(self, key: str) -> Blob | None:
        """Find the value of a key below the path. O(log n)."""
        return self._session.hierarchy.find(self._start + key)

    def read(self, blob: Blob) -> Bytes:
        """Give the bytes behind a reference. Raises ``CorruptError``."""
        return self._verified(blob, self._session.read(blob))

    @contextmanager
    def in_place(self) -> Iterator[Callable[[Blob], Bytes]]:
        """Give a function that reads as ``read`` without copying, for use in the ``with`` block."""
        with self._session.in_place() as read:
            yield lambda blob: self._verified(blob, read(blob))

    def _verified(self, blob: Blob, data: Bytes) -> Bytes:
        return require_digest(blob, data, self._session.environment.path)


def batches(items: Iterable[tuple[str, Blob]], *, keys: int = _BATCH_KEYS) -> Iterator[Batch]:
    """Put items together to pieces of work that are worth a hop to another thread."""
    batch: Batch = []
    nbytes = 0
    for key, blob in items:
        batch.append((key, blob))
        nbytes += blob.length
        if nbytes >= _BATCH_BYTES or len(batch) >= keys:
            yield batch
            batch, nbytes = [], 0
    if batch:
        yield batch


def spread(
    pieces: Iterable[Batch], work: Callable[[Batch], _T], workers: int = WORKERS
) -> Generator[_T, None, None]:
    """Do work in threads, and give the results in order; few are ahead of who takes them.

    What one raises is raised here. Close it before you take away what the threads work on.
    """
    waiting: deque[Future[_T]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="vzarr-export")
    try:
        for piece in pieces:
            waiting.append(pool.submit(work, piece))
            if len(waiting) >= workers + _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # Who is interrupted here would take away what they write to.
        uninterrupted(partial(pool.shutdown, cancel_futures=True))


@final
@dataclass(frozen=True, slots=True)
class Limits:
    """What keys a place can hold; lengths in bytes."""

    place: str
    """What it is, for the message."""
    name_bytes: int | None = None
    """None for names of any kind; otherwise none may be empty, a dot or two, or have a NUL."""
    key_bytes: int | None = None
    files: bool = True
    """Whether no key may go on where another one ends, as files are no directories."""
    documents: frozenset[str] = frozenset()
    """Names that nothing may lie below."""
    file_names: bool = False
    """Whether names become those of files here, and Windows does not take all."""


def require_names(contents: Contents, limits: Limits) -> None:
    """Raise ``InvalidInputError`` that names keys which a place cannot hold. O(keys)."""
    known: set[str] = set()
    named: list[str] = []
    more = 0
    for key in contents:
        why = _why_not(contents, key, limits, known)
        if why and len(named) < _MAX_NAMED:
            named.append(f"{key[:_SHOWN]!r} ({why})")
        elif why:
            more += 1
    if named:
        others = f", and {more:,} more" if more else ""
        raise InvalidInputError(
            f"{limits.place} cannot hold {', '.join(named)}{others}: move or delete what has these "
            "keys, or export to another kind of target"
        )


def _why_not(contents: Contents, key: str, limits: Limits, known: set[str]) -> str:
    """Say why a key has no place; ``known`` are the directories that have one."""
    if limits.key_bytes is not None and len(key.encode()) > limits.key_bytes:
        return f"longer than {limits.key_bytes:,} bytes"
    above, slash, name = key.rpartition("/")
    while slash and above not in known:
        upper, slash, last = above.rpartition("/")
        if limits.files and contents.find(above) is not None:
            return f"{above[:_SHOWN]!r} is a key, too"
        if last in limits.documents:
            return f"{above[:_SHOWN]!r} is the name of a document"
        if why := _bad_name(last, limits):
            return why
        known.add(above)
        above = upper
    return _bad_name(name, limits)


def _bad_name(name: str, limits: Limits) -> str:
    most = limits.name_bytes
    if most is None:
        return ""
    if name in ("", ".", ".."):
        return f"{name!r} is no name"
    if "\0" in name:
        return "a NUL"
    if len(name.encode()) > most:
        return f"a name longer than {most} bytes"
    if limits.file_names and not portable.is_file_name(name):
        return f"{name!r} is no name for a file on Windows"
    return ""
