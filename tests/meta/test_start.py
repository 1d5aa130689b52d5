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


@pytest.mark.parametrize(
    "verb", ["log", "branch", "tag", "status", "info", "tree", "ls", "reflog", "sessions"]
)
def test_a_verb_imports_what_it_needs(file, verb):
    program = "import vzarr.cli\nvzarr.cli.main()"
    assert not imported(program, verb, str(file)) & {"asyncio", "numpy", "xarray", "zarr", *SELDOM}


def test_the_names_that_are_looked_up_late_are_there():
    for name in vzarr.__all__:
        assert getattr(vzarr, name).__name__ == name
