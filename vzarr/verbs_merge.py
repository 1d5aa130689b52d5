"""Verbs that bring changes together, or tell who made them: merge, cherry-pick, revert, blame."""

from __future__ import annotations

import click

from vzarr.command import (
    PROBLEM,
    file_argument,
    open_file,
    output,
    parse_region,
    ref_argument,
    require_branch,
    strategy_option,
    verb,
)
from vzarr.facts import CONFLICT_KEYS, conflict_facts, diff_facts
from vzarr.merge import Strategy
from vzarr.output import BRANCH, Output, first_line, spell_time


@verb(
    "vzarr merge ocean.vzarr dev --dry-run",
    'vzarr merge ocean.vzarr dev --into main -m "take the corrections"',
    keys="kind ref into commit, kind one of up to date, fast-forward, merge; with --dry-run, kind "
    f"ref into bases changes[as diff's] conflicts[{CONFLICT_KEYS}]; an error has conflicts, too",
)
@file_argument
@click.argument("ref")
@click.option("--into", default="main", metavar="BRANCH", help="The branch.  [default: main]")
@click.option("-m", "--message", metavar="MSG", help="For the commit that joins both sides.")
@strategy_option
@click.option("--no-ff", is_flag=True, help="Make a commit also where the branch could just move.")
@click.option("-n", "--dry-run", is_flag=True, help="Tell what would happen; exit 1 on conflicts.")
@click.pass_context
def merge(
    ctx: click.Context,
    file: str,
    ref: str,
    into: str,
    message: str | None,
    strategy: Strategy,
    no_ff: bool,
    dry_run: bool,
) -> None:
    """Merge a REF into a branch.

    What both sides did since they parted is put together, chunk by chunk and attribute by
    attribute. On conflicts nothing is written; --dry-run lists them all.
    """
    out = output()
    if dry_run:
        _preview_merge(ctx, out, file, ref, into, strategy)
        return
    with open_file(file, "r+") as repo:
        require_branch(repo, file, into)
        before, other = repo.branches[into], repo.show(ref).id
        with out.progress() as progress:
            commit = repo.merge(ref, into, message, strategy, no_ff=no_ff, progress=progress)
    settled = {other: "fast-forward", before: "up to date"}
    kind = settled.get(commit, "merge")
    out.document({"kind": kind, "ref": ref, "into": into, "commit": commit})
    if commit == before:
        out.line("branch ", (into, BRANCH), f" has all of {ref} already")
    else:
        out.line(f"{kind}: branch ", (into, BRANCH), " is now at ", out.commit_id(commit))


def _preview_merge(
    ctx: click.Context, out: Output, file: str, ref: str, into: str, strategy: Strategy
) -> None:
    with open_file(file) as repo:
        require_branch(repo, file, into)
        with out.progress() as progress:
            preview = repo.merge(ref, into, strategy=strategy, dry_run=True, progress=progress)
        if out.as_json:
            out.document(
                {
                    "kind": preview.kind,
                    "ref": ref,
                    "into": into,
                    "bases": preview.bases,
                    "changes": diff_facts(preview.diff),
                    "conflicts": [conflict_facts(one) for one in preview.conflicts],
                }
            )
        out.line(f"{preview.kind}: {ref} into ", (into, BRANCH))
        out.changes(preview.diff)
    for conflict in preview.conflicts:
        out.line((f"! {conflict}", "red"))
    if preview.conflicts:
        ctx.exit(PROBLEM)


@verb(
    "vzarr cherry-pick ocean.vzarr 1f3a9c2 --onto main",
    keys="branch commit picked; an error has conflicts, as merge's",
)
@file_argument
@click.argument("commit")
@click.option("--onto", default="main", metavar="BRANCH", help="The branch.  [default: main]")
@click.option("--mainline", type=int, metavar="N", help="For a merge: which parent to count from.")
@strategy_option
@click.option("-x", "--note-origin", is_flag=True, help="Name the commit in the message.")
def cherry_pick(
    file: str, commit: str, onto: str, mainline: int | None, strategy: Strategy, note_origin: bool
) -> None:
    """Apply what one COMMIT changed on top of a branch.

    The new commit has its message, metadata and author.
    """
    out = output()
    with open_file(file, "r+") as repo:
        require_branch(repo, file, onto)
        picked = repo.show(commit).id
        with out.progress() as progress:
            made = repo.cherry_pick(
                picked,
                onto,
                mainline=mainline,
                strategy=strategy,
                note_origin=note_origin,
                progress=progress,
            )
    out.document({"branch": onto, "commit": made, "picked": picked})
    out.line("branch ", (onto, BRANCH), " is now at ", out.commit_id(made))


@verb(
    "vzarr revert ocean.vzarr main~3",
    keys="branch commit reverted; an error has conflicts, as merge's",
)
@file_argument
@click.argument("commit")
@click.option("--on", default="main", metavar="BRANCH", help="The branch.  [default: main]")
@click.option("--mainline", type=int, metavar="N", help="For a merge: which parent to go back to.")
@strategy_option
@click.option("-m", "--message", metavar="MSG", help="Why.")
def revert(
    file: str,
    commit: str,
    on: str,
    mainline: int | None,
    strategy: Strategy,
    message: str | None,
) -> None:
    """Undo what one COMMIT changed, by a new commit on a branch.

    What other commits changed since stays.
    """
    out = output()
    with open_file(file, "r+") as repo:
        require_branch(repo, file, on)
        reverted = repo.show(commit).id
        with out.progress() as progress:
            made = repo.revert(
                reverted,
                on,
                mainline=mainline,
                strategy=strategy,
                message=message,
                progress=progress,
            )
    out.document({"branch": on, "commit": made, "reverted": reverted})
    out.line("branch ", (on, BRANCH), " is now at ", out.commit_id(made))


@verb(
    "vzarr blame ocean.vzarr sst",
    'vzarr blame ocean.vzarr sst v1.0 --region "0:10, 5"',
    keys="path ref commit commits[id author time message or_before chunks[coordinates region]]; "
    "or_before, if the commit is as far back as a shallow clone knows",
)
@file_argument
@click.argument("path")
@ref_argument
@click.option("--region", metavar="INDEX", help='Only chunks in this part, such as "0:10, 5".')
def blame(file: str, path: str, ref: str, region: str | None) -> None:
    """Tell the last commit to change each chunk of an array.

    PATH is the array's, REF is main if it is not given.
    """
    out = output()
    index = None if region is None else parse_region(region)
    with open_file(file) as repo, out.progress() as progress:
        commit = repo.show(ref).id
        found = repo.blame(path, index, ref=commit, progress=progress)
    groups = found.by_commit()
    out.document(
        {
            "path": found.path,
            "ref": ref,
            "commit": commit,
            "commits": [
                {
                    "id": change.id,
                    "author": change.author,
                    "time": change.time,
                    "message": change.message,
                    "or_before": change.id in found.or_before,
                    "chunks": [{"coordinates": one, "region": found.region(one)} for one in chunks],
                }
                for change, chunks in groups
            ],
        }
    )
    out.table(
        ["commit", "committed", "author", "changed", "message"],
        [
            [
                out.commit_id(change.id),
                spell_time(change.time),
                change.author,
                found.spell(chunks) + (", or before" if change.id in found.or_before else ""),
                first_line(change.message),
            ]
            for change, chunks in groups
        ],
    )
