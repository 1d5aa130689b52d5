"""zarr's own tests of stores, all of them, and what a store of a snapshot does beside."""

from __future__ import annotations

import gc
import inspect
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import zarr
from dask.base import tokenize
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, cpu, default_buffer_prototype
from zarr.testing.store import StoreTests

import vzarr
from vzarr import ReadOnlyError, Repository, SessionStateError, VzarrStore

PROTOTYPE = default_buffer_prototype()


def buffer(data: bytes) -> cpu.Buffer:
    return cpu.Buffer.from_bytes(data)


async def listed(names) -> list[str]:
    return sorted([name async for name in names])


# ── zarr's tests ─────────────────────────────────────────────────────────────────────────────────


class _ZarrTests(StoreTests[VzarrStore, cpu.Buffer]):
    store_cls = VzarrStore
    buffer_cls = cpu.Buffer

    @pytest.fixture
    def store_kwargs(self, repo: Repository) -> dict:
        return {"session": repo.session("main")}

    async def set(self, store: VzarrStore, key: str, value: Buffer) -> None:
        store.session.set(key, value.to_bytes())

    async def get(self, store: VzarrStore, key: str) -> Buffer:
        return buffer(store.session.get(key))

    def test_store_repr(self, store: VzarrStore) -> None:
        assert repr(store) == f"VzarrStore('{store.session.environment.path}', 'main')"
        assert str(store) == f"vzarr://{store.session.environment.path}"

    def test_store_supports_writes(self, store: VzarrStore) -> None:
        assert store.supports_writes
        assert store.supports_deletes

    def test_store_supports_listing(self, store: VzarrStore) -> None:
        assert store.supports_listing


class TestFresh(_ZarrTests):
    """In a session without edits."""


class TestStaged(_ZarrTests):
    """Every value goes to the file at once, in a session that has written there before."""

    @pytest.fixture
    def store_kwargs(self, repo: Repository, monkeypatch: pytest.MonkeyPatch) -> dict:
        monkeypatch.setattr("vzarr.changes.BATCH_BYTES", 1)
        session = repo.session("main")
        session.set("other", b"other")
        session.delete("other")
        return {"session": session}


class TestCommitted(_ZarrTests):
    """What a test writes is committed, and what it reads comes from a store of the new head."""

    @pytest.fixture
    def store_kwargs(self, repo: Repository) -> dict:
        self.repo = repo
        return {"session": repo.session("main")}

    async def set(self, store: VzarrStore, key: str, value: Buffer) -> None:
        await super().set(store, key, value)
        self.commit(store)

    async def get(self, store: VzarrStore, key: str) -> Buffer:
        self.commit(store)
        head = self.repo.store(store.session.base)
        assert head.read_only
        return await head.get(key, PROTOTYPE)

    def commit(self, store: VzarrStore) -> None:
        if store.session.has_changes:
            store.session.commit("a test's write")


def test_none_of_zarrs_tests_is_overridden():
    abstract = {"test_store_repr", "test_store_supports_writes", "test_store_supports_listing"}
    for cls in (_ZarrTests, TestFresh, TestStaged, TestCommitted):
        assert not {name for name in vars(cls) if name.startswith("test_")} - abstract


# ── snapshots ────────────────────────────────────────────────────────────────────────────────────

VALUES = {
    "zarr.json": b'{"zarr_format": 3, "node_type": "group"}',
    "a/zarr.json": b"{}",
    "a/c/0/0": b"0123456789",
    "ab/c/0": b"",
    "big": bytes(300_000),
}

RANGES = [
    None,
    RangeByteRequest(2, 5),
    RangeByteRequest(8, 20),
    OffsetByteRequest(3),
    OffsetByteRequest(30),
    SuffixByteRequest(4),
    SuffixByteRequest(40),
    SuffixByteRequest(0),
]


