"""Take over the history of an Icechunk repository: each snapshot becomes a commit.

One that was a commit of ours becomes the same one again, parents of a merge and all, because its
metadata say what its id is made of. Commits gather on a branch of their own, ``importing/…``, where
a later run finds them after a kill; at the end one txn moves the names and deletes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, final

from vzarr import history, refs
from vzarr.committing import Settings
from vzarr.environment import Txn
from vzarr.errors import CorruptError, InvalidInputError, NotFastForwardError
from vzarr.format import (
    EMPTY_ENTRY,
    Blob,
    CommitRecord,
    Digest,
    Entry,
    TagRecord,
    chunk_digest,
    commit_digest,
    encode_commit,
)
from vzarr.hierarchy import Hierarchy
from vzarr.history import now
from vzarr.icecommits import Origin, adopt, is_helper, note_snapshot, origin, snapshot_of, tag_of
from vzarr.icereading import News, Snapshot
from vzarr.icestorage import Place, errors
from vzarr.imported import Counts, ImportReport, Options
from vzarr.intake import is_document, require_key, require_size
from vzarr.moving import Mover
from vzarr.objects import Objects
from vzarr.progress import Meter, Progress
from vzarr.session import Session
from vzarr.supply import Ref
from vzarr.turns import Turn
from vzarr.unfinished import branch_of

if TYPE_CHECKING:
    import icechunk

_DEFAULT_BRANCH = "main"


@final
class IceSource:
    """An Icechunk repository that is open, for its history to be taken over."""

    def __init__(self, theirs: icechunk.Repository, place: Place) -> None:
        self.theirs = theirs
        self.place = place
        self.label = place.label

    def close(self) -> None:
        """Do nothing: nothing is held open."""


def adopt_history(
    objects: Objects,
    settings: Settings,
    source: IceSource,
    options: Options,
    progress: Progress | None,
) -> ImportReport:
    """Take all branches and tags over; see ``Repository.import_from``."""
    for given, name in (
        (options.path, "path="),
        (options.consume, "consume="),
        (options.message, "message="),
        (options.author, "author="),
        (dict(options.metadata), "metadata="),
        (options.branch != _DEFAULT_BRANCH, "branch="),
    ):
        if given:
            raise InvalidInputError(
                f"{name} does not go with {source.label}, which is imported with its history, as "
                "it is: name a ref= of it to import one snapshot"
            )
    # Two imports of the same would write to one branch.
    helper = branch_of(chunk_digest(source.label.encode()).hex())
    with ExitStack() as held:
        turn = Turn(objects.environment, helper)
        turn.acquire(settings.timeout)
        held.callback(turn.release)
        return _Adoption(objects, settings, source, options, Meter(progress), turn).run()


@final
class _Adoption:
    """One run."""

    def __init__(
        self,
        objects: Objects,
        settings: Settings,
        source: IceSource,
        options: Options,
        meter: Meter,
        turn: Turn,
    ) -> None:
        self._objects = objects
        self._environment = objects.environment
        self._settings = settings
        self._theirs = source.theirs
        self._place = source.place
        self._options = options
        self._meter = meter
        self._turn = turn
        self._counts = Counts()
        self._infos: dict[str, icechunk.SnapshotInfo] = {}
        self._origins: dict[str, Origin] = {}
        self._by_origin: dict[Digest, str] = {}
        self._heads: list[tuple[str, str, str]] = []
        self._first = ""
        # What snapshots have become here.
        self._commits: dict[str, Digest] = {}
        self._arrays: set[str] = set()
        self._groups: set[str] = set()

    def run(self) -> ImportReport:
        """Look at both sides, bring what is new, and move the names."""
        with errors(self._place, "read"):
            self._look()
            order = self._order()
            self._recognize(order)
            new = [each for each in order if each not in self._commits]
            self._require_names()
            resumed = self._resumed()
            self._meter.stage("commits", len(new))
            if new:
                with closing(self._session()) as session:
                    for snapshot in new:
                        self._bring(snapshot, session)
                        self._meter.step(1)
            self._meter.end()
            self._require_whole(new)
        moved = self._move()
        branch = self._options.branch
        with self._environment.read() as txn:
            head = refs.find_head(txn, branch)
        return ImportReport(
            source=self._place.label,
            path="",
            branch=branch,
            commit=head.hex() if head is not None and (new or moved) else None,
            arrays=len(self._arrays),
            groups=len(self._groups),
            chunks=self._counts.chunks,
            files=0,
            nbytes=self._counts.nbytes,
            new_bytes=self._counts.new_bytes,
            same=self._counts.same,
            skipped=0,
            resumed=resumed,
            consumed=False,
            seconds=self._meter.seconds,
            commits=len(new),
            known=len(order) - len(new),
            names=tuple(moved),
        )

    # ── what is there ────────────────────────────────────────────────────────────────────────────

    def _look(self) -> None:
        """Find all snapshots that have names, and which of them were commits."""
        theirs = self._theirs
        for name in sorted(theirs.list_branches()):
            self._heads.append(("branch", name, theirs.lookup_branch(name)))
        for name in sorted(theirs.list_tags()):
            self._heads.append(("tag", name, theirs.lookup_tag(name)))
        for _, _, head in self._heads:
            for info in theirs.ancestry(snapshot_id=head):
                if info.id in self._infos:
                    break
                self._infos[info.id] = info
                if info.parent_id is None:
                    self._first = info.id
                if (known := origin(info)) is not None:
                    self._origins[info.id] = known
                    self._by_origin.setdefault(known.commit, info.id)
        # Branches that say nothing, or hold what has no other name.
        self._heads = [
            (kind, name, head)
            for kind, name, head in self._heads
            if kind == "tag" or not (head == self._first or is_helper(name))
        ]

    def _parents(self, snapshot: str) -> list[str]:
        """List the snapshots that become the parents of a snapshot's commit."""
        known, parent = self._origins.get(snapshot), self._infos[snapshot].parent_id
        if known is not None:
            found = [self._by_origin.get(commit) for commit in known.record.parents]
            if found and found[0] is None and parent in self._infos and parent not in self._origins:
                # A snapshot of somebody else's, which ours was made on top of.
                found[0] = parent
            return [each for each in found if each is not None]
        return [parent] if parent in self._infos else []

    def _order(self) -> list[str]:
        """List the snapshots that are to become commits, parents first."""
        order: dict[str, None] = {}
        # On the way to what the walk is at. As metadata may say anything, it could come back there.
        open_: set[str] = set()
        for start in sorted({head for _, _, head in self._heads}):
            waiting = [start]
            while waiting:
                snapshot = waiting[-1]
                before = [each for each in self._parents(snapshot) if each not in order]
                if before and snapshot not in order:
                    open_.add(snapshot)
                    if not open_.isdisjoint(before):
                        raise CorruptError(
                            f"snapshot {snapshot} of {self._place.label} is its own ancestor, as "
                            "its metadata have it: import one snapshot with ref=",
                            path=self._place.path or self._place.label,
                        )
                    waiting += before
                else:
                    order[snapshot] = None
                    open_.discard(snapshot)
                    waiting.pop()
        return list(order)

    def _recognize(self, order: Iterable[str]) -> None:
        """Find the snapshots that are commits here already. O(commits)."""
        with self._environment.read() as txn:
            heads = [head for _, head in refs.branches(txn)]
            heads += [head for _, head in refs.tracked(txn)]
            heads += [Digest(bytes.fromhex(tag.commit)) for tag in refs.tags(txn)]
            # What a killed run made, and left behind when it went on with another line.
            heads += [
                record.new
                for _, record in refs.moves(txn, self._turn.branch)
                if record.new is not None and txn.contains("commits", record.new)
            ]
        ours = dict(history.log(self._environment, *dict.fromkeys(heads)))
        made_of: dict[str, list[Digest]] = {}
        for commit, record in ours.items():
            if (snapshot := snapshot_of(record)) is not None:
                made_of.setdefault(snapshot, []).append(commit)
        for snapshot in order:
            known = self._origins.get(snapshot)
            if known is not None and known.commit in ours:
                self._commits[snapshot] = known.commit
                continue
            if all(parent in self._commits for parent in self._parents(snapshot)):
                for commit in made_of.get(snapshot, ()):
                    # An amended one says the same, and is another.
                    root = ours[commit].root
                    if self._record(snapshot, root) == ours[commit]:
                        self._commits[snapshot] = commit

    def _record(self, snapshot: str, root: Digest) -> CommitRecord:
        """Make the commit that a snapshot becomes."""
        parents = tuple(self._commits[parent] for parent in self._parents(snapshot))
        known, info = self._origins.get(snapshot), self._infos[snapshot]
        if known is None:
            return note_snapshot(replace(adopt(info, parents), root=root), info.id)
        record = replace(known.record, parents=parents, root=root)
        if commit_digest(encode_commit(record)) == known.commit:
            return record
        # Something of it was lost there; so it is another, which must be known again.
        return note_snapshot(record, info.id)

    def _require_names(self) -> None:
        for kind, name, _ in self._heads:
            refs.check_name(name, kind)

    def _resumed(self) -> bool:
        with self._environment.read() as txn:
            return refs.find_head(txn, self._turn.branch) is not None

    # ── bringing ─────────────────────────────────────────────────────────────────────────────────

    def _session(self) -> Session:
        """Open a session on the helper branch, which need not be there yet."""
        helper = self._turn.branch
        with self._environment.read() as txn:
            head = refs.find_head(txn, helper)
            start = head or refs.head(txn, self._options.branch)
        return Session(self._objects, self._settings, start, helper, _open_store, turn=self._turn)

    def _make_helper(self, session: Session) -> None:
        """Make the branch for the first commit; before that, nothing need be kept."""
        helper, author = self._turn.branch, self._settings.author()
        with self._environment.read() as txn:
            there = refs.find_head(txn, helper)
        if there is None:
            start = Digest(bytes.fromhex(session.base))
            with self._environment.write(timeout=self._settings.timeout) as txn:
                refs.create_branch(txn, helper, start, author, now(), "import")

    def _bring(self, snapshot: str, session: Session) -> None:
        """Make the commit of one snapshot."""
        info = self._infos[snapshot]
        base = info.parent_id
        root = EMPTY_ENTRY
        if base in self._commits:
            commit = history.get(self._environment, self._commits[base])
            root = self._objects.load_root(commit.root)
        session.rework(_to(root))
        reader = Snapshot(self._theirs, self._place, info)
        known = base if base in self._commits else None
        news = reader.news(known, first=base == self._first)
        self._apply(reader, news, session)
        record = self._record(snapshot, Digest(bytes.fromhex(session.root_id())))
        self._make_helper(session)
        made = session.commit_as(record, "import", needs=record.parents)
        self._commits[snapshot] = made

    def _apply(self, reader: Snapshot, news: News, session: Session) -> None:
        for path in sorted(news.gone):
            session.delete_below(path)
        arrays = set()
        for key, data in reader.documents(news.documents):
            path = require_key(key, self._place.label).rpartition("/")[0]
            before = _shape(session, path)
            self._store(session, key, data)
            after = _shape(session, path)
            if after is not None:
                arrays.add(path)
                if before is not None and before != after:
                    _drop_outside(session, path)
        self._arrays |= arrays
        self._groups |= news.documents - arrays
        for path in sorted(news.whole & arrays):
            for coordinates, data in reader.chunks_of(path):
                self._store(session, _chunk_key(path, coordinates), data)
        for path, some in sorted(news.chunks.items()):
            for each, found in reader.chunks(path, some):
                key = _chunk_key(path, each)
                if found is None:
                    session.delete(key)
                else:
                    self._store(session, key, found)

    def _store(self, session: Session, key: str, data: bytes) -> None:
        require_size(key, len(data), self._place.label)
        blob = Blob(chunk_digest(data), len(data))
        self._counts.values += 1
        self._counts.nbytes += len(data)
        self._counts.chunks += not is_document(key)
        if session.find(key) == blob:
            self._counts.same += 1
        elif session.put(key, blob, data):
            self._counts.new_bytes += len(data)

    def _require_whole(self, new: Iterable[str]) -> None:
        """See that what names lead to has what there is, however it was said to have come about."""
        fresh = set(new)
        for head in dict.fromkeys(head for _, _, head in self._heads):
            if head in fresh:
                self._require_equal(head)

    def _require_equal(self, snapshot: str) -> None:
        reader = Snapshot(self._theirs, self._place, self._infos[snapshot])
        root = history.get(self._environment, self._commits[snapshot]).root
        view = Hierarchy(self._objects, self._objects.load_root(root))
        ours = {path: entry for path, entry, _ in view.nodes()}
        theirs = reader.nodes()
        # Nobody need have made the root group.
        if ours.keys() | {""} == theirs.keys() | {""} and all(
            _chunks(entry) == reader.count(path)
            for path, entry in ours.items()
            if theirs.get(path) == "array"
        ):
            return
        raise CorruptError(
            f"snapshot {snapshot} of {self._place.label} has other arrays, groups or chunks than "
            "the changes tell of that Icechunk has noted since the first one: import one snapshot "
            "with ref=, without its history",
            path=self._place.path or self._place.label,
        )

    # ── names ────────────────────────────────────────────────────────────────────────────────────

    def _move(self) -> list[str]:
        """Move all names in one txn, which also deletes the helper; give those that moved."""
        brought = _Gathered(self)
        mover = Mover(
            self._environment,
            self._settings,
            brought,
            force=self._options.overwrite,
            keep_tags=False,
            keep_ahead=True,
            why=f"import: {self._place.label}",
        )
        try:
            updates = mover.move([self._ref(*head) for head in self._heads], (), self._finish)
        except NotFastForwardError as error:
            raise NotFastForwardError(
                f"branch {error.branch!r} of {self._environment.path} has commits that "
                f"{self._place.label} lacks, so nothing was moved: import it into a new file and "
                "pull from that, which merges both; or drop the commits here with overwrite=True "
                "(on the command line --overwrite)",
                branch=error.branch,
            ) from error
        return [each.name for each in updates if each.how not in ("up to date", "kept")]

    def _ref(self, kind: str, name: str, head: str) -> Ref:
        commit = self._commits[head]
        tag = self._tag(name, commit) if kind == "tag" else None
        return Ref(kind, name, commit, tag)

    def _tag(self, name: str, commit: Digest) -> TagRecord:
        """Make a tag; Icechunk's own say nothing of who made them, and when."""
        record = history.get(self._environment, commit)
        # Format 1 of Icechunk has no metadata of a repository.
        told = self._theirs.get_metadata() if int(self._theirs.spec_version) > 1 else {}
        return tag_of(told, name, commit, record)

    def _finish(self, txn: Txn) -> None:
        """Delete the helper branch with its reflog: names hold what it held."""
        helper = self._turn.branch
        if refs.find_head(txn, helper) is not None:
            refs.delete_branch(txn, helper, self._settings.author(), now(), "import")
            for sequence, _ in list(refs.moves(txn, helper)):
                refs.forget_move(txn, helper, sequence)

    def write(self, move: Callable[[Txn], Any]) -> Any:
        """Move names, durably."""
        with self._environment.write(timeout=self._settings.timeout) as txn:
            result = move(txn)
        self._environment.sync()
        return result

    def is_ancestor(self, old: Digest, new: Digest) -> bool:
        """Whether a commit has another for an ancestor."""
        return history.is_ancestor(self._environment, old, new)


