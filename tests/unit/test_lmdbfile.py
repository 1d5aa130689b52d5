"""The parser of LMDB data files: right about sound ones, and never surprised by others."""

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vzarr import lmdbfile
from vzarr.errors import CorruptError, NotARepositoryError, NotFoundError, StorageError
from vzarr.lmdbfile import Probe, Reader, probe

NAMES = ("meta", "chunks", "nodes")


def make(path: Path, *names: str, entries: int = 0, **options: int) -> Path:
    """Write an LMDB file with some databases, closed again."""
    arguments = {"subdir": False, "lock": False, "max_dbs": 4096, "map_size": 1 << 26}
    with lmdb.open(str(path), **(arguments | {"lib_version": 0} | options)) as environment:
        opened = [environment.open_db(name.encode()) for name in names]
        with environment.begin(write=True) as txn:
            for number in range(entries):
                txn.put(b"%08d" % number, b"v" * 100, db=opened[0])
    return path


def edited(path: Path, offset: int, data: bytes) -> str:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
    return str(path)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = make(tmp_path_factory.mktemp("lmdb") / "sample", *NAMES, entries=40)
    return path.read_bytes()


# ---- sound files ----------------------------------------------------------------------------


def test_it_agrees_with_lmdb(tmp_path: Path) -> None:
    path = make(tmp_path / "a", *NAMES, entries=1000)
    found = probe(str(path))
    with lmdb.open(str(path), subdir=False, lock=False, readonly=True) as environment:
        info, stat = environment.info(), environment.stat()
    assert found == Probe(
        page_size=stat["psize"],
        last_page=info["last_pgno"],
        required_bytes=(info["last_pgno"] + 1) * stat["psize"],
        file_bytes=path.stat().st_size,
        databases=frozenset(NAMES),
        txn_id=info["last_txnid"],
    )
    assert found.required_bytes == found.file_bytes


def test_a_file_without_databases(tmp_path: Path) -> None:
    found = probe(str(make(tmp_path / "a")))
    assert (found.databases, found.txn_id, found.last_page) == (frozenset(), 0, 1)


def test_names_on_many_pages(tmp_path: Path) -> None:
    names = [f"database-{number:04d}-{'x' * 100}" for number in range(600)]
    assert probe(str(make(tmp_path / "a", *names))).databases == frozenset(names)


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with lmdb.open(str(path), subdir=False, lock=False, max_dbs=2, lib_version=0) as environment:
        environment.open_db(b"caf\xe9")
    assert probe(str(path)).databases == {"caf\\xe9"}


def test_ordinary_values_in_the_main_database_are_no_databases(tmp_path: Path) -> None:
    path = make(tmp_path / "a", "meta")
    with (
        lmdb.open(str(path), subdir=False, lock=False, max_dbs=2) as environment,
        environment.begin(write=True) as txn,
    ):
        txn.put(b"small", b"v")
        txn.put(b"big", b"v" * 10_000)
    assert probe(str(path)).databases == {"meta"}


def test_the_newest_meta_page_counts(tmp_path: Path) -> None:
    path = make(tmp_path / "a", "meta")
    seen = [probe(str(path)).txn_id]
    for number in range(3):
        with (
            lmdb.open(str(path), subdir=False, lock=False, max_dbs=2) as environment,
            environment.begin(write=True) as txn,
        ):
            txn.put(b"key", b"%d" % number)
        seen.append(probe(str(path)).txn_id)
    assert seen == [seen[0], seen[0] + 1, seen[0] + 2, seen[0] + 3]


def test_a_missing_tail_is_reported_not_raised(tmp_path: Path) -> None:
    path = make(tmp_path / "a", *NAMES, entries=1000)
    with lmdb.open(str(path), subdir=False, lock=False, max_dbs=4) as environment:
        with environment.begin(write=True) as txn:
            database = environment.open_db(b"nodes", txn=txn)
            txn.put(b"big", b"v" * 100_000, db=database)
        with environment.begin(write=True) as txn:
            txn.delete(b"big", db=database)
    whole = probe(str(path))
    os.truncate(path, whole.required_bytes - 4096)
    found = probe(str(path))
    assert found.required_bytes - found.file_bytes == 4096
    assert found.databases == whole.databases