async def everything_read(store: Store) -> dict:
    """The answer of every method of the ABC that reads."""
    answers: dict = {
        "list": await listed(store.list()),
        "capabilities": (
            store.supports_writes,
            store.supports_deletes,
            store.supports_listing,
            store.supports_partial_writes,
            store.supports_consolidated_metadata,
        ),
    }
    for prefix in ("", "a", "a/", "ab", "a/c", "a/c/0/", "none", "zarr.json"):
        answers["list_prefix", prefix] = await listed(store.list_prefix(prefix))
        answers["list_dir", prefix] = await listed(store.list_dir(prefix))
        answers["is_empty", prefix] = await store.is_empty(prefix)
        answers["getsize_prefix", prefix] = await store.getsize_prefix(prefix)
    for key in [*VALUES, "none", "a"]:
        answers["exists", key] = await store.exists(key)
        for byte_range in RANGES:
            answers["get", key, str(byte_range)] = _bytes(
                await store.get(key, PROTOTYPE, byte_range)
            )
            answers["get_sync", key, str(byte_range)] = _bytes(
                store.get_sync(key, prototype=PROTOTYPE, byte_range=byte_range)
            )
        if key in VALUES:
            answers["getsize", key] = await store.getsize(key)
            ranges = {
                number: _bytes(part)
                async for batch in store.get_ranges(key, RANGES, prototype=PROTOTYPE)
                for number, part in batch
            }
            ranges_sync = store.get_ranges_sync(key, RANGES, prototype=PROTOTYPE)
            answers["get_ranges", key] = ranges
            assert ranges == {number: _bytes(part) for number, part in ranges_sync}
    requests = [(key, byte_range) for key in [*VALUES, "none"] for byte_range in RANGES]
    answers["get_partial_values"] = [
        _bytes(value) for value in await store.get_partial_values(PROTOTYPE, iter(requests))
    ]
    many = store._get_many((key, PROTOTYPE, byte_range) for key, byte_range in requests)
    answers["get_many"] = [(key, _bytes(value)) async for key, value in many]
    return answers


def _bytes(value: Buffer | None) -> bytes | None:
    return None if value is None else value.to_bytes()


WRITES: dict[str, Callable] = {
    "set": lambda store: store.set("a/c/0/0", buffer(b"x")),
    "set of a big value": lambda store: store.set("a/c/0/0", buffer(bytes(300_000))),
    "set_sync": lambda store: store.set_sync("a/c/0/0", buffer(b"x")),
    "set_if_not_exists": lambda store: store.set_if_not_exists("new", buffer(b"x")),
    "set_if_not_exists of a key there is": lambda s: s.set_if_not_exists("big", buffer(b"x")),
    "_set_many": lambda store: store._set_many([("new", buffer(b"x"))]),
    "delete": lambda store: store.delete("a/c/0/0"),
    "delete of a key there is not": lambda store: store.delete("none"),
    "delete_sync": lambda store: store.delete_sync("a/c/0/0"),
    "delete_dir": lambda store: store.delete_dir("a"),
    "clear": lambda store: store.clear(),
}


async def _attempt(write: Callable, store: VzarrStore) -> None:
    result = write(store)
    if inspect.isawaitable(result):
        await result


