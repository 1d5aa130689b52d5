"""The guard lets LMDB go where pages are sound, and nowhere else."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.processes import Other
from vzarr import guard as guards
from vzarr.datafile import DATABASES
from vzarr.environment import Environment, Txn
from vzarr.errors import CorruptError
from vzarr.guard import Guard, Table
from vzarr.pages import Branch, read_branch

PAGE = 4096
COUNT = 2000


def key(number: int) -> bytes:
    return b"%08d" % number


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with a tree of three levels, some values with pages of their own, and free pages."""
    path = tmp_path / "test"

    def fill(txn: Txn) -> None:
        for number in range(COUNT):
            txn.put("chunks", key(number), bytes([number % 251]) * 500)
        for number in range(20):
            txn.put("nodes", key(number), bytes(5000))

    Environment.create(str(path), fill).close()
    environment = Environment.open(str(path), writable=True)
    with environment.write() as txn:
        for number in range(0, 20, 3):
            txn.delete("nodes", key(number))
    with environment.write() as txn:
        txn.put("commits", b"key", b"value")
    environment.close()
    return path


@pytest.fixture
def opened(file: Path) -> Iterator[Callable[[], Environment]]:
    """Opens the file; closed at the end."""
    environments: list[Environment] = []

    def open_it(*, writable: bool = True) -> Environment:
        environments.append(Environment.open(str(file), writable=writable))
        return environments[-1]

    yield open_it
    for environment in environments:
        environment.close()


