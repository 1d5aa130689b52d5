"""Commits made of other commits: merge, cherry-pick, revert, squash.

Each is a three-way merge of snapshots on top of a branch, and differs in what it takes for base and
for the other side:

============  ========================  ===============  ==============
verb          base                      other side       parents
============  ========================  ===============  ==============
merge         the merge base            the other head   head and other
cherry-pick   the commit's parent       the commit       head
revert        the commit                its parent       head
squash        (nothing is merged)       (nothing)        an older one
============  ========================  ===============  ==============

It happens in a session on the branch, which commits as any session does: all or nothing, durable,
by compare-and-set. Where another writer moves the branch meanwhile, all is done again on the new
head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal, final

from vzarr import history, refs
from vzarr.btree import Tree
from vzarr.committing import Settings, author_of, on_head, require_head
from vzarr.diff import Diff, Side, diff
from vzarr.errors import InvalidInputError, MergeConflict, SessionStateError
from vzarr.forecast import Watched, bytes_to_merge
from vzarr.format import (
    EMPTY_ENTRY,
    Blob,
    CommitRecord,
    Digest,
    Entry,
    decode_entry,
    encode_coordinates,
    encode_entry,
    entry_measure,
)
from vzarr.hierarchy import Hierarchy, join
from vzarr.history import now
from vzarr.merge import Conflict, Strategy, check_strategy, list_conflicts, merge
from vzarr.objects import Objects, Overlay, Store
from vzarr.progress import Meter, Progress
from vzarr.revisions import resolve
from vzarr.session import Session
from vzarr.turns import Turn

Kind = Literal["up to date", "fast-forward", "merge"]
# Where a merge goes unless it is named: git, too, then leaves it out of the message.
_DEFAULT_BRANCH = "main"


@final
@dataclass(frozen=True, slots=True)
class MergePreview:
    """What a merge would do; prints as a summary."""

    source: str
    into: str
    """What would be merged into which branch, as the user named it."""
    kind: Kind
    """``up to date``: nothing to do. ``fast-forward``: the branch would move, without a commit."""
    bases: tuple[str, ...]
    """Ids of the merge bases: one, several if merges crossed, none for unrelated histories."""
    diff: Diff
    """What would change on ``into``; where there is a conflict, its own side is kept."""
    conflicts: tuple[Conflict, ...]
    """All that both sides changed; the merge would raise ``MergeConflict``."""

    def head(self) -> str:
        """Say what would happen, in a line."""
        number = len(self.conflicts)
        more = f" with {number} conflict{'s' if number > 1 else ''}" if number else ""
        return f"{self.source} into {self.into}: {self.kind}{more}"

    def __str__(self) -> str:
        lines = [self.head(), *map(str, self.diff)]
        return "\n".join([*lines, *(f"! {conflict}" for conflict in self.conflicts)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from vzarr.notebook import preview_html

        return preview_html(self)


@final
@dataclass(frozen=True, slots=True)
class _Words:
    """What the user said about the commit to make; None for what follows from the commits."""

    message: str | None
    metadata: dict[str, Any] | None
    author: str | None

    @classmethod
    def check(
        cls, message: str | None, metadata: Mapping[str, Any] | None, author: str | None
    ) -> _Words:
        if message is not None:
            history.check_message(message)
        return cls(message, None if metadata is None else history.check_metadata(metadata), author)


@final
class Combiner:
    """The verbs on one repository; ``Repository`` documents them for users."""

    def __init__(
        self, objects: Objects, settings: Settings, open_store: Callable[[Session], Any]
    ) -> None:
        self._objects = objects
        self._environment = objects.environment
        self._settings = settings
        self._open_store = open_store

    # ── merge ────────────────────────────────────────────────────────────────────────────────────

    def merge(
        self,
        source: str | datetime,
        into: str,
        strategy: Strategy,
        *,
        no_ff: bool,
        message: str | None,
        metadata: Mapping[str, Any] | None,
        author: str | None,
        progress: Progress | None = None,
    ) -> Digest:
        """Merge a commit into a branch and give the branch's new head."""
        words = _Words.check(message, metadata, author)
        _check(into, strategy)
        other = resolve(self._environment, source, branch=into).commit
        default = self._merge_message(source, into)
        turn = Turn(self._environment, into)
        meter = Meter(progress)

        def attempt(head: Digest) -> Digest:
            meter.stage("look", 0)
            bases = history.merge_bases(self._environment, [head], [other])
            kind = _kind(head, other, bases)
            if kind == "up to date":
                return head
            if kind == "fast-forward" and not no_ff:
                return self._forward(turn, head, other, f"merge: fast-forward to {source}")
            with closing(self._session(head, into, turn)) as session:
                self._combine(
                    session,
                    lambda objects: self._base(objects, bases),
                    self._root(other),
                    strategy,
                    f"cannot merge {source} into {into!r}",
                    meter,
                )
                record = self._record(head, words, default, parents=(head, other))
                meter.stage("commit", 0)
                return session.commit_as(record, "merge", needs=[other])

        return on_head(self._environment, self._settings, turn, attempt)

    def preview(
        self,
        source: str | datetime,
        into: str,
        strategy: Strategy,
        *,
        progress: Progress | None = None,
    ) -> MergePreview:
        """Tell what a merge would do. Writes nothing."""
        _check(into, strategy)
        meter = Meter(progress)
        meter.stage("look", 0)
        other = resolve(self._environment, source, branch=into).commit
        with self._environment.read() as txn:
            head = refs.head(txn, into)
        bases = history.merge_bases(self._environment, [head], [other])
        kind = _kind(head, other, bases)
        memory = _Memory()
        objects = Overlay(self._objects, memory)
        ours = merged = self._root(head)
        conflicts: list[Conflict] = []
        if kind == "fast-forward":
            merged = self._root(other)
        elif kind == "merge":
            base = self._base(objects, bases)
            sides = (base, ours, self._root(other))
            merged, conflicts = _merge(objects, sides, strategy, meter)
        meter.end()

        def open_side(side: Side, path: str) -> Any:
            import zarr

            if side == "old" or kind != "merge":
                session = self._session(head if side == "old" else other, None)
            else:
                session = self._session(head, into)
                session.show(merged, objects, memory)
            return zarr.open(session.store, path=path, mode="r")

        changes = Diff(into, str(source), diff(objects, ours, merged, open_side))
        names = tuple(base.hex() for base in bases)
        return MergePreview(str(source), into, kind, names, changes, tuple(conflicts))

    def _merge_message(self, source: str | datetime, into: str) -> str:
        what = "commit"
        if isinstance(source, str):
            with self._environment.read() as txn:
                if refs.find_head(txn, source) is not None:
                    what = "branch"
                elif refs.find_tag(txn, source) is not None:
                    what = "tag"
        where = "" if into == _DEFAULT_BRANCH else f" into {into}"
        return f"Merge {what} '{source}'{where}"

    def _forward(self, turn: Turn, head: Digest, to: Digest, why: str) -> Digest:
        """Move a branch to a commit that descends from its head."""
        author = self._settings.author()
        with self._environment.write(timeout=self._settings.timeout) as txn:
            require_head(self._environment, txn, turn, head)
            history.require(txn, [to])
            refs.move_branch(txn, turn.branch, head, to, author, now(), why)
        return to

    def _base(self, objects: Store, bases: Sequence[Digest]) -> Entry:
        """Give the snapshot that both sides come from, of no, one or several merge bases.

        Several are merged into one that exists only here, as git's recursive strategy does. What
        they conflict in has the value of *their* base there: a head that resolved it either way
        then counts as having changed it, so that two heads which resolved it differently conflict
        again, and none is preferred silently.
        """
        if not bases:
            return EMPTY_ENTRY
        # Oldest first, whichever way the merge goes, so that the result is the same both ways.
        merged, so_far = self._root(bases[0]), [bases[0]]
        for base in bases[1:]:
            older = self._base(objects, history.merge_bases(self._environment, so_far, [base]))
            theirs = self._root(base)
            merged, conflicts = merge(objects, older, merged, theirs)
            merged = _take_back(objects, merged, older, conflicts)
            so_far.append(base)
        return merged

    # ── cherry-pick, revert, squash ──────────────────────────────────────────────────────────────

    def cherry_pick(
        self,
        source: str | datetime,
        onto: str,
        strategy: Strategy,
        *,
        mainline: int | None,
        note_origin: bool,
        message: str | None,
        metadata: Mapping[str, Any] | None,
        author: str | None,
        progress: Progress | None = None,
    ) -> Digest:
        """Apply what a commit changed on top of a branch and give the new commit's id."""
        words = _Words.check(message, metadata, author)
        _check(onto, strategy)
        commit = resolve(self._environment, source, branch=onto).commit
        picked = history.get(self._environment, commit)
        parent = _parent(commit, picked, mainline)
        note = f"\n\n(cherry picked from commit {commit.hex()})" if note_origin else ""

        def record(head: Digest) -> CommitRecord:
            record = self._record(head, words, picked.message)
            return replace(
                record,
                author=picked.author if words.author is None else record.author,
                message=record.message + note,
                metadata=picked.metadata if words.metadata is None else record.metadata,
            )

        before, after = self._root(parent), self._root(commit)
        what = f"cannot cherry-pick {commit.hex()[:12]} onto {onto!r}"
        meter = Meter(progress)
        return self._apply(
            onto, before, after, strategy, what, record, "cherry-pick", commit, meter
        )

    def revert(
        self,
        source: str | datetime,
        on: str,
        strategy: Strategy,
        *,
        mainline: int | None,
        message: str | None,
        metadata: Mapping[str, Any] | None,
        author: str | None,
        progress: Progress | None = None,
    ) -> Digest:
        """Undo what a commit changed on top of a branch and give the new commit's id."""
        words = _Words.check(message, metadata, author)
        _check(on, strategy)
        commit = resolve(self._environment, source, branch=on).commit
        reverted = history.get(self._environment, commit)
        parent = _parent(commit, reverted, mainline)
        default = f'Revert "{_subject(reverted)}"\n\nThis reverts commit {commit.hex()}'
        if len(reverted.parents) > 1 and parent is not None:
            default += f",\nreversing the changes made to {parent.hex()}"

        def record(head: Digest) -> CommitRecord:
            return self._record(head, words, f"{default}.")

        before, after = self._root(commit), self._root(parent)
        what = f"cannot revert {commit.hex()[:12]} on {on!r}"
        meter = Meter(progress)
        return self._apply(on, before, after, strategy, what, record, "revert", commit, meter)

    def squash(
        self,
        branch: str,
        since: str | datetime,
        *,
        message: str | None,
        metadata: Mapping[str, Any] | None,
        author: str | None,
        progress: Progress | None = None,
    ) -> Digest:
        """Replace a branch's commits after ``since`` by one and give its id."""
        words = _Words.check(message, metadata, author)
        refs.check_name(branch)
        start = resolve(self._environment, since, branch=branch).commit
        turn = Turn(self._environment, branch)
        meter = Meter(progress)

        def attempt(head: Digest) -> Digest:
            meter.stage("commits", 0)
            squashed: list[CommitRecord] = []
            for commit, record in history.first_parents(self._environment, head):
                if commit == start:
                    break
                squashed.append(record)
                meter.step(1)
            else:
                raise InvalidInputError(
                    f"cannot squash {branch!r} since {since}: {start.hex()[:12]} is not on its "
                    "line of first parents; repo.log lists the commits"
                )
            if not squashed:
                raise SessionStateError(f"nothing to squash: {branch!r} is at {start.hex()[:12]}")
            subjects = "\n".join(f"* {_subject(record)}" for record in reversed(squashed))
            number = len(squashed)
            default = f"Squash {number} commit{'s' if number > 1 else ''}\n\n{subjects}"
            meter.stage("commit", 0)
            with closing(self._session(head, branch, turn)) as session:
                record = self._record(head, words, default, parents=(start,))
                return session.commit_as(record, "squash")

        return on_head(self._environment, self._settings, turn, attempt)

    # ── what they share ──────────────────────────────────────────────────────────────────────────

    def _apply(
        self,
        branch: str,
        before: Entry,
        after: Entry,
        strategy: Strategy,
        what: str,
        record: Callable[[Digest], CommitRecord],
        operation: str,
        commit: Digest,
        meter: Meter,
    ) -> Digest:
        """Commit the change from one snapshot to another on top of a branch."""
        turn = Turn(self._environment, branch)

        def attempt(head: Digest) -> Digest:
            with closing(self._session(head, branch, turn)) as session:
                self._combine(session, lambda _: before, after, strategy, what, meter)
                if not session.has_changes:
                    raise SessionStateError(
                        f"nothing to commit: {what}, since that changes nothing at its head "
                        f"{head.hex()[:12]}"
                    )
                meter.stage("commit", 0)
                return session.commit_as(record(head), operation, needs=[commit])

        return on_head(self._environment, self._settings, turn, attempt)

    def _combine(
        self,
        session: Session,
        base: Callable[[Store], Entry],
        theirs: Entry,
        strategy: Strategy,
        what: str,
        meter: Meter,
    ) -> None:
        """Merge another side into a session's state. Raises ``MergeConflict``."""

        def combine(objects: Overlay, ours: Entry) -> Entry:
            sides = (base(objects), ours, theirs)
            merged, conflicts = _merge(objects, sides, strategy, meter)
            if conflicts:
                raise MergeConflict(
                    f"{what}: {list_conflicts(conflicts)}. Nothing was written: say whose to take "
                    "with strategy='ours' or 'theirs', decide each with a function, or make both "
                    "sides agree first",
                    conflicts=conflicts,
                )
            return merged

        session.rework(combine)

    def _record(
        self, head: Digest, words: _Words, message: str, parents: tuple[Digest, ...] = ()
    ) -> CommitRecord:
        return CommitRecord(
            parents=parents or (head,),
            root=history.get(self._environment, head).root,
            author=author_of(self._settings, words.author),
            time=now(),
            message=message if words.message is None else words.message,
            metadata=words.metadata or {},
        )

    def _session(self, head: Digest, branch: str | None, turn: Turn | None = None) -> Session:
        return Session(self._objects, self._settings, head, branch, self._open_store, turn=turn)

    def _root(self, commit: Digest | None) -> Entry:
        """Load a commit's snapshot; before the first commit there was nothing."""
        if commit is None:
            return EMPTY_ENTRY
        return self._objects.load_root(history.get(self._environment, commit).root)


