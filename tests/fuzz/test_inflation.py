"""Chunks that become too large when decoded are not decoded; all others are."""

from __future__ import annotations

import bz2
import json
import lzma
import tracemalloc
import zlib

import numcodecs
import numpy as np
import pytest
import zarr

import vzarr
from tests.fuzz.crafted import array
from vzarr.elements import Elements, Side, Sides, UndecodableError
from vzarr.format import Blob, chunk_digest
from vzarr.inflation import InflationError, require_bounded
from vzarr.metadata import node_metadata

BOMB = bytes(64 << 20)
# Streams of zstd need not say their size.
_UNSIZED = b"\x28\xb5\x2f\xfd\x00\x58" + (2 << 1 | 1000 << 3).to_bytes(3, "little")

COMPRESSORS = {
    "zlib": lambda data: zlib.compress(data),
    "gzip": lambda data: (
        zlib.compress(data[: len(data) // 2], wbits=31)
        + zlib.compress(data[len(data) // 2 :], wbits=31)
    ),
    "bz2": bz2.compress,
    "lzma": lzma.compress,
    "zstd": lambda data: bytes(numcodecs.Zstd().encode(data)),
    "lz4": lambda data: bytes(numcodecs.LZ4().encode(data)),
    "blosc": lambda data: bytes(numcodecs.Blosc(cname="zstd").encode(data)),
}


def document(*codecs: object) -> dict[str, object]:
    return {"zarr_format": 3, "codecs": [{"name": "bytes"}, *codecs]}


def shard(inner: bytes, name: str) -> tuple[dict[str, object], bytes]:
    codec = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [100],
            "codecs": ["bytes", {"name": name}],
            "index_codecs": ["bytes", "crc32c"],
        },
    }
    index = b"".join(n.to_bytes(8, "little") for n in (0, len(inner))) + b"\xff" * 16
    return codec, inner + index + bytes(4)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_bomb_is_refused_with_little_memory(name: str) -> None:
    bomb = COMPRESSORS[name](BOMB)
    sharded, data = shard(bomb, name)
    tracemalloc.start()
    try:
        _require_refused(name, bomb, sharded, data)
        # What xz looks back on is 8 MiB.
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()


def _require_refused(name: str, bomb: bytes, sharded: dict[str, object], data: bytes) -> None:
    for metadata, chunk, lengths in (
        (document({"name": name}), bomb, (100,)),
        ({"zarr_format": 2, "compressor": {"id": name}, "filters": None}, bomb, (100,)),
        ({"zarr_format": 3, "codecs": [sharded]}, data, (200,)),
    ):
        with pytest.raises(InflationError, match="would become far more"):
            require_bounded(metadata, chunk, lengths, 1)


@pytest.mark.parametrize("name", COMPRESSORS)
@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_536, 1_000_000])
def test_an_honest_chunk_is_not(name: str, size: int) -> None:
    data = np.random.default_rng(size).integers(0, 4, size, "u1").tobytes()
    if name == "blosc" and not size:
        return
    chunk = COMPRESSORS[name](data)
    require_bounded(document({"name": f"numcodecs.{name}"}), chunk, (size,), 1)
    sharded, whole = shard(COMPRESSORS[name](bytes(100)), name)
    require_bounded({"zarr_format": 3, "codecs": [sharded]}, whole, (200,), 1)


def test_frames_of_zstd_that_say_no_size() -> None:
    small = _UNSIZED + b"x" * 1000
    cut = document({"name": "zstd"})
    with pytest.raises(InflationError, match="cannot be told"):
        require_bounded(cut, small, (1000,), 1)
    repeated = b"\x28\xb5\x2f\xfd\x00\x58" + b"".join(
        (last | 1 << 1 | (100_000 << 3)).to_bytes(3, "little") + b"x" for last in (0, 0, 0, 1)
    )
    require_bounded(cut, repeated, (400_000,), 1)
    with pytest.raises(InflationError, match="far more"):
        require_bounded(cut, repeated, (1000,), 1)
    skipped = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"
    require_bounded(cut, skipped + repeated, (400_000,), 1)


def test_what_is_compressed_twice_is_refused() -> None:
    metadata = document({"name": "gzip"}, {"name": "zstd"})
    with pytest.raises(InflationError, match="more than once"):
        require_bounded(metadata, b"", (1,), 1)


def _decode(metadata: dict[str, object], chunk: bytes, name: str = "zarr.json") -> None:
    data = json.dumps(metadata).encode()
    found = node_metadata({name: Blob(chunk_digest(data), len(data))}, lambda _: data)
    assert found is not None
    assert found.array is not None
    side = Side(chunk, found.array.shape)
    region = found.array.region((0,))
    assert region is not None
    Elements({name: data}, found.array).decode((0,), Sides(side, side, side), region)


def test_elements_are_not_taken_out_of_a_bomb() -> None:
    codecs = [{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 5}}]
    metadata = array([100], [100], codecs=codecs)
    _decode(metadata, zlib.compress(bytes(100), wbits=31))
    with pytest.raises(UndecodableError, match="would become far more"):
        _decode(metadata, zlib.compress(BOMB, wbits=31))


def test_elements_are_not_taken_out_of_a_chunk_without_bounds() -> None:
    with pytest.raises(UndecodableError, match="more than 1,073,741,824 bytes"):
        _decode(array([2**31], [2**31]), b"x")


@pytest.mark.parametrize(
    "codecs",
    [
        {"filters": [{"id": "vlen-utf8"}, {"id": "pickle"}]},
        {"filters": [{"id": "vlen-utf8"}], "compressor": {"id": "Pickle", "protocol": 5}},
    ],
)
def test_nothing_is_unpickled(codecs: dict[str, object]) -> None:
    metadata = {
        "zarr_format": 2, "shape": [2], "chunks": [2], "dtype": "|O", "compressor": None,
        "fill_value": None, "order": "C", **codecs,
    }  # fmt: skip
    with pytest.raises(UndecodableError, match="pickle, which runs any code"):
        _decode(metadata, b"", ".zarray")


def test_a_field_may_be_called_pickle() -> None:
    metadata = {
        "zarr_format": 2, "shape": [1], "chunks": [1], "dtype": [["pickle", "<i4"]],
        "compressor": None, "filters": None, "fill_value": None, "order": "C",
    }  # fmt: skip
    _decode(metadata, bytes(4), ".zarray")


def test_a_merge_of_bombs_is_a_conflict_of_whole_chunks(repo: vzarr.Repository) -> None:
    codecs = [{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 5}}]
    with repo.transaction("main", "base") as store:
        zarr.create_group(store)
        store.session.set("t/zarr.json", json.dumps(array([100], [100], codecs=codecs)).encode())
        store.session.set("t/c/0", zlib.compress(bytes(100), wbits=31))
    repo.branches.create("dev", at="main")
    for branch, fill in (("main", 1), ("dev", 2)):
        with repo.transaction(branch, "bomb") as store:
            store.session.set("t/c/0", zlib.compress(BOMB + bytes([fill]), wbits=31))
    with pytest.raises(vzarr.MergeConflict) as caught:
        repo.merge("dev", into="main")
    (conflict,) = caught.value.conflicts
    assert conflict.coordinates == (0,)
    assert "would become far more" in str(caught.value)
