"""Verbs that look after a file: sessions, gc and expire."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import datetime, timedelta

import click

from vzarr.command import file_argument, open_file, output, verb
from vzarr.output import BRANCH, spell_time

_STATES = {True: "alive", False: "dead", None: "elsewhere"}
_DAYS = re.compile(r"[0-9]+(?:\.[0-9]+)?")


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


def _age(_: click.Context, parameter: click.Parameter, text: str | None) -> object:
    """Read days or a date."""
    if text is None:
        return None
    try:
        if _DAYS.fullmatch(text):
            return timedelta(days=float(text))
        return datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(
            f"{text!r} is no number of days and no ISO 8601 date, such as 2026-03-01.",
            param=parameter,
        ) from error


@verb(
    "vzarr expire ocean.vzarr --older-than 30",
    "vzarr expire ocean.vzarr --older-than 2026-03-01 --keep-last 10 --branch main",
    keys="entries kept branches[] dry_run",
)
@file_argument
@click.option(
    "--older-than",
    metavar="DAYS|DATE",
    callback=_age,
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
    branch or a tag reaches stay. Needs --older-than or --keep-last.
    """
    if older_than is None and keep_last is None:
        raise click.UsageError("--older-than or --keep-last must be given.")
    out = output()
    with open_file(file, "r" if dry_run else "r+") as repo:
        report = repo.expire(
            older_than=older_than, keep_last=keep_last, branch=branch, dry_run=dry_run
        )
    out.document(asdict(report))
    out.line(str(report))
