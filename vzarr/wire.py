"""What two repositories say to each other: messages in frames, on a pair of byte streams.

``docs/sync.md`` is the normative description. A frame is a length and a MessagePack array that
begins with the name of its message. Nothing that comes in is believed: lengths are bounded before
memory is asked for, and a message whose fields are not what its name demands is a
``TransferError``, like a stream that ends too soon.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, Protocol, final

import msgpack

from vzarr import errors
from vzarr.errors import InvalidInputError, TransferError, VzarrError
from vzarr.format import DIGEST_BYTES, SESSION_ID_BYTES
from vzarr.printable import printable

GREETING = b"vzarr-1\n"
"""What each side says first. Another protocol will say something else."""
MAX_FRAME_BYTES = 8 << 20
PART_BYTES = 4 << 20
"""Bytes of objects in one frame; a larger object comes in several."""
MAX_DIGESTS = 400
"""So many objects are asked for at once: the request fits into the buffer of any pipe."""
MAX_NAMES = 1000
"""So many refs are in one message."""
MAX_STOPS = 200
"""So many commits are named that the other side need not look behind."""
_MAX_TEXT = 1 << 16
_LENGTH = struct.Struct(">I")
_SHOWN = 60
# What is no longer cannot claim enough of lists in lists to fill the memory.
_SMALL_BYTES = 4096

Message = list[Any]
_Check = Callable[[Any], bool]


# ── messages ─────────────────────────────────────────────────────────────────────────────────────


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT


def _is_digest(value: Any) -> bool:
    return isinstance(value, bytes) and len(value) == DIGEST_BYTES


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool)


def _is_bytes(value: Any) -> bool:
    return isinstance(value, bytes)


def _is_id(value: Any) -> bool:
    return isinstance(value, bytes) and len(value) == SESSION_ID_BYTES


def _or_nil(check: _Check) -> _Check:
    return lambda value: value is None or check(value)


def _list_of(check: _Check, most: int) -> _Check:
    return lambda value: (
        isinstance(value, list) and len(value) <= most and all(check(item) for item in value)
    )


def _row_of(*checks: _Check) -> _Check:
    return lambda value: (
        isinstance(value, list)
        and len(value) == len(checks)
        and all(check(item) for check, item in zip(checks, value, strict=True))
    )


_REF = _row_of(lambda kind: kind in ("branch", "tag"), _is_text, _is_bytes)
_HOWS = ("created", "fast-forward", "forced", "up to date", "kept")
_MOVED = _row_of(
    lambda kind: kind in ("branch", "tag"),
    _is_text,
    _or_nil(_is_digest),
    _is_digest,
    lambda how: how in _HOWS,
)

FIELDS: dict[str, tuple[_Check, ...]] = {
    # version of the format; id of the repository, nil for one that is still to be made
    "hello": (_is_number, _or_nil(_is_id)),
    # version of the format, id, whether it can be pushed to
    "welcome": (_is_number, _is_id, _is_truth),
    "refs?": (),
    # kind, name and record of each; whether more follow
    "refs": (_list_of(_REF, MAX_NAMES), _is_truth),
    # reachable from which, but not beyond which, how many
    "commits?": (_list_of(_is_digest, MAX_DIGESTS), _list_of(_is_digest, MAX_STOPS), _is_number),
    # their records, each after a child of it; whether more follow
    "commits": (_list_of(_is_bytes, 1 << 16), _is_truth),
    "absent?": (),
    # digests of what is known to be missing there; whether more follow
    "absent": (_list_of(_is_digest, 1 << 16), _is_truth),
    "nodes?": (_list_of(_is_digest, MAX_DIGESTS),),
    "chunks?": (_list_of(_is_digest, MAX_DIGESTS),),
    # the next ones that were asked for; nil for one that is not there
    "objects": (_list_of(_or_nil(_is_bytes), MAX_DIGESTS),),
    # length of the next one, and a part of it
    "part": (_is_number, _is_bytes),
    # kind, name and record of what is to be there; whether commits may be dropped for it
    "push": (_list_of(_REF, MAX_NAMES), _is_truth),
    # kind, name, commit before, commit now, and how; commits, nodes, chunks and bytes that came
    "pushed": (
        _list_of(_MOVED, MAX_NAMES),
        _is_number,
        _is_number,
        _is_number,
        _is_number,
    ),
    # class, text, and the name that it is about
    "error": (_is_text, _is_text, _is_text),
    "bye": (),
    # The contents of a bundle, which is a file: version of the format, id, refs, commits that are
    # needed, those that are in it, children first, and what is left out.
    "bundle": (
        _is_number,
        _is_id,
        _list_of(_REF, 1 << 20),
        _list_of(_is_digest, 1 << 24),
        _list_of(_is_digest, 1 << 24),
        _list_of(_is_digest, 1 << 24),
    ),
}
"""The fields of each message."""


def encode_message(message: Message) -> bytes:
    """Encode a message, without its length."""
    name, *fields = message
    checks = FIELDS[name]
    assert len(fields) == len(checks), f"wrong number of fields: {name}"
    assert all(check(field) for check, field in zip(checks, fields, strict=True)), name
    packed: bytes = msgpack.packb(message, use_bin_type=True)
    return packed


def decode_message(data: bytes) -> Message:
    """Decode a message: the name, and fields as it demands them. Raises ``TransferError``. O(n)."""
    try:
        if len(data) > _SMALL_BYTES:
            # Lists are made as long as they claim to be before their items are read. In what can
            # be skipped over, they claim no more than there is.
            unpacker = msgpack.Unpacker(max_buffer_size=0)
            unpacker.feed(data)
            unpacker.skip()
        message = msgpack.unpackb(data, raw=False, use_list=True, max_map_len=0, max_ext_len=0)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise _nonsense(f"a frame is no message ({error or type(error).__name__})") from error
    if not isinstance(message, list) or not message or not isinstance(message[0], str):
        raise _nonsense("a frame is no message")
    name, *fields = message
    checks = FIELDS.get(name)
    if checks is None:
        raise _nonsense(f"a message {printable(name[:_SHOWN])!r} is not known")
    if len(fields) != len(checks) or not all(map(_passes, checks, fields)):
        raise _nonsense(f"the fields of a message {name!r} are not what they should be")
    return message


def _passes(check: _Check, field: Any) -> bool:
    return check(field)


def _nonsense(what: str) -> TransferError:
    return TransferError(
        f"the other side makes no sense: {what}. Nothing was moved; see that it runs vzarr, of a "
        "release like this one"
    )


# ── a pair of streams ────────────────────────────────────────────────────────────────────────────


@final
class Channel:
    """Messages to and from another process, or thread. Used by one thread."""

    def __init__(self, reader: BinaryIO, writer: BinaryIO, other: str) -> None:
        """``other`` is whom one talks to, for the words of errors."""
        self._reader = reader
        self._writer = writer
        self.other = other
        self.sent_bytes = 0
        self.received_bytes = 0

    def greet(self) -> None:
        """Say which protocol this is, and make sure that the other side says the same."""
        # Somebody who does not stay to listen may have said why.
        with contextlib.suppress(TransferError):
            self._write(GREETING)
            self.flush()
        heard = self._read(len(GREETING), "it said nothing: is there a vzarr?")
        if heard != GREETING:
            said = printable(heard.decode(errors="replace"))
            raise TransferError(
                f"{self.other} does not speak the protocol of this release: it began with "
                f"{said!r}. See that `vzarr --version` works there, prints the same as here, and "
                "that nothing else is printed at the start of a session"
            )

    def send(self, name: str, *fields: Any) -> None:
        """Send a message; it may wait in a buffer until ``flush``, or the next ``receive``.

        Raises ``TransferError``, and ``InvalidInputError`` for one that is too long.
        """
        data = encode_message([name, *fields])
        if len(data) > MAX_FRAME_BYTES:
            raise InvalidInputError(
                f"a message {name!r} of {len(data):,} bytes cannot be sent; a commit or a tag has "
                f"a message, or metadata, of more than {PART_BYTES:,} bytes"
            )
        self._write(_LENGTH.pack(len(data)))
        self._write(data)

    def receive(self, *names: str) -> Message:
        """Wait for the next message, which must be one of these; give it.

        Raises ``TransferError``, and what the other side says has stopped it.
        """
        self.flush()
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size, "it ended in the middle"))
        if not 0 < length <= MAX_FRAME_BYTES:
            raise _nonsense(f"a frame of {length:,} bytes")
        message = decode_message(self._read(length, "it ended in the middle"))
        if message[0] == "error":
            raise _their_error(self.other, *message[1:])
        if message[0] not in names:
            raise _nonsense(f"a message {message[0]!r} where {' or '.join(names)} should come")
        return message

    def flush(self) -> None:
        """Send what waits in the buffer."""
        try:
            self._writer.flush()
        except (OSError, ValueError) as error:
            raise self._lost(str(error)) from error

    def close(self) -> None:
        """Close both streams. Nobody is told why."""
        for stream in (self._writer, self._reader):
            try:
                stream.close()
            except OSError:
                # What was not sent yet: the other side is gone.
                continue

    def _write(self, data: bytes) -> None:
        try:
            self._writer.write(data)
        except (OSError, ValueError) as error:
            raise self._lost(str(error)) from error
        self.sent_bytes += len(data)

    def _read(self, length: int, why: str) -> bytes:
        try:
            data = self._reader.read(length)
        except (OSError, ValueError) as error:
            raise self._lost(str(error)) from error
        self.received_bytes += len(data)
        if len(data) < length:
            raise self._lost(why)
        return data

    def _lost(self, why: str) -> TransferError:
        return TransferError(
            f"the connection to {self.other} was lost: {why}. Nothing was moved; do it again, and "
            "what has arrived by now is not sent again"
        )


# ── errors ───────────────────────────────────────────────────────────────────────────────────────


def send_error(channel: Channel, error: VzarrError) -> None:
    """Tell the other side what has stopped this one."""
    name = getattr(error, "name", "") or getattr(error, "branch", "") or ""
    channel.send("error", type(error).__name__, _fit(str(error)), _fit(str(name)))
    channel.flush()


def _fit(text: str) -> str:
    """Make text such that it can be encoded and is not too long."""
    return text[: _MAX_TEXT // 2].encode(errors="replace").decode()


def _their_error(other: str, kind: str, text: str, name: str) -> VzarrError:
    """Make the other side's error ours, if it is one of those that we know."""
    text = f"{other}: {text}"
    made = getattr(errors, kind, None) if kind in errors.__all__ else None
    if not isinstance(made, type) or not issubclass(made, VzarrError):
        return TransferError(text)
    if issubclass(made, errors.NotFastForwardError):
        return made(text, branch=name)
    if issubclass(made, errors.NotFoundError | errors.AlreadyExistsError):
        return made(text, name=name)
    return made(text)


