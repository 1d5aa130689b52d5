"""What a merge cannot decide, and who decides it: conflicts, strategies, resolutions.

A strategy is a name, or a function that is asked about each conflict and gives a resolution: whose
value to take, or a new one. ``Resolver`` asks, and checks what it is told; what the value is then
put into, the merge knows.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeGuard, TypeVar, final

from vzarr.documents import encode_document, is_document
from vzarr.errors import FormatError, InvalidInputError
from vzarr.format import MAX_CHUNK_BYTES, Blob
from vzarr.metadata import Region
from vzarr.objects import Store

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_T = TypeVar("_T")
SideName = Literal["base", "ours", "theirs"]
SIDES: tuple[SideName, ...] = ("base", "ours", "theirs")
_SHOWN_CONFLICTS = 3
Blobs = tuple[Blob | None, Blob | None, Blob | None]


@final
@dataclass(frozen=True, slots=True)
class Conflict:
    """One thing that both sides changed since their base; or that a session read, and is stale."""

    path: str
    """The array or group; the key for a plain file."""
    kind: Literal["chunk", "document", "file", "node", "listing"]
    """``node``: deleted on one side and changed on the other, or an array that was made anew.
    ``listing``: what lies below a path was listed, and is not the same any more."""
    document: str | None = None
    """Which document: ``zarr.json``, ``.zattrs`` …"""
    coordinates: tuple[int, ...] | None = None
    """Which chunk."""
    region: Region | None = None
    """The smallest box around the elements that both sides changed to different values; where the
    chunk could not be merged by element, the part of the array which it covers."""
    reason: str | None = None
    """Why the chunk could not be merged by element; why both sides' changes conflict although they
    agree, as "both sides grew axis 0 from 5 to 6"; why what a session read is stale. None where
    both simply changed the same thing to different values."""
    _blobs: Blobs = field(default=(None, None, None), repr=False)
    _read: Callable[[Blob], bytes] | None = field(default=None, repr=False, compare=False)
    _decode: Callable[[Region], Sequence[NDArray[Any]]] | None = field(
        default=None, repr=False, compare=False
    )

    def decode(self, side: SideName) -> NDArray[Any]:
        """Give the values of ``region``, of the chunk of one side: "base", "ours" or "theirs".

        A missing chunk is full of the fill value. Raises ``InvalidInputError`` for a conflict that
        is about no chunk, ``FormatError`` where zarr cannot decode it, and ``CorruptError``. Like
        the bytes of ours, those values are there for as long as the session keeps its edits. They
        are the caller's to change. Cost: decodes the chunk of each side, the first time.
        """
        from vzarr.elements import UndecodableError

        if side not in SIDES:
            raise InvalidInputError(f"a side is one of {', '.join(SIDES)}, not {side!r}")
        if self.kind != "chunk":
            raise InvalidInputError(
                f"only a chunk has values, and this is a conflict of a {self.kind}"
            )
        if self._decode is None or self.region is None:
            raise FormatError(f"{self.path or '/'}: chunk {self.coordinates}: {self.reason}")
        try:
            return self._decode(self.region)[SIDES.index(side)].copy()
        except UndecodableError as error:
            raise FormatError(f"{self.path or '/'}: chunk {self.coordinates}: {error}") from error

    @property
    def base(self) -> bytes | None:
        """The encoded bytes before both changes; None if there were none. Read when asked for."""
        return self._side("base")

    @property
    def ours(self) -> bytes | None:
        """The encoded bytes of this session or branch; None if deleted. Read when asked for."""
        return self._side("ours")

    @property
    def theirs(self) -> bytes | None:
        """The encoded bytes of the other side; None if deleted. Read when asked for."""
        return self._side("theirs")

    def _side(self, side: SideName) -> bytes | None:
        blob = self._blobs[SIDES.index(side)]
        return None if blob is None or self._read is None else self._read(blob)

    def __str__(self) -> str:
        base, ours, theirs = self._blobs
        if self.kind == "listing" or base == ours != theirs:
            # A stale read: this side did not change it.
            return f"{_place(self)} {self.reason or 'changed meanwhile'}"
        happened = "changed on both sides"
        if self.kind == "node":
            happened = "deleted or made anew on one side, changed on the other"
        what = f"{_place(self)} {happened}"
        return what if self.reason is None else f"{what}; {self.reason}"


def _place(conflict: Conflict) -> str:
    path = conflict.path or "/"
    match conflict.kind:
        case "chunk":
            region = "" if conflict.region is None else f" {format_region(conflict.region)}"
            return f"{path}: chunk {conflict.coordinates}{region}"
        case "document":
            return f"{path}: {conflict.document}"
        case "listing":
            return f"{path}: what lies below,"
    return f"{path}:"


def format_region(region: Region) -> str:
    """Spell a region as numpy would: ``[0:90, 10:20]``."""
    return "[" + ", ".join(f"{part.start}:{part.stop}" for part in region) + "]"


def list_conflicts(conflicts: Sequence[Conflict]) -> str:
    """Name the first few of some conflicts, for a message."""
    shown = "; ".join(map(str, conflicts[:_SHOWN_CONFLICTS]))
    more = len(conflicts) - _SHOWN_CONFLICTS
    return f"{shown}; and {more} more" if more > 0 else shown


# ── strategies ───────────────────────────────────────────────────────────────────────────────────

Resolution: TypeAlias = "SideName | bytes | Mapping[str, Any] | ArrayLike | None"
"""What a function gives for a conflict:

