"""Which values of an array stand for none: NaN, and what its attributes say.

Data sets that follow the CF conventions name such values in the attributes ``_FillValue`` and
``missing_value``. Where JSON has no word for a number, it is written as Zarr does ("NaN"), or as
xarray does: the bytes of a double in base64.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NAMES = ("_FillValue", "missing_value")
_DOUBLE = struct.Struct("<d")
NUMERIC = "biuf"
"""The kinds of dtype that have a least, a greatest and a mean."""


def markers(attributes: Mapping[str, Any]) -> tuple[float, ...]:
    """List the numbers that the attributes of an array declare to be no value."""
    found: list[float] = []
    for name in _NAMES:
        value = attributes.get(name)
        for each in value if isinstance(value, list) else [value]:
            found += _number(each)
    return tuple(dict.fromkeys(found))


def _number(value: object) -> Iterator[float]:
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, str):
        try:
            yield float(value)
        except ValueError:
            try:
                yield _DOUBLE.unpack(base64.b64decode(value, validate=True))[0]
            except (binascii.Error, struct.error, ValueError):
                # Not a number in any spelling.
                return


def find_missing(values: NDArray[Any], marked: tuple[float, ...]) -> NDArray[np.bool_]:
    """Tell which elements are NaN or one of the marked values. O(elements)."""
    kind = values.dtype.kind
    missing = np.isnan(values) if kind == "f" else np.zeros(values.shape, dtype=bool)
    for marker in marked:
        if kind == "f":
            # 1e20 is written as a double, and stored as the nearest number that the dtype has. An
            # integer may be beyond all of them.
            with np.errstate(over="ignore"), suppress(OverflowError):
                missing |= values == values.dtype.type(marker)
        elif kind in "iu":
            missing |= values == marker
    return missing
