"""Fetch, push and pull: what one repository gets from another, and gives to it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final

from vzarr import history, refs, remotes
from vzarr.bundlefile import BundleFile, is_bundle
from vzarr.combine import Combiner
from vzarr.committing import Settings
from vzarr.dialing import connect
from vzarr.environment import Environment, Txn
from vzarr.errors import (
    CommitNotFoundError,
    InvalidInputError,
    ReadOnlyError,
    RefNotFoundError,
    VzarrError,
)
from vzarr.format import Digest
from vzarr.lineage import is_blank
from vzarr.merge import Strategy
from vzarr.moving import Mover, RefUpdate
from vzarr.objects import Objects
from vzarr.progress import Progress
from vzarr.reception import Received, Reception
from vzarr.remotes import UNNAMED, Remote, is_elsewhere
from vzarr.serving import identity
from vzarr.session import Session
from vzarr.supply import REQUESTS, Asker, Giver, Ref, Supplier, encode_ref, list_refs
from vzarr.wire import MAX_NAMES, send_error


@final
@dataclass(frozen=True, slots=True)
class TransferReport:
    """What a fetch, push or unbundle did; prints as a summary."""

    url: str
    """The other repository, or the bundle."""
    updates: tuple[RefUpdate, ...]
    """The names that moved, or might have."""
    tracked: dict[str, str]
    """Of a fetch: where the other branches are now, by the names that they have here."""
    pruned: tuple[str, ...]
    """Of a fetch with ``prune``: such names of branches that are not there any more."""
    commits: int
    nodes: int
    chunks: int
    nbytes: int
    """Bytes of all these."""
    wire_bytes: int
    """What went to and fro; 0 for a bundle."""
    seconds: float

    def __str__(self) -> str:
        lines = [str(update) for update in self.updates]
        lines += [f"{name} is at {commit[:12]}" for name, commit in self.tracked.items()]
        lines += [f"{name} is not there any more" for name in self.pruned]
        lines.append(
            f"{self.commits:,} commits, {self.nodes:,} nodes and {self.chunks:,} chunks "
            f"({self.nbytes:,} bytes) in {self.seconds:.1f} s."
        )
        return "\n".join(lines)

    __repr__ = __str__


@final
@dataclass(frozen=True, slots=True)
class PullReport:
    """What a pull did; prints as a summary."""

    fetch: TransferReport
    branch: str
    old: str | None
    """The branch's head before; None where there was no such branch."""
    new: str
    how: Literal["created", "up to date", "fast-forward", "merge"]

    def __str__(self) -> str:
        return f"{self.fetch}\nbranch {self.branch}: {self.new[:12]} ({self.how})"

    __repr__ = __str__


@final
@dataclass(frozen=True, slots=True)
class Other:
    """Another repository, or a bundle, open to fetch from."""

    supplier: Supplier
    url: str
    id: bytes
    needs: Sequence[Digest] = ()
    """Of a bundle, the commits that it goes on from."""
    wire_bytes: Callable[[], int] = field(default=lambda: 0)


@contextlib.contextmanager
def reach(url: str, own_id: bytes | None) -> Iterator[Other]:
    """Open a repository here or elsewhere, or a bundle, to fetch from it."""
    if not is_elsewhere(url) and is_bundle(url):
        with BundleFile.open(url) as bundle:
            yield Other(bundle, url, bundle.id, bundle.needs)
        return
    with connect(url, own_id) as connection:
        channel = connection.channel
        yield Other(
            Asker(channel),
            url,
            connection.id,
            wire_bytes=lambda: channel.sent_bytes + channel.received_bytes,
        )


def find_other(environment: Environment, remote: str | None) -> Remote:
    """Find what a user means by a remote: its name, or where it is; nothing for the default one."""
    with environment.read() as txn:
        if remote is None:
            return remotes.default_remote(txn)
        for known in remotes.read_remotes(txn):
            if known.name == remote:
                return known
        is_word = "/" not in remote and "." not in remote and not is_elsewhere(remote)
        if is_word and not os.path.lexists(remote):
            # No path, but a name that is not known.
            return remotes.find_remote(txn, remote)
        return Remote(UNNAMED, remote, "")


def _require_other(environment: Environment, url: str) -> None:
    if is_elsewhere(url):
        return
    with contextlib.suppress(OSError):
        if environment.is_at(os.path.expanduser(url)):
            raise InvalidInputError(f"{url} is the repository itself: name another one")


# ── fetch ────────────────────────────────────────────────────────────────────────────────────────