def _merge(
    objects: Overlay, sides: tuple[Entry, Entry, Entry], strategy: Strategy, meter: Meter
) -> tuple[Entry, list[Conflict]]:
    """Merge base, ours and theirs, and tell how far that is."""
    if not meter.is_heard:
        return merge(objects, *sides, strategy)
    meter.stage("compare", 0)
    meter.stage("merge", bytes_to_merge(objects, *sides))
    merged = merge(Watched(objects, meter), *sides, strategy)
    # Who looks at conflicts later reads through the same store, and is not told of.
    meter.end()
    return merged


def _check(branch: str, strategy: Strategy) -> None:
    refs.check_name(branch)
    check_strategy(strategy, "strategy=")


def _kind(head: Digest, other: Digest, bases: Sequence[Digest]) -> Kind:
    if other in bases:
        return "up to date"
    return "fast-forward" if head in bases else "merge"


def _parent(commit: Digest, record: CommitRecord, mainline: int | None) -> Digest | None:
    """Find the parent that a commit's change counts from; None for a first commit."""
    number = len(record.parents)
    if mainline is None and number > 1:
        raise InvalidInputError(
            f"commit {commit.hex()[:12]} is a merge of {number} parents: mainline= says from which "
            "of them, beginning at 1, its change counts"
        )
    if mainline is not None and not (isinstance(mainline, int) and 1 <= mainline <= number):
        raise InvalidInputError(
            f"mainline={mainline!r}: commit {commit.hex()[:12]} has {number} parent(s), "
            "and the first is 1"
        )
    return record.parents[(mainline or 1) - 1] if number else None


