"""The codec pipeline: as zarr's own to whoever uses it, installed with care, and nothing leaks."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.core import codec_pipeline as pipelines
from zarr.core.buffer import Buffer
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.storage import LocalStore, MemoryStore

import vzarr
from vzarr import CorruptError, Repository, pipeline
from vzarr.format import Blob, chunk_digest
from vzarr.pipeline import VzarrCodecPipeline
from vzarr.system import cores

NAME = "vzarr.pipeline.VzarrCodecPipeline"
DEFAULT = "zarr.core.codec_pipeline.BatchedCodecPipeline"
fused = pytest.mark.skipif(
    not hasattr(pipelines, "FusedCodecPipeline"), reason="this zarr has no fused pipeline"
)


@pytest.fixture(autouse=True)
def installed() -> Any:
    """Other tests may have put zarr's configuration back."""
    with zarr.config.set({"codec_pipeline.path": NAME}):
        yield


# ── installation ─────────────────────────────────────────────────────────────────────────────────

SCRIPT = """
import sys, zarr
{before}
import vzarr
with vzarr.open(sys.argv[1]) as repo:
    store = repo.session("main").store
{after}
    print(zarr.config.get("codec_pipeline.path"))
"""


def setting(path: Path, before: str = "", after: str = "", **environ: str) -> str:
    """Tell what zarr's configuration names once a new process has made a store."""
    code = SCRIPT.format(before=before, after="    " + after)
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env={**{k: v for k, v in os.environ.items() if k != "VZARR_PIPELINE"}, **environ},
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def test_it_is_the_default_once_there_is_a_store(path):
    assert setting(path) == NAME


def test_a_variable_opts_out(path):
    assert setting(path, VZARR_PIPELINE="zarr") == DEFAULT
    assert setting(path, VZARR_PIPELINE="vzarr") == NAME


def test_another_value_of_the_variable_is_refused(path):
    told = setting(path, VZARR_PIPELINE="no")
    assert "VZARR_PIPELINE is 'no'" in told
    assert "'zarr'" in told


@fused
def test_what_the_user_chose_stands(path):
    theirs = "zarr.core.codec_pipeline.FusedCodecPipeline"
    assert setting(path, f"zarr.config.set({{'codec_pipeline.path': '{theirs}'}})") == theirs
    assert setting(path, ZARR_CODEC_PIPELINE__PATH=theirs) == theirs


def test_what_the_user_chooses_later_stands(path):
    again = f"zarr.config.set({{'codec_pipeline.path': '{DEFAULT}'}}); repo.session('main').store"
    assert setting(path, after=again) == DEFAULT


def test_zarr_finds_it_without_vzarr_being_imported():
    code = "import zarr; a = zarr.zeros((4,)); print(type(a.async_array.codec_pipeline).__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ZARR_CODEC_PIPELINE__PATH": NAME},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "BatchedCodecPipeline"


def test_other_stores_have_zarrs_default(tmp_path):
    for store in (MemoryStore(), LocalStore(tmp_path / "a")):
        array = zarr.create_array(store, name="a", shape=(8,), chunks=(2,), dtype="i4")
        array[:] = 3
        made = array.async_array.codec_pipeline
        assert type(made) is BatchedCodecPipeline
        assert made.batch_size == zarr.config.get("codec_pipeline.batch_size")


def test_ours_have_it(repo: Repository):
    array = zarr.create_array(repo.session("main").store, shape=(8,), chunks=(2,), dtype="i4")
    made = array.async_array.codec_pipeline
    if hasattr(pipelines, "FusedCodecPipeline"):
        assert type(made) is VzarrCodecPipeline
    else:
        assert type(made) is BatchedCodecPipeline
        assert made.batch_size == 100


# ── as any pipeline ──────────────────────────────────────────────────────────────────────────────

KINDS: dict[str, dict[str, Any]] = {
    "raw": {"compressors": None},
    "default codec": {},
    "big chunks": {"chunks": (40, 300), "compressors": None},
    "one chunk": {"chunks": (60, 700)},
    "Blosc and a filter": {
        "filters": [zarr.codecs.TransposeCodec(order=(1, 0))],
        "compressors": [zarr.codecs.BloscCodec()],
    },
    "checksum": {"compressors": [zarr.codecs.Crc32cCodec()]},
    "shards": {"shards": (30, 350), "chunks": (10, 70)},
    "raw shards": {"shards": (30, 350), "chunks": (10, 70), "compressors": None},
    "big-endian": {"dtype": ">f8"},
    "zarr 2": {"zarr_format": 2},
    "zarr 2, raw, Fortran": {"zarr_format": 2, "compressors": None, "order": "F"},
    "text": {"zarr_format": 2, "dtype": "U5"},
    "dates": {"dtype": "M8[s]"},
    "truth": {"dtype": "bool"},
}
SELECTIONS = {
    "all": np.s_[:],
    "a row": np.s_[17],
    "an element": np.s_[3, 5],
    "a part": np.s_[5:33, 100:633],
    "steps": np.s_[1:50:7, ::13],
    "nothing": np.s_[10:10],
}


