"""Import what is elsewhere: values are taken over as they are, and become one commit at the end.

Threads read and hash pieces of the source; the session stages them while they read on. Now and then
it saves a checkpoint, from which a later run of the same import goes on. What is there already
costs reading and a digest, nothing more, and what has not changed makes no commit.

A source that is consumed loses a value only after a checkpoint that has it is on disk. From before
the first loss until the source is gone, a mark in it says who has the rest: with only that mark and
a file that knows of no such import, nothing is deleted and nothing is believed.
"""

from __future__ import annotations

import itertools
import os
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, final

from vzarr import history, unfinished
from vzarr.committing import Settings
from vzarr.errors import AlreadyExistsError, ConflictError, InvalidInputError, NotFoundError
from vzarr.format import Blob, Digest, chunk_digest
from vzarr.hierarchy import Hierarchy
from vzarr.imported import MARK, Counts, ImportReport, Options, check_path
from vzarr.intake import Catalogue, Consumable, Piece, Source, Survey, changed, is_document, join
from vzarr.objects import Bytes, Objects, Overlay
from vzarr.progress import Meter, Progress
from vzarr.session import Session
from vzarr.unfinished import METADATA, Mark

if TYPE_CHECKING:
    from vzarr.handle import Handle

# A checkpoint waits for the disk; what was read since is read again after a kill.
_CHECKPOINT_BYTES = 1 << 30
_CHECKPOINT_VALUES = 100_000
_CHECKPOINT_SECONDS = 20.0
# While consuming, the disk needs room for what lies between two checkpoints twice.
_CONSUME_BYTES = 256 << 20
# Handing a piece to another thread costs more than to read a small one.
_PIECES_AT_ONCE = 16
_GROUPS = {
    2: (".zgroup", b'{\n  "zarr_format": 2\n}'),
    3: ("zarr.json", b'{\n  "attributes": {},\n  "zarr_format": 3,\n  "node_type": "group"\n}'),
}


def import_from(
    repository: Handle,
    objects: Objects,
    settings: Settings,
    source: Source,
    options: Options,
    progress: Progress | None = None,
) -> ImportReport:
    """Take a source over; see ``Repository.import_from``. Does not close it."""
    check_path(options.path)
    if options.consume:
        _require_consumable(source)
    return _Import(repository, objects, settings, source, options, progress).run()


def _require_consumable(source: Source) -> None:
    if not isinstance(source, Consumable):
        raise InvalidInputError(
            f"{source.label} cannot be consumed, only Zarr directories and zip files of this "
            "machine can: import it without consume=True, and delete it yourself"
        )


