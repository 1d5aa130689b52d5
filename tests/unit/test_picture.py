"""Numbers as characters and colours."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vzarr.picture import (
    COLOUR_MAPS,
    SHADES,
    Scale,
    colour_bar,
    colours,
    enlarge,
    fit,
    paint,
    plot,
    reduce,
    shade,
)
from vzarr.verbs_view import COLOUR_MAPS as CHOICES

NAN = np.nan


def luminance(colour: str) -> float:
    """Give relative luminance by the definition of sRGB."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_the_choices_are_the_maps():
    assert CHOICES == COLOUR_MAPS


@pytest.mark.parametrize("name", COLOUR_MAPS)
def test_colours_are_colours(name):
    found = colours(name)
    assert len(found) == 256
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in found)


@pytest.mark.parametrize("name", ["sea", "heat", "gray"])
def test_a_greater_value_is_lighter(name):
    # Where a colour is cut off at the edge of what screens show, it may be a trace darker.
    steps = np.diff([luminance(colour) for colour in colours(name)[::8]])
    assert (steps > 0).all()


def test_the_middle_of_balance_is_lightest():
    found = [luminance(colour) for colour in colours("balance")]
    assert found.index(max(found)) in (127, 128)
    assert found[0] < 0.2
    assert found[-1] < 0.2


def test_gray_is_gray():
    assert all(colour[1:3] == colour[3:5] == colour[5:] for colour in colours("gray"))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((100, 200), (40, 80, 1)),
        ((200, 100), (60, 30, 1)),
        ((1, 1000), (1, 80, 1)),
        ((1000, 1), (60, 1, 1)),
        ((30, 40), (30, 40, 2)),
        ((2, 2), (2, 2, 8)),
        ((60, 80), (60, 80, 1)),
    ],
)
def test_fit(shape, expected):
    assert fit(shape, 80, 60) == expected


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 200), st.integers(1, 200))
def test_a_picture_fits(rows, columns, width, height):
    size = fit((rows, columns), width, height)
    assert 1 <= size.columns <= columns
    assert 1 <= size.rows <= rows
    assert size.columns * size.repeat <= width
    assert size.rows * size.repeat <= height


def test_reduce_takes_means_of_what_is_there():
    values = np.array([[1, 3, NAN, NAN], [5, NAN, NAN, NAN], [2, 2, 8, 8]])
    found = reduce(values, 2, 2)
    # The first row alone, then two together.
    np.testing.assert_array_equal(found, [[2, NAN], [3, 8]])
    np.testing.assert_array_equal(reduce(values, 3, 4), values)
    assert reduce(np.ones((7, 5)), 3, 2).tolist() == [[1, 1]] * 3


def test_enlarge():
    assert enlarge(np.array([[1.0, 2.0]]), 2).tolist() == [[1, 1, 2, 2]] * 2


def test_scale():
    scale = Scale(0, 10)
    values = np.array([0, 2.5, 9.99, 10, 20, -5, NAN])
    assert scale.levels(values, 4).tolist() == [0, 1, 3, 3, 3, 0, -1]
    assert Scale(3, 3).levels(np.array([3.0, NAN]), 4).tolist() == [2, -1]
    assert Scale(-np.inf, np.inf).levels(np.array([0.0]), 4).tolist() == [0]


def test_paint_puts_two_rows_into_a_line():
    lines = paint(np.array([[0, 1], [1, NAN], [NAN, 0.0]]), Scale(0, 1), ["#000000", "#ffffff"])
    assert lines == [
        [("▀", "#000000 on #ffffff"), ("▀", "#ffffff")],
        [(" ", ""), ("▀", "#000000")],
    ]
    (line,) = paint(np.array([[NAN], [1.0]]), Scale(0, 1), ["#000000", "#ffffff"])
    assert line == [("▄", "#ffffff")]


def test_paint_joins_what_is_alike():
    (line,) = paint(np.zeros((2, 50)), Scale(0, 1), ["#000000", "#ffffff"])
    assert line == [("▀" * 50, "#000000 on #000000")]


def test_shade():
    values = np.array([[0, 5, 10], [NAN, 5, NAN], [NAN, NAN, NAN]])
    assert shade(values, Scale(0, 10)) == [".+@", " +", ""]
    assert " " not in SHADES


def test_plot():
    top, bottom = plot(np.array([0, 4, 8, NAN, 7.9]), Scale(0, 8), 2)
    assert top == " ▁█ █"
    assert bottom == "▁██ █"


def test_the_bar_has_all_colours_in_order():
    palette = colours("sea")
    bar = colour_bar(palette, 256)
    assert [style for _, style in bar] == list(dict.fromkeys(palette))
    assert "".join(text for text, _ in colour_bar(palette, 10)) == "█" * 10
    assert colour_bar(palette, 2) == [("█", palette[0]), ("█", palette[-1])]
