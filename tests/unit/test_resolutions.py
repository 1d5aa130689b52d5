"""Functions that resolve conflicts, and the conflicts that they are asked about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.format.memory import Memory
from tests.unit.test_session import GROUP, array
from vzarr.errors import ConflictError, FormatError, InvalidInputError, MergeConflict
from vzarr.format import Blob, Entry
from vzarr.hierarchy import Hierarchy
from vzarr.merge import Conflict, check_strategy, list_conflicts, merge

Content = dict[str, bytes]


class Store(Memory):
    """Objects in memory, and a count of what is read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[bytes] = []

    def write(self, data: bytes) -> Blob:
        return self.blob(data)

    def read(self, blob: Blob) -> bytes:
        data = super().read(blob)
        self.reads.append(data)
        return data


class Three:
    """A base and two snapshots made from it, by what differs."""

    def __init__(self, base: Content, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
        self.store = Store()
        self.roots = [self._root({**base, **side}) for side in ({}, ours, theirs)]
        self.asked: list[Conflict] = []

    def _root(self, files: dict[str, Any]) -> Entry:
        there = {key: data for key, data in files.items() if data is not None}
        return self.store.hierarchy(there).root

    def merge(self, *answers: Any, strategy: Any = None) -> Content:
        """Merge; the conflicts are answered in turn, or all by the last one."""
        waiting = list(answers)

        def resolve(conflict: Conflict) -> Any:
            self.asked.append(conflict)
            answer = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            return answer(conflict) if callable(answer) else answer

        self.asked.clear()
        self.store.reads.clear()
        root, self.open = merge(self.store, *self.roots, strategy or resolve)
        hierarchy = Hierarchy(self.store, root)
        return {key: self.store.chunks[blob.digest] for key, blob in hierarchy.items()}


BASE = {"zarr.json": GROUP, "a/zarr.json": array(), "a/c/1": bytes(10), "file": b"0"}
# Elements 12 and 14 are both sides', with one between them that is theirs, and one beside, ours.
CHUNKS = {"a/c/1": b"\1\0\1\0\1" + bytes(5)}, {"a/c/1": b"\0\0\2\2\2" + bytes(5)}


# ── chunks ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def chunk() -> Three:
    return Three(BASE, *CHUNKS)


@pytest.mark.parametrize(
    ("answer", "box"),
    [
        ("ours", [1, 2, 1]),
        ("theirs", [2, 2, 2]),
        ("base", [0, 2, 0]),
        (np.array([7, 8, 9], "u1"), [7, 8, 9]),
        ([7, 8, 9], [7, 8, 9]),
        ((7, 8, 9), [7, 8, 9]),
        (7, [7, 7, 7]),
        (np.int64(7), [7, 7, 7]),
        ([7], [7, 7, 7]),
        (True, [1, 1, 1]),
        (lambda conflict: np.maximum(conflict.decode("ours"), conflict.decode("theirs")), [2] * 3),
        (lambda conflict: conflict.decode("ours") + conflict.decode("theirs"), [3, 2, 3]),
    ],
)
def test_a_chunk_takes_a_side_or_values(chunk, answer, box):
    assert chunk.merge(answer)["a/c/1"] == bytes([1, 0, *box]) + bytes(5)
    assert chunk.open == []
    (conflict,) = chunk.asked
    assert (conflict.kind, conflict.path, conflict.coordinates) == ("chunk", "a", (1,))
    assert conflict.region == (slice(12, 15),)
    assert conflict.reason is None


@pytest.mark.parametrize(
    "answer", [b"any bytes", bytearray(b"any bytes"), memoryview(b"any bytes")]
)
def test_a_chunk_takes_bytes(chunk, answer):
    assert chunk.merge(answer)["a/c/1"] == b"any bytes"


def test_none_leaves_the_conflict_open(chunk):
    assert chunk.merge(None)["a/c/1"] == CHUNKS[0]["a/c/1"]
    assert chunk.open == chunk.asked
    assert chunk.open[0].decode("theirs").tolist() == [2, 2, 2]
    chunk.merge(strategy="fail")
    assert [(one.path, one.coordinates, one.region) for one in chunk.open] == [
        ("a", (1,), (slice(12, 15),))
    ]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("mine", "'mine': it is one of base, ours, theirs, bytes, or values"),
        ({"a": 1}, "bytes, or values for the region"),
        (1.5, "dtype float64"),
        ([1, 2], "shape"),
        ([[1, 2, 3]] * 2, "shape"),
        ([1, [2, 3]], "no array can be made of it"),
        (256, "not all of the values"),
        (-1, "not all of the values"),
        (np.array([1, 2, 300]), "not all of the values"),
        (object(), "dtype object"),
        (np.array(["1", "2", "3"]), "none|dtype"),
        (len, "dtype object"),
    ],
)
def test_a_chunk_takes_nothing_else(chunk, answer, why):
    with pytest.raises(InvalidInputError, match=why) as error:
        chunk.merge(lambda _: answer)
    assert str(error.value).startswith("a: chunk (1,) [12:15] cannot be resolved with ")


