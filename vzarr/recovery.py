"""Save from a damaged file all that is whole: ``vzarr.recover``.

The story is in ``_Recovery.run``. The file is read without LMDB, page by page (``salvage``), and
the names in it are found (``claims``). From them goes a walk over all that should be there, as in a
check; what is missing is looked for once more where no page leads (``retelling.Reach``). What is
lost now is lost, and the same words tell of it as after a check. Then history is told anew as far
as it has to be (``retelling``), and written to another file, which is checked before it gets its
path (``saving``).

A name never comes to stand for other data than it did: a branch is at its newest commit of which
all is whole, a tag at its commit or gone (``renaming``). What is newer, and lacks parts, has a name
that begins with ``salvaged/``.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import final

from vzarr.claims import Claims, read_claims
from vzarr.datafile import real_path
from vzarr.draft import exists
from vzarr.errors import (
    CorruptError,
    FormatVersionError,
    InvalidInputError,
    NotARepositoryError,
    VzarrError,
)
from vzarr.evidence import Values
from vzarr.findings import Problem, listed
from vzarr.format import (
    FORMAT_VERSION,
    FormatRecord,
    RepositoryRecord,
    decode_format,
    decode_repository,
    encode_format,
    encode_repository,
)
from vzarr.history import now
from vzarr.lmdbfile import probe
from vzarr.origins import Origins
from vzarr.progress import Meter, Progress
from vzarr.renaming import Renaming, find_nameless
from vzarr.retelling import Reach, Retelling
from vzarr.salvage import Salvage
from vzarr.saving import Saving
from vzarr.walk import Walk

_SHORT = 12


@final
@dataclass(frozen=True, slots=True)
class RecoverReport:
    """What ``vzarr.recover`` saved, and what was lost; prints as a summary."""

    path: str
    """The damaged file."""
    saved: str
    """The new one."""
    branches: Mapping[str, str]
    """The branches of the new file, each with the id of its head."""
    tags: Mapping[str, str]
    """Its tags, likewise."""
    moved: Mapping[str, str]
    """Branches whose heads lack something, or are lost: the ids of these. Each is now at the newest
    commit before that is whole, if there is one."""
    made: Mapping[str, str]
    """Names that were made for what lacks something, or had no name any more, and why."""
    rewritten: Mapping[str, str]
    """Commits that were written anew, since they or ancestors lack something: old to new id."""
    lost: tuple[Problem, ...]
    """What was lost, down to regions of arrays, as of the newest commit that shows it."""
    omitted: int
    """How many more losses there are, at least, than are listed."""
    notes: tuple[str, ...]
    """What else is to be known: where names were found, if not where they should be."""
    commits: int
    """How many commits the new file has."""
    nodes: int
    """How many nodes of trees, roots of snapshots included."""
    chunks: int
    """How many distinct chunks, documents and files."""
    nbytes: int
    """How many bytes these have."""
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing was lost."""
        return not self.lost

    def summary(self) -> str:
        """Say what was saved and under which names, without the single losses."""
        lines = [f"… and at least {self.omitted:,} more"] if self.omitted else []
        number = len(self.lost) + self.omitted
        verdict = "all was saved" if self.ok else f"{number:,} loss{'es' if number > 1 else ''}"
        lines.append(f"{self.path}: {verdict}")
        lines.append(
            f"{self.saved}: {self.commits:,} commits, {self.nodes:,} nodes, {self.chunks:,} chunks "
            f"({self.nbytes:,} bytes) in {self.seconds:.1f} s"
        )
        names = [f"{name} at {head[:_SHORT]}" for name, head in self.branches.items()]
        lines.append(f"branches: {listed(names) or 'none'}")
        if self.tags:
            names = [f"{name} at {commit[:_SHORT]}" for name, commit in self.tags.items()]
            lines.append(f"tags: {listed(names)}")
        lines += [f"{name}: {why}" for name, why in self.made.items()]
        if self.rewritten:
            lines.append(f"{len(self.rewritten):,} commits have new ids")
        return "\n".join([*lines, *self.notes])

    def __str__(self) -> str:
        return "\n".join([*map(str, self.lost), self.summary()])

    __repr__ = __str__


def recover(
    broken: str | os.PathLike[str],
    saved: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
) -> RecoverReport:
    """Save from a damaged repository all that is whole, to a new file.

    The damaged file is read without LMDB and never changed. Whatever happened to it, each object of
    which the bytes are whole and which a commit refers to is found, by its digest. The new file
    appears when it has passed a full check, or not at all.

    A branch keeps its name at the newest commit of its line of which all is whole. Where its head
    lacks something, the branch ``salvaged/<branch>`` has that head, and all commits since, without
    what is lost: arrays show their fill value there. A tag whose commit lacks something becomes
    ``salvaged/<tag>``. Commits of which something is lost, and those after them, get new ids; their
    metadata tell, under ``vzarr.recover``, of which commit they are and what they lack. A history
    of which commits are lost begins after them. Where the names of branches are lost, the heads
    that are found are named ``recovered-1`` and so on, the newest first.

    ``progress(done, total, what)`` is called now and then; its exceptions end the recovery.

    Raises ``NotARepositoryError`` if nothing of a repository is found in the file, ``CorruptError``
    if no commit in it has anything left, or the file changes meanwhile; ``AlreadyExistsError`` if
    there is something at ``saved``, ``InvalidInputError``, ``NotFoundError``, ``FullError`` and
    ``StorageError``.

    Cost: three times reading the file, writing what is saved; some 3 µs a node of LMDB's, 0.3 ms a
    node of an index or directory. About 250 bytes of memory for each object in the file.
    """
    begun = time.monotonic()
    source, target = _path(broken, "broken"), _path(saved, "saved")
    if source == target:
        raise InvalidInputError(
            f"recover reads {source} and writes another file: give the path of that one, too"
        )
    if os.path.lexists(target):
        raise exists(target)
    salvage = Salvage(source)
    try:
        return _Recovery(salvage, target, progress).run(begun)
    finally:
        salvage.close()