def make(store: Any, kind: dict[str, Any]) -> zarr.Array[Any]:
    options: dict[str, Any] = {"chunks": (7, 50), "dtype": "f8", **kind}
    return zarr.create_array(store, name="a", shape=(60, 700), **options)


def values(dtype: Any, count: int) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(1)
    return random.integers(0, 5, count).astype("i8").astype(dtype)


@pytest.fixture(params=KINDS)
def both(request, repo: Repository) -> tuple[zarr.Array[Any], zarr.Array[Any]]:
    """An array in ours, and the same in a store with zarr's default; some chunks are missing."""
    kind = KINDS[request.param]
    ours = make(repo.session("main").store, kind)
    theirs = make(MemoryStore(), kind)
    data = values(ours.dtype, 60 * 700).reshape(60, 700)
    for array in (ours, theirs):
        array[:40] = data[:40]
        array[3:50, 30:444] = data[3:50, 30:444]
        array[14:21] = np.zeros((7, 700), array.dtype)
        array[9, 9] = data[0, 0]
    return ours, theirs


def test_reads_are_the_same(both):
    ours, theirs = both
    for name, selection in SELECTIONS.items():
        np.testing.assert_array_equal(ours[selection], theirs[selection], err_msg=name)
    rows, columns = [1, 5, 44, 59], [0, 333, 699, 2]
    np.testing.assert_array_equal(ours.oindex[rows, columns], theirs.oindex[rows, columns])
    np.testing.assert_array_equal(ours.vindex[rows, columns], theirs.vindex[rows, columns])
    mask = np.zeros((60, 700), bool)
    mask[::7, ::5] = True
    np.testing.assert_array_equal(ours.vindex[mask], theirs.vindex[mask])

    _compare_stored(ours, theirs)


def _compare_stored(ours: Any, theirs: Any) -> None:
    both = ours, theirs
    listed = [sorted(zarr.core.sync.sync(_keys(array.store))) for array in both]
    assert listed[0] == listed[1]
    assert ours.nchunks_initialized == theirs.nchunks_initialized
    session = ours.store.session
    for key in listed[0]:
        assert bytes(session.get(key)) == theirs.store._store_dict[key].to_bytes(), key


async def _keys(store: Any) -> list[str]:
    return [key async for key in store.list()]


def test_they_are_the_same_after_a_commit(both, repo):
    ours, theirs = both
    ours.store.session.commit("all of it")
    array = zarr.open_array(repo.store("main"), path="a", mode="r")
    np.testing.assert_array_equal(array[:], theirs[:])
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_strings_of_any_length(repo):
    texts = np.array([["a", "bb" * 50], ["", "ü"]] * 300, dtype="T" if _has_strings() else "O")
    array = zarr.create_array(
        repo.session("main").store, name="a", shape=texts.shape, chunks=(7, 1), dtype="string"
    )
    array[:] = texts
    assert array[:].tolist() == texts.tolist()


def _has_strings() -> bool:
    return hasattr(np.dtypes, "StringDType")


def test_without_dimensions(repo):
    array = zarr.create_array(repo.session("main").store, name="a", shape=(), dtype="i4")
    array[...] = 7
    assert array[...] == 7


# ── where the bytes are ──────────────────────────────────────────────────────────────────────────


def filled(repo: Repository, chunks: int, items: int) -> np.ndarray[Any, Any]:
    """Commit an array of so many raw chunks with so many numbers each, and give them."""
    data = np.arange(1, chunks * items + 1, dtype="i4")
    with repo.transaction("main", "fill") as store:
        array = zarr.create_array(
            store, name="a", shape=data.shape, chunks=(items,), dtype="i4", compressors=None
        )
        array[:] = data
    return data


def opened(repo: Repository) -> zarr.Array[Any]:
    return zarr.open_array(repo.store("main"), path="a", mode="r")


def test_what_was_read_stays_when_the_file_is_closed(path):
    with vzarr.open(path) as repo:
        data = filled(repo, 6, 64 << 10)
        found = opened(repo)[:]
        part = opened(repo)[5:9]
    gc.collect()
    np.testing.assert_array_equal(found, data)
    np.testing.assert_array_equal(part, data[5:9])
    found[:] = 0


def test_a_chunk_is_found_that_came_into_the_file_after_the_block_began(repo):
    session = repo.session("main")
    data = bytes(range(256)) * 1024
    blob = Blob(chunk_digest(data), len(data))
    with session.in_place() as read:
        writer = threading.Thread(target=lambda: (session.set("x", data), session._work.spill()))
        writer.start()
        writer.join()
        assert session._work.changes.staged(blob.digest) is None
        assert bytes(read(blob)) == data
    session.discard()


