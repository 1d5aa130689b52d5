"""Back a repository up to another file, while others write to it."""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass
from typing import final

from vzarr.datafile import os_error, our_errors, real_path
from vzarr.draft import Draft, exists
from vzarr.duplicate import Verify, check_verify, require_room, write_copy
from vzarr.environment import Environment
from vzarr.errors import (
    CorruptError,
    InvalidInputError,
    NotARepositoryError,
    NotFoundError,
)
from vzarr.lmdbfile import probe
from vzarr.progress import Progress


@final
@dataclass(frozen=True, slots=True)
class BackupReport:
    """What a backup holds; prints as a line."""

    path: str
    """The file, as an absolute path without links."""
    file_bytes: int
    source_bytes: int
    """The size of the original, free pages included."""
    commits: int
    heads: dict[str, str]
    """The branches, each with the id of the commit that it was on."""
    verified: Verify
    """What of it was looked at before it got its name."""
    seconds: float

    def __str__(self) -> str:
        how = "not verified" if self.verified is None else f"verified ({self.verified} check)"
        return (
            f"{self.path}: {self.commits:,} commits in {self.file_bytes:,} bytes, {how}, in "
            f"{self.seconds:.1f} s."
        )

    __repr__ = __str__


def backup(
    environment: Environment,
    target: str,
    *,
    overwrite: bool = False,
    verify: Verify = "full",
    progress: Progress | None = None,
) -> BackupReport:
    """Write what is committed to another file; see ``Repository.backup``."""
    check_verify(verify)
    started = time.monotonic()
    target = real_path(target)
    with our_errors(f"cannot look at {target}"):
        there = _require_target(environment, target, overwrite=overwrite)
    directory = os.path.dirname(target)
    if not os.path.isdir(directory):
        raise NotFoundError(f"the directory {directory} does not exist: create it", name=directory)
    require_room(environment, directory)
    # As cp does it: nobody can read the copy who could not read the original.
    with our_errors(f"cannot look at {environment.path}"):
        mode = stat.S_IMODE(os.stat(environment.path).st_mode) & 0o666
    with Draft(target, mode) as draft:
        copied = write_copy(environment, draft, verify, progress)
        with our_errors(f"cannot write {target}"):
            if there:
                Environment.overwrite(target, draft)
            else:
                draft.place()
    return BackupReport(
        path=target,
        file_bytes=copied.file_bytes,
        source_bytes=environment.info().file_bytes,
        commits=copied.commits,
        heads=copied.heads,
        verified=verify,
        seconds=time.monotonic() - started,
    )


def _require_target(environment: Environment, target: str, *, overwrite: bool) -> bool:
    """Tell whether there is something to overwrite; raise if it must not be."""
    try:
        status = os.stat(target)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise os_error(error, f"cannot look at {target}") from error
    if environment.is_at(target):
        raise InvalidInputError(f"{target} is the repository itself: give another path")
    if not overwrite:
        raise exists(target)
    if status.st_size or not stat.S_ISREG(status.st_mode):
        try:
            probe(target)
        except CorruptError:
            # An earlier backup that has been damaged is what one wants to overwrite.
            pass
        except NotARepositoryError as error:
            raise NotARepositoryError(f"will not be overwritten: {error}", path=target) from error
    return True
