"""Verbs that show what is in a snapshot: ls, view, cat."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from vzarr.command import file_argument, open_file, output, parse_region, ref_option, verb
from vzarr.errors import InvalidInputError, NotFoundError
from vzarr.facts import VIEW_KEYS, node_facts
from vzarr.format import Entry
from vzarr.hierarchy import Hierarchy, join
from vzarr.output import HEADING, Cell, Output
from vzarr.printable import printable
from vzarr.repository import Repository

if TYPE_CHECKING:
    from vzarr.sampling import Sampler
    from vzarr.viewing import Selection

# Those of vzarr.picture, which needs numpy.
COLOUR_MAPS = ("sea", "heat", "gray", "balance")
# What a caption, a legend and the prompt need beside a picture.
_LINES_AROUND = 9


def view_array(
    out: Output,
    repo: Repository,
    path: str,
    ref: str,
    index: str | None,
    *,
    width: int | None = None,
    colour_map: str = "sea",
    flip: bool | None = None,
) -> dict[str, Any]:
    """Print an array as a picture, and give what there is to tell of it."""
    from vzarr.viewing import print_view, take, view_facts

    region = () if index is None else parse_region(index, "--index")
    columns, lines = out.size
    width, height = width or columns, max(lines - _LINES_AROUND, 4)
    session = repo.session(ref)
    seen = take(session.hierarchy, path, region, width, 2 * height)
    print_view(out, seen, colour_map=colour_map, width=width, height=height, flip=flip)
    return view_facts(seen, session.base) if out.as_json else {}


@verb(
    "vzarr view ocean.vzarr tos",
    'vzarr view ocean.vzarr tos --ref v1.0 --index "0, :, 100:200"',
    keys=VIEW_KEYS,
)
@file_argument
@click.argument("path")
@ref_option
@click.option(
    "--index", metavar="INDEX", help='What to show, such as "0, :, 10:20".  [default: the last]'
)
@click.option("--width", type=click.IntRange(min=1, max=1000), metavar="N", help="Characters.")
@click.option(
    "--colormap", type=click.Choice(COLOUR_MAPS), default="sea", help="Colours.  [default: sea]"
)
@click.option(
    "--flip/--no-flip",
    default=None,
    help="The first row at the bottom.  [default: for latitudes]",
)
def view(
    file: str,
    path: str,
    ref: str,
    index: str | None,
    width: int | None,
    colormap: str,
    flip: bool | None,
) -> None:
    """Draw an array in the terminal.

    Of two dimensions as a picture, of one as a curve; of more, the last place of the first ones is
    shown unless --index says another. Values that are missing are blank: NaN, and what the
    attributes _FillValue and missing_value name. Of a large array only some chunks are read.
    """
    out = output()
    with open_file(file) as repo:
        facts = view_array(out, repo, path, ref, index, width=width, colour_map=colormap, flip=flip)
    out.document(facts)


# ── ls ───────────────────────────────────────────────────────────────────────────────────────────


@verb(
    "vzarr ls ocean.vzarr",
    "vzarr ls ocean.vzarr atlantic --ref v1.0 -l",
    keys="path ref commit members[name path kind attributes shape chunks dtype stored nbytes]; "
    "kind is group, array or file; stored counts chunks of an array, all values below a group; "
    "with --commits, also last_commit",
)
@file_argument
@click.argument("path", default="", metavar="[PATH]")
@ref_option
@click.option("-l", "--long", is_flag=True, help="Shape, type, chunks, and what is stored.")
@click.option(
    "-c", "--commits", is_flag=True, help="The last commit to change each, too: a look at history."
)
def ls(file: str, path: str, ref: str, long: bool, commits: bool) -> None:
    """List what lies in a group.

    PATH is the root if it is not given. Groups end with a slash. With --long, stored counts the
    chunks of an array, or all values below a group, and bytes is their size as they are stored.
    """
    out = output()
    path = path.strip("/")
    with open_file(file) as repo:
        session = repo.session(ref)
        members = list(_members(session.hierarchy, path))
        if commits:
            for each in members:
                last = next(repo.iter_log(session.base, path=each["path"]), None)
                each["last_commit"] = None if last is None else last.id
    out.document({"path": path, "ref": ref, "commit": session.base, "members": members})
    if not long and not commits:
        for each in members:
            out.line(_name(each))
        return
    heads = ["name", "shape", "dtype", "chunks", "stored", "bytes"]
    if commits:
        heads.append("last commit")
    rows = [
        [
            _name(each),
            _spell_shape(each["shape"]),
            each["dtype"] or "-",
            _spell_shape(each["chunks"]),
            f"{each['stored']:,}",
            f"{each['nbytes']:,}",
            *([out.commit_id(each["last_commit"])] if commits else []),
        ]
        for each in members
    ]
    out.table(heads, rows, right=5)


def _members(hierarchy: Hierarchy, path: str) -> Iterator[dict[str, Any]]:
    """Describe what lies in a group, or an array itself."""
    entry = hierarchy.entry(path)
    if entry is None or (path and entry.is_empty):
        raise NotFoundError(
            f"there is nothing at {path!r}: vzarr tree lists what is there", name=path
        )
    if entry.layout is not None or (entry.file is not None and not entry.directory):
        yield _member(hierarchy, path.rpartition("/")[2], path, entry)
        return
    for name, member in hierarchy.members(entry):
        yield _member(hierarchy, name, join(path, name), member)


def _member(hierarchy: Hierarchy, name: str, path: str, entry: Entry) -> dict[str, Any]:
    node = hierarchy.metadata(entry)
    if node is None:
        only_file = entry.file is not None and entry.directory is None
        facts: dict[str, Any] = {"path": path, "kind": "file" if only_file else "group"}
        facts |= dict.fromkeys(("attributes", "shape", "chunks", "dtype"))
        return {"name": name, **facts, "stored": entry.count, "nbytes": entry.nbytes}
    if node.array is None:
        stored = entry.count, entry.nbytes
    else:
        stored = (0, 0) if entry.index is None else (entry.index.count, entry.index.nbytes)
    return {"name": name, **node_facts(path, node), "stored": stored[0], "nbytes": stored[1]}


def _name(member: dict[str, Any]) -> Cell:
    name = printable(member["name"])
    return (f"{name}/", HEADING) if member["kind"] == "group" else name


def _spell_shape(lengths: Sequence[Any] | None) -> str:
    if lengths is None:
        return "-"
    return "x".join(str(it) if isinstance(it, int) else "*" for it in lengths) or "()"


# ── cat ──────────────────────────────────────────────────────────────────────────────────────────


@verb(
    'vzarr cat ocean.vzarr sst --region "-1, 0:10, 5"',
    "vzarr cat ocean.vzarr sst/zarr.json",
    "vzarr cat ocean.vzarr sst --raw > sst.f4",
    keys="path ref commit; of an array shape dtype index values, of a document document, of "
    "another key nbytes",
)
@file_argument
@click.argument("path")
@ref_option
@click.option("--region", metavar="INDEX", help='Only these elements, such as "0:10, 5".')
@click.option("--raw", is_flag=True, help="The bytes of the values, in C order, for a pipe.")
def cat(file: str, path: str, ref: str, region: str | None, raw: bool) -> None:
    """Print the values of an array, or what a key has.

    PATH is an array, or a key such as sst/zarr.json or sst/c/0/0, whose bytes are printed as they
    are stored. On a terminal numpy leaves out the middle of many values; in a pipe all are there.
    """
    out = output()
    if raw and out.as_json:
        raise click.UsageError("--raw and --json do not go together.")
    if raw and out.is_terminal:
        # A stranger's bytes are not to command the terminal.
        raise InvalidInputError("--raw gives bytes, no text: pipe them, or write them to a file")
    path = path.strip("/")
    with open_file(file) as repo:
        session = repo.session(ref)
        about = {"path": path, "ref": ref, "commit": session.base}
        blob = session.hierarchy.find(path)
        if blob is None:
            index = () if region is None else parse_region(region)
            about |= _print_values(out, session.hierarchy, path, index, raw=raw)
        elif region is not None:
            raise click.UsageError("--region is for arrays.")
        else:
            about |= _print_key(out, path, bytes(session.read(blob)))
    if not raw:
        out.document(about)


def _print_key(out: Output, path: str, data: bytes) -> dict[str, Any]:
    """Print what is stored under a key."""
    from vzarr.documents import parse_document

    document = parse_document(data)
    if not out.as_json:
        if out.is_terminal and document is None:
            raise InvalidInputError(f"{path!r} has {len(data):,} bytes that are no text: pipe them")
        if document is not None and out.is_terminal:
            # A stranger's text is not to command the terminal.
            out.line(json.dumps(document, indent=2, ensure_ascii=False))
        else:
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
    return {"nbytes": len(data)} if document is None else {"document": document}


def _print_values(
    out: Output, hierarchy: Hierarchy, path: str, index: Sequence[Any], *, raw: bool
) -> dict[str, Any]:
    """Print a part of an array."""
    from vzarr.sampling import MAX_BYTES, Sampler
    from vzarr.statistics import element_bytes
    from vzarr.viewing import jsonable, select, text_of

    sampler = Sampler(hierarchy, path)
    selection = select(sampler.array.shape, index, most=len(sampler.array.shape))
    if raw:
        _write_raw(sampler, selection)
        return {}
    nbytes = selection.size * element_bytes(sampler.array.dtype)
    if nbytes > MAX_BYTES:
        raise InvalidInputError(
            f"{path!r} {selection} has {selection.size:,} elements, too many to print: choose a "
            "--region, or write their bytes with --raw"
        )
    values = sampler.read(selection.part)
    values = values.reshape([len(selection.part[axis]) for axis in selection.axes])
    if not out.as_json:
        out.line(text_of(values, columns=out.size[0], whole=not out.is_terminal))
        return {}
    return {
        "shape": sampler.array.shape,
        "dtype": sampler.array.dtype,
        "index": [[places.start, places.stop] for places in selection.part],
        "values": jsonable(values),
    }


def _write_raw(sampler: Sampler, selection: Selection) -> None:
    """Write the bytes of values, a row of chunks at a time."""
    sys.stdout.flush()
    for part in sampler.pieces(selection.part):
        values = sampler.read(part)
        if values.dtype.hasobject or values.dtype.kind == "T":
            raise InvalidInputError(
                f"{sampler.path!r} has values of any length, which have no bytes of their own"
            )
        sys.stdout.buffer.write(values.tobytes())
