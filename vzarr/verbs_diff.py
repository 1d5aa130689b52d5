"""Verbs that tell what changed: show, diff."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from vzarr.command import (
    PROBLEM,
    file_argument,
    open_file,
    output,
    paged,
    ref_argument,
    verb,
)
from vzarr.diff import Diff, NodeChange
from vzarr.errors import AbsentError, CorruptError
from vzarr.facts import CHANGE_KEYS, COMMIT_KEYS, Names, change_facts
from vzarr.history import Commit
from vzarr.output import ADDED, CHANGED, QUIET, REMOVED, Cell, Output, spell_numbers
from vzarr.printable import plural, printable
from vzarr.repository import Repository
from vzarr.verbs_log import commit_lines

if TYPE_CHECKING:
    from vzarr.statistics import Statistics, Summary

# The longest bar of --stat.
_BAR = 40
_MARKS = {"added": ("+", ADDED), "changed": ("~", CHANGED), "removed": ("-", REMOVED)}


_stat_option = click.option("--stat", is_flag=True, help="One line for each array, and a sum.")
_values_option = click.option(
    "--values/--no-values",
    default=None,
    help="Compare the values of chunks, too.  [default: of small changes]",
)


@verb(
    "vzarr show ocean.vzarr main~1",
    "vzarr show ocean.vzarr main --path sst",
    keys=f"commit{{{COMMIT_KEYS}}} changes[as diff's], null for a commit without parents; "
    "with --path, view as view's",
)
@file_argument
@ref_argument
@_stat_option
@_values_option
@click.option("--path", metavar="PATH", help="Draw this array as it is in the commit.")
@click.option("--index", metavar="INDEX", help='What to draw, such as "0, :, 10:20".')
def show(
    file: str,
    ref: str,
    stat: bool,
    values: bool | None,
    path: str | None,
    index: str | None,
) -> None:
    """Describe a commit and what it changed.

    REF is main if it is not given. A merge is compared with its first parent. With --path, shows
    the commit and a picture of the array, as view does.
    """
    if index is not None and path is None:
        raise click.UsageError("--index goes with --path.")
    out = output()
    with open_file(file) as repo, paged(out):
        commit = repo.show(ref)
        names = Names(repo)
        facts: dict[str, Any] = {"commit": names.facts(commit)}
        for line in commit_lines(commit, names):
            out.line(*line)
        if path is None:
            facts["changes"] = _show_changes(out, repo, commit, stat=stat, values=values)
        else:
            from vzarr.verbs_view import view_array

            out.line()
            facts["view"] = view_array(out, repo, path, commit.id, index)
    out.document(facts)


def _show_changes(
    out: Output, repo: Repository, commit: Commit, *, stat: bool, values: bool | None
) -> list[dict[str, Any]] | None:
    """Print what a commit changed, and give it as facts; None if it has nothing to change."""
    if not commit.parents:
        return None
    try:
        diff = repo.diff(commit.parents[0], commit.id)
    except AbsentError as error:
        out.line()
        out.line(f"What it changed cannot be told: {error}")
        return None
    if diff:
        out.line()
    return _tell(out, diff, stat=stat, values=values)


@verb(
    "vzarr diff ocean.vzarr v1.0 main",
    "vzarr diff ocean.vzarr v1.0 main --stat",
    keys=f"old{{ref commit}} new{{ref commit}} equal changes[{CHANGE_KEYS}]",
)
@file_argument
@click.argument("old")
@click.argument("new", required=False)
@_stat_option
@_values_option
@click.option("--exit-code", is_flag=True, help="Exit with 1 if anything differs.")
@click.pass_context
def diff(
    ctx: click.Context,
    file: str,
    old: str,
    new: str | None,
    stat: bool,
    values: bool | None,
    exit_code: bool,
) -> None:
    """Compare two REFs.

    Shows the groups, arrays and attributes that differ, the regions of arrays, and how their values
    changed: the latter if no more than 1,000 chunks and 64 MiB did, unless --values says otherwise.
    NEW is main if it is not given. OLD..NEW is understood, too.
    """
    out = output()
    if new is None:
        if "..." in old:
            raise click.UsageError("OLD...NEW is not understood; give OLD..NEW.")
        old, _, new = old.partition("..")
    old, new = old or "main", new or "main"
    with open_file(file) as repo, paged(out):
        before, after = repo.show(old).id, repo.show(new).id
        diff = repo.diff(before, after)
        sides = {"old": {"ref": old, "commit": before}, "new": {"ref": new, "commit": after}}
        changes = _tell(out, diff, stat=stat, values=values)
        out.document({**sides, "equal": not diff, "changes": changes})
    if exit_code and diff:
        ctx.exit(PROBLEM)


# ── what changed ─────────────────────────────────────────────────────────────────────────────────


def _tell(out: Output, diff: Diff, *, stat: bool, values: bool | None) -> list[dict[str, Any]]:
    """Print changes, and give them as facts if those are asked for."""
    if stat and not out.as_json:
        _print_stat(out, diff)
        return []
    facts = []
    measure = _measure(out, values)
    for change in diff:
        statistics = measure(change)
        if out.as_json:
            facts.append(change_facts(change, statistics))
            continue
        out.changes([change])
        for line in () if statistics is None else _values_lines(statistics):
            out.line("    ", *line)
    return facts


def _measure(out: Output, values: bool | None) -> Callable[[NodeChange], Statistics | None]:
    """Give what compares the values of an array, or does not."""
    if values is False:
        return lambda _: None
    budget = None

    def measure(change: NodeChange) -> Statistics | None:
        nonlocal budget
        if next(change.iter_chunks(), None) is None:
            return None
        # Needs zarr: not where nothing is to be compared.
        from vzarr.statistics import Budget, Statistics

        if values is None and budget is None:
            budget = Budget()
        try:
            with out.progress() as progress:
                return change.statistics(budget, progress=progress)
        except (AbsentError, CorruptError) as error:
            return Statistics(left_out=f"they cannot be read: {error}")

    return measure


def _values_lines(found: Statistics) -> Iterator[list[Cell]]:
    """Say in a line or two for each what became of values, which came, and which went."""
    if found.left_out:
        yield [(f"values: not compared, {printable(found.left_out)}", QUIET)]
        return
    if found.compared:
        counts = f"{found.changed:,} of {found.compared:,} changed"
        yield ["values: ", (counts, CHANGED), *_steps(found.difference)]
        if found.old is not None and found.new is not None and found.changed:
            yield ["        ", *_before_and_after(found.old, found.new)]
    for number, word, style, summary in (
        (found.added, "added", ADDED, found.gained),
        (found.removed, "removed", REMOVED, found.lost),
    ):
        if number:
            yield ["values: ", (f"{number:,} {word}", style), *_only(summary)]


def _steps(difference: Summary | None) -> list[Cell]:
    """Say by how much values changed."""
    if difference is None or difference.minimum is None or difference.maximum is None:
        return []
    limits = dict.fromkeys([difference.minimum, difference.maximum])
    return [f" by {' … '.join(spell_numbers(*limits))}"]


_FACTS = ("minimum", "mean", "maximum", "missing")


def _before_and_after(old: Summary, new: Summary) -> list[Cell]:
    cells: list[Cell] = []
    for name in _FACTS:
        before, after = getattr(old, name), getattr(new, name)
        if name == "missing" and not before and not after:
            continue
        cells += [", "] * bool(cells)
        if before == after:
            cells.append(f"{name} {_spell(before)}")
        else:
            texts = _spell(before, after), _spell(after, before)
            cells += [f"{name} ", (texts[0], REMOVED), " → ", (texts[1], ADDED)]
    return cells


def _only(summary: Summary | None) -> list[Cell]:
    if summary is None:
        return []
    facts = {name: getattr(summary, name) for name in _FACTS}
    shown = [f"{name} {_spell(it)}" for name, it in facts.items() if it or name != "missing"]
    return [f": {', '.join(shown)}"]


def _spell(number: float | None, other: float | None = None) -> str:
    """Write a number, in so many digits that it looks different from another one."""
    if number is None:
        return "none"
    return spell_numbers(number, number if other is None else other)[0]


def _print_stat(out: Output, diff: Diff) -> None:
    """Print a line for each array, and the sum of all, as git does."""
    counts = [(change, _count(change)) for change in diff]
    width = max((len(_name(change)) for change, _ in counts), default=0)
    largest = max((sum(each.values()) for _, each in counts), default=0)
    digits = len(f"{largest:,}")
    totals = dict.fromkeys(_MARKS, 0)
    for change, each in counts:
        number = sum(each.values())
        # A bar has one mark at least of each kind that there is.
        bar = [
            (mark * max(1, each[kind] * _BAR // max(largest, _BAR)), style)
            for kind, (mark, style) in _MARKS.items()
            if each[kind]
        ]
        tail: list[Cell] = [f"{number:>{digits},} ", *bar] if number else [change.change]
        out.line(f" {_name(change):<{width}} | ", *tail)
        for kind in totals:
            totals[kind] += each[kind]
    if counts:
        nbytes = sum(chunk.new_bytes for change, _ in counts for chunk in change.chunks)
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in totals.items() if number)
        number = sum(totals.values())
        chunks = f"{number:,} chunk{plural(number)}" + (f": {kinds}" if kinds else "")
        out.line(
            f" {len(counts):,} node{plural(len(counts))} changed, {chunks}, "
            f"{nbytes:,} bytes written"
        )


def _name(change: NodeChange) -> str:
    name = printable(change.path) or "/"
    return name if change.old_path is None else f"{printable(change.old_path)} → {name}"


def _count(change: NodeChange) -> dict[str, int]:
    counts = dict.fromkeys(_MARKS, 0)
    for chunk in change.chunks:
        counts[chunk.kind] += 1
    return counts
