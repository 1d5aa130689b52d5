"""What a check reads, straight from the file: objects one by one, values in batches.

No cache is asked: those hold what the file had once. A value is the bytes of a chunk, a document
or a file; there may be millions of them.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, final

from vzarr.errors import CorruptError
from vzarr.format import (
    ABSENT_PREFIX,
    CHECKSUM_FROM_BYTES,
    DIGEST_BYTES,
    Digest,
    chunk_checksum,
    chunk_digest,
    decode_blob,
)
from vzarr.node import row_of

MISSING = "it is missing"
UNREADABLE = "its bytes do not match its digest"

# Values are looked at in batches of so many, or so many bytes, some of which wait for the threads.
_BATCH = 512
_BATCH_BYTES = 8 << 20
_WORKERS = 2
_WAITING = 8

_T = TypeVar("_T")


class Records(Protocol):
    """What a check needs of a read txn."""

    def get(self, database: str, key: bytes) -> bytes | None:
        """Copy a value, or give None."""
        ...

    def view(self, database: str, key: bytes) -> bytes | memoryview | None:
        """Give a value, at best without copying it."""
        ...

    def contains(self, database: str, key: bytes) -> bool:
        """Tell whether there is such a key."""
        ...

    def count(self, database: str) -> int:
        """Give the number of entries."""
        ...

    def scan(
        self, database: str, *, start: bytes = b"", keys_only: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Give the entries from a key on, in order."""
        ...


class Source(Protocol):
    """Where records come from: an environment, or a reader of a damaged file."""

    def read(self) -> AbstractContextManager[Records]:
        """Open a read txn."""
        ...


class LostError(Exception):
    """Why an object cannot be had; never leaves a check."""


