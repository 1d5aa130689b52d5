"""CAR files are what other tools read, and what is read from others' is verified."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import dag_cbor
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from multiformats import CID, multihash, varint

import vzarr
from tests.transfer.exports import DATA, filled, left_in, v2, v3
from vzarr import car, dagcbor
from vzarr.car import CarFile
from vzarr.dagcbor import Cid

SHA = multihash.get("sha2-256")


def blocks(path: Path) -> tuple[dict[str, Any], list[tuple[CID, bytes]]]:
    """Read a CAR file with the packages of the field: its header, and its blocks in order."""
    stream = io.BytesIO(path.read_bytes())
    header = dag_cbor.decode(stream.read(varint.decode(stream)))
    found = []
    while stream.tell() < len(stream.getvalue()):
        section = stream.read(varint.decode(stream))
        cid, data = CID.decode(section[:36]), section[36:]
        assert SHA.digest(data) == cid.digest
        assert (cid.version, cid.hashfun.name) == (1, "sha2-256")
        found.append((cid, data))
    return header, found


def flat(tree: dict[str, Any], start: str = "") -> dict[str, Any]:
    """Walk the root as ipldstore does: documents of format 2 are values, the rest is links."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if name in car.INLINE or isinstance(value, CID):
            found[start + name] = value
        else:
            found |= flat(value, f"{start}{name}/")
    return found


def snapshot(repo, ref: str = "main") -> dict[str, bytes]:
    session = repo.session(ref)
    return {key: bytes(session.get(key)) for key in list(session.keys())}


def take_over(path, repo) -> None:
    """Import a CAR file the plain way."""
    with CarFile(path) as file, repo.transaction("main", "import") as store:
        for key, data in file.items():
            store.session.set(key, data)


# ── what is written ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("write", DATA, ids=lambda write: write.__name__)
def test_every_block_and_digest_is_what_other_packages_read(repo, tmp_path, write):
    filled(repo, write)
    report = repo.export_to(tmp_path / "out.car")
    header, found = blocks(tmp_path / "out.car")
    (root_cid, root), *others = found
    assert header == {"roots": [root_cid], "version": 1}
    assert (root_cid.encode("base32"), root_cid.codec.name) == (report.root, "dag-cbor")
    assert all(cid.codec.name == "raw" for cid, _ in others)
    assert len({cid for cid, _ in found}) == len(found)
    values = dict(others)
    leaves = flat(dag_cbor.decode(root))
    expected = snapshot(repo)
    assert leaves.keys() == expected.keys()
    for key, value in leaves.items():
        if isinstance(value, CID):
            assert values[value] == expected[key]
        else:
            assert value == json.loads(expected[key])
    linked = {value for value in leaves.values() if isinstance(value, CID)}
    # But for the block with the bytes of documents, each is linked.
    assert len(values.keys() - linked) == (write is v2)


@pytest.mark.parametrize("write", DATA, ids=lambda write: write.__name__)
def test_an_import_of_it_is_the_same_snapshot(repo, tmp_path, write):
    filled(repo, write)
    repo.export_to(tmp_path / "out.car")
    with vzarr.open(tmp_path / "other.vzarr") as other:
        take_over(tmp_path / "out.car", other)
        assert other.root_id() == repo.root_id()
    with CarFile(tmp_path / "out.car") as file:
        assert file.count == len(snapshot(repo))


def test_equal_data_are_equal_bytes_whatever_came_before(repo, tmp_path):
    filled(repo, v3)
    repo.export_to(tmp_path / "one.car")
    with repo.transaction("main", "and back") as store:
        zarr.open_array(store, path="sst")[:] = 0
        zarr.open_array(store, path="sst")[:] = np.arange(35).reshape(5, 7)
    repo.export_to(tmp_path / "two.car")
    assert (tmp_path / "one.car").read_bytes() == (tmp_path / "two.car").read_bytes()


def test_a_block_that_many_keys_have_is_there_once(repo, tmp_path):
    with repo.transaction() as store:
        for number in range(50):
            store.session.set(f"group/{number}", bytes(10_000))
    repo.export_to(tmp_path / "out.car")
    assert (tmp_path / "out.car").stat().st_size < 20_000
    with CarFile(tmp_path / "out.car") as file:
        assert dict(file.items()) == snapshot(repo)