def fetch(
    objects: Objects,
    settings: Settings,
    remote: str | None,
    branches: Sequence[str] | None,
    *,
    complete: bool = False,
    prune: bool = False,
    progress: Progress | None = None,
) -> TransferReport:
    """Bring what another repository has; see ``Repository.fetch``."""
    started = time.monotonic()
    environment = objects.environment
    known = find_other(environment, remote)
    if prune and known.name == UNNAMED:
        raise InvalidInputError(
            f"prune= is for a remote with a name, and {known.url} has none here: add it with "
            f"repo.remotes.add(NAME, {known.url!r})"
        )
    _require_other(environment, known.url)
    own_id = identity(objects)[1]
    with reach(known.url, own_id) as other:
        require_base(environment, other.url, other.needs)
        found = other.supplier.refs()
        wanted, tags = choose(found, branches, other.url)
        reception = Reception(
            objects,
            settings,
            other.supplier,
            other=other.url,
            path="" if complete else known.path,
            complete=complete,
            ids=(other.id, own_id),
            progress=progress,
        )
        tracked = [(f"{known.name}/{ref.name}", ref.commit) for ref in wanted]
        gone: list[str] = []
        if prune:
            there = [ref.name for ref in found if ref.kind == "branch"]
            with environment.read() as txn:
                gone = remotes.stale(txn, known.name, there)
        why = f"fetch: from {known.url}"

        def also(txn: Txn) -> None:
            remotes.prune(txn, gone, settings.author(), history.now(), why)
            if complete:
                # From then on all of it is wanted.
                remotes.widen(txn, known.name)

        updates = receive(
            objects,
            settings,
            reception,
            wanted,
            tags if branches is None else [],
            tracked,
            why=why,
            also=also if gone or (complete and known.path) else None,
        )
        wire_bytes = other.wire_bytes()
    return report(
        other.url,
        updates,
        reception.received,
        started,
        wire_bytes,
        {name: commit.hex() for name, commit in tracked},
        gone,
    )


def receive(
    objects: Objects,
    settings: Settings,
    reception: Reception,
    wanted: Sequence[Ref],
    moved: Sequence[Ref],
    tracked: Sequence[tuple[str, Digest]],
    *,
    why: str,
    force: bool = False,
    also: Callable[[Txn], None] | None = None,
) -> list[RefUpdate]:
    """Bring commits, and move names: all of it, or none and what came is kept for another time."""
    keep = True
    try:
        reception.gather(ref.commit for ref in (*wanted, *moved))
        mover = Mover(
            objects.environment, settings, reception, force=force, keep_tags=True, why=why
        )
        updates = mover.move(moved, tracked, also)
        keep = False
    finally:
        reception.close(keep=keep)
    return updates


def choose(
    found: Sequence[Ref], branches: Sequence[str] | None, url: str
) -> tuple[list[Ref], list[Ref]]:
    """Pick branches by name, or all; and the tags. Raises ``RefNotFoundError``."""
    by_name = {ref.name: ref for ref in found if ref.kind == "branch"}
    for name in branches or ():
        if name not in by_name:
            raise RefNotFoundError(
                f"{url} has no branch {name!r}; it has {', '.join(by_name) or 'none'}", name=name
            )
    names = list(by_name) if branches is None else list(dict.fromkeys(branches))
    return [by_name[name] for name in names], [ref for ref in found if ref.kind == "tag"]


def report(
    url: str,
    updates: Sequence[RefUpdate],
    came: Received,
    started: float,
    wire_bytes: int = 0,
    tracked: dict[str, str] | None = None,
    pruned: Sequence[str] = (),
) -> TransferReport:
    """Make the report of a transfer."""
    return TransferReport(
        url=url,
        updates=tuple(updates),
        tracked=tracked or {},
        pruned=tuple(pruned),
        commits=came.commits,
        nodes=came.nodes,
        chunks=came.chunks,
        nbytes=came.nbytes,
        wire_bytes=wire_bytes,
        seconds=time.monotonic() - started,
    )


def require_base(environment: Environment, url: str, needs: Sequence[Digest]) -> None:
    """Raise ``CommitNotFoundError`` if a repository lacks what a bundle was made on."""
    missing = [commit for commit in needs if not history.exists(environment, commit)]
    if missing:
        listed = ", ".join(commit.hex()[:12] for commit in missing[:3])
        raise CommitNotFoundError(
            f"the bundle {url} goes on from commits that {environment.path} does not have: "
            f"{listed}. Take the bundle before it first, or ask for one without since=",
            name=missing[0].hex(),
        )


