"""What a terminal needs of rich: colours, and lines whose parts have different ones.

To import rich takes a fifth of the time of a short verb. So only those do it whose output somebody
looks at, or wants coloured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import final

from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style
from rich.text import Text

_COLOUR_SYSTEMS = {
    "standard": ColorSystem.STANDARD,
    "256": ColorSystem.EIGHT_BIT,
    "truecolor": ColorSystem.TRUECOLOR,
    "windows": ColorSystem.WINDOWS,
}


@final
class PlainConsole(Console):
    """Prints text as it is, and leaves long lines to the terminal: nothing is broken in a pipe."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)
        name = self.color_system
        self._system = None if name is None else _COLOUR_SYSTEMS[name]

    @property
    def has_colours(self) -> bool:
        """Whether what is printed will have colours."""
        return self._system is not None and not self.no_color

    def coloured(self, text: str, style: str) -> str:
        """Give text with the escape sequences of a style, if there are any here."""
        if not style or self._system is None:
            return text
        parsed = Style.parse(style)
        if self.no_color:
            parsed = parsed.without_color
        return parsed.render(text, color_system=self._system)

    def print_cells(self, cells: Iterable[tuple[str, str]]) -> None:
        """Print a line of texts with their styles, whatever it takes to colour it here."""
        self.print(Text.assemble(*cells))

    def print_detail(self, line: str, styles: Mapping[str, str]) -> None:
        """Print a line that tells what changed; ``styles`` are those of the kinds of changes."""
        text = Text(line)
        text.highlight_regex(r"(?<=: ).*(?= → )", "red")
        text.highlight_regex(r"(?<= → ).*", "green")
        text.highlight_regex(r"\[[0-9:, ]+\]", "cyan")
        if line.lstrip().startswith("chunks: "):
            for kind, style in styles.items():
                text.highlight_regex(rf"\b[0-9]+ {kind}\b", style)
        self.print(text)

    def on_broken_pipe(self) -> None:
        """Raise, where rich would end the process: the frame of all verbs says what is done."""
        raise BrokenPipeError