def test_what_merges_by_itself_is_nobodys_question(chunk):
    clean = Three(BASE, {"a/c/1": b"\1" + bytes(9)}, {"a/c/1": bytes(9) + b"\2"})
    assert clean.merge(AssertionError)["a/c/1"] == b"\1" + bytes(8) + b"\2"
    assert clean.asked == []


def test_a_chunk_resolved_to_nothing_but_fill_value_is_not_stored():
    sides = {"a/c/1": b"\1" + bytes(9)}, {"a/c/1": b"\2" + bytes(9)}
    for answer in (0, "base"):
        assert "a/c/1" not in Three({**BASE, "a/c/1": None}, *sides).merge(answer)
        # But bytes that were there come back as they were.
        assert Three(BASE, *sides).merge(answer)["a/c/1"] == bytes(10)


def test_decoded_values_are_the_callers_own(chunk):
    def resolve(conflict: Conflict) -> Any:
        conflict.decode("base")[:] = 9
        ours = conflict.decode("ours")
        ours += conflict.decode("base")
        return ours

    assert chunk.merge(resolve)["a/c/1"][2:5] == bytes([1, 0, 1])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("int16", np.array([-300, 300], ">i2")),
        ("int16", [-300, 300]),
        ("uint64", np.array([2**63, 1], "u8")),
        ("float32", np.array([1.5, np.nan])),
        ("float32", [1, 2]),
    ],
)
def test_values_are_cast_to_the_dtype(name, values):
    little = [{"name": "bytes", "configuration": {"endian": "little"}}]
    document = json.loads(array()) | {"data_type": name, "codecs": little}
    base = {"zarr.json": GROUP, "a/zarr.json": json.dumps(document).encode()}
    dtype = np.dtype(name).newbyteorder("<")
    ours, theirs = ((n * np.arange(10)).astype(dtype).tobytes() for n in (1, 2))
    three = Three(base, {"a/c/0": ours}, {"a/c/0": theirs})
    merged = three.merge(lambda conflict: np.resize(values, 9))
    expected = np.array([0, *np.resize(values, 9)], dtype)
    assert merged["a/c/0"] == expected.tobytes()


def test_a_number_beyond_the_dtype_is_refused():
    little = [{"name": "bytes", "configuration": {"endian": "little"}}]
    document = json.loads(array()) | {"data_type": "float32", "codecs": little}
    base = {"zarr.json": GROUP, "a/zarr.json": json.dumps(document).encode()}
    three = Three(base, {"a/c/0": b"\1" * 40}, {"a/c/0": b"\2" * 40})
    with pytest.raises(InvalidInputError, match="overflow"):
        three.merge(1e300)


# ── chunks that do not decode ────────────────────────────────────────────────────────────────────


@pytest.fixture
def damaged() -> Three:
    return Three({**BASE, "a/c/1": b"base"}, {"a/c/1": b"ours"}, {"a/c/1": b"theirs"})


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("ours", b"ours"), ("theirs", b"theirs"), ("base", b"base"), (b"new", b"new")],
)
def test_a_chunk_that_does_not_decode_takes_a_side_or_bytes(damaged, answer, expected):
    assert damaged.merge(answer)["a/c/1"] == expected
    (conflict,) = damaged.asked
    assert conflict.region == (slice(10, 20),)
    assert conflict.reason.startswith("zarr cannot decode")
    with pytest.raises(FormatError, match="zarr cannot decode"):
        conflict.decode("ours")


@pytest.mark.parametrize("answer", [np.zeros(10, "u1"), 0, "mine", {"a": 1}])
def test_a_chunk_that_does_not_decode_takes_no_values(damaged, answer):
    expected = r"a: chunk \(1,\) \[10:20\] .*one of base, ours, theirs, bytes, since zarr cannot"
    with pytest.raises(InvalidInputError, match=expected):
        damaged.merge(answer)


