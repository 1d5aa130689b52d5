"""Erase data from all history: every commit that has them is written anew without them.

A commit's id is the digest of its content and of its parents' ids, so that with one commit all that
descend from it change. Everything is prepared first: snapshots without the data (``erasure``), then
commits in the order of their ancestry. One txn then writes what is new, lets branches, tags and
reflogs name it, and deletes the old commits. That is what keeps the data from coming back: whoever
began from one of these commits finds in the txn of its own commit that it is gone, and fails. What
only they had is garbage from there on, and is collected at once.
"""

from __future__ import annotations

import gc as collector
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import final

from vzarr import garbage, history, leases, refs
from vzarr.committing import Settings, flush
from vzarr.environment import Txn
from vzarr.erasure import Eraser, Sighting
from vzarr.errors import (
    BusyError,
    InvalidInputError,
    ReadOnlyError,
    SessionStateError,
    StorageError,
)
from vzarr.format import (
    Digest,
    LeaseRecord,
)
from vzarr.garbage import GcReport
from vzarr.hierarchy import collect
from vzarr.history import now
from vzarr.leases import SessionInfo
from vzarr.liveness import first_bytes
from vzarr.objects import Objects, put_chunk, put_root, root_digest
from vzarr.progress import Progress
from vzarr.rewriting import Plan, Planner
from vzarr.session import Session, open_sessions
from vzarr.system import running
from vzarr.turns import Turn
from vzarr.window import Window

# What is new and this large is written ahead of the txn that makes it count.
_SPILL_BYTES = 64 << 20
_SHOWN_PLACES, _SHOWN_LINES = 100, 10


# ── what is told of it ───────────────────────────────────────────────────────────────────────────


@final
@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A place that was not to be erased, and has the same bytes as one that was."""

    path: str
    """Of an array, or the key of a document or file."""
    coordinates: tuple[int, ...] | None
    """Of the chunk in an array's grid of chunks; None for a document or file."""
    commit: str
    """The newest commit that shows it."""

    def __str__(self) -> str:
        where = "" if self.coordinates is None else f" chunk {self.coordinates}"
        return f"{self.path or '/'}{where}, in commit {self.commit[:12]}"


@final
@dataclass(frozen=True, slots=True)
class RedactReport:
    """What ``redact`` erased, or with ``dry_run`` would have; prints as a summary."""

    path: str
    paths: tuple[str, ...]
    """All that the array or group was called in the course of its history."""
    changed: int
    """Commits that had the data."""
    rewritten: Mapping[str, str]
    """These and all that descend from them: old id → new id."""
    branches: tuple[str, ...]
    tags: tuple[str, ...]
    """Those that name another commit now."""
    chunks: int
    """Distinct chunks and files that were taken out."""
    reencoded: int
    """Distinct chunks that were put in their place, because a part of them stays."""
    nbytes: int
    """Bytes of the chunks and files that are not in the file any more."""
    elsewhere: tuple[Elsewhere, ...]
    """Places where the same bytes are still to be had; the first 100."""
    elsewhere_places: int
    sessions: tuple[SessionInfo, ...]
    """Sessions and checkpoints that stand in the way, or with ``force`` lost their base."""
    held: int
    """Chunks that are still in the file, because uncommitted work of a session holds them."""
    collected: GcReport | None
    """What of the old history was deleted; None if that could not be done yet."""
    dry_run: bool
    seconds: float

    def __str__(self) -> str:
        would = "Would erase" if self.dry_run else "Erased"
        name = self.path or "/"
        if not self.rewritten:
            return f"Nothing to erase: no commit has data of {name} there."
        what = (
            f"{would} {self.chunks:,} chunks ({self.nbytes:,} bytes) of {name} from "
            f"{self.changed:,} commits; {len(self.rewritten):,} commits get new ids."
        )
        lines = [what, *self._names()]
        if self.elsewhere:
            shown = [f"  {place}" for place in self.elsewhere[:_SHOWN_LINES]]
            more = self.elsewhere_places - len(shown)
            others = f"The same bytes are in {self.elsewhere_places:,} other places, and stay there"
            lines += [f"{others} unless everywhere=True is given:", *shown]
            lines += [f"  … and {more:,} more"] if more > 0 else []
        if self.sessions:
            lines.append("These stand in the way:" if self.dry_run else "These lost their base:")
            lines += [f"  {session}" for session in self.sessions[:_SHOWN_LINES]]
        return "\n".join([*lines, *self._next_steps()])

    __repr__ = __str__

    def _names(self) -> Iterator[str]:
        if len(self.paths) > 1:
            yield f"It was moved: {', '.join(self.paths)}."
        if self.reencoded:
            yield f"{self.reencoded:,} chunks were encoded anew, because a part of them stays."
        for what, names in (("Branches", self.branches), ("Tags", self.tags)):
            if names:
                yield f"{what}: {', '.join(names)}."

    def _next_steps(self) -> Iterator[str]:
        if self.dry_run:
            return
        if self.collected is None:
            yield "The old history could not be deleted yet, because the file was busy: run gc."
        if self.held:
            yield (
                f"Uncommitted work of a session holds {self.held:,} of the chunks: end it, run gc."
            )
        yield (
            "Free pages of the file hold the bytes until they are used again: run compact now. "
            "Backups, clones and exports keep what they have."
        )


