"""Verbs about what takes space, and what must not be there: du and redact."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from vzarr.command import file_argument, open_file, output, parse_region, ref_option, verb


@verb(
    "vzarr du ocean.vzarr",
    "vzarr du ocean.vzarr atlantic --ref v1.0 --commits 20",
    keys="ref nbytes file_bytes free_bytes chunks chunk_bytes nodes node_bytes commits "
    "commit_bytes reflog_bytes unreferenced unreferenced_bytes refs[name kind nbytes unique] "
    "commit_usage[id time message unique] arrays[path logical stored chunks history versions]; "
    "logical is null where the data type does not tell",
)
@file_argument
@click.argument("path", default="", metavar="[PATH]")
@ref_option
@click.option(
    "--commits",
    type=click.IntRange(min=0),
    default=10,
    metavar="N",
    help="So many of the newest commits.  [default: 10]",
)
def du(file: str, path: str, ref: str, commits: int) -> None:
    """Tell what takes how many bytes.

    Of branches and tags, all that they reach, and what no other one does; of commits, what each
    alone reaches; of the arrays at and below PATH, their elements, stored chunks, and chunks of all
    versions. Garbage and free pages are told too: gc and compact give them back.
    """
    out = output()
    with open_file(file) as repo, out.progress() as progress:
        usage = repo.du(path, ref=ref, commits=commits, progress=progress)
    out.document({**asdict(usage), "nbytes": usage.nbytes})
    out.line(str(usage))


@verb(
    'vzarr redact ocean.vzarr patients/scan --region "3, 0:100" --dry-run',
    'vzarr redact ocean.vzarr patients/scan --reason "request 7"',
    keys="path paths[] changed rewritten{old: new} branches[] tags[] chunks reencoded nbytes "
    "elsewhere[path coordinates commit] elsewhere_places sessions[as of sessions] held "
    "collected{as of gc} dry_run seconds",
)
@file_argument
@click.argument("path")
@click.option(
    "--region",
    metavar="INDEX",
    help='Only these elements, such as "0:10, 5"; counts from the beginning.',
)
@click.option("--reason", default="", metavar="TEXT", help="Noted in the reflog.")
@click.option("--everywhere", is_flag=True, help="Drop the same bytes at other places, too.")
@click.option("--whole-chunks", is_flag=True, help="Drop all of a chunk that lies partly in it.")
@click.option("--force", is_flag=True, help="Although sessions and checkpoints lose their base.")
@click.option("-n", "--dry-run", is_flag=True, help="Tell what would be erased; erase nothing.")
def redact(file: str, path: str, region: str | None, dry_run: bool, **options: Any) -> None:
    """Erase the data of an array, group or file from all history.

    Every commit that has them, and all that descend from it, are written anew and get new ids;
    branches, tags and reflogs follow. Documents and attributes stay. This cannot be undone. Run
    compact afterwards: free pages hold the bytes until they are used again.
    """
    out = output()
    index = None if region is None else parse_region(region)
    with open_file(file, "r" if dry_run else "r+") as repo, out.progress() as progress:
        report = repo.redact(path, index, dry_run=dry_run, progress=progress, **options)
    facts = {name: getattr(report, name) for name in report.__slots__}
    lists = {name: [asdict(one) for one in facts[name]] for name in ("elsewhere", "sessions")}
    collected = None if report.collected is None else asdict(report.collected)
    out.document({**facts, **lists, "collected": collected})
    out.line(str(report))
