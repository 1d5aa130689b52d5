"""Numbers as a picture of characters, for a terminal or a pipe.

A character of a terminal is about twice as high as wide. With colours it shows two picture elements
one above the other: the upper half of a block in one colour, on a ground of another. Without, it
shows one, by how dark it is.

The colours are computed and not taken from a table. Along a map the lightness of OKLab, a space in
which equal steps look equal, grows evenly, so that no value stands out which does not, also for
eyes that see fewer colours, and on paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Values = NDArray[np.float64]

Cell = tuple[str, str]
"""Some characters, and the name of their style, as rich spells it."""

SHADES = ".:-=+*#%@"
"""From the least to the greatest; a space is for what is missing."""
_STEPS = "▁▂▃▄▅▆▇█"
_UPPER, _LOWER = "▀", "▄"
_COLOURS = 256


class _Way(NamedTuple):
    """A way through OKLab's space, in cylinder coordinates: from, to."""

    lightness: tuple[float, float]
    chroma: tuple[float, float]
    hue: tuple[float, float]
    """In degrees."""


_WAYS = {
    "sea": (_Way((0.27, 0.92), (0.11, 0.13), (305, 105)),),
    "heat": (_Way((0.20, 0.95), (0.13, 0.14), (300, 460)),),
    "gray": (_Way((0.20, 0.97), (0, 0), (0, 0)),),
    # Zero is in the middle.
    "balance": (
        _Way((0.38, 0.95), (0.17, 0), (260, 260)),
        _Way((0.95, 0.42), (0, 0.18), (25, 25)),
    ),
}
COLOUR_MAPS = tuple(_WAYS)


def colours(name: str) -> list[str]:
    """Give the colours of a map, ``#rrggbb``, from the least value to the greatest."""
    ways = _WAYS[name]
    number = _COLOURS // len(ways)
    return [_colour(way, step / (number - 1)) for way in ways for step in range(number)]


def _colour(way: _Way, share: float) -> str:
    lightness, chroma, hue = (start + share * (end - start) for start, end in way)
    angle = math.radians(hue)
    return "#" + "".join(
        f"{round(255 * _gamma(part)):02x}"
        for part in _linear(lightness, chroma * math.cos(angle), chroma * math.sin(angle))
    )


def _linear(lightness: float, a: float, b: float) -> tuple[float, float, float]:
    """Turn a colour of OKLab into red, green and blue in proportion to light."""
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )


def _gamma(light: float) -> float:
    """Encode a share of light as sRGB does; a screen shows none below 0, or above 1."""
    light = min(max(light, 0.0), 1.0)
    return 12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055


# ── sizes ────────────────────────────────────────────────────────────────────────────────────────


class Size(NamedTuple):
    """How many picture elements, and how often each is repeated in both directions."""

    rows: int
    columns: int
    repeat: int = 1


_LARGEST_ELEMENT = 8


def fit(shape: tuple[int, ...], width: int, height: int) -> Size:
    """Choose the size of a picture of square elements for values in two dimensions.

    It has the shape of the values as far as there is room for ``width`` by ``height`` elements, but
    at least one of each. Few values are drawn larger.
    """
    rows, columns = shape
    share = min(1.0, width / columns, height / rows)
    if share < 1:
        return Size(max(1, round(rows * share)), max(1, round(columns * share)))
    repeat = min(width // columns, height // rows, _LARGEST_ELEMENT)
    return Size(rows, columns, max(1, repeat))


def reduce(values: Values, rows: int, columns: int) -> Values:
    """Make a picture smaller: each element is the mean of those it stands for, without NaN."""
    present = ~np.isnan(values)
    sums, counts = np.where(present, values, 0), present.astype(np.float64)
    for axis, number in enumerate((rows, columns)):
        starts = np.arange(number) * values.shape[axis] // number
        sums = np.add.reduceat(sums, starts, axis=axis)
        counts = np.add.reduceat(counts, starts, axis=axis)
    with np.errstate(invalid="ignore", divide="ignore"):
        result: Values = sums / counts
    return result


def enlarge(values: Values, repeat: int) -> Values:
    """Repeat each element in both directions."""
    return values.repeat(repeat, axis=0).repeat(repeat, axis=1)


# ── drawing ──────────────────────────────────────────────────────────────────────────────────────


@final
class Scale:
    """From values to numbers of colours or shades."""

    def __init__(self, low: float, high: float) -> None:
        """Begin with ``low``, and end with ``high``."""
        self.low = low
        self.high = high

    def levels(self, values: Values, number: int) -> NDArray[np.intp]:
        """Give each value a number from 0 to below ``number``; -1 if it is missing."""
        span = self.high - self.low
        with np.errstate(invalid="ignore", over="ignore"):
            # One value alone is in the middle.
            shares = (values - self.low) / span if span > 0 else np.full(values.shape, 0.5)
            found = np.clip(np.nan_to_num(shares) * number, 0, number - 1).astype(np.intp)
        found[np.isnan(values)] = -1
        return found


def paint(values: Values, scale: Scale, palette: Sequence[str]) -> list[list[Cell]]:
    """Draw with half blocks in colours: one line for each two rows of values."""
    levels = scale.levels(values, len(palette))
    if len(levels) % 2:
        levels = np.vstack([levels, np.full((1, levels.shape[1]), -1)])
    return [
        _join(_half_blocks(top, bottom, palette) for top, bottom in zip(*pair, strict=True))
        for pair in zip(levels[::2].tolist(), levels[1::2].tolist(), strict=True)
    ]


def _half_blocks(top: int, bottom: int, palette: Sequence[str]) -> Cell:
    if top < 0 and bottom < 0:
        return " ", ""
    if top < 0:
        return _LOWER, palette[bottom]
    if bottom < 0:
        return _UPPER, palette[top]
    return _UPPER, f"{palette[top]} on {palette[bottom]}"


def _join(cells: Iterable[Cell]) -> list[Cell]:
    """Put neighbours of one style together: a terminal has less to read then."""
    found: list[Cell] = []
    for text, style in cells:
        if found and found[-1][1] == style:
            found[-1] = found[-1][0] + text, style
        else:
            found.append((text, style))
    return found


def shade(values: Values, scale: Scale) -> list[str]:
    """Draw with ASCII characters: one line for each row of values."""
    levels = scale.levels(values, len(SHADES))
    signs = np.array([*SHADES, " "])
    return ["".join(row).rstrip() for row in signs[levels].tolist()]


def plot(values: Values, scale: Scale, height: int) -> list[str]:
    """Draw columns as high as their values, from the top line down; a missing one is empty."""
    # The least value has a column too, if a low one.
    levels = scale.levels(values, height * len(_STEPS)) + 1
    lines = []
    for line in reversed(range(height)):
        filled = np.clip(levels - line * len(_STEPS), 0, len(_STEPS)).tolist()
        lines.append("".join(" " if part == 0 else _STEPS[part - 1] for part in filled).rstrip())
    return lines


def colour_bar(palette: Sequence[str], width: int) -> list[Cell]:
    """Draw the colours from left to right."""
    places = (column * (len(palette) - 1) // max(width - 1, 1) for column in range(width))
    return _join(("█", palette[place]) for place in places)
