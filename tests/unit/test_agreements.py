"""Equal changes of two transactions: the first one wins. Of two sessions: they agree, as in git."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import zarr

import vzarr
from vzarr.documents import agreed_keys

GIVEN = b'{"shape": [4], "attributes": {"n": 1, "unit": "K", "deep": {"x": 1}}, "fill_value": 0}'


@pytest.fixture
def counted(repo: vzarr.Repository) -> vzarr.Repository:
    with repo.transaction() as store:
        zarr.create_group(store, attributes={"n": 0})
        zarr.create_array(store, name="c", shape=(4,), chunks=(2,), dtype="i8")
    return repo


def count(store: vzarr.VzarrStore) -> None:
    counter = zarr.open_array(store, path="c")
    counter[0] = counter[0] + 1


def count_in_attributes(store: vzarr.VzarrStore) -> None:
    group = zarr.open_group(store)
    group.attrs["n"] += 1
    group.attrs["fresh"] = group.attrs.get("fresh", 0) + 1


def count_in_a_new_array(store: vzarr.VzarrStore) -> None:
    counter = zarr.open_array(store, path="new", mode="a", shape=(), dtype="i8")
    counter[...] = counter[...] + 1


def race(repo: vzarr.Repository, function: Callable[[vzarr.VzarrStore], object]) -> int:
    """Run a function in a transaction during whose first attempt another one runs it, too."""
    attempts = 0

    def interrupted(store: vzarr.VzarrStore) -> None:
        nonlocal attempts
        attempts += 1
        function(store)
        if attempts == 1:
            repo.run(function)

    repo.run(interrupted)
    return attempts


def test_two_that_count_are_two(counted):
    assert race(counted, count) == 2
    assert race(counted, count_in_attributes) == 2
    assert race(counted, count_in_a_new_array) == 2
    root = zarr.open_group(counted.store("main"), mode="r")
    assert root["c"][0] == 2
    assert dict(root.attrs) == {"n": 2, "fresh": 2}
    assert root["new"][()] == 2


def test_the_conflict_says_where_and_why(counted):
    with pytest.raises(vzarr.ConflictError) as error, counted.transaction() as store:
        count(store)
        count_in_attributes(store)
        counted.run(count)
        counted.run(count_in_attributes)
    root, chunk = sorted(error.value.conflicts, key=lambda conflict: conflict.path)
    assert (root.path, root.kind, root.document) == ("", "document", "zarr.json")
    assert root.reason == "attributes/n, attributes/fresh: to the same value"
    assert (chunk.path, chunk.coordinates, chunk.region) == ("c", (0,), (slice(0, 1),))
    assert chunk.ours == chunk.theirs != chunk.base
    assert "to the same value" in str(chunk)


def test_an_element_that_both_counted_in_chunks_that_differ(counted):
    def count_and_sign(name: int) -> Callable[[vzarr.VzarrStore], None]:
        def function(store: vzarr.VzarrStore) -> None:
            count(store)
            zarr.open_array(store, path="c")[1] = name

        return function

    with pytest.raises(vzarr.ConflictError) as error, counted.transaction() as store:
        count(store)
        counted.run(count_and_sign(7))
    (conflict,) = error.value.conflicts
    assert conflict.region == (slice(0, 1),)
    assert list(conflict.decode("ours")) == list(conflict.decode("theirs")) == [1]


@pytest.mark.parametrize("merge", ["ours", "theirs", lambda conflict: "ours"])
def test_a_strategy_lets_them_agree(counted, merge):
    with counted.transaction(merge=merge) as store:
        count(store)
        counted.run(count)
    assert zarr.open_array(counted.store("main"), path="c")[0] == 1


def test_a_function_adds_up_what_both_counted(counted):
    def add_up(conflict: vzarr.Conflict) -> np.ndarray:
        base, ours, theirs = (conflict.decode(side) for side in ("base", "ours", "theirs"))
        return ours + theirs - base

    with counted.transaction(merge=add_up) as store:
        count(store)
        counted.run(count)
    assert zarr.open_array(counted.store("main"), path="c")[0] == 2


def test_what_both_made_anew_alike_is_no_conflict(counted):
    def make(store: vzarr.VzarrStore) -> None:
        zarr.open_group(store, path="group", mode="a")
        zarr.open_array(store, path="array", mode="a", shape=(3,), dtype="i4")

    assert race(counted, make) == 1


def test_what_both_deleted_is_no_conflict(counted):
    assert race(counted, lambda store: store.session.delete_below("c")) == 1


def test_sessions_agree(counted):
    one, two = counted.session(), counted.session()
    for session in (one, two):
        count(session.store)
        count_in_attributes(session.store)
    head = one.commit("one")
    assert two.commit("two") == head
    one, two = counted.session(), counted.session()
    one.root_group["c"][:] = np.array([5, 5, 0, 0])
    two.root_group["c"][:] = np.array([5, 6, 0, 0])
    one.commit("one")
    with pytest.raises(vzarr.ConflictError) as error:
        two.commit("two")
    assert error.value.conflicts[0].region == (slice(1, 2),)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (GIVEN, GIVEN, []),
        (GIVEN.replace(b"1,", b"2,"), GIVEN.replace(b"1,", b"2,"), ["attributes/n"]),
        (GIVEN.replace(b"1,", b"2,"), GIVEN.replace(b"1,", b"3,"), []),
        (GIVEN.replace(b'"K"', b'"C"'), GIVEN.replace(b"1}", b"2}"), []),
        (GIVEN.replace(b"1}", b"2}"), GIVEN.replace(b"1}", b"2}"), ["attributes/deep/x"]),
        (GIVEN.replace(b"[4]", b"[5]"), GIVEN.replace(b"[4]", b"[5]"), []),
        (GIVEN.replace(b'"n"', b'"m"'), GIVEN.replace(b'"n"', b'"m"'), ["attributes/m"]),
        (b"[1]", b"[1]", []),
        (b"not JSON", b"not JSON", []),
    ],
)
def test_agreed_keys(ours, theirs, expected):
    assert agreed_keys(GIVEN, ours, theirs) == expected
