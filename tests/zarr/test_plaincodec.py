"""Plain chunks: in values, in stored bytes and in errors all that zarr makes of them itself."""

from __future__ import annotations

import contextlib
import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr
import zarr.codecs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.core import codec_pipeline as pipelines
from zarr.core.buffer import cpu
from zarr.storage import MemoryStore

from vzarr import Repository, Session

OURS = "vzarr.pipeline.VzarrCodecPipeline"
THEIRS = [
    f"zarr.core.codec_pipeline.{name}"
    for name in ("FusedCodecPipeline", "BatchedCodecPipeline")
    if hasattr(pipelines, name)
]
fused = pytest.mark.skipif(len(THEIRS) < 2, reason="this zarr has no fused pipeline")

Outcome = tuple[str, Any]

# Equal ones and those that only seem equal are to meet.
NUMBERS: dict[str, list[Any]] = {
    "i1": [0, 1, -128],
    ">u2": [0, 1, 65535],
    "<i4": [0, 1, -5],
    "u8": [0, 1, 2**64 - 1],
    "f2": [0.0, -0.0, np.nan],
    "<f4": [0.0, -0.0, np.nan, 1.5],
    ">f8": [0.0, -0.0, np.nan, 1e300],
    "f8": [0.0, -0.0, np.nan, -np.inf],
    "c8": [0j, complex(-0.0, 0.0), complex(0, np.nan), complex(np.nan, 1)],
    "bool": [False, True],
    "M8[s]": [np.datetime64("NaT", "s"), np.datetime64(0, "s"), np.datetime64(7, "s")],
    "U2": ["", "a", "ab"],
}
CODECS: dict[str, dict[str, Any]] = {
    "raw": {"compressors": None},
    "zstd": {"compressors": [zarr.codecs.ZstdCodec()]},
    "gzip and a checksum": {"compressors": [zarr.codecs.GzipCodec(), zarr.codecs.Crc32cCodec()]},
    "blosc": {"compressors": [zarr.codecs.BloscCodec(cname="lz4")]},
    "checksum": {"compressors": [zarr.codecs.Crc32cCodec()]},
    "big-endian": {"compressors": None, "serializer": zarr.codecs.BytesCodec(endian="big")},
    "transposed": {"compressors": None, "filters": "of all axes"},
    "shards": {"compressors": None, "shards": True},
    "zarr 2": {"zarr_format": 2, "compressors": None},
}
_names = itertools.count()


@pytest.fixture(autouse=True, scope="module")
def stopped_clock() -> Iterator[None]:
    """Let gzip write the same time into all that it makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gzip.time", SimpleNamespace(time=lambda: 0))
        yield


def finished(options: dict[str, Any], codec: str) -> dict[str, Any]:
    """Add what depends on the number of dimensions to the codec's options."""
    chosen = dict(CODECS[codec])
    if "filters" in chosen:
        chosen["filters"] = [zarr.codecs.TransposeCodec(order=range(len(options["shape"]))[::-1])]
    if "shards" in chosen:
        chosen["shards"] = tuple(2 * length for length in options["chunks"])
    return {**options, **chosen}


@contextlib.contextmanager
def writing(repo: Repository) -> Iterator[Session]:
    """Give a session, of which nothing is left."""
    session = repo.session("main")
    try:
        yield session
    finally:
        session.discard()


@st.composite
def kinds(draw: st.DrawFn) -> dict[str, Any]:
    """Draw what an array is like."""
    shape = tuple(draw(st.lists(st.integers(1, 9), max_size=3)))
    chunks = tuple(draw(st.integers(1, length)) for length in shape)
    dtype = draw(st.sampled_from(list(NUMBERS)))
    options = {
        "shape": shape,
        "chunks": chunks,
        "dtype": dtype,
        "fill_value": draw(st.sampled_from(NUMBERS[dtype])),
        "config": {
            "write_empty_chunks": draw(st.booleans()),
            "order": draw(st.sampled_from("CF")),
        },
    }
    return finished(options, draw(st.sampled_from(list(CODECS))))


@st.composite
def selections(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[str, Any]:
    """Draw how to index an array, and with what."""

    def part(length: int) -> Any:
        start, stop = draw(st.integers(0, length - 1)), draw(st.integers(0, length + 2))
        step = draw(st.sampled_from([None, 1, 1, 2, 3]))
        return draw(st.sampled_from([slice(None), start, slice(start, stop, step)]))

    def several(length: int) -> Any:
        places = draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=4, unique=True))
        mask = np.zeros(length, bool)
        mask[places] = True
        return draw(st.sampled_from([part(length), sorted(places), places, mask]))

    way = draw(st.sampled_from(["all", "basic", "oindex", "vindex", "mask"] if shape else ["all"]))
    if way == "all":
        return "basic", ...
    if way == "basic":
        return way, tuple(part(length) for length in shape)
    if way == "oindex":
        return way, tuple(several(length) for length in shape)
    size = draw(st.integers(1, 5))
    points = [
        draw(st.lists(st.integers(0, length - 1), min_size=size, max_size=size)) for length in shape
    ]
    if way == "vindex":
        return way, tuple(points)
    mask = np.zeros(shape, bool)
    mask[tuple(points)] = True
    return "vindex", mask


