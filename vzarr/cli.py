"""The command line, ``vzarr VERB FILE …``: the only module that prints.

A verb opens the file, gathers facts and hands them to an ``Output``: text for people, or one JSON
document for programs. Verbs that read open the file with mode "r", so that a mistyped path creates
nothing. zarr is not imported here: it takes longer than all that these verbs do.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, Never, TypeVar, final

import click
from rich.console import Console
from rich.text import Text

import vzarr
from vzarr.diff import Diff, NodeChange
from vzarr.errors import (
    AlreadyExistsError,
    ConflictError,
    NotFoundError,
    RefNotFoundError,
    VzarrError,
)
from vzarr.history import Commit
from vzarr.merge import Conflict, Strategy
from vzarr.metadata import NodeMetadata
from vzarr.opening import Mode
from vzarr.reports import Info
from vzarr.repository import Repository

_T = TypeVar("_T")
_Command = TypeVar("_Command", bound=Callable[..., Any])
Cell = str | tuple[str, str]
"""A piece of text, alone or with the name of its style."""

_ID, _BRANCH, _TAG, _HEADING, _QUIET = "yellow", "green", "magenta", "bold", "dim"
_SHORT = 12
_PROBLEM, _INTERRUPTED, _HUNG_UP = 1, 130, 141
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_STYLES = {"added": "green", "removed": "red", "moved": "cyan", "changed": "yellow"}


def main() -> Never:
    """Run the command line and end the process; the console script ``vzarr``."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show an arrow, and a path that is no Unicode, are no errors.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    commands(prog_name="vzarr")
    raise AssertionError("click ends the process")


# ── showing ──────────────────────────────────────────────────────────────────────────────────────


@final
class Output:
    """Where a verb's results go: text for people, or with ``--json`` one document for programs.

    Text is coloured and fitted on a terminal. Piped, it is plain, one record a line, with every id
    and path whole.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._terminal = sys.stdout.isatty()
        self._begun = False
        # Soft wrapping leaves long lines to the terminal, so that nothing is broken in a pipe.
        self._console = _Console()

    def document(self, facts: Mapping[str, Any]) -> None:
        """Print the JSON document, if that was asked for."""
        if self.as_json:
            click.echo(json.dumps(_plain(facts), indent=2, allow_nan=False))

    def line(self, *cells: Cell) -> None:
        """Print a line, or a block, of text."""
        if not self.as_json:
            self._console.print(_text(cells))

    def heading(self, text: str) -> None:
        """Begin another part of a longer story."""
        if self._begun:
            self.line()
        self._begun = True
        self.line((text, _HEADING))

    def table(
        self, columns: Sequence[str], rows: Iterable[Sequence[Cell]], *, right: int = -1
    ) -> None:
        """Print a table, one column of it aligned to the right; without headings in a pipe."""
        texts = [[_one_line(_text([cell])) for cell in row] for row in rows]
        if self.as_json or not texts:
            return
        if self._terminal:
            texts.insert(0, [Text(column, _HEADING) for column in columns])
        widths = [max(row[n].cell_len for row in texts) for n in range(len(columns))]
        for row in texts:
            for number, (text, width) in enumerate(zip(row, widths, strict=True)):
                text.align("right" if number == right else "left", width)
            line = Text("  ").join(row)
            line.rstrip()
            if self._terminal:
                line.truncate(self._console.width, overflow="ellipsis")
            self._console.print(line)

    def commit_id(self, commit: str | None) -> Cell:
        """Give an id as it is shown: short on a terminal, whole in a pipe."""
        if commit is None:
            return "(none)"
        return commit[:_SHORT] if self._terminal else commit, _ID

    def changes(self, changes: Iterable[NodeChange], *, indent: int = 0) -> None:
        """Print what changed between two snapshots."""
        if self.as_json:
            return
        for change in changes:
            head, *details = _clean(str(change)).split("\n")
            margin = " " * indent
            self._console.print(Text(margin + head, _STYLES[change.change]))
            for detail in details:
                text = Text(margin + detail)
                text.highlight_regex(r"(?<=: ).*(?= → )", "red")
                text.highlight_regex(r"(?<= → ).*", "green")
                text.highlight_regex(r"\[[0-9:, ]+\]", "cyan")
                self._console.print(text)

    def track(self, things: Sequence[_T], what: str) -> Iterable[_T]:
        """Go through ``things`` behind a progress bar, if somebody is watching."""
        from rich.progress import track

        watched = sys.stderr.isatty() and not self.as_json
        bar = Console(stderr=True)
        return track(things, what, console=bar, transient=True, disable=not watched)


class _Console(Console):
    """Prints text as it is, and leaves long lines to the terminal: nothing is broken in a pipe."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def on_broken_pipe(self) -> None:
        # rich would end the process. What is to be done is said in one place, below.
        raise BrokenPipeError