# ---- other files ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is an empty file"),
        (b"x", "too short for a repository \\(1 bytes\\)"),
        (b"\0" * 151, "too short"),
        (b"\0" * 8192, "is no vzarr repository"),
        (b"PK\3\4" * 4096, "is no vzarr repository"),
        (b"some text\n" * 1000, "is no vzarr repository"),
    ],
)
def test_files_that_are_not_lmdb(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(NotARepositoryError, match=reason) as caught:
        probe(str(path))
    assert caught.value.path == str(path)
    assert str(caught.value).startswith(str(path))
    assert "create one at another path" in str(caught.value)


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(NotARepositoryError, match="is a directory"):
        probe(str(tmp_path))


def test_a_pipe_does_not_make_it_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotARepositoryError, match="not a regular file"):
        probe(str(tmp_path / "pipe"))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist") as caught:
        probe(str(tmp_path / "a"))
    assert caught.value.name == str(tmp_path / "a")


def test_a_file_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(StorageError, match="cannot open"):
        probe(str(tmp_path / "a" / "b"))


def test_the_format_of_lmdb_1_0(tmp_path: Path) -> None:
    with pytest.raises(NotARepositoryError, match=r"LMDB 1\.0"):
        probe(str(make(tmp_path / "a", "meta", lib_version=1)))


def test_another_data_version(tmp_path: Path) -> None:
    path = make(tmp_path / "a", "meta")
    with pytest.raises(NotARepositoryError, match="version 7"):
        probe(edited(path, 20, struct.pack("=I", 7)))


def test_another_byte_order(tmp_path: Path) -> None:
    path = make(tmp_path / "a", "meta")
    with pytest.raises(NotARepositoryError, match="-endian"):
        probe(edited(path, 16, path.read_bytes()[16:20][::-1]))


# ---- damaged files --------------------------------------------------------------------------

# Offsets within a meta page: the page size, depth and root of the main database, the last page.
PAGE_SIZE, DEPTH, ROOT, LAST_PAGE = 40, 94, 128, 136


def both(data: bytes, offset: int, new: bytes) -> bytes:
    """Change both meta pages, so that it does not matter which is the newest."""
    for start in (offset, 4096 + offset):
        data = data[:start] + new + data[start + len(new) :]
    return data


def u64(number: int) -> bytes:
    return struct.pack("=Q", number)


