"""Verbs that tell of a repository: init, info, tree, log, status, show, diff; check and demo."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from itertools import islice
from typing import Any

import click

import vzarr
from vzarr.command import (
    PROBLEM,
    file_argument,
    open_file,
    output,
    ref_argument,
    require_file,
    verb,
)
from vzarr.errors import AbsentError, AlreadyExistsError
from vzarr.facts import (
    CHANGE_KEYS,
    COMMIT_KEYS,
    INFO_KEYS,
    REPORT_KEYS,
    Names,
    branch_facts,
    diff_facts,
    distances,
    info_facts,
    node_facts,
    report_facts,
)
from vzarr.findings import Level
from vzarr.history import Commit
from vzarr.output import (
    BRANCH,
    HEADING,
    ID,
    QUIET,
    SHORT,
    Output,
    first_line,
    plain,
    plural,
    spell_time,
)
from vzarr.printable import printable
from vzarr.tree import MAX_NODES


def _spell_distance(facts: Mapping[str, Any]) -> str:
    if facts["name"] == "main" or facts["ahead"] is None:
        return ""
    return ", ".join(f"{facts[side]} {side}" for side in ("ahead", "behind") if facts[side]) or "="


def _print_commit(out: Output, commit: Commit, names: Names) -> None:
    out.line((f"commit {commit.id}", ID), *names.cells(commit))
    if len(commit.parents) > 1:
        out.line("Merge:  ", " ".join(parent[:SHORT] for parent in commit.parents))
    out.line(f"Author: {printable(commit.author)}")
    out.line(f"Date:   {spell_time(commit.time)}")
    out.line()
    for line in commit.message.split("\n"):
        out.line(f"    {line}" if line else "")
    for key, value in commit.metadata.items():
        out.line((f"    {printable(key)}: {json.dumps(plain(value), ensure_ascii=False)}", QUIET))


@verb("vzarr init ocean.vzarr", keys=INFO_KEYS)
@file_argument
def init(file: str) -> None:
    """Create an empty repository with a branch main.

    FILE must not exist.
    """
    out = output()
    if file and os.path.lexists(os.path.expanduser(file)):
        raise AlreadyExistsError(f"{file} exists already; nothing was created", name=file)
    with vzarr.open(file, "w-") as repo:
        facts, head = repo.info(), repo.branches["main"]
    out.document(info_facts(facts))
    out.line(f"created {facts.path} with branch ", ("main", BRANCH), " at ", out.commit_id(head))


@verb("vzarr info ocean.vzarr", keys=INFO_KEYS)
@file_argument
def info(file: str) -> None:
    """Tell a repository's identity, size and counts."""
    out = output()
    with open_file(file) as repo:
        facts = repo.info()
    out.document(info_facts(facts))
    out.line(str(facts))


@verb(
    "vzarr tree ocean.vzarr v1.0",
    keys="ref commit nodes[path kind attributes shape chunks dtype], the last three null for "
    "a group; more, true if there are too many to list",
)
@file_argument
@ref_argument
def tree(file: str, ref: str) -> None:
    """Draw the groups and arrays of a REF.

    REF is main if it is not given.
    """
    out = output()
    with open_file(file) as repo:
        session = repo.session(ref)
        found = islice(session.hierarchy.nodes(), MAX_NODES + 1)
        nodes = [node_facts(path, node) for path, _, node in found]
        more = len(nodes) > MAX_NODES
        facts = {"nodes": nodes[:MAX_NODES], "more": more}
        out.document({"ref": ref, "commit": session.base, **facts})
        out.line(str(repo.tree(session.base)))


@verb(
    "vzarr log ocean.vzarr --oneline -n 5",
    "vzarr log ocean.vzarr v1.0 --path sst",
    keys=f"ref path commits[{COMMIT_KEYS}]",
)
@file_argument
@ref_argument
@click.option("--path", metavar="PATH", help="Only commits that changed this group or array.")
@click.option(
    "-n", "--max-count", type=click.IntRange(min=0), metavar="N", help="At most so many commits."
)
@click.option("--oneline", is_flag=True, help="One line a commit.")
def log(file: str, ref: str, path: str | None, max_count: int | None, oneline: bool) -> None:
    """List the commits from a REF back, newest first.

    REF is main if it is not given.
    """
    out = output()
    with open_file(file) as repo:
        commits = repo.log(ref, path=path, limit=max_count)
        names = Names(repo)
    out.document({"ref": ref, "path": path, "commits": [names.facts(entry) for entry in commits]})
    for number, commit in enumerate(commits):
        if oneline:
            subject = first_line(commit.message)
            out.line(out.commit_id(commit.id), *names.cells(commit), " ", subject)
        else:
            if number:
                out.line()
            _print_commit(out, commit, names)