def edit(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def page_of(path: Path, wanted: bytes, flags: int = 2) -> int:
    """Find the page in use on which a key is; flags 2 is a leaf, 1 a branch."""
    state = state_of(path)
    waiting = [tree.root for tree in state.trees.values() if tree.entries]
    data = path.read_bytes()
    while waiting:
        number = waiting.pop()
        page = data[number * PAGE : (number + 1) * PAGE]
        own_flags, lower = struct.unpack_from("=HH", page, 10)
        for (at,) in struct.iter_unpack("=H", page[16:lower]):
            low, high, child, size = struct.unpack_from("=HHHH", page, at)
            if own_flags == 1:
                waiting.append(low | high << 16 | child << 32)
            if own_flags == flags and page[at + 8 : at + 8 + size] == wanted:
                return number
    raise AssertionError("no such key")


def with_guard(path: Path, look: Callable[[Guard], Any]) -> Any:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return look(Guard(str(path), descriptor, DATABASES))
    finally:
        os.close(descriptor)


def state_of(path: Path) -> Any:
    def look(guard: Guard) -> Any:
        guard.require_roots()
        return guard._state

    return with_guard(path, look)


# ── ranges ───────────────────────────────────────────────────────────────────────────────────────

KEYS = st.binary(max_size=2)


@given(st.lists(st.tuples(KEYS, st.none() | KEYS)), st.lists(KEYS, min_size=1))
def test_ranges_are_what_was_added(ranges, keys):
    table = Table("chunks", None)
    table.sound = []
    kept = [(low, high) for low, high in ranges if high is None or low < high]
    for low, high in kept:
        table.add(low, high)
    assert table.sound == sorted(set(table.sound))
    for each in keys:
        inside = any(low <= each and (high is None or each < high) for low, high in kept)
        assert table.covers(each) == inside
        before = any(low < each and (high is None or each <= high) for low, high in kept)
        assert table.covers_before(each) == before
    assert table.covers_before(None) == any(high is None for _, high in kept)


def test_ranges_that_meet_become_one():
    table = Table("chunks", None)
    table.sound = []
    table.add(b"m", None)
    table.add(b"", b"c")
    assert table.sound == [b"", b"c", b"m"]
    table.add(b"c", b"m")
    assert table.sound == [b""]


RANGES = st.tuples(st.integers(0, 9), st.integers(1, 10)).filter(lambda pair: pair[0] < pair[1])


@given(st.lists(RANGES), RANGES)
def test_a_branch_page_is_known_if_all_of_its_range_is(ranges, wanted):
    def border(number: int) -> bytes | None:
        return None if number == 10 else bytes(number)

    table = Table("chunks", None)
    known: set[int] = set()
    for low, high in ranges:
        table.add_branch(1, bytes(low), border(high))
        known |= set(range(low, high))
    low, high = wanted
    assert table.covers_branch(1, bytes(low), border(high)) == (known >= set(range(low, high)))
    assert not table.covers_branch(2, b"", None)


# ── what is sound ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(20 if "VZARR_TORTURE" in os.environ else 3))
def test_all_that_lmdb_writes_is_sound(tmp_path, seed):
    """LMDB splits, joins and moves pages in many ways; none of them must look like damage."""
    dice = random.Random(seed)
    path = tmp_path / "test"
    Environment.create(str(path), lambda _: None).close()
    with lmdb.open(str(path), subdir=False, max_dbs=len(DATABASES), map_size=1 << 28) as handle:
        databases = [handle.open_db(name.encode()) for name in DATABASES]
        known: list[set[bytes]] = [set() for _ in DATABASES]
        for _ in range(25):
            with handle.begin(write=True) as txn:
                for _ in range(dice.choice([1, 10, 300])):
                    index = min(dice.randrange(len(DATABASES)), 3)
                    size = dice.choice([8, 8, 40, 300])
                    name = dice.randbytes(dice.randrange(1, size))
                    length = dice.choice([0, 1, 48, 70, 2000, 2040, 4080, 4081, 20000])
                    txn.put(name, dice.randbytes(length), db=databases[index])
                    known[index].add(name)
                for index, names in enumerate(known):
                    for name in dice.sample(sorted(names), len(names) * dice.randrange(9) // 10):
                        txn.delete(name, db=databases[index])
                        names.discard(name)
            with_guard(path, require_all)
    assert os.path.getsize(path) > 50 * PAGE


def require_all(guard: Guard) -> None:
    for name in DATABASES:
        Table(name, None, guard)
    guard.require_roots()
    guard.require_everything()
    for table in guard.tables:
        table.whole = False
        guard.require_table(table)
        assert table.whole


def test_what_another_process_writes_meanwhile_is_no_damage(file, opened):
    """The pages of one state are looked at while others become states and are used again."""
    environment = opened()
    other = Other(write_much, str(file))
    try:
        assert other.receive() == "writing"
        for number in range(40):
            with environment.read() as txn:
                guard = txn._tables["chunks"].guard
                for table in guard.tables:
                    table.sound = []
                    table.whole = False
                assert txn.get("chunks", key(number)) is not None
                assert len(list(txn.scan("chunks", start=key(number), keys_only=True))) > 900
        other.send("stop")
        assert other.result() > 1
    finally:
        if other.process is not None and not other.pipe.closed:
            other.kill()


def write_much(pipe: Connection, path: str) -> int:
    dice = random.Random(0)
    environment = Environment.open(path, writable=True)
    pipe.send("writing")
    commits = 0
    while not pipe.poll():
        with environment.write() as txn:
            for _ in range(50):
                number = dice.randrange(1000, COUNT)
                txn.delete("chunks", key(number))
                txn.put("chunks", key(dice.randrange(1000, COUNT)), dice.randbytes(500))
        commits += 1
    pipe.recv()
    environment.close()
    return commits


# ── what is not ──────────────────────────────────────────────────────────────────────────────────


def test_only_what_is_needed_is_looked_at(file, opened):
    edit(file, page_of(file, key(1000)) * PAGE, bytes(PAGE))
    environment = opened()
    with environment.read() as txn:
        assert txn.get("chunks", key(0)) == bytes(500)
        assert txn.contains("chunks", key(COUNT - 1))
        for look in (txn.get, txn.view, txn.contains):
            with pytest.raises(CorruptError, match=r"restore it from a backup, or .*recover"):
                look("chunks", key(1000))
        # Again, and without an end to it.
        with pytest.raises(CorruptError, match=str(file)):
            txn.get("chunks", key(1000))


def test_a_branch_page_is_read_in_whole_once(file, opened, monkeypatch):
    """Others are made of it by LMDB: their keys lead the way, and are not checked again."""
    read: list[int] = []

    def counting(page: bytes, number: int, last_page: int) -> Branch:
        read.append(number)
        return read_branch(page, number, last_page)

    monkeypatch.setattr(guards, "read_branch", counting)
    environment = opened()
    tree = state_of(file).trees["chunks"]
    assert tree.depth == 3
    for number in range(0, COUNT, 7):
        with environment.write() as txn:
            txn.put("chunks", key(number) + b"x", b"new")
    for number in range(COUNT):
        with environment.read() as txn:
            assert txn.contains("chunks", key(number))
    assert len(read) <= tree.branch_pages


def test_a_branch_page_that_nobody_came_to_is_not_trusted(file, opened):
    last = page_of(file, key(COUNT - 1))
    data = file.read_bytes()
    branch = next(
        number
        for number in range(2, len(data) // PAGE)
        if struct.unpack_from("=Q2xH", data, number * PAGE) == (number, 1)
        and struct.pack("=Q", last)[:4] in data[number * PAGE : (number + 1) * PAGE]
        and last in children_of(data, number)
    )
    edit(file, branch * PAGE + PAGE - 30, b"\xff" * 20)
    environment = opened()
    with environment.write() as txn:
        # The root is known now, and another one is made of it.
        txn.put("chunks", key(1), b"new")
    with environment.read() as txn:
        assert txn.get("chunks", key(1)) == b"new"
        with pytest.raises(CorruptError):
            txn.get("chunks", key(COUNT - 1))


def children_of(data: bytes, number: int) -> list[int]:
    return read_branch(data[number * PAGE : (number + 1) * PAGE], number, 1 << 20).children


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_comes_up_to_the_damage(file, opened, reverse):
    edit(file, page_of(file, key(1000)) * PAGE, bytes(PAGE))
    found = []
    with opened().read() as txn, pytest.raises(CorruptError):
        for name, _ in txn.scan("chunks", reverse=reverse):
            found.append(name)
    assert 900 < len(found) < 1100
    assert found == sorted(found, reverse=reverse)


@pytest.mark.parametrize(
    ("prefix", "start", "reverse"),
    [(b"000009", b"", True), (b"", b"00000990", False), (b"", b"00001010", True)],
)
def test_a_scan_looks_ahead(file, opened, prefix, start, reverse):
    """LMDB steps on a page and reads it in one call, so that it must be known before."""
    bad = page_of(file, key(1000))
    edit(file, bad * PAGE, bytes(PAGE))
    with opened().read() as txn, pytest.raises(CorruptError):
        list(txn.scan("chunks", prefix=prefix, start=start, reverse=reverse))


def test_a_put_looks_at_its_way(file, opened):
    edit(file, page_of(file, key(1000)) * PAGE, bytes(PAGE))
    environment = opened()
    with environment.write() as txn:
        assert txn.put("chunks", key(1) + b"x", b"new", overwrite=False)
    with pytest.raises(CorruptError), environment.write() as txn:
        txn.put("chunks", key(1000) + b"x", b"new", overwrite=False)


def test_a_txn_that_met_damage_is_not_committed(file, opened):
    edit(file, page_of(file, key(1000)) * PAGE, bytes(PAGE))
    environment = opened()
    with pytest.raises(CorruptError), environment.write() as txn:
        txn.put("tags", b"name", b"value")
        with pytest.raises(CorruptError):
            txn.get("chunks", key(1000))
    with environment.read() as txn:
        assert txn.get("tags", b"name") is None


def test_a_delete_looks_at_the_whole_database(file, opened):
    """LMDB joins pages with their neighbours."""
    edit(file, page_of(file, key(1000)) * PAGE, bytes(PAGE))
    environment = opened()
    with pytest.raises(CorruptError), environment.write() as txn:
        txn.delete("chunks", key(1))
    with environment.write() as txn:
        assert txn.delete("commits", b"key")


def test_a_delete_looks_at_the_pages_that_it_would_free(file, opened):
    page = page_of(file, key(1))
    data = file.read_bytes()
    page = next(
        number
        for number in range(2, len(data) // PAGE)
        if struct.unpack_from("=Q2xHI", data, number * PAGE) == (number, 4, 2)
        and number in used_values(file)
    )
    edit(file, page * PAGE + 12, struct.pack("=I", 3))
    environment = opened()
    with environment.read() as txn:
        assert txn.get("nodes", key(1)) == bytes(5000)
    for change in (
        lambda txn: txn.delete("nodes", key(1)),
        lambda txn: txn.put("nodes", key(1), b"new"),
    ):
        with pytest.raises(CorruptError, match="used twice"), environment.write() as txn:
            change(txn)


def used_values(path: Path) -> set[int]:
    """List the first pages of the large values in ``nodes``."""
    state = state_of(path)

    def look(guard: Guard) -> set[int]:
        guard.require_roots()
        found = set()
        table = Table("nodes", None, guard)
        waiting = [(state.trees["nodes"].root, state.trees["nodes"].depth)]
        while waiting:
            number, height = waiting.pop()
            if height > 1:
                children = guard._read_branch(state.meta, number).children
                waiting += [(child, height - 1) for child in children]
            else:
                values = guard._read_leaf(state.meta, number, b"", None).values
                found |= {value.first for value in values}
        assert table.guard is guard
        return found

    return with_guard(path, look)


def test_a_damaged_list_of_free_pages_keeps_writers_out(file, opened):
    free = state_of(file).meta.free
    assert free.entries
    page = free.root * PAGE
    (slot,) = struct.unpack_from("=H", file.read_bytes(), page + 16)
    # The first of the free pages is said to be one that is in use.
    edit(file, page + slot + 8 + 8 + 8, struct.pack("=Q", state_of(file).trees["chunks"].root))
    environment = opened()
    with environment.read() as txn:
        assert txn.get("chunks", key(7)) is not None
    with pytest.raises(CorruptError, match="free"), environment.write():
        raise AssertionError("it was let in")
    # It has let go of the gate.
    with pytest.raises(CorruptError), environment.write(timeout=0):
        raise AssertionError("it was let in")


def test_in_a_big_file_the_list_of_free_pages_must_be_complete(file, opened, monkeypatch):
    monkeypatch.setattr(guards, "_SMALL_PAGES", 1)
    meta = state_of(file).meta
    # A leaf less in the count of a database.
    at = meta.main.root * PAGE
    data = file.read_bytes()
    where = data.index(b"chunks", at) + len(b"chunks") + 16
    (leaves,) = struct.unpack_from("=Q", data, where)
    edit(file, where, struct.pack("=Q", leaves - 1))
    with pytest.raises(CorruptError, match="not all of its pages"), opened().write():
        raise AssertionError("it was let in")


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (0, b"\7"),  # its page number
        (10, b"\x18"),  # its flags
        (16 + 24 + 4, b"\x09"),  # LMDB would map the file where it is told to
        (16 + 128, b"\xff"),  # the number of the commit
        (16 + 128 + 4, b"\1"),
    ],
)
def test_meta_pages_must_be_as_lmdb_writes_them(file, opened, number, offset, data):
    newest = state_of(file).meta.txn_id % 2
    if offset == 44 and number != newest:
        pytest.skip("what the older one says is not used")
    edit(file, number * PAGE + offset, data)
    with pytest.raises(CorruptError):
        opened()


def test_an_old_state_does_not_come_back(file, opened):
    """LMDB would take the older meta page if it seemed to be the newer one."""
    meta = state_of(file).meta
    edit(file, (meta.txn_id + 1) % 2 * PAGE + 16 + 128, struct.pack("=Q", meta.txn_id + 1))
    with pytest.raises(CorruptError, match="of commit"):
        opened()


def test_the_newest_state_may_become_the_older_one(file, opened):
    """LMDB undoes so a commit whose meta page it could not flush: no damage, by all one can see."""
    meta = state_of(file).meta
    edit(file, meta.txn_id % 2 * PAGE + 16 + 128, struct.pack("=Q", meta.txn_id - 2))
    environment = opened()
    assert environment.last_txn_id() == meta.txn_id - 1
    with environment.read() as txn:
        assert txn.get("commits", b"key") is None
    with environment.write() as txn:
        txn.put("commits", b"key", b"again")


def test_the_pages_of_the_older_state_may_be_used_again(file, opened):
    """So it is after a power cut, if the newest meta page was not flushed."""
    older = (state_of(file).meta.txn_id + 1) % 2
    root = struct.unpack_from("=Q", file.read_bytes(), older * PAGE + 16 + 24 + 40)[0]
    for garbage in (bytes(PAGE), os.urandom(PAGE)):
        edit(file, root * PAGE, garbage)
        with opened(writable=False).read() as txn:
            assert txn.get("chunks", key(7)) == bytes([7]) * 500
    edit(file, older * PAGE + 16 + 24 + 40, struct.pack("=Q", 2**62))
    with opened(writable=False).read() as txn:
        assert txn.get("chunks", key(7)) == bytes([7]) * 500


def test_a_file_that_is_cut_off_while_it_is_open(file, opened):
    """To read what is gone would kill the process."""
    environment = opened()
    with environment.read() as txn:
        assert txn.get("chunks", key(1500)) is not None
    os.truncate(file, file.stat().st_size // 2)
    for begin in (environment.read, environment.write):
        with pytest.raises(CorruptError, match="cut off"), begin():
            raise AssertionError("it was let in")


def test_counts_are_compared_where_it_costs_little(file, opened):
    data = file.read_bytes()
    at = state_of(file).meta.main.root * PAGE
    where = data.index(b"nodes", at) + len(b"nodes") + 32
    (entries,) = struct.unpack_from("=Q", data, where)
    edit(file, where, struct.pack("=Q", entries + 1))
    with opened().read() as txn, pytest.raises(CorruptError, match="nodes"):
        txn.count("nodes")


def test_no_look_after_the_end_of_the_txn(file, opened):
    """Pages are sure to stay only while a txn needs them."""
    with opened().read() as txn:
        pass
    with pytest.raises(Exception, match="this txn is over"):
        txn.get("chunks", key(3))


def test_where_a_scan_has_been_nothing_is_read_again(file, opened, monkeypatch):
    """Not even the list of free pages, which grows with each commit: each asks for the last key."""
    environment = opened()
    with environment.write() as txn:
        for number in range(COUNT):
            txn.put("reflog", b"main" + key(number), bytes(50))
    environment.close()
    environment = opened()
    reads = 0
    read = Guard._read_page

    def counting(self: Guard, *arguments: Any) -> bytes:
        nonlocal reads
        reads += 1
        return read(self, *arguments)

    monkeypatch.setattr(Guard, "_read_page", counting)
    for number in range(COUNT, COUNT + 200):
        with environment.write() as txn:
            assert txn.last_key("reflog", b"main") == b"main" + key(number - 1)
            txn.put("reflog", b"main" + key(number), bytes(50))
        if number == COUNT:
            assert reads > 0
            reads = 0
    assert reads == 0
    with environment.read() as txn:
        first = [name for name, _ in txn.scan("reflog")]
        assert reads > 0
        reads = 0
        assert [name for name, _ in txn.scan("reflog", reverse=True)] == first[::-1]
    assert reads == 0


@pytest.fixture
def reads(monkeypatch) -> list[int]:
    """The numbers of the pages that the guard reads."""
    found: list[int] = []
    read = Guard._read_page

    def noting(self: Guard, meta: Any, number: int) -> bytes:
        found.append(number)
        return read(self, meta, number)

    monkeypatch.setattr(Guard, "_read_page", noting)
    return found


def test_branch_pages_are_read_once_a_commit(opened, reads):
    environment = opened()
    with environment.read() as txn:
        for number in range(0, COUNT, 100):
            txn.get("chunks", key(number))
    with environment.write() as txn:
        txn.put("meta", b"other", b"value")
    reads.clear()
    with environment.read() as txn:
        for number in range(COUNT):
            assert txn.get("chunks", key(number)) is not None
    # Each leaf once, and the few pages above them.
    assert len(reads) == len(set(reads))


def test_others_may_look_meanwhile(opened, monkeypatch):
    environment = opened()
    checks = []
    check = Guard._check

    def checking(self: Guard, look: Any) -> Any:
        checks.append(look)
        return check(self, look)

    monkeypatch.setattr(Guard, "_check", checking)
    with environment.read() as txn:
        txn.look_for("chunks", [key(number) for number in range(1000)])
    assert len(checks) > 10


@pytest.mark.parametrize("wanted", [999, COUNT - 1])
def test_the_last_key_is_not_looked_for_on_damaged_pages(file, opened, wanted):
    bad = page_of(file, key(wanted))
    edit(file, bad * PAGE, bytes(PAGE))
    prefix = key(wanted)[:-2] if wanted < COUNT - 1 else b"0"
    with opened().read() as txn, pytest.raises(CorruptError):
        txn.last_key("chunks", prefix)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("keys_only", [False, True])
@pytest.mark.parametrize("number", [0, 4])
def test_a_record_does_not_leave_a_scan_by_a_damaged_key(tmp_path, reverse, keys_only, number):
    """The first and the last of a prefix would seem to belong to another one."""

    def fill(txn: Txn) -> None:
        for name in (b"branch", b"dev\0", b"other"):
            for each in range(5):
                txn.put("reflog", name + bytes([each]), b"move")

    path = tmp_path / "records"
    Environment.create(str(path), fill).close()
    data = path.read_bytes()
    # In the order of keys it stays where it was.
    changed = b"dec\0" if number == 0 else b"dgv\0"
    edit(path, data.index(b"dev\0" + bytes([number])), changed)
    environment = Environment.open(str(path), writable=False)
    try:
        with environment.read() as txn:
            assert txn.get("reflog", b"branch\0") == b"move"
            with pytest.raises(CorruptError, match="reflog"):
                list(txn.scan("reflog", prefix=b"dev\0", reverse=reverse, keys_only=keys_only))
            if number == 4:
                with pytest.raises(CorruptError, match="reflog"):
                    txn.last_key("reflog", b"dev\0")
    finally:
        environment.close()


@pytest.mark.parametrize("size", [1, 5000])
def test_the_older_pages_of_names_do_not_come_back(file, opened, size):
    """A root that is changed to that of an older state leads to records that are whole."""
    environment = opened()
    roots = []
    for number in range(3):
        with environment.write() as txn:
            for name in range(60):
                txn.put("branches", b"%03d" % name, bytes([number]) * 40)
            # Freed pages by the hundred are a record with pages of its own.
            txn.put("nodes", b"large", bytes([number]) * size * 400)
        roots.append(state_of(file).trees["branches"].root)
    environment.close()
    data = file.read_bytes()
    assert len(set(roots)) == 3
    state = state_of(file)
    for number in state.main:
        start = number * PAGE
        page = data[start : start + PAGE]
        at = page.find(struct.pack("=Q", roots[2]))
        while at >= 0:
            edit(file, start + at, struct.pack("=Q", roots[1]))
            at = page.find(struct.pack("=Q", roots[2]), at + 1)
    assert state_of(file).trees["branches"].root == roots[1]
    for look in (
        lambda txn: txn.get("branches", b"001"),
        lambda txn: list(txn.scan("branches")),
        lambda txn: txn.count("branches"),
    ):
        again = opened(writable=False)
        with pytest.raises(CorruptError, match="in use and free"), again.read() as txn:
            look(txn)
        again.close()
