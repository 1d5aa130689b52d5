"""What the verbs tell as JSON: plain dictionaries of what the repository gives."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, final

from vzarr.diff import Diff, NodeChange
from vzarr.findings import Report
from vzarr.history import Commit
from vzarr.merge import Conflict
from vzarr.metadata import NodeMetadata
from vzarr.output import BRANCH, TAG, Cell
from vzarr.reports import Info
from vzarr.repository import Repository

if TYPE_CHECKING:
    from vzarr.statistics import Statistics

INFO_KEYS = "path id format_version created file_bytes chunks commits branches tags"
COMMIT_KEYS = "id parents author time message metadata root branches tags"
CHANGE_KEYS = (
    "path kind change old_path attributes{name: {old new}} metadata{name: {old new}} "
    "chunks[coordinates kind region old_bytes new_bytes] values{changed compared added removed "
    "old{count missing minimum maximum mean} new{…} gained{…} lost{…} difference{…} left_out}, "
    "null where that was not asked for or no chunk changed"
)
CONFLICT_KEYS = "path kind document coordinates region"
VIEW_KEYS = (
    "path commit shape dtype dimensions attributes index minimum maximum mean missing elements "
    "chunks of_chunks values, at most one for each character of a picture; where chunks is less "
    "than of_chunks, all numbers are of the elements that were looked at"
)
REPORT_KEYS = (
    "path level ok problems[kind message cost path document coordinates region commit branches "
    "tags commits] omitted commits nodes chunks nbytes garbage garbage_bytes seconds left_out "
    "unsummed stray_checksums"
)


def info_facts(facts: Info) -> dict[str, Any]:
    """All but the branch of the current session, which the command line has none of."""
    return {key: value for key, value in asdict(facts).items() if key != "branch"}


@final
class Names:
    """The branches and tags, to find those that name a commit."""

    def __init__(self, repo: Repository) -> None:
        self._branches = _by_commit(repo.branches.items())
        self._tags = _by_commit(repo.tags.items())

    @property
    def commits(self) -> list[str]:
        """The commits that have a name, each once."""
        return list(dict.fromkeys([*self._branches, *self._tags]))

    def facts(self, commit: Commit) -> dict[str, Any]:
        """Give a commit's facts with its names."""
        return {
            **asdict(commit),
            "branches": self._branches.get(commit.id, []),
            "tags": self._tags.get(commit.id, []),
        }

    def cells(self, commit: Commit) -> list[Cell]:
        """Spell a commit's names as git does: `` (main, tag: v1)``, or nothing."""
        names: list[Cell] = [(name, BRANCH) for name in self._branches.get(commit.id, [])]
        names += [(f"tag: {name}", TAG) for name in self._tags.get(commit.id, [])]
        separated = [cell for name in names for cell in (", ", name)][1:]
        return [" (", *separated, ")"] if names else []


def _by_commit(names: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, commit in names:
        found.setdefault(commit, []).append(name)
    return found


def diff_facts(diff: Diff | None) -> list[dict[str, Any]] | None:
    """Give the changes between two snapshots; None where there is no other."""
    return None if diff is None else [change_facts(change) for change in diff]


def change_facts(change: NodeChange, values: Statistics | None = None) -> dict[str, Any]:
    """Give what changed of one group or array, and how its values did."""

    def sides(values: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
        return {name: {"old": old, "new": new} for name, (old, new) in values.items()}

    metadata = dict(change.metadata)
    if "encoding" in metadata:
        # Itself a document.
        old, new = (json.loads(side) if side else None for side in metadata["encoding"])
        metadata["encoding"] = (old, new)
    return {
        "path": change.path,
        "kind": change.kind,
        "change": change.change,
        "old_path": change.old_path,
        "attributes": sides(change.attributes),
        "metadata": sides(metadata),
        "chunks": [
            {
                "coordinates": chunk.coordinates,
                "kind": chunk.kind,
                "region": chunk.region,
                "old_bytes": chunk.old_bytes,
                "new_bytes": chunk.new_bytes,
            }
            for chunk in change.iter_chunks()
        ],
        "values": None if values is None else asdict(values),
    }


def node_facts(path: str, node: NodeMetadata) -> dict[str, Any]:
    """Give what a group or array is."""
    array = node.array
    return {
        "path": path,
        "kind": node.kind,
        "attributes": node.attributes,
        "shape": array.shape if array else None,
        "chunks": array.grid if array else None,
        "dtype": array.dtype if array else None,
    }


def branch_facts(repo: Repository) -> list[dict[str, Any]]:
    """Give the branches, each with its last commit."""
    facts = []
    for name, head in repo.branches.items():
        commit = repo.show(head)
        about = {"author": commit.author, "time": commit.time, "message": commit.message}
        facts.append({"name": name, "commit": head, **about})
    return facts


def distances(
    repo: Repository, branches: Iterable[Mapping[str, Any]]
) -> Iterator[dict[str, int | None]]:
    """Count for each branch the commits that only it, or only main, has. O(commits of both)."""
    heads = {entry["name"]: entry["commit"] for entry in branches}
    if "main" not in heads:
        for _ in heads:
            yield {"ahead": None, "behind": None}
        return
    lines = {head: {commit.id for commit in repo.log(head)} for head in set(heads.values())}
    theirs = lines[heads["main"]]
    for head in heads.values():
        yield {"ahead": len(lines[head] - theirs), "behind": len(theirs - lines[head])}


def conflict_facts(conflict: Conflict) -> dict[str, Any]:
    """Give where a conflict is."""
    return {key: getattr(conflict, key) for key in CONFLICT_KEYS.split()}


def report_facts(report: Report) -> dict[str, Any]:
    """Give a report of a check."""
    problems = [
        {field: getattr(problem, field) for field in problem.__slots__}
        for problem in report.problems
    ]
    facts = {field: getattr(report, field) for field in report.__slots__}
    return {**facts, "ok": report.ok, "problems": problems}
