"""Documents as programs: what their fenced blocks say is done, in order, in one directory.

* ```` ```python ```` runs, all blocks of a page in one interpreter.
* ```` ```python title="append.py" ```` and other blocks with a title are files, and are written.
* ```` ```console ```` runs what follows ``$``, each line in a shell of its own. Lines below it are
  what it prints, if there are any; ``…`` stands for any text.
* All else is for reading: ```` ```sh ```` is a command that needs a machine of the reader's.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block, and the line of the page on which its text begins, from 0."""

    language: str
    title: str | None
    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Command:
    """What follows ``$``, and what the page says that it prints; empty if it does not say."""

    line: str
    output: str


def pages() -> list[str]:
    """List README and all pages of the site, as paths from the top of the checkout."""
    found = sorted((ROOT / "docs").rglob("*.md"))
    return ["README.md", *(str(page.relative_to(ROOT)) for page in found)]


def blocks(page: str) -> list[Block]:
    """List the fenced blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(match[1], match[2], match[3], text.count("\n", 0, match.start(3)))
        for match in _BLOCK.finditer(text)
    ]


def commands(text: str) -> Iterator[Command]:
    """List the commands of a console block."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        line, _, output = part.partition("\n")
        yield Command(line, output.strip())


def program(page: str) -> str:
    """Give the Python program that a page is; its line numbers are those of the page."""
    lines = [
        f"import sys; sys.path.append({str(ROOT)!r}); from tests.meta.documents import run, write"
    ]
    for block in blocks(page):
        if block.title is not None:
            code = [f"write({block.title!r}, {block.text!r})"]
        elif block.language == "python":
            code = block.text.splitlines()
        elif block.language == "console":
            code = [f"run({page!r}, {block.text!r})"]
        else:
            continue
        lines += [""] * (block.line - len(lines)) + code
    return "\n".join(lines)


def write(title: str, text: str) -> None:
    """Write a file of a page."""
    Path(title).parent.mkdir(parents=True, exist_ok=True)
    Path(title).write_text(text, encoding="utf-8")


def run(page: str, text: str) -> None:
    """Run the commands of a console block, and compare what they print with what the page says."""
    for command in commands(text):
        # README is for people who have not installed anything yet.
        if page == "README.md" and not command.line.startswith("vzarr "):
            continue
        result = subprocess.run(
            command.line,
            shell=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=_environment(),
        )
        assert result.returncode == 0, f"{page}: $ {command.line}\n{result.stdout}"
        if not matches(command.output, result.stdout):
            raise AssertionError(f"{page}: $ {command.line}\nprints\n{result.stdout}")


def matches(expected: str, printed: str) -> bool:
    """Whether a command printed what a page says; true if the page does not say."""
    if not expected:
        return True
    parts = [part.strip() for part in _flat(expected).split("…")]
    return re.fullmatch(".*".join(map(re.escape, parts)), _flat(printed)) is not None


def _flat(text: str) -> str:
    return " ".join(text.split())


def _environment() -> dict[str, str]:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    # A reader's pytest has not the plugins that ours has.
    plain = {"NO_COLOR": "1", "COLUMNS": "100", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return {**os.environ, **plain, "PATH": path}
