"""What notebooks show: the facts that are printed, in the same words and order, as HTML.

Each function makes one output, for the ``_repr_html_`` of one class. However much there is to tell,
an output has a bounded size and says what it leaves out; and whatever a file holds, it is shown as
text and does nothing. Where a part cannot be read, its place says why.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, final

from vzarr import chunkmap
from vzarr.diff import MARKS, Diff, NodeChange, spell_value
from vzarr.errors import ConflictError, VzarrError
from vzarr.graphsvg import draw_graph
from vzarr.html import (
    Markup,
    clip,
    facts,
    fold,
    join,
    more,
    page,
    spoken,
    table,
    tag,
    text,
)
from vzarr.tree import Tree, draw

if TYPE_CHECKING:
    from vzarr.combine import MergePreview
    from vzarr.findings import Report
    from vzarr.history import Commit
    from vzarr.reports import Info, Log
    from vzarr.repository import Repository
    from vzarr.session import Session
    from vzarr.status import Status
    from vzarr.usage import Usage

SHORT = 12
MAX_COMMITS = 100
MAX_NAMES = 50
MAX_CHANGES = 100
MAX_CELLS = 2_500
"""So many cells of chunk maps are drawn in one output, and a map more; some 150 bytes each."""
MAX_LOOKED_AT = 200_000
"""So many changed chunks are looked at for one output; a second or less."""
MAX_FACTS = 50
MAX_ROWS = 100
MAX_LINES = 200
MAX_PROBLEMS = 50
_FEW_CHANGES = 8
_FEW_COMMITS = 10
_FEW_LINES = 60
_FEW_LEVELS = 2
_FEW_NAMES = 20
_LONGEST_MESSAGE = 10_000

Names = Mapping[str, Sequence[Markup]]
"""The names of commits, by id."""


# ── commits ──────────────────────────────────────────────────────────────────────────────────────


def commit_html(commit: Commit) -> str:
    """Show one commit: all that it says, and what of it is in which order."""
    rows = [
        ("commit", _id(commit.id, SHORT * 6)),
        *(("parent", _id(parent, SHORT * 6)) for parent in commit.parents[:MAX_FACTS]),
        ("time", join([_time(commit), " UTC"])),
        ("author", text(commit.author)),
        ("message", text(commit.message, "lines", limit=_LONGEST_MESSAGE, lines=True)),
        *_metadata(commit),
        ("root", _id(commit.root, SHORT * 6)),
    ]
    return page(facts(rows))


def log_html(log: Log) -> str:
    """Show commits, one a line, beside the graph of their ancestry."""
    return page(*_log(log, {}))


def _log(log: Sequence[Commit], names: Names, limit: int = MAX_COMMITS) -> Iterator[Markup]:
    shown = log[:limit]
    if not shown:
        yield tag("p", "(no commits)", css="quiet")
        return
    lines = join(tag("li", _commit_line(commit, names)) for commit in shown)
    yield tag("div", draw_graph(shown), tag("ol", lines, css="commits"), css="log")
    yield more(len(log) - len(shown))


def _commit_line(commit: Commit, names: Names) -> Markup:
    subject = commit.message.partition("\n")[0]
    parts = [_id(commit.id), _time(commit), text(commit.author, "quiet"), text(subject)]
    if len(commit.parents) > 1:
        merged = " and ".join(parent[:SHORT] for parent in commit.parents[:MAX_FACTS])
        parts.append(tag("span", "(merge)", css="quiet", title=f"of {merged}"))
    return join([*parts, *names.get(commit.id, ())], "  ")


def _metadata(commit: Commit) -> Iterator[tuple[str, Markup]]:
    for key, value in islice(commit.metadata.items(), MAX_FACTS):
        yield clip(key), text(json.dumps(value, ensure_ascii=False), "code")
    if len(commit.metadata) > MAX_FACTS:
        yield "", more(len(commit.metadata) - MAX_FACTS)


def _id(commit: str, digits: int = SHORT) -> Markup:
    return tag("span", commit[:digits], css="id")


def _time(commit: Commit) -> Markup:
    return tag("span", f"{commit.time:%Y-%m-%d %H:%M:%S}", css="quiet", title="UTC")


# ── changes ──────────────────────────────────────────────────────────────────────────────────────


def diff_html(diff: Diff) -> str:
    """Show what changed between two snapshots, node by node."""
    return page(*_diff(diff))


def change_html(change: NodeChange) -> str:
    """Show what changed of one group, array or file."""
    return page(_change(change, _Room(), is_open=True))


def status_html(status: Status) -> str:
    """Show what a session would commit."""
    return page(*_status(status))


def preview_html(preview: MergePreview) -> str:
    """Show what a merge would do, and where it would conflict."""
    return page(
        tag("p", text(preview.head()), css="head"),
        *_changes(preview.diff),
        *_conflicts(preview.conflicts),
    )


def _status(status: Status) -> Iterator[Markup]:
    where, *rest = status.head()
    yield tag("p", where, css="head")
    yield from (tag("p", line) for line in rest)
    if status:
        yield from _changes(status.diff)


def _diff(diff: Diff) -> Iterator[Markup]:
    if not diff:
        yield tag("p", "no differences between ", text(diff.old), " and ", text(diff.new))
        return
    yield tag("p", text(diff.old), " → ", text(diff.new), css="head")
    yield from _changes(diff)


@final
@dataclass(slots=True)
class _Room:
    """What the maps of one output may still take."""

    cells: int = MAX_CELLS
    chunks: int = MAX_LOOKED_AT


def _changes(diff: Diff) -> Iterator[Markup]:
    room = _Room()
    for change in diff.changes[:MAX_CHANGES]:
        yield _change(change, room, is_open=len(diff) <= _FEW_CHANGES)
    yield more(len(diff) - MAX_CHANGES)


def _change(change: NodeChange, room: _Room, *, is_open: bool) -> Markup:
    name = text(change.path or "/")
    if change.old_path is not None:
        name = join([text(change.old_path), " → ", name])
    head = [
        spoken(MARKS[change.change], change.change, f"mark {change.change}"),
        Markup(" "),
        tag("span", change.kind, css="quiet"),
        Markup(" "),
        name,
    ]
    body: list[Markup] = []
    if change.change == "changed":
        rows = [
            *((f"{key}:", pair) for key, pair in change.metadata.items()),
            *((f"@{key}:", pair) for key, pair in change.attributes.items()),
        ]
        if rows:
            body.append(facts((clip(key), _pair(*pair)) for key, pair in rows[:MAX_FACTS]))
        body.append(more(len(rows) - MAX_FACTS))
    else:
        head += [tag("span", "  ", clip(str(fact)), css="code") for fact in change.head_facts()]
    body += _part(lambda: _chunks(change, room))
    if not any(body):
        return tag("div", *head)
    return fold(join(head), *body, is_open=is_open)


def _pair(old: object, new: object) -> Markup:
    sides = (
        tag("bdi", spell_value(value), css=f"code {css}")
        for value, css in ((old, "removed"), (new, "added"))
    )
    return join(sides, " → ")


def _chunks(change: NodeChange, room: _Room) -> Iterator[Markup]:
    """Tell which chunks of an array changed, and draw them."""
    if next(change.iter_kinds(), None) is None:
        return
    if room.chunks <= 0:
        alone = (
            change.chunk_summary() if change.count_alone() is not None else "chunks: not counted"
        )
        yield tag("p", *_coloured(alone))
        yield tag("p", "see this change alone for its chunk map", css="quiet")
        return
    grids = chunkmap.grids(*change.arrays)
    plan = chunkmap.lay_out(*grids) if grids is not None and room.cells > 0 else None
    marks = chunkmap.mark(plan, change.iter_kinds, min(chunkmap.MAX_COUNTED, room.chunks))
    room.cells -= len(marks.cells)
    room.chunks -= sum(marks.counts.values())
    if not marks.counted and plan is not None:
        room.chunks -= chunkmap.MAX_STEPS
    exact = marks.counted or change.count_alone() is not None
    summary = change.chunk_summary() if exact else chunkmap.at_least(marks)
    yield tag("p", *_coloured(summary))
    if plan is None:
        if grids is not None and room.cells <= 0:
            yield tag("p", "see this change alone for its chunk map", css="quiet")
        return
    label = f"chunk map: {chunkmap.describe(plan, marks)}"
    yield chunkmap.draw(plan, marks, label)
    if caption := "; ".join(chunkmap.captions(plan, marks)):
        yield tag("p", caption, css="quiet")


def _coloured(summary: str) -> Iterator[str]:
    """Give the numbers of a summary of chunks the colours of the map."""
    for part in re.split(r"([\d,]+ (?:changed|added|removed))", summary):
        kind = part.rpartition(" ")[2]
        yield tag("span", part, css=kind) if kind in chunkmap.KINDS else part


# ── a tree ───────────────────────────────────────────────────────────────────────────────────────

_RAILS = re.compile(r"^((?:│   |    )*(?:├── |└── ))(.*)$", re.DOTALL)
_LABEL = re.compile(r"^(.*?)( \([\d, ]*\) .*)$", re.DOTALL)


def tree_html(tree: Tree) -> str:
    """Show the drawing of a snapshot's groups and arrays."""
    return page(*_tree(tree))


