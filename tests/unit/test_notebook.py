"""What notebooks show: well-formed, harmless, bounded, and the same that is printed."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
import zarr

import vzarr
from tests.unit.test_chunkmap import read_back
from vzarr import notebook
from vzarr.diff import Diff, NodeChange
from vzarr.errors import ConflictError, CorruptError
from vzarr.findings import Problem
from vzarr.history import Commit
from vzarr.html import DARK, LIGHT, Markup, join, page, tag, text
from vzarr.printable import printable
from vzarr.reports import Log
from vzarr.tree import Tree

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&amp;\u202eevil\x1b[31m\x00</style>"
ROW = 22


class Page(HTMLParser):
    """What a page says, and whether it is well-formed."""

    def __init__(self, html):
        super().__init__()
        self.open = []
        self.tags = Counter()
        self.attributes = []
        self.texts = []
        self.lists = []
        self.styles = []
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, name, attributes):
        names = [key for key, _ in attributes]
        assert len(set(names)) == len(names), f"an attribute twice: {name} {names}"
        self.open.append(name)
        self.tags[name] += 1
        self.attributes += [(name, key, value) for key, value in attributes]

    def handle_endtag(self, name):
        assert self.open, f"</{name}> closes nothing"
        assert self.open.pop() == name

    def handle_data(self, data):
        if self.open[-1:] == ["style"]:
            self.styles.append(data)
        elif "title" not in self.open:
            self.texts.append(data)
            self.lists.append((self.open.count("ul"), data))

    def unknown_decl(self, data):
        raise AssertionError(data)

    def values(self, key):
        return [value for _, name, value in self.attributes if name == key]

    @property
    def text(self):
        return " ".join(self.texts)


def svgs(html, name="map"):
    return re.findall(rf'<svg(?=[^>]*class="vz-{name}").*?</svg>', html)


def words(text):
    return re.findall(r"\w+|[^\w\s]", text)


def assert_told_in_order(printed, shown):
    """All words that are printed are shown, in this order; there may be others between."""
    rest = iter(words(shown))
    # The rails of a tree are lists in lists here.
    for word in words(re.sub("[│├└─]", "", printed)):
        assert any(word == other for other in rest), f"{word!r} of {printed!r} is not in {shown!r}"


def commit(number, parents=(), message="work", **facts):
    return Commit(
        id=f"{number:064x}",
        parents=tuple(f"{parent:064x}" for parent in parents),
        author=facts.pop("author", "Ada <ada@example.org>"),
        time=datetime(2026, 3, 1, tzinfo=UTC) + timedelta(hours=number),
        message=message,
        metadata=facts.pop("metadata", {}),
        root="ab" * 32,
    )


@pytest.fixture
def outputs(repo):
    """One of each kind, of a repository with branches, merges, resizes, moves and bad names."""
    with repo.transaction("main", f"first {EVIL}", metadata={EVIL: EVIL, "run": 3}) as store:
        group = zarr.create_group(store, attributes={"title": "Sea", EVIL: "old"})
        for name, shape, chunks in [
            ("sst", (30, 6, 8), (1, 3, 4)),
            ("bathy", (40, 60), (10, 10)),
            ("gone", (5,), (2,)),
            ("old-name", (4,), (2,)),
            ("t<b>\u202e&", (3,), (3,)),
        ]:
            group.create_array(name, shape=shape, chunks=chunks, dtype="f4")[...] = 1
    repo.tags.create("v1.0", message="one")
    repo.branches.create("fix<b>&")
    with repo.transaction("fix<b>&", "fix") as store:
        zarr.open_array(store, path="bathy")[:20, 30:] = 7
    with repo.transaction("main", "append") as store:
        zarr.open_array(store, path="sst").append(np.ones((5, 6, 8), "f4"))
        group = zarr.open_group(store)
        del group["gone"]
        group.attrs.update({"title": "Sea surface", EVIL: EVIL, "number": float("nan")})
        group.create_group("made")
        store.session.set("made/notes.txt", b"text")
    repo.merge("fix<b>&")
    repo.branches.create("other", at="v1.0")
    with repo.transaction("other", "as if alone") as store:
        zarr.open_array(store, path="bathy")[0, 30] = 5
    session = repo.checkout("main")
    repo.root_group["bathy"][0, 0] = -1
    repo.move("old-name", "new-name")
    stale = repo.session("fix<b>&")
    zarr.open_array(stale.store, path="bathy")[0, 0] = 3
    with repo.transaction("fix<b>&", "meanwhile") as store:
        zarr.open_array(store, path="bathy")[0, 0] = 4
    with pytest.raises(ConflictError) as conflict:
        stale.commit("too late")
    diff = repo.diff("v1.0", "main")
    damaged = Problem("chunk", f"chunk {EVIL} is gone", f"cost {EVIL}", path=EVIL)
    yield {
        "repository": repo,
        "session": session,
        "reader": repo.session("v1.0"),
        "status": repo.status(),
        "clean": repo.session("main").status(),
        "log": repo.log(),
        "log of a path": repo.log(path="bathy"),
        "no log": Log(),
        "diff": diff,
        "no diff": repo.diff("main", "main"),
        "change": diff["bathy"],
        "commit": repo.show("v1.0"),
        "tree": repo.tree(),
        "branches": repo.branches,
        "tags": repo.tags,
        "usage": repo.du(),
        "info": repo.info(),
        "report": repo.check(),
        "bad report": replace(repo.check(), problems=(damaged,)),
        "conflict": conflict.value,
        "preview": repo.merge("fix<b>&", dry_run=True),
        "preview of a conflict": repo.merge("other", dry_run=True),
    }
    repo.discard()
    stale.discard()


def test_all_outputs_are_well_formed_harmless_and_can_be_told_apart(outputs):
    whole = ""
    for name, thing in outputs.items():
        html = thing._repr_html_()
        whole += html
        found = Page(html)
        assert found.tags["style"] == 1, name
        assert not found.tags.keys() & {"script", "img", "iframe", "object", "embed", "link", "a"}
        for element, key, value in found.attributes:
            assert not key.startswith("on"), (name, element, key)
            assert key not in ("href", "src", "id", "style", "xlink:href"), (name, element, key)
            if key == "class":
                assert all(one.startswith("vz-") for one in value.split()), (name, value)
        # All that is shown could be printed: no control characters, nothing turns the writing.
        assert printable(html, lines=True) == html
        assert len(html) < 60_000
        for svg in svgs(html, "map") + svgs(html, "graph"):
            picture = Page(svg)
            assert svg.index("<title>") < svg.index("<path")
            assert picture.values("role") == ["img"]
            assert picture.values("aria-label")[0] in svg.partition("</title>")[0]
    # Twice in one page, nothing clashes.
    ids = Page(f"<html><body>{whole}{whole}</body></html>").values("id")
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    "name",
    [
        "log", "log of a path", "no log", "diff", "no diff", "status", "clean", "change", "tree",
        "usage", "info", "report", "bad report", "branches", "tags", "preview",
        "preview of a conflict",
    ],
)  # fmt: skip
def test_what_is_printed_is_shown_in_the_same_words_and_order(outputs, name):
    thing = outputs[name]
    printed = printable(str(thing), lines=True)
    assert_told_in_order(printed, Page(thing._repr_html_()).text)


def test_a_commit_shows_all_of_it(outputs):
    shown = Page(outputs["commit"]._repr_html_()).text
    for fact in (outputs["commit"].id, outputs["commit"].root, "Test <test@example.org>", "run 3"):
        assert_told_in_order(fact, shown)
    assert printable(EVIL) in shown
    merge = outputs["log"][0]
    assert_told_in_order(" ".join(merge.parents), Page(merge._repr_html_()).text)


def test_a_session_and_a_repository_tell_where_they_are(outputs):
    repo, session = outputs["repository"], outputs["session"]
    shown = Page(session._repr_html_()).text
    assert_told_in_order(f"vzarr.Session main at {session.base[:12]} of {repo.path}", shown)
    assert_told_in_order(str(session.status()), shown)
    reader = outputs["reader"]
    assert_told_in_order(f"read-only at {reader.base[:12]}", Page(reader._repr_html_()).text)
    shown = Page(repo._repr_html_()).text
    assert_told_in_order(
        f"vzarr.Repository {repo.path} branches fix<b>& main other tags v1.0", shown
    )
    assert_told_in_order(f"on main log {repo.log(limit=1)} main tree", shown)
    assert_told_in_order(str(repo.tree()), shown)
    assert_told_in_order(f"status {repo.status()}", shown)
    assert_told_in_order(f"info {repo.info()}", shown)


def test_a_repository_without_a_current_session(repo):
    with repo.transaction("main", "one") as store:
        zarr.create_group(store).create_array("a", shape=(3,), dtype="u1")
    shown = Page(repo._repr_html_()).text
    assert repo._current is None
    assert_told_in_order(str(repo.log("main")), shown)
    assert_told_in_order(str(repo.tree("main")), shown)
    assert "status" not in words(shown)
    repo.branches.rename("main", "trunk")
    assert_told_in_order(str(repo.tree("trunk")), Page(repo._repr_html_()).text)
    repo.branches.delete("trunk")
    assert "tree" not in words(Page(repo._repr_html_()).text)
    assert "(none)" in Page(repo.branches._repr_html_()).text
    repo.close()
    assert_told_in_order(f"vzarr.Repository {repo.path} (closed)", Page(repo._repr_html_()).text)


def test_what_cannot_be_read_says_why_in_its_place(repo, monkeypatch):
    session = repo.checkout("main")

    def fail(*_, **__):
        raise CorruptError("commit <b> is damaged")

    monkeypatch.setattr(vzarr.Repository, "log", fail)
    shown = Page(repo._repr_html_()).text
    assert_told_in_order("log commit <b> is damaged tree / status On branch main", shown)
    repo.close()
    assert_told_in_order("vzarr.Session main", Page(session._repr_html_()).text)


# ── what is drawn ────────────────────────────────────────────────────────────────────────────────


def test_the_map_shows_the_chunks_that_changed(outputs):
    (picture,) = svgs(outputs["change"]._repr_html_())
    wanted = {}
    for chunk in outputs["change"].chunks:
        wanted.setdefault(chunk.coordinates, set()).add(chunk.kind)
    assert wanted == {(row, column): {"changed"} for row in (0, 1) for column in (3, 4, 5)}
    assert read_back(picture) == wanted


def test_the_map_of_an_append_shows_the_new_part(outputs):
    (picture,) = svgs(outputs["diff"]["sst"]._repr_html_())
    # 35 chunks of axis 0 in cells of 3: those from 30 on.
    assert read_back(picture) == {(row, column): {"added"} for row in (10, 11) for column in (0, 1)}
    assert "vz-area-added" in picture
    assert "vz-area-removed" not in picture


def test_moves_files_and_equal_chunks_have_no_map(outputs):
    html = outputs["status"]._repr_html_()
    assert len(svgs(html)) == 1
    assert_told_in_order("> array old-name → new-name", Page(html).text)
    names = [change.path for change in outputs["diff"] if svgs(change._repr_html_())]
    assert names == ["bathy", "gone", "sst"]


def test_another_grid_has_no_map(repo):
    with repo.transaction("main", "one") as store:
        zarr.create_array(store, name="a", shape=(8,), chunks=(2,), dtype="u1")[:] = 1
    with repo.transaction("main", "two") as store:
        zarr.create_array(store, name="a", shape=(8,), chunks=(4,), dtype="u1", overwrite=True)[
            :
        ] = 1
    change = repo.diff("main~1", "main")["a"]
    html = change._repr_html_()
    assert svgs(html) == []
    assert_told_in_order(str(change), Page(html).text)


def test_more_chunks_than_are_counted_are_told_so(repo, monkeypatch):
    monkeypatch.setattr("vzarr.chunkmap.MAX_COUNTED", 10)
    with repo.transaction("main", "one") as store:
        zarr.create_array(store, name="a", shape=(40, 40), chunks=(1, 1), dtype="u1")[:, :9] = 1
    with repo.transaction("main", "two") as store:
        zarr.open_array(store, path="a")[:, :9] = 2
    added, changed = repo.diff("main~2", "main~1")["a"], repo.diff("main~1", "main")["a"]
    assert_told_in_order(str(added), Page(added._repr_html_()).text)
    shown = Page(changed._repr_html_())
    assert_told_in_order("chunks: at least 10 changed", shown.text)
    assert_told_in_order("colour of the first change", shown.text)
    assert "chunks:  360 added" in Page(added._repr_html_()).text
    for change, kind in ((added, "added"), (changed, "changed")):
        (picture,) = svgs(change._repr_html_())
        cells = {(row // 3, column // 2) for row in range(40) for column in range(9)}
        assert read_back(picture) == {cell: {kind} for cell in cells}


def test_maps_of_many_arrays_are_bounded(repo):
    with repo.transaction("main", "one") as store:
        for name in "abcd":
            zarr.create_array(store, name=name, shape=(25,), chunks=(1,), dtype="u1")[:] = 1
    with repo.transaction("main", "two") as store:
        for name in "abcd":
            zarr.open_array(store, path=name)[:] = 2
    diff = repo.diff("main~1", "main")
    for room, maps in ((notebook._Room(cells=30), 2), (notebook._Room(chunks=30), 2)):
        parts = "".join(notebook._change(change, room, is_open=True) for change in diff)
        assert len(svgs(parts)) == maps
        assert parts.count("see this change alone for its chunk map") == 4 - maps
    assert "chunks: not counted" in parts
    assert len(svgs(diff._repr_html_())) == 4


def trace(svg):
    """Follow the lines of a graph from each commit down to the next ones."""
    nodes = {}
    starts = {}
    for name, body in re.findall(r"<(circle|path) ([^>]*)>", svg):
        facts = dict(re.findall(r'([\w-]+)="([^"]*)"', body))
        if name == "circle":
            nodes[int(facts["cx"]), int(facts["cy"])] = len(nodes)
        elif "edge" in facts["class"]:
            for x, y, turn in re.findall(r"M(\d+) (\d+)([vc][^M]*)", facts["d"]):
                aside = int(turn.split()[-2]) if turn[0] == "c" else 0
                down = int(re.findall(r"\d+", turn)[-1])
                assert down == ROW
                starts.setdefault((int(x), int(y)), set()).add((int(x) + aside, int(y) + down))
    assert list(nodes.values()) == sorted(nodes.values(), key=lambda n: [*nodes][n][1])

    def below(place):
        ends = set()
        for end in starts.get(place, ()):
            ends |= {nodes[end]} if end in nodes else below(end)
        return ends

    return {number: below(place) for place, number in nodes.items()}


@pytest.mark.parametrize(
    "history",
    [
        [(1, ())],
        [(3, (2,)), (2, (1,)), (1, ())],
        [(4, (3, 2)), (3, (1,)), (2, (1,)), (1, ())],
        [(6, (4, 5)), (5, (3, 2)), (4, (2, 3)), (3, (1,)), (2, (1,)), (1, ())],
        [(4, (3,)), (3, ()), (2, (1,)), (1, ())],
        [(9, (8, 7, 6)), (8, (5,)), (7, (5,)), (6, (4,)), (5, (4,)), (4, ())],
    ],
)
def test_the_graph_has_a_line_from_each_commit_to_its_parents(history):
    log = Log(commit(number, parents) for number, parents in history)
    place = {number: row for row, (number, _) in enumerate(history)}
    (picture,) = svgs(log._repr_html_(), "graph")
    assert trace(picture) == {
        place[number]: {place[parent] for parent in parents} for number, parents in history
    }
    merges = [number for number, parents in history if len(parents) > 1]
    assert picture.count("vz-merge") == len(merges)


def test_lines_to_what_is_not_in_the_log_end_at_once():
    log = Log([commit(9, (5,)), commit(4, (3, 2)), commit(2, (9,))])
    (picture,) = svgs(log._repr_html_(), "graph")
    assert trace(picture) == {0: set(), 1: {2}, 2: set()}
    assert re.search(r'd="(M\d+ \d+v11){3}" class="vz-more"', picture)


def test_a_graph_of_many_lines_is_not_wider_than_a_page():
    heads = [commit(200 + n, (n,)) for n in range(60)]
    (picture,) = svgs(Log([*heads, *(commit(n) for n in range(40))])._repr_html_(), "graph")
    width = int(re.search(r' width="(\d+)"', picture)[1])
    assert width < 400
    assert all(int(x) < width for x in re.findall(r'cx="(\d+)"', picture))
    assert all(int(x) < width for x in re.findall(r"M(\d+) ", picture))


# ── bounds ───────────────────────────────────────────────────────────────────────────────────────


def test_long_logs_and_messages_are_cut():
    huge = commit(1, (), "é" * 10**6, author="a" * 10**6, metadata={"k" * 10**6: ["v"] * 10**5})
    assert len(huge._repr_html_()) < 60_000
    assert len(Log([huge])._repr_html_()) < 20_000
    many = Log(commit(n, (n - 1,)) for n in range(5000, 0, -1))
    html = many._repr_html_()
    assert len(html) < 100_000
    assert Page(html).tags["li"] == notebook.MAX_COMMITS
    assert "… and 4,900 more" in html


def test_many_parents_and_facts_are_cut():
    octopus = commit(10**6, range(1000), metadata={f"k{n}": n for n in range(1000)})
    html = octopus._repr_html_()
    assert len(html) < 60_000
    assert "… and 950 more" in html
    assert len(Log([octopus])._repr_html_()) < 20_000


def test_long_trees_are_cut():
    lines = [f"├── node{n} (3,) f4" for n in range(50_000)]
    html = Tree("\n".join(["/", *lines]))._repr_html_()
    assert len(html) < 60_000
    assert "… and 49,801 more" in html
    assert len(Tree("/" + "x" * 10**6)._repr_html_()) < 20_000


def test_trees_are_read_as_they_were_drawn():
    tree = Tree(
        '/\n├── a (3,) f4\n│   └── ├── b\n└── c () [["x (1,)", "<i4"]]\n… and more than these 2'
    )
    # Lists lie in lists as nodes lie in each other.
    assert Page(tree._repr_html_()).lists == [
        (1, "/"), (2, "a"), (2, " (3,) f4"), (3, "├── b"),
        (2, "c"), (2, ' () [["x (1,)", "<i4"]]'), (1, "… and more than these 2"),
    ]  # fmt: skip


def test_wide_diffs_are_cut(repo):
    with repo.transaction("main", "many") as store:
        group = {"zarr_format": 3, "node_type": "group"}
        store.session.set("zarr.json", json.dumps(group).encode())
        for n in range(300):
            store.session.set(f"g{n}{'x' * 300}/zarr.json", json.dumps(group).encode())
        attributes = {f"key {n} {'k' * 500}": "v" * 10**4 for n in range(300)}
        wide = json.dumps({**group, "attributes": attributes}).encode()
        store.session.set("a/zarr.json", wide)
    with repo.transaction("main", "wide") as store:
        store.session.set("a/zarr.json", json.dumps(group).encode())
    html = repo.diff("main~2", "main")._repr_html_()
    assert len(html) < 200_000
    assert html.count('class="vz-mark ') == notebook.MAX_CHANGES
    assert "… and 202 more" in html
    html = repo.diff("main~1", "main")._repr_html_()
    assert len(html) < 60_000
    assert "… and 250 more" in html


def test_many_names_rows_and_problems_are_cut(repo):
    rows = ((f"{n}" + "b" * 10**4, commit(n)) for n in range(10**5))
    html = notebook.names_html(rows, 10**5, "branch")
    assert len(html) < 100_000
    assert "… and 99,950 more" in html
    usage = repo.du()
    (some,) = usage.commit_usage
    html = replace(usage, commit_usage=(some,) * 5000)._repr_html_()
    assert len(html) < 100_000
    assert "… and 4,900 more" in html
    problems = (Problem("chunk", "m" * 10**5, "c" * 10**5),) * 1000
    report = replace(repo.check(), problems=problems, path="p" * 10**6)
    assert len(report._repr_html_()) < 100_000
    assert len(ConflictError("x" * 10**6, conflicts=["y" * 10**6] * 100)._repr_html_()) < 60_000


def test_names_of_a_diff_may_be_anything():
    change = NodeChange(EVIL * 100, "group", "moved", old_path=EVIL)
    found = Page(Diff(EVIL, EVIL * 100, (change,))._repr_html_())
    assert "script" not in found.tags
    assert printable(EVIL) in found.text
    assert len(found.text) < 3_000


# ── markup and style ─────────────────────────────────────────────────────────────────────────────


def test_text_is_escaped_wherever_it_is_put():
    html = tag("p", EVIL, text(EVIL), tag("b", "&"), title=EVIL)
    found = Page(html)
    assert found.tags == {"p": 1, "bdi": 1, "b": 1}
    assert found.values("title") == [printable(EVIL)]
    assert found.texts == [printable(EVIL), printable(EVIL), "&"]
    assert join([Markup("<b></b>"), "<\x1b"], "&") == "<b></b>&amp;&lt;\\x1b"
    assert tag("p", Markup("<b></b>")) == "<p><b></b></p>"
    assert tag("p", "a\n\tb", lines=True) == "<p>a\n\tb</p>"
    assert tag("p", "a\nb") == "<p>a\\x0ab</p>"


def luminance(colour):
    channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK])
def test_text_can_be_read_in_both_themes(colours):
    for name, value in colours.items():
        if name not in ("page", "wash", "line"):
            assert contrast(value, colours["page"]) >= 4.5, name
            assert contrast(value, colours["wash"]) >= 4.2, name


def test_the_style_concerns_nothing_but_our_outputs():
    (style,) = Page(page(tag("p", "x"))).styles
    assert style.count("{") == style.count("}")
    flat = style.replace("@media(prefers-color-scheme:dark){", "")
    for selectors in re.findall(r"(?:^|\})([^{}]+)\{", flat):
        for selector in selectors.split(","):
            assert ".vz-out" in selector, selector
    used = set(re.findall(r"var\(--vz-(\w+)\)", style))
    assert used - {"lane"} <= set(LIGHT)
    assert set(LIGHT) == set(DARK)
    for variable in ("--jp-layout-color0", "--vscode-editor-foreground", "--vzarr-added"):
        assert f"var({variable}," in style
    # Last of all comes a page that says it is dark, or light, whatever the system prefers.
    order = [style.index(part) for part in ("@media", "[data-jp-theme-light=true]", "=false]")]
    assert all(first < second for first, second in pairwise(order))
