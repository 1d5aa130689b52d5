"""What a check of a repository found, in words: what is wrong, where, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, final

from vzarr.merge import format_region
from vzarr.metadata import Region
from vzarr.printable import plural

Level = Literal["quick", "full"]
"""How far a check goes: "quick" at everything but the bytes of chunks, "full" at these too."""

Kind = Literal[
    "storage",
    "format",
    "branch",
    "tag",
    "reflog",
    "session",
    "commit",
    "snapshot",
    "directory",
    "entry",
    "layout",
    "place",
    "document",
    "metadata",
    "index",
    "sums",
    "tree",
    "chunk",
    "file",
    "checksum",
]
"""What a problem is about.

"storage": the file as LMDB sees it · "format": what the file says it is · "branch", "tag",
"reflog", "session": a name or record that refers to what is not there · "commit", "snapshot": the
record of a commit, the root of its snapshot · "directory": a node of a group's directory · "entry":
what a directory says of one member · "layout": how it says that chunk keys are spelled · "place": a
key where nobody looks for it · "document": the bytes of a metadata document · "metadata": a
document that is as it was stored, but no JSON · "index": a node of a chunk index · "sums": counts
and sizes · "tree": the shape of a tree · "chunk", "file": the bytes of one · "checksum": that of a
large one, whose bytes are sound.
"""

_SHORT = 12


@final
@dataclass(frozen=True, slots=True)
class Place:
    """Something wrong in a snapshot, and where; the path is that from the entry in question."""

    kind: Kind
    message: str
    digest: bytes
    """Of the object that is missing, damaged, or says what is not so."""
    path: str = ""
    document: str | None = None
    after: bytes | None = None
    """It lies in its tree behind this key; None where it is at the beginning."""
    upto: bytes = b""
    """The last key of its tree that it concerns; empty where that is not known."""
    count: int = 0
    """How many keys that concerns, where a node is lost."""
    nbytes: int = 0
    """How many bytes their values have."""
    coordinates: tuple[int, ...] | None = None
    # What a chunk covers depends on the array's shape, which may change while the chunk stays.
    region: Region | None = field(default=None, compare=False)


@final
@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, as of the newest commit that shows it."""

    kind: Kind
    message: str
    """What is wrong."""
    cost: str
    """What it costs the user."""
    path: str | None = None
    """The group, array or file; None where the problem is none of a snapshot."""
    document: str | None = None
    """The name of the metadata document, for one."""
    coordinates: tuple[int, ...] | None = None
    """Those of the chunk in its array's grid, for one."""
    region: Region | None = None
    """The part of the array that is concerned, where that is known."""
    commit: str | None = None
    """The id of the newest commit that shows it."""
    branches: tuple[str, ...] = ()
    """The branches whose heads show it."""
    tags: tuple[str, ...] = ()
    """The tags whose commits show it."""
    commits: int = 0
    """How many commits show it."""

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}\n  {self.cost}"


