"""Blame and bisect: by example, and against models that look at every commit."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import vzarr
from tests.unit.test_combine import ancestors, plant, put
from tests.unit.test_session import GROUP, array
from vzarr.errors import InvalidInputError, NotFoundError, RefNotFoundError
from vzarr.format import CommitRecord, Digest


def chunks(**values: bytes | None) -> dict[str, bytes | None]:
    return {f"a/c/{name[1:]}": value for name, value in values.items()}


def messages(blame: vzarr.Blame) -> dict[int, str]:
    return {number: commit.message for (number,), commit in blame.items()}


@pytest.fixture
def filled(repo):
    """An array of which chunk 0 is old, chunk 1 changed once more, chunk 2 twice."""
    documents = {"zarr.json": GROUP, "a/zarr.json": array()}
    put(repo, "main", "fill", **documents, **chunks(c0=b"0", c1=b"1", c2=b"2", c3=b"3"))
    put(repo, "main", "both", **chunks(c1=b"x", c2=b"x"))
    put(repo, "main", "elsewhere", other=b"1")
    put(repo, "main", "one", **chunks(c2=b"y", c3=None))
    return repo


# ── blame ────────────────────────────────────────────────────────────────────────────────────────


def test_each_chunk_names_its_last_change(filled):
    blame = filled.blame("a")
    assert messages(blame) == {0: "fill", 1: "both", 2: "one"}
    assert blame[2,].id == filled.branches["main"]
    assert blame.region((1,)) == (slice(10, 20),)
    assert [(commit.message, found) for commit, found in blame.by_commit()] == [
        ("one", [(2,)]),
        ("both", [(1,)]),
        ("fill", [(0,)]),
    ]
    with pytest.raises(KeyError):
        blame[3,]


def test_blame_of_an_older_commit(filled):
    assert messages(filled.blame("/a/", ref="main~2")) == {
        0: "fill",
        1: "both",
        2: "both",
        3: "fill",
    }


def test_it_prints_a_line_a_commit(repo):
    with repo.transaction("main", "fill") as store:
        data = np.arange(1, 65).reshape(8, 8)
        zarr.create_array(store, name="a", data=data, chunks=(2, 2))
    with repo.transaction("main", "fix some") as store:
        found = zarr.open_array(store, path="a")
        found[0:2, 0:4] = -5
        found[6, 6] = -1
        found[4, :2] = -1
    with repo.transaction("main", "fix a block") as store:
        zarr.open_array(store, path="a")[2:4, 4:8] = -1
    lines = str(repo.blame("a", ref="main")).splitlines()
    assert [line.split("  ")[-1].strip() for line in lines] == [
        "2 chunks [2:4, 4:8]",
        "4 chunks (0, 0), (0, 1), (2, 0), (3, 3)",
        "10 chunks (0, 2), (0, 3), (1, 0), (1, 1), …",
    ]
    assert lines[0].startswith(repo.branches["main"][:12])
    assert "fix a block" in lines[0]


@pytest.mark.parametrize(
    ("region", "found"),
    [
        (slice(0, 10), {0}),
        (slice(9, 11), {0, 1}),
        (25, {2}),
        (-40, {0}),
        ((slice(10, None),), {1, 2}),
        (..., {0, 1, 2}),
        ((5, ...), {0}),
        (slice(5, 5), set()),
        (slice(30, 20), set()),
        (np.int64(12), {1}),
    ],
)
def test_a_region_takes_the_chunks_it_touches(filled, region, found):
    assert set(messages(filled.blame("a", region))) == found


@pytest.mark.parametrize(
    "region", ["x", 1.5, 40, -41, slice(0, 10, 2), slice("a"), (0, 0), (..., ...), None.__class__]
)
def test_a_region_that_does_not_fit_is_refused(filled, region):
    with pytest.raises(InvalidInputError, match="region="):
        filled.blame("a", region)


def test_what_is_no_array_is_refused(filled):
    with pytest.raises(NotFoundError):
        filled.blame("nope")
    with pytest.raises(NotFoundError):
        filled.blame("other")
    with pytest.raises(InvalidInputError, match="group"):
        filled.blame("")
    with pytest.raises(RefNotFoundError):
        filled.blame("a", ref="nowhere")


def test_an_array_without_chunks_or_axes(repo):
    put(repo, "main", "empty", **{"a/zarr.json": array()})
    blame = repo.blame("a")
    assert (len(blame), str(blame)) == (0, "a: no chunks")
    with repo.transaction("main", "scalar") as store:
        zarr.create_array(store, name="s", data=np.array(5))
    assert [commit.message for commit in repo.blame("s").values()] == ["scalar"]
    assert "1 chunk []" in str(repo.blame("s", ()))


def test_a_merge_is_blamed_for_nothing_it_was_handed(filled):
    filled.branches.create("dev", at="main~1")
    put(filled, "dev", "dev", **chunks(c0=b"dev"))
    filled.merge("dev")
    assert messages(filled.blame("a")) == {0: "dev", 1: "both", 2: "one"}
    # What both sides have, the first parent explains.
    put(filled, "dev", "the same", **chunks(c2=b"y"))
    filled.merge("dev")
    assert messages(filled.blame("a"))[2] == "one"


def test_a_merge_is_blamed_for_what_it_made_itself(filled):
    filled.branches.create("dev", at="main~1")
    put(filled, "dev", "dev", **chunks(c2=b"dev"))
    session = filled.session("main")
    session.set("a/c/2", b"neither")
    root = session.root_id()
    session.commit("neither")
    parents = tuple(Digest(bytes.fromhex(filled.branches[name])) for name in ("main", "dev"))
    put(filled, "main", "own", **chunks(c2=b"made by hand"))
    record = CommitRecord(
        parents, Digest(bytes.fromhex(filled.root_id("main"))), "a", 10**15, "by hand", {}
    )
    with filled._environment.write() as txn:
        merged = vzarr.history.put(txn, record).hex()
    assert root != filled.root_id(merged)
    assert messages(filled.blame("a", ref=merged)) == {0: "fill", 1: "both", 2: "by hand"}


def test_a_moved_array_keeps_its_history(filled):
    session = filled.session("main")
    session.set("g/zarr.json", GROUP)
    session.commit("group")
    session.move("a", "g/b")
    session.commit("move")
    session.set("g/b/c/0", b"new")
    session.commit("change")
    session.move("g", "h")
    session.commit("move the group")
    assert messages(filled.blame("h/b")) == {0: "change", 1: "both", 2: "one"}


def test_an_array_that_was_deleted_and_made_anew_has_no_older_history(filled):
    session = filled.session("main")
    session.delete_below("a")
    session.commit("delete")
    put(filled, "main", "anew", **{"a/zarr.json": array()}, **chunks(c0=b"0", c1=b"x"))
    assert messages(filled.blame("a")) == {0: "anew", 1: "anew"}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_blame_equals_a_model_that_looks_at_each_chunk_in_each_commit(data):
    values = st.sampled_from([None, b"x", b"y", b"z"])
    with (
        tempfile.TemporaryDirectory() as directory,
        vzarr.open(Path(directory) / "blame.vzarr", durability="normal") as repo,
    ):
        contents: dict[str, dict[int, bytes | None]] = {}
        parents: dict[str, list[str]] = {}
        for number in range(data.draw(st.integers(1, 10))):
            some = st.lists(st.sampled_from(list(contents)), max_size=3, unique=True)
            before = data.draw(some) if contents else []
            sides = [contents[parent] for parent in before] or [{}]
            found = {}
            for chunk in range(5):
                inherited = st.sampled_from([side.get(chunk) for side in sides])
                found[chunk] = data.draw(inherited | values)
            stored = {f"a/c/{n}": value for n, value in found.items() if value is not None}
            files = {"a/zarr.json": array(50), "n": b"%d" % number, **stored}
            commit = plant(repo, before, files, data.draw(st.integers(0, 4)))
            contents[commit], parents[commit] = found, before

        def culprit(commit: str, chunk: int) -> str:
            for parent in parents[commit]:
                if contents[parent][chunk] == contents[commit][chunk]:
                    return culprit(parent, chunk)
            return commit

        for commit, found in contents.items():
            expected = {
                (chunk,): culprit(commit, chunk)
                for chunk, value in found.items()
                if value is not None
            }
            blame = repo.blame("a", ref=commit)
            assert {chunk: change.id for chunk, change in blame.items()} == expected


# ── bisect ───────────────────────────────────────────────────────────────────────────────────────


def number_of(store) -> int:
    data = store.session.get("n")
    return -1 if data is None else int(bytes(data))


@pytest.fixture
def line(repo):
    return [repo.branches["main"]] + [put(repo, "main", str(n), n=b"%d" % n) for n in range(100)]


@pytest.mark.parametrize("first_bad", [0, 1, 37, 63, 98, 99])
def test_bisect_finds_the_first_bad_commit(repo, line, first_bad):
    seen: list[tuple[str, int]] = []
    found = repo.bisect(
        line[0],
        "main",
        lambda store: np.bool_(number_of(store) < first_bad),
        progress=lambda commit, left: seen.append((commit.message, left)),
    )
    assert found == repo.show(line[first_bad + 1])
    assert len(seen) <= math.ceil(math.log2(100))
    lefts = [left for _, left in seen]
    assert lefts == sorted(lefts, reverse=True)
    assert lefts[0] == 100


def test_bisect_of_neighbours_tests_nothing(repo, line):
    def never(store):
        raise AssertionError

    assert repo.bisect("main~1", "main", never).id == line[-1]


def test_bisect_needs_a_good_ancestor(repo, line):
    for good, bad in (("main", "main"), ("main", "main~3")):
        with pytest.raises(InvalidInputError, match="good"):
            repo.bisect(good, bad, lambda store: True)
    repo.branches.create("dev", at="main~3")
    put(repo, "dev", x=b"1")
    with pytest.raises(InvalidInputError, match="no ancestor"):
        repo.bisect("dev", "main", lambda store: True)
    with pytest.raises(RefNotFoundError):
        repo.bisect("nowhere", "main", lambda store: True)


def test_an_error_of_the_test_comes_through(repo, line):
    def broken(store):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        repo.bisect(line[0], "main", broken)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_bisect_of_any_graph_finds_a_bad_commit_with_good_parents(data):
    with (
        tempfile.TemporaryDirectory() as directory,
        vzarr.open(Path(directory) / "bisect.vzarr", durability="normal") as repo,
    ):
        first = plant(repo, [], {"n": b"0"})
        parents: dict[str, list[str]] = {first: []}
        for number in range(data.draw(st.integers(1, 16))):
            some = st.lists(
                st.sampled_from(list(parents)[-6:]), min_size=1, max_size=2, unique=True
            )
            before = data.draw(some)
            parents[plant(repo, before, {"n": b"%d" % number}, 10**15 + number)] = before
        bad = list(parents)[-1]
        culprit = data.draw(st.sampled_from(sorted(ancestors(parents, bad) - {first})))
        asked: list[str] = []

        def is_good(store) -> bool:
            asked.append(store.session.base)
            return culprit not in ancestors(parents, store.session.base)

        assert repo.bisect(first, bad, is_good).id == culprit
        assert len(asked) == len(set(asked)) < len(parents)
