"""What a repository takes from elsewhere and gives away: other formats, other repositories."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import datetime
from typing import TYPE_CHECKING, Any

from vzarr import history
from vzarr.errors import InvalidInputError
from vzarr.format import Digest
from vzarr.handle import DEFAULT_BRANCH, Handle, check_path
from vzarr.merge import Strategy
from vzarr.objects import Objects
from vzarr.progress import Progress
from vzarr.session import Session

if TYPE_CHECKING:
    from vzarr.bundle import BundleReport
    from vzarr.exchange import PullReport, TransferReport
    from vzarr.exporting import ExportReport
    from vzarr.icestorage import Theirs
    from vzarr.imported import ImportReport
    from vzarr.remotes import Remotes
    from vzarr.wire import Channel


class Transfer(Handle):
    """The methods of ``Repository`` that move data in and out of the file."""

    # ── other formats ────────────────────────────────────────────────────────────────────────────

    def export_to(
        self,
        target: str | os.PathLike[str] | Theirs,
        *,
        ref: str | datetime | None = None,
        path: str = "",
        overwrite: bool = False,
        storage_options: dict[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> ExportReport:
        """Write the data of a ref to where other programs read it.

        ``target`` is a Zarr directory, file by file what zarr's ``LocalStore`` would have written;
        with the suffix ``.zip`` a zip file for ``ZipStore``, not compressed; with ``.car`` a CAR
        file, blocks by SHA-256 for IPFS and its relatives; or a URL, if fsspec is installed, which
        ``storage_options`` are for. ``ref`` is a branch (default main), a tag or whatever else
        ``session`` takes; ``path`` the group or array to export, of which the keys below are taken.

        ``icechunk://PATH``, ``icechunk://s3://BUCKET/PREFIX`` and the like, or Icechunk's own
        ``Storage`` or ``Repository``, are an Icechunk repository. It gets the whole history of all
        branches and tags, or of the one that ``ref`` names, and the next time what is new; see
        ``docs/beyond-one-machine.md``. Its names move when all is there; ``overwrite`` lets
        branches go where they were reset to here. Commits of others are never dropped:
        ``NotFastForwardError``. ``TransferError`` if the network or the credentials fail; the same
        call goes on. Cost: O(commits), and what differs between commits and their first parents.

        Every value is compared with its digest, whatever ``verify=`` says. The target appears when
        all of it is written and durable; until then there is what ``overwrite`` replaces. At a URL,
        which cannot be renamed, metadata come last. If it is killed, a hidden draft is left beside
        the target, which the next export there removes.

        Raises ``AlreadyExistsError`` if there is something, unless ``overwrite`` is on and it is
        such an export; ``NotFoundError`` if there is nothing at ``path``, or no directory for the
        target; ``InvalidInputError`` naming keys that the target cannot hold, before anything is
        written; ``RefNotFoundError``, ``CorruptError``, ``FullError``, ``StorageError``. A CAR file
        with blocks too large for IPFS gives a ``BlockSizeWarning``. Cost: O(keys), and reading,
        verifying and writing every byte; at most four batches of 4 MiB are in memory, or so many
        chunks if they are larger.
        """
        from vzarr.exporting import export, export_history
        from vzarr.icestorage import is_place

        # It compares digests itself.
        objects = Objects(self._environment, "never")
        if is_place(target):
            self._require_open()
            return export_history(
                objects,
                target,
                ref=ref,
                path=path,
                overwrite=overwrite,
                storage_options=storage_options,
                progress=progress,
            )
        target = check_path(target)
        commit = self._revision(ref).commit
        session = Session(objects, self._settings, commit, None, self._make_store)
        with closing(session):
            return export(
                session,
                target,
                path=path,
                overwrite=overwrite,
                storage_options=storage_options,
                progress=progress,
            )

    def import_from(
        self,
        source: Any,
        *,
        path: str = "",
        branch: str = DEFAULT_BRANCH,
        ref: str | datetime | None = None,
        message: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        author: str | None = None,
        consume: bool = False,
        overwrite: bool = False,
        storage_options: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> ImportReport:
        """Take over what is elsewhere to ``path`` on a branch: one commit, or none at all.

        ``source`` is a Zarr of format 2 or 3 in a directory or a zip file, at an fsspec URL
        (``storage_options`` are for that) or in a zarr ``Store``; a ``.vzarr`` file, at ``ref``; a
        CAR; or HDF5, NetCDF or GRIB, whose groups, dimensions, attributes and chunks are kept, with
        values as they are stored and not as they are decoded. Zarr's chunks and documents
        are taken over byte for byte; but not consolidated metadata, which the next commit would
        make stale.

        An Icechunk repository, in a directory or at a URL as for ``export_to``, comes with its
        history: all branches and tags, which move in one txn at the end. What was exported becomes
        the same commits again. With ``ref`` it is one snapshot, and one commit. Raises
        ``NotFastForwardError`` if a branch has other commits here, unless ``overwrite``.

        Run again, it makes no commit if nothing has changed, and goes on where an earlier run was
        killed. If there is something else at ``path`` already, ``overwrite`` replaces all of it.

        ``consume`` deletes the source meanwhile, for which nobody else may use it: each chunk once
        it is on disk here, documents and directories after the commit, a zip file as a whole.
        Killed at any moment, nothing is lost, and the same call goes on; until then a branch
        ``importing/…`` holds what is not in the source any more.

        Raises ``NotFoundError``; ``InvalidInputError`` for what is half-written or cannot be
        imported, with what is missing for it; ``AlreadyExistsError`` for ``path``;
        ``ConflictError`` if the source, or ``path``, is changed meanwhile; ``BusyError``,
        ``FullError``, ``StorageError``. The branch is as it was then, and what was read is kept for
        the next run. Cost: reading, a digest and writing, at about the speed of a copy; memory as
        in a transaction.
        """
        from vzarr.adoption import IceSource, adopt_history
        from vzarr.imported import Options
        from vzarr.importing import import_from
        from vzarr.sources import open_source

        self._require_branch(branch)
        options = Options(
            path=path.strip("/"),
            branch=branch,
            message=None if message is None else history.check_message(message),
            metadata=history.check_metadata(metadata),
            author=author,
            consume=consume,
            overwrite=overwrite,
        )
        opened = open_source(source, ref=ref, exclusive=consume, storage_options=storage_options)
        with closing(opened):
            if isinstance(opened, IceSource):
                return adopt_history(self._objects, self._settings, opened, options, progress)
            return import_from(self, self._objects, self._settings, opened, options, progress)

    # ── other repositories ───────────────────────────────────────────────────────────────────────

    @property
    def remotes(self) -> Remotes:
        """Other repositories that this one knows: a mapping from names, with add and remove."""
        from vzarr.remotes import Remotes

        self._require_open()
        return Remotes(self._environment, self._settings, read_only=self._read_only)

    def fetch(
        self,
        remote: str | os.PathLike[str] | None = None,
        branches: str | Sequence[str] | None = None,
        *,
        complete: bool = False,
        prune: bool = False,
        progress: Progress | None = None,
    ) -> TransferReport:
        """Bring the commits of another repository, and move no branch.

        ``remote`` is the name of a remote, a path, ``user@host:path`` or a bundle; not given, it is
        ``origin`` or the only one. ``branches`` are all of it by default, and new tags then, too.
        Where they are there is known as ``origin/main`` from then on, a ref like any other;
        ``FETCH_HEAD/main`` for what has no name. Only objects travel that are missing here; each is
        compared with its digest. What an interrupted call has brought is not sent again.
        ``complete`` looks at all commits, and brings what a shallow or partial clone has left out.
        ``prune`` forgets names such as ``origin/dev`` of branches that the remote does not have any
        more, whatever ``branches`` are asked for; their commits are garbage once the reflog, which
        tells of it, has expired.

        Raises ``TransferError`` if the other side cannot be reached or hangs up, ``CorruptError``
        for what it sends, ``UnrelatedError`` if it has no commit in common with this one,
        ``InvalidInputError`` for ``prune`` of what is no remote with a name, ``NotFoundError``,
        ``FormatVersionError``, ``ReadOnlyError``, ``BusyError``, ``FullError``.
        Nothing has moved then. Cost: O(changes · depth), one fsync.
        """
        from vzarr.exchange import fetch

        self._require_writable()
        return fetch(
            self._objects,
            self._settings,
            _url(remote),
            [branches] if isinstance(branches, str) else branches,
            complete=complete,
            prune=prune,
            progress=progress,
        )

    def push(
        self,
        remote: str | os.PathLike[str] | None = None,
        branches: str | Sequence[str] | None = None,
        *,
        force: bool = False,
        tags: bool = False,
        progress: Progress | None = None,
    ) -> TransferReport:
        """Give another repository what it lacks of some branches, and move them there.

        ``remote``: see ``fetch``. ``branches`` is the one in use by default. With ``tags``, all
        tags go along. All moves there are made in one txn, and durable when this returns. A branch
        is moved forward only, unless ``force``.

        Raises ``NotFastForwardError`` if a branch there has commits that are not here: ``pull``
        first; ``AlreadyExistsError`` for a tag that names another commit there, ``ReadOnlyError``
        if the other side only serves readers, and as ``fetch``. Nothing has moved then. Cost:
        O(changes · depth), one fsync there.
        """
        from vzarr.exchange import push

        self._require_open()
        if branches is None:
            branches = self._branch_in_use
        return push(
            self._objects,
            self._settings,
            _url(remote),
            [branches] if isinstance(branches, str) else branches,
            force=force,
            tags=tags,
            read_only=self._read_only,
            progress=progress,
        )

    def pull(
        self,
        remote: str | os.PathLike[str] | None = None,
        branch: str | None = None,
        *,
        strategy: Strategy = "fail",
        progress: Progress | None = None,
    ) -> PullReport:
        """Fetch a branch (default: the one in use), and merge it into the one of that name here.

        A fast-forward where nothing but the name has to move; else as ``merge``, with the same
        ``strategy``. Raises ``MergeConflict``, and what ``fetch`` and ``merge`` raise; what was
        fetched is known as ``origin/main`` then.
        """
        from vzarr.exchange import pull

        self._require_writable()
        return pull(
            self._objects,
            self._settings,
            self._make_store,
            _url(remote),
            self._branch_in_use if branch is None else branch,
            strategy=strategy,
            progress=progress,
        )

    def bundle(
        self,
        target: str | os.PathLike[str],
        refs: str | Sequence[str] | None = None,
        *,
        since: str | datetime | Sequence[str] | None = None,
        depth: int | None = None,
        path: str = "",
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> BundleReport:
        """Write some branches and tags (default: all) to one file, for mail or a stick.

        ``since`` names refs that the other side has, or an earlier bundle: only what came after
        them is written. ``depth`` and ``path`` take a part, as in ``clone``. Whoever gets the file
        says ``unbundle``, ``fetch``, ``pull`` or ``clone``. It appears when it is whole and on
        disk.

        Raises ``RefNotFoundError``, ``AlreadyExistsError`` unless ``overwrite``,
        ``InvalidInputError`` if there is nothing to write, ``CorruptError``, ``FullError``. Cost:
        O(changes · depth), and 150 bytes of memory an object.
        """
        from vzarr.bundle import heads_of, write_bundle
        from vzarr.bundlefile import is_bundle
        from vzarr.cloning import check_part

        self._require_open()
        check_part(depth, path)
        heads: list[Digest] = []
        for each in [since] if isinstance(since, str | datetime) else since or ():
            if isinstance(each, str) and is_bundle(each):
                heads += heads_of(each)
            else:
                heads.append(self._revision(each).commit)
        return write_bundle(
            self._objects,
            check_path(target),
            [refs] if isinstance(refs, str) else refs,
            heads,
            depth=depth,
            path=path.strip("/"),
            overwrite=overwrite,
            progress=progress,
        )

    def unbundle(
        self,
        source: str | os.PathLike[str],
        *,
        force: bool = False,
        progress: Progress | None = None,
    ) -> TransferReport:
        """Take all of a bundle: its branches move forward, or are made, and so are its tags.

        Raises ``NotFastForwardError`` if a branch here has other commits, unless ``force``:
        ``pull`` from the bundle merges it; ``CommitNotFoundError`` if what the bundle was made
        since is missing, ``CorruptError`` if it is damaged, ``UnrelatedError``. Nothing has moved
        then. Cost: O(changes · depth), one fsync.
        """
        from vzarr.bundle import unbundle

        self._require_writable()
        return unbundle(
            self._objects, self._settings, check_path(source), force=force, progress=progress
        )

    def serve(self, channel: Channel, version: int, their_id: bytes | None) -> None:
        """Answer another side that has said hello, until it has what it wants; ``docs/sync.md``.

        ``vzarr serve`` and transfers on one machine call this. Nothing can be pushed to a
        repository that was opened with mode "r".
        """
        from vzarr.serving import serve

        self._require_open()
        serve(self._objects, self._settings, channel, version, their_id, read_only=self._read_only)


def _url(remote: object) -> str | None:
    if remote is None:
        return None
    text = os.fspath(remote) if isinstance(remote, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise InvalidInputError(f"a remote is a name, a path or user@host:path, not {remote!r}")
    return text