@final
class _Import:
    """One run."""

    def __init__(
        self,
        repository: Handle,
        objects: Objects,
        settings: Settings,
        source: Source,
        options: Options,
        progress: Progress | None,
    ) -> None:
        self._repository = repository
        self._objects = objects
        self._settings = settings
        self._source = source
        self._options = options
        self._meter = Meter(progress)
        self._counts = Counts()
        # Set up by ``_begin``.
        self._session: Session
        self._catalogue: Catalogue
        self._mark = Mark(
            id=uuid.uuid4().hex,
            source=source.identity or "",
            path=options.path,
            state=source.state,
        )
        self._since = 0
        # Whether the source lacks what was in it.
        self._moved = False
        self._resumed = False
        # Whether nothing is to be stored: what the branch has must be what the source has.
        self._compares = False
        self._stopped = False
        self._unsaved: list[Piece] = []
        self._saved_at = time.monotonic()
        self._unsaved_bytes = 0
        self._unsaved_values = 0

    def run(self) -> ImportReport:
        """Find where to begin, read it all, commit, and delete the source if that is wanted."""
        moved = self._source.moved() if isinstance(self._source, Consumable) else None
        if moved is not None:
            self._require_own(moved)
        found = None
        if self._source.identity is not None:
            branch, exact = self._options.branch, moved is not None
            found = unfinished.find(self._objects, branch, self._mark, exact=exact)
        if moved is not None and found is None:
            # A run that could not delete all of the source.
            environment, branch = self._objects.environment, self._options.branch
            known = moved.get("commit")
            made = unfinished.find_commit(environment, branch, self._mark.id, known)
            if made is not None:
                return self._end_consuming(made)
        survey = self._source.survey(self._meter)
        self._session = self._begin(found, moved)
        # What it has not saved is gone when it is closed; the rest, another run goes on with.
        with closing(self._session):
            self._catalogue = Catalogue(survey.documents, self._source.label)
            self._require_outside()
            self._look_at_target()
            self._take_documents(survey)
            self._take_pieces(survey)
            self._source.require_unchanged(self._meter)
            self._require_whole()
            self._meter.end()
            commit = self._commit()
            head = self._session.base
            if self._moved and self._resumed:
                self._count_all(self._session.hierarchy)
        unfinished.release(self._objects.environment, self._settings, self._mark.id)
        if self._options.consume:
            self._remove_source(head)
        return self._report(commit, survey.skipped)

    def _report(self, commit: str | None, skipped: int) -> ImportReport:
        return ImportReport(
            source=self._source.label,
            path=self._options.path,
            branch=self._options.branch,
            commit=commit,
            arrays=self._catalogue.arrays,
            groups=self._catalogue.groups,
            chunks=self._counts.chunks,
            files=self._counts.files,
            nbytes=self._counts.nbytes,
            new_bytes=self._counts.new_bytes,
            same=self._counts.same,
            skipped=skipped,
            resumed=self._resumed,
            consumed=self._options.consume,
            seconds=self._meter.seconds,
        )

    # ── where it begins ──────────────────────────────────────────────────────────────────────────

    def _require_own(self, moved: Mapping[str, Any]) -> None:
        """Raise unless this is the import that has what the source lacks."""
        options = self._options
        ours = (self._repository.id, options.branch, options.path)
        theirs = (moved.get("repository"), moved.get("branch"), moved.get("path"))
        if options.consume and ours == theirs:
            self._mark = replace(self._mark, id=str(moved.get("import")))
            return
        raise InvalidInputError(
            f"part of {self._source.label} has been moved already, to {moved.get('path')!r} on "
            f"branch {moved.get('branch')!r} of {moved.get('file')}, by an import with "
            "consume=True that has not ended: run that one again"
        )

    def _begin(
        self, found: unfinished.Unfinished | None, moved: Mapping[str, Any] | None
    ) -> Session:
        """Open the session: that of an earlier run, or a new one."""
        self._moved = moved is not None
        if found is not None:
            session = self._repository.resume(found.session_id)
            if found.mark.state == self._source.state:
                self._resumed, self._since = True, found.since
                self._mark = replace(self._mark, id=found.mark.id)
                return session
            # The source is another one by now.
            with closing(session):
                session.discard()
        session = self._repository.session(self._options.branch)
        if moved is not None:
            self._resumed = unfinished.restore(self._objects, session, self._mark.id)
            if not self._resumed:
                session.close()
                name = unfinished.branch_of(self._mark.id)
                raise NotFoundError(
                    f"part of {self._source.label} was moved to {moved.get('file')}, and this file "
                    f"has neither the session nor the branch {name!r} that would hold it: open a "
                    "backup that has",
                    name=name,
                )
        return session

    def _require_outside(self) -> None:
        file, source = self._repository.path, self._source
        if source.identity is not None and file.startswith(source.identity + os.sep):
            raise InvalidInputError(
                f"{file} is inside of {source.label}, and would be imported into itself: move it "
                "out"
            )

    def _look_at_target(self) -> None:
        """See whether there is something already, and make the groups above."""
        session, path = self._session, self._options.path
        if not self._resumed:
            there = session.sums(path)[0] > 0 or (path != "" and session.find(path) is not None)
            self._compares = there and not self._options.overwrite
            if there and not self._compares:
                session.delete_below(path)
                if path:
                    session.delete(path)
        if not self._compares:
            names = path.split("/")[:-1] if path else []
            for depth in range(len(names) + 1 if path else 0):
                self._make_group("/".join(names[:depth]))

    def _make_group(self, path: str) -> None:
        node = self._session.hierarchy.node(path)
        if node is None:
            name, document = _GROUPS[self._catalogue.zarr_format]
            self._session.set(join(path, name), document)
        elif node.kind == "array":
            raise InvalidInputError(
                f"{path or 'the root'} of branch {self._options.branch!r} is an array, and "
                f"{self._options.path} would be inside of it: choose another path="
            )

    # ── taking over ──────────────────────────────────────────────────────────────────────────────

    def _take_documents(self, survey: Survey) -> None:
        for key, data in survey.documents.items():
            self._store(key, data, self._counts)

    def _take_pieces(self, survey: Survey) -> None:
        """Have threads take all pieces, no more of them under way than keeps the threads busy."""
        self._meter.stage("import", survey.nbytes or survey.pieces)
        by_bytes = survey.nbytes > 0
        workers = self._source.workers
        at_once = max(1, min(_PIECES_AT_ONCE, survey.pieces // (4 * workers)))
        running: deque[Future[tuple[list[Piece], Counts]]] = deque()
        with ThreadPoolExecutor(workers, thread_name_prefix="vzarr-import") as pool:
            try:
                for batch in _batches(self._source.pieces(), at_once):
                    running.append(pool.submit(self._take, batch))
                    if len(running) > 2 * workers:
                        self._settle(running.popleft(), by_bytes=by_bytes)
                while running:
                    self._settle(running.popleft(), by_bytes=by_bytes)
            except BaseException:
                self._stopped = True
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _take(self, batch: list[Piece]) -> tuple[list[Piece], Counts]:
        counts = Counts()
        for piece in batch:
            if not self._stopped:
                self._take_piece(piece, counts)
        return batch, counts

    def _take_piece(self, piece: Piece, counts: Counts) -> None:
        known = [self._session.find(self._target(key)) for key in piece.keys]
        blobs = [blob for blob in known if blob is not None]
        if blobs and len(blobs) == len(known) and self._is_known(piece, blobs):
            for key, blob in zip(piece.keys, blobs, strict=True):
                self._count(key, blob.length, counts)
                counts.same += 1
            return
        for key, data in self._source.read(piece):
            self._store(key, data, counts)

    def _is_known(self, piece: Piece, blobs: list[Blob]) -> bool:
        """Whether what the session has need not be read again."""
        if piece.blob is not None:
            return blobs == [piece.blob]
        # What is about to be deleted is looked at in any case.
        if not self._resumed or self._options.consume:
            return False
        return self._source.is_as_read(piece, self._since)

    def _store(self, key: str, data: Bytes, counts: Counts) -> None:
        self._count(key, len(data), counts)
        target, blob = self._target(key), Blob(chunk_digest(data), len(data))
        if self._session.find(target) == blob:
            counts.same += 1
        elif self._compares:
            raise self._differs(f"{target} is another there")
        elif self._session.put(target, blob, data):
            counts.new_bytes += blob.length

    def _count(self, key: str, nbytes: int, counts: Counts) -> None:
        counts.values += 1
        counts.nbytes += nbytes
        if self._catalogue.is_chunk(key, nbytes):
            counts.chunks += 1
        elif not is_document(key):
            counts.files += 1

    def _target(self, key: str) -> str:
        return join(self._options.path, key)

    def _differs(self, how: str) -> AlreadyExistsError:
        where = repr(self._options.path) if self._options.path else "the root"
        return AlreadyExistsError(
            f"{where} of branch {self._options.branch!r} has something else than "
            f"{self._source.label} already ({how}): import to another path=, or replace all that "
            "is there with overwrite=True",
            name=self._options.path,
        )

    # ── saving ───────────────────────────────────────────────────────────────────────────────────

    def _settle(self, future: Future[tuple[list[Piece], Counts]], *, by_bytes: bool) -> None:
        """Wait for a batch; save what there is so far if it is enough."""
        batch, counts = future.result()
        self._counts.add(counts)
        self._meter.step(counts.nbytes if by_bytes else len(batch))
        self._unsaved_bytes += counts.nbytes
        self._unsaved_values += counts.values
        if self._options.consume:
            self._unsaved += batch
        limit = _CONSUME_BYTES if self._options.consume else _CHECKPOINT_BYTES
        if (
            self._unsaved_bytes >= limit
            or self._unsaved_values >= _CHECKPOINT_VALUES
            or time.monotonic() >= self._saved_at + _CHECKPOINT_SECONDS
        ):
            self._save()

    def _save(self) -> None:
        """Save a checkpoint, and only then delete from the source what that has."""
        if self._source.identity is not None and not self._compares:
            self._session.set(MARK, self._mark.encode())
            self._session.checkpoint()
            if self._options.consume:
                unfinished.protect(
                    self._session.environment, self._settings, self._session, self._mark
                )
                self._delete_saved()
        self._unsaved = []
        self._unsaved_bytes = self._unsaved_values = 0
        self._saved_at = time.monotonic()

    def _delete_saved(self) -> None:
        source = self._consumable
        if not self._moved:
            source.mark(self._who_has_it())
            self._moved = True
        for piece in self._unsaved:
            for key in piece.keys:
                source.delete(key)

    @property
    def _consumable(self) -> Consumable:
        assert isinstance(self._source, Consumable), "checked at the beginning"
        return self._source

    def _who_has_it(self) -> dict[str, str]:
        return {
            "why": "what this directory lacks is in the file: run vzarr import --consume again",
            "file": self._repository.path,
            "repository": self._repository.id,
            "branch": self._options.branch,
            "path": self._options.path,
            "import": self._mark.id,
        }

    # ── the end ──────────────────────────────────────────────────────────────────────────────────

    def _require_whole(self) -> None:
        """See that nothing is there that the source has not."""
        if self._moved or not (self._resumed or self._compares):
            return
        session, path = self._session, self._options.path
        session.delete(MARK)
        if session.sums(path)[0] == self._counts.values:
            return
        if self._compares:
            raise self._differs("it has more there")
        # They were in the source when an earlier run read it.
        begin = len(path) + 1 if path else 0
        for key in list(session.keys(path)):
            if not self._source.has(key[begin:]):
                session.delete(key)

    def _commit(self) -> str | None:
        """Make the one commit, unless nothing would change."""
        session, options, label = self._session, self._options, self._source.label
        session.delete(MARK)
        mine = session.hierarchy
        name = label.rstrip("/").rpartition("/")[2] or label
        message = f"import {name}" if options.message is None else options.message
        metadata = {**options.metadata, METADATA: {"source": label, "id": self._mark.id}}
        try:
            if session.has_changes:
                session.rebase("ours" if options.overwrite else "fail")
                if options.overwrite:
                    self._put_back(mine)
                self._require_taken(mine)
            if not session.has_changes:
                session.discard()
                return None
            commit = session.commit(message, metadata=metadata, author=options.author)
            # Somebody may have come between, and a merge put both together.
            self._require_taken(mine)
        except ConflictError as error:
            raise ConflictError(
                f"while {label} was imported, another writer changed the same place: {error}. "
                "With overwrite=True the import takes precedence",
                conflicts=error.conflicts,
            ) from error
        return commit

    def _require_taken(self, mine: Hierarchy) -> None:
        """See that all that was imported is as it is in the source, whatever others did."""
        merged, path = self._session.hierarchy, self._options.path
        if merged.entry(path) == mine.entry(path):
            return
        for key, blob in mine.items(path):
            if merged.find(key) != blob:
                raise ConflictError(f"{key} has become another")

    def _put_back(self, mine: Hierarchy) -> None:
        """Take back what a merge with what others did has made of the place. O(keys) if it did."""
        merged, path = self._session.hierarchy, self._options.path
        if merged.entry(path) == mine.entry(path):
            return
        edits: dict[str, Blob | None] = dict.fromkeys(merged.keys(path))
        edits.update(mine.items(path))
        self._session.rework(lambda overlay, root: Hierarchy(overlay, root).edit(edits).root)

    # ── consuming ────────────────────────────────────────────────────────────────────────────────

    def _remove_source(self, commit: str) -> None:
        """Delete what is left of the source: a commit has all of it."""
        # Also a commit that was not to wait for the disk.
        self._objects.environment.sync()
        self._consumable.mark({**self._who_has_it(), "commit": commit})
        self._meter.stage("delete", 0)
        self._consumable.remove()
        self._meter.end()

    def _end_consuming(self, commit: Digest) -> ImportReport:
        """Delete what a run left that was killed after its commit, if the commit has it."""
        root = self._objects.load_root(history.get(self._objects.environment, commit).root)
        view = Hierarchy(Overlay(self._objects), root)
        survey = self._source.survey(self._meter)
        left: Iterator[tuple[str, Bytes]] = itertools.chain(
            survey.documents.items(),
            (value for piece in self._source.pieces() for value in self._source.read(piece)),
        )
        for key, data in left:
            if view.find(self._target(key)) != Blob(chunk_digest(data), len(data)):
                raise changed(self._source.label, key)
        self._resumed = True
        self._count_all(view)
        self._counts.same = self._counts.values
        unfinished.release(self._objects.environment, self._settings, self._mark.id)
        self._remove_source(commit.hex())
        return self._report(commit.hex(), survey.skipped)

    def _count_all(self, view: Hierarchy) -> None:
        """Count what earlier runs took, too. O(keys)."""
        path = self._options.path
        begin = len(path) + 1 if path else 0
        found = [(key[begin:], blob) for key, blob in view.items(path)]
        documents = {key: view.read(blob) for key, blob in found if is_document(key)}
        self._catalogue = Catalogue(documents, self._source.label)
        self._counts = Counts(new_bytes=self._counts.new_bytes, same=self._counts.same)
        for key, blob in found:
            self._count(key, blob.length, self._counts)


def _batches(pieces: Iterator[Piece], at_once: int) -> Iterator[list[Piece]]:
    while batch := list(itertools.islice(pieces, at_once)):
        yield batch