* ``"ours"``, ``"theirs"``, ``"base"``: whose value to take;
* values, for a chunk that was merged by element: they replace the box ``conflict.region``, and must
  broadcast to its shape and cast to the array's dtype without changing their kind;
* ``bytes`` to store, for a chunk, a document or a file; a document's are a JSON object;
* a mapping, for a document: it is encoded as zarr does;
* ``None``: leave the conflict open, as the strategy "fail" does.
"""
Strategy: TypeAlias = Literal["fail", "ours", "theirs"] | Callable[[Conflict], Resolution]
"""What to do with conflicts: a name for all of them, or a function that is asked about each.

The function is called once for each conflict, while the merge goes on; it may read the conflict,
and the repository, but must not write to either. What it raises ends the merge, and nothing is
written. It is asked again about a chunk as a whole, with a reason, if the codecs do not give back
the elements that it chose, or cannot encode them. And if another writer moves the branch meanwhile,
the merge begins anew, and so do the calls.
"""
STRATEGIES = ("fail", "ours", "theirs")


def check_strategy(strategy: object, what: str) -> None:
    """Refuse what is no strategy; ``what`` names the argument. Raises ``InvalidInputError``."""
    named = isinstance(strategy, str) and strategy in STRATEGIES
    if not named and not callable(strategy):
        raise InvalidInputError(
            f"{what} is {', '.join(STRATEGIES)} or a function of a conflict, not {strategy!r}"
        )


@final
class Resolver:
    """Asks a strategy about conflicts, and keeps those that it leaves open."""

    def __init__(self, strategy: Strategy, store: Store) -> None:
        self._strategy = strategy
        self._store = store
        self.open: list[Conflict] = []

    @property
    def favourite(self) -> Literal["ours", "theirs"] | None:
        """The side that wins every conflict; None where each is looked at."""
        match self._strategy:
            case "ours" | "theirs" as side:
                return side
        return None

    def ask(self, conflict: Conflict) -> Any:
        """Give what the strategy says to a conflict: a resolution, unchecked; None leaves it open.

        Raises what the function raises.
        """
        answer: Any = self.favourite
        if callable(self._strategy):
            answer = self._strategy(conflict)
        if answer is None:
            self.open.append(conflict)
        return answer

    def side(self, conflict: Conflict, sides: tuple[_T, _T, _T], why: str = "") -> _T:
        """Choose among base, ours and theirs; while the conflict is open, ours.

        Raises ``InvalidInputError`` if told anything but a name; ``why`` says why not.
        """
        answer = self.ask(conflict)
        if answer is None:
            answer = "ours"
        if not is_side(answer):
            raise refusal(conflict, answer, f"it is one of {', '.join(SIDES)}{why}")
        return sides[SIDES.index(answer)]

    def blob(self, conflict: Conflict, blobs: Blobs) -> Blob | None:
        """Choose the bytes of a document, file or whole chunk; ours while the conflict is open.

        Raises ``InvalidInputError`` if told what cannot be stored there. O(n) for new bytes.
        """
        answer = self.ask(conflict)
        return self.stored(conflict, "ours" if answer is None else answer, blobs)

    def stored(self, conflict: Conflict, answer: Any, blobs: Blobs) -> Blob | None:
        """Turn a resolution into bytes that are there, or store new ones; raises as ``blob``."""
        if is_side(answer):
            return blobs[SIDES.index(answer)]
        possible = [*SIDES, "bytes"]
        if conflict.kind == "document":
            possible.append("a mapping")
            if isinstance(answer, Mapping):
                answer = _encode(conflict, answer)
        if not isinstance(answer, (bytes, bytearray, memoryview)):
            why = f", since {conflict.reason}" if conflict.kind == "chunk" else ""
            raise refusal(conflict, answer, f"it is one of {', '.join(possible)}{why}")
        data = bytes(answer)
        if conflict.kind == "document" and not is_document(data):
            raise refusal(conflict, data, "a document is a JSON object, in UTF-8")
        if len(data) > MAX_CHUNK_BYTES:
            raise refusal(conflict, data, f"a value has at most {MAX_CHUNK_BYTES} bytes")
        return self._store.write(data)


def is_side(answer: object) -> TypeGuard[SideName]:
    """Whether a resolution names a side."""
    return isinstance(answer, str) and answer in SIDES


def refusal(conflict: Conflict, answer: object, why: str) -> InvalidInputError:
    """Make the error for a resolution that cannot be taken."""
    if hasattr(answer, "shape") and hasattr(answer, "dtype"):
        given = f"values of shape {answer.shape} and dtype {answer.dtype}"
    else:
        given = reprlib.repr(answer)
    return InvalidInputError(f"{_place(conflict)} cannot be resolved with {given}: {why}")


def _encode(conflict: Conflict, document: Mapping[str, Any]) -> bytes:
    try:
        return encode_document(document)
    except (TypeError, ValueError, RecursionError) as error:
        raise refusal(conflict, document, f"it is not JSON: {error}") from error