def _path(path: object, what: str) -> str:
    if not isinstance(path, str | os.PathLike):
        raise InvalidInputError(f"{what}= is a string or a pathlib.Path, not {path!r}")
    text = os.fspath(path)
    if not isinstance(text, str) or not text or "\0" in text:
        raise InvalidInputError(f"{what}= is text that is not empty, not {text!r}")
    return real_path(os.path.expanduser(text))


@final
class _Recovery:
    """One recovery of one file."""

    def __init__(self, salvage: Salvage, target: str, progress: Progress | None) -> None:
        self._salvage = salvage
        self._target = target
        self._progress = progress
        self._meter = Meter(progress)

    def run(self, begun: float) -> RecoverReport:
        """Search, compare with what should be there, tell history anew, write and check."""
        salvage, meter = self._salvage, self._meter
        meter.stage("search", salvage.file_bytes)
        salvage.search(meter.step)
        if not salvage.is_ours:
            raise self._no_repository()
        claims = read_claims(salvage)
        meta = self._meta(claims)

        # What should be there, as far as it is; and the losses, in the words of a check.
        objects = salvage.count("commits") + salvage.count("nodes")
        meter.stage("objects", objects)
        reach = Reach(salvage, meter.step)
        origins = _origins(salvage, claims)
        reach.follow(origins.heads, origins.snapshots)
        nameless = find_nameless(salvage, claims, reach, origins)
        meter.stage("losses", objects)
        values = Values(salvage, whole=False, step=lambda _: None)
        reach.tell(values)
        walk = Walk(salvage, origins, values, whole=False, step=meter.step)
        walk.run(origins)

        retelling = Retelling(salvage, reach, walk.inspection, claims.moves)
        names = Renaming(claims, nameless, retelling)
        if not names.branches and not names.tags:
            raise CorruptError(
                f"no commit in {salvage.path} has anything left to be saved: restore the file from "
                "a backup",
                path=salvage.path,
            )
        left_out = walk.loader.left_out
        saving = Saving(salvage, retelling, names, meter.step, left_out=left_out)
        meter.stage("write", saving.collect())
        written = saving.write(self._target, meta, self._checked)
        images = retelling.images.items()
        return RecoverReport(
            path=salvage.path,
            saved=self._target,
            branches={name: head.hex() for name, head in sorted(names.branches.items())},
            tags={name: tag.commit.hex() for name, tag in sorted(names.tags.items())},
            moved=names.moved,
            made=names.made,
            rewritten={old.hex(): new.hex() for old, new in images if old != new},
            lost=(*claims.problems, *walk.problems()),
            omitted=walk.omitted,
            notes=(*claims.notes, *self._unread()),
            commits=written.commits,
            nodes=written.nodes,
            chunks=written.chunks,
            nbytes=written.nbytes,
            seconds=time.monotonic() - begun,
        )

    def _checked(self) -> Progress | None:
        """End the own stages: the check of the new file tells of its own."""
        self._meter.end()
        return self._progress

    def _no_repository(self) -> VzarrError:
        """Say why nothing can be saved."""
        path = self._salvage.path
        with suppress(CorruptError):
            try:
                probe(path)
            except NotARepositoryError as error:
                return error
        return NotARepositoryError(
            f"nothing of a vzarr repository was found in {path}: give the path of a file that was "
            "one, or restore it from a backup",
            path=path,
        )

    def _meta(self, claims: Claims) -> dict[bytes, bytes]:
        """Give what the new file says of itself: what the old one did, as far as that is known."""
        meta = dict(claims.meta)
        with suppress(CorruptError, KeyError):
            needed = decode_format(meta[b"format"]).min_reader_version
            if needed > FORMAT_VERSION:
                raise FormatVersionError(
                    f"{self._salvage.path} has format {needed}, and this release of vzarr reads up "
                    f"to format {FORMAT_VERSION}; install a newer vzarr",
                    path=self._salvage.path,
                )
        meta[b"format"] = encode_format(FormatRecord())
        try:
            decode_repository(meta[b"repository"])
        except (CorruptError, KeyError):
            claims.notes.append("the id of the repository is lost: the new file has another one")
            record = RepositoryRecord(uuid.uuid4().bytes, now())
            meta[b"repository"] = encode_repository(record)
        return meta

    def _unread(self) -> list[str]:
        number = self._salvage.unreadable
        return [f"{number:,} bytes of {self._salvage.path} cannot be read"] if number else []


def _origins(salvage: Salvage, claims: Claims) -> Origins:
    """Give the claims as a check knows them."""
    origins = Origins()
    for name, head in claims.branches.items():
        origins.names(head).branches.append(name)
    for name, tag in claims.tags.items():
        origins.names(tag.commit).tags.append(name)
    for name, moves in claims.moves.items():
        for record in moves.values():
            for commit in (record.old, record.new):
                # An old page may tell of moves that were forgotten, and their commits collected.
                if commit is not None and (claims.certain or salvage.contains("commits", commit)):
                    names = origins.names(commit)
                    names.reflogs += [name] if name not in names.reflogs else []
    for key, lease in claims.sessions.items():
        session = key[:-4].hex()
        origins.names(lease.base).sessions.append(session)
        if lease.checkpoint is not None:
            origins.snapshots[lease.checkpoint] = session
    return origins