# ── push ─────────────────────────────────────────────────────────────────────────────────────────


def push(
    objects: Objects,
    settings: Settings,
    remote: str | None,
    branches: Sequence[str],
    *,
    force: bool = False,
    tags: bool = False,
    read_only: bool = False,
    progress: Progress | None = None,
) -> TransferReport:
    """Give another repository what it lacks; see ``Repository.push``.

    Where the branches are there is noted, unless this one is ``read_only``.
    """
    started = time.monotonic()
    environment = objects.environment
    known = find_other(environment, remote)
    _require_other(environment, known.url)
    if not is_elsewhere(known.url) and is_bundle(known.url):
        raise ReadOnlyError(f"{known.url} is a bundle: write another one with repo.bundle")
    own, own_tags = choose(list_refs(environment), branches, environment.path)
    wanted = [*own, *(own_tags if tags else ())]
    if not wanted or len(wanted) > MAX_NAMES:
        raise InvalidInputError(
            f"{len(wanted):,} names are to be pushed: name 1 to {MAX_NAMES:,} branches"
        )
    with connect(known.url, identity(objects)[1], write=True) as connection:
        channel = connection.channel
        channel.send("push", [[ref.kind, ref.name, encode_ref(ref)] for ref in wanted], force)
        giver = Giver(environment, channel)
        while True:
            message = channel.receive(*REQUESTS, "pushed")
            if message[0] == "pushed":
                break
            try:
                giver.answer(message)
            except VzarrError as error:
                send_error(channel, error)
                raise
            if progress is not None:
                progress(channel.sent_bytes, 0, "bytes")
        wire_bytes = channel.sent_bytes + channel.received_bytes
    _, rows, commits, nodes, chunks, nbytes = message
    updates = [
        RefUpdate(kind, name, old.hex() if old else None, new.hex(), how)
        for kind, name, old, new, how in rows
    ]
    if known.name != UNNAMED and not read_only:
        _track(environment, settings, known, own)
    came = Received(commits, nodes, chunks, nbytes)
    return report(known.url, updates, came, started, wire_bytes)


def _track(
    environment: Environment, settings: Settings, remote: Remote, pushed: Sequence[Ref]
) -> None:
    """Note where the branches are there by now."""
    author, moment = settings.author(), history.now()
    with environment.read() as txn:
        stale = [
            ref
            for ref in pushed
            if refs.tracked_head(txn, f"{remote.name}/{ref.name}") != ref.commit
        ]
    if stale:
        with environment.write(timeout=settings.timeout) as txn:
            for ref in stale:
                name = f"{remote.name}/{ref.name}"
                refs.track(txn, name, ref.commit, author, moment, f"push: to {remote.url}")


# ── pull ─────────────────────────────────────────────────────────────────────────────────────────


def pull(
    objects: Objects,
    settings: Settings,
    open_store: Callable[[Session], Any],
    remote: str | None,
    branch: str,
    *,
    strategy: Strategy = "fail",
    progress: Progress | None = None,
) -> PullReport:
    """Fetch a branch and merge it; see ``Repository.pull``."""
    environment = objects.environment
    fetched = fetch(objects, settings, remote, [branch], progress=progress)
    ((_, there),) = fetched.tracked.items()
    theirs = Digest(bytes.fromhex(there))
    with environment.read() as txn:
        old = refs.find_head(txn, branch)
    if old is None or is_blank(environment, old):
        _adopt(environment, settings, branch, old, theirs, f"pull: from {fetched.url}")
        new = theirs
    else:
        new = Combiner(objects, settings, open_store).merge(
            there,
            branch,
            strategy,
            no_ff=False,
            message=f"Merge branch '{branch}' of {fetched.url}",
            metadata=None,
            author=None,
            progress=progress,
        )
    how: Literal["created", "up to date", "fast-forward", "merge"] = (
        "created"
        if old is None
        else "up to date"
        if new == old
        else "fast-forward"
        if new == theirs
        else "merge"
    )
    return PullReport(fetched, branch, old.hex() if old else None, new.hex(), how)


def _adopt(
    environment: Environment,
    settings: Settings,
    branch: str,
    old: Digest | None,
    new: Digest,
    why: str,
) -> None:
    """Let a branch begin where the other one is."""
    author, moment = settings.author(), history.now()
    with environment.write(timeout=settings.timeout) as txn:
        if old is None:
            refs.create_branch(txn, branch, new, author, moment, why)
        elif old != new:
            refs.move_branch(txn, branch, old, new, author, moment, why)
    if settings.durability == "full":
        environment.sync()
