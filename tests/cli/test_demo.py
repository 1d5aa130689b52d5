"""The demo, on a made-up ocean and on the real one."""

from __future__ import annotations

import importlib.util
import json
import os

import numpy as np
import pytest
import zarr

import vzarr
from tests.cli.test_process import on_terminal
from tests.support import assert_sound
from vzarr import demo

needs_data = pytest.mark.skipif(
    importlib.util.find_spec("iris_sample_data") is None,
    reason="THE DEMO'S REAL DATA ARE NOT TESTED: pip install 'vzarr[demo]'",
)
KINDS = [
    pytest.param(["--synthetic"], id="synthetic"),
    pytest.param([], id="nemo", marks=needs_data),
]


@pytest.mark.parametrize("flags", KINDS)
def test_the_story_and_its_hints(tmp_path, spawn, flags):
    done = spawn("demo", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 170
    assert len(done.stdout.splitlines()) < 60

    path = tmp_path / "ocean.vzarr"
    assert_sound(path)
    with vzarr.open(path, "r") as repo:
        main = repo.log("main")
        assert [commit.message for commit in main] == [*reversed(demo.MONTHS), "create repository"]
        assert set(repo.branches) == {"main", "correction"}
        assert dict(repo.tags) == {"first-quarter": main[0].id}
        for number, commit in enumerate(reversed(main[:3]), 1):
            sst = zarr.open_array(repo.store(commit.id), path="tos", mode="r")
            assert sst.shape == (number, 330, 360)
            assert commit.id in done.stdout
        arrays = [
            zarr.open_array(repo.store(ref), path="tos", mode="r")[:]
            for ref in ("main", "correction")
        ]
        difference = arrays[1] - arrays[0]
        assert np.isfinite(difference[demo.BOX]).all()
        assert np.allclose(difference[demo.BOX], -demo.TOO_WARM, atol=1e-5)
        difference[demo.BOX] = 0
        assert np.nanmax(np.abs(difference)) == 0
        means = [float(np.nanmean(array[demo.BOX])) for array in arrays]
        assert f"{means[0]:.2f} → {means[1]:.2f} °C" in done.stdout
        assert 0.2 < np.isnan(arrays[0]).mean() < 0.6
        assert -3 < np.nanmin(arrays[0]) < 5 < 25 < np.nanmax(arrays[0]) < 36

    *_, log, tree, diff, _, first, second, third = done.stdout.splitlines()
    for line in (log, tree, diff):
        program, *arguments = line.split()
        assert program == "vzarr"
        done = spawn(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
    assert "~ array tos" in done.stdout
    python = "\n".join([first.strip(), second.strip(), f"print({third.strip()}.shape)"])
    if not flags:
        python = python.replace(".shape", ".tos.shape")
    done = spawn(program=("-c", python))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == "(2, 330, 360)"


@pytest.mark.parametrize("flags", KINDS)
def test_the_facts(tmp_path, spawn, flags):
    done = spawn("demo", *flags, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    path = tmp_path / "ocean.vzarr"
    assert facts["path"] == str(path)
    assert facts["file_bytes"] == path.stat().st_size
    assert facts["time_steps"] == {"main": 3, "main~1": 2}
    assert facts["interrupted"]["chunks"] == 6
    assert facts["interrupted"]["before"] == facts["interrupted"]["after"]
    assert facts["correction"]["region"] == [[1, 2], [225, 245], [100, 140]]
    with vzarr.open(path, "r") as repo:
        assert facts["branches"] == dict(repo.branches)
        assert facts["tags"] == dict(repo.tags)
        head, root_id = repo.branches["main"], repo.root_id("main")
        assert facts["interrupted"]["after"] == {"head": head, "root_id": root_id}
        sizes = [repo.session(version["commit"]).sums()[1] for version in facts["versions"]]
    assert [version["bytes"] for version in facts["versions"]] == sizes
    assert facts["versions_bytes"] == sum(sizes)
    # The claim of the demo, with room for the file's own structure.
    assert facts["file_bytes"] < facts["versions_bytes"] / 2


def test_it_keeps_what_is_there(tmp_path, spawn):
    path = tmp_path / "ocean.vzarr"
    path.write_text("mine")
    for flags in ([], ["--force"]):
        done = spawn("demo", "--synthetic", *flags)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.count("\n") == 1
        assert path.read_text() == "mine"
    assert "no vzarr repository" in done.stderr


def test_force_replaces_a_repository(tmp_path, spawn):
    directory = tmp_path / "a b"
    directory.mkdir()
    arguments = ("demo", "--synthetic", "--directory", "a b")
    first = spawn(*arguments)
    assert "vzarr log 'a b/ocean.vzarr'" in first.stdout
    with vzarr.open(directory / "ocean.vzarr", "r") as repo:
        identity = repo.id
    refused = spawn(*arguments)
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    assert refused.stderr.count("\n") == 1
    with vzarr.open(directory / "ocean.vzarr", "r") as repo:
        assert repo.id == identity
    assert spawn(*arguments, "--force").returncode == 0
    with vzarr.open(directory / "ocean.vzarr", "r") as repo:
        assert repo.id != identity


@pytest.mark.parametrize("missing", ["xarray", "h5netcdf", "iris_sample_data"])
def test_without_the_extra(tmp_path, spawn, missing):
    program = f"import sys; sys.modules[{missing!r}] = None; import vzarr.cli; vzarr.cli.main()"
    done = spawn("demo", program=("-c", program))
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install 'vzarr[demo]'" in done.stderr
    assert "--synthetic" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_synthetic_needs_no_extra(tmp_path, spawn):
    names = ["xarray", "h5netcdf", "h5py", "iris_sample_data", "pandas", "fsspec", "dask"]
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({names!r})); "
        "import vzarr.cli; vzarr.cli.main()"
    )
    assert spawn("demo", "--synthetic", program=("-c", program)).returncode == 0


def test_nowhere_to_go(tmp_path, spawn):
    done = spawn("demo", "--synthetic", "--directory", "nowhere")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    (tmp_path / "file").touch()
    assert spawn("demo", "--synthetic", "--directory", "file").returncode == 2
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("flags", KINDS)
def test_on_a_terminal(tmp_path, flags):
    code, text = on_terminal("demo", *flags, cwd=tmp_path)
    assert code == 0
    assert "appending" in text
    assert "\x1b[1m" in text
    assert "Nothing changed." in text
    with vzarr.open(tmp_path / "ocean.vzarr", "r") as repo:
        head = repo.branches["main"]
    assert head[:12] in text
    assert head[:13] not in text
