"""``vzarr export``."""

from __future__ import annotations

import zarr
from zarr.storage import ZipStore

import vzarr
from vzarr.car import CarFile


def test_export_writes_what_the_name_says(ocean, run_json, tmp_path):
    facts = run_json("export", ocean, tmp_path / "out.zarr")
    assert set(facts) == {
        *("target", "form", "commit", "path", "keys", "nbytes", "seconds", "root", "warnings"),
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
