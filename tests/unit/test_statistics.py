"""What a change did to values, in numbers."""

from __future__ import annotations

import base64
import json
import struct

import numpy as np
import pytest
import zarr

from vzarr import statistics
from vzarr.missing import find_missing, markers
from vzarr.statistics import Budget, Statistics, Summary, decoded_bytes, element_bytes

NAN = float("nan")


@pytest.fixture
def change(repo):
    """Change an array by a function of the store, and give what that did to its values."""

    def change(make, alter, budget=None) -> Statistics:
        with repo.transaction("main", "make") as store:
            make(store)
        with repo.transaction("main", "alter") as store:
            alter(store)
        return repo.diff("main~1", "main")["a"].statistics(budget)

    return change


def array(values, chunks=None, **options):
    values = np.asarray(values)

    def make(store):
        made = zarr.create_array(
            store, name="a", shape=values.shape, chunks=chunks or values.shape,
            dtype=values.dtype, **options,
        )  # fmt: skip
        made[...] = values

    return make


def assign(key, values):
    def alter(store):
        zarr.open_array(store, path="a")[key] = values

    return alter


def resize(*shape):
    def alter(store):
        zarr.open_array(store, path="a").resize(shape)

    return alter


def test_some_elements(change):
    found = change(array(np.arange(8.0), (4,)), assign(slice(1, 3), [-1, 12]))
    assert found == Statistics(
        changed=2,
        compared=4,
        old=Summary(4, 0, 0.0, 3.0, 1.5),
        new=Summary(4, 0, -1.0, 12.0, 3.5),
        difference=Summary(2, 0, -2.0, 10.0, 4.0),
    )


def test_nan_is_one_value(change):
    found = change(array([NAN, NAN, 1, 2]), assign(slice(1, 3), [5, NAN]))
    assert (found.changed, found.compared) == (2, 4)
    assert found.old == Summary(2, 2, 1.0, 2.0, 1.5)
    assert found.new == Summary(2, 2, 2.0, 5.0, 3.5)
    # From nothing to something is no step.
    assert found.difference is None


def test_what_attributes_call_missing(change):
    values = np.array([1e20, 1, 2], "f4")
    found = change(array(values, attributes={"_FillValue": 1e20}), assign(slice(0, 2), [3, 1.5]))
    assert found.old == Summary(2, 1, 1.0, 2.0, 1.5)
    assert found.new.missing == 0
    assert found.difference == Summary(1, 0, 0.5, 0.5, 0.5)


def test_integers_are_exact(change):
    big = 2**63 - 1
    found = change(array(np.array([-big, 0, 7])), assign(1, big))
    assert (found.old.minimum, found.new.maximum) == (-big, big)
    assert type(found.new.maximum) is int


def test_growing_and_shrinking(change):
    found = change(array(np.arange(6.0), (4,)), resize(3))
    # The second chunk is gone, and the first one has less.
    assert (found.changed, found.compared, found.removed, found.added) == (0, 0, 2, 0)
    assert found.lost == Summary(2, 0, 4.0, 5.0, 4.5)


def test_appending(change):
    def append(store):
        opened = zarr.open_array(store, path="a")
        opened.resize((7,))
        opened[4:] = [10, 11, 12]

    found = change(array(np.arange(5.0), (4,)), append)
    assert (found.changed, found.compared, found.added, found.removed) == (1, 1, 2, 0)
    assert found.gained == Summary(2, 0, 11.0, 12.0, 11.5)
    assert (found.old.maximum, found.new.maximum) == (4.0, 10.0)


def test_a_new_array_and_one_that_is_gone(repo):
    with repo.transaction("main", "make") as store:
        array([1, 2, 3])(store)
    with repo.transaction("main", "remove") as store:
        del zarr.open_group(store)["a"]
    gained = repo.diff("main~2", "main~1")["a"].statistics()
    lost = repo.diff("main~1", "main")["a"].statistics()
    assert gained == Statistics(changed=0, added=3, gained=Summary(3, 0, 1, 3, 2.0))
    assert lost == Statistics(changed=0, removed=3, lost=Summary(3, 0, 1, 3, 2.0))


def test_a_chunk_that_becomes_fill_value(change):
    found = change(array([5, 5, 1, 1], (2,)), assign(slice(0, 2), 0))
    assert (found.changed, found.new) == (2, Summary(2, 0, 0, 0, 0.0))


@pytest.mark.parametrize(
    ("values", "key", "value"),
    [
        (np.array(["a", "b"], "U3"), 0, "c"),
        (np.array([1 + 1j, 2]), 0, 3j),
        (np.array(["2020-01-01", "NaT"], "M8[s]"), 0, np.datetime64("2021-01-01", "s")),
        (np.array([(1, 2.0), (3, 4.0)], [("x", "i4"), ("y", "f8")]), 0, (9, 2.0)),
    ],
)
@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
def test_values_without_an_order_are_counted(change, values, key, value):
    found = change(array(values), assign(key, np.array(value, values.dtype)))
    assert (found.changed, found.compared) == (1, 2)
    assert found.old is found.new is found.difference is None


