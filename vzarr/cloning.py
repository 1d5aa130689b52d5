"""Clone a repository: a new file with what another one has, or with a part of it."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from typing import final

from vzarr import history
from vzarr.author import default_author
from vzarr.committing import Settings
from vzarr.datafile import os_error, real_path
from vzarr.draft import exists, place
from vzarr.environment import Environment, Txn
from vzarr.errors import AlreadyExistsError, InvalidInputError, NotARepositoryError
from vzarr.exchange import choose, reach, receive, require_base
from vzarr.format import (
    EMPTY_ENTRY,
    CommitRecord,
    FormatRecord,
    RepositoryRecord,
    encode_format,
    encode_repository,
)
from vzarr.history import now
from vzarr.objects import Objects, put_root
from vzarr.progress import Progress
from vzarr.reception import Reception
from vzarr.remotes import DEFAULT_REMOTE, Remote, add_remote, is_elsewhere
from vzarr.serving import identity

PART_SUFFIX = ".part"
"""Of the file that a clone is written to until it is whole."""


@final
@dataclass(frozen=True, slots=True)
class CloneReport:
    """What a clone holds; prints as a line."""

    path: str
    """The file, as an absolute path without links."""
    url: str
    branches: dict[str, str]
    tags: dict[str, str]
    commits: int
    """How many came, by this call; what an earlier one that was interrupted brought is not sent
    again."""
    nodes: int
    chunks: int
    nbytes: int
    wire_bytes: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.path}: {len(self.branches):,} branches and {len(self.tags):,} tags of "
            f"{self.url}; {self.commits:,} commits, {self.nodes:,} nodes and {self.chunks:,} "
            f"chunks ({self.nbytes:,} bytes) in {self.seconds:.1f} s."
        )

    __repr__ = __str__


def clone(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    branch: str | None = None,
    depth: int | None = None,
    path: str = "",
    author: str | None = None,
    timeout: float = 30.0,
    progress: Progress | None = None,
) -> CloneReport:
    """Make a new file with the branches, tags and history of another repository.

    ``source`` is a path, ``user@host:path`` (through ssh), or a bundle. The clone knows it as the
    remote ``origin``. ``branch`` takes one branch alone, and no tags. ``depth`` takes so many
    snapshots of each line of history, and ``path`` of each snapshot only the group or array there
    (and the documents beside it): commits are always all there, so that log and merge work, and to
    read what was left out raises ``AbsentError``, until ``repo.fetch(complete=True)``.

    Everything is compared with its digest on arrival. The file appears under its name when all of
    it is on disk. Interrupted, it is at ``target`` + ".part", and the same call goes on from there.

    Raises ``AlreadyExistsError``, ``NotFoundError``, ``RefNotFoundError`` for ``branch``,
    ``TransferError`` if the other side cannot be reached or hangs up, ``CorruptError`` if what it
    sends is damaged, ``FormatVersionError``, ``FullError``, ``InvalidInputError``. Cost: as the
    pipe, plus some 20 µs a chunk; memory for some 64 MiB of chunks, and 100 bytes a tree node.
    """
    started = time.monotonic()
    url = _url(source)
    check_part(depth, path)
    destination = real_path(os.fspath(target))
    if os.path.lexists(destination):
        raise exists(destination)
    part = destination + PART_SUFFIX
    with reach(url, None) as other:
        found = other.supplier.refs()
        wanted, tags = choose(found, None if branch is None else [branch], url)
        tags = tags if branch is None else []
        environment = _open_part(part, other.id)
        try:
            require_base(environment, url, other.needs)
            settings = Settings(lambda: author or default_author(), timeout, "full")
            objects = Objects(environment, "always")
            reception = Reception(
                objects,
                settings,
                other.supplier,
                other=url,
                depth=depth,
                path=path.strip("/"),
                progress=progress,
            )
            tracked = [(f"{DEFAULT_REMOTE}/{ref.name}", ref.commit) for ref in wanted]
            remote = Remote(DEFAULT_REMOTE, url, path.strip("/"))
            receive(
                objects,
                settings,
                reception,
                [],
                [*wanted, *tags],
                tracked,
                why=f"clone: from {url}",
                also=lambda txn: add_remote(txn, remote),
            )
            wire_bytes = other.wire_bytes()
        finally:
            environment.close()
    _place(part, destination)
    came = reception.received
    return CloneReport(
        path=destination,
        url=url,
        branches={ref.name: ref.commit.hex() for ref in wanted},
        tags={ref.name: ref.commit.hex() for ref in tags},
        commits=came.commits,
        nodes=came.nodes,
        chunks=came.chunks,
        nbytes=came.nbytes,
        wire_bytes=wire_bytes,
        seconds=time.monotonic() - started,
    )


def check_part(depth: object, path: object) -> None:
    """Raise ``InvalidInputError`` unless these say which part of a history is wanted."""
    if depth is not None and (type(depth) is not int or depth < 1):
        raise InvalidInputError(f"depth= is a number of commits, from 1 on, not {depth!r}")
    if not isinstance(path, str):
        raise InvalidInputError(f"path= is the path of a group or array, not {path!r}")


def _url(source: object) -> str:
    """Give where a clone is from, such that it is found from another directory, too."""
    text = os.fspath(source) if isinstance(source, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise InvalidInputError(f"a repository is a path or user@host:path, not {source!r}")
    return text if is_elsewhere(text) else os.path.realpath(os.path.expanduser(text))


def _open_part(part: str, repository_id: bytes) -> Environment:
    """Create the file, or open the one that an interrupted clone has left."""
    if not os.path.lexists(part):
        with contextlib.suppress(AlreadyExistsError):
            return Environment.create(part, lambda txn: _initialise(txn, repository_id))
    environment = Environment.open(part, writable=True)
    try:
        with environment.read() as txn:
            named = txn.count("branches")
        if named or identity(Objects(environment, "always"))[1] != repository_id:
            raise NotARepositoryError(
                f"{part} is not what an interrupted clone of this repository has left: remove it, "
                "or clone to another path",
                path=part,
            )
    except BaseException:
        environment.close()
        raise
    return environment


def _initialise(txn: Txn, repository_id: bytes) -> None:
    """Fill a new file: what it is, and a commit for the transfer to begin from, without a name."""
    created = now()
    txn.put("meta", b"format", encode_format(FormatRecord()))
    txn.put("meta", b"repository", encode_repository(RepositoryRecord(repository_id, created)))
    root = put_root(txn, EMPTY_ENTRY)
    history.put(txn, CommitRecord((), root, "", created, "begin a clone", {}))


def _place(part: str, destination: str) -> None:
    try:
        place(part, destination)
        # LMDB's lock file of a name that is not used any more.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part + "-lock")
    except OSError as error:
        raise os_error(error, f"cannot create {destination}") from error
