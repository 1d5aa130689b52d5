"""What docs/coming-from.md says in its middle columns works: each cell runs, top to bottom.

A section of the document is one program. Its steps are blocks of Python and the middle cells of its
tables, as they stand there: Python, or commands for a shell where they begin with "$ ". A cell is
pure code, or a dash that says that there is no counterpart. The columns on the left are other
people's programs, and are not run.
"""

from __future__ import annotations

import builtins
import itertools
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

import vzarr
from tests.support import assert_sound
from vzarr.cli import commands
from vzarr.registration import unregister

DOCUMENT = Path(__file__).parents[2] / "docs" / "coming-from.md"
TEXT = DOCUMENT.read_text()

SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
CELL_BORDER = re.compile(r"(?<!\\)\|")
CODE = re.compile(r"`[^`]+`")
NO_COUNTERPART = "\N{EN DASH}"


@dataclass(frozen=True)
class Step:
    """Something to run, and the line of the document where it stands."""

    line: int
    code: str
    kind: str

    @property
    def is_claim(self) -> bool:
        return self.kind == "block" and re.search(r"^assert ", self.code, re.MULTILINE) is not None


def sections(text: str) -> dict[str, list[Step]]:
    """Give the steps of each section, in order."""
    found: dict[str, list[Step]] = {}
    steps: list[Step] = []
    lines = enumerate(text.splitlines(), 1)
    for number, line in lines:
        if match := SECTION.match(line):
            steps = found[match[1]] = []
        elif line == "```python":
            steps.append(Step(number + 1, _block(lines), "block"))
        elif line.startswith("```"):
            _block(lines)
        elif line.startswith("|"):
            steps += _row(number, line)
    return found


def _block(lines: Iterator[tuple[int, str]]) -> str:
    code = []
    for _, line in lines:
        if line == "```":
            return "\n".join(code)
        code.append(line)
    raise ValueError("a block of code does not end")


def _row(number: int, line: str) -> Iterator[Step]:
    """Give what the row of a table has to run: its middle cell."""
    cells = [cell.strip().replace(r"\|", "|") for cell in CELL_BORDER.split(line)[1:-1]]
    if len(cells) != 3:
        raise ValueError(f"line {number}: a row has three cells, not {len(cells)}: {line}")
    cell = cells[1]
    if cell in ("vzarr", "---", NO_COUNTERPART):
        if cell == NO_COUNTERPART and not cells[2]:
            raise ValueError(f"line {number}: where there is no counterpart, say what to do")
        return
    spans = cell.split("<br>")
    if not all(CODE.fullmatch(span) for span in spans):
        raise ValueError(f"line {number}: not pure code: {cell}")
    lines = [span.strip("`") for span in spans]
    for is_command, group in itertools.groupby(lines, lambda line: line.startswith("$ ")):
        if is_command:
            yield from (Step(number, line.removeprefix("$ "), "shell") for line in group)
        else:
            yield Step(number, "\n".join(group), "cell")


def run(steps: list[Step], module: types.ModuleType) -> None:
    """Run steps in the present directory and one namespace; an error tells the line."""
    for step in steps:
        try:
            if step.kind == "shell":
                _run_command(step.code)
            else:
                code = "\n" * (step.line - 1) + step.code
                exec(compile(code, str(DOCUMENT), "exec"), vars(module))
        except BaseException as error:
            error.add_note(f"in line {step.line} of {DOCUMENT.name}: {step.code.splitlines()[0]}")
            raise


def _run_command(command: str) -> None:
    """Run a command: vzarr's in this process, which saves the time to start one for each."""
    program, *arguments = shlex.split(command, comments=True)
    if program == "vzarr":
        result = CliRunner().invoke(commands, arguments)
        assert result.exit_code == 0, result.output
    else:
        subprocess.run([program, *arguments], check=True)


@pytest.fixture
def module(tmp_path, monkeypatch) -> Iterator[types.ModuleType]:
    """An empty module to run in, in a directory of its own, whose repositories end sound."""
    module = types.ModuleType("coming_from")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(builtins, "print", lambda *values, **_: [str(value) for value in values])
    yield module
    unregister()
    for found in tmp_path.rglob("*.vzarr"):
        if vzarr.exists(found):
            assert_sound(found)


@pytest.mark.parametrize("name", [name for name, steps in sections(TEXT).items() if steps])
def test_a_section_runs(name, module):
    run(sections(TEXT)[name], module)


@pytest.mark.parametrize(("name", "steps"), sections(TEXT).items())
def test_a_section_ends_with_what_it_claims(name, steps):
    assert steps == [] or steps[-1].is_claim, name


def test_who_is_there():
    """The document has a section for each of those that users come from."""
    names = " ".join(sections(TEXT))
    for peer in (
        "zarr",
        "Icechunk",
        "KLEIO",
        "Arraylake",
        "ipldstore",
        "H5_Nested_Store",
        "versioned-hdf5",
        "TensorStore",
        "DVC",
        "h5py",
    ):
        assert peer in names
    assert sum(len(steps) for steps in sections(TEXT).values()) > 300


# ── these tests can fail ─────────────────────────────────────────────────────────────────────────

SAMPLE = """
## Abacus

Text with | a border.

```python
import vzarr
repo = vzarr.open("a.vzarr")
```

| Abacus | vzarr | |
|---|---|---|
| `beads \\| 1` | `x = 1 \\| 2`<br>`y = x + 1` | and `this` is no code to run |
| `beads.push()` | \N{EN DASH} | not here: say `vzarr push` |
| `abacus ls` | `$ vzarr log a.vzarr`<br>`z = 1` | |

```console
$ not run
```

```python
assert y == 4
```

## Nothing to run
"""


def test_the_steps_of_a_section():
    found = sections(SAMPLE)
    assert [step.kind for step in found["Abacus"]] == ["block", "cell", "shell", "cell", "block"]
    assert found["Abacus"][1] == Step(13, "x = 1 | 2\ny = x + 1", "cell")
    assert [step.is_claim for step in found["Abacus"]] == [False, False, False, False, True]
    assert found["Nothing to run"] == []


def test_what_is_right_passes(module):
    run(sections(SAMPLE)["Abacus"], module)
    module.repo.close()


@pytest.mark.parametrize(
    ("right", "wrong", "error"),
    [
        ("`y = x + 1`", "`y = x.beads`", AttributeError),
        ("`y = x + 1`", "`y =`", SyntaxError),
        ("`y = x + 1`", "`y = x`", AssertionError),
        ("vzarr log a.vzarr", "vzarr log b.vzarr", AssertionError),
        ("vzarr log a.vzarr", "vzarr logs a.vzarr", AssertionError),
    ],
)
def test_a_broken_cell_fails_with_its_line(right, wrong, error, module):
    with pytest.raises(error) as caught:
        run(sections(SAMPLE.replace(right, wrong))["Abacus"], module)
    assert re.search(r"in line (13|15|22) of coming-from.md", caught.value.__notes__[0])
    module.repo.close()


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("`y = x + 1`", "`y = x + 1` or so"),
        ("`y = x + 1`", "see there"),
        ("| \N{EN DASH} |", "| |"),
        ("say `vzarr push` |", "say it | `vzarr push` |"),
        ("| not here: say `vzarr push` |", "| |"),
        ("assert y == 4\n```", "assert y == 4\n"),
    ],
)
def test_a_table_that_cannot_be_read_fails(right, wrong):
    with pytest.raises(ValueError):
        sections(SAMPLE.replace(right, wrong))
