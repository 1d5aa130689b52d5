"""The verb recover, as text and as JSON."""

from __future__ import annotations

import pytest

import vzarr
from tests.cli.test_process import on_terminal
from tests.support import assert_sound

REPORT = {
    "path", "saved", "ok", "branches", "tags", "moved", "made", "rewritten", "lost", "omitted",
    "notes", "commits", "nodes", "chunks", "nbytes", "seconds",
}  # fmt: skip
PROBLEM = {
    "kind", "message", "cost", "path", "document", "coordinates", "region", "commit", "branches",
    "tags", "commits",
}  # fmt: skip


@pytest.fixture
def broken(ocean, tmp_path):
    """A copy in which a chunk of the head of main is damaged, and both meta pages are gone."""
    path = tmp_path / "broken.vzarr"
    content = bytearray(ocean.read_bytes())
    with vzarr.open(ocean, "r") as repo:
        blob = repo.session("main").hierarchy.find("sst/c/2/0")
        data = bytes(repo.session("main").get("sst/c/2/0"))
    pattern = blob.digest + data
    at = content.find(pattern)
    while at >= 0:
        content[at + len(pattern) - 1] ^= 1
        at = content.find(pattern)
    content[: 2 * 4096] = bytes(2 * 4096)
    path.write_bytes(content)
    return path


def test_a_whole_file(ocean, tmp_path, run, run_json):
    result = run("recover", ocean, tmp_path / "a.vzarr")
    assert result.stdout.startswith(f"{ocean}: all was saved\n{tmp_path / 'a.vzarr'}: 4 commits, ")
    facts = run_json("recover", ocean, tmp_path / "b.vzarr")
    assert set(facts) == REPORT
    assert (facts["ok"], facts["lost"], facts["rewritten"]) == (True, [], {})
    with vzarr.open(ocean, "r") as repo:
        assert facts["branches"] == dict(repo.branches)
        assert facts["tags"] == dict(repo.tags)
    for name in ("a", "b"):
        assert_sound(tmp_path / f"{name}.vzarr")


def test_a_damaged_file(broken, tmp_path, run, run_json):
    lines = run("recover", broken, tmp_path / "a.vzarr", code=1).stdout.splitlines()
    assert lines[0].startswith("chunk: sst: chunk ")
    assert lines[1].startswith("  elements [2:3, 0:3] of sst cannot be read at ")
    assert f"{broken}: 2 losses" in lines
    assert any(line.startswith("salvaged/main: the head of main, ") for line in lines)
    facts = run_json("recover", broken, tmp_path / "b.vzarr", code=1)
    # Equal chunks are stored once.
    problem, other = facts["lost"]
    assert set(problem) == PROBLEM
    assert other["coordinates"] == [2, 1]
    assert (problem["path"], problem["region"]) == ("sst", [[2, 3], [0, 3]])
    assert "salvaged/main" in facts["branches"]
    assert facts["moved"]["main"] in facts["rewritten"]
    assert "both meta pages" in facts["notes"][0]
    assert run("check", tmp_path / "b.vzarr", "--full").stdout.startswith(
        f"{tmp_path / 'b.vzarr'}: sound"
    )


def test_errors(ocean, tmp_path, run):
    text = tmp_path / "text"
    text.write_text("once upon a time\n" * 1000)
    for arguments, message in (
        ((tmp_path / "nope", tmp_path / "a"), "there is no file"),
        ((text, tmp_path / "a"), "is no vzarr repository"),
        ((ocean, ocean), "writes another file"),
        ((ocean, text), "exists already"),
    ):
        result = run("recover", *arguments, code=1)
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
    run("recover", ocean, code=2)


PATIENT = """
import vzarr.cli, vzarr.output
vzarr.output.PATIENCE_SECONDS = 0
vzarr.cli.main()
"""


def test_progress_on_a_terminal(ocean, tmp_path):
    code, text = on_terminal(
        "recover", ocean, tmp_path / "a.vzarr", cwd=tmp_path, program=("-c", PATIENT)
    )
    assert code == 0
    assert "search" in text
    assert "all was saved" in text