@final
class Loader:
    """Reads objects, and counts their bytes."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.nbytes = 0
        self.left_out = _left_out(source)
        """What a shallow or partial clone has left out."""

    def load(
        self,
        database: str,
        digest: bytes,
        hashed: Callable[[bytes], Digest],
        decode: Callable[[bytes], _T],
    ) -> _T:
        """Read an object. Raises ``LostError`` if it is missing or damaged. O(log n)."""
        try:
            with self._source.read() as txn:
                data = txn.get(database, digest)
            if data is None:
                raise LostError(MISSING)
            self.nbytes += len(data)
            if hashed(data) != digest:
                raise LostError(UNREADABLE)
            return decode(data)
        except CorruptError as error:
            raise LostError(str(error)) from error


def _left_out(source: Source) -> frozenset[bytes]:
    """List the digests of objects that are noted as absent, and are. O(their number · log n)."""
    found: set[bytes] = set()
    try:
        with source.read() as txn:
            for key, _ in txn.scan("meta", start=ABSENT_PREFIX, keys_only=True):
                if not key.startswith(ABSENT_PREFIX):
                    break
                digest = key.removeprefix(ABSENT_PREFIX)
                if not (txn.contains("nodes", digest) or txn.contains("chunks", digest)):
                    found.add(digest)
    except CorruptError:
        # What of it cannot be read counts as missing, which is told.
        return frozenset(found)
    return frozenset(found)


@final
class Values:
    """Looks at values while a walk goes on, and remembers which are bad.

    To look at one means to find it in the file; or with ``whole`` to read it, and to compare it
    with its digest, its length and its checksum, in two threads where there is enough to do. Only
    the thread of the walk may call this. About 130 bytes of memory for each distinct value.
    """

    def __init__(self, source: Source, *, whole: bool, step: Callable[[int], None]) -> None:
        self._source = source
        self._whole = whole
        self._step = step
        self._pool: ThreadPoolExecutor | None = None
        self._futures: deque[Future[_Outcome]] = deque()
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        # Chunks mostly have the same few lengths.
        self._lengths: dict[int, int] = {}
        self.seen: dict[bytes, int] = {}
        """The length of each value, by digest; -1 where no reference told it."""
        self.bad: dict[bytes, str] = {}
        """What is wrong, by the encoded reference."""
        self.wrong_checksums: set[bytes] = set()
        """The digests of sound values whose checksum is another's."""
        self.unsummed = 0
        """How many large sound values have none."""
        self.nbytes = 0

    def look(self, references: Sequence[bytes]) -> None:
        """Look at the values of encoded references, now or soon. O(1) for one that was seen."""
        lengths: tuple[int, ...] = row_of("32xI", len(references)).unpack(b"".join(references))
        for reference, length in zip(references, lengths, strict=True):
            digest = reference[:DIGEST_BYTES]
            if self.seen.get(digest) != length:
                self.seen[digest] = self._lengths.setdefault(length, length)
                self._batch.append(reference)
                self._batch_bytes += length if self._whole else 0
        if self._batch_bytes >= _BATCH_BYTES:
            self._hand_over()
        elif len(self._batch) >= _BATCH:
            # Small values are soon hashed, and threads would but wait for each other.
            self._take(self._inspect(self._next_batch()))

    def note(self, digests: Iterable[bytes]) -> list[bytes]:
        """Note values of which only the digest is known; give those that are not in the file."""
        missing = []
        with self._source.read() as txn:
            for digest in digests:
                if self.seen.get(digest, -1) < 0:
                    self.seen[digest] = -1
                    if not txn.contains("chunks", digest):
                        missing.append(digest)
        return missing

    def settle(self) -> None:
        """Wait until everything has been looked at."""
        while self._futures:
            self._take(self._futures.popleft().result())
        self._take(self._inspect(self._next_batch()))

    def again(self) -> None:
        """Look again at what was bad: it may have been deleted because nobody needs it."""
        self.bad = {
            reference: problem
            for bad in self.bad
            for reference, problem in self._inspect([bad]).bad.items()
        }

    def close(self) -> None:
        """End the threads, whatever they still had to do."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _hand_over(self) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="vzarr-check")
        while len(self._futures) >= _WAITING:
            self._take(self._futures.popleft().result())
        self._futures.append(self._pool.submit(self._inspect, self._next_batch()))

    def _next_batch(self) -> list[bytes]:
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        return batch

    def _take(self, outcome: _Outcome) -> None:
        self.bad.update(outcome.bad)
        self.wrong_checksums |= outcome.wrong_checksums
        self.unsummed += outcome.unsummed
        self.nbytes += outcome.nbytes
        self._step(outcome.count)

    def _inspect(self, references: list[bytes]) -> _Outcome:
        outcome = _Outcome(len(references))
        with self._source.read() as txn:
            for reference in references:
                try:
                    problem = self._problem(txn, reference, outcome)
                except CorruptError as error:
                    problem = str(error)
                if problem:
                    outcome.bad[reference] = problem
        return outcome

    def _problem(self, txn: Records, reference: bytes, outcome: _Outcome) -> str:
        if not self._whole:
            return "" if txn.contains("chunks", reference[:DIGEST_BYTES]) else MISSING
        blob = decode_blob(reference)
        # A view is of LMDB's memory, and this is the only reference to it.
        data = txn.view("chunks", blob.digest)
        if data is None:
            return MISSING
        outcome.nbytes += len(data)
        if chunk_digest(data) != blob.digest:
            return UNREADABLE
        if len(data) != blob.length:
            return wrong_length(len(data), blob.length)
        if blob.length >= CHECKSUM_FROM_BYTES:
            _compare_checksum(txn, blob.digest, data, outcome)
        return ""


def _compare_checksum(
    txn: Records, digest: bytes, data: bytes | memoryview, outcome: _Outcome
) -> None:
    """Compare a sound value with its checksum. One that cannot be read is as good as none."""
    checksum = None
    with contextlib.suppress(CorruptError):
        checksum = txn.get("checksums", digest)
    if checksum is None:
        outcome.unsummed += 1
    elif checksum != chunk_checksum(data):
        outcome.wrong_checksums.add(digest)


@final
@dataclass(slots=True)
class _Outcome:
    """What came of a batch of values."""

    count: int
    nbytes: int = 0
    unsummed: int = 0
    wrong_checksums: set[bytes] = field(default_factory=set)
    bad: dict[bytes, str] = field(default_factory=dict)


def wrong_length(found: int, expected: int) -> str:
    """Say that a value is too long or too short."""
    return f"it has {found:,} bytes where {expected:,} are said to be"