def test_a_base_without_the_chunk_deletes_it():
    three = Three({**BASE, "a/c/1": None}, {"a/c/1": b"ours"}, {"a/c/1": b"theirs"})
    assert "a/c/1" not in three.merge("base")


def test_values_that_its_codecs_do_not_keep_are_a_question_of_the_whole_chunk():
    filters = [{"id": "fixedscaleoffset", "offset": 0, "scale": 1, "dtype": "<f4", "astype": "|u1"}]
    document = {
        "zarr_format": 2,
        "shape": [4],
        "chunks": [4],
        "dtype": "<f4",
        "compressor": None,
        "filters": filters,
        "fill_value": 0,
        "order": "C",
    }
    base = {"a/.zarray": json.dumps(document).encode(), "a/0": b"\0\1\2\3"}
    three = Three(base, {"a/0": b"\7\1\2\3"}, {"a/0": b"\x08\1\2\3"})
    assert three.merge([9])["a/0"] == b"\x09\1\2\3"
    assert three.merge([9.5], b"last")["a/0"] == b"last"
    element, whole = three.asked
    assert (element.region, element.reason) == ((slice(0, 1),), None)
    assert (whole.region, whole.coordinates) == ((slice(0, 4),), (0,))
    assert "do not give back" in whole.reason
    with pytest.raises(InvalidInputError, match="do not give back"):
        three.merge([9.5])


# ── documents, files, nodes ──────────────────────────────────────────────────────────────────────


@pytest.fixture
def document() -> Three:
    sides = {"a/zarr.json": array(units="K")}, {"a/zarr.json": array(units="C")}
    return Three(BASE, *sides)


NEW = json.loads(array(50, units="F"))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("ours", array(units="K")),
        ("theirs", array(units="C")),
        ("base", array()),
        (array(60), array(60)),
        (memoryview(array(60)), array(60)),
        (NEW, json.dumps(NEW, indent=2).encode()),
        (lambda conflict: json.loads(conflict.ours) | {"shape": [9]}, None),
    ],
)
def test_a_document_takes_a_side_bytes_or_a_mapping(document, answer, expected):
    merged = document.merge(answer)["a/zarr.json"]
    if expected is None:
        assert json.loads(merged) == json.loads(array(9, units="K"))
    else:
        assert merged == expected
    (conflict,) = document.asked
    assert (conflict.kind, conflict.path, conflict.document) == ("document", "a", "zarr.json")
    assert (conflict.base, conflict.ours) == (array(), array(units="K"))


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("mine", "one of base, ours, theirs, bytes, a mapping"),
        (3, "one of base, ours, theirs, bytes, a mapping"),
        (np.zeros(3), r"values of shape \(3,\) and dtype float64"),
        (b"{", "a JSON object"),
        (b"[1]", "a JSON object"),
        (array().decode().encode("utf-16"), "a JSON object"),
        ({"a": object()}, "not JSON"),
        ({"zarr_format": 3, "node_type": "group"}, "another meaning"),
        (NEW | {"data_type": "int8"}, "another meaning"),
        (NEW | {"chunk_key_encoding": {"name": "v2"}}, "another meaning"),
        ({}, "another meaning"),
    ],
)
def test_a_document_takes_nothing_else(document, answer, why):
    with pytest.raises(InvalidInputError, match=why) as error:
        document.merge(answer)
    assert str(error.value).startswith("a: zarr.json")


def test_a_document_that_was_not_there_can_be_so_again():
    base = {"g/zarr.json": GROUP}
    three = Three(base, {"g/.zattrs": b'{"a": 1}'}, {"g/.zattrs": b'{"a": 2}'})
    assert three.merge("base") == base
    assert three.merge({"a": 3})["g/.zattrs"] == b'{\n  "a": 3\n}'
    # But not if the node hangs on it.
    three = Three({}, {"a/zarr.json": array(units="K")}, {"a/zarr.json": array(units="C")})
    with pytest.raises(InvalidInputError, match="another meaning"):
        three.merge("base")


def test_documents_that_make_another_node_together_conflict():
    """A version 2 array in the shadow of a version 3 group, which the other side takes away."""
    old = json.dumps({"zarr_format": 2, "shape": [9], "chunks": [1]}).encode()
    group = b'{"zarr_format": 2}'
    three = Three(
        {"g/zarr.json": GROUP, "g/0": b"0"},
        {"g/.zarray": old},
        {"g/zarr.json": None, "g/.zgroup": group},
    )
    three.merge(None)
    (conflict,) = three.open
    assert (conflict.path, conflict.kind) == ("g", "node")
    assert "another kind of node" in conflict.reason
    assert three.merge("theirs") == {"g/.zgroup": group, "g/0": b"0"}
    assert three.merge("ours") == {"g/zarr.json": GROUP, "g/.zarray": old, "g/0": b"0"}


