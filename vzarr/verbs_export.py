"""The verb that writes data to where other programs read it: export."""

from __future__ import annotations

import warnings
from dataclasses import asdict

import click

from vzarr.command import file_argument, open_file, output, verb


@verb(
    "vzarr export ocean.vzarr ocean.zarr",
    "vzarr export ocean.vzarr sst.zip --ref v1.0 --path sst",
    "vzarr export ocean.vzarr ocean.car --overwrite",
    "vzarr export ocean.vzarr icechunk:///data/ocean",
    keys="target form commit path keys nbytes seconds root warnings[] commits known names[]; "
    "nbytes in bytes, root is null, or the id (CID) of a CAR file's root; of a history, commits "
    "counts those that were replayed, known those that were there, else they are null",
)
@file_argument
@click.argument("out", type=click.Path())
@click.option("--ref", metavar="REF", help="What to export.  [default: main]")
@click.option("--path", default="", metavar="PATH", help="Only this group or array.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier export at OUT.")
def export(file: str, out: str, ref: str | None, path: str, overwrite: bool) -> None:
    """Write data to a Zarr directory, a zip file, a CAR file or a URL; history to Icechunk.

    OUT is what its name says: something.zip for zarr's ZipStore, something.car for IPFS and its
    relatives, a URL such as s3://bucket/ocean.zarr where fsspec knows it, else a directory, byte by
    byte as zarr would have written it. It appears when all is written, verified and on disk.

    icechunk://PATH, or icechunk://s3://bucket/prefix (or gs://, az://), is an Icechunk repository:
    all commits of all branches and tags, or of REF, go there, and the next time those that are new.
    --overwrite lets branches there go where a reset has put them here.
    """
    from vzarr.car import BlockSizeWarning
    from vzarr.icestorage import is_place, silence

    shown = output()
    if is_place(out):
        silence()
    with open_file(file) as repo, shown.progress() as progress, warnings.catch_warnings():
        # The report has them.
        warnings.simplefilter("ignore", BlockSizeWarning)
        report = repo.export_to(out, ref=ref, path=path, overwrite=overwrite, progress=progress)
    shown.document(asdict(report))
    shown.line(str(report))
    for words in report.warnings:
        shown.line(("warning: ", "yellow"), words)
