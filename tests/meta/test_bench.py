"""The benchmarks run, at sizes that only prove it, and what they report is what was measured."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import system, targets
from bench.__main__ import main
from bench.engines import ICECHUNK, LOCAL_STORE, RAW, VZARR, VZARR_ZARR_PIPELINE, Engine
from bench.harness import Case, Run, Workload, environment
from bench.report import write_report
from bench.results import Measured, Results
from bench.run import measure
from bench.workloads import all_workloads
from bench.workloads.history import ELEMENTS
from bench.workloads.history_writers import Part, Written, judge

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")

ROOT = Path(__file__).parents[2]

# What needs no package beyond those of the tests.
INSTALLED = ["vzarr", "zarr LocalStore", "zarr MemoryStore", "h5py", "raw file"]


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    # The system's temporary directory may be in memory, where no read is cold.
    with tempfile.TemporaryDirectory(dir=ROOT, prefix=".bench-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def measured(directory: Path) -> tuple[Results, str]:
    """All workloads, measured and reported."""
    results, report = directory / "results.json", directory / "report.md"
    command = [sys.executable, "-m", "bench", "--size", "tiny", "--here", "--directory", directory]
    outputs = ["--results", results, "--report", report]
    done = subprocess.run(
        [*command, *outputs, "--engines", *INSTALLED], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return Results.load(results), report.read_text()


# ── workloads ────────────────────────────────────────────────────────────────────────────────────


def test_every_workload_gives_figures(measured):
    results, _ = measured
    for workload in all_workloads().values():
        cases = [case.name for case in workload.sizes["tiny"]]
        assert results.cases(workload.name) == cases
        for case in workload.sizes["tiny"]:
            names = [engine.name for engine in workload.engines_of(case)]
            expected = [name for name in names if name in INSTALLED]
            assert results.engines(workload.name, case.name) == expected
            assert all(results.figures(workload.name, case.name))
    assert not [run for run in results.runs if run.failed or not run.figures]


def test_every_size_asks_the_same_engines_and_charts_what_is_measured(measured):
    results, _ = measured
    for workload in all_workloads().values():
        assert set(workload.sizes) == {"tiny", "laptop", "large"}
        for cases in workload.sizes.values():
            assert len({case.name for case in cases}) == len(cases)
            assert all(workload.engines_of(case) for case in cases)
        (first, *_) = results.cases(workload.name)
        measured_first = set(results.figures(workload.name, first))
        assert not workload.chart or measured_first.intersection(workload.chart)


def test_a_run_has_a_process_and_an_environment_of_its_own(directory, monkeypatch):
    monkeypatch.setenv("VZARR_PIPELINE", "zarr")
    monkeypatch.setenv("ZARR_ASYNC__CONCURRENCY", "3")
    assert not {"VZARR_PIPELINE", "ZARR_ASYNC__CONCURRENCY"} & set(environment(VZARR))
    assert environment(VZARR_ZARR_PIPELINE)["VZARR_PIPELINE"] == "zarr"
    command = [sys.executable, "-m", "bench.run", "bulk", RAW.name, "tiny", str(directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["durable"]
    assert not found["failed"]
    assert {"write", "warm read", "cold read"} <= {figure["name"] for figure in found["figures"]}


def test_what_an_engine_cannot_do_is_reported_and_not_hidden(directory, monkeypatch, capsys):
    """A run that raises fails, and so does the suite; the others still run."""

    def some_fail(run: Run) -> None:
        run.record("before", 1, "s")
        if run.engine is LOCAL_STORE:
            raise OSError("disk on fire\nand more")

    workload = Workload(
        number=1,
        name="some",
        title="Some fail",
        sentence="Some fail.",
        engines=(RAW, LOCAL_STORE, replace(ICECHUNK, name="absent")),
        sizes={"tiny": (Case("one"),)},
        measure=some_fail,
    )
    monkeypatch.setattr("bench.__main__.all_workloads", lambda: {"some": workload})
    monkeypatch.setattr("bench.report.all_workloads", lambda: {"some": workload})
    monkeypatch.setattr(Engine, "missing", lambda self: "no x" if self.name == "absent" else "")
    report = directory / "some.md"
    with pytest.raises(SystemExit, match="some runs failed: zarr LocalStore"):
        main(["--size", "tiny", "--here", "--directory", str(directory), "--report", str(report)])
    assert "absent is left out: no x" in capsys.readouterr().err
    text = report.read_text()
    assert "zarr LocalStore failed: OSError: disk on fire\n" in text
    assert "| left out | absent: no x |" in text
    assert "| raw file | yes | 1 |" in text


def test_engines_that_are_not_there_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--size", "tiny", "--engines", "vzar"])
    assert "no engine is called vzar; there are: h5py, " in capsys.readouterr().err


def test_one_workload_can_be_measured_anew(directory, monkeypatch):
    """The others stay as they were, unless they come from another size or machine."""
    answers = iter((1.0, 2.0, 3.0))

    def named(name: str) -> Workload:
        def ask(run: Run) -> None:
            run.record("answer", next(answers), "s")

        return Workload(1, name, name, "", (RAW,), {"tiny": (Case("c"),)}, ask)

    workloads = {name: named(name) for name in ("one", "two")}
    monkeypatch.setattr("bench.__main__.all_workloads", lambda: workloads)
    path = directory / "added.json"
    here = ["--size", "tiny", "--here", "--directory", str(directory), "--results", str(path)]
    main(here)
    main([*here, "--add", "--only", "one"])
    runs = Results.load(path).runs
    assert {run.workload: run.figures["answer"][0] for run in runs} == {"one": 3.0, "two": 2.0}
    assert len(runs) == 2
    replace(Results.load(path), size="laptop").save(path)
    with pytest.raises(SystemExit, match="of another size or another machine"):
        main([*here, "--add", "--only", "one"])


def test_data_that_are_costly_to_fill_are_filled_once(directory):
    filled = []

    def fill(path: Path) -> None:
        filled.append(path)
        path.write_bytes(b"original")

    def change_it(run: Run) -> None:
        path = run.prepared("data", fill)
        assert path.read_bytes() == b"original"
        path.write_bytes(b"changed")

    workload = Workload(1, "w", "", "", (RAW,), {"tiny": (Case("c"),)}, change_it)
    for _ in range(2):
        found = measure(workload, RAW, Case("c"), directory, directory / "kept")
        assert not found["failed"]
    assert len(filled) == 1


# ── the system ───────────────────────────────────────────────────────────────────────────────────


def test_a_file_is_dropped_from_the_page_cache(directory):
    path = directory / "file"
    path.write_bytes(bytes(1 << 20))
    pages = (1 << 20) // 4096
    assert system.resident_share(path) == (pages, pages)
    system.evict(path)
    resident, whole = system.resident_share(path)
    assert whole == pages
    assert resident <= 16
    system.fsync(directory)
    with path.open("rb") as file:
        file.read()
    assert system.resident_share(path) == (pages, pages)


def test_a_cold_read_is_refused_where_the_cache_cannot_be_dropped(directory):
    path = directory / "mapped"
    path.write_bytes(bytes(1 << 20))
    held = np.memmap(path, "u1", "r")
    assert held.sum() == 0
    with pytest.raises(RuntimeError, match="of mapped stay in the page cache"):
        system.evict(path)
    del held


def test_the_peak_of_memory_is_seen_and_begins_anew(directory):
    run = Run(RAW, directory, directory)
    with run.peak("much"):
        np.ones(64 << 20, "u1").sum()
    with run.peak("little"):
        np.ones(1 << 20, "u1").sum()
    much, little = run.figures
    assert 60 < much.value < 80
    assert little.value < 20


# ── results ──────────────────────────────────────────────────────────────────────────────────────


def results_of(*runs: Measured) -> Results:
    return Results("tiny", "2000-01-01", {"cores": "2"}, {"vzarr": "1"}, list(runs))


def one(engine: str, number: int, **figures: tuple[float, str]) -> Measured:
    return Measured("bulk", "case", engine, number, figures, durable=True, seconds=1.0)


def test_ratios_are_taken_within_a_round():
    """The machine was ten times as slow in the second round, for both engines."""
    results = results_of(
        one("vzarr", 0, write=(100, "MiB/s"), wait=(1, "ms")),
        one("vzarr", 1, write=(10, "MiB/s"), wait=(10, "ms")),
        one("vzarr", 2, write=(110, "MiB/s"), wait=(2, "ms")),
        one("other", 0, write=(50, "MiB/s"), wait=(2, "ms")),
        one("other", 1, write=(5, "MiB/s"), wait=(20, "ms")),
    )
    # Half as fast, and twice as slow.
    for figure in ("write", "wait"):
        assert results.summary("bulk", "case", "other", figure).ratio == 0.5
        assert results.ratio("bulk", "case", ("vzarr", figure), ("other", figure)) == 2
        assert results.summary("bulk", "case", "vzarr", figure).ratio == 1
    summary = results.summary("bulk", "case", "vzarr", "write")
    assert (summary.median, summary.unit, summary.spread) == (100, "MiB/s", 1.0)
    assert results.ratio("bulk", "case", ("vzarr", "write"), ("absent", "write")) is None
    assert results.summary("bulk", "case", "other", "absent") is None


def test_results_live_through_their_file(tmp_path, measured):
    results, _ = measured
    results.save(tmp_path / "again.json")
    assert Results.load(tmp_path / "again.json") == results
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="not a file of results in format 1"):
        Results.load(tmp_path / "other.json")


# ── the report ───────────────────────────────────────────────────────────────────────────────────


def test_the_report_has_a_table_with_every_engine_for_every_case(measured):
    results, report = measured
    sections = dict(part.split("\n", 1) for part in report.split("\n## "))
    for workload in all_workloads().values():
        parts = re.split(r"^\*\*(.+)\*\*, 1 round$", sections[workload.title], flags=re.MULTILINE)
        assert parts[1::2] == results.cases(workload.name)
        for case, table in zip(parts[1::2], parts[2::2], strict=True):
            engines = results.engines(workload.name, case)
            if len(engines) == 1:
                assert f"| {engines[0]} |  |" in table
            for name in engines if len(engines) > 1 else results.figures(workload.name, case):
                assert re.search(rf"^\| (\*\*)?{re.escape(name)}(\*\*)? \| ", table, re.MULTILINE)


def test_the_report_names_no_place(measured):
    results, report = measured
    place = results.machine
    assert {"processor", "cores", "memory", "file system", "Python"} <= set(place)
    for text in (report, json.dumps(place)):
        assert str(Path.home()) not in text
        assert str(ROOT) not in text


def test_the_same_results_make_the_same_report(tmp_path, measured):
    results, _ = measured
    few = replace(results, runs=[run for run in results.runs if run.workload == "dedup"])
    pages = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_report(few, tmp_path / name / "report.md")
        files = sorted(p for p in (tmp_path / name).rglob("*") if p.is_file())
        pages.append([(file.relative_to(tmp_path / name), file.read_bytes()) for file in files])
    assert pages[0] == pages[1]
    assert Path("report.md") in dict(pages[0])


def test_plots_are_pictures_with_every_engine(tmp_path):
    pytest.importorskip("matplotlib")
    results = results_of(
        one("vzarr", 0, **{"write + fsync": (100, "MiB/s")}),
        one("other", 0, **{"write + fsync": (5000, "MiB/s")}),
    )
    write_report(results, tmp_path / "report.md")
    picture = (tmp_path / "report" / "bulk.svg").read_text()
    assert "![A whole array](report/bulk.svg)" in (tmp_path / "report.md").read_text()
    for text in ("vzarr", "other", "MiB/s, more is better", "5,000"):
        assert text in picture
    assert "<dc:date>" not in picture


# ── targets ──────────────────────────────────────────────────────────────────────────────────────


def made_up(target: targets.Target, factor: float) -> Results:
    """Make results in which the figure of a target is its bound times a factor."""
    unit = "MiB/s" if target.workload == "bulk" else target.unit or "ms"
    bound = (target.least if target.most is None else target.most) * factor
    runs = []
    if target.against is None:
        ours = bound
    else:
        engine, figure = target.against
        # With a time more is worse: to be so many times as good is to take that part of it.
        times_as_good = bound if target.most is None else 1 / bound
        ours = 10 * times_as_good if unit == "MiB/s" else 10 / times_as_good
        runs.append(Measured(target.workload, "case", engine, 0, {figure: (10, unit)}, True, 1.0))
    figures = {target.figure: (ours, unit)}
    runs.append(Measured(target.workload, "case", target.engine, 0, figures, True, 1.0))
    return results_of(*runs)


@pytest.mark.parametrize("target", targets.TARGETS, ids=lambda t: f"{t.what} {t.against or ''}")
def test_a_target_is_met_or_missed_by_what_was_measured(target, tmp_path):
    verdicts = {}
    for factor in (0.99, 1.01):
        results = made_up(target, factor)
        (outcome,) = targets.judge(results, (target,))
        verdicts[factor] = outcome.verdict
        write_report(results, tmp_path / "report.md")
        row = f"| {outcome.what} | case | {outcome.goal} | {outcome.measured} | {outcome.verdict} |"
        assert row in (tmp_path / "report.md").read_text()
    more = target.most is None
    assert verdicts == {0.99: "missed" if more else "met", 1.01: "met" if more else "missed"}
    (absent,) = targets.judge(results_of(), (target,))
    assert absent.verdict == "not measured"


def test_targets_speak_of_workloads_engines_and_figures_that_there_are(measured):
    results, _ = measured
    workloads = all_workloads()
    for target in targets.TARGETS:
        workload = workloads[target.workload]
        names = {engine.name for engine in workload.engines}
        sides = [(target.engine, target.figure), *([target.against] if target.against else [])]
        case = results.cases(workload.name)[0]
        for engine, figure in sides:
            assert engine in names
            assert figure in results.figures(workload.name, case)


# ── writers at once ──────────────────────────────────────────────────────────────────────────────


def test_two_writers_are_judged_by_the_history_and_the_values():
    """Of four acknowledged commits one is not in the history, and one's chunk is overwritten."""
    one = Part(
        written=[
            Written(chunk=0, base="start", commit="a", committing=10.5),
            Written(chunk=1, base="a", commit="gone", committing=12.0, conflicts=2),
        ],
        begins=[10.0, 11.0],
        ends=[11.0, 13.0],
    )
    two = Part(
        written=[
            Written(chunk=2, base="start", commit="b", committing=10.5),
            Written(chunk=3, base="b", commit="c", committing=11.5),
        ],
        begins=[10.25, 11.0],
        ends=[11.0, 12.0],
        failures=["StorageError: no"],
    )
    parents = {"c": "b", "b": "a", "a": "start", "start": ""}
    values = np.repeat(np.arange(4), ELEMENTS).reshape(4, ELEMENTS)
    values[3, -1] = -1
    result = judge([one, two], parents, values)
    assert (result.lost_commits, result.lost_chunks) == (1, 1)
    assert (result.rebased, result.conflicts) == (1, 2)
    assert result.failures == ["StorageError: no"]
    assert result.rate == 4 / (13.0 - 10.0)
    assert result.waits == [1.0, 2.0, 0.75, 1.0]
    assert result.commits == [0.5, 1.0, 0.5, 0.5]
