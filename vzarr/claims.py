"""What a damaged file says about names: which commits branches and tags named, and how they moved.

Where the trees of LMDB are whole, their records are the truth. Else each name is asked of the
witnesses in turn: what is left of the newest state, the reflog, the state before, and at last what
any page holds, which may be out of date. The newest state itself is lost with its meta page; then
the reflog goes on from the state before, move by move, each from where the last one led.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar, final

from vzarr.errors import CorruptError, InvalidInputError
from vzarr.findings import Kind, Problem
from vzarr.format import (
    SESSION,
    Digest,
    LeaseRecord,
    ReflogRecord,
    TagRecord,
    decode_commit,
    decode_head,
    decode_lease,
    decode_reflog,
    decode_tag,
)
from vzarr.leases import ID_BYTES
from vzarr.refs import check_name
from vzarr.salvage import Listing, Salvage

_SEQUENCE_BYTES = 8
_KINDS: dict[str, Kind] = {"branches": "branch", "tags": "tag", "reflog": "reflog"}
_T = TypeVar("_T")


@final
@dataclass(slots=True)
class Claims:
    """Names, and what they stand for. The commits need not be there."""

    branches: dict[str, Digest] = field(default_factory=dict)
    tags: dict[str, TagRecord] = field(default_factory=dict)
    moves: dict[str, dict[int, ReflogRecord]] = field(default_factory=dict)
    """The reflog of each branch, by number."""
    sessions: dict[bytes, LeaseRecord] = field(default_factory=dict)
    """What dead sessions saved."""
    meta: dict[bytes, bytes] = field(default_factory=dict)
    certain: bool = True
    """Whether these are all branches there were."""
    all_moves: bool = True
    """Whether the reflog is whole."""
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_claims(salvage: Salvage) -> Claims:
    """Find out which names there were. O(records in the file)."""
    return _Witnesses(salvage).claims()


@final
class _Witnesses:
    """What tells of names: the states that meta pages lead to, and records on any page."""

    def __init__(self, salvage: Salvage) -> None:
        self._salvage = salvage
        self._metas = salvage.metas()
        self._claims = Claims()

    def claims(self) -> Claims:
        claims = self._claims
        if len(self._metas) < 2:
            which = "one of the two meta pages" if self._metas else "both meta pages"
            claims.notes.append(
                f"{which} of LMDB {'is' if self._metas else 'are'} lost, and with that the list of "
                "what was written last: names and heads are taken from the reflog and from "
                "wherever else they were found"
            )
        claims.meta = self._records("meta", bytes)
        self._reflog()
        self._branches()
        self._tags()
        self._sessions()
        return claims

    def _listings(self, database: str) -> list[Listing]:
        return [self._salvage.listing(meta, database) for meta in self._metas]

    def _records(
        self, database: str, decode: Callable[[bytes], _T], rank: Callable[[_T], Any] = bool
    ) -> dict[bytes, _T]:
        """Give the records of a database, of all witnesses where the first is not enough."""
        listings = self._listings(database)
        certain = len(listings) == 2
        found: dict[bytes, _T] = {}
        if certain:
            with_doubt = listings[1:]
            for key, data in listings[0].records.items():
                with suppress(CorruptError):
                    found[key] = decode(data)
            if listings[0].whole:
                return found
        else:
            with_doubt = listings
        witnesses: dict[bytes, list[_T]] = {}
        pages = self._salvage.records[database]
        for records in (*(listing.records for listing in with_doubt), *_each(pages)):
            for key, data in records.items():
                if key not in found:
                    with suppress(CorruptError):
                        witnesses.setdefault(key, []).append(decode(data))
        found |= {key: max(values, key=rank) for key, values in witnesses.items()}
        if not (listings and listings[0].whole):
            self._note_loss(database, listings, found)
        return found

    def _note_loss(
        self, database: str, listings: list[Listing], found: Mapping[bytes, object]
    ) -> None:
        """Say that records were lost which no state has, and whether others may stand in."""
        if not listings or database not in _KINDS:
            return
        entries = listings[0].entries
        if entries is None or len(found) >= entries:
            self._claims.notes.append(
                f"the list of {database} is damaged: records are taken from wherever they were "
                "found, so that some may be out of date"
            )
            return
        number = entries - len(found)
        message = f"{number:,} of {entries:,} records in {database} are damaged"
        cost = "what they said is lost; where branches led is taken from other records"
        self._claims.problems.append(Problem(_KINDS[database], message, cost))

    # ── the reflog ───────────────────────────────────────────────────────────────────────────────

    def _reflog(self) -> None:
        moves = self._claims.moves
        # What a collection of old moves forgot may still be on some page.
        first: dict[bytes, int] = {}
        listings = self._listings("reflog")
        for key in listings[0].records if listings else ():
            number = int.from_bytes(key[-_SEQUENCE_BYTES:], "big")
            prefix = key[:-_SEQUENCE_BYTES]
            first[prefix] = min(number, first.get(prefix, number))
        self._claims.all_moves = bool(listings) and listings[0].whole
        for key, record in self._records("reflog", decode_reflog, _time_of).items():
            prefix, number = key[:-_SEQUENCE_BYTES], int.from_bytes(key[-_SEQUENCE_BYTES:], "big")
            name = _name(prefix[:-1], "branch")
            if name is not None and prefix[-1:] == b"\0" and number >= first.get(prefix, 0):
                moves.setdefault(name, {})[number] = record

    # ── branches and tags ────────────────────────────────────────────────────────────────────────

    def _branches(self) -> None:
        claims = self._claims
        listings = self._listings("branches")
        newest = listings[0] if listings else Listing({}, None)
        claims.certain = newest.whole and len(self._metas) == 2
        named = _named(newest.records)
        if not claims.certain:
            for name, moves in claims.moves.items():
                head = named.get(name)
                there = self._last_move(name) if head is not None else None
                if there is None:
                    head = moves[max(moves)].new
                elif len(self._metas) < 2:
                    head = _follow(moves, there, head)
                named.pop(name, None)
                if head is not None:
                    named[name] = head
        if not newest.whole:
            found = _named(self._records("branches", bytes, self._time_of_head))
            for name, head in found.items():
                if name not in claims.moves:
                    named.setdefault(name, head)
        claims.branches = dict(sorted(named.items()))

    def _time_of_head(self, record: bytes) -> int:
        """Of several old records of a branch, the one with the newest commit is the best."""
        data = self._salvage.get("commits", record)
        with suppress(CorruptError):
            return -(2**63) if data is None else decode_commit(data).time
        return -(2**63)

    def _last_move(self, name: str) -> int | None:
        """Give the number of the last move of a branch that the newest state knows."""
        prefix = name.encode() + b"\0"
        numbers = [
            int.from_bytes(key[len(prefix) :], "big")
            for key in self._listings("reflog")[0].records
            if key.startswith(prefix)
        ]
        return max(numbers, default=None)

    def _tags(self) -> None:
        for key, record in sorted(self._records("tags", decode_tag, _time_of).items()):
            name = _name(key, "tag")
            if name is not None:
                self._claims.tags[name] = record

    def _sessions(self) -> None:
        """Find what sessions saved, and nobody has committed yet."""

        def decode(data: bytes) -> LeaseRecord | None:
            try:
                return decode_lease(data)
            except CorruptError:
                return None

        for key, lease in self._records("sessions", decode, _updated).items():
            is_lease = len(key) == ID_BYTES + 4 and not any(key[ID_BYTES:])
            if is_lease and lease is not None and lease.kind == SESSION and lease.checkpoint:
                self._claims.sessions[key] = lease


def _each(pages: Mapping[bytes, Mapping[bytes, None]]) -> list[dict[bytes, bytes]]:
    """Give each value that pages hold of a key by itself."""
    return [{key: data} for key, values in pages.items() for data in values]


def _follow(moves: Mapping[int, ReflogRecord], number: int, head: Digest | None) -> Digest | None:
    """Go on from a head along the moves that came after."""
    while (following := moves.get(number + 1)) is not None and following.old == head:
        number, head = number + 1, following.new
    return head


def _named(records: Mapping[bytes, bytes]) -> dict[str, Digest]:
    found = {}
    for key, data in records.items():
        name = _name(key, "branch")
        with suppress(CorruptError):
            if name is not None:
                found[name] = decode_head(data)
    return found


def _name(key: bytes, what: str) -> str | None:
    try:
        return check_name(key.decode(), what)
    except (InvalidInputError, UnicodeDecodeError):
        return None


def _time_of(record: ReflogRecord | TagRecord) -> int:
    return record.time


def _updated(lease: LeaseRecord | None) -> int:
    return -1 if lease is None else lease.updated
