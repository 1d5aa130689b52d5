"""Opening, creating, finding and deleting repositories: the functions of ``vzarr`` itself."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from vzarr import history, refs
from vzarr.author import default_author
from vzarr.committing import Durability, Settings, check_timeout
from vzarr.environment import Environment, Txn
from vzarr.errors import (
    AlreadyExistsError,
    FormatVersionError,
    InvalidInputError,
    NotARepositoryError,
    NotFoundError,
)
from vzarr.format import (
    EMPTY_ENTRY,
    FORMAT_VERSION,
    CommitRecord,
    FormatRecord,
    RepositoryRecord,
    decode_format,
    encode_format,
    encode_repository,
)
from vzarr.handle import DEFAULT_BRANCH
from vzarr.history import now
from vzarr.lmdbfile import probe
from vzarr.objects import Verify, put_root
from vzarr.repository import Repository

Mode = Literal["r", "r+", "a", "w", "w-"]


def open(  # noqa: A001 - the verb of zarr.open and builtins alike
    path: str | os.PathLike[str],
    mode: Mode = "a",
    *,
    author: str | None = None,
    timeout: float = 30.0,
    durability: Durability = "full",
    verify: Verify = "always",
    unsafe_network_filesystem: bool = False,
) -> Repository:
    """Open a repository, one file, with zarr's mode letters.

    Takes about a millisecond, whatever the size of the file.

    Parameters
    ----------
    path
        The file, by custom ``*.vzarr``. While it is open, LMDB keeps ``<path>-lock`` beside it.
    mode
        "r" only reads; "r+" must exist; "a" is created if absent; "w" replaces an existing
        repository; "w-" must not exist.
    author
        ``Name <mail>`` for commits; default ``VZARR_AUTHOR``, git's configuration, or user@host.
    timeout
        Seconds that a write waits for other writers before it raises ``BusyError``.
    durability
        "full": a commit is on disk (fsync) when it returns. "normal": a crash of the machine may
        lose the last commits, never more; a crash of the process loses nothing.
    verify
        When digests of chunks are checked on reading: "always", "first" (once in this process) or
        "never". Tree nodes and commits are always checked.
    unsafe_network_filesystem
        Open a file on a network file system all the same, at your own risk.

    Raises
    ------
    NotFoundError
        There is no file, and the mode does not create one.
    AlreadyExistsError
        There is one, and the mode is "w-".
    NotARepositoryError, FormatVersionError, CorruptError
        The file is something else, too new, or damaged. It is left as it is.
    StorageError, InvalidInputError
        No permission, a network file system, a hard link; a wrong argument.

    """
    target = _check_path(path)
    _check_choice("mode", mode, Mode)
    _check_choice("durability", durability, Durability)
    _check_choice("verify", verify, Verify)
    if author is not None and (not isinstance(author, str) or not author.strip()):
        raise InvalidInputError(f"author= is text like 'Name <mail>', not {author!r}")
    settings = Settings(lambda: author or default_author(), check_timeout(timeout), durability)
    environment = _open_environment(target, mode, settings.author, unsafe=unsafe_network_filesystem)
    return Repository(environment, settings, verify, read_only=mode == "r")


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is a vzarr repository at a path. Opens nothing."""
    target = _check_path(path)
    try:
        return "commits" in probe(target).databases
    except (NotARepositoryError, FileNotFoundError, NotFoundError):
        return False


def delete(path: str | os.PathLike[str]) -> None:
    """Delete a repository with all its history.

    Raises ``NotFoundError`` if there is none, ``NotARepositoryError`` if the file is something else
    (it is left alone), and ``SessionStateError`` while this process has it open.
    """
    target = os.path.realpath(_check_path(path))
    if not os.path.lexists(target):
        raise NotFoundError(f"cannot delete {target}: there is no such file", name=target)
    if not exists(target):
        raise NotARepositoryError(
            f"{target} is no vzarr repository, so it was not deleted", path=target
        )
    Environment.delete(target)


def _open_environment(
    target: str, mode: Mode, author: Callable[[], str], *, unsafe: bool
) -> Environment:
    there = os.path.lexists(target)
    if mode in ("r", "r+") and not there:
        raise NotFoundError(
            f"there is no file {target}; create it with mode 'a' or 'w-'", name=target
        )
    if mode == "w-" and there:
        raise AlreadyExistsError(
            f"{target} exists already; open it with mode 'a', or replace it with mode 'w'",
            name=target,
        )
    if os.path.isdir(target):
        raise NotARepositoryError(
            f"{target} is a directory, and a vzarr repository is one file; name a file in it",
            path=target,
        )
    if mode == "w" and there:
        delete(target)
        there = False
    if not there:
        try:
            return Environment.create(
                target, lambda txn: _initialise(txn, author()), unsafe_network_filesystem=unsafe
            )
        except AlreadyExistsError:
            # Another process was faster, which only "w-" minds.
            if mode == "w-":
                raise
    environment = Environment.open(target, writable=mode != "r", unsafe_network_filesystem=unsafe)
    try:
        _check_format(environment, writable=mode != "r")
    except BaseException:
        environment.close()
        raise
    return environment


def _initialise(txn: Txn, author: str) -> None:
    """Fill a new file: what it is, and branch main with one empty commit."""
    created = now()
    txn.put("meta", b"format", encode_format(FormatRecord()))
    txn.put("meta", b"repository", encode_repository(RepositoryRecord(uuid.uuid4().bytes, created)))
    root = put_root(txn, EMPTY_ENTRY)
    first = CommitRecord((), root, author, created, "create repository", {})
    commit = history.put(txn, first)
    refs.create_branch(txn, DEFAULT_BRANCH, commit, author, created, "create: repository")


def _check_format(environment: Environment, *, writable: bool) -> None:
    with environment.read() as txn:
        data = txn.get("meta", b"format")
    if data is None:
        raise NotARepositoryError(
            f"{environment.path} is an LMDB file, but no vzarr repository", path=environment.path
        )
    record = decode_format(data)
    if record.min_reader_version > FORMAT_VERSION:
        raise FormatVersionError(
            f"{environment.path} has format version {record.version}, which takes a vzarr that "
            f"knows version {record.min_reader_version}; this release reads up to version "
            f"{FORMAT_VERSION}: install a newer vzarr (pip install --upgrade vzarr)",
            path=environment.path,
        )
    if writable and record.version > FORMAT_VERSION:
        raise FormatVersionError(
            f"{environment.path} has format version {record.version}, which this release of vzarr "
            "can read but not write; open it with mode 'r', or install a newer vzarr "
            "(pip install --upgrade vzarr)",
            path=environment.path,
        )


def _check_path(path: object) -> str:
    if not isinstance(path, str | os.PathLike):
        raise InvalidInputError(f"a path is a string or a pathlib.Path, not {path!r}")
    target = os.fspath(path)
    if not isinstance(target, str) or not target or "\0" in target:
        raise InvalidInputError(f"a path is text that is not empty, not {target!r}")
    try:
        target.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"the path {target!r} is not valid Unicode; rename the file or directory"
        ) from error
    # LMDB takes str itself and no subclass.
    return str(Path(target).expanduser()) if target.startswith("~") else str(target)


def _check_choice(name: str, value: object, choices: Any) -> None:
    if value not in get_args(choices):
        allowed = ", ".join(repr(choice) for choice in get_args(choices))
        raise InvalidInputError(f"{name}= is one of {allowed}, not {value!r}")
