"""Commits and their ancestry, of which some are not in any repository yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice

from vzarr import history
from vzarr.environment import Environment
from vzarr.format import EMPTY_ENTRY, CommitRecord, Digest
from vzarr.objects import root_digest

_MAX_NEAREST = 4
EMPTY_ROOT = root_digest(EMPTY_ENTRY)


def is_blank(environment: Environment, commit: Digest) -> bool:
    """Whether a commit is the first one of a new repository, which says nothing."""
    record = history.get(environment, commit)
    return not record.parents and record.root == EMPTY_ROOT


def find_nearest(commits: Mapping[Digest, CommitRecord]) -> dict[Digest, set[Digest]]:
    """Find for each of some commits, parents first, the nearest ancestors beyond them; not all."""
    nearest: dict[Digest, set[Digest]] = {}
    for commit, record in commits.items():
        beyond: set[Digest] = set()
        for parent in record.parents:
            beyond |= nearest[parent] if parent in commits else {parent}
        nearest[commit] = set(islice(beyond, _MAX_NEAREST))
    return nearest


def within_depth(
    commits: Mapping[Digest, CommitRecord], heads: Iterable[Digest], depth: int | None
) -> set[Digest]:
    """Find those of some commits that are no more than so many generations from the heads."""
    if depth is None:
        return set(commits)
    found: set[Digest] = set()
    level = {head for head in heads if head in commits}
    for _ in range(depth):
        found |= level
        parents = (parent for commit in level for parent in commits[commit].parents)
        level = {parent for parent in parents if parent in commits} - found
    return found


def parents_first(found: Mapping[Digest, CommitRecord]) -> dict[Digest, CommitRecord]:
    """Put commits into an order in which none comes before a parent of it."""
    order: dict[Digest, CommitRecord] = {}
    for start in found:
        waiting = [start]
        while waiting:
            commit = waiting[-1]
            before = [
                parent
                for parent in found[commit].parents
                if parent in found and parent not in order
            ]
            if before and commit not in order:
                waiting += before
            else:
                order[commit] = found[commit]
                waiting.pop()
    return order
