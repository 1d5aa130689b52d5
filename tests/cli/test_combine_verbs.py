"""The verbs merge, cherry-pick, revert and blame, as text and as JSON."""

from __future__ import annotations

import pytest
import zarr

import vzarr
from tests.cli.conftest import AUTHOR


@pytest.fixture
def parted(ocean):
    """A commit on main beside the one on dev: they change different chunks."""
    return write(ocean, "mend another corner", (1, slice(3, 6)), -2)


@pytest.fixture
def clashing(parted):
    """The commit on main changes the chunk that dev changes."""
    return write(parted, "mend it otherwise", (0, slice(0, 3)), -3)


def write(path, message: str, where: tuple[int, slice], value: int):
    with (
        vzarr.open(path, author=AUTHOR) as repo,
        repo.transaction("main", message) as store,
    ):
        zarr.open_array(store, path="sst")[where] = value
    return path


def head(path, branch: str = "main") -> str:
    with vzarr.open(path, "r") as repo:
        return repo.branches[branch]


# ── merge ────────────────────────────────────────────────────────────────────────────────────────


def test_merge(parted, run):
    result = run("merge", parted, "dev", "-m", "join")
    assert result.stdout == f"merge: branch main is now at {head(parted)}\n"
    with vzarr.open(parted, "r") as repo:
        assert repo.show("main").message == "join"
        assert len(repo.show("main").parents) == 2
    assert run("merge", parted, "dev").stdout == "branch main has all of dev already\n"
    assert run("merge", parted, "main", "--into", "dev").stdout.startswith(
        "fast-forward: branch dev"
    )
    assert head(parted, "dev") == head(parted)


def test_merge_json(ocean, run_json):
    facts = run_json("merge", ocean, "dev", "--no-ff")
    assert facts == {"kind": "merge", "ref": "dev", "into": "main", "commit": head(ocean)}
    assert run_json("merge", ocean, "dev")["kind"] == "up to date"
    assert run_json("merge", ocean, "main", "--into", "dev")["kind"] == "fast-forward"
    assert run_json("merge", ocean, "main", "--into", "dev")["kind"] == "up to date"


def test_merge_dry_run(parted, run, run_json):
    before = parted.read_bytes()
    lines = run("merge", parted, "dev", "-n").stdout.splitlines()
    assert lines == [
        "merge: dev into main",
        "~ array sst",
        "    chunks: 1 changed: (0, 0) [0:1, 0:3]",
    ]
    facts = run_json("merge", parted, "dev", "--dry-run")
    assert set(facts) == {"kind", "ref", "into", "bases", "changes", "conflicts"}
    assert len(facts["bases"]) == 1
    assert parted.read_bytes() == before


def test_merge_conflicts(clashing, run, run_json):
    before = head(clashing)
    assert "cannot merge dev into 'main'" in run("merge", clashing, "dev", code=1).stderr
    error = run_json("merge", clashing, "dev", code=1)["error"]
    assert error["type"] == "MergeConflict"
    conflict = {
        "path": "sst",
        "kind": "chunk",
        "document": None,
        "coordinates": [0, 0],
        "region": [[0, 1], [0, 3]],
    }
    assert error["conflicts"] == [conflict]
    assert run_json("merge", clashing, "dev", "--dry-run", code=1)["conflicts"] == [conflict]
    assert run("merge", clashing, "dev", "-n", code=1).stdout.splitlines()[-1].startswith("! sst")
    assert head(clashing) == before
    run("merge", clashing, "dev", "--strategy", "theirs")
    with vzarr.open(clashing, "r") as repo:
        assert zarr.open_array(repo.store("main"), path="sst")[0, 0] == -1


@pytest.mark.parametrize("verb", [("merge", "dev", "--into"), ("revert", "dev", "--on")])
def test_a_branch_that_is_not_there_is_named(ocean, run, verb):
    error = run(verb[0], ocean, verb[1], verb[2], "nope", code=1).stderr
    assert "there is no branch 'nope'; to list the branches" in error


# ── cherry-pick, revert ──────────────────────────────────────────────────────────────────────────


def test_cherry_pick(parted, run, run_json):
    facts = run_json("cherry-pick", parted, "dev")
    assert facts == {"branch": "main", "commit": head(parted), "picked": head(parted, "dev")}
    assert "nothing to commit" in run("cherry-pick", parted, "dev", code=1).stderr
    text = run("cherry-pick", parted, "main~1", "--onto", "dev", "-x").stdout
    assert text == f"branch dev is now at {head(parted, 'dev')}\n"
    with vzarr.open(parted, "r") as repo:
        assert repo.root_id("main") == repo.root_id("dev")
        assert "(cherry picked from commit" in repo.show("dev").message


def test_revert(parted, run, run_json):
    reverted = head(parted)
    text = run("revert", parted, "main").stdout
    assert text == f"branch main is now at {head(parted)}\n"
    with vzarr.open(parted, "r") as repo:
        assert repo.root_id("main") == repo.root_id("main~2")
    facts = run_json("revert", parted, "main", "-m", "back again")
    assert facts["commit"] == head(parted)
    assert facts["reverted"] != reverted
    run("merge", parted, "dev")
    assert "mainline" in run("revert", parted, "main", code=1).stderr
    run("revert", parted, "main", "--mainline", 1)


# ── blame ────────────────────────────────────────────────────────────────────────────────────────


def test_blame(parted, run):
    lines = run("blame", parted, "sst").stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(head(parted))
    assert "1 chunk [1:2, 3:6]  " in lines[0]
    assert lines[0].endswith("mend another corner")
    assert AUTHOR in lines[0]
    assert "2 chunks [2:3, 0:6]" in lines[1]
    assert lines[2].endswith("make the sea")


def test_blame_json(parted, run_json):
    facts = run_json("blame", parted, "sst", "dev", "--region", "[0, :3]")
    assert (facts["path"], facts["ref"], facts["commit"]) == ("sst", "dev", head(parted, "dev"))
    (change,) = facts["commits"]
    assert set(change) == {"id", "author", "time", "message", "or_before", "chunks"}
    assert change["id"] == head(parted, "dev")
    assert not change["or_before"]
    assert change["chunks"] == [{"coordinates": [0, 0], "region": [[0, 1], [0, 3]]}]


@pytest.mark.parametrize(
    ("region", "count"),
    [("0", 2), ("-1, 0:3", 1), (":, 0:2", 3), ("...", 6), ("..., 5", 3), ("", 6)],
)
def test_blame_takes_an_index_as_numpy_does(parted, run_json, region, count):
    commits = run_json("blame", parted, "sst", f"--region={region}")["commits"]
    assert sum(len(change["chunks"]) for change in commits) == count


@pytest.mark.parametrize("region", ["x", "0:10:2", "1.5", ",", "0, , 1"])
def test_blame_refuses_what_is_no_index(parted, run, region):
    assert "is no index" in run("blame", parted, "sst", "--region", region, code=2).stderr


def test_blame_names_what_it_does_not_find(parted, run):
    assert "there is no array 'nope'" in run("blame", parted, "nope", code=1).stderr
    assert "out of bounds" in run("blame", parted, "sst", "--region", "7", code=1).stderr
