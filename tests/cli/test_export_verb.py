"""``vzarr export``."""

from __future__ import annotations

import pytest
import zarr
from zarr.storage import ZipStore

import vzarr
from vzarr.car import CarFile


def test_export_writes_what_the_name_says(ocean, run_json, tmp_path):
    facts = run_json("export", ocean, tmp_path / "out.zarr")
    assert set(facts) == {
        *("target", "form", "commit", "path", "keys", "nbytes", "seconds", "root", "warnings"),
        *("commits", "known", "names"),
    }
    assert zarr.open_array(tmp_path / "out.zarr", path="sst", mode="r")[2, 0] == 5
    assert run_json("export", ocean, tmp_path / "out.zip")["form"] == "zip"
    with ZipStore(tmp_path / "out.zip", mode="r") as store:
        assert zarr.open_group(store, mode="r").attrs["title"] == "sea"
    facts = run_json("export", ocean, tmp_path / "out.car")
    with CarFile(tmp_path / "out.car") as file:
        assert (facts["keys"], facts["root"]) == (file.count, str(file.root))


def test_export_of_a_part_of_a_tag(ocean, run, run_json, tmp_path):
    options = ("--ref", "v1.0", "--path", "sst")
    facts = run_json("export", ocean, tmp_path / "old.zarr", *options)
    with vzarr.open(ocean, "r") as repo:
        assert facts["commit"] == repo.tags["v1.0"]
    assert zarr.open_array(tmp_path / "old.zarr", mode="r").shape == (2, 6)
    told = run("export", ocean, tmp_path / "old.zarr", *options, "--overwrite").stdout
    assert told.startswith(f"{tmp_path}/old.zarr: sst of {facts['commit'][:12]}, 5 keys with ")


def test_export_says_what_is_wrong(ocean, run, run_json, tmp_path):
    (tmp_path / "out.zarr").mkdir()
    assert "--overwrite" in run("export", ocean, tmp_path / "out.zarr", code=1).stderr
    facts = run_json("export", ocean, tmp_path / "out.zip", "--path", "nix", code=1)
    assert facts["error"]["type"] == "NotFoundError"
    assert run("export", ocean, tmp_path / "out.zip", "--ref", "nix", code=1).stderr
    assert run("export", tmp_path / "nix.vzarr", tmp_path / "out.zip", code=1).stderr
    run("export", ocean, code=2)


def test_export_warns_of_large_blocks_in_a_line(ocean, spawn, tmp_path):
    with vzarr.open(ocean) as repo, repo.transaction() as store:
        store.session.set("large", bytes(2 << 20))
    done = spawn("export", ocean, tmp_path / "out.car")
    assert (done.returncode, done.stderr) == (0, "")
    (_, root, warning) = done.stdout.splitlines()
    assert root.startswith("root bafyrei")
    assert warning.startswith("warning: there are chunks of more than")


def test_export_of_a_history_and_its_import(ocean, run, run_json, spawn, tmp_path):
    pytest.importorskip("icechunk", minversion="2.3")
    refused = run("export", ocean, f"icechunk://{tmp_path}/ice", code=1).stderr
    assert "'sst/zarr.json' of commit" in refused
    assert "NaN or Infinity" in refused
    assert not (tmp_path / "ice").exists()
    with vzarr.open(ocean) as repo:
        for branch in repo.branches:
            repo.branches.reset(branch, "v1.0")
        with repo.transaction("dev", "warm") as store:
            zarr.open_array(store, path="sst")[0] = 30
    facts = run_json("export", ocean, f"icechunk://{tmp_path}/ice")
    with vzarr.open(ocean, "r") as repo:
        names = [*repo.branches, *repo.tags]
        commits = {commit.id for name in names for commit in repo.log(name)}
    assert (facts["form"], facts["known"], facts["names"]) == ("icechunk", 0, names)
    assert facts["commits"] == len(commits)
    # Without a word from Icechunk itself.
    done = spawn("export", ocean, f"icechunk://{tmp_path}/ice")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"0 commits replayed ({len(commits)} were there)" in done.stdout
    done = spawn("import", tmp_path / "ice", tmp_path / "back.vzarr")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{len(commits)} commits taken over (0 were here)" in done.stdout
    with vzarr.open(ocean, "r") as repo, vzarr.open(tmp_path / "back.vzarr", "r") as back:
        assert dict(repo.branches) == dict(back.branches)
        assert repo.tags.details() == back.tags.details()
    run("import", f"icechunk://{tmp_path}/nix", tmp_path / "new.vzarr", code=1)
    assert not (tmp_path / "new.vzarr").exists()
