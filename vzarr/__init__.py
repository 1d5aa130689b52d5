"""Git-like versioning and ACID transactions for Zarr arrays, in one file.

>>> import vzarr, zarr
>>> repo = vzarr.open("ocean.vzarr")
>>> with repo.transaction("main", "first data") as store:
...     zarr.save_array(store, data, path="temperature")
"""

from typing import TYPE_CHECKING, Any

from vzarr.diff import ChunkChange, Diff, NodeChange
from vzarr.endings import UncommittedWarning
from vzarr.errors import (
    AbsentError,
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
    NotFastForwardError,
    NotFoundError,
    ReadOnlyError,
    RefNotFoundError,
    SessionNotFoundError,
    SessionStateError,
    StorageError,
    TransferError,
    UnrelatedError,
    VzarrError,
)
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
    from vzarr.blame import Blame
    from vzarr.bundle import BundleReport
    from vzarr.car import BlockSizeWarning
    from vzarr.cloning import CloneReport, clone
    from vzarr.combine import MergePreview
    from vzarr.compaction import CompactReport
    from vzarr.exchange import PullReport, TransferReport
    from vzarr.expiry import ExpireReport
    from vzarr.exporting import ExportReport
    from vzarr.findings import Problem, Report
    from vzarr.flatmap import VzarrMapping, mapping
    from vzarr.garbage import GcReport
    from vzarr.imported import ImportReport
    from vzarr.recovery import RecoverReport, recover
    from vzarr.redaction import RedactReport
    from vzarr.registration import register
    from vzarr.remotes import Remote
    from vzarr.store import VzarrStore
    from vzarr.usage import Usage

__all__ = [
    "AbsentError",
    "AlreadyExistsError",
    "BackupReport",
    "Blame",
    "BlockSizeWarning",
    "BundleReport",
    "BusyError",
    "ChunkChange",
    "CloneReport",
    "Commit",
    "CommitNotFoundError",
    "CompactReport",
    "Conflict",
    "ConflictError",
    "CorruptError",
    "Diff",
    "ExpireReport",
    "ExportReport",
    "Fork",
    "FormatError",
    "FormatVersionError",
    "FullError",
    "GcReport",
    "Holder",
    "ImportReport",
    "Info",
    "InvalidInputError",
    "Log",
    "MergeConflict",
    "MergePreview",
    "NodeChange",
    "NotARepositoryError",
    "NotFastForwardError",
    "NotFoundError",
    "Problem",
    "PullReport",
    "ReadOnlyCheckoutWarning",
    "ReadOnlyError",
    "RecoverReport",
    "RedactReport",
    "RefNotFoundError",
    "ReflogEntry",
    "Remote",
    "Report",
    "Repository",
    "Session",
    "SessionInfo",
    "SessionNotFoundError",
    "SessionStateError",
    "Status",
    "StorageError",
    "Tag",
    "TransferError",
    "TransferReport",
    "UncommittedWarning",
    "UnrelatedError",
    "Usage",
    "VzarrError",
    "VzarrMapping",
    "VzarrStore",
    "clone",
    "delete",
    "exists",
    "mapping",
    "open",
    "recover",
    "register",
]

# Some need zarr, which takes half a second to import, or numpy, and ``vzarr log`` does not; the
# others are for few programs. The version, too, is looked up when somebody asks for it.
_LAZY = {
    "BackupReport": "vzarr.backup",
    "Blame": "vzarr.blame",
    "BundleReport": "vzarr.bundle",
    "CloneReport": "vzarr.cloning",
    "BlockSizeWarning": "vzarr.car",
    "CompactReport": "vzarr.compaction",
    "ExpireReport": "vzarr.expiry",
    "ExportReport": "vzarr.exporting",
    "GcReport": "vzarr.garbage",
    "ImportReport": "vzarr.imported",
    "MergePreview": "vzarr.combine",
    "Problem": "vzarr.findings",
    "PullReport": "vzarr.exchange",
    "RecoverReport": "vzarr.recovery",
    "RedactReport": "vzarr.redaction",
    "Remote": "vzarr.remotes",
    "Report": "vzarr.findings",
    "TransferReport": "vzarr.exchange",
    "Usage": "vzarr.usage",
    "VzarrMapping": "vzarr.flatmap",
    "VzarrStore": "vzarr.store",
    "clone": "vzarr.cloning",
    "mapping": "vzarr.flatmap",
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