DAMAGES = {
    "cut within the meta pages": lambda data: data[:4200],
    "cut before the root": lambda data: data[:8192],
    "second meta page zeroed": lambda data: data[:4096] + bytes(4096) + data[8192:],
    "page size 0": lambda data: both(data, PAGE_SIZE, struct.pack("=I", 0)),
    "page size 3000": lambda data: both(data, PAGE_SIZE, struct.pack("=I", 3000)),
    "page size 2 GiB": lambda data: both(data, PAGE_SIZE, struct.pack("=I", 1 << 31)),
    "no level": lambda data: both(data, DEPTH, struct.pack("=H", 0)),
    "a thousand levels": lambda data: both(data, DEPTH, struct.pack("=H", 1000)),
    "one level too many": lambda data: both(data, DEPTH, struct.pack("=H", 2)),
    "root is a meta page": lambda data: both(data, ROOT, u64(1)),
    "root beyond the end": lambda data: both(data, ROOT, u64(1 << 40)),
    "last page 0": lambda data: both(data, LAST_PAGE, u64(0)),
    "last page too big": lambda data: both(data, LAST_PAGE, u64(2**63)),
    "no names left": lambda data: data[:8192] + bytes(len(data) - 8192),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_what_it_reads(tmp_path: Path, sample: bytes, damage: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(DAMAGES[damage](sample))
    with pytest.raises(CorruptError, match="is damaged") as caught:
        probe(str(path))
    assert caught.value.path == str(path)


def main_page(data: bytes) -> int:
    """Find the offset of the only page of the main database."""
    newest = max(0, 4096, key=lambda start: struct.unpack_from("=Q", data, start + 144)[0])
    return int(struct.unpack_from("=Q", data, newest + ROOT)[0]) * 4096


@pytest.mark.parametrize(
    ("offset", "new"),
    [
        (0, u64(77)),
        (10, struct.pack("=H", 1)),
        (12, struct.pack("=H", 17)),
        (12, struct.pack("=H", 4098)),
        (14, struct.pack("=H", 0)),
        (14, struct.pack("=H", 65535)),
        (16, struct.pack("=H", 0)),
        (16, struct.pack("=H", 4095)),
    ],
)
def test_damage_to_the_page_of_names(
    tmp_path: Path, sample: bytes, offset: int, new: bytes
) -> None:
    path = tmp_path / "a"
    path.write_bytes(sample)
    with pytest.raises(CorruptError, match="is damaged"):
        probe(edited(path, main_page(sample) + offset, new))


@pytest.mark.parametrize(("field", "value"), [(0, 47), (2, 1), (6, 4000)])
def test_damage_to_a_name(tmp_path: Path, sample: bytes, field: int, value: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(sample)
    page = main_page(sample)
    node = page + struct.unpack_from("=H", sample, page + 16)[0]
    with pytest.raises(CorruptError, match="is damaged"):
        probe(edited(path, node + field, struct.pack("=H", value)))


def test_a_tree_that_leads_to_itself_ends(tmp_path: Path) -> None:
    names = [f"database-{number:04d}-{'x' * 100}" for number in range(600)]
    path = make(tmp_path / "a", *names)
    data = path.read_bytes()
    root = main_page(data)
    # The root says that it has 32 levels below, all of them itself.
    offsets = struct.unpack_from("=2H", data, root + 16)
    path.write_bytes(both(data, DEPTH, struct.pack("=H", 32)))
    for offset in offsets:
        edited(path, root + offset, struct.pack("=HHH", root // 4096, 0, 0))
    with pytest.raises(CorruptError, match="is damaged"):
        probe(str(path))


def typed(path: Path) -> Probe | None:
    """Probe a file; anything but a result or one of our errors fails the test."""
    try:
        return probe(str(path))
    except (NotARepositoryError, CorruptError):
        return None


@given(data=st.binary(max_size=9000))
@settings(max_examples=200, deadline=None)
def test_random_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random"
    path.write_bytes(data)
    assert typed(path) is None


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_flipped_bits(
    tmp_path_factory: pytest.TempPathFactory, sample: bytes, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "flipped"
    page = main_page(sample)
    places = st.one_of(st.integers(0, 152), st.integers(4096, 4248), st.integers(page, page + 4095))
    damaged = bytearray(sample)
    for place in data.draw(st.lists(places, min_size=1, max_size=8)):
        damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(damaged)
    found = typed(path)
    if found is not None:
        assert found.file_bytes == len(sample)
        assert found.required_bytes == (found.last_page + 1) * found.page_size


@given(length=st.integers(0, 40_000))
@settings(max_examples=200, deadline=None)
def test_truncated_files(
    tmp_path_factory: pytest.TempPathFactory, sample: bytes, length: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "truncated"
    path.write_bytes(sample[:length])
    found = typed(path)
    if found is not None:
        assert found.databases == frozenset(NAMES)
        assert found.file_bytes == min(length, len(sample))


# ---- files that change meanwhile ------------------------------------------------------------


def test_it_looks_again_after_a_commit(
    tmp_path: Path, sample: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(DAMAGES["no names left"](sample))
    look, looks = lmdbfile._look, []

    def committed_meanwhile(descriptor: int, metas: tuple[bytes, bytes]) -> Probe:
        looks.append(metas)
        try:
            return look(descriptor, metas)
        finally:
            if len(looks) == 1:
                # Another process commits: other meta pages, and pages that make sense.
                newer = struct.unpack_from("=Q", sample, 144)[0] + 2
                path.write_bytes(sample[:144] + u64(newer) + sample[152:])

    monkeypatch.setattr(lmdbfile, "_look", committed_meanwhile)
    assert probe(str(path)).databases == frozenset(NAMES)
    assert len(looks) == 2


def test_damage_that_stays_is_not_looked_at_again(
    tmp_path: Path, sample: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(DAMAGES["no names left"](sample))
    look, looks = lmdbfile._look, []

    def counted(descriptor: int, metas: tuple[bytes, bytes]) -> Probe:
        looks.append(metas)
        return look(descriptor, metas)

    monkeypatch.setattr(lmdbfile, "_look", counted)
    with pytest.raises(CorruptError):
        probe(str(path))
    assert len(looks) == 1


def test_a_file_that_never_rests_is_given_up(
    tmp_path: Path, sample: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(DAMAGES["no names left"](sample))
    look, looks = lmdbfile._look, []

    def restless(descriptor: int, metas: tuple[bytes, bytes]) -> Probe:
        looks.append(metas)
        edited(path, 144, u64(1000 + 2 * len(looks)))
        return look(descriptor, metas)

    monkeypatch.setattr(lmdbfile, "_look", restless)
    with pytest.raises(CorruptError):
        probe(str(path))
    assert len(looks) == lmdbfile._ATTEMPTS


def test_it_closes_what_it_opens(tmp_path: Path, sample: bytes) -> None:
    path = tmp_path / "a"
    before = len(os.listdir("/proc/self/fd"))
    for content in (sample, b"", sample[:5000]):
        path.write_bytes(content)
        typed(path)
    assert len(os.listdir("/proc/self/fd")) == before


# ---- reading records ------------------------------------------------------------------------

KEYS = st.binary(min_size=1, max_size=20)
# Small values lie beside their keys, those above 2 KB on pages of their own.
VALUES = st.one_of(
    st.binary(max_size=40),
    st.integers(0, 3 * 4096).map(lambda size: b"x" * size),
    st.just(b"long" * 100_000),
)


def fill(path: Path, **contents: dict[bytes, bytes]) -> None:
    """Write databases, and write and delete more so that some pages are free."""
    arguments = {"subdir": False, "lock": False, "max_dbs": 8, "map_size": 1 << 28}
    with lmdb.open(str(path), lib_version=0, **arguments) as environment:
        for name, content in contents.items():
            database = environment.open_db(name.encode())
            with environment.begin(write=True, db=database) as txn:
                for key, value in content.items():
                    txn.put(key, value)
                    txn.put(b"\xff" * 30 + key, value)
            with environment.begin(write=True, db=database) as txn:
                for key in content:
                    txn.delete(b"\xff" * 30 + key)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    many = {b"%06d" % number: b"%d" % number * (number % 7) for number in range(0, 20_000, 2)}
    large = {b"large-%d" % size: os.urandom(size) for size in (0, 1, 2000, 4080, 4081, 9_000_000)}
    fill(tmp_path / "a", many=many, large=large, empty={})
    reader = Reader(str(tmp_path / "a"))
    yield reader
    reader.close()
    reader.close()


def test_records_agree_with_lmdb(reader: Reader) -> None:
    with lmdb.open(reader.path, subdir=False, lock=False, readonly=True, max_dbs=4) as environment:
        for name in ("many", "large", "empty"):
            database = environment.open_db(name.encode(), create=False)
            with environment.begin(db=database) as txn, reader.read() as records:
                expected = list(txn.cursor())
                assert records.count(name) == txn.stat(database)["entries"] == len(expected)
                assert list(records.scan(name)) == expected
                assert list(records.scan(name, keys_only=True)) == [
                    (key, b"") for key, _ in expected
                ]
                for key, value in expected[::37] + expected[-1:]:
                    assert records.get(name, key) == records.view(name, key) == value
                    assert records.contains(name, key)
                for key in (b"0", b"000001", b"999999", b"\0", b"\xff" * 511, b"large-3"):
                    assert records.get(name, key) is None
                    assert not records.contains(name, key)


def test_a_scan_from_a_key(reader: Reader) -> None:
    keys = [key for key, _ in reader.scan("many", start=b"019990")]
    assert keys == [b"019990", b"019992", b"019994", b"019996", b"019998"]
    assert [key for key, _ in reader.scan("many", start=b"019997")] == [b"019998"]
    assert list(reader.scan("many", start=b"02")) == []


@given(content=st.dictionaries(KEYS, VALUES, max_size=30), other=KEYS)
@settings(max_examples=40)
def test_any_records(
    tmp_path_factory: pytest.TempPathFactory, content: dict[bytes, bytes], other: bytes
) -> None:
    path = tmp_path_factory.mktemp("records") / "a"
    fill(path, data=content)
    reader = Reader(str(path))
    assert dict(reader.scan("data")) == content
    assert {key: reader.get("data", key) for key in content} == content
    assert reader.get("data", other) == content.get(other)
    reader.close()


def test_a_database_that_is_not_there(reader: Reader) -> None:
    for look in (reader.get, reader.contains):
        with pytest.raises(CorruptError, match="it lacks its database nodes"):
            look("nodes", b"key")


@pytest.mark.parametrize("meta", [0, 1])
def test_one_meta_page_is_enough(reader: Reader, meta: int) -> None:
    edited(Path(reader.path), meta * 4096 + 16, bytes(100))
    with pytest.raises((CorruptError, NotARepositoryError)):
        probe(reader.path)
    assert reader.get("many", b"000002") == b"22"


def test_no_meta_page(reader: Reader) -> None:
    for meta in (0, 1):
        edited(Path(reader.path), meta * 4096 + 16, bytes(100))
    with pytest.raises(CorruptError, match="neither of its meta pages is whole"):
        reader.get("many", b"000002")


def test_a_damaged_leaf_hides_nothing_but_its_own(reader: Reader) -> None:
    path = Path(reader.path)
    content = path.read_bytes()
    everything = dict(reader.scan("many"))
    # Pages that are free by now may be leaves with that key, too.
    for page in range(2, len(content) // 4096):
        flags = struct.unpack_from("=H", content, page * 4096 + 10)[0]
        if flags == 2 and b"010000" in content[page * 4096 : (page + 1) * 4096]:
            edited(path, page * 4096, bytes(4096))
    left = dict(reader.scan("many"))
    assert 9000 < len(left) < len(everything)
    assert left.items() <= everything.items()
    with pytest.raises(CorruptError, match=r"page \d+ is not the one"):
        reader.get("many", b"010000")
    assert reader.get("many", b"000002") == b"22"


@given(
    edits=st.lists(st.tuples(st.integers(0, 2**20), st.binary(min_size=1, max_size=8)), max_size=4),
    cut=st.one_of(st.none(), st.integers(0, 2**17)),
)
@settings(max_examples=300)
def test_records_of_damaged_files(
    tmp_path_factory: pytest.TempPathFactory,
    sample: bytes,
    edits: list[tuple[int, bytes]],
    cut: int | None,
) -> None:
    data = bytearray(sample)
    for offset, new in edits:
        offset %= len(data)
        data[offset : offset + len(new)] = new
    path = tmp_path_factory.mktemp("damaged") / "a"
    path.write_bytes(data[:cut])
    reader = Reader(str(path))
    for name in NAMES:
        # What is damaged says so, and nothing else is raised.
        with contextlib.suppress(CorruptError):
            for key, _ in reader.scan(name):
                reader.contains(name, key)
                reader.get(name, key)
            assert reader.get(name, b"absent") is None
            assert reader.count(name) >= 0
    reader.close()


def test_pages_that_are_written_again_while_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    fill(path, data={b"%04d" % number: b"old" for number in range(500)})
    reader = Reader(str(path))
    read_page = lmdbfile._read_page
    commits = []

    def disturbed(*arguments: object) -> bytes:
        if len(commits) < 3:
            # Two commits later, the pages of the state that is being read are in use again.
            for number in range(4):
                commits.append(number)
                fill(path, data={b"%04d" % key: b"new" * 100 for key in range(number, 500, 4)})
        return read_page(*arguments)

    monkeypatch.setattr(lmdbfile, "_read_page", disturbed)
    assert reader.get("data", b"0499") == b"new" * 100
    assert reader.get("data", b"absent") is None
    assert commits
    reader.close()


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        Reader(str(tmp_path / "a"))
