"""The verb log, and how commits are described."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Any

import click

from vzarr.command import file_argument, moment, open_file, output, paged, verb
from vzarr.facts import COMMIT_KEYS, Names
from vzarr.graph import Cell as GraphCell
from vzarr.graph import Style, children_first, draw, layout
from vzarr.history import Commit
from vzarr.output import ID, QUIET, SHORT, Cell, first_line, plain, spell_time
from vzarr.printable import printable
from vzarr.repository import Repository

_COLOURS = ("red", "green", "yellow", "blue", "magenta", "cyan")
_Line = Sequence[Cell]
_Test = Callable[[Commit], bool]


def _pattern(
    _: click.Context, parameter: click.Parameter, text: str | None
) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise click.BadParameter(
            f"{text!r} is no regular expression: {error}", param=parameter
        ) from error


@verb(
    "vzarr log ocean.vzarr --oneline -n 5",
    "vzarr log ocean.vzarr --graph --all",
    "vzarr log ocean.vzarr v1.0 --path sst --since 2026-03-01",
    keys=f"ref path commits[{COMMIT_KEYS}]; ref is null with --all",
)
@file_argument
@click.argument("ref", required=False)
@click.option("--graph", is_flag=True, help="Draw branches and merges beside the commits.")
@click.option("--all", "all_refs", is_flag=True, help="From all branches and tags.")
@click.option("--oneline", is_flag=True, help="One line a commit.")
@click.option(
    "-n", "--max-count", type=click.IntRange(min=0), metavar="N", help="At most so many commits."
)
@click.option("--path", metavar="PATH", help="Only commits that changed this group or array.")
@click.option(
    "--since", "--after", callback=moment, metavar="DATE|DAYS", help="Only commits after that."
)
@click.option(
    "--until", "--before", callback=moment, metavar="DATE|DAYS", help="Only commits before that."
)
@click.option(
    "--author", callback=_pattern, metavar="REGEX", help="Only commits of such an author."
)
@click.option(
    "--grep", callback=_pattern, metavar="REGEX", help="Only commits with such a message."
)
def log(
    file: str,
    ref: str | None,
    graph: bool,
    all_refs: bool,
    oneline: bool,
    max_count: int | None,
    path: str | None,
    **wanted: Any,
) -> None:
    """List the commits from a REF back, newest first.

    REF is main if it is not given. A date without a time zone is local time, a number counts days
    from now, and a REGEX takes no heed of case. The first lines come at once, however long the
    history is; but --graph reads all of it first, to put no commit before one of its children.
    """
    if all_refs and ref is not None:
        raise click.UsageError("REF and --all do not go together.")
    out = output()
    with open_file(file) as repo, paged(out):
        names = Names(repo)
        tips = names.commits if all_refs else [ref or "main"]
        test = _all_of(_tests(**wanted))
        if graph:
            found = _drawn(repo, tips, path, test, max_count, names, oneline=oneline)
        else:
            commits = filter(test, repo.iter_log(*tips, path=path))
            found = _listed(islice(commits, max_count), names, oneline=oneline)
        shown = []
        for commit, lines in found:
            if commit is not None and out.as_json:
                shown.append(names.facts(commit))
            for line in lines:
                out.line(*line)
    out.document({"ref": None if all_refs else ref or "main", "path": path, "commits": shown})


def _tests(
    since: datetime | None,
    until: datetime | None,
    author: re.Pattern[str] | None,
    grep: re.Pattern[str] | None,
) -> Iterator[_Test]:
    if since is not None:
        yield lambda commit: commit.time > since
    if until is not None:
        yield lambda commit: commit.time < until
    if author is not None:
        yield lambda commit: author.search(commit.author) is not None
    if grep is not None:
        yield lambda commit: grep.search(commit.message) is not None


def _all_of(tests: Iterable[_Test]) -> _Test:
    several = tuple(tests)
    return lambda commit: all(test(commit) for test in several)


_Found = Iterator[tuple[Commit | None, Iterable[_Line]]]


def _listed(commits: Iterable[Commit], names: Names, *, oneline: bool) -> _Found:
    for number, commit in enumerate(commits):
        lines = _subject(commit, names) if oneline else commit_lines(commit, names)
        yield commit, lines if oneline or not number else [[], *lines]


def _drawn(
    repo: Repository,
    tips: Sequence[str],
    path: str | None,
    test: _Test,
    max_count: int | None,
    names: Names,
    *,
    oneline: bool,
) -> _Found:
    """Put a graph before the lines of commits; those that do not pass the test are left out."""
    commits = {commit.id: commit for commit in repo.iter_log(*tips)}
    touching = None if path is None else {one.id for one in repo.iter_log(*tips, path=path)}
    order = children_first((commit.id, commit.parents) for commit in commits.values())
    shown: dict[str, Commit] = {}
    ordered = [commits[name] for name in order]
    for commit in ordered:
        if (touching is None or commit.id in touching) and test(commit):
            shown[commit.id] = commit
    left = len(shown) if max_count is None else min(max_count, len(shown))
    style = _graph_style()
    for row in layout(((commit.id, commit.parents) for commit in ordered), shown):
        if not left:
            return
        drawing = draw(row, style)
        if row.hidden:
            yield None, [_coloured(drawing.turns)] if drawing.turns else []
            continue
        commit = shown[row.commit]
        left -= 1
        lines = _subject(commit, names) if oneline else [*commit_lines(commit, names), []]
        if not left and not oneline:
            lines.pop()
        margins = [drawing.commit, *([drawing.turns] if drawing.turns else [])]
        width = max(sum(len(text) for text, _ in margin) for margin in margins)
        rest = max(len(margins), len(lines)) - len(margins)
        margins += [drawing.margin] * rest
        lines += [[]] * (len(margins) - len(lines))
        yield (
            commit,
            [
                [*_coloured(margin, width if line else 0), *line]
                for margin, line in zip(margins, lines, strict=True)
            ],
        )


def _graph_style() -> Style:
    try:
        "│●╯".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "ascii"
    return "box"


def _coloured(cells: Sequence[GraphCell], width: int = 0) -> list[Cell]:
    """Give a margin its colours, and so many characters and one more where text follows."""
    found: list[Cell] = [(text, _COLOURS[column % len(_COLOURS)]) for text, column in cells]
    if width:
        found.append(" " * (width + 1 - sum(len(text) for text, _ in cells)))
    return found


def _subject(commit: Commit, names: Names) -> list[_Line]:
    shown = output().commit_id(commit.id)
    return [[shown, *names.cells(commit), " ", first_line(commit.message)]]


def commit_lines(commit: Commit, names: Names) -> list[_Line]:
    """Describe a commit as git does."""
    lines: list[_Line] = [[(f"commit {commit.id}", ID), *names.cells(commit)]]
    if len(commit.parents) > 1:
        lines.append(["Merge:  ", " ".join(parent[:SHORT] for parent in commit.parents)])
    lines.append([f"Author: {printable(commit.author)}"])
    lines.append([f"Date:   {spell_time(commit.time)}"])
    lines.append([])
    lines += [[f"    {line}"] if line else [] for line in commit.message.split("\n")]
    for key, value in commit.metadata.items():
        text = json.dumps(plain(value), ensure_ascii=False)
        lines.append([(f"    {printable(key)}: {text}", QUIET)])
    return lines