def _tree(tree: Tree) -> Iterator[Markup]:
    # The drawing is read, so that it cannot say anything else.
    lines = tree.split("\n")
    nodes = [_read_line(line) for line in lines[:MAX_LINES]]
    yield tag(
        "ul",
        _members(nodes, open_to=_FEW_LEVELS if len(lines) > _FEW_LINES else MAX_LINES),
        css="tree",
    )
    yield more(len(lines) - MAX_LINES)


def _read_line(line: str) -> tuple[int, Markup]:
    """Read how deep a node lies, and what is said of it."""
    rails = _RAILS.match(line)
    depth = len(rails[1]) // 4 if rails else 0
    rest = rails[2] if rails else line
    label = _LABEL.match(rest)
    name, about = label.groups() if label else (rest, "")
    return depth, join([text(name), tag("span", clip(about), css="quiet")])


def _members(nodes: Sequence[tuple[int, Markup]], open_to: int) -> Markup:
    """List nodes, each with those that lie deeper after it."""
    items = []
    start = 0
    while start < len(nodes):
        depth, line = nodes[start]
        after = range(start + 1, len(nodes))
        end = next((number for number in after if nodes[number][0] <= depth), len(nodes))
        if end > start + 1:
            below = tag("ul", _members(nodes[start + 1 : end], open_to))
            line = fold(line, below, is_open=depth < open_to)
        items.append(tag("li", line))
        start = end
    return join(items)