def view(array: zarr.Array[Any], way: str) -> Any:
    return array if way == "basic" else getattr(array, way)


def write(array: zarr.Array[Any], where: tuple[str, Any], value: Any) -> None:
    view(array, where[0])[where[1]] = value


def read(array: zarr.Array[Any], what: tuple[str, Any]) -> Any:
    return view(array, what[0])[what[1]]


def outcome(act: Callable[..., Any], *arguments: Any) -> Outcome:
    """Tell what comes of a call: what it gives, or how it fails."""
    with warnings.catch_warnings():
        # numpy's, of casts, and zarr's, of the codecs: both have them.
        warnings.simplefilter("ignore")
        try:
            return "gave", act(*arguments)
        except Exception as error:
            return type(error).__name__, str(error)


def require_same(ours: Outcome, theirs: Outcome) -> None:
    assert ours[0] == theirs[0], (ours, theirs)
    if ours[0] != "gave":
        assert ours[1] == theirs[1]
    elif theirs[1] is not None:
        one, other = np.asarray(ours[1]), np.asarray(theirs[1])
        assert (one.dtype, one.shape, one.flags.f_contiguous) == (
            other.dtype,
            other.shape,
            other.flags.f_contiguous,
        )
        # Of numbers too that are not equal to themselves, and of zeros with a sign.
        assert one.tobytes() == other.tobytes()


def require_same_stored(ours: zarr.Array[Any], theirs: zarr.Array[Any]) -> None:
    session, there = ours.store.session, theirs.store._store_dict
    chunks = {key: value.to_bytes() for key, value in there.items()}
    listed = set(session.keys(ours.path))
    assert listed == {key for key in chunks if key.startswith(f"{theirs.path}/")}
    for key in listed:
        assert bytes(session.get(key)) == chunks[key], key


def make_both(session: Any, theirs: str, options: dict[str, Any]) -> list[zarr.Array[Any]]:
    """Make an array of ours and one of zarr's, alike."""
    name = f"a{next(_names)}"
    made = []
    for pipeline, store in ((OURS, session.store), (theirs, MemoryStore())):
        with zarr.config.set({"codec_pipeline.path": pipeline}), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made.append(zarr.create_array(store, name=name, **options))
    return made


def values_for(data: st.DataObject, array: zarr.Array[Any], where: tuple[str, Any]) -> Any:
    """Draw what to write at a selection: one value, or as many as there are, in any layout."""
    probe = np.empty(array.shape, array.dtype)
    way, selection = where
    if way == "oindex":
        axes = [
            np.atleast_1d(np.arange(length)[part])
            for part, length in zip(selection, array.shape, strict=True)
        ]
        shape = tuple(
            len(axis)
            for axis, part in zip(axes, selection, strict=True)
            if not isinstance(part, int)
        )
    else:
        shape = probe[selection].shape
    dtype = data.draw(st.sampled_from([array.dtype, array.dtype.newbyteorder("S")]))
    numbers = next(numbers for name, numbers in NUMBERS.items() if np.dtype(name) == array.dtype)
    palette = np.array(numbers, array.dtype).astype(dtype)
    mostly = data.draw(st.integers(0, len(palette) - 1))
    if data.draw(st.booleans()):
        return palette[mostly]
    # Mostly of one value, so that whole chunks are.
    chance = np.random.default_rng(data.draw(st.integers(0, 99)))
    others = chance.integers(0, len(palette), shape)
    some = palette[np.where(chance.random(shape) < 0.8, mostly, others)]
    layout = data.draw(st.sampled_from(["C", "F", "strided"]))
    if layout == "strided" and some.ndim:
        return np.repeat(some, 2, axis=-1)[..., ::2]
    return np.asarray(some, order="F" if layout == "F" else "C")


def encoded_bytes(data: bytes, options: dict[str, Any]) -> bytes:
    """Compress bytes, of whatever number, as the chunks of an array with these options are."""
    if not data or not options["compressors"]:
        return data
    store = MemoryStore()
    array = zarr.create_array(
        store,
        shape=(len(data),),
        chunks=(len(data),),
        dtype="u1",
        compressors=options["compressors"],
        config={"write_empty_chunks": True},
    )
    array[:] = np.frombuffer(data, "u1")
    return store._store_dict["c/0"].to_bytes()


@settings(
    max_examples=3000 if "VZARR_TORTURE" in os.environ else 200,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data(), options=kinds(), theirs=st.sampled_from(THEIRS))