@final
@dataclass(frozen=True, slots=True)
class Report:
    """What ``repo.check`` found; prints as a summary."""

    path: str
    level: Level
    problems: tuple[Problem, ...]
    omitted: int
    """How many more problems there are, at least, than are listed."""
    commits: int
    """How many commits were looked at."""
    nodes: int
    """How many nodes of trees, roots of snapshots included."""
    chunks: int
    """How many distinct chunks, documents and files."""
    nbytes: int
    """How many bytes were compared with their digests."""
    garbage: int | None
    """How many objects nothing refers to; None where that is not known."""
    garbage_bytes: int | None
    """How many bytes these have."""
    seconds: float
    left_out: int = 0
    """How many snapshots, groups, arrays and files a shallow or partial clone has left out."""
    unsummed: int = 0
    """How many large values have no checksum, and are read by their digest; 0 unless "full"."""
    stray_checksums: int | None = None
    """How many checksums have no value, so that ``gc`` deletes them; None where not known."""

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def summary(self) -> str:
        """Give the verdict and the figures, without the single problems."""
        lines = [f"… and at least {self.omitted:,} more"] if self.omitted else []
        number = len(self.problems) + self.omitted
        verdict = "sound" if self.ok else f"{number:,} problem{'s' if number > 1 else ''}"
        lines.append(f"{self.path}: {verdict} ({self.level} check)")
        checked = f"{self.commits:,} commits, {self.nodes:,} nodes, {self.chunks:,} chunks"
        lines.append(f"{checked}; {self.nbytes:,} bytes hashed in {self.seconds:.1f} s")
        if self.left_out:
            lines.append(
                f"left out by a shallow or partial clone: {self.left_out:,} snapshots, groups, "
                "arrays and files"
            )
        if self.garbage:
            lines.append(f"garbage: {self.garbage:,} objects of {self.garbage_bytes:,} bytes")
        if self.stray_checksums:
            lines.append(
                f"checksums of what is not there, for gc to delete: {self.stray_checksums:,}"
            )
        if self.unsummed:
            lines.append(f"large values without a checksum, read by digest: {self.unsummed:,}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.problems), self.summary()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from vzarr.notebook import report_html

        return report_html(self)


# ── words ────────────────────────────────────────────────────────────────────────────────────────


def reach(
    branches: tuple[str, ...], tags: tuple[str, ...], commit: str, named: int, commits: int
) -> str:
    """Spell which commits show a problem: ``at main and 12 older commits``.

    ``named`` of all these ``commits`` are those of the branches and tags.
    """
    names = [*branches, *(f"tag {tag}" for tag in tags)]
    older = commits - named if names else commits - 1
    parts = names or [f"commit {commit[:_SHORT]}"]
    if older > 0:
        parts.append(f"{older:,} older commit{'s' if older > 1 else ''}")
    return f"at {listed(parts)}"


def listed(parts: list[str]) -> str:
    """Join words: ``a, b and c``."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def cost_of(place: Place, where: str) -> str:
    """Say what a problem in a snapshot costs; ``where`` is what ``reach`` spells."""
    what = place.path or "the root group"
    match place.kind:
        case "snapshot":
            return f"nothing can be read {where}"
        case "directory":
            return f"{_lost(place)} in {what} cannot be read {where}: {_span(place)}"
        case "entry":
            return f"{what}, with all below it, cannot be read {where}"
        case "layout":
            return f"chunks of {what} are not found where zarr looks for them {where}"
        case "place":
            return f"the key {what} is listed but not found {where}"
        case "document":
            return f"{_without(place.document, what)} {where}"
        case "metadata":
            return f"zarr does not take it: {_without(place.document, what)} {where}"
        case "sums":
            return f"counts and sizes of {what} are wrong {where}; the data can be read"
        case "tree":
            return f"comparisons and merges of {what} may go wrong {where}; the data can be read"
        case "index":
            within = f", within {_elements(place, what)}," if place.region is not None else ""
            return f"{_lost(place)} of {what}{within} cannot be read {where}"
        case "chunk":
            return f"{_elements(place, what)} cannot be read {where}"
    return f"the file {what} cannot be read {where}"


def _lost(place: Place) -> str:
    return f"{place.count:,} value{plural(place.count)} ({place.nbytes:,} bytes)"


def _span(place: Place) -> str:
    if not place.upto:
        return "all members"
    last = place.upto.decode(errors="backslashreplace")
    if place.after is None:
        return f"members up to {last!r}"
    return f"members after {place.after.decode(errors='backslashreplace')!r}, up to {last!r}"


def _without(document: str | None, what: str) -> str:
    match document:
        case ".zattrs":
            return f"the attributes of {what} cannot be read"
        case ".zmetadata":
            return f"the consolidated metadata of {what} cannot be read"
    return f"{what} cannot be opened"


def _elements(place: Place, what: str) -> str:
    if place.region is not None:
        if not place.region:
            return f"the value of {what}"
        return f"elements {format_region(place.region)} of {what}"
    return f"chunk {place.coordinates} of {what}"