@final
class _Gathered:
    """What the names are to move to: all of it is in the file."""

    is_empty = False

    def __init__(self, adoption: _Adoption) -> None:
        self._adoption = adoption

    def descends(self, new: Digest, old: Digest) -> bool:
        """Whether a commit has another for an ancestor. O(commits between)."""
        return self._adoption.is_ancestor(old, new)

    def finish(self, move: Callable[[Txn], Any]) -> Any:
        """Move the names."""
        return self._adoption.write(move)


def _shape(session: Session, path: str) -> tuple[object, ...] | None:
    """Give the shape and the chunks of an array; None for what is none."""
    node = session.hierarchy.node(path)
    return None if node is None or node.array is None else (node.array.shape, node.array.grid)


def _drop_outside(session: Session, path: str) -> None:
    """Delete chunks outside of an array's shape: Icechunk drops them, and does not tell. O(chunks).

    Where the shape was made smaller by way of the document, nobody else has deleted them.
    """
    node, base = session.hierarchy.node(path), _chunk_key(path, ())
    if node is None or node.array is None or node.array.grid is None:
        return
    for key in list(session.keys(base)):
        names = key.removeprefix(base).strip("/").split("/")
        # Other keys may be below it, of groups that somebody put there.
        is_chunk = all(name.isdecimal() for name in names)
        if is_chunk and node.array.region(tuple(map(int, names))) is None:
            session.delete(key)


def _to(root: Entry) -> Callable[[Any, Entry], Entry]:
    return lambda _overlay, _root: root


def _open_store(session: Session) -> Any:
    from vzarr.store import VzarrStore

    return VzarrStore(session)


def _chunk_key(path: str, coordinates: Iterable[int]) -> str:
    return "/".join([*([path] if path else []), "c", *map(str, coordinates)])


def _chunks(entry: Entry) -> int:
    return 0 if entry.index is None else entry.index.count
