"""Which names the new file gets after a recovery, and what for.

A name that was there stands for what it stood for, or for less: a branch for the newest commit of
its line of which all is whole, a tag for its commit or for nothing. All else has a name that says
how it came about.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import final

from vzarr.author import default_author
from vzarr.claims import Claims
from vzarr.errors import CorruptError
from vzarr.format import (
    CommitRecord,
    Digest,
    LeaseRecord,
    ReflogRecord,
    TagRecord,
    decode_commit,
    from_microseconds,
    reflog_key,
)
from vzarr.history import now
from vzarr.leases import NOBODY
from vzarr.mending import Mender
from vzarr.origins import Origins
from vzarr.retelling import Reach, Retelling
from vzarr.salvage import Salvage

SALVAGED, RECOVERED = "salvaged/", "recovered-"
# Heads without a name may be many, where much was amended and nothing collected.
_MOST_NAMELESS = 1000
# A name has 400 bytes at most, and may need a number.
_LONGEST = 390
_SHORT = 12


@final
class Renaming:
    """The names of the new file."""

    def __init__(self, claims: Claims, nameless: dict[str, Digest], retelling: Retelling) -> None:
        """Find them. O(history)."""
        self._claims = claims
        self._retelling = retelling
        self.branches: dict[str, Digest] = {}
        self.tags: dict[str, TagRecord] = {}
        self.reflog: dict[bytes, ReflogRecord] = {}
        self.sessions: dict[bytes, LeaseRecord] = {}
        self.moved: dict[str, str] = {}
        """Branches that are not at their heads any more, with the ids of these."""
        self.made: dict[str, str] = {}
        """Names that were not there before, and why."""
        for name, head in claims.branches.items():
            self._branch(name, head)
        for name, head in nameless.items():
            self._branch(name, head)
            if name in self.branches:
                self.made[name] = self._nameless(head)
        for name, tag in claims.tags.items():
            self._tag(name, tag)
        self._moves()
        for key, lease in claims.sessions.items():
            self._session(key, lease)

    # ── branches and tags ────────────────────────────────────────────────────────────────────────

    def _branch(self, name: str, head: Digest) -> None:
        """Put a branch where all is whole, and beside it what is newer."""
        heads = self._retelling.heirs(head)
        whole = self._newest_whole(name, head)
        if whole is not None:
            self.branches[name] = self._retelling.images[whole]
        if whole == head:
            return
        self.moved[name] = head.hex()
        if not heads:
            # The record of the head is lost, and with it what came before: where was the branch?
            heads = next(self._former(name), ())
        if heads and heads[0] != self.branches.get(name):
            made = self._free(f"{SALVAGED}{name}")
            self.branches[made] = heads[0]
            what = f"the head of {name}, {head.hex()[:_SHORT]}"
            if head not in self._retelling.images:
                what = f"what is left of the history of {what}"
            self.made[made] = f"{what}, without what is lost of it"

    def _newest_whole(self, name: str, head: bytes) -> bytes | None:
        """Find the newest commit of a branch that is whole: on its line of first parents."""
        for start in (head, *self._former_heads(name)):
            for commit in self._line(start):
                retelling = self._retelling
                retelling.heirs(commit)
                if commit in retelling.images and commit not in retelling.mended:
                    return commit
        return None

    def _line(self, commit: bytes) -> Iterator[bytes]:
        seen: set[bytes] = set()
        while commit not in seen:
            seen.add(commit)
            yield commit
            parents = self._retelling.parents(commit)
            if not parents:
                return
            commit = parents[0]

    def _former_heads(self, name: str) -> Iterator[bytes]:
        """Give where the reflog says that a branch was, the newest first."""
        moves = self._claims.moves.get(name, {})
        for number in sorted(moves, reverse=True):
            for commit in (moves[number].new, moves[number].old):
                if commit is not None:
                    yield commit

    def _former(self, name: str) -> Iterator[tuple[Digest, ...]]:
        for commit in self._former_heads(name):
            if heirs := self._retelling.heirs(commit):
                yield heirs

    def _tag(self, name: str, tag: TagRecord) -> None:
        self._retelling.heirs(tag.commit)
        image = self._retelling.images.get(tag.commit)
        if image is None:
            return
        tag = replace(tag, commit=image)
        # The commit of a tag is the very same data, or it is not that tag.
        if image in self._mended_images():
            made = self._free(f"{SALVAGED}{name}")
            self.made[made] = f"the commit of tag {name}, without what is lost of it"
            name = made
        self.tags[name] = tag

    def _mended_images(self) -> set[Digest]:
        images, mended = self._retelling.images, self._retelling.mended
        return {images[commit] for commit in mended if commit in images}

    def _free(self, name: str) -> str:
        """Give a name that no branch has, and that is not too long."""
        name = name.encode()[:_LONGEST].decode(errors="ignore").rstrip("./")
        number, free = 2, name
        taken = {*self.branches, *self.tags, *self._claims.branches, *self._claims.tags}
        while free in taken:
            free, number = f"{name}-{number}", number + 1
        return free

    def _nameless(self, head: Digest) -> str:
        record = self._retelling.record(head)
        if record is None:
            return "a head without a name"
        subject = record.message.partition("\n")[0]
        when = f"{from_microseconds(record.time):%Y-%m-%d %H:%M:%S}"
        return f"{head.hex()[:_SHORT]} of {when}, {subject!r}, which had no name any more"

    # ── reflog and sessions ──────────────────────────────────────────────────────────────────────

    def _moves(self) -> None:
        """Tell the reflog anew, with the images of commits; and what became of branches here."""
        newest: dict[str, tuple[int, Digest | None]] = {}
        for name, moves in self._claims.moves.items():
            for number in sorted(moves):
                record = moves[number]
                old, new = self._image(record.old), self._image(record.new)
                # Of a commit that is lost nothing can be said, and a branch comes from somewhere.
                if (record.new is not None and new is None) or (old is None and new is None):
                    continue
                self.reflog[reflog_key(name, number)] = replace(record, old=old, new=new)
                newest[name] = number, new
            newest.setdefault(name, (max(moves), None))
        for name, head in self.branches.items():
            number, old = newest.get(name, (-1, None))
            as_it_was = name in self._claims.branches and name not in self.moved
            if old != head and not (as_it_was and number < 0):
                why = f"recover: {self.made.get(name, 'the newest commit that is whole')}"
                record = ReflogRecord(old, head, default_author(), now(), why)
                self.reflog[reflog_key(name, number + 1)] = record

    def _image(self, commit: Digest | None) -> Digest | None:
        if commit is None:
            return None
        self._retelling.heirs(commit)
        return self._retelling.images.get(commit)

    def _session(self, key: bytes, lease: LeaseRecord) -> None:
        base = self._image(lease.base)
        root = lease.checkpoint
        if base is not None and root is not None and self._retelling.is_whole(root):
            self.sessions[key] = replace(lease, token=NOBODY, base=base, staged=None)


# ── heads without a name ─────────────────────────────────────────────────────────────────────────


def find_nameless(
    salvage: Salvage, claims: Claims, reach: Reach, origins: Origins
) -> dict[str, Digest]:
    """Find commits that have lost their names, give them some, and follow them. O(commits).

    These are commits that no name leads to and no child, where names or commits are lost that could
    have led to them. Of a row of amendments it is the last. Unless the reflog is lost, too, one
    that lacks something is taken for garbage, half collected.
    """
    if claims.certain and not reach.misses_commits:
        return {}
    lossy = not claims.all_moves or not claims.branches
    others = dict(_unreached(salvage, reach))
    known = {_kin(record) for record in reach.commits.values()}
    parents = {parent for record in others.values() for parent in record.parents}
    if lossy:
        # A tag leads to a head, but is no branch to go on from.
        parents |= {parent for record in reach.commits.values() for parent in record.parents}
        tagged = {tag.commit for tag in claims.tags.values()} - set(claims.branches.values())
        others |= {key: reach.commits[key] for key in tagged - parents if key in reach.commits}
    waiting = [(-record.time, key) for key, record in others.items() if key not in parents]
    heapq.heapify(waiting)
    mender, seen = Mender(salvage), set[bytes]()
    found: dict[str, Digest] = {}
    while waiting and len(found) < _MOST_NAMELESS:
        _, commit = heapq.heappop(waiting)
        record = others[commit]
        if commit in seen or (commit in reach.commits and commit in parents):
            continue
        seen.add(commit)
        is_news = commit in reach.commits or _kin(record) not in known
        if is_news and (lossy or mender.is_whole(record.root)):
            name = f"{RECOVERED}{len(found) + 1}"
            while name in claims.branches:
                name += "-2"
            found[name] = Digest(commit)
            origins.names(commit).branches.append(name)
            reach.follow([commit])
            known.update(_kin(others[key]) for key in others.keys() & reach.commits.keys())
        else:
            for parent in record.parents:
                if parent in others:
                    heapq.heappush(waiting, (-others[parent].time, parent))
    return found


def _unreached(salvage: Salvage, reach: Reach) -> Iterator[tuple[bytes, CommitRecord]]:
    for key, _ in salvage.scan("commits", keys_only=True):
        if key not in reach.commits:
            with suppress(CorruptError):
                yield key, decode_commit(salvage.get("commits", key) or b"")


def _kin(record: CommitRecord) -> tuple[object, ...]:
    """Give what a commit and its amendments have in common."""
    return record.parents, record.author, record.message
