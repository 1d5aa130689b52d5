"""Write docs/cli.md from the commands' --help: python -m tests.cli.generate_docs."""

from pathlib import Path

import click

from vzarr.cli import commands

TARGET = Path(__file__).parents[2] / "docs" / "cli.md"
_WIDTH = 88

_INTRODUCTION = """\
# The command line

`pip install vzarr` installs the command `vzarr`; `python -m vzarr` is the same. It reads a
repository that others have open and write to, without disturbing them.

```console
$ vzarr demo --synthetic
$ vzarr log ocean.vzarr --oneline
$ vzarr diff ocean.vzarr main correction
$ vzarr branch ocean.vzarr trial --at main~1
```

Verbs that read never create a repository, whatever the path. Beside a repository that was opened
lies LMDB's `ocean.vzarr-lock`, which holds no data: copy the one file without it.

## In scripts

Every verb takes `--json` and then prints one JSON document on stdout. Its keys are listed with each
verb below: `commits[id author]` is a list of objects with these two keys, `commit{id author}` one
such object, and `{name: commit}` an object with names for keys. Numbers that JSON lacks are spelled
as Zarr spells them: `"NaN"`, `"Infinity"`, `"-Infinity"`.

```console
$ vzarr log ocean.vzarr --json | jq -r '.commits[0].id'
```

An error is one line on stderr, `vzarr: error: …`, and exit code 1. With `--json`, stdout has
`{"error": {"type": "RefNotFoundError", "message": "…"}}`; the types are the Python exceptions of
`vzarr`. Wrong usage is exit code 2, an interrupt (Ctrl-C) 130. `vzarr diff --exit-code` exits with
1 when anything differs, `vzarr check` when there is a problem.

Colours follow the terminal; `NO_COLOR=1` turns them off, `FORCE_COLOR=1` on.

## Verbs
"""


def render() -> str:
    """Give the whole page."""
    settings = {"terminal_width": _WIDTH, **commands.context_settings}
    context = click.Context(commands, info_name="vzarr", **settings)
    parts = [_INTRODUCTION, _block(commands.get_help(context))]
    for name in commands.list_commands(context):
        verb = commands.commands[name]
        if verb.hidden:
            continue
        below = click.Context(verb, info_name=name, parent=context, **settings)
        parts += [f"### vzarr {name}\n", _block(verb.get_help(below))]
    return "\n".join(parts)


def _block(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```\n"


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