@verb(
    "vzarr status ocean.vzarr",
    keys="path commits tags branches[name commit author time message ahead behind]; ahead and "
    "behind count commits from main and are null if there is no main",
)
@file_argument
def status(file: str) -> None:
    """Tell where each branch is.

    That is its last commit, and how many commits it is ahead of main and behind it. Uncommitted
    work is not in here: it belongs to the sessions of the processes that do it.
    """
    out = output()
    with open_file(file) as repo:
        facts = repo.info()
        branches = branch_facts(repo)
        for entry, distance in zip(branches, distances(repo, branches), strict=True):
            entry.update(distance)
    out.document(
        {"path": facts.path, "commits": facts.commits, "tags": facts.tags, "branches": branches}
    )
    counts = (
        f"{facts.commits:,} commit{plural(facts.commits)}, {facts.branches:,} branch"
        f"{plural(facts.branches, 'es')}, {facts.tags:,} tag{plural(facts.tags)}"
    )
    out.line((facts.path, HEADING), f": {counts}")
    out.table(
        ["branch", "head", "committed", "against main", "message"],
        [
            [
                (entry["name"], BRANCH),
                out.commit_id(entry["commit"]),
                spell_time(entry["time"]),
                _spell_distance(entry),
                first_line(entry["message"]),
            ]
            for entry in branches
        ],
    )


@verb(
    "vzarr show ocean.vzarr main~1",
    keys=f"commit{{{COMMIT_KEYS}}} changes[as diff's], null for a commit without parents",
)
@file_argument
@ref_argument
def show(file: str, ref: str) -> None:
    """Describe a commit and what it changed.

    REF is main if it is not given. A merge is compared with its first parent.
    """
    out = output()
    with open_file(file) as repo:
        commit = repo.show(ref)
        names = Names(repo)
        diff, left_out = None, ""
        try:
            diff = repo.diff(commit.parents[0], commit.id) if commit.parents else None
        except AbsentError as error:
            left_out = f"What it changed cannot be told: {error}"
        if out.as_json:
            out.document({"commit": names.facts(commit), "changes": diff_facts(diff)})
        _print_commit(out, commit, names)
        if left_out:
            out.line()
            out.line(left_out)
        if diff:
            out.line()
            out.changes(diff)


@verb(
    "vzarr diff ocean.vzarr v1.0 main",
    keys=f"old{{ref commit}} new{{ref commit}} equal changes[{CHANGE_KEYS}]",
)
@file_argument
@click.argument("old")
@click.argument("new", required=False)
@click.option("--exit-code", is_flag=True, help="Exit with 1 if anything differs.")
@click.pass_context
def diff(ctx: click.Context, file: str, old: str, new: str | None, exit_code: bool) -> None:
    """Compare two REFs.

    Shows the groups, arrays and attributes that differ, and the regions of arrays. NEW is main if
    it is not given. OLD..NEW is understood, too.
    """
    out = output()
    if new is None:
        old, _, new = old.partition("..")
    old, new = old or "main", new or "main"
    with open_file(file) as repo:
        before, after = repo.show(old).id, repo.show(new).id
        diff = repo.diff(before, after)
        if out.as_json:
            sides = {
                "old": {"ref": old, "commit": before},
                "new": {"ref": new, "commit": after},
            }
            out.document({**sides, "equal": not diff, "changes": diff_facts(diff)})
        out.changes(diff)
    if exit_code and diff:
        ctx.exit(PROBLEM)


@verb("vzarr check ocean.vzarr", "vzarr check ocean.vzarr --full", keys=REPORT_KEYS)
@file_argument
@click.option("--full", is_flag=True, help="Compare the bytes of every chunk with its digest, too.")
@click.pass_context
def check(ctx: click.Context, file: str, full: bool) -> None:
    """Check that a repository is whole.

    Tells what is damaged and what that costs: which arrays, regions and commits cannot be read.
    Others may use the file meanwhile. Exits with 1 if there is a problem.
    """
    from vzarr.check import check_file

    out = output()
    require_file(file)
    with out.progress() as progress:
        level: Level = "full" if full else "quick"
        report = check_file(os.path.expanduser(file), level, progress=progress)
    out.document(report_facts(report))
    for problem in report.problems:
        out.line((f"{problem.kind}: ", "red"), printable(problem.message))
        out.line(f"  {printable(problem.cost)}")
    out.line(report.summary())
    if not report.ok:
        ctx.exit(PROBLEM)


@verb(
    "vzarr demo --synthetic --directory /tmp",
    keys="path branches{name: commit} tags{name: commit} correction{path region old_mean "
    "new_mean} time_steps{ref: number} interrupted{chunks before{head root_id} after{head "
    "root_id}} versions[commit message bytes] versions_bytes file_bytes",
)
@click.option("--synthetic", is_flag=True, help="Make up an ocean; needs no other package.")
@click.option(
    "--directory",
    type=click.Path(file_okay=False),
    default=".",
    metavar="DIR",
    help="Where to leave ocean.vzarr.",
)
@click.option("--force", is_flag=True, help="Replace an ocean.vzarr that is there.")
def demo(synthetic: bool, directory: str, force: bool) -> None:
    """See what vzarr does, on a real ocean model.

    Takes a few seconds and leaves a repository, ocean.vzarr, to explore. The data come with the
    package iris-sample-data: pip install 'vzarr[demo]'.
    """
    from vzarr.demo import tell

    out = output()
    out.document(tell(out, directory, synthetic=synthetic, force=force))
