"""Verbs that tell of a repository: init, info, tree, status; check and demo."""

from __future__ import annotations

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
from vzarr.errors import AlreadyExistsError
from vzarr.facts import (
    INFO_KEYS,
    REPORT_KEYS,
    branch_facts,
    distances,
    info_facts,
    node_facts,
    report_facts,
)
from vzarr.findings import Level
from vzarr.output import (
    BRANCH,
    HEADING,
    first_line,
    spell_time,
)
from vzarr.printable import plural, printable
from vzarr.tree import MAX_NODES


def _spell_distance(facts: Mapping[str, Any]) -> str:
    if facts["name"] == "main" or facts["ahead"] is None:
        return ""
    return ", ".join(f"{facts[side]} {side}" for side in ("ahead", "behind") if facts[side]) or "="


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
