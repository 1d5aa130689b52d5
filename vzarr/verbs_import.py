"""The verb that takes over what is elsewhere: import."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict

import click

import vzarr
from vzarr.command import file_argument, no_branch, output, verb
from vzarr.handle import DEFAULT_BRANCH


@verb(
    "vzarr import ocean.zarr ocean.vzarr",
    "vzarr import sst.nc ocean.vzarr --path sst --branch dev",
    "vzarr import ocean.zarr ocean.vzarr --consume",
    "vzarr import icechunk:///data/ocean ocean.vzarr",
    keys="source path branch commit arrays groups chunks files nbytes new_bytes same skipped "
    "resumed consumed seconds commits known names[]; commit is null if nothing differs, same "
    "counts values that were there before, skipped keys that are not taken over; of a history, "
    "commits counts those that came, known those that were here, else they are null",
)
@click.argument("src")
@file_argument
@click.option("--path", default="", metavar="PATH", help="Where it goes.  [default: the root]")
@click.option(
    "--branch", default=DEFAULT_BRANCH, metavar="NAME", help="Which branch.  [default: main]"
)
@click.option("--ref", metavar="REF", help="What of SRC, if that is a repository.  [default: main]")
@click.option("-m", "--message", metavar="TEXT", help="The commit's message.")
@click.option("--overwrite", is_flag=True, help="Replace all that is at PATH.")
@click.option(
    "--consume", is_flag=True, help="Delete SRC meanwhile, each chunk once it is safely in FILE."
)
def import_(
    src: str,
    file: str,
    path: str,
    branch: str,
    ref: str | None,
    message: str | None,
    overwrite: bool,
    consume: bool,
) -> None:
    """Take over a Zarr, HDF5, NetCDF, GRIB or CAR file, or another repository, as one commit.

    SRC is a path, or a URL of a Zarr if fsspec is installed. FILE is created if it is not there.
    Chunks of a Zarr are taken over byte for byte. If it is interrupted, the same command goes on
    where it was; if nothing has changed, it makes no commit.

    An Icechunk repository, a directory or icechunk://s3://bucket/prefix (or gs://, az://), comes
    with its history, all branches and tags; with --ref, one snapshot of it comes as one commit.
    """
    from vzarr.icestorage import is_place, is_repository, silence
    from vzarr.sources import open_source

    if is_place(src) or is_repository(src):
        silence()
    out = output()
    with (
        closing(open_source(src, ref=ref, exclusive=consume)) as source,
        _made(file, branch),
        vzarr.open(file) as repo,
        out.progress() as progress,
    ):
        report = repo.import_from(
            source,
            path=path,
            branch=branch,
            message=message,
            overwrite=overwrite,
            consume=consume,
            progress=progress,
        )
    out.document(asdict(report))
    out.line(str(report))


# The function's name with a hyphen for its underscore would be the verb's.
import_.name = "import"


@contextmanager
def _made(file: str, branch: str) -> Iterator[None]:
    """Delete the file if the block has made it and nothing came of that."""
    if os.path.lexists(os.path.expanduser(file)):
        yield
        return
    if branch != DEFAULT_BRANCH:
        raise no_branch(file, branch)
    try:
        yield
    except BaseException:
        if vzarr.exists(file):
            with vzarr.open(file, "r") as repo:
                # A commit beside the first one is somebody's data: ours, of which only the end
                # failed, or another process's. Of a history, what came is on its own branch.
                facts = repo.info()
                counts = facts.commits, facts.branches, facts.tags
                empty = counts == (1, 1, 0) and not repo.sessions()
            if empty:
                vzarr.delete(file)
        raise
