"""What a repository does with its history: list, compare, combine, and ask who changed what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, overload

from vzarr import history, refs
from vzarr.branches import Branches, Tags
from vzarr.diff import Diff, Side, diff
from vzarr.errors import AbsentError, InvalidInputError
from vzarr.format import CommitRecord, Digest
from vzarr.handle import DEFAULT_BRANCH, Handle
from vzarr.hierarchy import Hierarchy
from vzarr.history import Commit
from vzarr.merge import Strategy
from vzarr.objects import Overlay
from vzarr.progress import Progress
from vzarr.refs import ReflogEntry
from vzarr.reports import Log

if TYPE_CHECKING:
    from vzarr.blame import Blame
    from vzarr.combine import Combiner, MergePreview
    from vzarr.store import VzarrStore


class Versions(Handle):
    """The methods of ``Repository`` on branches, tags and commits."""

    @property
    def branches(self) -> Branches:
        """The branches: a mapping from name to commit id, with create, delete, rename, reset."""
        self._require_open()
        return Branches(self._environment, self._settings, read_only=self._read_only)

    @property
    def tags(self) -> Tags:
        """The tags: a mapping from name to commit id, with create and delete."""
        self._require_open()
        return Tags(self._environment, self._settings, read_only=self._read_only)

    def log(
        self,
        ref: str | datetime | None = None,
        *,
        path: str | None = None,
        limit: int | None = None,
    ) -> Log:
        """List the commits reachable from a ref (default: the current session's), newest first.

        ``path`` keeps those that changed something at or below it. In a shallow clone these are
        commits whose data is there, and where it ends, one that has the path counts as having made
        it. O(log n) a commit that is looked at, and a comparison of two directories with ``path``.
        """
        self._require_open()
        if limit is not None and (not isinstance(limit, int) or limit < 0):
            raise InvalidInputError(f"limit= is a number of commits, not {limit!r}")
        found = self.iter_log(self._session.base if ref is None else ref, path=path)
        return Log(islice(found, limit))

    def iter_log(self, *tips: str | datetime, path: str | None = None) -> Iterator[Commit]:
        """List the commits reachable from any of some refs as ``log`` does, but one by one.

        None comes twice. Raises ``RefNotFoundError`` at once. What it gives is read when it is
        asked for: O(log n) a commit that is looked at, so that the first one is there at once.
        """
        self._require_open()
        heads = [self._revision(tip).commit for tip in tips]
        place = None if path is None else path.strip("/")
        return (
            history.describe(commit, record)
            for commit, record in history.log(self._environment, *heads)
            if place is None or self._touches(record, place)
        )

    def _touches(self, record: CommitRecord, path: str) -> bool:
        """Whether a commit changed something at a path, as its first parent had it."""
        tree = self._at_hand(record.root)
        if tree is None:
            return False
        after = tree.entry(path)
        parents = record.parents[:1]
        before = [self._at_hand(history.get(self._environment, parent).root) for parent in parents]
        if not before or before[0] is None:
            return after is not None and not after.is_empty
        return before[0].entry(path) != after

    def _at_hand(self, root: Digest) -> Hierarchy | None:
        """Open a snapshot, unless a shallow clone has left it out."""
        try:
            return self._at(root)
        except AbsentError:
            return None

    def show(self, ref: str | datetime | None = None) -> Commit:
        """Describe the commit that a ref names (default: the current session's base)."""
        self._require_open()
        commit = (
            Digest(bytes.fromhex(self._session.base))
            if ref is None
            else (self._revision(ref).commit)
        )
        return history.describe(commit, history.get(self._environment, commit))

    def root_id(self, ref: str | datetime | None = None) -> str:
        """Give the content id of a ref's snapshot: equal data, equal id, in any file. O(log n)."""
        return self._root(self._revision(ref).commit).hex()

    def reflog(self, branch: str = DEFAULT_BRANCH) -> list[ReflogEntry]:
        """List every move of a branch, newest first; also of one that was deleted.

        Raises ``RefNotFoundError`` if there never was such a branch.
        """
        self._require_open()
        refs.check_name(branch)
        with self._environment.read() as txn:
            entries = list(refs.reflog(txn, branch))
            if not entries:
                refs.head(txn, branch)
        return entries

    def diff(self, old: str | datetime, new: str | datetime | None = None) -> Diff:
        """Compare two refs; without ``new``, a ref with the current session's head branch.

        O(changed nodes · depth), whatever the number of chunks; changed chunks and values are read
        when they are asked for.
        """
        before = self._revision(old).commit
        after = self._revision(new).commit

        def open_side(side: Side, path: str) -> Any:
            import zarr

            store = self._store_of(before if side == "old" else after)
            return zarr.open(store, path=path, mode="r")

        roots = [self._objects.load_root(self._root(commit)) for commit in (before, after)]
        changes = diff(Overlay(self._objects), roots[0], roots[1], open_side)
        return Diff(str(old), str(new if new is not None else self._branch_in_use), changes)

    @overload
    def merge(
        self,
        ref: str | datetime,
        into: str = ...,
        message: str | None = ...,
        strategy: Strategy = ...,
        *,
        no_ff: bool = ...,
        dry_run: Literal[False] = ...,
        metadata: Mapping[str, Any] | None = ...,
        author: str | None = ...,
        progress: Progress | None = ...,
    ) -> str: ...

    @overload
    def merge(
        self,
        ref: str | datetime,
        into: str = ...,
        message: str | None = ...,
        strategy: Strategy = ...,
        *,
        no_ff: bool = ...,
        dry_run: Literal[True],
        metadata: Mapping[str, Any] | None = ...,
        author: str | None = ...,
        progress: Progress | None = ...,
    ) -> MergePreview: ...

    def merge(
        self,
        ref: str | datetime,
        into: str = DEFAULT_BRANCH,
        message: str | None = None,
        strategy: Strategy = "fail",
        *,
        no_ff: bool = False,
        dry_run: bool = False,
        metadata: Mapping[str, Any] | None = None,
        author: str | None = None,
        progress: Progress | None = None,
    ) -> str | MergePreview:
        """Merge a branch, or any commit, into a branch; give the id of its head then.

        That is the present head if ``ref`` is in it already, and ``ref``'s commit if nothing but
        the name has to move (*fast-forward*; ``no_ff=True`` makes a commit all the same). Otherwise
        what both sides did since their merge base is put together in a commit with two parents,
        durable when this returns. ``message`` is "Merge branch 'dev'" unless it is given; it and
        ``metadata`` go to that commit, so that a fast-forward has no use for them.

        Merges that crossed leave several merge bases: they are merged into a virtual one first,
        where what they conflict in keeps its older value. Unrelated histories have an empty base.

        ``strategy`` decides conflicts for the branch ("ours") or for ``ref`` ("theirs"). "fail"
        raises ``MergeConflict``, which lists them all; nothing is written then. Where another
        writer moves the branch meanwhile, the merge is done again on its new head.

        With ``dry_run=True`` this gives a ``MergePreview`` and writes nothing.
        ``progress(done, total, what)`` is called now and then: with 0 for a total that nobody
        knows, and with bytes of chunks while those are merged that both sides changed. Its
        exceptions end the merge, and the branch is where it was.

        Raises ``RefNotFoundError``, ``InvalidInputError``, ``ReadOnlyError``, ``BusyError`` and
        ``FullError`` too. Cost: O(commits since the merge base), O(k log n) nodes for k changes
        among n chunks, one fsync.
        """
        if dry_run:
            combiner = self._combiner(writing=False)
            return combiner.preview(ref, into, strategy, progress=progress)
        combiner = self._combiner()
        return combiner.merge(
            ref,
            into,
            strategy,
            no_ff=no_ff,
            message=message,
            metadata=metadata,
            author=author,
            progress=progress,
        ).hex()

    def cherry_pick(
        self,
        commit: str | datetime,
        onto: str = DEFAULT_BRANCH,
        *,
        mainline: int | None = None,
        strategy: Strategy = "fail",
        note_origin: bool = False,
        message: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        author: str | None = None,
        progress: Progress | None = None,
    ) -> str:
        """Apply what one commit changed on top of a branch; give the id of the new commit.

        It has the message, metadata and author of the other unless they are given, and the present
        time; ``note_origin=True`` adds the line "(cherry picked from commit …)". The change of a
        merge counts from its parent number ``mainline``. ``progress`` is as for ``merge``.

        Raises ``MergeConflict`` if the branch changed the same things, ``SessionStateError`` if it
        has that change already, ``InvalidInputError`` for a merge without ``mainline``, and as
        ``merge``. Cost: O(k log n) nodes for k changes among n chunks, one fsync.
        """
        combiner = self._combiner()
        return combiner.cherry_pick(
            commit,
            onto,
            strategy,
            mainline=mainline,
            note_origin=note_origin,
            message=message,
            metadata=metadata,
            author=author,
            progress=progress,
        ).hex()

    def revert(
        self,
        commit: str | datetime,
        on: str = DEFAULT_BRANCH,
        *,
        mainline: int | None = None,
        strategy: Strategy = "fail",
        message: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        author: str | None = None,
        progress: Progress | None = None,
    ) -> str:
        """Undo what one commit changed, by a new commit on a branch, and give that one's id.

        What other commits changed since stays. The message is 'Revert "…"' with the commit's id
        unless it is given. The change of a merge counts from its parent number ``mainline``.
        ``progress`` is as for ``merge``.

        Raises ``MergeConflict`` if the same things changed again since, ``SessionStateError`` if
        nothing of the change is left, ``InvalidInputError`` for a merge without ``mainline``, and
        as ``merge``. Cost: O(k log n) nodes for k changes among n chunks, one fsync.
        """
        combiner = self._combiner()
        return combiner.revert(
            commit,
            on,
            strategy,
            mainline=mainline,
            message=message,
            metadata=metadata,
            author=author,
            progress=progress,
        ).hex()

    def squash(
        self,
        branch: str = DEFAULT_BRANCH,
        *,
        since: str | datetime,
        message: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        author: str | None = None,
        progress: Progress | None = None,
    ) -> str:
        """Replace the commits of a branch after ``since`` by one, and give its id.

        ``since`` lies on the branch's line of first parents, and becomes the only parent; merges
        after it are fine. The snapshot stays as it is, to its ``root_id``. The message lists the
        subjects of the commits unless it is given. The reflog keeps the old head. ``progress`` is
        as for ``merge``.

        Raises ``InvalidInputError`` if ``since`` is not on that line, ``SessionStateError`` if
        there is nothing after it, ``RefNotFoundError``, ``ReadOnlyError``, ``BusyError`` and
        ``FullError``. Cost: O(commits since), one fsync.
        """
        combiner = self._combiner()
        return combiner.squash(
            branch, since, message=message, metadata=metadata, author=author, progress=progress
        ).hex()

    def _combiner(self, *, writing: bool = True) -> Combiner:
        (self._require_writable if writing else self._require_open)()
        from vzarr.combine import Combiner

        return Combiner(self._objects, self._settings, self._make_store)

    def blame(
        self,
        path: str,
        region: Any = None,
        *,
        ref: str | datetime | None = None,
        progress: Progress | None = None,
    ) -> Blame:
        """Find the last commit to change each stored chunk of an array, as of a ref.

        ``region`` is an index as for numpy, of slices and integers, and takes the chunks it
        touches. A chunk that a merge has from one of its parents counts for the commit on that
        side. An array that was moved keeps its history, unless the same commit changed it too. In
        a shallow clone, ``or_before`` of what this gives has the commits at which the data ends:
        their chunks were changed by them, or before. ``progress(done, total, what)`` is called now
        and then; with the number of all commits for a total, though it mostly ends sooner.

        Raises ``NotFoundError`` if there is no such array, ``RefNotFoundError``, and
        ``InvalidInputError`` for a group or a region that does not fit. O(n + commits · depth +
        changed chunks): a commit that left the array alone costs microseconds.
        """
        from vzarr.blame import blame

        head = self._revision(ref).commit
        return blame(self._objects, head, path.strip("/"), region, progress=progress)

    def bisect(
        self,
        good: str | datetime,
        bad: str | datetime,
        test: Callable[[VzarrStore], bool],
        *,
        progress: Callable[[Commit, int], object] | None = None,
    ) -> Commit:
        """Find the commit that broke something, by halving the commits between good and bad.

        ``test(store)`` gets a read-only store of a commit, and gives True if that one is good;
        ``good`` and ``bad`` themselves are taken as given. The commit that comes out is bad and
        its parents are good, through merges too, provided that what was broken stayed broken.
        ``progress(commit, left)`` is called before each test with the number of commits left.

        Raises ``InvalidInputError`` unless ``good`` is an ancestor of ``bad``,
        ``RefNotFoundError``, and whatever the test raises. About log2(commits between) tests, and
        O(commits) to look at the history.
        """
        before, after = self._revision(good).commit, self._revision(bad).commit
        from vzarr.blame import bisect

        return bisect(
            self._environment,
            before,
            after,
            lambda commit: bool(test(self._store_of(Digest(bytes.fromhex(commit.id))))),
            progress,
        )
