"""Pages of LMDB's: the way through a branch page, and the list of free pages."""

from __future__ import annotations

import random
import struct
import sys
from bisect import bisect_left, bisect_right
from pathlib import Path

import lmdb
import numpy as np
import pytest

from vzarr.pages import (
    Branch,
    Damage,
    find_child,
    free_numbers,
    read_branch,
    use_free_pages,
)

PAGE = 4096


@pytest.fixture(scope="module")
def branches(tmp_path_factory) -> list[tuple[bytes, int, Branch]]:
    """Branch pages as LMDB writes them, with keys of all lengths."""
    path = Path(tmp_path_factory.mktemp("pages")) / "data"
    dice = random.Random(0)
    with (
        lmdb.open(str(path), subdir=False, map_size=1 << 26) as handle,
        handle.begin(write=True) as txn,
    ):
        for _ in range(6000):
            txn.put(dice.randbytes(dice.choice([3, 8, 32, 32, 100])), bytes(60))
    data = path.read_bytes()
    found = []
    for number in range(2, len(data) // PAGE):
        page = data[number * PAGE : (number + 1) * PAGE]
        if struct.unpack_from("=Q2xH", page) == (number, 1):
            found.append((page, number, read_branch(page, number, 1 << 20)))
    assert len(found) > 3
    return found


def expected(branch: Branch, key: bytes | None, *, before: bool) -> tuple[int, bytes, bytes | None]:
    keys, children = branch
    find = bisect_left if before else bisect_right
    place = len(keys) if key is None else find(keys, key, 1)
    return children[place - 1], keys[place - 1], keys[place] if place < len(keys) else None


def test_the_way_is_the_one_that_the_whole_page_tells(branches):
    dice = random.Random(1)
    for page, number, branch in branches:
        wanted = [b"\0", b"\xff" * 40, *branch.keys[1:], *map(dice.randbytes, [1, 5, 32, 60])]
        for before in (False, True):
            assert find_child(page, number, None, before=True) == expected(
                branch, None, before=True
            )
            for key in wanted:
                found = find_child(page, number, key, before=before)
                assert found == expected(branch, key, before=before)


def test_a_page_that_has_become_another_one(branches):
    """It was whole when it was read first. What it is now is no reason for a foreign error."""
    dice = random.Random(2)
    refused = 0
    for page, number, branch in branches:
        with pytest.raises(Damage):
            find_child(page, number + 1, branch.keys[1], before=False)
        for _ in range(300):
            broken = bytearray(page)
            for _ in range(dice.choice([1, 3, 200])):
                broken[dice.randrange(10, dice.choice([40, PAGE]))] = dice.randrange(256)
            try:
                find_child(bytes(broken), number, dice.choice(branch.keys[1:]), before=False)
            except Damage:
                refused += 1
    assert refused > 100


# ── free pages ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["numpy", "without"])
def arithmetic(request, monkeypatch):
    """Both ways to look at a record."""
    if request.param == "without":
        monkeypatch.setitem(sys.modules, "numpy", None)
    else:
        assert sys.modules["numpy"] is np


def record(*numbers: int, count: int | None = None) -> bytes:
    return struct.pack(f"={1 + len(numbers)}Q", len(numbers) if count is None else count, *numbers)


@pytest.mark.usefixtures("arithmetic")
def test_free_pages_are_noted():
    used = bytearray(100)
    used[:2] = b"\1\1"
    use_free_pages(used, record(99, 50, 7, 2), 99)
    use_free_pages(used, record(), 99)
    use_free_pages(used, record(98), 99)
    assert [number for number in range(100) if used[number]] == [0, 1, 2, 7, 50, 98, 99]


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cut"),
        (record(5, 4)[:-3], "cut"),
        (record(5, 4)[:-8], "another length"),
        (record(5, 4, count=3), "another length"),
        (record(100, 4), "beyond"),
        (record(5, 1), "beyond"),
        (record(4, 5, 3), "order"),
        (record(5, 5), "order"),
        (record(50, 2**63, 4), "order"),
        (record(7, 3), "in use and free, or free twice"),
    ],
)
def test_a_damaged_record_of_free_pages(data, reason):
    used = bytearray(100)
    used[7] = 1
    before = bytes(used)
    with pytest.raises(Damage, match=reason):
        use_free_pages(used, data, 99)
    assert used == before


def test_whether_a_page_is_free_can_be_looked_up():
    dice = random.Random(3)
    listed = sorted(dice.sample(range(2, 1000), 300))
    numbers = free_numbers(record(*reversed(listed)))
    assert list(numbers) == listed
    for number in range(1000):
        place = bisect_left(numbers, number)
        assert (place < len(numbers) and numbers[place] == number) == (number in listed)
    assert len(free_numbers(record(5)[:-1])) == 0
    assert len(free_numbers(b"")) == 0


def test_the_list_of_a_big_file_is_read_the_same_way_twice():
    """What numpy finds is what is found without it, for as many pages as a file may have."""
    dice = random.Random(4)
    listed = sorted(dice.sample(range(2, 100_000), 30_000), reverse=True)
    marks = []
    for numpy in (sys.modules["numpy"], None):
        used = bytearray(100_000)
        with pytest.MonkeyPatch.context() as patch:
            if numpy is None:
                patch.delitem(sys.modules, "numpy")
            use_free_pages(used, record(*listed), 99_999)
        marks.append(used)
    assert marks[0] == marks[1]
    assert marks[0].count(1) == len(listed)