def test_another_compression_changes_nothing(change):
    values = np.arange(100)

    def compress(store):
        array(values, compressors=None, overwrite=True)(store)

    found = change(array(values), compress)
    assert (found.changed, found.compared, found.difference) == (0, 100, None)


def test_another_type(change):
    def narrow(store):
        array(np.array([1.0, NAN, 7], "f4"), overwrite=True)(store)

    found = change(array(np.array([1.0, NAN, 3])), narrow)
    assert (found.changed, found.difference) == (1, Summary(1, 0, 4.0, 4.0, 4.0))


def test_what_is_not_compared(change):
    def rechunk(store):
        array(np.arange(8), (4,), overwrite=True)(store)

    assert "another shape" in change(array(np.arange(8), (2,)), rechunk).left_out


def test_types_with_nothing_in_common(change):
    def spell(store):
        array(np.array([True, False]), overwrite=True)(store)
        document = json.loads(bytes(store.session.get("a/zarr.json")))
        document["data_type"] = "complex64"
        store.session.set("a/c/0", struct.pack("<4f", 1, 2, 3, 4))
        document["codecs"] = [{"name": "bytes", "configuration": {"endian": "little"}}]
        document["fill_value"] = [0, 0]
        store.session.set("a/zarr.json", json.dumps(document).encode())

    found = change(array(np.array([True, True])), spell)
    assert found.left_out.endswith("the old and the new type have no values in common")


def test_a_chunk_that_cannot_be_decoded(change):
    def damage(store):
        store.session.set("a/c/0", b"no such thing")

    found = change(array(np.arange(4)), damage)
    assert found.changed is None
    assert found.left_out.startswith("they cannot be decoded: ")


def test_groups_and_moves_have_none(repo):
    with repo.transaction("main", "make") as store:
        array([1])(store)
        zarr.open_group(store).attrs["x"] = 1
    session = repo.session("main")
    session.move("a", "b")
    session.commit("move")
    session.close()
    assert repo.diff("main~2", "main~1")[""].statistics() == Statistics()
    assert repo.diff("main~1", "main")["b"].statistics() == Statistics()


def test_a_budget(repo, monkeypatch):
    with repo.transaction("main", "make") as store:
        array(np.ones((6, 4)), (1, 4))(store)
    (change,) = (one for one in repo.diff("main~1", "main") if one.path == "a")
    read = []
    original = type(change._source).read
    monkeypatch.setattr(
        type(change._source), "read", lambda self, blob: read.append(blob) or original(self, blob)
    )
    for budget in (Budget(chunks=5), Budget(nbytes=6 * 32 - 1)):
        assert change.statistics(budget).left_out
    # Nothing but the array's document was looked at.
    assert len(read) == 2
    budget = Budget(chunks=6, nbytes=6 * 32)
    assert change.statistics(budget).added == 24
    assert (budget.chunks, budget.nbytes) == (0, 0)
    assert change.statistics(budget).left_out


def test_progress(repo):
    with repo.transaction("main", "make") as store:
        array(np.ones((6, 4)), (1, 4))(store)
    calls = []
    repo.diff("main~1", "main")["a"].statistics(progress=lambda *call: calls.append(call))
    assert calls[0] == (0, 6, "compare a")
    assert calls[-1] == (6, 6, "compare a")


def test_memory_holds_one_chunk_at_a_time(repo, monkeypatch):
    with repo.transaction("main", "make") as store:
        array(np.ones((6, 4)), (1, 4))(store)
    alive = []
    original = statistics._Comparison.add

    def add(self, before, after):
        alive.append((before, after.size))
        original(self, before, after)

    monkeypatch.setattr(statistics._Comparison, "add", add)
    assert repo.diff("main~1", "main")["a"].statistics().added == 24
    assert alive == [(None, 4)] * 6


@pytest.mark.parametrize(
    ("dtype", "width"),
    [
        ("float64", 8), ("int8", 1), ("bool", 1), ("complex128", 16), ("r24", 3),
        ("<f4", 4), ("|b1", 1), ("<U5", 20), ("|S7", 7), ("string", 16), ("<M8[ns]", 16),
    ],
)  # fmt: skip
def test_widths(dtype, width):
    assert element_bytes(dtype) == width


def test_sizes_of_chunks(repo):
    with repo.transaction("main", "make") as store:
        array(np.ones((5, 4), "f4"), (2, 4))(store)
    node = repo.session("main").hierarchy.node("a")
    # The last one, too, is stored whole.
    assert [decoded_bytes(node.array, (n, 0)) for n in (0, 2)] == [32, 32]


def test_markers():
    spelled = base64.b64encode(struct.pack("<d", -999.0)).decode()
    assert markers({"_FillValue": spelled, "missing_value": [1, 2.5]}) == (-999.0, 1, 2.5)
    assert markers({"_FillValue": "1e20", "missing_value": "none"}) == (1e20,)
    assert markers({"_FillValue": True, "missing_value": None}) == ()
    values = np.array([1e20, 1, np.nan], "f4")
    assert find_missing(values, (1e20,)).tolist() == [True, False, True]
    assert find_missing(np.array([-999, 1]), (-999.0,)).tolist() == [True, False]
    assert find_missing(np.array([1, 2], "u1"), (1e300,)).tolist() == [False, False]
