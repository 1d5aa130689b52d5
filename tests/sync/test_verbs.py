"""The verbs between repositories."""

from __future__ import annotations

import pytest
import zarr

import vzarr

# The command line's own ways to be run, and its repository.
from tests.cli.conftest import (  # noqa: F401
    _ocean,
    _surroundings,
    ocean,
    run,
    run_json,
    spawn,
)
from tests.support import assert_sound


@pytest.fixture
def clone(ocean, tmp_path, run):  # noqa: F811
    path = tmp_path / "clone.vzarr"
    run("clone", ocean, path)
    yield path
    assert_sound(path)


def _commit(path, value):
    with vzarr.open(path) as repo:
        with repo.transaction("main", f"value {value}") as store:
            zarr.open_array(store, path="sst")[0, :3] = value
        return repo.branches["main"]


def test_there_and_back(ocean, clone, run, run_json):  # noqa: F811
    remotes = run_json("remote", clone)["remotes"]
    assert remotes == [{"name": "origin", "url": str(ocean), "path": ""}]
    commit = _commit(clone, 5)
    assert "fast-forward" in run("push", clone).stdout
    assert run_json("show", ocean)["commit"]["id"] == commit
    theirs = _commit(ocean, 6)
    assert f"origin/main is at {theirs[:12]}" in run("fetch", clone).stdout
    assert run_json("log", clone, "origin/main")["commits"][0]["id"] == theirs
    report = run_json("pull", clone)
    assert (report["how"], report["branch"], report["new"]) == ("fast-forward", "main", theirs)
    assert report["fetch"]["url"] == str(ocean)
    pushed = run_json("push", clone, "origin", "main", "dev", "--tags")
    assert {update["how"] for update in pushed["updates"]} == {"up to date"}
    assert pushed["commits"] == 0


def test_what_is_refused(ocean, clone, run, run_json):  # noqa: F811
    _commit(ocean, 6)
    _commit(clone, 7)
    result = run("push", clone, code=1)
    assert "Pull first" in result.stderr
    assert result.stderr.count("\n") == 1
    error = run_json("push", clone, code=1)["error"]
    assert error["type"] == "NotFastForwardError"
    error = run_json("pull", clone, code=1)["error"]
    assert error["type"] == "MergeConflict"
    assert error["conflicts"]
    assert run_json("pull", clone, "--strategy", "ours")["how"] == "merge"
    run("push", clone)
    _commit(ocean, 8)
    _commit(clone, 9)
    assert run_json("push", clone, "--force")["updates"][0]["how"] == "forced"


def test_prune(ocean, clone, run, run_json):  # noqa: F811
    run("branch", ocean, "gone")
    run("fetch", clone)
    run("branch", ocean, "--delete", "gone")
    assert run_json("fetch", clone)["pruned"] == []
    assert "origin/gone is not there any more" in run("fetch", clone, "--prune").stdout
    assert "origin/gone" in run("log", clone, "origin/gone", code=1).stderr
    error = run("fetch", clone, ocean, "--prune", code=1).stderr
    assert "prune= is for a remote with a name" in error


def test_remotes(ocean, clone, run, run_json):  # noqa: F811
    run("remote", clone, "add", "lab", "ada@example.org:x.vzarr", "--path", "sst")
    line = run("remote", clone, "list").stdout.splitlines()[0]
    assert line.split() == ["lab", "ada@example.org:x.vzarr", "sst"]
    assert [each["name"] for each in run_json("remote", clone, "remove", "origin")["remotes"]] == [
        "lab"
    ]
    for wrong in (
        ("add", "x"),
        ("list", "x"),
        ("remove",),
        ("remove", "lab", "url"),
        ("remove", "lab", "--path", "x"),
        ("sing",),
    ):
        run("remote", clone, *wrong, code=2)
    assert run_json("remote", clone, "remove", "none", code=1)["error"]["type"] == "NotFoundError"


def test_parts(ocean, tmp_path, run, run_json):  # noqa: F811
    _commit(ocean, 1)
    path = tmp_path / "shallow.vzarr"
    report = run_json("clone", ocean, path, "--branch", "main", "--depth", "1", "--path", "sst")
    assert list(report["branches"]) == ["main"]
    assert len(run_json("log", path)["commits"]) == len(run_json("log", ocean)["commits"])
    assert "left out" in run("check", path).stdout
    shown = run("show", path)
    assert "value 1" in shown.stdout
    assert "What it changed cannot be told" in shown.stdout
    assert run_json("show", path)["changes"] is None
    error = run_json("diff", path, "main~1", code=1)["error"]
    assert error["type"] == "AbsentError"
    run("fetch", path, "--complete")
    run("diff", path, "main~1")
    assert "left out" not in run("check", path).stdout
    assert_sound(path)


def test_bundles(ocean, clone, tmp_path, run, run_json):  # noqa: F811
    commit = _commit(ocean, 5)
    out = tmp_path / "march.vzb"
    report = run_json("bundle", ocean, out, "main", "--since", "main~1")
    assert report["refs"] == {"main": commit}
    assert report["commits"] == 1
    assert len(report["needs"]) == 1
    assert run_json("bundle", ocean, out, code=1)["error"]["type"] == "AlreadyExistsError"
    taken = run_json("unbundle", clone, out)
    assert taken["updates"][0]["how"] == "fast-forward"
    commit = _commit(ocean, 6)
    run("bundle", ocean, tmp_path / "april.vzb", "main", "--since", out)
    assert "merge" not in run("pull", clone, tmp_path / "april.vzb").stdout
    assert run_json("show", clone)["commit"]["id"] == commit


def test_a_terminal_sees_how_far_it_is(ocean, tmp_path, spawn):  # noqa: F811
    result = spawn("clone", ocean, tmp_path / "clone.vzarr")
    assert result.returncode == 0
    assert result.stderr == ""
    result = spawn("clone", ocean, tmp_path / "clone.vzarr")
    assert result.returncode == 1
    assert result.stderr.startswith("vzarr: error: ")
    assert "exists" in result.stderr


def test_serve_is_not_listed(run):  # noqa: F811
    assert "serve" not in run("--help").stdout
    run("serve", "x", code=2)