# ── the whole of it ──────────────────────────────────────────────────────────────────────────────


def redact(
    objects: Objects,
    settings: Settings,
    path: str,
    region: object = None,
    *,
    reason: str = "",
    everywhere: bool = False,
    whole_chunks: bool = False,
    force: bool = False,
    dry_run: bool = False,
    spare: Session | None = None,
    progress: Progress | None = None,
) -> RedactReport:
    """Erase data from all history; see ``Repository.redact``. ``spare`` is a session to ignore."""
    if not isinstance(path, str):
        raise InvalidInputError(f"a path is a string like 'group/array', not {path!r}")
    history.check_message(reason)
    window = None if region is None else Window.of(region)
    if objects.environment.read_only and not dry_run:
        raise ReadOnlyError(
            f"{objects.environment.path} is open for reading only: open it for writing, or look "
            "with dry_run=True at what would be erased"
        )
    with Eraser(objects, window, whole_chunks=whole_chunks) as eraser:
        redaction = _Redaction(
            objects,
            settings,
            eraser,
            path.strip("/"),
            everywhere=everywhere,
            force=force,
            dry_run=dry_run,
            spare=spare,
            progress=progress,
        )
        return redaction.run(reason)


@final
class _Redaction:
    """One redaction."""

    def __init__(
        self,
        objects: Objects,
        settings: Settings,
        eraser: Eraser,
        path: str,
        *,
        everywhere: bool,
        force: bool,
        dry_run: bool,
        spare: Session | None,
        progress: Progress | None,
    ) -> None:
        self._objects = objects
        self._environment = objects.environment
        self._settings = settings
        self._eraser = eraser
        self._path = path
        self._force = force
        self._dry_run = dry_run
        self._spare = spare
        self._progress = progress
        self._planner = Planner(
            objects, eraser, path, everywhere=everywhere, spill=self._spill, progress=progress
        )
        # Whether no collection may take what is written ahead.
        self._alone = False

    def run(self, reason: str) -> RedactReport:
        started = time.monotonic()
        # Stores and arrays that nobody has any more should not stand in the way.
        collector.collect()
        turn = self._keep_collections_out()
        try:
            plan = self._planner.plan()
            places = self._look_elsewhere(plan)
            obstacles: list[SessionInfo] = []
            if self._dry_run:
                with self._environment.read() as txn:
                    obstacles = [info for info, _ in self._obstacles(txn, plan)]
            elif plan.ids:
                noted, why = plan, self._why(reason)
                plan, obstacles, moved = self._apply(plan, why)
                if plan is not noted:
                    places = self._look_elsewhere(plan)
        finally:
            turn.release()
        collected = None
        if not self._dry_run and plan.ids:
            flush(self._environment, self._settings, next(iter(plan.ids.values())))
            # The data are out of history already; what is left to do, any collection does.
            with suppress(BusyError, StorageError):
                collected = garbage.gc(self._objects, self._settings, progress=self._progress)
        else:
            moved = self._names(plan)
        return self._report(plan, places, obstacles, moved, collected, time.monotonic() - started)

    def _why(self, reason: str) -> str:
        subject = reason.partition("\n")[0]
        return f"redact {self._path or '/'}" + (f": {subject}" if subject else "")

    def _keep_collections_out(self) -> Turn:
        """Have no garbage collected meanwhile: ours are new objects that nothing refers to yet."""
        turn = Turn(self._environment, garbage.QUEUE)
        if not self._dry_run:
            try:
                turn.acquire(self._settings.timeout)
                self._alone = True
            except BusyError as error:
                raise BusyError(
                    f"garbage is being collected in {self._environment.path}, by "
                    f"{error.holder or 'another process'}; waited {self._settings.timeout:g} "
                    "seconds: try again",
                    holder=error.holder,
                ) from error
            except StorageError:
                # There are no such locks: then nothing is written ahead.
                self._alone = False
        return turn

    def _report(
        self,
        plan: Plan,
        places: Sequence[tuple[Digest, Sighting]],
        obstacles: Sequence[SessionInfo],
        moved: tuple[list[str], list[str]],
        collected: GcReport | None,
        seconds: float,
    ) -> RedactReport:
        dropped, shown = self._eraser.dropped, {place.digest for _, place in places}
        left = shown
        if not self._dry_run:
            with self._environment.read() as txn:
                left = {digest for digest in dropped if txn.contains("chunks", digest)}
        ids: Mapping[Digest, Digest] = {} if self._dry_run else plan.ids
        elsewhere = tuple(
            Elsewhere(place.path, place.coordinates, ids.get(commit, commit).hex())
            for commit, place in places[:_SHOWN_PLACES]
        )
        return RedactReport(
            path=self._path,
            paths=tuple(sorted(plan.paths)),
            changed=plan.changed,
            rewritten=MappingProxyType(
                {old.hex(): new.hex() for old, new in plan.ids.items() if old in plan.reachable}
            ),
            branches=tuple(moved[0]),
            tags=tuple(moved[1]),
            chunks=len(dropped),
            reencoded=self._eraser.reencoded,
            nbytes=sum(size for digest, size in dropped.items() if digest not in left),
            elsewhere=elsewhere,
            elsewhere_places=len(places),
            sessions=tuple(obstacles),
            held=len(left - shown) if collected is not None else 0,
            collected=collected,
            dry_run=self._dry_run,
            seconds=seconds,
        )

    def _look_elsewhere(self, plan: Plan) -> list[tuple[Digest, Sighting]]:
        """Find what was taken out and is in the new snapshots all the same, newest commit first."""
        newest = sorted(plan.reachable, key=lambda commit: -plan.commits[commit].time)
        shown: dict[Digest, Digest] = {}
        for commit in newest:
            shown.setdefault(plan.commits[commit].root, commit)
        commits = list(shown.values())
        entries = (plan.entries[plan.commits[commit].root] for commit in commits)
        return [(commits[number], sighting) for number, sighting in self._eraser.sightings(entries)]

    def _names(self, plan: Plan) -> tuple[list[str], list[str]]:
        """Find the branches and tags that are to name other commits."""
        with self._environment.read() as txn:
            branches = [name for name, head in refs.branches(txn) if head in plan.ids]
            tags = [
                tag.name for tag in refs.tags(txn) if Digest(bytes.fromhex(tag.commit)) in plan.ids
            ]
        return branches, tags

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    def _spill(self) -> None:
        """Write what is new ahead, if it is a lot, so that memory is bounded."""
        if self._dry_run or not self._alone:
            return
        nbytes = self._eraser.overlay.nbytes + sum(map(len, self._eraser.staged.values()))
        if nbytes >= _SPILL_BYTES:
            with self._environment.write(timeout=self._settings.timeout, room=nbytes) as txn:
                self._write_objects(txn)
            self._forget()

    def _write_objects(self, txn: Txn) -> None:
        nodes, _ = collect(self._eraser.overlay, *self._planner.fresh)
        for digest, data in self._eraser.staged.items():
            put_chunk(txn, digest, data)
        for digest, data in nodes.items():
            txn.put("nodes", digest, data, overwrite=False)

    def _forget(self) -> None:
        self._eraser.overlay.forget()
        self._eraser.staged.clear()
        self._planner.fresh.clear()

    def _apply(
        self, plan: Plan, why: str
    ) -> tuple[Plan, list[SessionInfo], tuple[list[str], list[str]]]:
        """Put the new history in the place of the old one, in one txn."""
        room = self._eraser.overlay.nbytes + sum(map(len, self._eraser.staged.values()))
        with self._environment.write(timeout=self._settings.timeout, room=room) as txn:
            if self._environment.last_txn_id() != self._planner.seen:
                # Others have committed since; from here on nobody does.
                self._alone = False
                plan = self._planner.plan()
            obstacles = list(self._obstacles(txn, plan))
            if not self._force:
                self._require_none([info for info, _ in obstacles])
            # Objects first: nothing can reach them until the refs move.
            self._write_objects(txn)
            for root, entry in plan.entries.items():
                if root_digest(entry) != root:
                    put_root(txn, entry)
            for old, record in plan.records.items():
                if old in plan.reachable:
                    history.put(txn, record)
            # The old commits go with the refs, so that nobody can begin or go on from one.
            moved = refs.rewrite(txn, plan.ids, self._settings.author(), now(), why)
            for old in plan.ids.keys() - set(plan.ids.values()):
                txn.delete("commits", old)
            for _, session_id in obstacles:
                if session_id is not None:
                    leases.delete(txn, session_id)
        return plan, [info for info, _ in obstacles], moved

    # ── who is in the way ────────────────────────────────────────────────────────────────────────

    def _obstacles(self, txn: Txn, plan: Plan) -> Iterator[tuple[SessionInfo, bytes | None]]:
        """Find sessions on commits that are to go, and checkpoints that hold the data.

        Gives the id of those that have a lease in the file.
        """
        known = set()
        for session_id, lease in list(leases.leases(txn)):
            alive = leases.is_alive(self._environment, session_id, lease)
            if alive is False and lease.checkpoint is None and lease.parent is None:
                # Nobody can go on with it: garbage.
                continue
            if self._spare is not None and self._spare.id == session_id.hex():
                continue
            if lease.base in plan.ids or self._holds(lease):
                known.add((lease.pid, lease.base))
                yield leases.describe(session_id, lease, alive), session_id
        for session in list(open_sessions.values()):
            base = Digest(bytes.fromhex(session.base))
            if (
                session.environment is self._environment
                and session is not self._spare
                and base in plan.ids
                and (os.getpid(), base) not in known
            ):
                yield session.info, None
        for pid, base in self._pinned_by_others(plan.ids):
            if (pid, base) not in known:
                yield _reader(pid, base), None

    def _holds(self, lease: LeaseRecord) -> bool:
        """Whether uncommitted work has data of what is to be erased."""
        for root in (lease.checkpoint, lease.staged):
            if root is not None:
                entry = self._objects.load_root(root)
                if self._eraser.erase(entry, self._path) != entry:
                    return True
        return False

    def _pinned_by_others(self, commits: Iterable[Digest]) -> Iterator[tuple[int, Digest]]:
        by_head: dict[bytes, list[Digest]] = {}
        for commit in commits:
            by_head.setdefault(commit[:4], []).append(commit)
        for pin in self._environment.pins():
            if pin.pid != os.getpid():
                for commit in by_head.get(first_bytes(pin.prefix), ()):
                    if pin.matches(commit):
                        yield pin.pid, commit

    def _require_none(self, obstacles: Sequence[SessionInfo]) -> None:
        what = f"cannot redact {self._path or '/'}: "
        rest = "; or force=True goes on, and they cannot commit any more"
        mine = [info for info in obstacles if info.alive and info.owner.pid == os.getpid()]
        if mine:
            raise SessionStateError(
                f"{what}sessions of this process are on commits that would be rewritten: "
                f"{_list(mine)}. Close them, and let go of their stores{rest}"
            )
        busy = [info for info in obstacles if info.alive]
        if busy:
            raise BusyError(
                f"{what}other processes are on commits that would be rewritten: {_list(busy)}. "
                f"End their sessions{rest}",
                holder=busy[0].owner,
            )
        if obstacles:
            raise SessionStateError(
                f"{what}checkpoints hold the data, or rest on them: {_list(obstacles)}. Resume and "
                "commit or discard them; or force=True drops them"
            )


def _reader(pid: int, base: Digest) -> SessionInfo:
    return SessionInfo(
        id="",
        kind="reader",
        owner=running(pid, None),
        branch=None,
        base=base.hex(),
        created=None,
        updated=None,
        checkpointed=None,
        nbytes=0,
        parent=None,
        alive=True,
    )


def _list(sessions: Sequence[SessionInfo]) -> str:
    shown = [" ".join(str(info).split()) for info in sessions[:3]]
    more = len(sessions) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")
