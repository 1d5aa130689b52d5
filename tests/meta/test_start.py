"""What a start imports: nothing that only some programs need, or all of them would wait for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vzarr

# Half a second of imports for zarr, a tenth for numpy, some hundredths for each of the others.
HEAVY = {"asyncio", "click", "numpy", "rich", "subprocess", "xarray", "zarr"}
# What is done now and then, and what it needs.
SELDOM = {
    "backup",
    "blame",
    "check",
    "chunkmap",
    "combine",
    "compaction",
    "elements",
    "erasure",
    "expiry",
    "forecast",
    "garbage",
    "graphsvg",
    "inspection",
    "mending",
    "notebook",
    "recovery",
    "redaction",
    "registration",
    "renaming",
    "retelling",
    "salvage",
    "store",
    "usage",
    "walk",
}


def imported(program: str, *arguments: str) -> set[str]:
    """Give the modules that a program has imported when it ends, ours without the package."""
    tell = "import atexit, sys\natexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
    command = [sys.executable, "-c", tell + program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name.removeprefix("vzarr.") for name in done.stderr.split()}


@pytest.fixture
def file(path: Path) -> Path:
    with vzarr.open(path) as repo, repo.transaction("main", "first") as store:
        store.session.set("a", b"1")
    return path


def test_the_package_is_light():
    found = imported("import vzarr")
    assert "repository" in found
    assert not found & (HEAVY | SELDOM)


def test_a_session_without_zarr(file):
    program = """
import vzarr
with vzarr.open(sys.argv[1], author="Test") as repo:
    session = repo.session("main")
    session.set("a", b"2")
    session.commit("second")
    repo.diff("main~1", "main")
    repo.log()
    repo.tags.create("v1")
"""
    assert not imported(program, str(file)) & (HEAVY | SELDOM)


COMMAND_LINE = "import vzarr.cli\nvzarr.cli.main()"


@pytest.mark.parametrize(
    "verb", ["log", "branch", "tag", "status", "info", "tree", "ls", "reflog", "sessions"]
)
def test_a_verb_imports_what_it_needs(file, verb):
    found = imported(COMMAND_LINE, verb, str(file))
    assert not found & {*HEAVY - {"click"}, "console", *SELDOM}


# What a verb needs of what is seldom needed; numpy is for what counts by the million.
NEEDS: dict[str, tuple[list[str], set[str]]] = {
    "merge": (["dev"], {"combine", "forecast"}),
    "cherry-pick": (["dev"], {"combine", "forecast"}),
    "revert": (["main"], {"combine", "forecast"}),
    "squash": (["--since", "main~1"], {"combine", "forecast"}),
    "blame": (["a"], {"blame"}),
    "bisect": (["main~1", "main", "--", "true"], {"blame", "subprocess"}),
    "expire": (["--keep-last", "1"], {"expiry"}),
    "du": ([], {"usage", "numpy"}),
    "gc": ([], {"garbage", "numpy"}),
    "move": (["a", "b"], set()),
}


@pytest.mark.parametrize("verb", NEEDS)
def test_a_seldom_verb_imports_what_it_needs(path, verb):
    arguments, needed = NEEDS[verb]
    array = (
        b'{"zarr_format":3,"node_type":"array","shape":[1],"data_type":"uint8","chunk_grid":'
        b'{"name":"regular","configuration":{"chunk_shape":[1]}},"chunk_key_encoding":{"name":'
        b'"default"},"fill_value":0,"codecs":[{"name":"bytes"}]}'
    )
    with vzarr.open(path, author="Test") as repo:
        for branch, key, data in (
            ("main", "a/zarr.json", array),
            ("main", "a/c/0", b"1"),
            ("dev", "a/c/0", b"2"),
        ):
            if branch not in repo.branches:
                repo.branches.create(branch)
            with repo.transaction(branch, key) as store:
                store.session.set(key, data)
    program = f"import os\nos.environ['VZARR_AUTHOR'] = 'Test'\n{COMMAND_LINE}"
    found = imported(program, verb, str(path), *arguments)
    assert found & {*HEAVY - {"click"}, "console", *SELDOM} == needed & {*HEAVY, *SELDOM}
    assert needed <= found


def test_the_names_that_are_looked_up_late_are_there():
    for name in vzarr.__all__:
        assert getattr(vzarr, name).__name__ == name