def test_without_the_block_of_spellings_the_data_are_equal(repo, tmp_path):
    filled(repo, v2)
    repo.export_to(tmp_path / "out.car")
    # As ``ipfs dag export`` gives it, which follows the links from the root.
    header, (root, _, *others) = blocks(tmp_path / "out.car")
    write_car(tmp_path / "short.car", header, [root, *others])
    with CarFile(tmp_path / "short.car") as file:
        found = dict(file.items())
    expected = snapshot(repo)
    assert found.keys() == expected.keys()
    assert found != expected
    for key, data in found.items():
        if key.rpartition("/")[2] in car.INLINE:
            assert json.loads(data) == json.loads(expected[key])
        else:
            assert data == expected[key]


def test_spellings_that_are_of_other_values_are_not_believed(repo, tmp_path):
    filled(repo, v2)
    repo.export_to(tmp_path / "out.car")
    header, (root, (_, data), *others) = blocks(tmp_path / "out.car")
    spellings = dag_cbor.decode(data)["vzarr.documents"]
    lies = {**spellings, ".zattrs": b'{"z": 2}', "dots/.zarray": b"no JSON", "nix/.zarray": b"{}"}
    data = dag_cbor.encode({"vzarr.documents": lies})
    write_car(
        tmp_path / "lies.car",
        header,
        [root, (CID("base32", 1, "raw", SHA.digest(data)), data), *others],
    )
    with CarFile(tmp_path / "lies.car") as file:
        found = dict(file.items())
    expected = snapshot(repo)
    assert found.keys() == expected.keys()
    assert json.loads(found[".zattrs"]) == json.loads(expected[".zattrs"])
    assert json.loads(found["dots/.zarray"]) == json.loads(expected["dots/.zarray"])
    assert found["slashes/.zarray"] == expected["slashes/.zarray"]


@pytest.mark.parametrize(
    "document",
    [b'{"a": NaN}', b'{"a": 1e999}', b'{"a": 123456789012345678901234567890}', b"[1]", b"{", b"",
     b'{"a": "\\ud800"}', b"[" * 10_000],
)  # fmt: skip
def test_a_document_that_dag_cbor_cannot_spell_is_linked(repo, tmp_path, document):
    with repo.transaction() as store:
        store.session.set(".zattrs", document)
    repo.export_to(tmp_path / "out.car")
    _, (_, (_, data)) = blocks(tmp_path / "out.car")
    assert data == document
    with CarFile(tmp_path / "out.car") as file:
        assert dict(file.items()) == {".zattrs": document}


@pytest.mark.parametrize("document", [b'{"b": 1, "a": 1.0}', b'{"a": 1, "a": 2}', b'{"a":1}'])
def test_documents_keep_their_bytes(repo, tmp_path, document):
    with repo.transaction() as store:
        for path in ("", "a/", "b/"):
            store.session.set(f"{path}.zattrs", document)
        # Of the same value, but spelled in another way.
        store.session.set("c/.zattrs", json.dumps(json.loads(document), indent=4).encode())
    repo.export_to(tmp_path / "out.car")
    with CarFile(tmp_path / "out.car") as file:
        assert dict(file.items()) == snapshot(repo)


def test_what_ipfs_would_not_exchange_is_warned_of(repo, tmp_path):
    with repo.transaction() as store:
        store.session.set("just", bytes(car.BLOCK_BYTES))
        store.session.set("large", bytes(car.BLOCK_BYTES + 1))
    with pytest.warns(
        vzarr.BlockSizeWarning, match=r"there are chunks of more .* \(1, such as 'large'\)"
    ) as caught:
        report = repo.export_to(tmp_path / "out.car")
    assert caught[0].filename == __file__
    assert len(report.warnings) == 1
    with CarFile(tmp_path / "out.car") as file:
        assert dict(file.items()) == snapshot(repo)