# ── objects in messages ──────────────────────────────────────────────────────────────────────────


class Pieces(Protocol):
    """Where the objects come from that are sent: None for one that is not there."""

    def __call__(self, digest: bytes) -> bytes | memoryview | None:
        """Give an object."""
        ...


def send_objects(channel: Channel, digests: Sequence[bytes], get: Pieces) -> None:
    """Answer a request for objects: all of them, in the order of the request."""
    waiting: list[bytes | None] = []
    nbytes = 0
    for digest in digests:
        data = get(digest)
        length = 0 if data is None else len(data)
        if waiting and nbytes + length > PART_BYTES:
            channel.send("objects", waiting)
            waiting, nbytes = [], 0
        if data is not None and length > PART_BYTES:
            for start in range(0, length, PART_BYTES):
                channel.send("part", length, bytes(data[start : start + PART_BYTES]))
        else:
            waiting.append(None if data is None else bytes(data))
            nbytes += length
    if waiting:
        channel.send("objects", waiting)


def receive_objects(channel: Channel, lengths: Sequence[int]) -> list[bytes | None]:
    """Receive the answer to such a request, of objects that have at most these lengths.

    Raises ``TransferError`` for more than was asked for, in number or in length.
    """
    found: list[bytes | None] = []
    while len(found) < len(lengths):
        name, *fields = channel.receive("objects", "part")
        if name == "objects":
            (items,) = fields
            most = lengths[len(found) : len(found) + len(items)]
            if not items or len(items) > len(lengths) - len(found):
                raise _nonsense("it sends another number of objects than was asked for")
            if any(item is not None and len(item) > n for item, n in zip(items, most, strict=True)):
                raise _nonsense("it sends an object that is longer than it can be")
            found += items
        else:
            found.append(_parts(channel, lengths[len(found)], *fields))
    return found


def _parts(channel: Channel, most: int, total: int, first: bytes) -> bytes:
    if total > most:
        raise _nonsense("it sends an object that is longer than it can be")
    parts, nbytes = [first], len(first)
    while nbytes < total and first:
        _, again, first = channel.receive("part")
        if again != total:
            raise _nonsense("the parts of an object do not agree")
        parts.append(first)
        nbytes += len(first)
    if nbytes != total:
        raise _nonsense("the parts of an object are not as long as it")
    return b"".join(parts)
