"""The workloads about history begin with the same data for all, and notice what goes wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.engines import H5PY, ICECHUNK, LOCAL_STORE, OCDBT, RAW, VERSIONED_HDF5, VZARR
from bench.harness import Run
from bench.workloads import history_operations as operations
from bench.workloads import history_writers as writers
from bench.workloads.history import ELEMENTS, Changes, fill, layout, part, percentile, values

ROOT = Path(__file__).parents[2]
CHUNKS = 20
ENGINES = (VZARR, ICECHUNK, LOCAL_STORE, H5PY, VERSIONED_HDF5, OCDBT)


def skip_unless_installed(engine):
    if missing := engine.missing():
        pytest.skip(missing)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_every_engine_is_filled_with_the_same_values(engine, tmp_path):
    """Some are filled past zarr: what zarr then reads must be as if it had written it."""
    skip_unless_installed(engine)
    fill(engine, tmp_path / "data", CHUNKS)
    with engine.open(tmp_path / "data") as opened:
        assert np.array_equal(opened.array[:], values(CHUNKS))


def test_a_raw_file_has_the_values_alone(tmp_path):
    fill(RAW, tmp_path / "data", CHUNKS)
    assert (tmp_path / "data").read_bytes() == values(CHUNKS).tobytes()


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_a_change_is_committed_and_timed(engine, tmp_path):
    skip_unless_installed(engine)
    run = Run(engine, tmp_path, tmp_path)
    with engine.create(run.path, layout(CHUNKS)) as opened:
        changes = Changes(run, opened, run.path)
        done = changes.put(part(3), np.full(ELEMENTS, 7.0))
        longer = changes.append(np.float64(5))
        assert 0 < done.commit < done.whole
        assert 0 < longer.commit < longer.whole
    with engine.open(run.path) as opened:
        expected = np.zeros(CHUNKS * ELEMENTS + 1)
        expected[part(3)], expected[-1] = 7, 5
        assert np.array_equal(opened.array[:], expected)
    # A file of HDF5 is synced for each change; so what it wrote is durable after all.
    assert run.durable is (engine in (VZARR, H5PY, VERSIONED_HDF5, OCDBT))


def test_a_percentile_is_one_of_the_values():
    series = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(series, percent) for percent in (0, 50, 90, 100)] == [1.0, 3.0, 5.0, 5.0]


@pytest.mark.parametrize("engine", [VZARR, ICECHUNK], ids=lambda engine: engine.name)
def test_a_diff_that_finds_too_little_is_an_error(engine, tmp_path):
    skip_unless_installed(engine)
    fill(engine, tmp_path / "data", CHUNKS)
    with engine.open(tmp_path / "data", write=True) as opened:
        repo = operations.operations(engine, opened.repo)
        old = repo.head()
        new = repo.commit(repo.edit([1, 2], 0))
        assert operations.time_diff(repo, old, new, 2) > 0
        assert operations.time_status(repo, [4, 5, 6], 1) > 0
        assert repo.head() == new
        assert repo.list() == CHUNKS + 1
        with pytest.raises(AssertionError, match="2 chunks are said to have changed, not 3"):
            operations.time_diff(repo, old, new, 3)


def test_a_commit_that_is_lost_fails_the_run(tmp_path, monkeypatch):
    """The figures are kept all the same."""
    lost = writers.Result(
        rate=3.0,
        waits=[0.25, 0.5],
        commits=[0.125, 0.25],
        rebased=1,
        conflicts=0,
        failures=["BusyError: busy"],
        lost_commits=1,
        lost_chunks=0,
    )
    monkeypatch.setattr(writers, "race", lambda *_: lost)
    run = Run(VZARR, tmp_path, tmp_path)
    with pytest.raises(AssertionError, match=r"^2 commits and chunks failed or are lost: \['Busy"):
        writers.compete(run, processes=1, commits=2)
    figures = {figure.name: figure.value for figure in run.figures}
    assert figures["commits"] == 3
    assert figures["wait, longest"] == 500
    assert figures["lost commits"] == 1
    # Of the peers it is a finding.
    writers.compete(Run(ICECHUNK, tmp_path, tmp_path), processes=1, commits=2)


def test_the_benchmark_of_the_tree_runs():
    command = [sys.executable, "-m", "bench.btree", "500"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["µs", "500"]
    assert {"get,", "update", "diff,", "merge", "check,"} <= {line[0] for line in lines}
