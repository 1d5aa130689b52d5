"""The ways in which the sample is damaged: functions of its bytes."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

PAGE = 4096

Edit = Callable[[bytearray], None]


@dataclass(frozen=True, slots=True)
class Case:
    """One way to damage the sample: the kind that it counts as, and what it does."""

    kind: str
    name: str
    edit: Edit


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Where things are in the sample."""

    tree_pages: list[int]
    """Numbers of branch and leaf pages in use, those of LMDB's own trees too."""
    structure: list[int]
    """Offsets of the bytes that LMDB itself reads: meta pages, headers, offsets, records, lists."""
    pages: int


def anatomy(data: bytes) -> Anatomy:
    """Find the pages of all trees, from the newest meta page down."""
    metas = [number * PAGE + 16 for number in (0, 1)]
    newest = max(metas, key=lambda at: struct.unpack_from("=Q", data, at + 128)[0])
    structure = [at for meta in metas for at in range(meta - 16, meta + 136)]
    pages: list[int] = []
    waiting = [struct.unpack_from("=Q", data, newest + 24 + 48 * tree + 40)[0] for tree in (0, 1)]
    while waiting:
        number = waiting.pop()
        if number == 2**64 - 1:
            continue
        pages.append(number)
        at = number * PAGE
        flags, lower = struct.unpack_from("=HH", data, at + 10)
        structure += range(at, at + lower)
        for (slot,) in struct.iter_unpack("=H", data[at + 16 : at + lower]):
            node = at + slot
            low, high, kind, key_bytes = struct.unpack_from("=HHHH", data, node)
            structure += range(node, node + 8)
            value = node + 8 + key_bytes
            if flags & 1:
                waiting.append(low | high << 16 | kind << 32)
            elif kind & 1:
                structure += range(value, value + 8)
                page = struct.unpack_from("=Q", data, value)[0]
                structure += range(page * PAGE, page * PAGE + 16)
            elif kind & 2:
                structure += range(value, value + 48)
                waiting.append(struct.unpack_from("=Q", data, value + 40)[0])
            elif key_bytes == 8 and number == pages[0]:
                structure += range(node + 8, value + low)
    return Anatomy(sorted(pages), sorted(set(structure)), len(data) // PAGE)


# ── edits ────────────────────────────────────────────────────────────────────────────────────────


def _flip(offset: int, bit: int) -> Edit:
    def edit(data: bytearray) -> None:
        data[offset] ^= 1 << bit

    return edit


def _put(offset: int, new: bytes) -> Edit:
    def edit(data: bytearray) -> None:
        data[offset : offset + len(new)] = new

    return edit


def _cut(length: int) -> Edit:
    def edit(data: bytearray) -> None:
        del data[length:]

    return edit


def _copy(source: int, target: int) -> Edit:
    def edit(data: bytearray) -> None:
        page = data[source * PAGE : (source + 1) * PAGE]
        data[target * PAGE : (target + 1) * PAGE] = page

    return edit


def _swap(one: int, two: int) -> Edit:
    def edit(data: bytearray) -> None:
        first = data[one * PAGE : (one + 1) * PAGE]
        data[one * PAGE : (one + 1) * PAGE] = data[two * PAGE : (two + 1) * PAGE]
        data[two * PAGE : (two + 1) * PAGE] = first

    return edit


def _undoes_a_commit(data: bytes, offset: int, edit: Edit) -> bool:
    """Whether an edit gives the newest meta page the number that it had before.

    LMDB does so itself when it cannot flush the page: then the older state is the right answer.
    """
    numbers = [struct.unpack_from("=Q", data, number * PAGE + 144)[0] for number in (0, 1)]
    newest = numbers.index(max(numbers))
    if offset // PAGE != newest:
        return False
    changed = bytearray(data[: 2 * PAGE])
    edit(changed)
    found = struct.unpack_from("=Q", changed, newest * PAGE + 144)[0]
    return bool(found == numbers[newest] - 2)


# ── kinds ────────────────────────────────────────────────────────────────────────────────────────


def truncations(data: bytes) -> Iterator[Case]:
    """The file ends at each page, and at odd bytes."""
    dice = random.Random(1)
    lengths = list(range(0, len(data), PAGE))
    lengths += [1, 15, 16, 151, 152, PAGE + 151, PAGE + 152, len(data) - 1]
    lengths += [length + dice.randrange(1, PAGE) for length in lengths[:-8]]
    for length in lengths:
        yield Case("cut off", f"after {length} bytes", _cut(length))


def structure_flips(data: bytes) -> Iterator[Case]:
    """Each bit of what LMDB itself reads."""
    for offset in anatomy(data).structure:
        for bit in range(8):
            edit = _flip(offset, bit)
            if not _undoes_a_commit(data, offset, edit):
                yield Case("bit of LMDB's structure", f"{offset} bit {bit}", edit)


def metadata_flips(data: bytes) -> Iterator[Case]:
    """A bit of every other byte of the pages of all trees: keys, records, index nodes."""
    known = anatomy(data)
    structure = set(known.structure)
    for page in known.tree_pages:
        for offset in range(page * PAGE, (page + 1) * PAGE):
            if offset not in structure:
                bit = random.Random(offset).randrange(8)
                yield Case("bit of keys and records", f"{offset} bit {bit}", _flip(offset, bit))


def other_flips(data: bytes) -> Iterator[Case]:
    """Bits anywhere else: chunks, free pages."""
    known = anatomy(data)
    others = sorted(set(range(2, known.pages)) - set(known.tree_pages))
    dice = random.Random(2)
    for _ in range(2000):
        offset = dice.choice(others) * PAGE + dice.randrange(PAGE)
        bit = dice.randrange(8)
        yield Case("bit of chunks and free pages", f"{offset} bit {bit}", _flip(offset, bit))


def numbers(data: bytes) -> Iterator[Case]:
    """Two and eight bytes of LMDB's structure, with values that are wrong but plausible."""
    dice = random.Random(3)
    known = anatomy(data)
    for _ in range(6000):
        offset = dice.choice(known.structure) & ~1
        new = struct.pack(
            "=H",
            dice.choice([0, 1, 2, 8, 16, 18, 48, 4080, 4094, 4096, 0xFFFF, dice.randrange(PAGE)]),
        )
        if dice.random() < 0.3:
            offset &= ~7
            new = struct.pack("=Q", dice.choice([0, 1, 2, known.pages - 1, known.pages, 2**64 - 1]))
            if dice.random() < 0.5:
                new = struct.pack("=Q", dice.randrange(known.pages))
        edit = _put(offset, new)
        if not _undoes_a_commit(data, offset, edit):
            yield Case("number of LMDB's structure", f"{offset} = {new.hex()}", edit)


def swaps(data: bytes) -> Iterator[Case]:
    """Two pages have changed places."""
    known = anatomy(data)
    for one in known.tree_pages:
        for two in [0, 1, *known.tree_pages]:
            if one > two:
                yield Case("two pages swapped", f"{one} and {two}", _swap(one, two))
    dice = random.Random(4)
    for _ in range(300):
        one, two = dice.sample(range(known.pages), 2)
        yield Case("two pages swapped", f"{one} and {two}", _swap(one, two))


def fills(data: bytes) -> Iterator[Case]:
    """A page, or half of it, is zeros, ones, or noise."""
    dice = random.Random(5)
    for page in range(anatomy(data).pages):
        for name, new in (
            ("zeros", bytes(PAGE)),
            ("ones", b"\xff" * PAGE),
            ("noise", dice.randbytes(PAGE)),
        ):
            for start, length in ((0, PAGE), (0, PAGE // 2), (PAGE // 2, PAGE // 2)):
                edit = _put(page * PAGE + start, new[:length])
                yield Case(f"page of {name}", f"page {page} from {start}", edit)


def copies(data: bytes) -> Iterator[Case]:
    """A page lies where another should."""
    known = anatomy(data)
    for target in known.tree_pages:
        for source in range(known.pages):
            if source != target:
                edit = _copy(source, target)
                yield Case("page over another", f"{source} to {target}", edit)


Kind = Callable[[bytes], Iterator[Case]]
KINDS: tuple[Kind, ...] = (
    truncations,
    structure_flips,
    metadata_flips,
    other_flips,
    numbers,
    swaps,
    fills,
    copies,
)