def test_a_root_larger_than_a_block_is_warned_of_and_one_too_large_refused(
    repo, tmp_path, monkeypatch
):
    with repo.transaction() as store:
        for number in range(1000):
            store.session.set(f"c/{number}", bytes([number % 7]))
    monkeypatch.setattr(car, "BLOCK_BYTES", 40_000)
    with pytest.warns(vzarr.BlockSizeWarning, match=r"root block has 4\d,\d{3} bytes"):
        repo.export_to(tmp_path / "out.car")
    monkeypatch.setattr(car, "MAX_ROOT_BYTES", 40_000)
    with pytest.raises(vzarr.InvalidInputError, match="export a part with path="):
        repo.export_to(tmp_path / "other.car")
    assert left_in(tmp_path) == {"out.car"}
    with pytest.raises(vzarr.FormatError, match="has a block of"):
        CarFile(tmp_path / "out.car")


@pytest.mark.parametrize("keys", [("a", "a/b"), (".zattrs/a",), ("x/.zgroup/y/z",)])
def test_keys_that_a_map_cannot_hold(repo, tmp_path, keys):
    with repo.transaction() as store:
        for key in keys:
            store.session.set(key, b"{}")
    with pytest.raises(vzarr.InvalidInputError, match=r"is a key, too|the name of a document"):
        repo.export_to(tmp_path / "out.car")
    assert left_in(tmp_path) == set()


def test_names_of_any_kind_have_a_place_in_a_map(repo, tmp_path):
    keys = ("/a", "b//c", "d/", "./e", "../f", "nul\0", "n" * 5000, "g/c/0/0", "é")
    with repo.transaction() as store:
        for key in keys:
            store.session.set(key, key.encode())
    repo.export_to(tmp_path / "out.car")
    with CarFile(tmp_path / "out.car") as file:
        assert dict(file.items()) == snapshot(repo)


# ── what is read ─────────────────────────────────────────────────────────────────────────────────


def cid_of(data: bytes, codec: str = "raw") -> CID:
    return CID("base32", 1, codec, SHA.digest(data))


def write_car(path: Path, header: Any, sections: list[tuple[Any, bytes]]) -> None:
    head = dag_cbor.encode(header)
    parts = [varint.encode(len(head)), head]
    for cid, data in sections:
        parts += (varint.encode(len(bytes(cid)) + len(data)), bytes(cid), data)
    path.write_bytes(b"".join(parts))


def with_root(path: Path, tree: Any, *others: tuple[Any, bytes], **header: Any) -> None:
    root = dag_cbor.encode(tree)
    cid = cid_of(root, "dag-cbor")
    write_car(path, {"roots": [cid], "version": 1, **header}, [(cid, root), *others])


def read(path: Path) -> dict[str, bytes]:
    with CarFile(path) as file:
        return dict(file.items())


def test_a_file_that_others_made(tmp_path):
    data = b"chunk"
    link = cid_of(data)
    tree = {".zgroup": {"zarr_format": 2}, "a": {".zarray": {"shape": [1]}, "0": link, "1": link}}
    with_root(tmp_path / "in.car", tree, (link, data), (cid_of(b"stray"), b"stray"), (link, data))
    found = read(tmp_path / "in.car")
    assert found.keys() == {".zgroup", "a/.zarray", "a/0", "a/1"}
    assert (found["a/0"], found["a/1"]) == (data, data)
    assert json.loads(found["a/.zarray"]) == {"shape": [1]}


def nested(depth: int) -> Any:
    tree: Any = {}
    for _ in range(depth):
        tree = {"a": tree}
    return tree


