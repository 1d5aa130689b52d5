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
from typing import IO, TYPE_CHECKING, Any, TypeVar, final

import click

from vzarr.diff import NodeChange
from vzarr.printable import printable
from vzarr.progress import Progress

if TYPE_CHECKING:
    from vzarr.console import PlainConsole

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
_STYLES = {"added": ADDED, "removed": REMOVED, "moved": MOVED, "changed": CHANGED}


@final
class Output:
    """Where a verb's results go: text for people, or with ``--json`` one document for programs.

    Text is coloured and fitted on a terminal. Piped, it is plain, one record a line, with every id
    and path whole.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._terminal = _is_terminal(sys.stdout)
        self._begun = False
        # None where nothing can have colours.
        self._console = _console(sys.stdout)
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
        return self._console is not None and self._console.has_colours

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines of the terminal; 80 by 48 in a pipe."""
        if self._console is None or not self._terminal:
            return _PIPE_SIZE
        return self._console.width, self._console.height

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
        parts = ((_clean(text), style) for text, style in map(_styled, cells))
        console = self._console
        if console is None:
            self._write("".join(text for text, _ in parts))
        elif console.legacy_windows:
            # Has no escape sequences: rich knows how to colour it.
            console.print_cells(parts)
        else:
            self._write("".join(console.coloured(text, style) for text, style in parts))

    def _write(self, line: str) -> None:
        stream = self._pager or sys.stdout
        if stream is None:
            return
        stream.write(line)
        stream.write("\n")
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            stream.flush()
            self._flushed = time.monotonic()

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
        table = [
            [(_one_line(_clean(text)), style) for text, style in map(_styled, row)] for row in rows
        ]
        if self.as_json or not table:
            return
        if self._terminal:
            table.insert(0, [(column, HEADING) for column in columns])
        widths = [max(_width(row[n][0]) for row in table) for n in range(len(columns))]
        for row in table:
            line: list[tuple[str, str]] = []
            for number, (cell, width) in enumerate(zip(row, widths, strict=True)):
                gap = " " * (width - _width(cell[0])), ""
                line += [gap, cell] if number == right else [cell, gap]
                line.append(("  ", ""))
            while line and not line[-1][0].strip():
                line.pop()
            self.line(*(_fitted(line, self.size[0]) if self._terminal else line))

    def commit_id(self, commit: str | None) -> Cell:
        """Give an id as it is shown: short on a terminal, whole in a pipe."""
        if commit is None:
            return "(none)"
        return commit[:SHORT] if self._terminal else commit, ID

    def changes(self, changes: Iterable[NodeChange], *, indent: int = 0) -> None:
        """Print what changed between two snapshots."""
        if self.as_json:
            return
        margin = " " * indent
        for change in changes:
            head, *details = _clean(str(change)).split("\n")
            if self._console is None:
                for line in (head, *details):
                    self._write(margin + line)
                continue
            self._console.print_cells([(margin + head, _STYLES[change.change])])
            for detail in details:
                self._console.print_detail(margin + detail, _STYLES)

    def track(self, things: Sequence[_T], what: str) -> Iterable[_T]:
        """Go through ``things`` behind a progress bar, if somebody is watching."""
        if not _is_terminal(sys.stderr) or self.as_json:
            return things
        from rich.console import Console
        from rich.progress import track

        return track(things, what, console=Console(stderr=True), transient=True)

    @contextmanager
    def paged(self, wanted: bool = True) -> Iterator[None]:
        """Show in a pager what is printed, if somebody is watching; whoever leaves it has read on.

        It is ``VZARR_PAGER``, or ``PAGER``, or less; ``cat`` stands for none.
        """
        command = _pager_command() if wanted and self._terminal and not self.as_json else ""
        if not command or self._console is None:
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
                self._pager, self._console = None, _console(sys.stdout)
                with suppress(BrokenPipeError):
                    pager.stdin.close()
                # Ctrl-C is the pager's own: the terminal is its until it is left.
                while pager.returncode is None:
                    with suppress(KeyboardInterrupt):
                        pager.wait()

    @contextmanager
    def progress(self) -> Iterator[Progress | None]:
        """Give what shows how far something is, if somebody is watching; else None.

        The bar appears once a second is over, also in a part that tells nothing before its end.
        """
        # In a pager it would be in the way.
        if self.as_json or self._pager is not None or not _is_terminal(sys.stderr):
            yield None
            return
        from rich.console import Console
        from rich.progress import Progress as Bar
        from rich.progress import Task, TextColumn
        from rich.text import Text

        class Rate(TextColumn):
            def render(self, task: Task) -> Text:
                return Text("" if task.speed is None else f"{scaled(task.speed)}/s", self.style)

        columns = *Bar.get_default_columns(), Rate("", "progress.data.speed")
        bar = Bar(*columns, console=Console(stderr=True), transient=True)
        task = bar.add_task("", total=None)
        begun = time.monotonic()
        told = threading.Event()

        def show(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total or None, description=what)
            told.set()
            if time.monotonic() - begun >= PATIENCE_SECONDS:
                bar.start()

        def show_what_goes_on() -> None:
            if told.is_set():
                bar.start()

        timer = threading.Timer(PATIENCE_SECONDS, show_what_goes_on)
        timer.daemon = True
        timer.start()
        try:
            yield show
        finally:
            timer.cancel()
            # What has begun to show must not go on after the end.
            timer.join()
            bar.stop()


def complain(*cells: Cell) -> None:
    """Print a line on stderr, if there is one that takes it."""
    line = [(_one_line(_clean(text)), style) for text, style in map(_styled, cells)]
    # Where nobody can be told, the exit code remains.
    with suppress(OSError):
        console = _console(sys.stderr)
        if console is not None:
            console.print_cells(line)
        elif sys.stderr is not None:
            sys.stderr.write("".join(text for text, _ in line) + "\n")
            sys.stderr.flush()


def _console(stream: IO[str] | None) -> PlainConsole | None:
    """Give what colours text on stdout or stderr; None where nothing has colours for certain."""
    wanted = os.environ.get("FORCE_COLOR") or os.environ.get("TTY_COMPATIBLE") == "1"
    if stream is None or not (wanted or _is_terminal(stream)):
        return None
    from vzarr.console import PlainConsole

    return PlainConsole(stderr=stream is sys.stderr)


def _is_terminal(stream: IO[str] | None) -> bool:
    # Python has none where the process began without.
    return stream is not None and stream.isatty()


def _pager_command() -> str:
    given = (os.environ[name] for name in ("VZARR_PAGER", "PAGER") if name in os.environ)
    found = next(given, None)
    if found is None:
        found = shutil.which("less") or ""
    return "" if found == "cat" else found


def _styled(cell: Cell) -> tuple[str, str]:
    return (cell, "") if isinstance(cell, str) else cell


def _one_line(text: str) -> str:
    """Put what has several lines on one."""
    return text.removesuffix("\n").replace("\n", " ").expandtabs()


def _width(text: str) -> int:
    """Count the columns of a terminal that text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _fitted(line: list[tuple[str, str]], columns: int) -> list[tuple[str, str]]:
    """Cut off what does not fit on a terminal."""
    if sum(_width(text) for text, _ in line) <= columns:
        return line
    from rich.cells import set_cell_size

    fitted: list[tuple[str, str]] = []
    left = columns - 1
    for text, style in line:
        width = _width(text)
        if width > left:
            return [*fitted, (set_cell_size(text, left) + "…", style)]
        fitted.append((text, style))
        left -= width
    raise AssertionError("the parts are as wide as the line")


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
