"""Checking a repository, as ``git fsck`` and SQLite's ``integrity_check`` do.

The story is in ``check`` and ``_Check.run``. First LMDB's own structure: a file in which that is
damaged could crash LMDB, so that the rest of the check then reads it without LMDB. Next everything
that is reachable, in rounds: each goes from the refs as they are by then, and what looked wrong in
one is looked at again in the next. For others write meanwhile, and what a collection of garbage
deletes while we look for it is no damage.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import final, get_args

from lmdb.verify import VerifyError, verify

from vzarr.datafile import examine, real_path, require_ours
from vzarr.environment import Environment
from vzarr.errors import CorruptError, FormatError, InvalidInputError, NotARepositoryError
from vzarr.evidence import Source, Values
from vzarr.findings import Level, Problem, Report
from vzarr.format import FORMAT_VERSION, decode_format, decode_repository
from vzarr.leases import is_alive
from vzarr.lmdbfile import Reader, probe
from vzarr.objects import Objects
from vzarr.origins import Alive, entries, read_origins
from vzarr.progress import Meter, Progress
from vzarr.walk import Walk

_ROUNDS = 5
_VERIFICATIONS = 3
_MAX_STORAGE_PROBLEMS = 20
_MAX_CHECKSUM_PROBLEMS = 100


def check(objects: Objects, level: Level = "quick", *, progress: Progress | None = None) -> Report:
    """Check a repository that is open; give all problems, with what each costs.

    "quick" looks at LMDB's structure, and at all that branches and tags reach: commits, roots,
    directories, metadata documents and indexes, each compared with its digest, decoded, and
    compared with what refers to it; of chunks and files it asks only whether they are there. "full"
    also compares the bytes of every chunk and file with digest, length and checksum, asks whether
    metadata documents are JSON, follows reflogs and sessions' leases, and counts garbage.

    ``progress(done, total, what)`` is called now and then, and its exceptions end the check.
    Damage is reported and never raised. Others may write meanwhile. Raises ``InvalidInputError``
    for a level there is not, ``SessionStateError`` and ``StorageError`` where the file is closed or
    cannot be read.

    Cost: some 7 µs a chunk and 80 µs a node; "full" also reads the whole file, and hashes 1.5 GiB a
    second. About 130 bytes of memory for each distinct chunk, and 500 for each node.
    """
    checking = _Check(objects.environment.path, level, progress)
    if not objects.environment.read_only:
        objects.environment.complete()
    checking.storage(objects.environment.read)
    return checking.run(objects.environment)


def check_file(path: str, level: Level = "quick", *, progress: Progress | None = None) -> Report:
    """Check a file that may be no repository, or so damaged that LMDB would crash on it.

    What keeps it from being opened is the problem then; otherwise this is as ``check``. Nothing is
    created or changed. Raises ``NotFoundError`` if there is no such file, and ``StorageError`` if
    it cannot be opened at all.
    """
    path = real_path(path)
    checking = _Check(path, level, progress)
    if not checking.is_repository():
        return checking.report()
    sound = checking.storage(None)
    if sound is False:
        return checking.run(None)
    try:
        environment = Environment.open(path, writable=False)
    except FormatError as error:
        checking.add_storage(str(error))
        return checking.run(None)
    try:
        if sound is None:
            checking.storage(environment.read)
        return checking.run(environment)
    finally:
        environment.close()


def check_copy(
    path: str, source: Source, alive: Alive, level: Level, *, progress: Progress | None = None
) -> Report:
    """Check a file that nobody else knows yet, with ``source`` to read it by.

    ``alive`` tells which sessions live in the file that it is a copy of. The rest is as ``check``.
    """
    checking = _Check(path, level, progress)
    return checking.run_on(source, alive) if checking.storage(None) else checking.report()


@final
class _Check:
    """One check of one file, and what it has found so far."""

    def __init__(self, path: str, level: Level, progress: Progress | None) -> None:
        if level not in get_args(Level):
            raise InvalidInputError(f"level= is 'quick' or 'full', not {level!r}")
        self._path = path
        self._level = level
        self._whole = level == "full"
        self._meter = Meter(progress)
        self._problems: list[Problem] = []
        self._omitted = 0
        self._commits = self._nodes = self._chunks = self._nbytes = 0
        self._left_out = 0
        self._garbage: tuple[int, int] | None = None
        self._unsummed = 0
        self._stray_checksums: int | None = None

    def report(self) -> Report:
        """Give what was found."""
        garbage, garbage_bytes = self._garbage or (None, None)
        return Report(
            path=self._path,
            level=self._level,
            problems=tuple(self._problems),
            omitted=self._omitted,
            commits=self._commits,
            nodes=self._nodes,
            chunks=self._chunks,
            nbytes=self._nbytes,
            garbage=garbage,
            garbage_bytes=garbage_bytes,
            seconds=self._meter.seconds,
            left_out=self._left_out,
            unsummed=self._unsummed,
            stray_checksums=self._stray_checksums,
        )

    # ── LMDB's structure ─────────────────────────────────────────────────────────────────────────

    def is_repository(self) -> bool:
        """Whether the file has our databases, or is damaged so that this cannot be told."""
        try:
            require_ours(self._path)
        except NotARepositoryError as error:
            cost = "nothing can be read from it"
            self._problems.append(Problem("format", str(error), cost))
            return False
        except CorruptError:
            # What is damaged comes out next.
            return True
        return True

    def storage(self, pin: Callable[[], AbstractContextManager[object]] | None) -> bool | None:
        """Look at the structure of the LMDB file: whether it is sound, None if others write it.

        ``pin`` opens a read txn, which keeps the pages of a state from being used again.
        """
        self._meter.stage("structure", 1)
        try:
            # LMDB would be killed by a page beyond the end of the file.
            examine(self._path, -1, writable=False)
            found = self._verify(pin)
        except FormatError as error:
            found = [str(error)]
        self._meter.step(1)
        if found is None:
            return None
        for message in found:
            self.add_storage(message)
        return not found

    def _verify(self, pin: Callable[[], AbstractContextManager[object]] | None) -> list[str] | None:
        for attempt in range(_VERIFICATIONS):
            before = probe(self._path).txn_id
            # A txn that lasts makes the file grow if others write; mostly it can be done without.
            with pin() if attempt and pin is not None else nullcontext():
                try:
                    found: list[str] = verify(self._path)  # type: ignore[no-untyped-call]
                except VerifyError as error:
                    found = [str(error)]
                except OSError as error:
                    found = [f"it cannot be read: {error.strerror}"]
            if not found or probe(self._path).txn_id == before:
                return found
        return None if pin is None else found

    def add_storage(self, message: str) -> None:
        """Note damage to the LMDB file."""
        if len(self._problems) >= _MAX_STORAGE_PROBLEMS:
            self._omitted += 1
            return
        cost = "LMDB could crash or give wrong data; close the file, and restore it from a backup"
        self._problems.append(Problem("storage", message, cost))

    # ── what is reachable ────────────────────────────────────────────────────────────────────────

    def run(self, environment: Environment | None) -> Report:
        """Check what is reachable; through LMDB, if its structure is sound."""
        if environment is not None and not self._problems:
            self._check(environment, partial(is_alive, environment))
        else:
            reader = Reader(self._path)
            try:
                self._check(reader, lambda *_: None)
            finally:
                reader.close()
        self._meter.end()
        return self.report()

    def run_on(self, source: Source, alive: Alive) -> Report:
        """Check what is reachable, in a file whose structure is sound."""
        self._check(source, alive)
        self._meter.end()
        return self.report()

    def _check(self, source: Source, alive: Alive) -> None:
        try:
            readable = self._is_readable(source)
            with source.read() as txn:
                total = sum(txn.count(name) for name in ("commits", "nodes", "chunks"))
        except CorruptError as error:
            self._problems.append(Problem("format", str(error), "nothing can be read from it"))
            return
        if not readable:
            return
        values = Values(source, whole=self._whole, step=self._meter.step)
        try:
            walk = self._rounds(source, alive, values, total)
            self._problems += walk.problems()
            self._omitted += walk.omitted
            self._add_checksums(values.wrong_checksums)
            self._unsummed = values.unsummed
            self._commits, self._nodes = len(walk.commits), walk.inspection.nodes
            self._chunks = len(values.seen)
            self._nbytes = walk.loader.nbytes + values.nbytes
            self._left_out = len(walk.loader.left_out)
            if self._whole and all(problem.kind in _HIDES_NOTHING for problem in self._problems):
                self._meter.stage("garbage", total)
                self._garbage = self._count_garbage(source, alive, walk)
                self._stray_checksums = _count_stray_checksums(source)
        finally:
            values.close()

    def _is_readable(self, source: Source) -> bool:
        """Look at what the file says it is."""
        with source.read() as txn:
            version, repository = txn.get("meta", b"format"), txn.get("meta", b"repository")
        try:
            if version is None or repository is None:
                raise CorruptError("the record of the format or of the repository is missing")
            needed = decode_format(version).min_reader_version
            decode_repository(repository)
        except CorruptError as error:
            message, cost = str(error), "vzarr does not open the file; the rest was checked"
            self._problems.append(Problem("format", message, cost))
            return True
        if needed > FORMAT_VERSION:
            message = f"the file has format {needed}, and this release reads up to {FORMAT_VERSION}"
            self._problems.append(Problem("format", message, "a newer vzarr is needed to read it"))
        return needed <= FORMAT_VERSION

    def _rounds(self, source: Source, alive: Alive, values: Values, total: int) -> Walk:
        """Walk from the refs until what looks wrong does so for refs that are still there."""
        for _ in range(_ROUNDS):
            self._meter.stage("objects", total)
            origins = read_origins(source, alive, whole=self._whole)
            values.again()
            known = len(values.bad)
            walk = Walk(source, origins, values, whole=self._whole, step=self._meter.step)
            walk.run(origins)
            if walk.is_sound and not values.bad:
                break
            # Of values that have just turned out to be bad, the walk does not know where they are.
            if len(values.bad) == known:
                now = read_origins(source, alive, whole=self._whole)
                if walk.still_needed(now):
                    break
        return walk

    def _add_checksums(self, wrong: set[bytes]) -> None:
        """Note checksums that are not those of their values."""
        told = sorted(wrong)[:_MAX_CHECKSUM_PROBLEMS]
        self._omitted += len(wrong) - len(told)
        cost = (
            "its data can be read, at the cost of a digest each time; the disk or the memory has "
            "changed something: vzarr recover writes a file with the right ones"
        )
        for digest in told:
            message = f"chunk {digest.hex()[:12]} is sound, but its checksum is another's"
            self._problems.append(Problem("checksum", message, cost))

    def _count_garbage(self, source: Source, alive: Alive, walk: Walk) -> tuple[int, int]:
        """Count the objects that nothing refers to, and their bytes."""
        found: dict[bytes, int] = {}
        for database, reached in walk.reached().items():
            for key, _ in entries(source, database, keys_only=True):
                self._meter.step(1)
                if key not in reached:
                    with source.read() as txn:
                        view = txn.view(database, key)
                        if view is not None:
                            found[key] = len(view)
                        # LMDB's memory may be used again once the txn has ended.
                        view = None
        if found:
            # Some of it may have come, with a ref to it, after the walk.
            walk.run(read_origins(source, alive, whole=True))
            for reached in walk.reached().values():
                for key in found.keys() & reached:
                    del found[key]
        return len(found), sum(found.values())


def _count_stray_checksums(source: Source) -> int:
    """Count the checksums of values that are not there: what a killed ``gc`` leaves."""
    strays = 0
    for digest, _ in entries(source, "checksums", keys_only=True):
        with source.read() as txn:
            # Both may be deleted since they were listed.
            strays += not txn.contains("chunks", digest) and txn.contains("checksums", digest)
    return strays


_HIDES_NOTHING = {
    "checksum",
    "chunk",
    "document",
    "file",
    "metadata",
    "sums",
    "tree",
    "layout",
    "place",
}
"""Problems that keep nothing from being reached."""
