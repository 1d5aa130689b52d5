"""Imports point down only, and the walls between the modules stand."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import vzarr

PACKAGE = Path(vzarr.__file__).parent

# From the bottom up; the modules of one line do not import each other.
LAYERS = [
    ["windows"],
    ["printable", "progress", "portable", "graph", "missing", "picture"],
    ["errors", "html"],
    ["format", "filelocks", "pages", "dagcbor", "chunkmap", "graphsvg"],
    [
        "lmdbfile",
        "node",
        "author",
        "documents",
        "inflation",
        "activity",
        "flushes",
        "system",
        "buffers",
        "window",
        "wire",
    ],
    ["gate", "guard", "datafile", "rawfile", "presence", "metadata", "novelty", "writeback"],
    ["btree", "draft", "intake", "imported", "icestorage"],
    ["lmdberrors"],
    ["txn", "memorymap"],
    ["access", "creation", "copying"],
    ["registry"],
    ["environment"],
    ["absence"],
    ["objects", "turns"],
    ["history", "marking", "plaincodec"],
    ["hierarchy", "refs", "elements", "leases", "traces", "icecommits"],
    ["resolution", "supply", "lineage", "statistics"],
    ["resizes", "bundlefile", "sampling", "indexdiff", "extents"],
    ["changes", "merge", "revisions", "tree", "committing", "liveness", "erasure", "census"],
    [
        "diff",
        "nodediff",
        "reads",
        "agreements",
        "workspace",
        "journal",
        "garbage",
        "expiry",
        "usage",
        "remotes",
        "forecast",
    ],
    [
        "icereading",
        "icewriting",
        "arrivals",
        "status",
        "pending",
        "blame",
        "autosave",
        "endings",
        "fork",
        "rewriting",
    ],
    ["session", "pipeline", "reception"],
    ["moving"],
    ["branches", "combine", "store", "sessions", "redaction", "contents"],
    ["serving"],
    ["dialing"],
    ["exchange"],
    ["bundle", "cloning"],
    ["unfinished", "directories", "archives", "foreign"],
    ["datasets"],
    ["evidence", "findings", "salvage", "outlets", "replay", "adoption"],
    ["sources", "importing"],
    ["inspection", "origins", "mending", "claims", "car"],
    ["walk", "retelling"],
    ["check", "renaming"],
    ["duplicate", "saving"],
    ["reports", "compaction", "backup", "recovery", "exporting"],
    ["handle"],
    ["transfer", "upkeep", "versions"],
    ["repository"],
    ["opening"],
    ["xarray", "fsspec", "registration", "flatmap", "notebook"],
    ["console"],
    ["output"],
    ["facts", "viewing"],
    ["command"],
    ["demo"],
    ["verbs_log", "verbs_view", "completion"],
    ["verbs_history"],
    [
        "verbs",
        "verbs_diff",
        "verbs_export",
        "verbs_import",
        "verbs_refs",
        "verbs_merge",
        "verbs_rescue",
        "verbs_space",
        "verbs_sync",
        "verbs_upkeep",
    ],
    ["cli"],
    ["__main__", "__init__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# What only these modules may import; zarr also inside functions of the ones that hand out arrays.
WALLS = {
    "lmdb": {"lmdberrors", "txn", "memorymap", "access", "creation", "copying", "check"},
    "blake3": {"format"},
    "xxhash": {"format"},
    "msgpack": {"format", "node", "wire"},
    "asyncio": {"store", "elements", "pipeline"},
    "click": {
        "cli",
        "command",
        "completion",
        "output",
        "verbs",
        "verbs_diff",
        "verbs_export",
        "verbs_history",
        "verbs_import",
        "verbs_log",
        "verbs_refs",
        "verbs_merge",
        "verbs_rescue",
        "verbs_space",
        "verbs_sync",
        "verbs_upkeep",
        "verbs_view",
    },
    "icechunk": {"icestorage", "icecommits", "icereading", "icewriting", "replay", "adoption"},
    "rich": {"console", "output", "demo"},
}


def imports(module: str, *, nested: bool) -> set[str]:
    """List what a module imports: at its top, or also inside functions."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    nodes = ast.walk(tree) if nested else iter(tree.body)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "vzarr":
                found |= {f"vzarr.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return found


MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))


def test_every_module_has_its_place():
    assert set(MODULES) == set(LEVEL)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    for name in imports(module, nested=False):
        if name.startswith("vzarr."):
            assert LEVEL[name.split(".")[1]] < LEVEL[module], f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_walls_stand(module):
    for name in imports(module, nested=True):
        top = name.split(".")[0]
        assert module in WALLS.get(top, {module}), f"{module} imports {name}"