FILE = {"file": b"1"}, {"file": b"2"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("ours", b"1"), ("theirs", b"2"), ("base", b"0"), (b"", b""), (bytearray(b"new"), b"new")],
)
def test_a_file_takes_a_side_or_bytes(answer, expected):
    three = Three(BASE, *FILE)
    assert three.merge(answer)["file"] == expected
    assert [(one.path, one.kind) for one in three.asked] == [("file", "file")]


@pytest.mark.parametrize("answer", ["mine", 1, {"a": 1}, np.zeros(3), [b"1"]])
def test_a_file_takes_nothing_else(answer):
    with pytest.raises(InvalidInputError, match=r"file: .*one of base, ours, theirs, bytes$"):
        Three(BASE, *FILE).merge(answer)


GONE = {"a/zarr.json": None, "a/c/1": None}


@pytest.mark.parametrize(("answer", "expected"), [("ours", None), ("theirs", 1), ("base", 0)])
def test_a_node_takes_a_side_whole(answer, expected):
    three = Three(BASE, GONE, {"a/c/1": b"\1" * 10})
    merged = three.merge(answer)
    assert merged.get("a/c/1") == (None if expected is None else bytes([expected]) * 10)
    assert ("a/zarr.json" in merged) == (expected is not None)
    assert [(one.path, one.kind) for one in three.asked] == [("a", "node")]


@pytest.mark.parametrize("answer", ["mine", b"bytes", {"a": 1}, 0])
def test_a_node_takes_nothing_else(answer):
    with pytest.raises(InvalidInputError, match=r"a: cannot be .*one of base, ours, theirs$"):
        Three(BASE, GONE, {"a/c/1": b"\1" * 10}).merge(answer)


# ── all of them ──────────────────────────────────────────────────────────────────────────────────


def many(number: int) -> dict[str, bytes]:
    chunks = {f"a/c/{n}": bytes([number] * 10) for n in range(4)}
    return {"a/zarr.json": array(units=f"{number}"), "file": b"%d" % number, **chunks}


def test_each_conflict_is_asked_about_once():
    three = Three(BASE, many(1), many(2))
    three.merge("theirs")
    names = [(one.path, one.kind, one.coordinates) for one in three.asked]
    expected = [("a", "document", None), *(("a", "chunk", (n,)) for n in range(4))]
    assert names == [*expected, ("file", "file", None)]


@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_a_function_that_takes_one_side_is_that_strategy(side):
    three = Three(BASE, many(1), many(2))
    assert three.merge(side) == three.merge(strategy=side)
    assert three.open == []


def test_some_can_stay_open():
    three = Three(BASE, many(1), many(2))
    merged = three.merge(lambda one: None if one.coordinates in ((1,), (3,)) else "theirs")
    assert [one.coordinates for one in three.open] == [(1,), (3,)]
    assert merged["a/c/0"] == bytes([2] * 10)
    assert merged["file"] == b"2"


def test_nothing_is_read_that_is_not_looked_at():
    three = Three(BASE, *FILE)
    three.merge("theirs")
    assert b"1" not in three.store.reads
    three.merge(lambda conflict: conflict.ours)
    assert three.store.reads.count(b"1") == 1


class Stop(Exception):
    """Of the user's own."""


def stop(conflict: Conflict) -> Any:
    raise Stop(conflict.path)


@pytest.fixture
def forked(repo):
    session = repo.session("main")
    for key, data in BASE.items():
        session.set(key, data)
    session.commit("base")
    repo.branches.create("dev")
    for branch, chunk in zip(("main", "dev"), CHUNKS, strict=True):
        session = repo.session(branch)
        session.set(*next(iter(chunk.items())))
        session.commit(branch)
    return repo