class TestReadOnly:
    @pytest.fixture
    def writable(self, repo: Repository) -> VzarrStore:
        session = repo.session("main")
        for key, value in VALUES.items():
            session.set(key, value)
        repo.tags.create("v1", at=session.commit("fill"))
        return session.store

    @pytest.fixture(params=["tag", "commit", "view"])
    def store(self, request, repo: Repository, writable: VzarrStore) -> VzarrStore:
        if request.param == "view":
            return writable.with_read_only(True)
        return repo.store("v1" if request.param == "tag" else repo.tags["v1"])

    async def test_every_read_gives_what_the_writable_store_gives(self, store, writable):
        assert await everything_read(store) == await everything_read(writable)

    async def test_the_answers_are_right(self, store):
        answers = await everything_read(store)
        assert answers["list"] == sorted(VALUES)
        assert answers["list_prefix", "a"] == ["a/c/0/0", "a/zarr.json"]
        assert answers["list_dir", "a"] == ["c", "zarr.json"]
        assert answers["getsize_prefix", "a"] == 12
        assert answers["getsize_prefix", ""] == sum(map(len, VALUES.values()))
        assert answers["is_empty", "none"]
        assert not answers["is_empty", "a/c"]
        assert answers["get", "a/c/0/0", str(SuffixByteRequest(4))] == b"6789"
        assert answers["get", "none", "None"] is None
        assert {key: answers["get", key, "None"] for key in VALUES} == VALUES

    async def test_what_is_not_there_raises_as_zarr_expects(self, store):
        with pytest.raises(FileNotFoundError):
            await store.getsize("none")
        with pytest.raises(BaseExceptionGroup) as caught:
            store.get_ranges_sync("none", [None], prototype=PROTOTYPE)
        assert caught.group_contains(FileNotFoundError)
        with pytest.raises(BaseExceptionGroup) as caught:
            [_ async for _ in store.get_ranges("none", [None], prototype=PROTOTYPE)]
        assert caught.group_contains(FileNotFoundError)

    @pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
    async def test_every_write_is_refused(self, store, write):
        before = store.session.root_id()
        with pytest.raises(ReadOnlyError, match="read-only mode") as caught:
            await _attempt(write, store)
        assert isinstance(caught.value, ValueError)
        assert store.session.root_id() == before

    def test_no_method_of_the_abc_that_writes_is_left_out(self, store):
        tested = {name.split()[0] for name in WRITES}
        writing = ("set", "_set_many", "delete", "clear")
        assert {name for name in dir(VzarrStore) if name.startswith(writing)} == tested

    def test_a_snapshot_has_no_writable_store(self, repo, store):
        reader = repo.store("v1")
        assert reader.with_read_only(True) == reader
        with pytest.raises(ReadOnlyError):
            reader.with_read_only(False)
        with pytest.raises(ReadOnlyError):
            reader.with_read_only()

    async def test_with_read_only_is_another_view_of_the_same_session(self, writable):
        view = writable.with_read_only(True)
        assert view.read_only
        assert view != writable
        assert view.session is writable.session
        await writable.set("later", buffer(b"later"))
        assert _bytes(await view.get("later", PROTOTYPE)) == b"later"
        back = view.with_read_only(False)
        assert back == writable
        await back.set("last", buffer(b"last"))
        assert _bytes(await writable.get("last", PROTOTYPE)) == b"last"

    def test_closing_a_view_leaves_the_session_open(self, writable):
        view = writable.with_read_only(True)
        view.close()
        assert not view._is_open
        assert view.get_sync("big") is not None
        writable.close()
        writable.set_sync("more", buffer(b"more"))
        assert view.get_sync("more").to_bytes() == b"more"


# ── buffers ──────────────────────────────────────────────────────────────────────────────────────


