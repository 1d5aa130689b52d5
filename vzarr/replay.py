"""Replay the history of a repository into one of Icechunk's, and go on from there the next time.

Icechunk's history has no merges: each snapshot has one parent. So a commit goes on top of its first
parent, and its metadata name all of them. Commits that are first parents of each other are a line;
each line grows on a branch of its own, ``vzarr/…``, where a later run finds what has become a
snapshot, also after a kill. The branches and tags that people know move at the end. A line that
none of them is on, because it was merged, keeps its helper: else Icechunk would collect it.

Only what differs between a commit and its first parent is written, chunks as they are encoded.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, final

from vzarr import history
from vzarr.errors import (
    AlreadyExistsError,
    FormatVersionError,
    InvalidInputError,
    NotFastForwardError,
    RefNotFoundError,
)
from vzarr.format import EMPTY_ENTRY, CommitRecord, Digest, Entry
from vzarr.icecommits import (
    TAGS,
    describe,
    describe_tag,
    helper_of,
    is_helper,
    is_made_of,
    origin,
    snapshot_of,
)
from vzarr.icestorage import Place, errors, open_or_create, wait
from vzarr.icewriting import Writer, Writing
from vzarr.lineage import parents_first
from vzarr.nodediff import NodeDiff, NodeDiffs
from vzarr.objects import Objects
from vzarr.printable import printable
from vzarr.progress import Meter
from vzarr.supply import Ref, list_refs

if TYPE_CHECKING:
    import icechunk

_MAX_NAMED = 5
_SHOWN = 100
# Branches with a slash in their names, and metadata of the repository.
_FORMAT = 2


@final
@dataclass(slots=True)
class Replayed:
    """What a replay did."""

    newest: str = ""
    """The newest of all commits that are there now."""
    commits: int = 0
    """Commits that became snapshots now."""
    known: int = 0
    """Commits that were there before."""
    values: int = 0
    """Documents and chunks that were written."""
    nbytes: int = 0
    moved: list[str] = field(default_factory=list)
    """Branches that were made or moved there, and tags that were made."""


class _Work(NamedTuple):
    """How much there is to write of what is new."""

    values: int
    nbytes: int


def replay(
    objects: Objects, place: Place, ref: str | None, meter: Meter, *, overwrite: bool
) -> Replayed:
    """Replay what branches and tags lead to, or one of them; see ``Repository.export_to``."""
    chosen = _choose(list_refs(objects.environment), ref)
    with ExitStack() as held:
        for each in chosen:
            objects.environment.pin(each.commit)
            held.callback(objects.environment.unpin, each.commit)
        return _Replay(objects, place, chosen, meter, overwrite=overwrite).run()


def _choose(found: list[Ref], name: str | None) -> list[Ref]:
    if name is None:
        return found
    # A branch before a tag of the same name.
    chosen = next((each for each in found if each.name == name), None)
    if chosen is None:
        raise RefNotFoundError(
            f"there is no branch or tag {name!r}, and what is replayed into an Icechunk repository "
            "needs the name of one there",
            name=name,
        )
    return [chosen]


@final
class _Replay:
    """One run."""

    def __init__(
        self, objects: Objects, place: Place, refs: list[Ref], meter: Meter, *, overwrite: bool
    ) -> None:
        self._objects = objects
        self._environment = objects.environment
        self._place = place
        self._refs = refs
        self._meter = meter
        self._overwrite = overwrite
        self._diffs = NodeDiffs(objects)
        self._writing = Writing(objects, self._diffs)
        self._snapshots: dict[Digest, str] = {}
        self._ids: dict[str, Digest] = {}
        # What commits here say that they were.
        self._claimed: set[str] = set()
        self._first = ""
        self.done = Replayed()
        # Set by ``run``.
        self._theirs: icechunk.Repository

    def run(self) -> Replayed:
        """Find what is there, see that all can go there, replay it, and move the names."""
        commits = self._commits()
        # Before anything is made there, of what may be written there at all.
        self._require_names()
        new = commits
        work = self._require_fit(new) if self._is_absent() else None
        self._theirs = open_or_create(self._place)
        if int(self._theirs.spec_version) < _FORMAT:
            raise FormatVersionError(
                f"{self._place.label} has format 1 of Icechunk's, which has no place for all that "
                "there is to write: upgrade it with icechunk.upgrade_icechunk_repository"
            )
        with errors(self._place, "read"):
            self._look(commits)
            new = {each: record for each, record in commits.items() if each not in self._snapshots}
            self._require_movable()
        self.done.known = len(commits) - len(new)
        if work is None:
            work = self._require_fit(new)
        self._meter.stage("replay", work.nbytes or work.values)
        with errors(self._place, "write to"):
            for line in _lines(new):
                self._replay_line(line, new, by_bytes=work.nbytes > 0)
            self._meter.end()
            self._move_names()
        return self.done

    def _commits(self) -> dict[Digest, CommitRecord]:
        """List all commits that the names lead to, parents first."""
        heads = [ref.commit for ref in self._refs]
        found = dict(history.log(self._environment, *heads))
        self.done.newest = next(iter(found)).hex() if found else ""
        return parents_first(found)

    def _require_names(self) -> None:
        for ref in self._refs:
            if ref.kind == "branch" and is_helper(ref.name):
                raise InvalidInputError(
                    f"branch {ref.name!r} has a name that the export itself needs: rename it"
                )

    def _is_absent(self) -> bool:
        """Whether nothing is there yet, so that what cannot go there leaves nothing."""
        import icechunk

        with errors(self._place, "look at"):
            return not icechunk.Repository.exists(self._place.storage)

    # ── what is there ────────────────────────────────────────────────────────────────────────────

    def _look(self, commits: Mapping[Digest, CommitRecord]) -> None:
        """Find which snapshots are commits: they say so, or the commits do."""
        made_of: dict[str, list[Digest]] = {}
        for commit, record in commits.items():
            if (made := snapshot_of(record)) is not None:
                made_of.setdefault(made, []).append(commit)
        self._claimed = set(made_of)
        seen: dict[str, list[Digest]] = {}
        heads = [{"branch": name} for name in sorted(self._theirs.list_branches())]
        heads += [{"tag": name} for name in sorted(self._theirs.list_tags())]
        for head in heads:
            ancestry = self._theirs.ancestry(**head)
            fresh = list(itertools.takewhile(lambda each: each.id not in seen, ancestry))
            # Parents first: what a snapshot is depends on what its parent is.
            for snapshot in reversed(fresh):
                if snapshot.parent_id is None:
                    self._first = snapshot.id
                below = seen.get(snapshot.parent_id or "", [])
                found = self._made(snapshot, commits, made_of.get(snapshot.id, ()), below)
                seen[snapshot.id] = found
                for commit in found:
                    self._snapshots.setdefault(commit, snapshot.id)
                    self._ids[snapshot.id] = commit

    def _made(
        self,
        snapshot: icechunk.SnapshotInfo,
        commits: Mapping[Digest, CommitRecord],
        claimants: Sequence[Digest],
        below: Sequence[Digest],
    ) -> list[Digest]:
        """Find the commits that a snapshot is: the one that it says, or those that say it.

        Those must be on one of those ``below``, which its parent is: a redact may have changed
        what is behind a commit, and the snapshot has the erased data behind it. On the first
        snapshot of all it may be because those between were expired there.
        """
        known = origin(snapshot)
        if known is not None and known.commit in commits:
            return [known.commit]
        found = [
            commit
            for commit in claimants
            if is_made_of(commits[commit], snapshot)
            and (
                snapshot.parent_id in (None, self._first)
                or not commits[commit].parents
                or commits[commit].parents[0] in below
            )
        ]
        # One that is on none of the branches here may still be in the file.
        return found or ([] if known is None else [known.commit])

    def _require_movable(self) -> None:
        """Raise unless all names can go where they are to go."""
        branches, tags = self._theirs.list_branches(), self._theirs.list_tags()
        deleted = self._deleted_tags() if any(ref.kind == "tag" for ref in self._refs) else set()
        for ref in self._refs:
            if ref.kind == "branch" and ref.name in branches:
                there = self._theirs.lookup_branch(ref.name)
                self._require_behind(ref, there)
            elif ref.kind == "tag" and ref.name in deleted:
                raise self._tag_deleted(ref.name)
            elif ref.kind == "tag" and ref.name in tags:
                there = self._theirs.lookup_tag(ref.name)
                if self._ids.get(there) != ref.commit:
                    raise AlreadyExistsError(
                        f"tag {ref.name!r} of {self._place.label} is another snapshot than commit "
                        f"{ref.commit.hex()[:12]}, and tags there never move: take another name",
                        name=ref.name,
                    )

    def _deleted_tags(self) -> set[str]:
        return set(wait(self._theirs.inspect_repo_info_async()).get("deleted_tags", ()))

    def _tag_deleted(self, name: str) -> AlreadyExistsError:
        return AlreadyExistsError(
            f"a tag {name!r} was deleted at {self._place.label}, and Icechunk gives no tag the "
            "name of a deleted one: take another name",
            name=name,
        )

    def _require_behind(self, ref: Ref, snapshot: str) -> None:
        commit = self._ids.get(snapshot)
        if snapshot == self._first or commit == ref.commit:
            return
        if commit is None or not history.exists(self._environment, commit):
            raise NotFastForwardError(
                f"branch {ref.name!r} of {self._place.label} {self._why_unknown(snapshot, commit)}",
                branch=ref.name,
            )
        if not self._overwrite and not history.is_ancestor(self._environment, commit, ref.commit):
            raise NotFastForwardError(
                f"branch {ref.name!r} of {self._place.label} is at commit {commit.hex()[:12]}, "
                f"which {ref.commit.hex()[:12]} does not descend from: with overwrite=True (on the "
                "command line --overwrite) it goes there all the same",
                branch=ref.name,
            )

    def _why_unknown(self, snapshot: str, commit: Digest | None) -> str:
        """Say why a head there is no commit of this file; never to bring erased data back."""
        if commit is not None:
            return (
                f"is at commit {commit.hex()[:12]}, which was exported from here and has been "
                "removed since (redact, expire and gc): export to a new place. If it is another "
                "file's, pull from that"
            )
        if snapshot in self._claimed:
            return (
                f"is at snapshot {snapshot}, which was imported here and has been changed since "
                "(redact, amend): export to a new place"
            )
        return (
            f"has commits that are not in {self._environment.path}: snapshot {snapshot}. Import "
            "it, which brings them here"
        )

    # ── what can go there ────────────────────────────────────────────────────────────────────────

    def _require_fit(self, new: Mapping[Digest, CommitRecord]) -> _Work:
        """Raise ``InvalidInputError`` that names what Icechunk cannot hold; measure the rest."""
        values = nbytes = more = 0
        named: dict[str, str] = {}
        self._meter.stage("look", len(new))
        for commit, record in new.items():
            for pair in self._nodes(record):
                for key, why in self._writing.misfits(pair):
                    if key not in named and len(named) < _MAX_NAMED:
                        shown = printable(key[:_SHOWN])
                        named[key] = f"{shown!r} of commit {commit.hex()[:12]} ({why})"
                    elif key not in named:
                        more += 1
                for blob in self._writing.values(pair):
                    values += 1
                    nbytes += blob.length
            self._meter.step(1)
        self._meter.end()
        if named:
            others = f", and {more:,} more" if more else ""
            raise InvalidInputError(
                f"Icechunk cannot hold {', '.join(named.values())}{others}: export a ref= whose "
                "history is without them, or write a new repository without them and export that"
            )
        return _Work(values, nbytes)

    def _nodes(self, record: CommitRecord) -> Iterator[NodeDiff]:
        """Compare a commit with its first parent."""
        old = EMPTY_ENTRY
        if record.parents:
            old = self._root(history.get(self._environment, record.parents[0]))
        return self._diffs.nodes(old, self._root(record))

    def _root(self, record: CommitRecord) -> Entry:
        return self._objects.load_root(record.root)

    # ── replaying ────────────────────────────────────────────────────────────────────────────────

    def _replay_line(
        self, line: list[Digest], new: Mapping[Digest, CommitRecord], *, by_bytes: bool
    ) -> None:
        """Let a line grow on its helper branch."""
        helper = helper_of(line[-1])
        parents = new[line[0]].parents
        start = self._snapshots[parents[0]] if parents else self._first
        if helper in self._theirs.list_branches():
            there = self._theirs.lookup_branch(helper)
            if there != start:
                self._theirs.reset_branch(helper, start, from_snapshot_id=there)
        else:
            self._theirs.create_branch(helper, start)
        for commit in line:
            record = new[commit]
            session = self._theirs.writable_session(helper)
            writer = Writer(session.store, self._objects, self._meter, by_bytes=by_bytes)
            for pair in self._nodes(record):
                self._writing.write(pair, writer)
            writer.flush()
            snapshot = session.commit(record.message, describe(commit, record), allow_empty=True)
            self._snapshots[commit] = snapshot
            self._ids[snapshot] = commit
            self.done.commits += 1
            self.done.values += writer.values
            self.done.nbytes += writer.nbytes

    # ── names ────────────────────────────────────────────────────────────────────────────────────

    def _move_names(self) -> None:
        try:
            # First what can fail for good, so that it leaves the branches where they are.
            self._make_tags([ref for ref in self._refs if ref.kind == "tag"])
            branches = self._theirs.list_branches()
            for ref in self._refs:
                if ref.kind == "branch":
                    self._move_branch(ref, is_new=ref.name not in branches)
            order = [ref.name for ref in self._refs]
            self.done.moved.sort(key=order.index)
        finally:
            self._drop_helpers()

    def _move_branch(self, ref: Ref, *, is_new: bool) -> None:
        snapshot = self._snapshots[ref.commit]
        if is_new:
            self._theirs.create_branch(ref.name, snapshot)
        else:
            there = self._theirs.lookup_branch(ref.name)
            if there == snapshot:
                return
            # Somebody may have committed there since we looked.
            self._require_behind(ref, there)
            self._hold(there)
            self._theirs.reset_branch(ref.name, snapshot, from_snapshot_id=there)
        self.done.moved.append(ref.name)

    def _hold(self, snapshot: str) -> None:
        """Have a helper on the snapshot that a branch leaves: by a merge, it may be no ancestor."""
        commit = self._ids.get(snapshot)
        helper = None if commit is None else helper_of(commit)
        # Another branch may have left it just before.
        if helper is not None and helper not in self._theirs.list_branches():
            self._theirs.create_branch(helper, snapshot)

    def _make_tags(self, refs: Sequence[Ref]) -> None:
        """Make the tags that are not there, then note of all what tags there cannot hold."""
        import icechunk

        there = self._theirs.list_tags()
        made = [ref for ref in refs if ref.name not in there]
        for ref in made:
            try:
                self._theirs.create_tag(ref.name, self._snapshots[ref.commit])
            except icechunk.AlreadyExistsError as error:
                if error.kind != "tag-previously-deleted":
                    raise
                raise self._tag_deleted(ref.name) from error
            self.done.moved.append(ref.name)
        # Also of those that a killed run has made.
        found = self._theirs.get_metadata().get(TAGS) if refs else None
        about = dict(found) if isinstance(found, Mapping) else {}
        untold = [ref for ref in refs if ref in made or ref.name not in about]
        for ref in untold:
            assert ref.tag is not None, "a tag has a record"
            about[ref.name] = describe_tag(ref.tag)
        if untold:
            self._theirs.update_metadata({TAGS: about})

    def _drop_helpers(self) -> None:
        """Delete the helper branches that hold nothing which a name or another does not hold."""
        branches = self._theirs.list_branches()
        helpers = {name for name in branches if is_helper(name)}
        if not helpers:
            return
        held: set[str] = set()
        names = [{"branch": name} for name in sorted(branches - helpers)]
        for name in names + [{"tag": name} for name in sorted(self._theirs.list_tags())]:
            for snapshot in self._theirs.ancestry(**name):
                if snapshot.id in held:
                    break
                held.add(snapshot.id)
        ends = {helper: self._theirs.lookup_branch(helper) for helper in helpers}
        for end in set(ends.values()):
            # All that is behind one that stays is held by it.
            for snapshot in itertools.islice(self._theirs.ancestry(snapshot_id=end), 1, None):
                if snapshot.id in held:
                    break
                held.add(snapshot.id)
        for helper in sorted(helpers):
            if ends[helper] in held:
                self._theirs.delete_branch(helper)


def _lines(new: Mapping[Digest, CommitRecord]) -> list[list[Digest]]:
    """Split commits, parents first, into lines of first parents; none before what it begins on."""
    lines: list[list[Digest]] = []
    ends: dict[Digest, list[Digest]] = {}
    for commit, record in new.items():
        line = ends.pop(record.parents[0], None) if record.parents else None
        if line is None:
            line = []
            lines.append(line)
        line.append(commit)
        ends[commit] = line
    return lines