def test_what_a_function_raises_ends_the_merge_of_branches(forked):
    before = Path(forked.path).read_bytes()
    with pytest.raises(Stop, match="a"):
        forked.merge("dev", strategy=stop)
    with pytest.raises(InvalidInputError, match="cannot be resolved"):
        forked.merge("dev", strategy=lambda _: "mine")
    with pytest.raises(MergeConflict, match="decide each with a function"):
        forked.merge("dev", strategy=lambda _: None)
    assert Path(forked.path).read_bytes() == before
    forked.merge("dev", strategy=lambda conflict: conflict.decode("theirs"))
    assert forked.session("main").get("a/c/1") == b"\1\0\2\2\2" + bytes(5)


def test_what_a_function_raises_ends_a_commit(forked):
    ours, theirs = forked.session("main"), forked.session("main")
    ours.set("file", b"1")
    theirs.set("file", b"2")
    theirs.commit("theirs")
    before = Path(forked.path).read_bytes()
    with pytest.raises(Stop, match="file"):
        ours.commit("ours", merge=stop)
    with pytest.raises(ConflictError) as error:
        ours.commit("ours", merge=lambda _: None)
    assert [one.path for one in error.value.conflicts] == ["file"]
    assert Path(forked.path).read_bytes() == before
    # The edits are still there.
    ours.commit("ours", merge=lambda conflict: conflict.theirs + conflict.ours)
    assert forked.session("main").get("file") == b"21"


def test_cherry_pick_and_revert_and_previews_ask_too(forked):
    preview = forked.merge("dev", dry_run=True, strategy=lambda _: "theirs")
    assert preview.conflicts == ()
    assert [chunk.coordinates for chunk in preview.diff["a"].chunks] == [(1,)]
    picked = forked.cherry_pick("dev", strategy=lambda conflict: conflict.decode("theirs"))
    assert forked.session(picked).get("a/c/1") == b"\1\0\2\2\2" + bytes(5)
    session = forked.session("main")
    session.set("a/c/1", b"\5" * 10)
    session.commit("over it")
    reverted = forked.revert(picked, strategy=lambda _: "base")
    assert forked.session(reverted).get("a/c/1") == b"\5\5\2\2\2" + b"\5" * 5


@pytest.mark.parametrize("strategy", ["fail", "ours", "theirs", stop, len])
def test_a_strategy_is_a_name_or_a_function(strategy):
    check_strategy(strategy, "merge=")


@pytest.mark.parametrize("strategy", ["base", "union", "", None, 3, ["ours"], {"ours"}, b"ours"])
def test_anything_else_is_none(strategy):
    with pytest.raises(InvalidInputError) as error:
        check_strategy(strategy, "merge=")
    expected = f"merge= is fail, ours, theirs or a function of a conflict, not {strategy!r}"
    assert str(error.value) == expected


# ── in words ─────────────────────────────────────────────────────────────────────────────────────

ONE, TWO = Blob(b"1" * 32, 1), Blob(b"2" * 32, 1)
BOX = (slice(0, 2), slice(3, 4))
STALE = "read by this session, and changed by another meanwhile"
GREW = "both sides grew axis 0 from 5 to 6"


@pytest.mark.parametrize(
    ("conflict", "words"),
    [
        (Conflict("a", "chunk", None, (0, 3), BOX), "a: chunk (0, 3) [0:2, 3:4] changed on both"),
        (
            Conflict("", "chunk", coordinates=(), reason="why", _blobs=(None, ONE, TWO)),
            "/: chunk () changed on both sides; why",
        ),
        (Conflict("g", "document", ".zattrs"), "g: .zattrs changed on both sides"),
        (
            Conflict("a", "document", "zarr.json", reason=GREW),
            f"zarr.json changed on both sides; {GREW}",
        ),
        (Conflict("f", "file"), "f: changed on both sides"),
        (Conflict("g", "node"), "g: deleted or made anew on one side, changed on the other"),
        (Conflict("g", "node", reason="why"), "changed on the other; why"),
        (Conflict("", "listing", reason=STALE), f"/: what lies below, {STALE}"),
        (
            Conflict("a", "chunk", None, (1,), reason=STALE, _blobs=(ONE, ONE, TWO)),
            f"a: chunk (1,) {STALE}",
        ),
        (Conflict("f", "file", reason=STALE, _blobs=(None, None, TWO)), f"f: {STALE}"),
    ],
)
def test_conflicts_in_words(conflict, words):
    assert words in str(conflict)


def test_a_list_of_conflicts_is_cut_short():
    conflicts = [Conflict(f"f{n}", "file") for n in range(5)]
    expected = "; ".join(map(str, conflicts[:3]))
    assert list_conflicts(conflicts[:3]) == expected
    assert list_conflicts(conflicts) == f"{expected}; and 2 more"
