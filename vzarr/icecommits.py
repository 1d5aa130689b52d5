"""What the metadata of an Icechunk snapshot say of the commit that it was, or is to be, here.

A snapshot that was a commit of ours says which, with all that its id is made of: so that it can be
told from others, and becomes the same commit again. A commit that was a snapshot says which, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, final

from vzarr.errors import VzarrError
from vzarr.format import (
    DIGEST_BYTES,
    CommitRecord,
    Digest,
    TagRecord,
    encode_commit,
    encode_tag,
    from_microseconds,
    to_microseconds,
)
from vzarr.history import check_metadata

if TYPE_CHECKING:
    import icechunk

_OURS = "vzarr"
_THEIRS = "icechunk"
TAGS = "vzarr-tags"
"""The key in a repository's metadata for what its tags cannot hold: who, when and why."""
_HELPERS = "vzarr/"
_HELPER_DIGITS = 12
_HELPER = re.compile(rf"{_HELPERS}[0-9a-f]{{{_HELPER_DIGITS}}}")
_AUTHOR_KEYS = ("author", "author_name")
_UNKNOWN_AUTHOR = "Icechunk"


@final
@dataclass(frozen=True, slots=True)
class Origin:
    """A commit, as a snapshot tells of it."""

    commit: Digest
    record: CommitRecord


def helper_of(commit: Digest) -> str:
    """Name the branch that holds a commit there which has no other name."""
    return _HELPERS + commit.hex()[:_HELPER_DIGITS]


def is_helper(branch: str) -> bool:
    """Whether a branch has a name that ``helper_of`` gives; others may begin in the same way."""
    return _HELPER.fullmatch(branch) is not None


def describe(commit: Digest, record: CommitRecord) -> dict[str, Any]:
    """Make the metadata of the snapshot that a commit becomes."""
    ours = {
        "commit": commit.hex(),
        "parents": [parent.hex() for parent in record.parents],
        "root": record.root.hex(),
        # As text, because Icechunk sorts the keys of objects, and has no NaN.
        "metadata": json.dumps(dict(record.metadata)),
    }
    time = from_microseconds(record.time).isoformat(timespec="microseconds")
    return {"author": record.author, "time": time, _OURS: ours}


def describe_tag(tag: TagRecord) -> dict[str, Any]:
    """Make what a repository's metadata say of a tag."""
    return {"message": tag.message, "author": tag.author, "time": tag.time}


def tag_of(metadata: Mapping[str, Any], name: str, commit: Digest, of: CommitRecord) -> TagRecord:
    """Make a tag of what a repository's metadata say of it; the rest is as the commit has it."""
    tags: Any = metadata.get(TAGS)
    about: Any = tags.get(name) if isinstance(tags, Mapping) else None
    if not isinstance(about, Mapping):
        about = {}
    message, author, time = about.get("message"), about.get("author"), about.get("time")
    tag = TagRecord(
        commit,
        message if isinstance(message, str) else "",
        author if isinstance(author, str) else of.author,
        time if type(time) is int else of.time,
    )
    try:
        encode_tag(tag)
    except (AssertionError, ValueError, OverflowError):
        # Anybody may have written there what no tag can hold.
        return TagRecord(commit, "", of.author, of.time)
    return tag


def origin(snapshot: icechunk.SnapshotInfo) -> Origin | None:
    """Read which commit a snapshot was; None for what was none, or does not say it rightly."""
    metadata = snapshot.metadata
    ours = metadata.get(_OURS)
    if not isinstance(ours, Mapping):
        return None
    try:
        said = json.loads(ours["metadata"])
        if not isinstance(said, dict):
            return None
        record = CommitRecord(
            parents=tuple(_digest(parent) for parent in ours["parents"]),
            root=_digest(ours["root"]),
            author=metadata["author"],
            time=to_microseconds(datetime.fromisoformat(metadata["time"])),
            message=snapshot.message,
            metadata=said,
        )
        encode_commit(record)
        return Origin(_digest(ours["commit"]), record)
    except (KeyError, TypeError, ValueError, AssertionError, OverflowError, RecursionError):
        return None


def _digest(text: Any) -> Digest:
    digest = bytes.fromhex(text)
    if len(digest) != DIGEST_BYTES:
        raise ValueError(f"{text!r} is no digest")
    return Digest(digest)


def adopt(snapshot: icechunk.SnapshotInfo, parents: tuple[Digest, ...]) -> CommitRecord:
    """Make a commit of somebody else's snapshot; its root and note are for the caller to fill in.

    The same for the same snapshot, wherever and whenever it is made.
    """
    theirs = snapshot.metadata
    author = next((theirs[key] for key in _AUTHOR_KEYS if _is_text(theirs.get(key))), None)
    try:
        # Icechunk gives the keys in another order each time, and the commit's id depends on it.
        metadata = json.loads(json.dumps(check_metadata(theirs), sort_keys=True))
    except VzarrError:
        metadata = {}
    return CommitRecord(
        parents=parents,
        root=Digest(bytes(DIGEST_BYTES)),
        author=author or _UNKNOWN_AUTHOR,
        time=to_microseconds(snapshot.written_at),
        message=snapshot.message,
        metadata=metadata,
    )


def note_snapshot(record: CommitRecord, snapshot: str) -> CommitRecord:
    """Say in a commit's metadata of which snapshot it was made, and with which root.

    So a copy of it that an amend or a redact makes of other data is known for another.
    """
    note = {"snapshot": snapshot, "root": record.root.hex()}
    return replace(record, metadata={**record.metadata, _THEIRS: note})


def is_made_of(record: CommitRecord, snapshot: icechunk.SnapshotInfo) -> bool:
    """Whether a commit says that it is a snapshot's, and is; a changed one says so, too."""
    note: Any = record.metadata.get(_THEIRS)
    if snapshot_of(record) != snapshot.id or note.get("root") != record.root.hex():
        return False
    known = origin(snapshot)
    made = adopt(snapshot, ()) if known is None else known.record
    return (record.author, record.time, record.message) == (made.author, made.time, made.message)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def snapshot_of(record: CommitRecord) -> str | None:
    """Tell which snapshot a commit was made of, if it says so."""
    theirs: Any = record.metadata.get(_THEIRS)
    found = theirs.get("snapshot") if isinstance(theirs, Mapping) else None
    return found if isinstance(found, str) else None
