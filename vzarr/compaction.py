"""Give back to the file system what a file does not need any more.

A copy is written beside the file, verified, made durable, and renamed over it. Free pages are left
out of it; where it is filled anew in more than one txn, the few are in it that these freed.
Writers are kept out from the first page that is copied until the new file is there; who reads in
this process goes on in between, and then in the new file. Locks live on a file and not on its
path, and so does what LMDB counts in its lock file. That is why no other process may have the file
open: its locks and ours would be on two files, and both would write.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from typing import final

from vzarr import portable
from vzarr.committing import Settings
from vzarr.datafile import os_error
from vzarr.draft import Draft
from vzarr.duplicate import Verify, check_verify, require_room, write_copy
from vzarr.environment import Environment
from vzarr.errors import StorageError
from vzarr.garbage import gc
from vzarr.objects import Objects
from vzarr.progress import Progress


@final
@dataclass(frozen=True, slots=True)
class CompactReport:
    """What became of the size of a file; prints as a line."""

    before: int
    """Its size in bytes, garbage and free pages included."""
    after: int
    garbage: int
    """How many objects were deleted before, since nothing referred to them."""
    verified: Verify
    """What of the new file was looked at before it took the place of the old one."""
    seconds: float

    def __str__(self) -> str:
        less = 100 * (1 - self.after / self.before) if self.before else 0.0
        return (
            f"{self.before:,} bytes before, {self.after:,} after ({less:.0f} % less), in "
            f"{self.seconds:.1f} s."
        )

    __repr__ = __str__


def compact(
    objects: Objects,
    settings: Settings,
    *,
    collect: bool = True,
    verify: Verify = "full",
    progress: Progress | None = None,
) -> CompactReport:
    """Make the file about as small as can be; see ``Repository.compact``."""
    check_verify(verify)
    started = time.monotonic()
    environment = objects.environment
    before = environment.info().file_bytes
    garbage = 0
    if collect:
        report = gc(objects, settings, progress=progress)
        garbage = report.commits + report.nodes + report.chunks
    with environment.compacting(settings.timeout):
        require_room(environment, os.path.dirname(environment.path))
        # Nobody else may read it before it has the permissions of the file.
        with Draft(environment.path, 0o600) as draft:
            write_copy(environment, draft, verify, progress, dense=True)
            _take_over_status(environment, draft)
            environment.replace_by(draft, settings.timeout)
    return CompactReport(
        before=before,
        after=environment.info().file_bytes,
        garbage=garbage,
        verified=verify,
        seconds=time.monotonic() - started,
    )


def _take_over_status(environment: Environment, draft: Draft) -> None:
    """Give the draft the owner, the permissions and the attributes of the file, durably."""
    try:
        old, new = os.stat(environment.path), os.fstat(draft.descriptor)
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            portable.give_to(draft.descriptor, old.st_uid, old.st_gid)
        shutil.copystat(environment.path, draft.path)
        # It was written now.
        os.utime(draft.descriptor)
        portable.fsync(draft.descriptor)
    except PermissionError as error:
        raise StorageError(
            f"{environment.path} belongs to another user, and would not when it is compacted: have "
            "its owner do it",
            code=error.errno,
        ) from error
    except OSError as error:
        raise os_error(error, f"cannot write {draft.path}") from error
