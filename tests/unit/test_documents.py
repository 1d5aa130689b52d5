"""Three-way merge of JSON documents."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vzarr.documents import merge_documents


def merge(base, ours, theirs):
    merged = merge_documents(*(json.dumps(side).encode() for side in (base, ours, theirs)))
    return None if merged is None else json.loads(merged)


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "merged"),
    [
        ({}, {"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": 1}, {}, {"a": 1, "b": 2}, {"b": 2}),
        ({"a": {"x": 1}}, {"a": {"x": 2}}, {"a": {"x": 1, "y": 3}}, {"a": {"x": 2, "y": 3}}),
        ({}, {"a": {"x": 1}}, {"a": {"y": 2}}, {"a": {"x": 1, "y": 2}}),
        ({"a": 1}, {"a": 2}, {"a": 2}, {"a": 2}),
        ({"shape": [1, 1]}, {"shape": [2, 1]}, {"shape": [1, 3]}, {"shape": [2, 3]}),
        ({"a": 1}, {"a": 2}, {"a": 3}, None),
        ({"a": 1}, {"a": 2}, {}, None),
        ({"a": 1}, {"a": True}, {"a": 1, "b": 1}, {"a": True, "b": 1}),
        ({"a": [1]}, {"a": [1, 2]}, {"a": [1, 3]}, None),
        ({"shape": [1]}, {"shape": [2]}, {"shape": [3]}, None),
        ({"shape": [1]}, {"shape": [1, 1]}, {"shape": [2]}, None),
        ({"shape": "x"}, {"shape": [1]}, {"shape": "x"}, {"shape": [1]}),
        ({"n": float("inf")}, {"n": float("inf"), "a": 1}, {"n": float("inf"), "b": 1}, "both"),
    ],
)
def test_merge(base, ours, theirs, merged):
    if merged == "both":
        merged = {**base, "a": 1, "b": 1}
    assert merge(base, ours, theirs) == merged


@pytest.mark.parametrize("bad", [b"", b"[1]", b"3", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_object_does_not_merge(bad):
    good = b'{"a": 1}'
    for sides in ((bad, good, good), (good, bad, good), (good, good, bad)):
        assert merge_documents(*sides) is None


def test_nan_is_equal_to_itself():
    merged = merge_documents(b'{"f": NaN}', b'{"f": NaN, "a": 1}', b'{"f": NaN, "b": 2}')
    assert merged == b'{"f": NaN, "a": 1, "b": 2}'


def test_order_and_indentation_are_ours():
    ours = json.dumps({"z": 1, "a": {"k": 1}}, indent=2).encode()
    merged = merge_documents(b'{"a": {"k": 1}}', ours, b'{"a": {"k": 2}, "n": 3}')
    assert merged == json.dumps({"z": 1, "a": {"k": 2}, "n": 3}, indent=2).encode()


values = st.recursive(
    st.none() | st.integers(-2, 2) | st.text(max_size=1),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(st.sampled_from("abc"), values, max_size=3)


@given(objects, objects)
def test_one_sided_changes_are_taken_and_equal_ones_agree(base, changed):
    assert merge(base, changed, base) == changed
    assert merge(base, base, changed) == changed
    assert merge(base, changed, changed) == changed


@given(objects, objects, objects)
def test_merging_is_symmetric(base, ours, theirs):
    assert merge(base, ours, theirs) == merge(base, theirs, ours)
