"""Verbs between repositories: clone, fetch, pull, push, remote, bundle, unbundle, serve."""

from __future__ import annotations

import os
from dataclasses import asdict

import click

from vzarr.command import file_argument, open_file, output, require_with, strategy_option, verb
from vzarr.output import BRANCH

_UPDATES = "updates[kind name old new how]"
_COUNTS = "commits nodes chunks nbytes wire_bytes seconds"
_TRANSFER = f"url {_UPDATES} tracked{{name: commit}} pruned[] {_COUNTS}"


@verb(
    "vzarr clone /data/ocean.vzarr ocean.vzarr",
    "vzarr clone ada@buoy.example.org:ocean.vzarr ocean.vzarr",
    "vzarr clone /data/ocean.vzarr sst.vzarr --branch main --depth 1 --path sst",
    keys=f"path url branches{{name: commit}} tags{{name: commit}} {_COUNTS}",
)
@click.argument("source", metavar="SRC", type=click.Path())
@click.argument("target", metavar="DST", type=click.Path())
@click.option("--branch", metavar="NAME", help="Only this branch, and no tags.")
@click.option(
    "--depth",
    type=click.IntRange(min=1),
    metavar="N",
    help="Only the data of the newest N commits of each line; the log is whole.",
)
@click.option("--path", default="", metavar="PATH", help="Only the data of one group or array.")
def clone(source: str, target: str, branch: str | None, depth: int | None, path: str) -> None:
    """Make a new file with the history of another repository.

    SRC is a file, a bundle, or user@host:path, which runs vzarr there through ssh. The clone knows
    it as the remote "origin". DST appears when all of it is there, verified and on disk; what an
    interrupted clone has brought is in DST.part, and the same command goes on from there.
    """
    from vzarr.cloning import clone as clone_repository

    out = output()
    with out.progress() as progress:
        report = clone_repository(
            source, target, branch=branch, depth=depth, path=path, progress=progress
        )
    out.document(asdict(report))
    out.line(str(report))


_remote_argument = click.argument("remote", required=False)


@verb(
    "vzarr fetch ocean.vzarr",
    "vzarr fetch ocean.vzarr ada@buoy.example.org:ocean.vzarr main",
    keys=_TRANSFER,
)
@file_argument
@_remote_argument
@click.argument("branches", nargs=-1, metavar="[BRANCH]...")
@click.option("--complete", is_flag=True, help="Bring what a shallow or partial clone left out.")
@click.option("--prune", is_flag=True, help="Forget branches that are not there any more.")
def fetch(
    file: str, remote: str | None, branches: tuple[str, ...], complete: bool, prune: bool
) -> None:
    """Bring the commits of another repository, and move no branch here.

    REMOTE is the name of a remote, a file, a bundle or user@host:path.  [default: origin, or the
    only one]  Its branches are known as origin/main and so on from then on, and as FETCH_HEAD/main
    if it has no name here.
    """
    out = output()
    with open_file(file, "r+") as repo, out.progress() as progress:
        report = repo.fetch(
            remote, list(branches) or None, complete=complete, prune=prune, progress=progress
        )
    out.document(asdict(report))
    out.line(str(report))


@verb(
    "vzarr pull ocean.vzarr",
    "vzarr pull ocean.vzarr /data/ocean.vzarr main --strategy theirs",
    keys=f"fetch{{{_TRANSFER}}} branch old new how; how is created, up to date, fast-forward or "
    "merge",
)
@file_argument
@_remote_argument
@click.argument("branch", required=False)
@strategy_option
def pull(file: str, remote: str | None, branch: str | None, strategy: str) -> None:
    """Fetch a branch and merge it into the one of that name here.

    REMOTE is as for fetch, BRANCH is main unless it is given. Conflicts are listed, and nothing is
    merged then.
    """
    out = output()
    with open_file(file, "r+") as repo, out.progress() as progress:
        report = repo.pull(
            remote,
            branch,
            strategy=strategy,  # type: ignore[arg-type]
            progress=progress,
        )
    out.document(asdict(report))
    out.line(str(report))


@verb(
    "vzarr push ocean.vzarr",
    "vzarr push ocean.vzarr origin main dev --tags",
    keys=_TRANSFER,
)
@file_argument
@_remote_argument
@click.argument("branches", nargs=-1, metavar="[BRANCH]...")
@click.option("-f", "--force", is_flag=True, help="Drop commits that only the branch there has.")
@click.option("--tags", is_flag=True, help="All tags, too.")
def push(file: str, remote: str | None, branches: tuple[str, ...], force: bool, tags: bool) -> None:
    """Give another repository what it lacks, and move its branches forward.

    REMOTE is as for fetch, BRANCH is main unless it is given. Only what is missing there travels.
    All branches move, or none: not one that has commits which are not here. Pull first then.
    """
    out = output()
    with open_file(file) as repo, out.progress() as progress:
        names = list(branches) or None
        report = repo.push(remote, names, force=force, tags=tags, progress=progress)
    out.document(asdict(report))
    out.line(str(report))


