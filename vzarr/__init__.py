"""Git-like versioning and ACID transactions for Zarr arrays, in one file.

>>> import vzarr, zarr
>>> repo = vzarr.open("ocean.vzarr")
>>> with repo.transaction("main", "first data") as store:
...     zarr.save_array(store, data, path="temperature")
"""

from typing import TYPE_CHECKING, Any

from vzarr.blame import Blame
from vzarr.combine import MergePreview
from vzarr.diff import ChunkChange, Diff, NodeChange
from vzarr.endings import UncommittedWarning
from vzarr.errors import (
    AlreadyExistsError,
    BusyError,
    CommitNotFoundError,
    ConflictError,
    CorruptError,
    FormatError,
    FormatVersionError,
    FullError,
    Holder,
    InvalidInputError,
    MergeConflict,
    NotARepositoryError,
    NotFoundError,
    ReadOnlyError,
    RefNotFoundError,
    SessionNotFoundError,
    SessionStateError,
    StorageError,
    VzarrError,
)
from vzarr.findings import Problem, Report
from vzarr.fork import Fork
from vzarr.history import Commit
from vzarr.leases import SessionInfo
from vzarr.merge import Conflict
from vzarr.opening import delete, exists, open  # noqa: A004 - vzarr.open, as zarr.open
from vzarr.refs import ReflogEntry, Tag
from vzarr.reports import Info, Log
from vzarr.repository import ReadOnlyCheckoutWarning, Repository
from vzarr.session import Session
from vzarr.status import Status

if TYPE_CHECKING:
    from vzarr.backup import BackupReport
    from vzarr.compaction import CompactReport
    from vzarr.expiry import ExpireReport
    from vzarr.garbage import GcReport
    from vzarr.recovery import RecoverReport, recover
    from vzarr.redaction import RedactReport
    from vzarr.registration import register
    from vzarr.store import VzarrStore
    from vzarr.usage import Usage

__all__ = [
    "AlreadyExistsError",
    "BackupReport",
    "Blame",
    "BusyError",
    "ChunkChange",
    "Commit",
    "CommitNotFoundError",
    "CompactReport",
    "Conflict",
    "ConflictError",
    "CorruptError",
    "Diff",
    "ExpireReport",
    "Fork",
    "FormatError",
    "FormatVersionError",
    "FullError",
    "GcReport",
    "Holder",
    "Info",
    "InvalidInputError",
    "Log",
    "MergeConflict",
    "MergePreview",
    "NodeChange",
    "NotARepositoryError",
    "NotFoundError",
    "Problem",
    "ReadOnlyCheckoutWarning",
    "ReadOnlyError",
    "RecoverReport",
    "RedactReport",
    "RefNotFoundError",
    "ReflogEntry",
    "Report",
    "Repository",
    "Session",
    "SessionInfo",
    "SessionNotFoundError",
    "SessionStateError",
    "Status",
    "StorageError",
    "Tag",
    "UncommittedWarning",
    "Usage",
    "VzarrError",
    "VzarrStore",
    "delete",
    "exists",
    "open",
    "recover",
    "register",
]

# These need zarr, which takes half a second to import, or numpy, and ``vzarr log`` does not. The
# version is looked up when somebody asks for it, for the same reason.
_LAZY = {
    "BackupReport": "vzarr.backup",
    "CompactReport": "vzarr.compaction",
    "ExpireReport": "vzarr.expiry",
    "GcReport": "vzarr.garbage",
    "RecoverReport": "vzarr.recovery",
    "RedactReport": "vzarr.redaction",
    "Usage": "vzarr.usage",
    "VzarrStore": "vzarr.store",
    "recover": "vzarr.recovery",
    "register": "vzarr.registration",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("vzarr")
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'vzarr' has no attribute {name!r}")
