"""What a repository gives to another one that asks: refs, commits, and objects by digest.

Whoever has a digest gets the object. The side that gives keeps no state: it looks nothing up but
what it is asked for, in read txns of a request each.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, final

from vzarr import absence, history, refs
from vzarr.environment import Environment
from vzarr.errors import CommitNotFoundError, CorruptError, InvalidInputError, TransferError
from vzarr.format import Digest, TagRecord, decode_head, decode_tag, encode_tag
from vzarr.refs import check_name
from vzarr.wire import (
    MAX_FRAME_BYTES,
    MAX_NAMES,
    PART_BYTES,
    Channel,
    Message,
    receive_objects,
    send_objects,
)

REQUESTS = ("refs?", "commits?", "absent?", "nodes?", "chunks?")
"""The messages that a ``Giver`` answers."""
_MAX_ABSENT = 50_000
MAX_NODE_BYTES = 64 << 20
"""A node of that size would hold a thousand names of 64 KiB."""


class Ref(NamedTuple):
    """A branch or a tag of the other side."""

    kind: str
    """``branch`` or ``tag``."""
    name: str
    commit: Digest
    tag: TagRecord | None = None


class Supplier(Protocol):
    """Where objects come from: another repository, or a bundle."""

    def refs(self) -> list[Ref]:
        """List the branches and tags."""
        ...

    def commits(
        self, wants: Sequence[Digest], stops: Sequence[Digest], limit: int
    ) -> Iterable[bytes]:
        """Give records of commits, each of them wanted or a parent of one before it.

        So many at most, and none behind the ``stops``.
        """
        ...

    def absent(self) -> set[bytes]:
        """List what is known to be missing: of a shallow or partial clone."""
        ...

    def nodes(self, digests: Sequence[bytes]) -> Sequence[bytes | None]:
        """Give tree nodes and roots; None for one that is not there."""
        ...

    def chunks(self, digests: Sequence[bytes], lengths: Sequence[int]) -> Sequence[bytes | None]:
        """Give the bytes of chunks, documents and files, of so many bytes at most."""
        ...


def list_refs(environment: Environment) -> list[Ref]:
    """List the branches and tags of a repository."""
    with environment.read() as txn:
        branches = [Ref("branch", name, head) for name, head in refs.branches(txn)]
        tags = [
            Ref("tag", name, record.commit, record)
            for name, record in ((tag.name, refs.find_tag(txn, tag.name)) for tag in refs.tags(txn))
            if record is not None
        ]
    return branches + tags


def list_commits(
    environment: Environment, wants: Iterable[Digest], stops: Iterable[Digest], limit: int
) -> Iterator[bytes]:
    """Give commits reachable from some, but not beyond others: newest first, so many at most.

    Raises ``CommitNotFoundError``. O(log n) each.
    """
    seen: set[bytes] = set(stops)
    queue: list[tuple[int, bytes]] = []

    def push(commit: Digest, newest: int | None) -> None:
        if commit not in seen:
            seen.add(commit)
            time = history.get(environment, commit).time
            heapq.heappush(queue, (-time if newest is None else -min(time, newest), commit))

    for want in wants:
        if not history.exists(environment, want):
            raise CommitNotFoundError(
                f"{environment.path} has no commit {want.hex()[:12]} any more: begin again",
                name=want.hex(),
            )
        push(want, None)
    while queue and limit:
        time, commit = heapq.heappop(queue)
        with environment.read() as txn:
            data = txn.get("commits", commit)
        record = history.get(environment, Digest(commit))
        if data is not None:
            yield data
        limit -= 1
        for parent in record.parents:
            push(parent, -time)


@final
@dataclass(frozen=True, slots=True)
class Giver:
    """One side of a channel: answers what the other one asks for."""

    environment: Environment
    channel: Channel

    def answer(self, message: Message) -> None:
        """Answer a request. Raises ``CorruptError`` where something is damaged."""
        name, *fields = message
        answers: dict[str, Callable[..., None]] = {
            "refs?": self._refs,
            "commits?": self._commits,
            "absent?": self._absent,
            "nodes?": self._nodes,
            "chunks?": self._chunks,
        }
        answers[name](*fields)
        self.channel.flush()

    def _refs(self) -> None:
        page: list[list[object]] = []
        nbytes = 0
        for ref in list_refs(self.environment):
            record = encode_ref(ref)
            if len(page) == MAX_NAMES or (page and nbytes + len(record) > PART_BYTES):
                self.channel.send("refs", page, True)
                page, nbytes = [], 0
            page.append([ref.kind, ref.name, record])
            nbytes += len(record)
        self.channel.send("refs", page, False)

    def _commits(self, wants: list[Digest], stops: list[Digest], limit: int) -> None:
        records: list[bytes] = []
        nbytes = 0
        for data in list_commits(self.environment, wants, stops, limit):
            if records and nbytes + len(data) > PART_BYTES:
                self.channel.send("commits", records, True)
                records, nbytes = [], 0
            records.append(data)
            nbytes += len(data)
        self.channel.send("commits", records, False)

    def _absent(self) -> None:
        with self.environment.read() as txn:
            digests = absence.noted(txn)
        while len(digests) > _MAX_ABSENT:
            self.channel.send("absent", digests[:_MAX_ABSENT], True)
            digests = digests[_MAX_ABSENT:]
        self.channel.send("absent", digests, False)

    def _nodes(self, digests: list[bytes]) -> None:
        send_objects(self.channel, digests, lambda digest: self._get("nodes", digest))

    def _chunks(self, digests: list[bytes]) -> None:
        send_objects(self.channel, digests, lambda digest: self._get("chunks", digest))

    def _get(self, database: str, digest: bytes) -> bytes | None:
        with self.environment.read() as txn:
            return txn.get(database, digest)


@final
@dataclass(frozen=True, slots=True)
class Asker:
    """The other side of a channel as a ``Supplier``."""

    channel: Channel

    def refs(self) -> list[Ref]:
        """List the branches and tags. Raises ``TransferError``."""
        self.channel.send("refs?")
        found: list[Ref] = []
        more = True
        while more:
            _, rows, more = self.channel.receive("refs")
            found += [decode_ref(*row) for row in rows]
            if more and not rows:
                raise TransferError("the other side makes no sense: it announces refs, and none")
        return found

    def commits(
        self, wants: Sequence[Digest], stops: Sequence[Digest], limit: int
    ) -> Iterator[bytes]:
        """Give records of commits. Raises ``TransferError``."""
        self.channel.send("commits?", list(wants), list(stops), limit)
        more = True
        number = 0
        while more:
            _, records, more = self.channel.receive("commits")
            number += len(records)
            if number > limit or (more and not records):
                raise TransferError("the other side sends other commits than was asked for")
            yield from records

    def absent(self) -> set[bytes]:
        """List what is known to be missing. Raises ``TransferError``."""
        self.channel.send("absent?")
        found: set[bytes] = set()
        more = True
        while more:
            _, digests, more = self.channel.receive("absent")
            before = len(found)
            found.update(digests)
            if more and len(found) == before:
                raise TransferError("the other side makes no sense: it lists the same again")
        return found

    def nodes(self, digests: Sequence[bytes]) -> list[bytes | None]:
        """Give tree nodes and roots. Raises ``TransferError``."""
        self.channel.send("nodes?", list(digests))
        return receive_objects(self.channel, [MAX_NODE_BYTES] * len(digests))

    def chunks(self, digests: Sequence[bytes], lengths: Sequence[int]) -> list[bytes | None]:
        """Give bytes of chunks. Raises ``TransferError``."""
        self.channel.send("chunks?", list(digests))
        return receive_objects(self.channel, lengths)


def encode_ref(ref: Ref) -> bytes:
    """Give the record of a ref: a branch's head, or a tag."""
    data = ref.commit if ref.tag is None else encode_tag(ref.tag)
    if len(data) > MAX_FRAME_BYTES - PART_BYTES:
        raise InvalidInputError(f"tag {ref.name!r} has a message that is too long to be sent")
    return data


def decode_ref(kind: str, name: str, record: bytes) -> Ref:
    """Read a ref that another repository sent. Raises ``TransferError``."""
    try:
        check_name(name, kind)
        if kind == "branch":
            return Ref(kind, name, decode_head(record))
        tag = decode_tag(record)
        return Ref(kind, name, tag.commit, tag)
    except (InvalidInputError, CorruptError) as error:
        raise TransferError(f"the other side makes no sense: {error}") from error