def test_all_is_as_zarr_has_it(
    repo: Repository, data: st.DataObject, options: dict[str, Any], theirs: str
) -> None:
    with writing(repo) as session:
        both = make_both(session, theirs, options)
        for _ in range(data.draw(st.integers(0, 3), label="writes")):
            where = data.draw(selections(both[0].shape), label="where")
            value = values_for(data, both[0], where)
            require_same(*(outcome(write, array, where, value) for array in both))
        require_same_stored(*both)
        if data.draw(st.booleans(), label="commit"):
            session.commit("all of it")
            with zarr.config.set({"array.order": options["config"]["order"]}):
                ours = zarr.open_array(repo.store("main"), path=both[0].path, mode="r")
                both = [ours, zarr.open_array(both[1].store, path=both[1].path, mode="r")]
        for _ in range(data.draw(st.integers(1, 3), label="reads")):
            what = data.draw(selections(both[0].shape), label="what")
            require_same(*(outcome(read, array, what) for array in both))


@pytest.mark.parametrize("dtype", [name for name in NUMBERS if np.dtype(name).kind in "biufc"])
def test_what_is_empty_is_as_in_zarr(repo: Repository, dtype: str):
    """Each number, over each fill value, alone and with others after it."""
    numbers = np.array(NUMBERS[dtype], dtype)
    rows = np.array(list(itertools.product(numbers, repeat=2)), dtype).ravel()
    with writing(repo) as session:
        for fill, theirs, empty, name in itertools.product(
            NUMBERS[dtype], THEIRS, [True, False], ["raw", "checksum"]
        ):
            both = make_both(
                session,
                theirs,
                {
                    "shape": rows.shape,
                    "chunks": (2,),
                    "dtype": dtype,
                    "fill_value": fill,
                    "config": {"write_empty_chunks": empty},
                    **CODECS[name],
                },
            )
            for array in both:
                array[:] = rows
            require_same_stored(*both)
            require_same(*(outcome(read, array, ("basic", ...)) for array in both))


@pytest.mark.parametrize("codec", ["raw", "zstd", "checksum", "gzip and a checksum", "big-endian"])
@pytest.mark.parametrize("stored", [b"", b"\0" * 3, b"\0" * 12, b"\0" * 20, b"\1" * 4000])
def test_a_chunk_of_another_size_fails_as_in_zarr(repo: Repository, codec: str, stored: bytes):
    options = {"shape": (8,), "chunks": (4,), "dtype": "<i4", **CODECS[codec]}
    with writing(repo) as session:
        for theirs in THEIRS:
            both = make_both(session, theirs, options)
            encoded = cpu.Buffer.from_bytes(encoded_bytes(stored, CODECS[codec]))
            for array in both:
                array[:] = 7
                array.store.set_sync(f"{array.path}/c/1", encoded)
            failed, wanted = (outcome(read, array, ("basic", ...)) for array in both)
            assert wanted[0] != "gave"
            require_same(failed, wanted)


@fused
@pytest.mark.parametrize("codec", CODECS)
def test_what_is_plain(repo: Repository, monkeypatch, codec: str):
    """Numbers in memory as in the file are; all else is left to zarr."""
    met: list[Any] = []
    monkeypatch.setattr("vzarr.pipeline._write_plain", lambda *these: met.append(these) or [])
    found = {}
    with writing(repo) as session:
        for dtype in NUMBERS:
            met.clear()
            options = {"shape": (4,), "chunks": (2,), "dtype": dtype}
            ours, _ = make_both(session, THEIRS[0], finished(options, codec))
            ours[:] = np.zeros(4, dtype)
            found[dtype] = bool(met)
    endian = "big" if codec == "big-endian" else "little"
    assert found == {
        dtype: np.dtype(dtype).kind in "biufc"
        and np.dtype(dtype) == np.dtype(dtype).newbyteorder(endian)
        and codec not in {"transposed", "shards", "zarr 2"}
        for dtype in NUMBERS
    }


def test_arrays_with_ways_of_their_own_are_left_to_zarr(repo: Repository):
    masked = np.ma.masked_array([1, 2, 3, 4], [False, True, False, False], dtype="<i4")
    with writing(repo) as session:
        for value in (masked, np.ma.masked_array([1, 2, 3, 4], dtype="<i4")):
            both = make_both(session, THEIRS[0], {"shape": (4,), "chunks": (2,), "dtype": "<i4"})
            require_same(*(outcome(write, array, ("basic", ...), value) for array in both))
            require_same_stored(*both)


@pytest.mark.parametrize("way", ["oindex", "vindex"])
@pytest.mark.parametrize("places", [[2, 0, 1], [0, 0, 1]])
def test_a_selection_as_long_as_a_chunk_is_not_a_chunk(repo, way, places):
    options = {"shape": (3,), "chunks": (3,), "dtype": "i4", "fill_value": 0, **CODECS["raw"]}
    with writing(repo) as session:
        for theirs in THEIRS:
            both = make_both(session, theirs, options)
            for array in both:
                write(array, (way, (places,)), np.array([10, 20, 30], "i4"))
            require_same_stored(*both)
