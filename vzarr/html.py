"""Markup for notebooks: tags, text made harmless, and the one style of all outputs.

A ``Markup`` is known to be well-formed; every other string is text of whoever wrote the file, and
``tag`` escapes it wherever it is put. So nothing has to be remembered: what is forgotten is escaped
once too often, and never too rarely. There are no scripts, and no ids, which would clash where a
page shows two outputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import final

from vzarr.printable import printable

ROW_PIXELS = 22
"""The height of a line that stands beside a picture of lines."""
LONGEST_TEXT = 300
"""So many characters of a text are shown; a name or a message may have megabytes."""


@final
class Markup(str):
    """A piece of HTML or SVG that is well-formed, and safe to show."""

    __slots__ = ()


def clip(text: str, limit: int = LONGEST_TEXT) -> str:
    """Give a text, or the beginning of a long one."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def tag(
    name: str, *children: str, css: str = "", lines: bool = False, **attributes: str | float
) -> Markup:
    """Make an element; children and values that are not ``Markup`` are escaped.

    ``css`` are its classes, without their prefix ``vz-``. In the names of attributes ``_`` stands
    for ``-``. With ``lines``, tabs and line ends of the text stay.
    """
    if css:
        attributes["class"] = " ".join(f"vz-{one}" for one in css.split())
    heads = "".join(
        f' {key.replace("_", "-")}="{escape(printable(str(value)))}"'
        for key, value in attributes.items()
    )
    inner = "".join(
        child if isinstance(child, Markup) else escape(printable(child, lines=lines))
        for child in children
    )
    return Markup(f"<{name}{heads}>{inner}</{name}>")


def svg(label: str, *parts: str, css: str, width: float, height: float, margin: int = 0) -> Markup:
    """Make a picture, which ``label`` describes to who does not see it.

    Its origin is ``margin`` away from the corner, to which ``width`` and ``height`` reach.
    """
    return tag(
        "svg",
        tag("title", label),
        *parts,
        css=css,
        role="img",
        aria_label=label,
        width=width,
        height=height,
        viewBox=f"{-margin} {-margin} {width} {height}",
    )


def join(parts: Iterable[str], between: str = "") -> Markup:
    """Put pieces one after the other; those that are not ``Markup`` are escaped."""
    return Markup(
        escape(printable(between)).join(
            part if isinstance(part, Markup) else escape(printable(part)) for part in parts
        )
    )


def text(value: str, css: str = "", *, limit: int = LONGEST_TEXT, lines: bool = False) -> Markup:
    """Show a text of the file as a unit: what it is written in turns nothing around beside it."""
    return tag("bdi", clip(value, limit), css=css, lines=lines)


def spoken(mark: str, meaning: str, css: str = "") -> Markup:
    """Show a mark that a screen reader, and a pointer that rests on it, spell out."""
    return tag("span", mark, css=css, role="img", aria_label=meaning, title=meaning)


def table(heads: Iterable[str], rows: Iterable[Iterable[str]], *, left: Iterable[int]) -> Markup:
    """Make a table; columns that are not among ``left`` hold numbers, and align to the right."""
    kinds = dict.fromkeys(left, "left")
    head = join(
        tag("th", cell, css=kinds.get(number, "right"), scope="col")
        for number, cell in enumerate(heads)
    )
    body = join(
        tag(
            "tr",
            *(tag("td", cell, css=kinds.get(number, "right")) for number, cell in enumerate(cells)),
        )
        for cells in rows
    )
    return tag("table", tag("thead", tag("tr", head)), tag("tbody", body), css="table")


def facts(rows: Iterable[tuple[str, str]]) -> Markup:
    """Make a list of names and values."""
    pairs = (tag("dt", name) + tag("dd", value) for name, value in rows)
    return tag("dl", Markup("".join(pairs)), css="facts")


def fold(summary: str, *body: str, is_open: bool = False, css: str = "") -> Markup:
    """Make a part that opens and closes."""
    inner = (tag("summary", summary), tag("div", *body, css="body"))
    if is_open:
        return tag("details", *inner, css=f"fold {css}", open="open")
    return tag("details", *inner, css=f"fold {css}")


def more(number: int, what: str = "") -> Markup:
    """Say how much is not shown; nothing if that is nothing."""
    if number <= 0:
        return Markup()
    return tag("p", f"… and {number:,} more{what}", css="quiet")


