"""Which elements of an array are meant, whatever its shape is from commit to commit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, final

from vzarr.errors import InvalidInputError


class Span(NamedTuple):
    """What of one axis is meant."""

    start: int
    stop: int | None
    """None for all that there ever was."""

    def touches(self, low: int, high: int | None) -> bool:
        """Whether it has any of the elements from ``low`` to ``high``."""
        return (high is None or self.start < high) and (self.stop is None or low < self.stop)

    def holds(self, low: int, high: int) -> bool:
        """Whether it has all of them."""
        return self.start <= low and (self.stop is None or high <= self.stop)


@final
@dataclass(frozen=True, slots=True)
class Window:
    """A part of an array that means the same elements in every commit, whatever its shape there."""

    before: tuple[Span, ...]
    after: tuple[Span, ...]
    """The last axes, behind an ellipsis."""

    @classmethod
    def of(cls, region: object) -> Window:
        """Read an index as for numpy: integers, slices and an ellipsis, counted from the beginning.

        Raises ``InvalidInputError`` for anything else, and for an index that is empty.
        """
        parts = list(region) if isinstance(region, tuple) else [region]
        places = [number for number, part in enumerate(parts) if part is Ellipsis]
        if len(places) > 1:
            raise InvalidInputError("region= has more than one ellipsis")
        where = places[0] if places else len(parts)
        spans = [_span(part) for part in parts if part is not Ellipsis]
        return cls(tuple(spans[:where]), tuple(spans[where:]))

    def spans(self, ndim: int) -> tuple[Span, ...] | None:
        """Give one span for each axis; None if it has more axes than the array."""
        between = ndim - len(self.before) - len(self.after)
        return None if between < 0 else (*self.before, *[Span(0, None)] * between, *self.after)


def _span(part: object) -> Span:
    if isinstance(part, slice) and part.step in (None, 1):
        start, stop = part.start or 0, part.stop
        if _is_position(start) and (stop is None or _is_position(stop)):
            if stop is not None and stop <= start:
                raise InvalidInputError(f"region=: {part!r} is empty")
            return Span(start.__index__(), None if stop is None else stop.__index__())
    elif _is_position(part):
        index: int = part.__index__()  # type: ignore[attr-defined]
        return Span(index, index + 1)
    raise InvalidInputError(
        f"region= is of integers and slices with step 1 that count from the beginning, not {part!r}"
        ": shapes differ from commit to commit"
    )


def _is_position(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool) and value.__index__() >= 0