CHUNK = b"chunk"
LINK = cid_of(CHUNK)
BLAKE3 = CID("base32", 1, "raw", ("blake3", bytes(32)))
BAD: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "missing": ({"a": LINK}, (), {}, vzarr.CorruptError, "are missing, such as b.* of 'a'"),
    "damaged": ({"a": LINK}, ((LINK, b"chunk."),), {}, vzarr.CorruptError, "do not match its id"),
    "stray damaged": ({}, ((LINK, b"x"),), {}, vzarr.CorruptError, "do not match its id"),
    "submap": (
        {"a": cid_of(b"\xa0", "dag-cbor")}, (), {}, vzarr.FormatError, "'a' is a link to a map"
    ),
    "blake3": ({"a": BLAKE3}, (), {}, vzarr.FormatError, "the hash blake3"),
    "dag-pb": (
        {"a": cid_of(CHUNK, codec="dag-pb")}, (), {}, vzarr.FormatError, "codec 0x70"
    ),
    "a number": ({"a": {"b": 3}}, (), {}, vzarr.FormatError, "'a/b' is neither a link nor a map"),
    "bytes": ({"a": b"chunk"}, (), {}, vzarr.FormatError, "neither a link nor a map"),
    "a slash": ({"a/b": LINK}, ((LINK, CHUNK),), {}, vzarr.FormatError, "a name with a slash"),
    "no map": ([LINK], (), {}, vzarr.FormatError, "its root is no map"),
    "no JSON": ({".zattrs": {"a": b"x"}}, (), {}, vzarr.FormatError, "is no JSON"),
    "a link in JSON": ({".zattrs": {"a": LINK}}, (), {}, vzarr.FormatError, "is no JSON"),
    "deep": (nested(400), (), {}, vzarr.CorruptError, "nested more than"),
    "version 2": ({}, (), {"version": 2}, vzarr.FormatError, "CAR file of version 2"),
    "more in the header": ({}, (), {"x": 2}, vzarr.FormatError, "version 1"),
    "no roots": ({}, (), {"roots": []}, vzarr.FormatError, "must have one root"),
    "two roots": ({}, (), {"roots": [LINK, LINK]}, vzarr.FormatError, "must have one root"),
    "no ids": ({}, (), {"roots": [3]}, vzarr.FormatError, "must have one root"),
    "another root": ({}, (), {"roots": [LINK]}, vzarr.FormatError, "must be its root"),
    "a long header": ({}, (), {"x": "x" * 2000}, vzarr.FormatError, "is no CAR file"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_refused(tmp_path, case):
    tree, others, header, error, message = BAD[case]
    path = tmp_path / "bad.car"
    with_root(path, tree, *others, **header)
    with pytest.raises(error, match=message) as caught:
        read(path)
    assert isinstance(caught.value, vzarr.FormatError)
    assert caught.value.path == str(path)
    assert str(caught.value).startswith(f"cannot read {path}: ")


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"PK\3\4" * 9, b"\x80" * 20, b"\xff" * 8 + b"\1" + b"x" * 50, b"\x0a", b"{}" * 99],
)
def test_what_is_no_car_file(tmp_path, data):
    (tmp_path / "no.car").write_bytes(data)
    with pytest.raises(vzarr.FormatError, match="cannot read"):
        CarFile(tmp_path / "no.car")


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(vzarr.NotFoundError, match="there is no file"):
        CarFile(tmp_path / "nix.car")
    with pytest.raises(vzarr.StorageError, match="Is a directory"):
        CarFile(tmp_path)


def test_a_length_is_not_believed(tmp_path):
    """No memory is asked for that the file has no bytes for."""
    root = dag_cbor.encode({"a": LINK})
    cid = cid_of(root, "dag-cbor")
    write_car(tmp_path / "in.car", {"roots": [cid], "version": 1}, [(cid, root)])
    whole = (tmp_path / "in.car").read_bytes()
    for length in (37, 1000, 2**31, 2**32, 2**40, 2**62):
        (tmp_path / "bomb.car").write_bytes(whole + varint.encode(length) + bytes(LINK))
        with pytest.raises(vzarr.FormatError):
            read(tmp_path / "bomb.car")


def test_it_is_cut_off_anywhere(repo, tmp_path):
    with repo.transaction() as store:
        for key in ("a/b", "c", ".zattrs"):
            store.session.set(key, b'{"b": 1, "a": 1}' + key.encode() * (key != ".zattrs"))
    repo.export_to(tmp_path / "out.car")
    whole = (tmp_path / "out.car").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut.car").write_bytes(whole[:length])
        with pytest.raises(vzarr.FormatError):
            read(tmp_path / "cut.car")