def page(*parts: str) -> str:
    """Make an output: all its parts, and the style, in one block."""
    return str(tag("div", tag("style", Markup(STYLE)), *parts, css="out"))


# ── the style ────────────────────────────────────────────────────────────────────────────────────

LIGHT = {
    "page": "#ffffff",
    "text": "#1f2328",
    "quiet": "#59636e",
    "line": "#d1d9e0",
    "wash": "#f6f8fa",
    "added": "#1a7f37",
    "removed": "#cf222e",
    "changed": "#9a6700",
    "moved": "#0969da",
    "branch": "#1a7f37",
    "tag": "#8250df",
}
DARK = {
    "page": "#111111",
    "text": "#e6edf3",
    "quiet": "#9ba3ad",
    "line": "#444c56",
    "wash": "#1c2128",
    "added": "#3fb950",
    "removed": "#f9655d",
    "changed": "#d29922",
    "moved": "#58a6ff",
    "branch": "#3fb950",
    "tag": "#bc8cff",
}
# What notebooks themselves call these: JupyterLab with all that builds on it, and VS Code. Their
# colours of success and failure are made for surfaces, and too pale for text.
_HOSTS = {
    "page": ("--jp-layout-color0", "--vscode-editor-background"),
    "text": ("--jp-content-font-color0", "--vscode-editor-foreground"),
    "quiet": ("--jp-content-font-color2", "--vscode-descriptionForeground"),
    "line": ("--jp-border-color2", "--vscode-editorWidget-border"),
    "wash": ("--jp-cell-editor-background", "--vscode-textCodeBlock-background"),
}
# How a page says which theme it has, whatever the system prefers: JupyterLab and nbconvert, VS
# Code, Colab, Sphinx, MkDocs.
_IS_LIGHT = (
    "[data-jp-theme-light=true]",
    ".vscode-light",
    "html[theme=light]",
    "html[data-theme=light]",
    "[data-md-color-scheme=default]",
)
_IS_DARK = (
    "[data-jp-theme-light=false]",
    ".vscode-dark",
    "html[theme=dark]",
    "html[data-theme=dark]",
    "[data-md-color-scheme=slate]",
)


def _palette(colours: dict[str, str]) -> str:
    """Set the colours: the page's own choice first, the notebook's next, ours last."""
    rules = []
    for name, value in colours.items():
        for variable in reversed((f"--vzarr-{name}", *_HOSTS.get(name, ()))):
            value = f"var({variable},{value})"
        rules.append(f"--vz-{name}:{value}")
    return ";".join(rules)


def _where(hosts: Iterable[str]) -> str:
    return ",".join(f"{host} .vz-out" for host in hosts)


