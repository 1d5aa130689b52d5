"""Text from a file that may be a stranger's, made fit to be printed.

A message, a name or an attribute may hold what commands a terminal, pretends to be further lines of
output, or turns the writing around, so that something else is read than is there.
"""

from __future__ import annotations

import re

# Controls of both tables, line and paragraph separators, marks and overrides of the direction of
# writing, and halves of surrogate pairs, which no output can encode.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_UNPRINTABLE_IN_LINES = re.compile(_UNPRINTABLE.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))


def printable(text: str, *, lines: bool = False) -> str:
    """Spell out what is not to be printed as it is; with ``lines``, leave tabs and line ends."""
    pattern = _UNPRINTABLE_IN_LINES if lines else _UNPRINTABLE
    return pattern.sub(_spell, text)


def _spell(found: re.Match[str]) -> str:
    code = ord(found.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def plural(number: int, ending: str = "s") -> str:
    """Give the ending that a word gets, unless there is one of it."""
    return "" if number == 1 else ending


def pace(nbytes: int, seconds: float) -> str:
    """Say how long so many bytes took, and how many that is in a second."""
    return f"in {seconds:.1f} s ({nbytes / max(seconds, 1e-6) / 1e6:,.0f} MB/s)"