def _text(cells: Iterable[Cell]) -> Text:
    parts = [(cell, "") if isinstance(cell, str) else cell for cell in cells]
    return Text.assemble(*((_clean(part), style) for part, style in parts))


def _one_line(text: Text) -> Text:
    return Text(" ").join(text.split("\n")) if "\n" in text.plain else text


def _clean(text: str) -> str:
    """Spell out control characters: what a message holds must not command the terminal."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found.group()):02x}", text)


def _time(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"


def _plain(value: Any) -> Any:
    """Give a value in JSON's types; what JSON lacks as Zarr spells it: "NaN", "Infinity"."""
    match value:
        case float() if math.isnan(value):
            return "NaN"
        case float() if math.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        case datetime():
            return value.isoformat()
        case slice():
            return [value.start, value.stop]
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case tuple() | list():
            return [_plain(item) for item in value]
    return value


# ── errors and options ───────────────────────────────────────────────────────────────────────────


class _Commands(click.Group):
    """The verbs in the order of their definition, and the one place that turns errors to words."""

    def list_commands(self, _: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            super().invoke(ctx)
            # What a closed pipe does not take has to come to light here, not at the exit.
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader, say ``head``, has seen enough.
            _abandon_stdout()
            ctx.exit(_HUNG_UP)
        except (VzarrError, OSError) as error:
            _complain(("error: ", "red"), str(error))
            try:
                about: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
                if isinstance(error, ConflictError) and error.conflicts:
                    about["conflicts"] = [_conflict_facts(one) for one in error.conflicts]
                Output(as_json=_wants_json(ctx)).document({"error": about})
                sys.stdout.flush()
            except OSError:
                # The error was stdout's, say a full disk.
                _abandon_stdout()
            ctx.exit(_PROBLEM)
        except KeyboardInterrupt:
            _complain("interrupted")
            ctx.exit(_INTERRUPTED)


def _complain(*cells: Cell) -> None:
    _Console(stderr=True).print(_one_line(_text(["vzarr: ", *cells])))


def _abandon_stdout() -> None:
    """Keep Python from writing what is left, and failing again, at the exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


_JSON = "vzarr.json"


def _wants_json(ctx: click.Context) -> bool:
    return bool(ctx.find_root().meta.get(_JSON, False))


def _output() -> Output:
    return Output(as_json=_wants_json(click.get_current_context()))


def _note_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta[_JSON] = value


def _verb(*examples: str, keys: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a verb of a function whose docstring is its help; with ``--json`` and its keys."""
    option = click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_note_json,
        help="Print one JSON document.",
    )
    # click fills paragraphs, but for those that begin with \b.
    title = "Example" if len(examples) == 1 else "Examples"
    epilog = "\n  ".join([f"\b\n{title}:", *examples]) + f"\n\nJSON: {keys}"

    def make(function: Callable[..., Any]) -> click.Command:
        return commands.command(epilog=epilog)(option(function))

    return make


def _file(function: _Command) -> _Command:
    return click.argument("file", type=click.Path())(function)


def _ref(function: _Command) -> _Command:
    return click.argument("ref", default="main", metavar="[REF]")(function)


def _open(file: str, mode: Mode = "r") -> Repository:
    if file and not os.path.lexists(os.path.expanduser(file)):
        raise NotFoundError(
            f"there is no file {file}; create a repository with: vzarr init {file}", name=file
        )
    return vzarr.open(file, mode)


# ── facts ────────────────────────────────────────────────────────────────────────────────────────


def _info_facts(facts: Info) -> dict[str, Any]:
    """All but the branch of the current session, which the command line has none of."""
    return {key: value for key, value in asdict(facts).items() if key != "branch"}


