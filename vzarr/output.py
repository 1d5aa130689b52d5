"""How the command line shows things: as text for people, or as JSON for programs."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import IO, Any, TypeVar, final

import click
from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style
from rich.text import Text

from vzarr.diff import NodeChange
from vzarr.printable import printable
from vzarr.progress import Progress

_T = TypeVar("_T")
Cell = str | tuple[str, str]
"""A piece of text, alone or with the name of its style."""

ID, BRANCH, TAG, HEADING, QUIET = "yellow", "green", "magenta", "bold", "dim"
ADDED, REMOVED, MOVED, CHANGED = "green", "red", "cyan", "yellow"
SHORT = 12
"""So many digits of an id are shown on a terminal."""
_PIPE_SIZE = 80, 48
_FLUSH_SECONDS = 0.05
PATIENCE_SECONDS = 1.0
"""What takes no longer than this shows no progress."""
_COLOUR_SYSTEMS = {
    "standard": ColorSystem.STANDARD,
    "256": ColorSystem.EIGHT_BIT,
    "truecolor": ColorSystem.TRUECOLOR,
    "windows": ColorSystem.WINDOWS,
}
_STYLES = {"added": ADDED, "removed": REMOVED, "moved": MOVED, "changed": CHANGED}


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
        name = self._console.color_system
        self._system = None if name is None else _COLOUR_SYSTEMS[name]
        self._flushed = 0.0
        # None for stdout, which may be another one from call to call.
        self._pager: IO[str] | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether somebody looks at what is printed."""
        return self._terminal

    @property
    def has_colours(self) -> bool:
        """Whether what is printed will have colours."""
        return self._console.color_system is not None and not self._console.no_color

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines of the terminal; 80 by 48 in a pipe."""
        return (self._console.width, self._console.height) if self._terminal else _PIPE_SIZE

    def document(self, facts: Mapping[str, Any]) -> None:
        """Print the JSON document, if that was asked for."""
        if self.as_json:
            click.echo(json.dumps(plain(facts), indent=2, allow_nan=False))

    def line(self, *cells: Cell) -> None:
        """Print a line, or a block, of text.

        There may be hundreds of thousands. So they do not go through rich's layout, and the first
        ones are to be seen before the last ones are there.
        """
        if self.as_json:
            return
        if self._console.legacy_windows:
            # Has no escape sequences: rich knows how to colour it.
            self._console.print(styled(cells))
            return
        parts = ((cell, "") if isinstance(cell, str) else cell for cell in cells)
        stream = self._pager or sys.stdout
        stream.write("".join(self._coloured(_clean(text), style) for text, style in parts))
        stream.write("\n")
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            stream.flush()
            self._flushed = time.monotonic()

    def _coloured(self, text: str, style: str) -> str:
        if not style or self._system is None:
            return text
        parsed = Style.parse(style)
        if self._console.no_color:
            parsed = parsed.without_color
        return parsed.render(text, color_system=self._system)

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
                if detail.lstrip().startswith("chunks: "):
                    for kind, style in _STYLES.items():
                        text.highlight_regex(rf"\b[0-9]+ {kind}\b", style)
                self._console.print(text)

    def track(self, things: Sequence[_T], what: str) -> Iterable[_T]:
        """Go through ``things`` behind a progress bar, if somebody is watching."""
        from rich.progress import track

        watched = sys.stderr.isatty() and not self.as_json
        bar = Console(stderr=True)
        return track(things, what, console=bar, transient=True, disable=not watched)

    @contextmanager
    def paged(self, wanted: bool = True) -> Iterator[None]:
        """Show in a pager what is printed, if somebody is watching; whoever leaves it has read on.

        It is ``VZARR_PAGER``, or ``PAGER``, or less; ``cat`` stands for none.
        """
        command = _pager_command() if wanted and self._terminal and not self.as_json else ""
        if not command:
            yield
            return
        import subprocess

        # As git has less: leave if all fits on the screen, show colours, keep the screen.
        environment = {"LESS": "FRX", "LV": "-c", **os.environ}
        encoding = sys.stdout.encoding
        with subprocess.Popen(  # noqa: S602 - the user's own command
            command,
            shell=True,
            stdin=subprocess.PIPE,
            env=environment,
            encoding=encoding,
            errors="backslashreplace",
        ) as pager:
            assert pager.stdin is not None
            self._pager = self._console.file = pager.stdin
            try:
                # It ends where it is left.
                with suppress(BrokenPipeError):
                    yield
            finally:
                self._pager, self._console = None, PlainConsole()
                with suppress(BrokenPipeError):
                    pager.stdin.close()
                # Ctrl-C is the pager's own: the terminal is its until it is left.
                while pager.returncode is None:
                    with suppress(KeyboardInterrupt):
                        pager.wait()

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Show that something goes on of which nobody knows how long it takes."""
        with self.progress() as progress:
            if progress is None:
                yield
                return
            timer = threading.Timer(PATIENCE_SECONDS, progress, (0, 0, what))
            timer.daemon = True
            progress(0, 0, what)
            timer.start()
            try:
                yield
            finally:
                timer.cancel()
                # What has begun to show must not go on after the end.
                timer.join()

    @contextmanager
    def progress(self) -> Iterator[Progress | None]:
        """Give what shows how far something is, if somebody is watching; else None."""
        # In a pager it would be in the way.
        if self.as_json or self._pager is not None or not sys.stderr.isatty():
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


def _pager_command() -> str:
    given = (os.environ[name] for name in ("VZARR_PAGER", "PAGER") if name in os.environ)
    found = next(given, None)
    if found is None:
        found = shutil.which("less") or ""
    return "" if found == "cat" else found


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


def spell_numbers(*numbers: float) -> list[str]:
    """Write numbers in few digits, but in so many that those which differ look different."""
    for digits in (5, 8, 17):
        texts = [
            f"{number:,}" if isinstance(number, int) else f"{number:.{digits}g}"
            for number in numbers
        ]
        if len(set(texts)) == len(set(numbers)):
            break
    return texts


def first_line(message: str) -> str:
    """Give the first line of a message."""
    return message.partition("\n")[0]