def test_views_are_of_the_file_and_not_copies(repo):
    filled(repo, 1, 64 << 10)
    session = repo.session("main")
    blob = session.find("a/c/0")
    with session.in_place() as read:
        first, second = (np.frombuffer(read(blob), np.uint8) for _ in range(2))
        assert np.shares_memory(first, second)
        assert not first.flags.writeable
        del first, second


@fused
@pytest.mark.parametrize(
    ("compressors", "message"), [("auto", r"(?i)zstd"), (None, "reshape|divisor")]
)
def test_a_failed_decoding_leaves_no_view_behind(repo, compressors, message):
    array = zarr.create_array(
        repo.session("main").store,
        name="a",
        shape=(100_000,),
        chunks=(50_000,),
        dtype="f8",
        compressors=compressors,
    )
    array[:] = np.random.default_rng(0).random(100_000)
    session = array.store.session
    session.set("a/c/1", b"no zstd frame" * 9000)
    session.commit("broken")
    with pytest.raises(Exception, match=message) as caught:
        opened(repo)[:]
    seen = 0
    trace = caught.value.__traceback__
    while trace is not None:
        for name, value in trace.tb_frame.f_locals.items():
            assert not isinstance(value, (Buffer, memoryview)), (name, value)
            assert name != "sources"
            seen += 1
        trace = trace.tb_next
    assert seen


@pytest.mark.parametrize("items", [16, 64 << 10])
def test_damage_is_noticed(repo, monkeypatch, items):
    filled(repo, 40, items)
    blob = repo.session("main").find("a/c/33")
    other = chunk_digest(b"something else")
    monkeypatch.setattr(
        "vzarr.objects.chunk_digest",
        lambda data: other if chunk_digest(data) == blob.digest else chunk_digest(data),
    )
    monkeypatch.setattr("vzarr.objects.chunk_checksum", lambda data: bytes(16))
    with pytest.raises(CorruptError, match=blob.digest.hex()[:12]):
        opened(repo)[:]


@fused
def test_the_first_error_stops_the_rest(repo, monkeypatch):
    filled(repo, 64, 256 << 10)
    read = pipeline._read_plain
    begun = []

    def fail(*arguments):
        begun.append(1)
        if len(begun) == 3:
            raise CorruptError("no")
        return read(*arguments)

    monkeypatch.setattr(pipeline, "_read_plain", fail)
    with pytest.raises(CorruptError, match="no"):
        opened(repo)[:]
    # 16 parts; those that other threads had begun come to their end.
    assert len(begun) < 3 + 2 * cores()


# ── threads ──────────────────────────────────────────────────────────────────────────────────────


@fused
@pytest.mark.parametrize(("items", "several"), [(16, False), (256 << 10, True)])
def test_big_chunks_are_shared_among_threads(repo, monkeypatch, items, several):
    filled(repo, 64, items)
    monkeypatch.setattr(pipeline, "_workers", lambda for_each_core: 2)
    both = threading.Barrier(2, timeout=60)
    read = pipeline._read_plain
    met: set[int] = set()

    def meet(*arguments):
        if several and threading.get_ident() not in met:
            both.wait()
        met.add(threading.get_ident())
        return read(*arguments)

    monkeypatch.setattr(pipeline, "_read_plain", meet)
    opened(repo)[:]
    assert len(met) == 1 + several


@fused
def test_zarrs_setting_bounds_the_threads(repo):
    with zarr.config.set({"codec_pipeline.max_workers": 3}):
        assert pipeline._workers(2) == 3
    assert pipeline._workers(2) == 2 * cores()


def test_threads_read_and_write_at_once(repo):
    session = repo.session("main")
    array = zarr.create_array(
        session.store, name="a", shape=(8, 400_000), chunks=(1, 100_000), dtype="i4"
    )
    errors = []

    def work(row: int) -> None:
        try:
            for number in range(1, 6):
                array[row] = number
                assert (array[row] == number).all()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(row,)) for row in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    session.commit("rows")
    assert (opened(repo)[:] == 5).all()


@fused
def test_the_chunks_of_a_fork_wait_for_the_file_together(repo):
    session = repo.session("main")
    zarr.create_array(session.store, name="a", shape=(3000,), chunks=(1,), dtype="i4")
    fork = session.fork()
    before = repo.session("main").environment.last_txn_id()
    array = zarr.open_array(fork.store, path="a")
    array[:] = np.arange(1, 3001)
    assert repo.session("main").environment.last_txn_id() - before < 10
    np.testing.assert_array_equal(array[:], np.arange(1, 3001))
    session.merge_fork(fork)
    session.commit("forked")
    np.testing.assert_array_equal(opened(repo)[:], np.arange(1, 3001))