def _readonly(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


MUTABLE: dict[str, Callable[[bytearray], np.ndarray]] = {
    "an array": lambda memory: np.frombuffer(memory, "u1"),
    "a part of one": lambda memory: np.frombuffer(memory, "u1")[5:-5],
    "every other": lambda memory: np.frombuffer(memory, "u1")[::2],
    "a read-only view": lambda memory: _readonly(np.frombuffer(memory, "u1")[:]),
    "a read-only memoryview": lambda memory: np.frombuffer(memoryview(memory).toreadonly(), "u1"),
    "another type": lambda memory: np.frombuffer(memory, "i4").view("u1"),
}


class TestBuffers:
    """Bytes belong to whoever was given them, for as long as he keeps any view of them."""

    SIZES = (10, 5_000, 70_000, 300_000, 1_100_000)

    @pytest.mark.parametrize("view", MUTABLE.values(), ids=MUTABLE)
    @pytest.mark.parametrize("size", SIZES[1:])
    async def test_what_is_set_may_change_afterwards(self, repo, view, size):
        store = repo.session("main").store
        for key, write in (("async", store.set), ("sync", store.set_sync)):
            memory = bytearray(b"abcdefgh" * (size // 8))
            value = cpu.Buffer.from_array_like(view(memory))
            expected = value.to_bytes()
            result = write(key, value)
            if inspect.isawaitable(result):
                await result
            memory[:] = bytes(len(memory))
            assert store.get_sync(key).to_bytes() == expected
            commit = store.session.commit(key)
            assert repo.store(commit).get_sync(key).to_bytes() == expected

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("how", ["staged", "committed"])
    async def test_what_was_got_stays(self, repo, size, how):
        values = {str(n): bytes([n]) * (size + n) for n in range(12)}
        session = repo.session("main")
        for key, value in values.items():
            session.set(key, value)
        store = session.store if how == "staged" else repo.store(session.commit("values"))
        held = []
        for key, value in values.items():
            got = await store.get(key, PROTOTYPE)
            part = await store.get(key, PROTOTYPE, RangeByteRequest(3, 9))
            held += [
                (got, value),
                (store.get_sync(key).as_numpy_array()[2:-2], value[2:-2]),
                (memoryview(store.get_sync(key).as_buffer_like())[1:].cast("B"), value[1:]),
                (store.get_sync(key)[4:6], value[4:6]),
                (np.asarray(part.as_numpy_array())[::2], value[3:9:2]),
            ]
            del got, part
        for _ in range(3):
            for key, value in values.items():
                assert (await store.get(key, PROTOTYPE)).to_bytes() == value
        for view, value in held:
            found = view.to_bytes() if isinstance(view, Buffer) else bytes(view)
            assert found == value

    def test_also_with_many_threads(self, repo):
        values = {str(n): bytes([n]) * (100_000 + n) for n in range(40)}
        session = repo.session("main")
        for key, value in values.items():
            session.set(key, value)
        store = repo.store(session.commit("values"))

        def read(start: int) -> None:
            held = []
            for step in range(80):
                key = str((start * 7 + step) % 40)
                held.append((store.get_sync(key).as_numpy_array(), values[key]))
                held = held[-5:]
                for array, value in held:
                    assert bytes(array) == value

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(read, range(6)))

    async def test_what_was_got_cannot_be_written_to(self, repo):
        session = repo.session("main")
        session.set("key", bytes(300_000))
        for store in (session.store, repo.store(session.commit("zeros"))):
            for value in (store.get_sync("key"), await store.get("key", PROTOTYPE)):
                assert not value.as_numpy_array().flags.writeable


class TestIdentity:
    def test_stores_of_one_state_are_equal(self, repo):
        first = repo.session().commit("first", allow_empty=True)
        repo.tags.create("v1", at=first)
        assert repo.store("v1") == repo.store(first)
        assert repo.store("main") == repo.store("v1")
        assert hash(repo.store("v1")) == hash(repo.store(first))
        assert repo.store("main~1") != repo.store("v1")
        assert len({repo.store("v1"), repo.store(first), repo.store("main~1")}) == 2

    def test_two_sessions_are_two_stores(self, repo):
        session = repo.session("main")
        assert session.store == session.store
        assert session.store is not session.store
        assert session.store != repo.session("main").store
        assert session.store != repo.store("main")
        assert session.store != repo.store("main", autocommit=True)
        assert session.store != "a string"

    def test_other_files_are_other_stores(self, repo, tmp_path):
        with vzarr.open(tmp_path / "other.vzarr") as other:
            assert repo.store("main") != other.store("main")

    def test_tokens_name_the_content(self, repo):
        store = repo.store()
        empty = tokenize(store)
        assert tokenize(store) == empty == tokenize(repo.store("main"))
        store.set_sync("key", buffer(b"value"))
        assert tokenize(store) != empty
        repo.commit("key")
        assert tokenize(repo.store("main")) == tokenize(store)
        assert tokenize(repo.store("main~1")) == empty

    def test_tokens_are_the_same_in_another_process(self, repo):
        repo.store().set_sync("key", buffer(b"value"))
        repo.commit("key")
        script = (
            "import sys, vzarr; from dask.base import tokenize;"
            "print(tokenize(vzarr.open(sys.argv[1], 'r').store('main')))"
        )
        assert run_python(script, repo.path) == tokenize(repo.store("main"))

    def test_arrays_of_one_snapshot_have_one_token(self, repo):
        zarr.save_array(repo.store(), np.arange(6), path="a")
        repo.commit("a")
        first, second = (zarr.open_array(repo.store("main"), path="a", mode="r") for _ in range(2))
        assert first == second
        assert tokenize(first) == tokenize(second)


# ── pickles ──────────────────────────────────────────────────────────────────────────────────────


def run_python(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def read_key(store: VzarrStore) -> tuple[int, bytes, bool, str]:
    return os.getpid(), store.get_sync("key").to_bytes(), store.read_only, repr(store)


def same(store: VzarrStore) -> VzarrStore:
    return store


@pytest.fixture(scope="module")
def worker() -> Iterator[ProcessPoolExecutor]:
    """Another process, which inherits nothing of this one."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


class TestPickles:
    @pytest.fixture
    def head(self, repo: Repository) -> str:
        session = repo.session("main")
        session.set("key", b"value")
        return session.commit("key")

    def test_a_snapshot_travels_to_another_process(self, repo, head, worker):
        store = repo.store(head)
        pid, value, read_only, text = worker.submit(read_key, store).result()
        assert pid != os.getpid()
        assert value == b"value"
        assert read_only
        assert text == repr(store)

    def test_and_back(self, repo, head, worker):
        store = repo.store(head)
        assert worker.submit(same, store).result() == store
        assert pickle.loads(pickle.dumps(store)) == store

    def test_a_snapshot_is_read_after_its_branch_moved(self, repo, head, worker):
        pickled = pickle.dumps(repo.store("main"))
        with repo.transaction("main", "overwrite") as store:
            store.set_sync("key", buffer(b"another"))
        assert read_key(pickle.loads(pickled))[1] == b"value"
        assert worker.submit(read_key, pickle.loads(pickled)).result()[1] == b"value"

    def test_it_needs_nothing_of_the_repository_that_made_it(self, path):
        with vzarr.open(path) as repo:
            repo.store().set_sync("key", buffer(b"value"))
            repo.commit("key")
            pickled = pickle.dumps(repo.store("main"))
        store = pickle.loads(pickled)
        assert read_key(store)[1] == b"value"
        store.close()
        vzarr.delete(path)
        with pytest.raises(FileNotFoundError):
            pickle.loads(pickled)

    def test_an_array_travels_with_its_store(self, repo, worker):
        zarr.save_array(repo.store(), np.arange(6), path="a")
        repo.commit("a")
        array = zarr.open_array(repo.store("main"), path="a", mode="r")
        assert worker.submit(np.asarray, array).result().tolist() == list(range(6))

    @pytest.mark.parametrize("autocommit", [False, True])
    def test_a_writable_store_stays_in_its_process(self, repo, head, worker, autocommit):
        session = repo.session("main")
        store = VzarrStore(session, autocommit=autocommit)
        with pytest.raises(SessionStateError, match=r"fork\(\)"):
            worker.submit(pickle.loads, pickle.dumps(store)).result()

    def test_and_so_does_a_view_of_uncommitted_work(self, repo, head, worker):
        session = repo.session("main")
        session.set("key", b"edit")
        view = session.store.with_read_only(True)
        with pytest.raises(SessionStateError, match=r"fork\(\)"):
            worker.submit(pickle.loads, pickle.dumps(view)).result()
        session.commit("edit")
        assert worker.submit(read_key, view).result()[1] == b"edit"

    @pytest.mark.parametrize("read_only", [False, True])
    @pytest.mark.parametrize("autocommit", [False, True, "each"])
    def test_in_its_process_it_is_the_same_session(self, repo, head, read_only, autocommit):
        store = (
            repo.store("main", autocommit=autocommit) if autocommit else repo.session("main").store
        )
        store = store.with_read_only(read_only)
        again = pickle.loads(pickle.dumps(store))
        assert again == store
        assert again.session is store.session
        assert again.read_only is read_only

    def test_a_session_that_is_gone_cannot_be_found(self, repo):
        pickled = pickle.dumps(repo.session("main").store)
        gc.collect()
        with pytest.raises(SessionStateError, match="uncommitted work is, or was"):
            pickle.loads(pickled)
