"""The verb check, as text and as JSON."""

from __future__ import annotations

import subprocess
import sys

import pytest

import vzarr
from tests.cli.test_process import on_terminal
from vzarr.environment import Environment

REPORT = {
    "path", "level", "ok", "problems", "omitted", "commits", "nodes", "chunks", "nbytes",
    "garbage", "garbage_bytes", "seconds", "left_out", "unsummed", "stray_checksums",
}  # fmt: skip
PROBLEM = {
    "kind", "message", "cost", "path", "document", "coordinates", "region", "commit", "branches",
    "tags", "commits",
}  # fmt: skip


@pytest.fixture
def damaged(ocean, tmp_path):
    """A copy that lacks a chunk, beside the file that is checked when the test ends."""
    path = tmp_path / "damaged.vzarr"
    path.write_bytes(ocean.read_bytes())
    with vzarr.open(path, "r") as repo:
        blob = repo.session("v1.0").hierarchy.find("sst/c/0/1")
    environment = Environment.open(str(path), writable=True)
    with environment.write() as txn:
        assert txn.delete("chunks", blob.digest)
    environment.close()
    return path


def test_a_sound_file(ocean, run, run_json):
    lines = run("check", ocean).stdout.splitlines()
    assert lines[0] == f"{ocean}: sound (quick check)"
    assert lines[1].startswith("4 commits, ")
    assert run("check", ocean, "--full").stdout.startswith(f"{ocean}: sound (full check)\n")
    facts = run_json("check", ocean)
    assert set(facts) == REPORT
    assert (facts["ok"], facts["level"], facts["problems"]) == (True, "quick", [])
    assert facts["garbage"] is None
    assert run_json("check", ocean, "--full")["garbage"] == 0


def test_a_damaged_file(damaged, run, run_json):
    lines = run("check", damaged, code=1).stdout.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("chunk: sst: chunk ")
    assert lines[0].endswith(": it is missing")
    cost = "elements [0:1, 3:6] of sst cannot be read at dev, main and tag v1.0"
    assert lines[1] == f"  {cost}"
    assert lines[2] == f"{damaged}: 1 problem (quick check)"
    facts = run_json("check", damaged, "--full", code=1)
    assert (facts["ok"], facts["level"]) == (False, "full")
    (problem,) = facts["problems"]
    assert set(problem) == PROBLEM
    assert (problem["path"], problem["coordinates"]) == ("sst", [0, 1])
    assert problem["region"] == [[0, 1], [3, 6]]
    assert sorted(problem["branches"]) == ["dev", "main"]


@pytest.mark.parametrize("kind", ["cut", "text", "directory", "newer"])
def test_what_cannot_be_opened(ocean, tmp_path, run, run_json, kind):
    path = tmp_path / "thing"
    match kind:
        case "cut":
            path.write_bytes(ocean.read_bytes()[:20_000])
        case "text":
            path.write_text("once upon a time\n" * 1000)
        case "directory":
            path.mkdir()
        case "newer":
            from vzarr.format import FormatRecord, encode_format

            path.write_bytes(ocean.read_bytes())
            environment = Environment.open(str(path), writable=True)
            with environment.write() as txn:
                txn.put("meta", b"format", encode_format(FormatRecord(9, 9)))
            environment.close()
    with pytest.raises(vzarr.VzarrError):
        vzarr.open(path, "r")
    result = run("check", path, code=1)
    assert result.stderr == ""
    assert f"{path}: " in result.stdout.splitlines()[-2]
    facts = run_json("check", path, code=1)
    assert not facts["ok"]
    assert facts["problems"][0]["kind"] == ("storage" if kind == "cut" else "format")


def test_no_file(tmp_path, run):
    result = run("check", tmp_path / "nope", code=1)
    assert (result.stdout, result.stderr.count("\n")) == ("", 1)
    assert "there is no file" in result.stderr


def test_wrong_usage(ocean, run):
    run("check", code=2)
    run("check", ocean, "--deep", code=2)


def test_without_an_open_in_between(damaged, monkeypatch, run):
    """A file that LMDB might crash on is not opened to find that out."""

    def refuse(*_, **__):
        raise AssertionError("opened")

    content = damaged.read_bytes()
    # A page says its own number in its first bytes; this one is in use, as most are.
    damaged.write_bytes(content[: 2 * 4096] + b"\7" + content[2 * 4096 + 1 :])
    with monkeypatch.context() as patch:
        patch.setattr(Environment, "open", refuse)
        (first, *_) = run("check", damaged, code=1).stdout.splitlines()
    assert first.startswith("storage: ")


PATIENT = """
import vzarr.cli, vzarr.output
vzarr.output.PATIENCE_SECONDS = 0
vzarr.cli.main()
"""


def test_progress_on_a_terminal(damaged, tmp_path):
    code, text = on_terminal("check", damaged, "--full", cwd=tmp_path, program=("-c", PATIENT))
    assert code == 1
    assert "structure" in text
    assert "100%" in text
    assert "\x1b[31mchunk: \x1b[0m" in text
    code, text = on_terminal("check", damaged, "--full", cwd=tmp_path)
    assert (code, "structure" in text) == (1, False)
    code, text = on_terminal("check", damaged, "--json", cwd=tmp_path, program=("-c", PATIENT))
    assert (code, "structure" in text) == (1, False)


def test_an_interrupt(ocean, tmp_path):
    program = (
        "import signal, vzarr.check, vzarr.cli\n"
        "verify = vzarr.check.verify\n"
        "vzarr.check.verify = lambda path: signal.raise_signal(signal.SIGINT) or verify(path)\n"
        "vzarr.cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "check", ocean], capture_output=True, text=True, timeout=50
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "vzarr: interrupted\n")
