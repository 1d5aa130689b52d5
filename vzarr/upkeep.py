"""What keeps a repository whole and small: check, collect, forget, erase, compact, back up."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from vzarr.errors import SessionStateError
from vzarr.handle import Handle, check_path
from vzarr.progress import Progress

if TYPE_CHECKING:
    from vzarr.backup import BackupReport
    from vzarr.compaction import CompactReport
    from vzarr.expiry import ExpireReport
    from vzarr.findings import Level, Report
    from vzarr.garbage import GcReport
    from vzarr.redaction import RedactReport
    from vzarr.usage import Usage


class Upkeep(Handle):
    """The methods of ``Repository`` that look after the file."""

    def check(self, level: Level = "quick", *, progress: Progress | None = None) -> Report:
        """Check that the repository is whole; give all problems, with what each costs.

        "quick" looks at LMDB's structure, refs, commits, directories, documents and indexes, and
        whether each chunk is there; "full" also at the bytes of every chunk and its checksum, at
        reflogs and sessions, and counts garbage. Damage is reported and never raised. Others may
        write meanwhile. ``progress(done, total, what)`` is called now and then. Raises
        ``InvalidInputError`` for a level there is not, and ``SessionStateError`` once closed. Some
        7 µs a chunk and 80 µs a tree node; "full" reads the whole file.
        """
        self._require_open()
        from vzarr.check import check

        return check(self._objects, level, progress=progress)

    def gc(
        self,
        dry_run: bool = False,
        *,
        checkpoints_older_than: timedelta = timedelta(days=14),
        progress: Progress | None = None,
    ) -> GcReport:
        """Delete what is reachable from nothing: commits, nodes, chunks, what dead sessions left.

        Kept is what can be reached from a branch, a tag or the reflog (``expire`` shortens that),
        from a commit that a session of any process is on, and from the work of sessions whose
        process lives. A dead session's checkpoint is kept unless it is ``checkpoints_older_than``
        so much, and so is the work of one on another machine, counted from when it wrote last.

        Others read and commit meanwhile, and wait for some 20 ms at a time. If it is interrupted,
        the file is sound and the next one goes on. The file does not become smaller: what is free
        is used again, and ``compact`` gives it back. ``dry_run`` only tells what would be deleted.
        ``progress(done, total, what)`` is called now and then.

        Raises ``CorruptError`` where something in use is missing or damaged, ``BusyError`` if
        another collection or writer takes longer than the timeout, ``ReadOnlyError``,
        ``FullError``. Cost: some 3 µs a stored chunk, and 4 µs one that is deleted; 8 bytes of
        memory a chunk.
        """
        from vzarr.garbage import gc

        (self._require_open if dry_run else self._require_writable)()
        return gc(
            self._objects,
            self._settings,
            dry_run=dry_run,
            checkpoints_older_than=checkpoints_older_than,
            progress=progress,
        )

    def expire(
        self,
        *,
        older_than: datetime | timedelta | None = None,
        keep_last: int | None = None,
        branch: str | None = None,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> ExpireReport:
        """Remove reflog entries, of one branch or of all, so that ``gc`` frees what only they keep.

        Those go that are older than a time or an age, or all if ``older_than`` is not given; but
        of each branch the ``keep_last`` newest stay. A branch keeps its newest entry in any case;
        if that is one of those to go, it forgets what was there before. Of a branch that was
        deleted nothing stays that is ``older_than`` that. History is not rewritten. The report
        lists the commits that are lost then; see it with ``dry_run`` first.
        ``progress(done, total, what)`` is called now and then.

        Raises ``InvalidInputError`` if neither ``older_than`` nor ``keep_last`` is given,
        ``RefNotFoundError`` for a branch without a reflog, ``BusyError``, ``ReadOnlyError``.
        Cost: O(commits + entries), some 10 µs each.
        """
        from vzarr.expiry import expire

        (self._require_open if dry_run else self._require_writable)()
        return expire(
            self._objects,
            self._settings,
            older_than=older_than,
            keep_last=keep_last,
            branch=branch,
            dry_run=dry_run,
            progress=progress,
        )

    def du(
        self,
        path: str = "",
        *,
        ref: str | datetime | None = None,
        commits: int | Sequence[str] = 10,
        progress: Progress | None = None,
    ) -> Usage:
        """Tell what takes how many bytes: refs, commits, arrays, free pages, garbage; as tables.

        Of each branch and tag, all that it reaches, and what no other does. Of each commit, what it
        alone reaches: of the newest ``commits``, or of those that are given. Of each array at
        and below ``path``, its elements and its stored chunks as of ``ref`` (default main), and the
        chunks of all its versions that are kept. What is stored once counts once.
        ``progress(done, total, what)`` is called now and then.

        Raises ``RefNotFoundError``, ``NotFoundError`` for a path that is not in ``ref``,
        ``InvalidInputError``, and ``CorruptError`` where something is missing or damaged. Cost:
        some 0.1 ms a tree node, thus 4 s for a million chunks, and some 250 bytes of memory a chunk
        at the peak. No page is used again meanwhile.
        """
        from vzarr.usage import du

        self._require_open()
        head = self._revision(ref).commit
        wanted = (
            commits
            if isinstance(commits, int)
            else [self._revision(commit).commit for commit in commits]
        )
        name = str(ref) if ref is not None else self._branch_in_use
        return du(self._objects, path.strip("/"), name, head, wanted, progress=progress)

    def redact(
        self,
        path: str,
        region: Any = None,
        *,
        reason: str = "",
        everywhere: bool = False,
        whole_chunks: bool = False,
        force: bool = False,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> RedactReport:
        """Erase data from all history, so that nobody can ever read them from this file again.

        In each commit that a branch, a tag or the reflog has, what is stored at ``path`` is taken
        out: of an array its chunks, of a group those of all arrays below, and plain files. Their
        documents stay, attributes too, so that the arrays can be opened and read as fill value.
        ``region`` is an index as for numpy that counts from the beginning; only these elements of
        the array go then, in whatever shape it was. Chunks that lie in it partly are encoded anew,
        or dropped with ``whole_chunks=True``, where their codecs are lossy or not to be had. What
        was moved is followed, through commits that did not change it too.

        Commits that had the data, and all that descend from them, get new ids; author, time,
        message and metadata stay. Branches, tags and reflogs name the new ones, all in one txn, in
        which the old ones are deleted: a session that began from one of them cannot commit. Then
        garbage is collected. The bytes are in free pages of the file until ``compact``.

        The report has the ids, and where else the same bytes are: ``everywhere=True`` drops whole
        chunks and files there, too. While a session is on one of the commits, or a checkpoint holds
        the data, it refuses; with ``force=True`` these lose their base, and checkpoints are
        deleted. ``dry_run`` only tells. ``reason`` is noted in the reflog.

        Raises ``NotFoundError`` if no commit has that path, ``SessionStateError`` for sessions of
        this process and for checkpoints, ``BusyError`` for other processes, with ``.holder``,
        ``InvalidInputError``, ``ReadOnlyError``, ``FullError`` and ``CorruptError``; the history is
        as it was then. Cost: some 20 µs a commit and 50 µs a node that changes, decoding and
        encoding what lies in the region partly, and a ``gc``. Memory: 100 bytes a commit, and as
        much a chunk taken out.
        """
        from vzarr.redaction import redact

        (self._require_open if dry_run else self._require_writable)()
        current = self._current
        if current is not None and current.has_changes and not dry_run:
            raise SessionStateError(
                "the current session has changes: commit or discard them before you redact"
            )
        report = redact(
            self._objects,
            self._settings,
            path,
            region,
            reason=reason,
            everywhere=everywhere,
            whole_chunks=whole_chunks,
            force=force,
            dry_run=dry_run,
            spare=current,
            progress=progress,
        )
        if current is not None and not dry_run and current.base in report.rewritten:
            where = current.branch or report.rewritten[current.base]
            self._current = self.session(where)
            current.close()
        return report

    def compact(
        self,
        *,
        gc: bool = True,
        verify: Literal["quick", "full"] | None = "full",
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> CompactReport:
        """Give the space back that the file does not need any more.

        Collects garbage (``gc=False`` does not), writes a copy without free pages beside the file,
        verifies it, and renames it over the file. Killed at any time, there is the old file or the
        new one. Whatever is open in this process stays so: sessions, their edits, stores. Meanwhile
        readers of this process go on, and its writers and forks wait.

        No other process may have the file open. It waits up to ``timeout`` seconds (default: the
        repository's) for others to close it, and the same for writers. The disk needs room for the
        copy.

        Raises ``BusyError``, whose ``.holder`` is a process that has the file open; ``FullError``,
        ``CorruptError`` if there is damage, ``ReadOnlyError``, and ``StorageError`` where the
        system has no locks that tell who has it open. The file is as it was then. Cost: as ``gc``,
        and some 2 seconds a gigabyte.
        """
        from vzarr.compaction import compact

        self._require_writable()
        settings = self._settings if timeout is None else self._settings.waiting(timeout)
        return compact(self._objects, settings, collect=gc, verify=verify, progress=progress)

    def backup(
        self,
        target: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        verify: Literal["quick", "full"] | None = "full",
        progress: Progress | None = None,
    ) -> BackupReport:
        """Write a copy of the repository to another file, while others read and commit.

        It is what was committed at one moment, without free pages. It is verified ("full": every
        digest; "quick": all but the bytes of chunks) and durable before it appears under its name,
        whole or not at all. Anybody opens it as a repository of its own, with the same ``id``. To
        sessions that are open now it has no ties: what they saved with a checkpoint can be resumed
        there, and what they only staged is garbage there.

        While it runs, the file grows by what others commit, and a fork of this process waits.

        Raises ``AlreadyExistsError`` if there is something at ``target``, unless ``overwrite``; and
        then too ``BusyError`` or ``SessionStateError`` if that is open anywhere, and
        ``NotARepositoryError`` if it is no repository. ``InvalidInputError`` if it is this file,
        ``NotFoundError`` if there is no such directory, ``CorruptError`` if the copy is damaged
        because the file is, ``FullError``, ``StorageError``. Cost: some 2 seconds a gigabyte.
        """
        from vzarr.backup import backup

        self._require_open()
        return backup(
            self._environment,
            check_path(target),
            overwrite=overwrite,
            verify=verify,
            progress=progress,
        )