# ── branches and tags, sizes, checks ─────────────────────────────────────────────────────────────


def names_html(rows: Iterable[tuple[str, Commit]], count: int, kind: str) -> str:
    """Show branches or tags, each with its commit."""
    return page(*_names(rows, count, kind))


def _names(
    rows: Iterable[tuple[str, Commit]], count: int, kind: str, limit: int = MAX_NAMES
) -> Iterator[Markup]:
    if not count:
        yield tag("p", "(none)", css="quiet")
        return
    cells = [
        [
            _name(name, kind),
            _id(commit.id),
            _time(commit),
            text(commit.author),
            text(commit.message.partition("\n")[0]),
        ]
        for name, commit in islice(rows, limit)
    ]
    yield table([kind, "commit", "time", "author", "message"], cells, left=range(5))
    yield more(count - limit)


def _name(name: str, kind: str) -> Markup:
    return text(name, f"name {kind}")


def usage_html(usage: Usage) -> str:
    """Show what takes how many bytes, as tables."""
    return page(*_usage(usage))


def _usage(usage: Usage) -> Iterator[Markup]:
    for heads, rows, columns in usage.tables():
        left = {*range(columns), *(n for n, head in enumerate(heads) if head == "message")}
        cells = ([text(cell) for cell in row] for row in rows[:MAX_ROWS])
        yield table([clip(head) for head in heads], cells, left=left)
        yield more(len(rows) - MAX_ROWS)


def report_html(report: Report) -> str:
    """Show what a check found: the problems, then the figures."""
    parts = [
        tag(
            "li",
            tag("span", f"{problem.kind}: ", css="removed"),
            text(problem.message),
            tag("div", text(problem.cost), css="quiet"),
        )
        for problem in report.problems[:MAX_PROBLEMS]
    ]
    hidden = len(report.problems) - MAX_PROBLEMS
    summary = text(report.summary(), "lines", limit=_LONGEST_MESSAGE, lines=True)
    verdict = ("✓", "sound", "mark added") if report.ok else ("✗", "problems", "mark removed")
    listed = [tag("ul", *parts, css="plain")] if parts else []
    return page(*listed, more(hidden), tag("div", spoken(*verdict), summary))


def info_html(info: Info) -> str:
    """Show what a repository tells of itself."""
    return page(_info(info))


