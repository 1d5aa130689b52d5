"""What is said of many chunks at once is what is said of them one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vzarr.diff import _box
from vzarr.extents import SHOWN, Extent
from vzarr.format import encode_coordinates
from vzarr.metadata import ArrayMetadata

SIDES = st.sampled_from([None, b"a", b"b"])


@st.composite
def arrays(draw) -> ArrayMetadata:
    ndim = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(0, 9)) for _ in range(ndim))
    regular = tuple(draw(st.integers(1, 3)) for _ in range(ndim))
    cut = tuple((1, 2, 0, 3) if draw(st.booleans()) else length for length in regular)
    return ArrayMetadata(shape, draw(st.sampled_from([regular, regular, cut])), None, "i4", "")


@given(st.data())
def test_counts_and_box(data):
    new = data.draw(arrays())
    old = data.draw(st.sampled_from([new, None]) | arrays().filter(lambda a: a.shape != new.shape))
    sides = {"changed": (b"a", b"b"), "added": (None, b"b"), "removed": (b"a", None)}
    # Mostly a box without a hole.
    ranges = [range(data.draw(st.integers(0, 2)), data.draw(st.integers(1, 4))) for _ in new.shape]
    chunks: list[tuple[int, ...]] = [()]
    for axis in ranges:
        chunks = [(*chunk, place) for chunk in chunks for place in axis]
    missing = data.draw(st.sets(st.sampled_from(chunks), max_size=1)) if chunks else set()
    kinds = data.draw(st.sampled_from([["changed"], ["changed", "added"], list(sides)]))
    changes = [
        (encode_coordinates(chunk), *sides[data.draw(st.sampled_from(kinds))])
        for chunk in chunks
        if chunk not in missing
    ]
    extent = Extent(old, new)
    cut = data.draw(st.integers(0, len(changes)))
    for row in filter(None, (changes[:cut], changes[cut:])):
        extent.add(row)
    assert extent.total == len(changes)
    for kind, pair in sides.items():
        assert extent.counts[kind] == sum(change[1:] == pair for change in changes)
    assert extent.first == changes[:SHOWN]
    if extent.is_regular:
        remaining = [chunk for chunk in chunks if chunk not in missing]
        assert extent.box() == _box([new.region(chunk) for chunk in remaining])
    else:
        alone = all(isinstance(length, int) for length in new.grid)
        inside = all(new.region(chunk) is not None for chunk in chunks if chunk not in missing)
        assert not alone or not inside or (extent.counts["removed"] and old != new)


def test_keys_of_another_shape_are_not_told_together():
    array = ArrayMetadata((4, 4), (1, 1), None, "i4", "")
    extent = Extent(array, array)
    extent.add([(encode_coordinates((1,)), b"a", b"b")])
    assert not extent.is_regular
    assert extent.total == 1