# Notebooks have rules of their own for tables and lists, which a class named twice outweighs.
_RULES = """
.vz-out{color:var(--vz-text);background:var(--vz-page);font:13px/1.5 system-ui,sans-serif;
padding:6px 8px;overflow-x:auto;text-align:left}
.vz-out.vz-out p,.vz-out.vz-out ol,.vz-out.vz-out ul,.vz-out.vz-out dl,.vz-out.vz-out pre,
.vz-out.vz-out table{margin:2px 0}
.vz-out .vz-head{font-weight:600}
.vz-out .vz-quiet{color:var(--vz-quiet);font-weight:400}
.vz-out .vz-id,.vz-out .vz-code,.vz-out .vz-tree{font-family:ui-monospace,Menlo,Consolas,
"DejaVu Sans Mono",monospace;font-size:12px}
.vz-out .vz-id{color:var(--vz-quiet)}
.vz-out .vz-added{color:var(--vz-added)}.vz-out .vz-removed{color:var(--vz-removed)}
.vz-out .vz-changed{color:var(--vz-changed)}.vz-out .vz-moved{color:var(--vz-moved)}
.vz-out .vz-mark{display:inline-block;width:1.1em;font:600 13px ui-monospace,monospace}
.vz-out .vz-name{display:inline-block;max-width:24em;overflow:hidden;text-overflow:ellipsis;
white-space:nowrap;vertical-align:bottom;padding:0 6px;border:1px solid;border-radius:9px;
font-size:11px;line-height:16px;margin:0 2px}
.vz-out .vz-branch{color:var(--vz-branch)}.vz-out .vz-tag{color:var(--vz-tag)}
.vz-out .vz-fold>summary{cursor:pointer;display:list-item;padding:1px 0}
.vz-out .vz-fold>summary:hover{background:var(--vz-wash)}
.vz-out .vz-fold>.vz-body{padding:0 0 4px 16px}
.vz-out .vz-lines{white-space:pre-wrap;overflow-wrap:anywhere}
.vz-out.vz-out .vz-table{border-collapse:collapse;border:0;font-size:12px;color:inherit;
width:auto;margin:4px 0}
.vz-out.vz-out .vz-table tr{background:none;border:0;border-bottom:1px solid var(--vz-line)}
.vz-out.vz-out .vz-table th,.vz-out.vz-out .vz-table td{padding:2px 12px 2px 0;border:0;
vertical-align:top;max-width:40em;white-space:pre-wrap;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
.vz-out.vz-out .vz-table th{color:var(--vz-quiet);font-weight:400}
.vz-out.vz-out .vz-table .vz-left{text-align:left}
.vz-out.vz-out .vz-table .vz-right{text-align:right;white-space:nowrap}
.vz-out.vz-out .vz-facts{display:grid;grid-template-columns:max-content minmax(0,1fr);
gap:0 12px;font-size:12px}
.vz-out.vz-out .vz-facts dt{color:var(--vz-quiet);font-weight:400;margin:0;padding:0;float:none;
width:auto;text-align:left;max-width:24em;overflow-wrap:anywhere}
.vz-out.vz-out .vz-facts dd{margin:0;padding:0;width:auto;overflow-wrap:anywhere}
.vz-out.vz-out .vz-plain,.vz-out.vz-out .vz-tree,.vz-out.vz-out .vz-tree ul{list-style:none;
padding:0;margin:0}
.vz-out.vz-out .vz-tree li{margin:0;padding:0;white-space:pre}
.vz-out.vz-out .vz-tree .vz-body{padding:0 0 0 14px;margin-left:4px;
border-left:1px solid var(--vz-line)}
.vz-out .vz-map{display:block;margin:4px 0 2px}
.vz-out .vz-cells-added{fill:var(--vz-added)}.vz-out .vz-cells-removed{fill:var(--vz-removed)}
.vz-out .vz-cells-changed{fill:var(--vz-changed)}
.vz-out .vz-glyphs{stroke:var(--vz-page);stroke-width:1.5;fill:none}
.vz-out .vz-grid{stroke:var(--vz-line);stroke-width:1;fill:none}
.vz-out .vz-area-both{fill:var(--vz-wash);stroke:var(--vz-line)}
.vz-out .vz-area-added{fill:var(--vz-added);fill-opacity:.14;stroke:var(--vz-added)}
.vz-out .vz-area-removed{fill:var(--vz-removed);fill-opacity:.14;stroke:var(--vz-removed);
stroke-dasharray:3 2}
.vz-out .vz-log{display:flex;gap:8px}
.vz-out .vz-graph{flex:none}.vz-out .vz-edge{fill:none;stroke-width:2}
.vz-out .vz-more{fill:none;stroke:var(--vz-quiet);stroke-width:2;stroke-dasharray:2 2}
.vz-out .vz-lane-0{--vz-lane:var(--vz-moved)}.vz-out .vz-lane-1{--vz-lane:var(--vz-added)}
.vz-out .vz-lane-2{--vz-lane:var(--vz-tag)}.vz-out .vz-lane-3{--vz-lane:var(--vz-changed)}
.vz-out .vz-lane-4{--vz-lane:var(--vz-removed)}
.vz-out path[class*=vz-lane]{stroke:var(--vz-lane)}
.vz-out circle{fill:var(--vz-lane);stroke:var(--vz-lane);stroke-width:2}
.vz-out circle.vz-merge{fill:var(--vz-page)}
.vz-out.vz-out .vz-commits{list-style:none;padding:0;margin:0;min-width:0}
.vz-out.vz-out .vz-commits li{height:ROWpx;line-height:ROWpx;margin:0;white-space:nowrap}
""".replace("ROW", str(ROW_PIXELS))
STYLE = (
    f".vz-out{{{_palette(LIGHT)}}}"
    f"@media(prefers-color-scheme:dark){{.vz-out{{{_palette(DARK)}}}}}"
    f"{_where(_IS_LIGHT)}{{{_palette(LIGHT)}}}"
    f"{_where(_IS_DARK)}{{{_palette(DARK)}}}" + _RULES.replace("\n", "")
)