def _info(info: Info) -> Markup:
    return facts((name, text(str(value))) for name, value in info.rows().items())


def conflict_html(error: ConflictError) -> str:
    """Show a conflict, with all that overlaps."""
    head = tag("p", tag("span", type(error).__name__, css="head removed"), ": ", text(str(error)))
    return page(head, *_conflicts(error.conflicts))


def _conflicts(conflicts: Sequence[object]) -> Iterator[Markup]:
    mark = spoken("!", "conflict", "mark removed")
    shown = [tag("li", mark, text(str(one))) for one in conflicts[:MAX_PROBLEMS]]
    if shown:
        yield tag("ul", *shown, css="plain")
    yield more(len(conflicts) - MAX_PROBLEMS)


# ── sessions and repositories ────────────────────────────────────────────────────────────────────


def session_html(session: Session) -> str:
    """Show a session: where it is, and what it would commit."""
    where = [_name(session.branch, "branch")] if session.branch else [Markup("read-only")]
    return page(
        tag(
            "p",
            tag("span", "vzarr.Session", css="head"),
            " ",
            *where,
            " at ",
            _id(session.base),
            " of ",
            text(session.environment.path),
        ),
        *_part(lambda: _status(session.status())),
    )


def repository_html(repo: Repository, current: Session | None) -> str:
    """Show a repository: its facts, names, latest commits and groups, and uncommitted work."""
    mode = " (read-only)" if repo.read_only else ""
    return page(
        tag("p", tag("span", "vzarr.Repository", css="head"), " ", text(repo.path), mode),
        *_part(lambda: _overview(repo, current)),
    )


def closed_html(path: str) -> str:
    """Show a repository that is closed."""
    head = tag("span", "vzarr.Repository", css="head")
    return page(tag("p", head, " ", text(path), " (closed)"))


def _overview(repo: Repository, current: Session | None) -> Iterator[Markup]:
    info = repo.info()
    branches = list(islice(repo.branches.items(), _FEW_NAMES))
    tags = list(islice(repo.tags.items(), _FEW_NAMES))
    names: dict[str, list[Markup]] = {}
    for kind, some in (("branch", branches), ("tag", tags)):
        for name, commit in some:
            names.setdefault(commit, []).append(_name(name, kind))
    for word, some, count in (("branches", branches, info.branches), ("tags", tags, info.tags)):
        kind = "branch" if word == "branches" else "tag"
        if some:
            listed = join((_name(name, kind) for name, _ in some), " ")
            rest = f" … and {count - len(some):,} more" if count > len(some) else ""
            yield tag("p", f"{word} ", listed, tag("span", rest, css="quiet"))
    if current is not None:
        where = _name(current.branch, "branch") if current.branch else _id(current.base)
        yield tag("p", "on ", where)
    ref = current.base if current is not None else _default(branches)
    if ref is not None:
        yield fold("log", *_part(lambda: _latest(repo, ref, names)), is_open=True)
        yield fold("tree", *_part(lambda: _snapshot(repo, ref, current)))
    if current is not None and not current.read_only:
        status = list(_part(lambda: _status(current.status())))
        yield fold("status", *status, is_open=current.has_changes)
    yield fold("info", _info(info))


def _default(branches: Sequence[tuple[str, str]]) -> str | None:
    """Choose what to show where there is no current session: main, or the first branch."""
    heads = dict(branches)
    return heads.get("main", next(iter(heads.values()), None))


def _latest(repo: Repository, ref: str, names: Names) -> Iterator[Markup]:
    commits = repo.log(ref, limit=_FEW_COMMITS + 1)
    yield from _log(commits[:_FEW_COMMITS], names)
    if len(commits) > _FEW_COMMITS:
        yield tag("p", "… and more: repo.log()", css="quiet")


def _snapshot(repo: Repository, ref: str, current: Session | None) -> Iterator[Markup]:
    if current is not None:
        yield from _tree(draw(current.hierarchy, limit=MAX_LINES))
        return
    with closing(repo.session(ref)) as session:
        yield from _tree(draw(session.hierarchy, limit=MAX_LINES))


def _part(build: Callable[[], Iterable[Markup]]) -> Iterator[Markup]:
    """Build a part; where something is damaged, missing or closed, its place says so."""
    try:
        yield from list(build())
    except VzarrError as error:
        yield tag("p", text(str(error)), css="removed")