def test_a_bit_is_wrong_anywhere(repo, tmp_path):
    """The data are right, or there is an error."""
    with repo.transaction() as store:
        for key in ("a/b", "c", ".zattrs"):
            store.session.set(key, b'{"b": 1, "a": 1}' + key.encode() * (key != ".zattrs"))
    repo.export_to(tmp_path / "out.car")
    whole = (tmp_path / "out.car").read_bytes()
    for bit in range(0, 8 * len(whole), 1 if os.environ.get("VZARR_TORTURE") else 7):
        wrong = bytearray(whole)
        wrong[bit // 8] ^= 1 << bit % 8
        (tmp_path / "wrong.car").write_bytes(wrong)
        with pytest.raises(vzarr.FormatError):
            read(tmp_path / "wrong.car")


# ── DAG-CBOR ─────────────────────────────────────────────────────────────────────────────────────

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(VALUES)
def test_values_are_spelled_as_the_package_spells_them(value):
    data = dagcbor.encode(value)
    assert data == dag_cbor.encode(value)
    assert repr(dagcbor.decode(data)) == repr(dag_cbor.decode(data))


@given(st.binary(max_size=60) | VALUES.map(dagcbor.encode), st.data())
def test_any_bytes_are_refused_or_spelled_so(data, draw):
    at = draw.draw(st.integers(0, len(data)))
    data = data[:at] + draw.draw(st.binary(max_size=3)) + data[at + 1 :]
    try:
        value = dagcbor.decode(data)
    except vzarr.FormatError:
        return
    assert dagcbor.encode(value) == data


@pytest.mark.parametrize(
    "data",
    [
        b"\x18\x01",  # 1, in two bytes
        b"\xa2\x61b\x01\x61a\x01",  # keys out of order
        b"\xa2\x61a\x01\x61a\x01",  # a key twice
        b"\x9f\xff",  # a list without a length
        b"\xf9\x3c\x00",  # a float of 16 bits
        b"\xfb\x7f\xf8" + bytes(6),  # NaN
        b"\xf7",  # undefined
        b"\xf8\x20",  # a simple value
        b"\xc1\x01",  # a tag
        b"\x61\xff",  # no UTF-8
        b"\xa1\x01\x01",  # a key that is no text
        b"\x01\x01",  # something behind
        b"\xd8\x2a\x01",  # a link that is no bytes
        b"\xd8\x2a\x41\x01",  # nor begins with a zero
        b"\x9b" + b"\xff" * 8,  # a list of 2^64 - 1
        b"\xbb" + b"\xff" * 8,
        b"\x5b" + b"\xff" * 8,
        b"\x81" * 500 + b"\x01",
    ],
)
def test_other_spellings_are_refused(data):
    with pytest.raises(vzarr.CorruptError):
        dagcbor.decode(data)


def test_links_are_those_of_the_package():
    cid = Cid.of(dagcbor.RAW, CHUNK)
    assert str(cid) == str(LINK)
    assert dagcbor.encode({"a": cid}) == dag_cbor.encode({"a": LINK})
    assert dagcbor.decode(dag_cbor.encode([LINK])) == [cid]
    tail = dag_cbor.encode(LINK)
    with pytest.raises(vzarr.CorruptError):
        dagcbor.decode(tail[:3] + bytes([38]) + tail[4:] + b"x")


@pytest.mark.parametrize(
    ("cid", "error"),
    [
        (b"\x12\x20" + bytes(32), vzarr.FormatError),
        (b"\x02\x55\x12\x20" + bytes(32), vzarr.FormatError),
        (b"\x01\x70\x12\x20" + bytes(32), vzarr.FormatError),
        (b"\x01\x55\x1e\x20" + bytes(32), vzarr.FormatError),
        (b"\x01\x55\x99\x01\x20" + bytes(32), vzarr.FormatError),
        (b"\x01\x55\x12\x1f" + bytes(31), vzarr.CorruptError),
        (b"\x01\x55\x12\x20" + bytes(31), vzarr.CorruptError),
        (b"\x81\x00\x55\x12\x20" + bytes(32), vzarr.CorruptError),
        (b"\x01", vzarr.CorruptError),
    ],
)
def test_other_ids_are_refused(cid, error):
    with pytest.raises(error):
        dagcbor.decode_cid(cid)


@given(st.integers(0, 2**63 - 1))
def test_lengths_are_spelled_as_the_package_spells_them(number):
    data = dagcbor.encode_varint(number)
    assert data == varint.encode(number)
    assert dagcbor.decode_varint(data + b"rest") == (number, len(data))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**64, "\ud800", object(), {1}])
def test_what_has_no_spelling(value):
    with pytest.raises(vzarr.InvalidInputError):
        dagcbor.encode({"a": [value]})
