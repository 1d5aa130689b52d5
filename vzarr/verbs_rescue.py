"""The verb recover: save from a damaged file what is whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vzarr.command import PROBLEM, file_argument, output, require_file, verb
from vzarr.output import Output

if TYPE_CHECKING:
    from vzarr.recovery import RecoverReport

RECOVER_KEYS = (
    "path saved ok branches{name: commit} tags{name: commit} moved{name: commit} made{name: why} "
    "rewritten{old: new} lost[kind message cost path document coordinates region commit branches "
    "tags commits] omitted notes[] commits nodes chunks nbytes seconds"
)


@verb("vzarr recover broken.vzarr saved.vzarr", keys=RECOVER_KEYS)
@file_argument
@click.argument("saved", type=click.Path())
@click.pass_context
def recover(ctx: click.Context, file: str, saved: str) -> None:
    """Save from a damaged repository all that is whole, to a new file.

    FILE is only read. SAVED must not exist, and appears once it has passed a full check. A branch
    keeps its name at its newest commit of which all is whole; newer ones are in salvaged/BRANCH,
    without what is lost. Tells what that is, down to regions of arrays. Exits with 1 if anything is
    lost.
    """
    import vzarr

    out = output()
    require_file(file)
    with out.progress() as progress:
        report = vzarr.recover(file, saved, progress=progress)
    _show(out, report)
    if not report.ok:
        ctx.exit(PROBLEM)


def _show(out: Output, report: RecoverReport) -> None:
    out.document(_facts(report))
    for problem in report.lost:
        out.line((f"{problem.kind}: ", "red"), problem.message)
        out.line(f"  {problem.cost}")
    out.line(report.summary())


def _facts(report: RecoverReport) -> dict[str, Any]:
    facts = {field: getattr(report, field) for field in report.__slots__}
    lost = [
        {field: getattr(problem, field) for field in problem.__slots__} for problem in report.lost
    ]
    return {**facts, "ok": report.ok, "lost": lost}
