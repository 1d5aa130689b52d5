"""A part of an array as somebody looks at it: what to take of it, a picture, and a caption."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, final

import numpy as np

from vzarr.errors import InvalidInputError
from vzarr.hierarchy import Hierarchy
from vzarr.missing import NUMERIC, find_missing
from vzarr.output import HEADING, QUIET, Cell, Output, spell_numbers
from vzarr.picture import (
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
from vzarr.printable import printable
from vzarr.sampling import Look, Sampler

if TYPE_CHECKING:
    from numpy.typing import NDArray

PLOT_HEIGHT = 8
_BAR_WIDTH = 24
_WIDEST_COLUMN = 4
_CHARACTERS = 200
_JSON_WIDTH = _JSON_HEIGHT = 80
_LATITUDES = ("lat", "latitude", "nlat")


class Selection(NamedTuple):
    """Which elements of an array to look at."""

    part: tuple[range, ...]
    """The places along each axis."""
    axes: tuple[int, ...]
    """The axes that a picture has: two, one or none."""
    chosen: tuple[int, ...]
    """The axes of which the last place was chosen, because they were too many."""

    @property
    def size(self) -> int:
        """How many elements there are."""
        return math.prod(map(len, self.part))

    def __str__(self) -> str:
        return f"[{', '.join(map(self._spell, range(len(self.part))))}]"

    def _spell(self, axis: int) -> str:
        places = self.part[axis]
        return f"{places.start}:{places.stop}" if axis in self.axes else str(places.start)


def select(shape: Sequence[int], index: Sequence[Any] = (), most: int = 2) -> Selection:
    """Apply an index of integers, slices and an ellipsis, as numpy would.

    If that leaves more axes than ``most``, the last place is taken of the first ones. Raises
    ``InvalidInputError`` for what does not fit.
    """
    parts = list(index)
    ellipses = sum(part is ... for part in parts)
    if ellipses > 1:
        raise InvalidInputError("the index has more than one ellipsis (...)")
    if not ellipses:
        parts.append(...)
    where = parts.index(...)
    parts[where : where + 1] = [slice(None)] * (len(shape) + 1 - len(parts))
    if len(parts) != len(shape):
        raise InvalidInputError(
            f"the index has {len(index)} axes, and the array has {len(shape)}: {tuple(shape)}"
        )
    places = [_places(part, length) for part, length in zip(parts, shape, strict=True)]
    axes = [axis for axis, part in enumerate(parts) if isinstance(part, slice)]
    chosen = axes[: max(len(axes) - most, 0)]
    for axis in chosen:
        places[axis] = places[axis][-1:]
    return Selection(tuple(places), tuple(axes[len(chosen) :]), tuple(chosen))


def _places(part: Any, length: int) -> range:
    if isinstance(part, slice):
        return range(*part.indices(length))
    if not -length <= part < length:
        raise InvalidInputError(f"index {part} is out of bounds for an axis of length {length}")
    return range(part % length, part % length + 1)


@final
@dataclass(frozen=True, slots=True)
class View:
    """What somebody sees of an array."""

    sampler: Sampler
    selection: Selection
    look: Look
    values: NDArray[np.float64]
    """As numbers, with two axes; NaN where there is none."""
    low: float
    high: float
    """NaN if there is no number."""

    def flipped(self) -> View:
        """Give it with the rows from the last to the first."""
        return replace(self, values=self.values[::-1])

    @property
    def upside_down(self) -> bool:
        """Whether rows are drawn from the last to the first: latitudes grow to the north."""
        axes = self.selection.axes
        return len(axes) == 2 and (self.sampler.dimensions[axes[0]] or "").lower() in _LATITUDES


def take(hierarchy: Hierarchy, path: str, index: Sequence[Any], width: int, height: int) -> View:
    """Read what a picture of so many elements shows of an array.

    Raises ``NotFoundError``, and ``InvalidInputError`` for a group, an index that does not fit, and
    values that are no numbers. Of a large array it reads ``sampling.MAX_BYTES`` and not more.
    """
    sampler = Sampler(hierarchy, path)
    selection = select(sampler.array.shape, index)
    most = [1] * len(selection.part)
    for axis, number in zip(reversed(selection.axes), (width, height), strict=False):
        most[axis] = number
    if not all(selection.part):
        shape = sampler.array.shape
        raise InvalidInputError(f"{sampler.path!r} {selection} of {shape} has no elements")
    look = sampler.look(selection.part, most)
    # The axes that are not in the picture have one place each.
    lengths = [look.values.shape[axis] for axis in selection.axes]
    numbers = _numbers(look.values, sampler).reshape([1] * (2 - len(lengths)) + lengths)
    present = numbers[~np.isnan(numbers)]
    low, high = (float(present.min()), float(present.max())) if present.size else (np.nan, np.nan)
    return View(sampler, selection, look, numbers, low, high)


def _numbers(values: NDArray[Any], sampler: Sampler) -> NDArray[np.float64]:
    """Turn values into numbers, packed ones into what they stand for, and missing ones into NaN."""
    if values.dtype.kind == "c":
        return np.asarray(np.abs(values), np.float64)
    if values.dtype.kind not in NUMERIC:
        raise InvalidInputError(
            f"{sampler.path!r} has values of type {sampler.array.dtype}, which are no numbers to "
            "draw: vzarr cat prints them"
        )
    numbers: NDArray[np.float64] = values.astype(np.float64)
    numbers[find_missing(values, sampler.marked)] = np.nan
    for name, apply in (("scale_factor", np.multiply), ("add_offset", np.add)):
        number = sampler.attributes.get(name)
        if isinstance(number, int | float) and not isinstance(number, bool):
            # A stranger may have written an integer that no float holds.
            with suppress(OverflowError), np.errstate(all="ignore"):
                numbers = apply(numbers, float(number))
    return numbers


# ── values ───────────────────────────────────────────────────────────────────────────────────────


def text_of(values: NDArray[Any], *, columns: int, whole: bool) -> str:
    """Write values as numpy does, all of them or without the middle of many."""
    threshold = sys.maxsize if whole else 1000
    return np.array2string(values, max_line_width=columns, threshold=threshold)


def jsonable(values: NDArray[Any]) -> Any:
    """Give values as nested lists of what JSON has, or can spell."""
    match values.dtype.kind:
        case "c":
            return np.stack([values.real, values.imag], axis=-1).tolist()
        case "S":
            return np.char.decode(values, "ascii", "backslashreplace").tolist()
        case "M" | "m" | "O":
            return values.astype(str).tolist()
        case "V":
            texts = [str(value) for value in values.ravel().tolist()]
            return np.array(texts, dtype=object).reshape(values.shape).tolist()
    return values.tolist()


# ── telling ──────────────────────────────────────────────────────────────────────────────────────


def view_facts(view: View, commit: str) -> dict[str, Any]:
    """Give what is seen as plain values."""
    array, look = view.sampler.array, view.look
    size = fit(view.values.shape, _JSON_WIDTH, _JSON_HEIGHT)
    values: Any = reduce(view.values, size.rows, size.columns).tolist()
    for _ in range(2 - len(view.selection.axes)):
        values = values[0]
    present = view.values[~np.isnan(view.values)]
    return {
        "path": view.sampler.path,
        "commit": commit,
        "shape": array.shape,
        "dtype": array.dtype,
        "dimensions": view.sampler.dimensions,
        "attributes": view.sampler.attributes,
        "index": [[places.start, places.stop] for places in view.selection.part],
        "minimum": view.low if present.size else None,
        "maximum": view.high if present.size else None,
        "mean": float(present.mean()) if present.size else None,
        "missing": int(view.values.size - present.size),
        "elements": view.values.size,
        "chunks": look.chunks,
        "of_chunks": look.of_chunks,
        "values": values,
    }


def print_view(
    out: Output, view: View, *, colour_map: str, width: int, height: int, flip: bool | None
) -> None:
    """Print a caption, the picture and what its colours mean.

    It has up to ``width`` characters and ``height`` lines. ``flip`` draws the first row at the
    bottom; None does so for latitudes.
    """
    flipped = view.upside_down if flip is None else flip
    for line in caption(view, flipped=flipped):
        out.line(*line)
    out.line()
    if len(view.selection.axes) == 0:
        (number,) = spell_numbers(float(view.values.item()))
        out.line("missing" if np.isnan(view.low) else f"{number} {_unit(view)}".rstrip())
        return
    if np.isnan(view.low):
        out.line("no values: all elements are missing")
        return
    draw = _curve if len(view.selection.axes) == 1 else _picture
    lines, legend = draw(view.flipped() if flipped else view, out, colour_map, width, height)
    for cells in lines:
        out.line(*cells)
    out.line()
    out.line(*legend)
    out.line((_summary(view), QUIET))
    if view.look.chunks < view.look.of_chunks:
        out.line(
            f"of elements here and there: {view.look.chunks:,} of {view.look.of_chunks:,} chunks "
            "were read"
        )


def caption(view: View, *, flipped: bool) -> list[list[Cell]]:
    """Say what is seen, in two lines or three; ``flipped`` if the first row is at the bottom."""
    sampler, selection = view.sampler, view.selection
    title: list[Cell] = [(sampler.path or "/", HEADING)]
    name = sampler.attributes.get("long_name") or sampler.attributes.get("standard_name")
    if isinstance(name, str):
        title.append(f"  {printable(name)[:_CHARACTERS]}")
    if unit := _unit(view):
        title.append(f" [{unit}]")
    shape = "x".join(map(str, sampler.array.shape)) or "one element"
    where = f"{selection}" if selection.part else ""
    lines = [
        title,
        [
            f"{where} of {shape} {printable(sampler.array.dtype)}".strip(),
            *_axes(view, flipped=flipped),
        ],
    ]
    if selection.chosen:
        # Nobody has asked for these.
        axes = ", ".join(_axis_name(view, axis) for axis in selection.chosen)
        lines.append([(f"the last of {axes}; --index chooses another", QUIET)])
    return lines


def _axes(view: View, *, flipped: bool) -> list[Cell]:
    number = len(view.selection.axes)
    signs = ("↑" if flipped else "↓", "→")[2 - number :]
    names = [
        f"{_axis_name(view, axis)} {sign}"
        for axis, sign in zip(view.selection.axes, signs, strict=True)
        if view.sampler.dimensions[axis] is not None
    ]
    return [f", {', '.join(names)}"] if names else []


def _axis_name(view: View, axis: int) -> str:
    name = view.sampler.dimensions[axis]
    return f"axis {axis}" if name is None else printable(name)[:_CHARACTERS]


def _unit(view: View) -> str:
    unit = view.sampler.attributes.get("units")
    return printable(unit)[:_CHARACTERS] if isinstance(unit, str) else ""


_Lines = Sequence[Sequence[Cell]]


def _curve(
    view: View, _: Output, __: str, width: int, height: int
) -> tuple[_Lines, Sequence[Cell]]:
    """Draw values along one axis, and say where bottom and top are."""
    number = min(width, view.values.shape[1])
    values = enlarge(reduce(view.values, 1, number), min(width // number, _WIDEST_COLUMN))[0]
    # Means lie closer together than what they are of.
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    lines = plot(values, Scale(low, high), min(PLOT_HEIGHT, height))
    legend = f"{' … '.join(dict.fromkeys(spell_numbers(low, high)))} {_unit(view)}".rstrip()
    cells: list[list[Cell]] = [[line] for line in lines]
    return cells, [f"{legend}, from the bottom to the top"]


def _picture(
    view: View, out: Output, colour_map: str, width: int, height: int
) -> tuple[_Lines, Sequence[Cell]]:
    """Draw values along two axes, and say what the colours or shades stand for."""
    low, high = view.low, view.high
    if colour_map == "balance":
        # Whose middle is zero.
        high = max(abs(low), abs(high))
        low = -high
    scale = Scale(low, high)
    size = fit(view.values.shape, width, 2 * height)
    values = enlarge(reduce(view.values, size.rows, size.columns), size.repeat)
    first, last = spell_numbers(low, high)
    limits = f"{first} ", f" {last} {_unit(view)}".rstrip()
    if out.has_colours:
        palette = colours(colour_map)
        legend: list[Cell] = [limits[0], *colour_bar(palette, _BAR_WIDTH), limits[1]]
        return paint(values, scale, palette), legend
    # One character for what two halves show in colours.
    values = reduce(values, -(-len(values) // 2), values.shape[1])
    shades: list[list[Cell]] = [[line] for line in shade(values, scale)]
    return shades, [f"{limits[0]}{SHADES}{limits[1]}"]


def _summary(view: View) -> str:
    present = view.values[~np.isnan(view.values)]
    numbers = {"least": present.min(), "mean": present.mean(), "greatest": present.max()}
    texts = spell_numbers(*map(float, numbers.values()))
    parts = [f"{name} {text}" for name, text in zip(numbers, texts, strict=True)]
    if missing := view.values.size - present.size:
        parts.append(f"{missing:,} of {view.values.size:,} elements are missing")
    return ", ".join(parts)