def _subject(record: CommitRecord) -> str:
    return record.message.partition("\n")[0]


def _take_back(objects: Store, merged: Entry, older: Entry, conflicts: Sequence[Conflict]) -> Entry:
    """Give all that conflicted in a merge the value it had before both sides. O(conflicts)."""
    before = Hierarchy(objects, older)
    for conflict in conflicts:
        if conflict.kind == "node":
            entry = before.entry(conflict.path) or EMPTY_ENTRY
            merged = _graft(Tree(objects, entry_measure), merged, conflict.path, entry)
    after = Hierarchy(objects, merged)
    keys = [_key(after, conflict) for conflict in conflicts if conflict.kind != "node"]
    return after.edit({key: before.find(key) for key in keys}).root


def _key(hierarchy: Hierarchy, conflict: Conflict) -> str:
    if conflict.document is not None:
        return join(conflict.path, conflict.document)
    if conflict.coordinates is None:
        return conflict.path
    entry = hierarchy.entry(conflict.path)
    assert entry is not None
    assert entry.layout is not None, "chunks conflict in arrays alone"
    return join(conflict.path, entry.layout.spell(encode_coordinates(conflict.coordinates)))


def _graft(directories: Tree, parent: Entry, path: str, entry: Entry) -> Entry:
    """Put an entry at a path in place of what is there."""
    if not path:
        return entry
    name, _, rest = path.partition("/")
    if rest:
        there = directories.get(parent.directory, name.encode())
        below = EMPTY_ENTRY if there is None else decode_entry(there)
        entry = _graft(directories, below, rest, entry)
    edit = (name.encode(), None if entry.is_empty else encode_entry(entry))
    return replace(parent, directory=directories.apply(parent.directory, [edit]))


@final
class _Memory:
    """New bytes of a merge that is only looked at; a session would write them to the file."""

    __slots__ = ("_blobs",)

    def __init__(self) -> None:
        self._blobs: dict[bytes, bytes | memoryview] = {}

    def staged(self, digest: bytes) -> bytes | memoryview | None:
        """Give the bytes of that digest, if they were made here."""
        return self._blobs.get(digest)

    def stage(self, blob: Blob, data: bytes | memoryview) -> None:
        """Keep bytes."""
        self._blobs[blob.digest] = data
