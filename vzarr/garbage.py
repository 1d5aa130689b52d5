"""Collect garbage: find what nothing refers to any more, and delete it while others write.

Marking takes no lock. It walks from all roots: branches, tags, reflog, the commits that sessions
are on, and what sessions have in the file ahead of their commit. Meanwhile others commit, and may
put to use again what was garbage a moment ago, because an object that is there is not written
twice. So each txn that deletes first marks what came since the last look: of that there is little,
and while the txn is open there comes no more. Hence the invariants, at the end of every txn:

* What is reachable is there.
* A commit that is in the file has its snapshot and its ancestors. Commits that are garbage go first
  of all, children before parents, and no node goes before the last of them. A session makes sure in
  the txn of its commit that the commit it began from is still there, and so knows that all nodes
  are that it has seen, whatever it has in its caches.
* A lease that is in the file has all that it lists. It goes before what it lists.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import chain, islice
from typing import final

from vzarr.committing import Settings
from vzarr.environment import Txn
from vzarr.errors import BusyError, InvalidInputError, ReadOnlyError, StorageError
from vzarr.format import Digest, decode_commit, encode_lease, session_key
from vzarr.history import now
from vzarr.leases import NOBODY
from vzarr.liveness import Found, Liveness, first_bytes
from vzarr.marking import Marks
from vzarr.objects import Objects
from vzarr.progress import Progress
from vzarr.turns import Turn

# What one write txn may delete and for how long, so that others need not wait.
_DELETIONS, _DELETING_SECONDS = 2_000, 0.02
# A deletion may copy a page of the tree and one of the list of free pages.
_ROOM_BYTES = _DELETIONS * 2 * 4096
# What is looked at in one read txn.
_WALKED, _SCANNED = 500, 10_000
_TWO_WEEKS = timedelta(days=14)
QUEUE = "@"
"""Who collects has this turn. No branch can have the name."""


@final
@dataclass(frozen=True, slots=True)
class GcReport:
    """What a collection of garbage deleted, or with ``dry_run`` would have; prints as a summary."""

    commits: int
    nodes: int
    """Nodes of trees, and root entries of snapshots."""
    chunks: int
    """Chunks, documents and files."""
    nbytes: int
    """Bytes of all these."""
    sessions: int
    """Sessions and forks whose process has died."""
    kept_commits: int
    kept_nodes: int
    kept_chunks: int
    seconds: float
    dry_run: bool

    def __str__(self) -> str:
        deleted = "Would delete" if self.dry_run else "Deleted"
        text = (
            f"{deleted} {self.commits:,} commits, {self.nodes:,} nodes and {self.chunks:,} chunks "
            f"({self.nbytes:,} bytes) in {self.seconds:.1f} s; {self.kept_commits:,} commits, "
            f"{self.kept_nodes:,} nodes and {self.kept_chunks:,} chunks remain."
        )
        if self.sessions:
            text += f"\n{deleted} what {self.sessions:,} dead sessions left."
        if self.nbytes and not self.dry_run:
            text += "\nThe file keeps its size and uses the space again; compact makes it smaller."
        return text

    __repr__ = __str__


def gc(
    objects: Objects,
    settings: Settings,
    *,
    dry_run: bool = False,
    checkpoints_older_than: timedelta = _TWO_WEEKS,
    progress: Progress | None = None,
) -> GcReport:
    """Delete what is reachable from nothing: commits, nodes, chunks, and what dead sessions left.

    Kept is what can be reached from a branch, a tag or the reflog (``expire`` shortens that), from
    a commit that a session of any process is on, and from the work of sessions whose process lives.
    Of a dead session, a checkpoint is kept unless it is ``checkpoints_older_than`` so much, and so
    is the work of one on another machine, of which nobody knows whether it lives, counted from when
    it wrote last.

    Others read and commit meanwhile; they wait for some 20 ms at a time. If it is interrupted, the
    file is sound, and the next one goes on. LMDB does not make the file smaller: pages that become
    free are used again, and ``compact`` gives them back. With ``dry_run`` nothing is written.
    ``progress(done, total, what)`` is called now and then, while no lock is held.

    Raises ``CorruptError`` where something that is in use is missing or damaged, since what it
    refers to is not known; ``BusyError`` if another collection, or another writer, takes longer
    than the timeout; ``ReadOnlyError``, ``FullError``, ``InvalidInputError``.

    Cost: O(reachable nodes + stored chunks): for each chunk 0.6 µs to mark it, 2 µs to look whether
    it is marked, and 4 µs to delete it. Memory: 8 bytes a reachable chunk, 100 a node or commit.
    """
    if not isinstance(checkpoints_older_than, timedelta) or checkpoints_older_than < timedelta():
        raise InvalidInputError(
            f"checkpoints_older_than= is a timedelta, not {checkpoints_older_than!r}"
        )
    environment = objects.environment
    if environment.read_only and not dry_run:
        raise ReadOnlyError(
            f"{environment.path} is open for reading only: open it for writing, or look with "
            "dry_run=True at what would be deleted"
        )
    horizon = now() - checkpoints_older_than // timedelta(microseconds=1)
    collector = _Collector(objects, settings, horizon, progress, dry_run=dry_run)
    return collector.collect()


@final
class _Budget:
    """What may still be deleted in one write txn."""

    __slots__ = ("_deadline", "_deletions")

    def __init__(self) -> None:
        self._deletions = _DELETIONS
        self._deadline = time.monotonic() + _DELETING_SECONDS

    def spend(self) -> bool:
        """Take one deletion from it; False if it is used up."""
        self._deletions -= 1
        return self._deletions >= 0 and time.monotonic() < self._deadline


@final
class _Collector:
    """One collection of garbage."""

    def __init__(
        self,
        objects: Objects,
        settings: Settings,
        horizon: int,
        progress: Progress | None,
        *,
        dry_run: bool,
    ) -> None:
        self._environment = objects.environment
        self._timeout = settings.timeout
        self._progress = progress
        self._dry_run = dry_run
        # Whether no other collection can run at the same time.
        self._alone = False
        self._marks = Marks(self._environment.path)
        # The newest txn of which everything is marked, and whether ours has written since.
        self._seen = -1
        self._wrote = False
        self._liveness = Liveness(self._environment, self._marks, horizon)
        self._commits_swept = False
        self._deleted = {"commits": 0, "nodes": 0, "chunks": 0, "checksums": 0, "sessions": 0}
        self._freed_bytes = 0

    def collect(self) -> GcReport:
        started = time.monotonic()
        with self._turn():
            self._catch_up()
            self._end_sessions()
            self._sweep_commits()
            self._sweep("nodes", self._unmarked_nodes)
            self._sweep("chunks", self._marks.values.missing)
            self._sweep("checksums", self._marks.values.missing)
        deleted = self._deleted
        with self._environment.read() as txn:
            stored = {name: txn.count(name) for name in ("commits", "nodes", "chunks")}
        kept = {
            name: count - deleted[name] if self._dry_run else count
            for name, count in stored.items()
        }
        return GcReport(
            commits=deleted["commits"],
            nodes=deleted["nodes"],
            chunks=deleted["chunks"],
            nbytes=self._freed_bytes,
            sessions=deleted["sessions"],
            kept_commits=kept["commits"],
            kept_nodes=kept["nodes"],
            kept_chunks=kept["chunks"],
            seconds=time.monotonic() - started,
            dry_run=self._dry_run,
        )

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Keep other collections out, where the system has locks for that.

        Two at once would lose nothing. But what one has marked and the other deletes would look
        like damage, and new commits could not be told by their number.
        """
        turn = Turn(self._environment, QUEUE)
        try:
            if not self._environment.read_only:
                turn.acquire(self._timeout)
                self._alone = True
        except BusyError as error:
            raise BusyError(
                f"another collection of garbage runs on {self._environment.path}: "
                f"{error.holder or 'in another process'}; waited {self._timeout:g} seconds",
                holder=error.holder,
            ) from error
        except StorageError:
            # There are no such locks.
            self._alone = False
        try:
            yield
        finally:
            turn.release()

    def _report(self, done: int, total: int, what: str) -> None:
        if self._progress is not None:
            self._progress(done, max(done, total), what)

    # ── marking ──────────────────────────────────────────────────────────────────────────────────

    def _catch_up(self) -> None:
        """Mark what is reachable and not marked yet, as of now. Holds no lock."""
        if self._environment.last_txn_id() == self._seen:
            return
        with self._environment.read() as txn:
            # Not what was asked for above: a commit shows there just before txns begin to see it.
            seen = txn.id
            self._marks.look_ahead(txn)
            self._liveness.look(txn)
        self._walk()
        with self._environment.read() as txn:
            self._adopt_strays(txn)
        self._walk()
        self._seen = seen

    def _walk(self) -> None:
        done = False
        while not done:
            with self._environment.read() as txn:
                done = self._marks.walk(txn, _WALKED)
                total = txn.count("nodes")
            self._report(len(self._marks.nodes), total, "marking")

    @contextlib.contextmanager
    def _txn(self) -> Iterator[Txn]:
        """Give a txn at whose beginning all that is reachable is marked."""
        self._catch_up()
        if self._dry_run:
            with self._environment.read() as txn:
                yield txn
            return
        with self._environment.write(timeout=self._timeout, room=_ROOM_BYTES) as txn:
            newest = self._environment.last_txn_id()
            if newest != self._seen:
                # Others were faster once more, but not by much. From here on nobody is.
                self._liveness.look(txn)
                self._marks.walk(txn)
                self._adopt_strays(txn)
                self._marks.walk(txn)
            self._wrote = False
            yield txn
        # Ours is the next one, if there is one, and adds nothing to be marked.
        self._seen = newest + self._wrote

    def _adopt_strays(self, txn: Txn) -> None:
        """Keep commits that came and went while nodes are deleted: amended, their reflog expired.

        Nothing names them, but they are in the file, and some session may be on one: their nodes
        must not go before them. The next collection takes both.
        """
        if self._dry_run or not self._commits_swept:
            return
        # All that is marked is in the file, so that the number of commits tells whether more is.
        if self._alone and txn.count("commits") == len(self._marks.commits):
            return
        for commit, _ in txn.scan("commits", keys_only=True):
            self._marks.want_commit(commit)

    # ── sessions ─────────────────────────────────────────────────────────────────────────────────

    def _end_sessions(self) -> None:
        """Delete what dead sessions have left, but for checkpoints."""
        done = False
        while not done:
            with self._txn() as txn:
                sessions = [found for found in self._liveness.sessions(txn) if found.fate != "kept"]
                if self._dry_run:
                    self._deleted["sessions"] = _count_leases(sessions)
                    return
                self._delete_leases(txn, sessions)
                done = self._delete_records(txn, sessions)

    def _delete_leases(self, txn: Txn, sessions: Sequence[Found]) -> None:
        """Delete the leases of the dead, or write down that only a checkpoint is left."""
        for found in sessions:
            key, lease = session_key(found.id, 0), found.lease
            if lease is None:
                continue
            if found.fate == "gone":
                self._wrote |= txn.delete("sessions", key)
                self._deleted["sessions"] += 1
                continue
            # Should its owner live after all, the token says to it that the rest is gone.
            rest = replace(lease, token=NOBODY, staged=None)
            if rest != lease:
                self._wrote |= txn.put("sessions", key, encode_lease(rest))

    def _delete_records(self, txn: Txn, sessions: Sequence[Found]) -> bool:
        """Delete what lies beside the leases of the dead; tell whether that was all."""
        budget = _Budget()
        for found in sessions:
            start = session_key(found.id, 1)
            for key, _ in txn.scan("sessions", prefix=found.id, start=start, keys_only=True):
                if not budget.spend():
                    return False
                self._wrote |= txn.delete("sessions", key)
        return True

    # ── sweeping ─────────────────────────────────────────────────────────────────────────────────

    def _sweep_commits(self) -> None:
        """Delete commits that are not marked, children before their parents."""
        waiting: Sequence[bytes] = self._unmarked_commits()
        total = len(waiting)
        gone: dict[bytes, bytes] = {}
        while waiting or gone:
            with self._txn() as txn:
                # A session takes hold of a commit and then looks whether it is there. Of those that
                # looked before the txn that deleted it had ended, this is the first time that we
                # are sure to see the hold.
                self._restore_pinned(txn, gone)
                self._liveness.look_at_pins(txn)
                self._marks.walk(txn)
                gone, waiting = self._delete_commits(txn, waiting)
            self._report(total - len(waiting), total, "commits")
        self._commits_swept = True
        # Look at everything once more: there may be new commits that nothing names any more.
        self._seen = -1

    def _unmarked_commits(self) -> list[bytes]:
        """List the commits that are not marked, each before its parents. O(commits)."""
        parents: dict[bytes, tuple[Digest, ...]] = {}
        with self._environment.read() as txn:
            for commit, _ in txn.scan("commits", keys_only=True):
                if commit not in self._marks.commits:
                    parents[commit] = decode_commit(txn.get("commits", commit) or b"").parents
        children = dict.fromkeys(parents, 0)
        for parent in chain.from_iterable(parents.values()):
            if parent in children:
                children[parent] += 1
        ready = [commit for commit, number in children.items() if not number]
        order = []
        while ready:
            commit = ready.pop()
            order.append(commit)
            for parent in parents[commit]:
                if parent in children:
                    children[parent] -= 1
                    if not children[parent]:
                        ready.append(parent)
        return order

    def _delete_commits(
        self, txn: Txn, commits: Sequence[bytes]
    ) -> tuple[dict[bytes, bytes], Sequence[bytes]]:
        """Delete the first of these commits; give what is gone, and the others."""
        gone: dict[bytes, bytes] = {}
        budget = _Budget()
        for number, commit in enumerate(commits):
            if commit in self._marks.commits:
                continue
            if not budget.spend():
                return gone, commits[number:]
            data = txn.get("commits", commit)
            if self._delete(txn, "commits", commit) and data is not None and not self._dry_run:
                gone[commit] = data
        return gone, ()

    def _restore_pinned(self, txn: Txn, gone: dict[bytes, bytes]) -> None:
        """Put back what the last txn deleted and a session is on. O(pins + commits)."""
        by_head: dict[bytes, list[bytes]] = {}
        for commit in gone:
            by_head.setdefault(commit[:4], []).append(commit)
        restored = [
            commit
            for pin in self._environment.pins()
            for commit in by_head.get(first_bytes(pin.prefix), ())
            if pin.matches(Digest(commit))
        ]
        while restored:
            commit = restored.pop()
            data = gone.pop(commit, None)
            if data is not None:
                self._wrote |= txn.put("commits", commit, data)
                self._deleted["commits"] -= 1
                self._freed_bytes -= len(data)
                restored += decode_commit(data).parents

    def _unmarked_nodes(self, digests: Sequence[bytes]) -> list[bytes]:
        return [digest for digest in digests if digest not in self._marks.nodes]

    def _sweep(self, database: str, unmarked: Callable[[Sequence[bytes]], list[bytes]]) -> None:
        """Delete what is not marked, in the order of the keys."""
        garbage: list[bytes] = []
        start, scanned = b"", 0
        while True:
            with self._environment.read() as txn:
                found = islice(txn.scan(database, start=start, keys_only=True), _SCANNED)
                keys = [key for key, _ in found]
                total = txn.count(database)
            garbage += unmarked(keys)
            ended = len(keys) < _SCANNED
            while len(garbage) >= _DELETIONS or (ended and garbage):
                with self._txn() as txn:
                    garbage = self._delete_first(txn, database, unmarked(garbage))
            scanned += len(keys)
            self._report(scanned, total, database)
            if ended:
                return
            # The first key beyond the last one.
            start = keys[-1] + b"\0"

    def _delete_first(self, txn: Txn, database: str, keys: Sequence[bytes]) -> list[bytes]:
        """Delete the first of these objects; give the others."""
        budget = _Budget()
        for number, key in enumerate(keys):
            if not budget.spend():
                return list(keys[number:])
            self._delete(txn, database, key)
        return []

    def _delete(self, txn: Txn, database: str, key: bytes) -> bool:
        """Delete an object and count it, or only count it; tell whether it was there."""
        value = txn.view(database, key)
        if value is None:
            return False
        self._freed_bytes += len(value)
        self._deleted[database] += 1
        if not self._dry_run:
            self._wrote |= txn.delete(database, key)
        return True


def _count_leases(sessions: Sequence[Found]) -> int:
    return sum(found.fate == "gone" and found.lease is not None for found in sessions)
