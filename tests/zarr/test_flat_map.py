"""A store is a flat map from keys to bytes, whatever the keys are and in whatever order they come.

The hierarchy below puts chunks, documents and stray files in different places, and moves them when
an array's metadata arrive late, change or go. A dict cannot go wrong in that way: it is the model.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import hypothesis.strategies as st
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, example, given, settings
from zarr.core.buffer import cpu, default_buffer_prototype
from zarr.storage import MemoryStore

from vzarr import Repository, VzarrStore

PROTOTYPE = default_buffer_prototype()

# ── keys and values ──────────────────────────────────────────────────────────────────────────────

LONG = "n" * 300 + "ü" * 300
assert len(LONG.encode()) > 511

# Few names, so that keys meet. Numbers, "c" and dotted numbers are what chunk keys are made of.
NAMES = ["a", "ab", "b", "c", "0", "1", "10", "01", "0.0", "0.1", "c.0", "c.0.1", LONG]
ODD_NAMES = [
    "zarr.json",
    ".zattrs",
    "ü",
    "日本",
    "e\u0301",
    "a b",
    "%",
    "..",
    "\\",
    "\0",
    "4294967296",
]
DOCUMENTS = ["zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"]

names = st.sampled_from(NAMES) | st.sampled_from(ODD_NAMES)
paths = st.lists(st.sampled_from(NAMES), max_size=2).map("/".join)
chunk_like = st.builds(
    lambda prefix, numbers, separator: "".join([prefix, separator.join(map(str, numbers))]),
    st.sampled_from(["", "c/", "c."]),
    st.lists(st.integers(0, 3), min_size=1, max_size=3),
    st.sampled_from("./"),
)
keys = st.one_of(
    st.lists(names, min_size=1, max_size=4).map("/".join),
    st.builds(lambda path, chunk: f"{path}/{chunk}".lstrip("/"), paths, chunk_like),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(lambda k: k.strip("/")),
)
values = st.binary(max_size=4) | st.sampled_from([bytes(5000), bytes(300_000)])


def _array_documents() -> dict[str, list[bytes]]:
    """Documents as zarr writes them, of groups and of arrays of all layouts of chunk keys."""
    found: dict[str, list[bytes]] = {"zarr.json": [b"not json", b"{}"], ".zarray": [b"{}"]}
    for zarr_format in (2, 3):
        store = MemoryStore()
        group = zarr.create_group(store, path="group", zarr_format=zarr_format)
        group.attrs["units"] = "K"
        names = ("default", "v2") if zarr_format == 3 else ("v2",)
        for ndim, separator, name in itertools.product((0, 1, 2), "./", names):
            zarr.create_array(
                store,
                name=f"{name}{ndim}{'dot' if separator == '.' else 'slash'}",
                shape=(4,) * ndim,
                chunks=(1,) * ndim,
                dtype=np.uint8,
                zarr_format=zarr_format,
                chunk_key_encoding={"name": name, "separator": separator},
            )
        for key, value in store._store_dict.items():
            name = key.rpartition("/")[2]
            found.setdefault(name, []).append(value.to_bytes())
    return found


ARRAY_DOCUMENTS = _array_documents()
documents = st.builds(
    lambda path, name: (f"{path}/{name}".lstrip("/"), name), paths, st.sampled_from(DOCUMENTS)
).flatmap(
    lambda found: st.tuples(
        st.just(found[0]), st.sampled_from(ARRAY_DOCUMENTS.get(found[1], [b"{}"]))
    )
)


# ── steps ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Set:
    item: tuple[str, bytes]
    how: str


@dataclass(frozen=True)
class Delete:
    key: str
    how: str


@dataclass(frozen=True)
class DeleteDir:
    path: str


@dataclass(frozen=True)
class Do:
    what: str


steps = st.one_of(
    st.builds(
        Set,
        st.tuples(keys, values) | documents,
        st.sampled_from(["sync", "async", "if absent"]),
    ),
    st.builds(
        Delete, keys | documents.map(lambda item: item[0]), st.sampled_from(["sync", "async"])
    ),
    st.builds(DeleteDir, st.lists(names, max_size=3).map("/".join)),
    st.builds(Do, st.sampled_from(["check", "commit", "discard", "reopen"])),
)


async def follow(repo: Repository, branch: str, sequence: list) -> None:
    session = repo.session(branch)
    model: dict[str, bytes] = {}
    committed: dict[str, bytes] = {}
    for step in sequence:
        store = session.store
        match step:
            case Set((key, value), "sync"):
                store.set_sync(key, cpu.Buffer.from_bytes(value))
                model[key] = value
            case Set((key, value), "async"):
                await store.set(key, cpu.Buffer.from_bytes(value))
                model[key] = value
            case Set((key, value), _):
                await store.set_if_not_exists(key, cpu.Buffer.from_bytes(value))
                model.setdefault(key, value)
            case Delete(key, how):
                # One that is there, for the most part.
                key = next((known for known in sorted(model) if known >= key), key)
                if how == "sync":
                    store.delete_sync(key)
                else:
                    await store.delete(key)
                model.pop(key, None)
            case DeleteDir(path):
                await store.delete_dir(path)
                model = {key: model[key] for key in model if not is_below(key, path)}
            case Do("discard"):
                session.discard()
                model = dict(committed)
            case Do("check"):
                await compare(store, model)
            case Do(what):
                commit = session.commit("a step", allow_empty=True)
                committed = dict(model)
                await compare(repo.store(commit), committed)
                if what == "reopen":
                    session = repo.session(branch)
    await compare(session.store, model)
    assert session.has_changes == (model != committed)


def is_below(key: str, path: str) -> bool:
    return not path or key.startswith(f"{path}/")


async def compare(store: VzarrStore, model: Mapping[str, bytes]) -> None:
    """Compare all that a store says with what a dict says."""
    assert await listed(store.list()) == sorted(model)
    for key, value in model.items():
        assert (await store.get(key, PROTOTYPE)).to_bytes() == value
        assert store.get_sync(key).to_bytes() == value
        assert await store.exists(key)
        assert await store.getsize(key) == len(value)
    parts = {"", "a", "0", "none"}
    for key in model:
        parts.update(itertools.accumulate(key.split("/"), "{}/{}".format))
    # A slash at the end of a path means nothing, so that "a" and "a/" are one; zarr knows no other.
    for path in {part.rstrip("/") for part in parts}:
        below = {key: value for key, value in model.items() if is_below(key, path)}
        start = len(path) + 1 if path else 0
        children = {key[start:].partition("/")[0] for key in below}
        assert (await store.get(path, PROTOTYPE) is not None) == (path in model)
        assert await store.exists(path) == (path in model)
        for prefix in {path, f"{path}/"} - {"/"}:
            assert await listed(store.list_prefix(prefix)) == sorted(below)
            assert await listed(store.list_dir(prefix)) == sorted(children)
            assert await store.is_empty(prefix) == (not below)
            assert await store.getsize_prefix(prefix) == sum(map(len, below.values()))


async def listed(names: AsyncIterator[str]) -> list[str]:
    return sorted([name async for name in names])


branches = map("b{}".format, itertools.count())
ARRAY = ARRAY_DOCUMENTS["zarr.json"][-1]


@pytest.fixture(params=["in memory", "staged"])
def batches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "staged":
        monkeypatch.setattr("vzarr.changes.BATCH_BYTES", 1)


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(steps, max_size=15))
@example([Set(("a/0/0", b"x"), "sync"), Set(("a/zarr.json", ARRAY), "sync"), Do("commit")])
def test_any_sequence_of_steps_equals_a_dict(repo, batches, sequence):
    branch = next(branches)
    repo.branches.create(branch, at="main")
    asyncio.run(follow(repo, branch, sequence))
