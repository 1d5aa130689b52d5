"""Three-way merge of JSON documents."""

from __future__ import annotations

import json

import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from vzarr.documents import encode_document, is_document, merge_documents


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


BAD = [b"", b"[1]", b"3", b"{", b"\xff", b"[" * 100_000, '{"a": 1}'.encode("utf-16")]


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_json_object_does_not_merge(bad):
    good = b'{"a": 1}'
    assert is_document(good)
    assert not is_document(bad)
    for sides in ((bad, good, good), (good, bad, good), (good, good, bad)):
        assert merge_documents(*sides) is None


def test_nan_is_equal_to_itself():
    merged = merge_documents(b'{"f": NaN}', b'{"f": NaN, "a": 1}', b'{"f": NaN, "b": 2}')
    assert merged == b'{"f": NaN, "a": 1, "b": 2}'


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "merged"),
    [
        # What only one side added keeps its order, behind what was there.
        ("ba", "zabx", "ab", "bazx"),
        # What both added has none.
        ("ba", "baxz", "bya", "baxyz"),
        ("ba", "bazx", "bazxy", "baxyz"),
        # Unless they agree.
        ("ba", "bazx", "zxab", "bazx"),
        ("cba", "cb", "acb", "cb"),
    ],
)
def test_order_is_the_bases(base, ours, theirs, merged):
    documents = [dict.fromkeys(keys, 0) | {"n": {}} for keys in (base, ours, theirs)]
    documents[1]["n"], documents[2]["n"] = {"one": 1}, {"two": 2}
    expected = {**dict.fromkeys(merged[: len(set(base) & set(merged))], 0)}
    expected |= {"n": {"one": 1, "two": 2}} | dict.fromkeys(merged, 0)
    encoded = [json.dumps(document).encode() for document in documents]
    for sides in (encoded, [encoded[0], encoded[2], encoded[1]]):
        assert merge_documents(*sides) == json.dumps(expected).encode()


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "merged"),
    [(2, 2, 2, 2), (2, 4, 2, 4), (2, 4, 4, 4), (2, None, 2, None), (None, 2, 4, None)],
)
def test_indentation_is_what_one_side_made_it(base, ours, theirs, merged):
    contents = ({"k": 0}, {"k": 0, "a": 1}, {"k": 0, "b": 2})
    indents = (base, ours, theirs)
    sides = [
        json.dumps(content, indent=indent).encode()
        for content, indent in zip(contents, indents, strict=True)
    ]
    expected = json.dumps({"k": 0, "a": 1, "b": 2}, indent=merged).encode()
    assert merge_documents(*sides) == expected
    assert merge_documents(sides[0], sides[2], sides[1]) == expected


def test_deep_documents_merge_where_python_can_encode_them():
    deep = b"[" * 1500 + b"]" * 1500
    base = b'{\n "deep": %s, "k": 0}' % deep
    merged = merge_documents(base, base.replace(b"0", b"1"), base.replace(b"}", b', "a": 2}'))
    assert merged is None or merged.endswith(b',\n "k": 1,\n "a": 2\n}')


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
    sides = [json.dumps(side).encode() for side in (base, ours, theirs)]
    merged = merge_documents(*sides)
    assert merged == merge_documents(sides[0], sides[2], sides[1])
    # To merge again changes nothing.
    assert merged is None or merge_documents(sides[0], merged, sides[2]) == merged


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_documents_are_encoded_as_zarr_does(zarr_format):
    store = zarr.storage.MemoryStore()
    attributes = {"units": "K", "é": float("nan")}
    zarr.create_group(store, zarr_format=zarr_format, attributes=attributes)
    name = "zarr.json" if zarr_format == 3 else ".zattrs"
    stored = store._store_dict[name].to_bytes()
    assert encode_document(json.loads(stored)) == stored