@verb(
    "vzarr remote ocean.vzarr",
    "vzarr remote ocean.vzarr add origin ada@buoy.example.org:ocean.vzarr",
    "vzarr remote ocean.vzarr remove origin",
    keys="remotes[name url path]",
)
@file_argument
@click.argument("action", type=click.Choice(["list", "add", "remove"]), default="list")
@click.argument("name", required=False)
@click.argument("url", required=False)
@click.option("--path", metavar="PATH", help="Only this group or array is fetched from it.")
def remote(file: str, action: str, name: str | None, url: str | None, path: str | None) -> None:
    """List the remotes, add one, or remove one.

    A remote is another repository that this one knows by a name. URL is a file or user@host:path.
    Nobody looks whether it is there.
    """
    require_with({"URL": url, "--path": path}, "add", True if action == "add" else None)
    if (action == "add") != (url is not None) or (action == "list") != (name is None):
        raise click.UsageError("It is: list, add NAME URL, or remove NAME.")
    out = output()
    with open_file(file, "r" if action == "list" else "r+") as repo:
        if name is not None and url is not None:
            repo.remotes.add(name, url, path=path or "")
        elif name is not None:
            repo.remotes.remove(name)
        known = list(repo.remotes.values())
    out.document({"remotes": [asdict(each) for each in known]})
    out.table(
        ["remote", "url", "path"], [[(each.name, BRANCH), each.url, each.path] for each in known]
    )


@verb(
    "vzarr bundle ocean.vzarr all.vzb",
    "vzarr bundle ocean.vzarr march.vzb main --since v1.0",
    "vzarr bundle ocean.vzarr april.vzb main --since march.vzb",
    keys="path refs{name: commit} needs[] commits nodes chunks left_out file_bytes seconds",
)
@file_argument
@click.argument("target", metavar="OUT", type=click.Path())
@click.argument("refs", nargs=-1, metavar="[REF]...")
@click.option(
    "--since",
    multiple=True,
    metavar="REF|BUNDLE",
    help="What the other side has: a ref, or an earlier bundle. Can be repeated.",
)
@click.option(
    "--depth", type=click.IntRange(min=1), metavar="N", help="Only the data of the newest N."
)
@click.option("--path", default="", metavar="PATH", help="Only the data of one group or array.")
@click.option("--overwrite", is_flag=True, help="Replace a file at OUT.")
def bundle(
    file: str,
    target: str,
    refs: tuple[str, ...],
    since: tuple[str, ...],
    depth: int | None,
    path: str,
    overwrite: bool,
) -> None:
    """Write branches and tags to one file, for mail or a stick.

    All of them, unless some are named. Whoever gets the file says clone, unbundle or pull.
    """
    out = output()
    with open_file(file) as repo, out.progress() as progress:
        report = repo.bundle(
            target,
            list(refs) or None,
            since=list(since) or None,
            depth=depth,
            path=path,
            overwrite=overwrite,
            progress=progress,
        )
    out.document(asdict(report))
    out.line(str(report))


@verb("vzarr unbundle ocean.vzarr march.vzb", keys=_TRANSFER)
@file_argument
@click.argument("source", metavar="BUNDLE", type=click.Path())
@click.option("-f", "--force", is_flag=True, help="Drop commits that only the branch here has.")
def unbundle(file: str, source: str, force: bool) -> None:
    """Take all branches and tags of a bundle.

    Branches move forward, or are made. To merge one that has other commits here: vzarr pull FILE
    BUNDLE BRANCH.
    """
    out = output()
    with open_file(file, "r+") as repo, out.progress() as progress:
        report = repo.unbundle(source, force=force, progress=progress)
    out.document(asdict(report))
    out.line(str(report))


@click.command(hidden=True)
@click.option("--stdio", is_flag=True, required=True, help="Speak on stdin and stdout.")
@click.option("--read-only", is_flag=True, help="Let the other side fetch, but not push.")
@file_argument
def serve(file: str, stdio: bool, read_only: bool) -> None:  # noqa: ARG001 - it has to be said
    """Answer another vzarr on stdin and stdout, which runs this through ssh."""
    from vzarr.serving import serve_file

    reader, writer = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # Whatever anybody prints must not get into the protocol.
    os.dup2(2, 1)
    serve_file(file, reader, writer, read_only=read_only)
