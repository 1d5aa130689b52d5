"""Verbs that look after a file: sessions, gc, expire, compact and backup."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Literal

import click

from vzarr.command import file_argument, moment, no_branch, open_file, output, verb
from vzarr.errors import RefNotFoundError
from vzarr.output import BRANCH, spell_time

_STATES = {True: "alive", False: "dead", None: "elsewhere"}


@verb(
    "vzarr sessions ocean.vzarr",
    keys="sessions[id kind alive branch base checkpointed nbytes created updated parent owner{pid "
    "host command since}]; of a reader in another process only base and owner are known, and alive "
    "is null for one on another machine",
)
@file_argument
def sessions(file: str) -> None:
    """List who has the file open, and what dead sessions left.

    Work that a session saved with a checkpoint before its process died goes on in Python with
    repo.resume(ID).
    """
    out = output()
    with open_file(file) as repo:
        found = repo.sessions()
    out.document({"sessions": [asdict(each) for each in found]})
    out.table(
        ["session", "kind", "state", "branch", "base", "saved", "staged", "owner"],
        [
            [
                each.id or "-",
                each.kind,
                _STATES[each.alive],
                (each.branch or "-", BRANCH),
                out.commit_id(each.base),
                "-" if each.checkpointed is None else spell_time(each.checkpointed),
                f"{each.nbytes:,}",
                str(each.owner),
            ]
            for each in found
        ],
        right=6,
    )


@verb(
    "vzarr gc ocean.vzarr --dry-run",
    "vzarr gc ocean.vzarr",
    keys="commits nodes chunks nbytes sessions kept_commits kept_nodes kept_chunks seconds dry_run",
)
@file_argument
@click.option("-n", "--dry-run", is_flag=True, help="Tell what would be deleted; delete nothing.")
def gc(file: str, dry_run: bool) -> None:
    """Delete what nothing refers to any more.

    Keeps what branches, tags and the reflog reach, what sessions are at, and what they saved in the
    last 14 days. Others may use the file meanwhile. The space is used again; the file does not
    become smaller. The reflog keeps what was reset, amended or deleted: see expire.
    """
    out = output()
    with open_file(file, "r" if dry_run else "r+") as repo, out.progress() as progress:
        report = repo.gc(dry_run, progress=progress)
    out.document(asdict(report))
    out.line(str(report))


@verb(
    "vzarr expire ocean.vzarr --older-than 30",
    "vzarr expire ocean.vzarr --older-than 2026-03-01 --keep-last 10 --branch main",
    keys="entries kept branches[] lost[branch id time message] lost_commits dry_run; lost lists "
    "1,000 at most",
)
@file_argument
@click.option(
    "--older-than",
    metavar="DAYS|DATE",
    callback=moment,
    help="Remove entries that are older.  [default: all]",
)
@click.option(
    "--keep-last",
    type=click.IntRange(min=0),
    metavar="N",
    help="But keep the newest N of a branch.",
)
@click.option("--branch", metavar="NAME", help="Only of this branch.  [default: of all]")
@click.option("-n", "--dry-run", is_flag=True, help="Tell what would be removed; remove nothing.")
def expire(
    file: str,
    older_than: datetime | timedelta | None,
    keep_last: int | None,
    branch: str | None,
    dry_run: bool,
) -> None:
    """Remove old entries of the reflog, so that the next gc frees what only they keep.

    What was reset, amended or deleted can be undone only while the reflog has it. Commits that a
    branch or a tag reaches stay. Lists the commits that only the removed entries kept: look at them
    with --dry-run first. Needs --older-than or --keep-last.
    """
    if older_than is None and keep_last is None:
        raise click.UsageError("--older-than or --keep-last must be given.")
    out = output()
    with open_file(file, "r" if dry_run else "r+") as repo, out.progress() as progress:
        try:
            report = repo.expire(
                older_than=older_than,
                keep_last=keep_last,
                branch=branch,
                dry_run=dry_run,
                progress=progress,
            )
        except RefNotFoundError as error:
            assert branch is not None, "all are asked for but the one that is named"
            raise no_branch(file, branch) from error
    out.document(asdict(report))
    out.line(str(report))


_verify_option = click.option(
    "--verify",
    type=click.Choice(["full", "quick", "none"]),
    default="full",
    help="What to look at in the copy: every digest, all but the bytes of chunks, or nothing.  "
    "[default: full]",
)


_VERIFY: dict[str, Literal["full", "quick"] | None] = {
    "full": "full",
    "quick": "quick",
    "none": None,
}


@verb(
    "vzarr compact ocean.vzarr",
    keys="before after garbage verified seconds; sizes in bytes, garbage in objects",
)
@file_argument
@click.option("--no-gc", is_flag=True, help="Keep what nothing refers to any more.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long to wait for others.  [default: 30]",
)
@_verify_option
def compact(file: str, no_gc: bool, timeout: float | None, verify: str) -> None:
    """Collect garbage, and give the space of the file back that it does not need.

    A copy without free pages is verified, and then takes the place of the file in one step. No
    other process may have the file open: the one that has is named. The disk needs room for the
    copy.
    """
    out = output()
    with open_file(file, "r+") as repo, out.progress() as progress:
        report = repo.compact(
            gc=not no_gc, verify=_VERIFY[verify], timeout=timeout, progress=progress
        )
    out.document(asdict(report))
    out.line(str(report))


@verb(
    "vzarr backup ocean.vzarr /backup/ocean.vzarr",
    "vzarr backup ocean.vzarr /backup/ocean.vzarr --overwrite",
    keys="path file_bytes source_bytes commits heads{branch: commit} verified seconds",
)
@file_argument
@click.argument("target", type=click.Path())
@click.option("--overwrite", is_flag=True, help="Replace a repository at TARGET.")
@_verify_option
def backup(file: str, target: str, overwrite: bool, verify: str) -> None:
    """Copy the repository as it is at one moment, while others use it.

    TARGET appears when the copy is whole, verified and on disk, or not at all.
    """
    out = output()
    with open_file(file) as repo, out.progress() as progress:
        report = repo.backup(target, overwrite=overwrite, verify=_VERIFY[verify], progress=progress)
    out.document(asdict(report))
    out.line(str(report))
