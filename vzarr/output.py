"""How the command line shows things: as text for people, or as JSON for programs."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar, final

import click
from rich.console import Console
from rich.text import Text

from vzarr.diff import NodeChange
from vzarr.printable import printable
from vzarr.progress import Progress

_T = TypeVar("_T")
Cell = str | tuple[str, str]
"""A piece of text, alone or with the name of its style."""

ID, BRANCH, TAG, HEADING, QUIET = "yellow", "green", "magenta", "bold", "dim"
SHORT = 12
"""So many digits of an id are shown on a terminal."""
PATIENCE_SECONDS = 1.0
"""What takes no longer than this shows no progress."""
_STYLES = {"added": "green", "removed": "red", "moved": "cyan", "changed": "yellow"}


@final
class Output:
    """Where a verb's results go: text for people, or with ``--json`` one document for programs.

    Text is coloured and fitted on a terminal. Piped, it is plain, one record a line, with every id
    and path whole.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._terminal = sys.stdout.isatty()
        self._begun = False
        # Soft wrapping leaves long lines to the terminal, so that nothing is broken in a pipe.
        self._console = PlainConsole()

    def document(self, facts: Mapping[str, Any]) -> None:
        """Print the JSON document, if that was asked for."""
        if self.as_json:
            click.echo(json.dumps(plain(facts), indent=2, allow_nan=False))

    def line(self, *cells: Cell) -> None:
        """Print a line, or a block, of text."""
        if not self.as_json:
            self._console.print(styled(cells))

    def heading(self, text: str) -> None:
        """Begin another part of a longer story."""
        if self._begun:
            self.line()
        self._begun = True
        self.line((text, HEADING))

    def table(
        self, columns: Sequence[str], rows: Iterable[Sequence[Cell]], *, right: int = -1
    ) -> None:
        """Print a table, one column of it aligned to the right; without headings in a pipe."""
        texts = [[one_line(styled([cell])) for cell in row] for row in rows]
        if self.as_json or not texts:
            return
        if self._terminal:
            texts.insert(0, [Text(column, HEADING) for column in columns])
        widths = [max(row[n].cell_len for row in texts) for n in range(len(columns))]
        for row in texts:
            for number, (text, width) in enumerate(zip(row, widths, strict=True)):
                text.align("right" if number == right else "left", width)
            line = Text("  ").join(row)
            line.rstrip()
            if self._terminal:
                line.truncate(self._console.width, overflow="ellipsis")
            self._console.print(line)

    def commit_id(self, commit: str | None) -> Cell:
        """Give an id as it is shown: short on a terminal, whole in a pipe."""
        if commit is None:
            return "(none)"
        return commit[:SHORT] if self._terminal else commit, ID

    def changes(self, changes: Iterable[NodeChange], *, indent: int = 0) -> None:
        """Print what changed between two snapshots."""
        if self.as_json:
            return
        for change in changes:
            head, *details = _clean(str(change)).split("\n")
            margin = " " * indent
            self._console.print(Text(margin + head, _STYLES[change.change]))
            for detail in details:
                text = Text(margin + detail)
                text.highlight_regex(r"(?<=: ).*(?= → )", "red")
                text.highlight_regex(r"(?<= → ).*", "green")
                text.highlight_regex(r"\[[0-9:, ]+\]", "cyan")
                self._console.print(text)

    def track(self, things: Sequence[_T], what: str) -> Iterable[_T]:
        """Go through ``things`` behind a progress bar, if somebody is watching."""
        from rich.progress import track

        watched = sys.stderr.isatty() and not self.as_json
        bar = Console(stderr=True)
        return track(things, what, console=bar, transient=True, disable=not watched)

    @contextmanager
    def progress(self) -> Iterator[Progress | None]:
        """Give what shows how far something is, if somebody is watching; else None."""
        if self.as_json or not sys.stderr.isatty():
            yield None
            return
        from rich.progress import Progress as Bar
        from rich.progress import Task, TextColumn

        class Rate(TextColumn):
            def render(self, task: Task) -> Text:
                return Text("" if task.speed is None else f"{scaled(task.speed)}/s", self.style)

        columns = *Bar.get_default_columns(), Rate("", "progress.data.speed")
        bar = Bar(*columns, console=Console(stderr=True), transient=True)
        task = bar.add_task("")
        begun = time.monotonic()

        def show(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total or None, description=what)
            if time.monotonic() - begun >= PATIENCE_SECONDS:
                bar.start()

        try:
            yield show
        finally:
            bar.stop()


class PlainConsole(Console):
    """Prints text as it is, and leaves long lines to the terminal: nothing is broken in a pipe."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def on_broken_pipe(self) -> None:
        """Raise, where rich would end the process: the frame of all verbs says what is done."""
        raise BrokenPipeError


def styled(cells: Iterable[Cell]) -> Text:
    """Put cells together to one text."""
    parts = [(cell, "") if isinstance(cell, str) else cell for cell in cells]
    return Text.assemble(*((_clean(part), style) for part, style in parts))


def one_line(text: Text) -> Text:
    """Put what has several lines on one."""
    return Text(" ").join(text.split("\n")) if "\n" in text.plain else text


def _clean(text: str) -> str:
    return printable(text, lines=True)


def spell_time(time: datetime) -> str:
    """Give a time as it is shown."""
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"


def plain(value: Any) -> Any:
    """Give a value in JSON's types; what JSON lacks as Zarr spells it: "NaN", "Infinity"."""
    match value:
        case float() if math.isnan(value):
            return "NaN"
        case float() if math.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        case datetime():
            return value.isoformat()
        case slice():
            return [value.start, value.stop]
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case tuple() | list():
            return [plain(item) for item in value]
    return value


def scaled(number: float) -> str:
    """Give a number in three digits: 12.3 k, 4.56 M."""
    for unit in ("", " k", " M", " G"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} T"


def first_line(message: str) -> str:
    """Give the first line of a message."""
    return message.partition("\n")[0]


def plural(number: int, ending: str = "s") -> str:
    """Give the ending that a word gets, unless there is one of it."""
    return "" if number == 1 else ending
