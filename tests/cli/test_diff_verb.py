"""``diff`` and ``show``: values, sums, and what is left out."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

import vzarr
from tests.cli.test_process import on_terminal
from vzarr import statistics


def test_values(ocean, run):
    lines = run("diff", ocean, "main", "dev").stdout.splitlines()
    assert lines == [
        "~ array sst",
        "    chunks: 1 changed: (0, 0) [0:1, 0:3]",
        "    values: 3 of 3 changed by -3 … -1",
        "            minimum 0 → -1, mean 1 → -1, maximum 2 → -1",
    ]
    assert run("diff", ocean, "main", "dev", "--no-values").stdout.splitlines() == lines[:2]
    assert run("show", ocean, "dev").stdout.splitlines()[-4:] == lines


def test_values_that_came(ocean, run):
    lines = run("show", ocean).stdout.splitlines()
    assert lines[-1] == "    values: 6 added: minimum 5, mean 5, maximum 5"
    lines = run("show", ocean, "v1.0").stdout.splitlines()
    assert lines[-1] == "    values: 12 added: minimum 0, mean 5.5, maximum 11"
    lines = run("diff", ocean, "main", "v1.0").stdout.splitlines()
    assert lines[-1] == "    values: 6 removed: minimum 5, mean 5, maximum 5"


def test_values_as_json(ocean, run_json):
    (change,) = run_json("diff", ocean, "main", "dev")["changes"]
    assert change["values"] == {
        "changed": 3,
        "compared": 3,
        "added": 0,
        "removed": 0,
        "old": {"count": 3, "missing": 0, "minimum": 0, "maximum": 2, "mean": 1},
        "new": {"count": 3, "missing": 0, "minimum": -1, "maximum": -1, "mean": -1},
        "gained": None,
        "lost": None,
        "difference": {"count": 3, "missing": 0, "minimum": -3, "maximum": -1, "mean": -2},
        "left_out": "",
    }
    (change,) = run_json("diff", ocean, "main", "dev", "--no-values")["changes"]
    assert change["values"] is None


def test_what_looks_alike_is_told_apart(path, run):
    with vzarr.open(path) as repo:
        with repo.transaction("main", "make") as store:
            zarr.create_array(store, name="a", shape=(1,), dtype="f8")[:] = 1.0000001
        with repo.transaction("main", "alter") as store:
            zarr.open_array(store, path="a")[:] = 1.0000002
    assert "minimum 1.0000001 → 1.0000002" in run("show", path).stdout


def test_missing_values_are_counted(path, run):
    with vzarr.open(path) as repo:
        with repo.transaction("main", "make") as store:
            zarr.create_array(store, name="a", shape=(3,), dtype="f4")[:] = [1, 2, np.nan]
        with repo.transaction("main", "alter") as store:
            zarr.open_array(store, path="a")[:] = np.nan
    assert run("show", path).stdout.splitlines()[-2:] == [
        "    values: 2 of 3 changed",
        "            minimum 1 → none, mean 1.5 → none, maximum 2 → none, missing 1 → 3",
    ]


def test_large_changes_are_left_out(ocean, run, run_json, monkeypatch):
    class Small(statistics.Budget):
        def __init__(self):
            super().__init__(chunks=1)

    monkeypatch.setattr(statistics, "Budget", Small)
    assert "values: not compared, too many chunks changed" in run("show", ocean).stdout
    (change,) = run_json("show", ocean)["changes"]
    assert change["values"]["left_out"]
    assert "values: 6 added" in run("show", ocean, "--values").stdout
    # One is small enough.
    assert "values: 3 of 3 changed" in run("show", ocean, "dev").stdout


def test_a_chunk_that_cannot_be_read(ocean, run, monkeypatch):
    from vzarr.diff import _Source

    original = _Source.read

    def read(self, blob):
        if blob.length < 200:
            raise vzarr.CorruptError("chunk 123 is damaged")
        return original(self, blob)

    monkeypatch.setattr(_Source, "read", read)
    text = run("diff", ocean, "main", "dev").stdout
    assert "[0:1, 0:3]" in text
    assert "values: not compared, they cannot be read: chunk 123 is damaged" in text


def test_stat(ocean, run):
    with vzarr.open(ocean) as repo, repo.transaction("dev", "more") as store:
        zarr.create_group(store, path="north")
        big = zarr.create_array(store, name="north/big", shape=(90,), chunks=(1,), dtype="i1")
        big[:] = 1
    lines = run("diff", ocean, "v1.0", "dev", "--stat").stdout.splitlines()
    assert lines[:3] == [
        f" north     | {'added'}",
        f" north/big | 90 {'+' * 40}",
        " sst       |  3 +~",
    ]
    assert lines[3].startswith(" 3 nodes changed, 93 chunks: 92 added, 1 changed, ")
    assert run("diff", ocean, "main", "main", "--stat").stdout == ""
    assert "1 node changed, 2 chunks: 2 added" in run("show", ocean, "--stat").stdout


def test_colours(ocean, tmp_path):
    _, text = on_terminal("diff", ocean, "main", "dev", cwd=tmp_path)
    assert "\x1b[33m1 changed" in text
    assert "\x1b[36m[0:1, 0:3]" in text
    assert "\x1b[31m0\x1b[0m → \x1b[32m-1\x1b[0m" in text


@pytest.mark.parametrize("verb", [["diff", "main~1"], ["show", "main"]])
def test_documents_alone_need_no_values(ocean, spawn, verb):
    with vzarr.open(ocean) as repo, repo.transaction("main", "attribute") as store:
        zarr.open_group(store).attrs["x"] = 1
    program = f"""
import sys, vzarr.cli
vzarr.cli.commands.main([{verb[0]!r}, {str(ocean)!r}, {verb[1]!r}], standalone_mode=False)
assert not {{"numpy", "zarr"}} & set(sys.modules)
"""
    done = spawn(program=("-c", program))
    assert (done.returncode, done.stderr) == (0, "")
    assert "@x: None → 1" in done.stdout
