"""A new data file: written under another name, flushed, and there whole or not at all."""

# Who creates a file drives the txn that fills it.
# ruff: noqa: SLF001

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator

import lmdb

from vzarr.datafile import DATABASES, os_error
from vzarr.errors import AlreadyExistsError, NotFoundError, VzarrError
from vzarr.lmdberrors import translate
from vzarr.mapping import map_file
from vzarr.txn import Txn


def create_file(path: str, initialise: Callable[[Txn], None]) -> None:
    """Create a file with all databases and what ``initialise`` puts there, durably."""
    with _draft(path) as draft:
        _write_draft(draft, initialise)
        _publish(draft, path)


@contextlib.contextmanager
def _draft(path: str) -> Iterator[str]:
    """Give a name beside the path; remove what is there at the end, and translate errors."""
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        raise NotFoundError(f"the directory {directory} does not exist: create it", name=directory)
    if os.path.lexists(path):
        raise _exists(path)
    draft = os.path.join(directory, f".vzarr-{secrets.token_hex(8)}")
    try:
        yield draft
    except lmdb.Error as error:
        raise translate(error, path) from error
    except OSError as error:
        if isinstance(error, VzarrError):
            raise
        raise os_error(error, f"cannot create {path}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)


def _exists(path: str) -> AlreadyExistsError:
    return AlreadyExistsError(f"{path} exists already: open it, or choose another path", name=path)


def _write_draft(draft: str, initialise: Callable[[Txn], None]) -> None:
    # Nobody else knows the name, so that it needs no lock file.
    handle = map_file(draft, 0, lock=False, lib_version=0)
    try:
        _initialise(handle, draft, initialise)
        handle.sync(True)
    finally:
        handle.close()
    descriptor = os.open(draft, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _initialise(handle: lmdb.Environment, path: str, initialise: Callable[[Txn], None]) -> None:
    transaction = handle.begin(write=True, buffers=True)
    txn = Txn(path)
    try:
        names = [name.encode() for name in DATABASES]
        opened = [handle.open_db(name, txn=transaction) for name in names]
        txn._start(transaction, dict(zip(DATABASES, opened, strict=True)))
        initialise(txn)
        if txn._failure is not None:
            raise txn._failure
        txn._close_cursors()
        transaction.commit()
    finally:
        # Ends the transaction if it was not committed.
        txn._end()


def _publish(draft: str, path: str) -> None:
    """Give the draft its name, unless another creator was first."""
    try:
        # Takes the name; a link would need a file system that has them.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    except FileExistsError as error:
        raise _exists(path) from error
    try:
        os.replace(draft, path)
        _sync_directory(os.path.dirname(path))
    except BaseException:
        os.unlink(path)
        raise


def _sync_directory(directory: str) -> None:
    """Make a new name durable, which LMDB leaves to us."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
