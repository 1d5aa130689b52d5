"""Changes to valid records, as a fuzzer makes them: small, and where they hurt."""

from __future__ import annotations

import random

_INTERESTING = (
    b"\x00",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\xc0",
    b"\xc1",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\x7f\xff\xff\xff",
    b"\xc9\x00\x00\x00\x01\x05",
    b"\xd6\xff\x00\x00\x00\x00",
    b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + b"\x00" * 7,
    b"\xcb\x7f\xf8" + b"\x00" * 6,
    b"\x91" * 40,
    b"[" * 200,
    b'"\\"' * 20,
    b"9" * 5000,
    b"1e999",
    b"-1",
    b"\xed\xa0\x80",
)


def mutate(data: bytes, seeds: tuple[bytes, ...], chance: random.Random) -> bytes:
    """Change some bytes a few times."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        at = chance.randrange(len(changed) + 1)
        match chance.randrange(8):
            case 0 if at < len(changed):
                changed[at] ^= 1 << chance.randrange(8)
            case 1 if at < len(changed):
                changed[at] = chance.randrange(256)
            case 2:
                changed[at:at] = chance.choice(_INTERESTING)
            case 3:
                piece = chance.choice(_INTERESTING)
                changed[at : at + len(piece)] = piece
            case 4:
                del changed[at : at + chance.choice((1, 2, 4, 30))]
            case 5:
                changed[at:at] = changed[chance.randrange(len(changed) + 1) :][:40]
            case 6:
                other = chance.choice(seeds)
                changed[at:] = other[chance.randrange(len(other) + 1) :]
            case _:
                changed[at:at] = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 6)))
    return bytes(changed)