@final
class _Names:
    """The branches and tags, to find those that name a commit."""

    def __init__(self, repo: Repository) -> None:
        self._branches = _by_commit(repo.branches.items())
        self._tags = _by_commit(repo.tags.items())

    def facts(self, commit: Commit) -> dict[str, Any]:
        """Give a commit's facts with its names."""
        return {
            **asdict(commit),
            "branches": self._branches.get(commit.id, []),
            "tags": self._tags.get(commit.id, []),
        }

    def cells(self, commit: Commit) -> list[Cell]:
        """Spell a commit's names as git does: `` (main, tag: v1)``, or nothing."""
        names: list[Cell] = [(name, _BRANCH) for name in self._branches.get(commit.id, [])]
        names += [(f"tag: {name}", _TAG) for name in self._tags.get(commit.id, [])]
        separated = [cell for name in names for cell in (", ", name)][1:]
        return [" (", *separated, ")"] if names else []


def _by_commit(names: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, commit in names:
        found.setdefault(commit, []).append(name)
    return found


def _diff_facts(diff: Diff | None) -> list[dict[str, Any]] | None:
    return None if diff is None else [_change_facts(change) for change in diff]


def _change_facts(change: NodeChange) -> dict[str, Any]:
    def sides(values: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
        return {name: {"old": old, "new": new} for name, (old, new) in values.items()}

    metadata = dict(change.metadata)
    if "encoding" in metadata:
        # Itself a document.
        old, new = (json.loads(side) if side else None for side in metadata["encoding"])
        metadata["encoding"] = (old, new)
    return {
        "path": change.path,
        "kind": change.kind,
        "change": change.change,
        "old_path": change.old_path,
        "attributes": sides(change.attributes),
        "metadata": sides(metadata),
        "chunks": [
            {
                "coordinates": chunk.coordinates,
                "kind": chunk.kind,
                "region": chunk.region,
                "old_bytes": chunk.old_bytes,
                "new_bytes": chunk.new_bytes,
            }
            for chunk in change.iter_chunks()
        ],
    }


def _node_facts(path: str, node: NodeMetadata) -> dict[str, Any]:
    array = node.array
    return {
        "path": path,
        "kind": node.kind,
        "attributes": node.attributes,
        "shape": array.shape if array else None,
        "chunks": array.grid if array else None,
        "dtype": array.dtype if array else None,
    }


def _branch_facts(repo: Repository) -> list[dict[str, Any]]:
    facts = []
    for name, head in repo.branches.items():
        commit = repo.show(head)
        about = {"author": commit.author, "time": commit.time, "message": commit.message}
        facts.append({"name": name, "commit": head, **about})
    return facts


def _distances(
    repo: Repository, branches: Iterable[Mapping[str, Any]]
) -> Iterator[dict[str, int | None]]:
    """Count for each branch the commits that only it, or only main, has. O(commits of both)."""
    heads = {entry["name"]: entry["commit"] for entry in branches}
    if "main" not in heads:
        for _ in heads:
            yield {"ahead": None, "behind": None}
        return
    lines = {head: {commit.id for commit in repo.log(head)} for head in set(heads.values())}
    theirs = lines[heads["main"]]
    for head in heads.values():
        yield {"ahead": len(lines[head] - theirs), "behind": len(theirs - lines[head])}


def _spell_distance(facts: Mapping[str, Any]) -> str:
    if facts["name"] == "main" or facts["ahead"] is None:
        return ""
    return ", ".join(f"{facts[side]} {side}" for side in ("ahead", "behind") if facts[side]) or "="


def _subject(message: str) -> str:
    return message.partition("\n")[0]


def _s(number: int, plural: str = "s") -> str:
    return "" if number == 1 else plural


def _print_commit(out: Output, commit: Commit, names: _Names) -> None:
    out.line((f"commit {commit.id}", _ID), *names.cells(commit))
    if len(commit.parents) > 1:
        out.line("Merge:  ", " ".join(parent[:_SHORT] for parent in commit.parents))
    out.line(f"Author: {commit.author}")
    out.line(f"Date:   {_time(commit.time)}")
    out.line()
    for line in commit.message.split("\n"):
        out.line(f"    {line}" if line else "")
    for key, value in commit.metadata.items():
        out.line((f"    {key}: {json.dumps(_plain(value), ensure_ascii=False)}", _QUIET))


# ── verbs ────────────────────────────────────────────────────────────────────────────────────────


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(vzarr.__version__, message="vzarr %(version)s")
def commands() -> None:
    """Git-like versions and transactions for Zarr arrays, in one file.

    FILE is a repository. A REF is a branch, a tag, a commit id or its first digits (four or more),
    each with git's suffixes: main~2, v1.0^, main@{2026-03-01}.

    Text is coloured on a terminal and plain in a pipe, with ids in full. With --json a verb prints
    one JSON document: times are ISO 8601, ids 64 hexadecimal digits, a region [start, stop] for
    each dimension. An error is one line on stderr and, with --json, a document {"error": {"type",
    "message"}}.

    Exit codes: 0 done, 1 an error, 2 wrong usage, 130 interrupted.
    """


_INFO_KEYS = "path id format_version created file_bytes chunks commits branches tags"
_COMMIT_KEYS = "id parents author time message metadata root branches tags"
_CHANGE_KEYS = (
    "path kind change old_path attributes{name: {old new}} metadata{name: {old new}} "
    "chunks[coordinates kind region old_bytes new_bytes]"
)


@_verb("vzarr init ocean.vzarr", keys=_INFO_KEYS)
@_file
def init(file: str) -> None:
    """Create an empty repository with a branch main.

    FILE must not exist.
    """
    out = _output()
    if file and os.path.lexists(os.path.expanduser(file)):
        raise AlreadyExistsError(f"{file} exists already; nothing was created", name=file)
    with vzarr.open(file, "w-") as repo:
        facts, head = repo.info(), repo.branches["main"]
    out.document(_info_facts(facts))
    out.line(f"created {facts.path} with branch ", ("main", _BRANCH), " at ", out.commit_id(head))


@_verb("vzarr info ocean.vzarr", keys=_INFO_KEYS)
@_file
def info(file: str) -> None:
    """Tell a repository's identity, size and counts."""
    out = _output()
    with _open(file) as repo:
        facts = repo.info()
    out.document(_info_facts(facts))
    out.line(str(facts))


@_verb(
    "vzarr tree ocean.vzarr v1.0",
    keys="ref commit nodes[path kind attributes shape chunks dtype], the last three null for "
    "a group",
)
@_file
@_ref
def tree(file: str, ref: str) -> None:
    """Draw the groups and arrays of a REF.

    REF is main if it is not given.
    """
    out = _output()
    with _open(file) as repo:
        session = repo.session(ref)
        nodes = [_node_facts(path, node) for path, _, node in session.hierarchy.nodes()]
        out.document({"ref": ref, "commit": session.base, "nodes": nodes})
        out.line(str(repo.tree(session.base)))


@_verb(
    "vzarr log ocean.vzarr --oneline -n 5",
    "vzarr log ocean.vzarr v1.0 --path sst",
    keys=f"ref path commits[{_COMMIT_KEYS}]",
)
@_file
@_ref
@click.option("--path", metavar="PATH", help="Only commits that changed this group or array.")
@click.option(
    "-n", "--max-count", type=click.IntRange(min=0), metavar="N", help="At most so many commits."
)
@click.option("--oneline", is_flag=True, help="One line a commit.")
def log(file: str, ref: str, path: str | None, max_count: int | None, oneline: bool) -> None:
    """List the commits from a REF back, newest first.

    REF is main if it is not given.
    """
    out = _output()
    with _open(file) as repo:
        commits = repo.log(ref, path=path, limit=max_count)
        names = _Names(repo)
    out.document({"ref": ref, "path": path, "commits": [names.facts(entry) for entry in commits]})
    for number, commit in enumerate(commits):
        if oneline:
            subject = _subject(commit.message)
            out.line(out.commit_id(commit.id), *names.cells(commit), " ", subject)
        else:
            if number:
                out.line()
            _print_commit(out, commit, names)


@_verb(
    "vzarr status ocean.vzarr",
    keys="path commits tags branches[name commit author time message ahead behind]; ahead and "
    "behind count commits from main and are null if there is no main",
)
@_file
def status(file: str) -> None:
    """Tell where each branch is.

    That is its last commit, and how many commits it is ahead of main and behind it. Uncommitted
    work is not in here: it belongs to the sessions of the processes that do it.
    """
    out = _output()
    with _open(file) as repo:
        facts = repo.info()
        branches = _branch_facts(repo)
        for entry, distance in zip(branches, _distances(repo, branches), strict=True):
            entry.update(distance)
    out.document(
        {"path": facts.path, "commits": facts.commits, "tags": facts.tags, "branches": branches}
    )
    counts = (
        f"{facts.commits:,} commit{_s(facts.commits)}, {facts.branches:,} branch"
        f"{_s(facts.branches, 'es')}, {facts.tags:,} tag{_s(facts.tags)}"
    )
    out.line((facts.path, _HEADING), f": {counts}")
    out.table(
        ["branch", "head", "committed", "against main", "message"],
        [
            [
                (entry["name"], _BRANCH),
                out.commit_id(entry["commit"]),
                _time(entry["time"]),
                _spell_distance(entry),
                _subject(entry["message"]),
            ]
            for entry in branches
        ],
    )


@_verb(
    "vzarr show ocean.vzarr main~1",
    keys=f"commit{{{_COMMIT_KEYS}}} changes[as diff's], null for a commit without parents",
)
@_file
@_ref
def show(file: str, ref: str) -> None:
    """Describe a commit and what it changed.

    REF is main if it is not given. A merge is compared with its first parent.
    """
    out = _output()
    with _open(file) as repo:
        commit = repo.show(ref)
        names = _Names(repo)
        diff = repo.diff(commit.parents[0], commit.id) if commit.parents else None
        if out.as_json:
            out.document({"commit": names.facts(commit), "changes": _diff_facts(diff)})
        _print_commit(out, commit, names)
        if diff:
            out.line()
            out.changes(diff)


@_verb(
    "vzarr diff ocean.vzarr v1.0 main",
    keys=f"old{{ref commit}} new{{ref commit}} equal changes[{_CHANGE_KEYS}]",
)
@_file
@click.argument("old")
@click.argument("new", required=False)
@click.option("--exit-code", is_flag=True, help="Exit with 1 if anything differs.")
@click.pass_context
def diff(ctx: click.Context, file: str, old: str, new: str | None, exit_code: bool) -> None:
    """Compare two REFs.

    Shows the groups, arrays and attributes that differ, and the regions of arrays. NEW is main if
    it is not given. OLD..NEW is understood, too.
    """
    out = _output()
    if new is None:
        old, _, new = old.partition("..")
    old, new = old or "main", new or "main"
    with _open(file) as repo:
        before, after = repo.show(old).id, repo.show(new).id
        diff = repo.diff(before, after)
        if out.as_json:
            sides = {
                "old": {"ref": old, "commit": before},
                "new": {"ref": new, "commit": after},
            }
            out.document({**sides, "equal": not diff, "changes": _diff_facts(diff)})
        out.changes(diff)
    if exit_code and diff:
        ctx.exit(_PROBLEM)


@_verb(
    "vzarr branch ocean.vzarr",
    "vzarr branch ocean.vzarr dev --at v1.0",
    "vzarr branch ocean.vzarr --reset main --to main~1",
    keys="branches[name commit author time message]; with --reflog, branch moves[branch old new "
    "author time operation]; after a change, operation name commit and, if renamed, old_name",
)
@_file
@click.argument("name", required=False)
@click.option("--at", metavar="REF", help="Where NAME begins.  [default: main]")
@click.option("-d", "--delete", metavar="NAME", help="Delete a branch; its reflog stays.")
@click.option("-m", "--move", "--rename", nargs=2, metavar="OLD NEW", help="Rename a branch.")
@click.option("--reset", metavar="NAME", help="Move a branch to the commit that --to names.")
@click.option("--to", metavar="REF", help="Where --reset moves the branch.")
@click.option("--expected", metavar="REF", help="Reset only if the branch is here now.")
@click.option("--reflog", metavar="NAME", help="List every move of a branch.")
def branch(
    file: str,
    name: str | None,
    at: str | None,
    delete: str | None,
    move: tuple[str, str] | None,
    reset: str | None,
    to: str | None,
    expected: str | None,
    reflog: str | None,
) -> None:
    """List, create, rename, reset or delete branches.

    Lists them if only FILE is given. Creates NAME. After a --reset or --delete the reflog still
    tells the commits that the branch was at.
    """
    _require_one_of(
        {"NAME": name, "--delete": delete, "--move": move, "--reset": reset, "--reflog": reflog}
    )
    _require_with({"--at": at}, "NAME", name)
    _require_with({"--to": to, "--expected": expected}, "--reset", reset)
    if name is not None:
        _create_branch(file, name, at or "main")
    elif delete is not None:
        _delete_branch(file, delete)
    elif move is not None:
        _rename_branch(file, *move)
    elif reset is not None:
        if to is None:
            raise click.UsageError("--reset needs --to REF.")
        _reset_branch(file, reset, to, expected)
    elif reflog is not None:
        _list_moves(file, reflog)
    else:
        _list_branches(file)


def _list_branches(file: str) -> None:
    out = _output()
    with _open(file) as repo:
        branches = _branch_facts(repo)
    out.document({"branches": branches})
    out.table(
        ["branch", "head", "message"],
        [
            [(entry["name"], _BRANCH), out.commit_id(entry["commit"]), _subject(entry["message"])]
            for entry in branches
        ],
    )


def _create_branch(file: str, name: str, at: str) -> None:
    out = _output()
    with _open(file, "r+") as repo:
        if name in repo.branches:
            remedy = f"to move it: vzarr branch {file} --reset {name} --to REF"
            raise AlreadyExistsError(f"branch {name!r} exists; {remedy}", name=name)
        commit = repo.branches.create(name, at=at)
    out.document({"operation": "create", "name": name, "commit": commit})
    out.line("created branch ", (name, _BRANCH), " at ", out.commit_id(commit))


def _delete_branch(file: str, name: str) -> None:
    out = _output()
    with _open(file, "r+") as repo:
        _require_branch(repo, file, name)
        commit = repo.branches.delete(name)
    out.document({"operation": "delete", "name": name, "commit": commit})
    out.line("deleted branch ", (name, _BRANCH), ", which was at ", out.commit_id(commit))


def _rename_branch(file: str, old: str, new: str) -> None:
    out = _output()
    with _open(file, "r+") as repo:
        _require_branch(repo, file, old)
        repo.branches.rename(old, new)
        commit = repo.branches[new]
    out.document({"operation": "rename", "name": new, "commit": commit, "old_name": old})
    out.line("renamed branch ", (old, _BRANCH), " to ", (new, _BRANCH))


def _reset_branch(file: str, name: str, to: str, expected: str | None) -> None:
    out = _output()
    with _open(file, "r+") as repo:
        _require_branch(repo, file, name)
        commit = repo.branches.reset(name, to, expected)
    out.document({"operation": "reset", "name": name, "commit": commit})
    out.line("branch ", (name, _BRANCH), " is now at ", out.commit_id(commit))


def _list_moves(file: str, name: str) -> None:
    out = _output()
    with _open(file) as repo:
        try:
            moves = repo.reflog(name)
        except RefNotFoundError as error:
            raise _no_branch(file, name) from error
    out.document({"branch": name, "moves": [asdict(move) for move in moves]})
    out.table(
        ["head", "moved", "operation", "author"],
        [
            [out.commit_id(move.new), _time(move.time), move.operation, move.author]
            for move in moves
        ],
    )


def _require_branch(repo: Repository, file: str, name: str) -> None:
    if name not in repo.branches:
        raise _no_branch(file, name)


def _no_branch(file: str, name: str) -> RefNotFoundError:
    return RefNotFoundError(
        f"there is no branch {name!r}; to list the branches: vzarr branch {file}", name=name
    )


def _require_one_of(actions: Mapping[str, object]) -> None:
    given = [name for name, value in actions.items() if value is not None]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} do not go together.")


def _require_with(options: Mapping[str, object], other: str, value: object) -> None:
    for name, given in options.items():
        if given is not None and value is None:
            raise click.UsageError(f"{name} goes with {other}.")


@_verb(
    "vzarr tag ocean.vzarr",
    'vzarr tag ocean.vzarr v1.0 --at main~1 -m "as published"',
    keys="tags[name commit message author time]; after a change, operation name commit",
)
@_file
@click.argument("name", required=False)
@click.option("--at", metavar="REF", help="What to tag.  [default: main]")
@click.option("-m", "--message", metavar="MSG", help="Why.")
@click.option("-d", "--delete", metavar="NAME", help="Delete a tag; its commit stays.")
def tag(
    file: str, name: str | None, at: str | None, message: str | None, delete: str | None
) -> None:
    """List, create or delete tags.

    Lists them if only FILE is given. Creates NAME, which never moves.
    """
    _require_one_of({"NAME": name, "--delete": delete})
    _require_with({"--at": at, "--message": message}, "NAME", name)
    if name is not None:
        _create_tag(file, name, at or "main", message or "")
    elif delete is not None:
        _delete_tag(file, delete)
    else:
        _list_tags(file)


def _list_tags(file: str) -> None:
    out = _output()
    with _open(file) as repo:
        tags = repo.tags.details()
    out.document({"tags": [asdict(entry) for entry in tags]})
    out.table(
        ["tag", "commit", "tagged", "message"],
        [
            [
                (entry.name, _TAG),
                out.commit_id(entry.commit),
                _time(entry.time),
                _subject(entry.message),
            ]
            for entry in tags
        ],
    )


def _create_tag(file: str, name: str, at: str, message: str) -> None:
    out = _output()
    with _open(file, "r+") as repo:
        commit = repo.tags.create(name, at=at, message=message)
    out.document({"operation": "create", "name": name, "commit": commit})
    out.line("tagged ", out.commit_id(commit), " as ", (name, _TAG))


def _delete_tag(file: str, name: str) -> None:
    out = _output()
    with _open(file, "r+") as repo:
        commit = repo.tags[name]
        repo.tags.delete(name)
    out.document({"operation": "delete", "name": name, "commit": commit})
    out.line("deleted tag ", (name, _TAG), ", which was at ", out.commit_id(commit))


_CONFLICT_KEYS = "path kind document coordinates region"
_STRATEGY = click.option(
    "--strategy",
    type=click.Choice(["fail", "ours", "theirs"]),
    default="fail",
    help="Whose value to take in a conflict: the branch's, or the other's.  [default: fail]",
)


@_verb(
    "vzarr merge ocean.vzarr dev --dry-run",
    'vzarr merge ocean.vzarr dev --into main -m "take the corrections"',
    keys="kind ref into commit, kind one of up to date, fast-forward, merge; with --dry-run, kind "
    f"ref into bases changes[as diff's] conflicts[{_CONFLICT_KEYS}]; an error has conflicts, too",
)
@_file
@click.argument("ref")
@click.option("--into", default="main", metavar="BRANCH", help="The branch.  [default: main]")
@click.option("-m", "--message", metavar="MSG", help="For the commit that joins both sides.")
@_STRATEGY
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
    out = _output()
    if dry_run:
        _preview_merge(ctx, out, file, ref, into, strategy)
        return
    with _open(file, "r+") as repo:
        _require_branch(repo, file, into)
        before, other = repo.branches[into], repo.show(ref).id
        commit = repo.merge(ref, into, message, strategy, no_ff=no_ff)
    settled = {before: "up to date", other: "fast-forward"}
    kind = settled.get(commit, "merge")
    out.document({"kind": kind, "ref": ref, "into": into, "commit": commit})
    if commit == before:
        out.line("branch ", (into, _BRANCH), f" has all of {ref} already")
    else:
        out.line(f"{kind}: branch ", (into, _BRANCH), " is now at ", out.commit_id(commit))


def _preview_merge(
    ctx: click.Context, out: Output, file: str, ref: str, into: str, strategy: Strategy
) -> None:
    with _open(file) as repo:
        _require_branch(repo, file, into)
        preview = repo.merge(ref, into, strategy=strategy, dry_run=True)
        if out.as_json:
            out.document(
                {
                    "kind": preview.kind,
                    "ref": ref,
                    "into": into,
                    "bases": preview.bases,
                    "changes": _diff_facts(preview.diff),
                    "conflicts": [_conflict_facts(one) for one in preview.conflicts],
                }
            )
        out.line(f"{preview.kind}: {ref} into ", (into, _BRANCH))
        out.changes(preview.diff)
    for conflict in preview.conflicts:
        out.line((f"! {conflict}", "red"))
    if preview.conflicts:
        ctx.exit(_PROBLEM)


def _conflict_facts(conflict: Conflict) -> dict[str, Any]:
    return {key: getattr(conflict, key) for key in _CONFLICT_KEYS.split()}


@_verb(
    "vzarr cherry-pick ocean.vzarr 1f3a9c2 --onto main",
    keys="branch commit picked; an error has conflicts, as merge's",
)
@_file
@click.argument("commit")
@click.option("--onto", default="main", metavar="BRANCH", help="The branch.  [default: main]")
@click.option("--mainline", type=int, metavar="N", help="For a merge: which parent to count from.")
@_STRATEGY
@click.option("-x", "--note-origin", is_flag=True, help="Name the commit in the message.")
def cherry_pick(
    file: str, commit: str, onto: str, mainline: int | None, strategy: Strategy, note_origin: bool
) -> None:
    """Apply what one COMMIT changed on top of a branch.

    The new commit has its message, metadata and author.
    """
    out = _output()
    with _open(file, "r+") as repo:
        _require_branch(repo, file, onto)
        picked = repo.show(commit).id
        made = repo.cherry_pick(
            picked, onto, mainline=mainline, strategy=strategy, note_origin=note_origin
        )
    out.document({"branch": onto, "commit": made, "picked": picked})
    out.line("branch ", (onto, _BRANCH), " is now at ", out.commit_id(made))


@_verb(
    "vzarr revert ocean.vzarr main~3",
    keys="branch commit reverted; an error has conflicts, as merge's",
)
@_file
@click.argument("commit")
@click.option("--on", default="main", metavar="BRANCH", help="The branch.  [default: main]")
@click.option("--mainline", type=int, metavar="N", help="For a merge: which parent to go back to.")
@_STRATEGY
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
    out = _output()
    with _open(file, "r+") as repo:
        _require_branch(repo, file, on)
        reverted = repo.show(commit).id
        made = repo.revert(reverted, on, mainline=mainline, strategy=strategy, message=message)
    out.document({"branch": on, "commit": made, "reverted": reverted})
    out.line("branch ", (on, _BRANCH), " is now at ", out.commit_id(made))


@_verb(
    "vzarr blame ocean.vzarr sst",
    'vzarr blame ocean.vzarr sst v1.0 --region "0:10, 5"',
    keys="path ref commit commits[id author time message chunks[coordinates region]]",
)
@_file
@click.argument("path")
@_ref
@click.option("--region", metavar="INDEX", help='Only chunks in this part, such as "0:10, 5".')
def blame(file: str, path: str, ref: str, region: str | None) -> None:
    """Tell the last commit to change each chunk of an array.

    PATH is the array's, REF is main if it is not given.
    """
    out = _output()
    index = None if region is None else _parse_region(region)
    with _open(file) as repo:
        commit = repo.show(ref).id
        found = repo.blame(path, index, ref=commit)
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
                _time(change.time),
                change.author,
                found.spell(chunks),
                _subject(change.message),
            ]
            for change, chunks in groups
        ],
    )


_INDEX = re.compile(r"(?P<index>-?\d+)|(?P<start>-?\d+)?:(?P<stop>-?\d+)?|(?P<rest>\.\.\.)")


def _parse_region(text: str) -> tuple[Any, ...]:
    """Read an index as numpy would take it, with or without brackets."""
    parts: list[Any] = []
    inner = text.strip().removeprefix("[").removesuffix("]").strip()
    for part in inner.split(",") if inner else ():
        match = _INDEX.fullmatch(part.strip())
        if match is None:
            raise click.BadParameter(
                f"{part!r} is no index such as 5, 0:10 or :", param_hint="--region"
            )
        if match["rest"]:
            parts.append(...)
        elif match["index"]:
            parts.append(int(match["index"]))
        else:
            ends = (int(end) if end else None for end in (match["start"], match["stop"]))
            parts.append(slice(*ends))
    return tuple(parts)


@_verb(
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

    out = _output()
    out.document(tell(out, directory, synthetic=synthetic, force=force))
