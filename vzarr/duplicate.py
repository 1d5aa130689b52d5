"""Write a copy of a repository to a draft: compact, durable, and verified before it has a name."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal, final

from vzarr import portable, refs
from vzarr.check import check_copy
from vzarr.copying import Copy
from vzarr.datafile import DATABASES, os_error
from vzarr.draft import Draft
from vzarr.environment import Environment, Txn
from vzarr.errors import CorruptError, FullError, InvalidInputError, VzarrError
from vzarr.leases import is_alive
from vzarr.progress import Progress

Verify = Literal["quick", "full"] | None
"""What is looked at in a copy: as a quick check does, as a full one does, or nothing."""

# Small tables, which are compared as a whole.
_NAMES = ("meta", "branches", "tags")


@final
@dataclass(frozen=True, slots=True)
class Copied:
    """What is in a copy."""

    heads: dict[str, str]
    """The branches, each with the id of its head."""
    commits: int
    file_bytes: int


@final
@dataclass(frozen=True, slots=True)
class _Contents:
    """By what the copy of a state can be told from that of another."""

    counts: dict[str, int]
    names: dict[str, list[tuple[bytes, bytes]]]

    @classmethod
    def of(cls, txn: Txn) -> _Contents:
        counts = {name: txn.count(name) for name in DATABASES}
        return cls(counts, {name: list(txn.scan(name)) for name in _NAMES})


def check_verify(verify: object) -> None:
    """Raise ``InvalidInputError`` unless a copy can be verified so."""
    if verify not in (None, "quick", "full"):
        raise InvalidInputError(f"verify= is 'full', 'quick' or None, not {verify!r}")


def require_room(environment: Environment, directory: str) -> None:
    """Raise ``FullError`` if there is no room for a copy in a directory, and ``StorageError``."""
    needed = environment.info().used_bytes
    try:
        free = portable.free_bytes(directory)
    except OSError as error:
        raise os_error(error, f"cannot look at {directory}") from error
    if free < needed:
        raise FullError(
            f"a copy of {environment.path} takes {needed:,} bytes, and {directory} has room for "
            f"{free:,}: make room"
        )


def write_copy(
    environment: Environment,
    draft: Draft,
    verify: Verify,
    progress: Progress | None,
    *,
    dense: bool = False,
) -> Copied:
    """Write what is committed by now to a draft, verify it, and make it durable.

    With ``dense`` its pages are as full as can be. Raises ``CorruptError`` if the copy is damaged,
    most likely since the original is; ``FullError`` and ``StorageError``.
    """
    tell = progress or (lambda *_: None)
    with environment.read() as txn:
        contents = _Contents.of(txn)
        heads = {name: head.hex() for name, head in refs.branches(txn)}
        environment.copy(txn, draft, tell, dense=dense)
    # While the disk is busy with it, the processor is not.
    with _flushing(draft):
        if verify is not None:
            _verify(environment, draft, contents, verify, progress)
    return Copied(heads=heads, commits=contents.counts["commits"], file_bytes=draft.nbytes)


@contextmanager
def _flushing(draft: Draft) -> Iterator[None]:
    with ThreadPoolExecutor(1, thread_name_prefix="vzarr-flush") as pool:
        flushed = None
        # Where the system gives us no thread, it is done afterwards.
        with suppress(RuntimeError):
            flushed = pool.submit(portable.fsync, draft.descriptor)
        yield
        try:
            if flushed is None:
                portable.fsync(draft.descriptor)
            else:
                flushed.result()
        except OSError as error:
            raise os_error(error, f"cannot write {draft.path}") from error


def _verify(
    environment: Environment,
    draft: Draft,
    contents: _Contents,
    verify: Literal["quick", "full"],
    progress: Progress | None,
) -> None:
    try:
        with closing(Copy(draft)) as copy:
            with copy.read() as txn:
                found = _Contents.of(txn)
            if found != contents:
                raise CorruptError("it lacks some of what was copied", path=environment.path)
            alive = partial(is_alive, environment)
            report = check_copy(draft.path, copy, alive, verify, progress=progress)
    except CorruptError as error:
        raise _damaged(environment, str(error)) from error
    if not report.ok:
        raise _damaged(environment, f"{report.problems[0]}")


def _damaged(environment: Environment, why: str) -> VzarrError:
    return CorruptError(
        f"the copy of {environment.path} is not whole, so it was not kept ({why}): check the file; "
        "verify=None copies it with what is wrong in it",
        path=environment.path,
    )
