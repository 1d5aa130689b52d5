"""``vzarr log``: filters, the graph, and that it begins at once."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
import zarr

import vzarr
from vzarr import history


@pytest.fixture
def merged(path):
    """Two commits on main, one on a branch, a merge, and a branch that goes on."""
    with vzarr.open(path, author="Ada <ada@example.org>") as repo:

        def commit(branch, name, author=None):
            with repo.transaction(branch, f"add {name}", author=author) as store:
                zarr.create_array(store, name=name, shape=(1,), dtype="i1")

        commit("main", "one")
        repo.branches.create("dev")
        commit("main", "two")
        commit("dev", "three", author="Bob <bob@example.org>")
        repo.merge("dev", into="main")
        repo.branches.create("open")
        commit("open", "four")
        repo.tags.create("v1")
    return path


def subjects(text: str) -> list[str]:
    return [re.sub(r"[0-9a-f]{64} (\(.*\) )?", "", line) for line in text.splitlines()]


def test_graph(merged, run):
    assert subjects(run("log", merged, "--graph", "--oneline").stdout) == [
        "●   Merge branch 'dev'",
        "├─╮",
        "│ ● add three",
        "● │ add two",
        "├─╯",
        "● add one",
        "● create repository",
    ]


def test_graph_of_all(merged, run, run_json):
    lines = run("log", merged, "--graph", "--all").stdout.splitlines()
    assert sum("● " in line and "commit " in line for line in lines) == 6
    assert lines[0].endswith("(open)")
    assert any(re.fullmatch(r"├─╮ Merge:  \w{12} \w{12}", line) for line in lines)
    assert not any(line != line.rstrip() for line in lines)
    document = run_json("log", merged, "--all")
    assert document["ref"] is None
    assert len(document["commits"]) == 6
    assert len(run_json("log", merged)["commits"]) == 5
    graph = run_json("log", merged, "--all", "--graph")
    assert sorted(c["id"] for c in graph["commits"]) == sorted(c["id"] for c in document["commits"])


def test_graph_in_ascii(merged, spawn):
    done = spawn("log", merged, "--graph", env={"PYTHONIOENCODING": "ascii"}, encoding="ascii")
    assert done.stdout.startswith("*   commit ")
    assert done.stdout.splitlines()[1].startswith("|-\\ Merge:")


def test_graph_with_filters(merged, run):
    assert subjects(run("log", merged, "--graph", "--oneline", "-n", 1).stdout) == [
        "●   Merge branch 'dev'",
        "├─╮",
    ]
    lines = subjects(run("log", merged, "--graph", "--oneline", "--path", "three").stdout)
    assert [line for line in lines if "●" in line] == ["●   Merge branch 'dev'", "│ ● add three"]
    assert run("log", merged, "--graph", "--path", "nowhere").stdout == ""


def test_all_takes_no_ref(merged, run):
    assert "--all" in run("log", merged, "main", "--all", code=2).stderr


def messages(document) -> list[str]:
    return [commit["message"] for commit in document["commits"]]


def test_by_author_and_message(merged, run, run_json):
    assert messages(run_json("log", merged, "--author", "BOB")) == ["add three"]
    assert messages(run_json("log", merged, "--grep", "t(wo|hree)$")) == ["add three", "add two"]
    assert messages(run_json("log", merged, "--grep", "add", "--author", "ada", "-n", 1)) == [
        "add two"
    ]
    assert "regular expression" in run("log", merged, "--grep", "(", code=2).stderr


def test_by_time(merged, run, run_json):
    times = {
        commit["message"]: datetime.fromisoformat(commit["time"])
        for commit in run_json("log", merged)["commits"]
    }
    two = times["add two"]
    assert messages(run_json("log", merged, "--until", two.isoformat())) == [
        "add one",
        "create repository",
    ]
    since = run_json("log", merged, "--since", two.isoformat())
    assert messages(since) == ["Merge branch 'dev'", "add three"]
    assert len(run_json("log", merged, "--since", "1")["commits"]) == 5
    assert run_json("log", merged, "--until", "0.5")["commits"] == []
    # Without a zone it is local time.
    local = (two + timedelta(microseconds=1)).astimezone().replace(tzinfo=None)
    assert len(run_json("log", merged, "--until", local.isoformat())["commits"]) == 3
    for text in ("yesterday", "0001-01-01"):
        assert "ISO 8601" in run("log", merged, "--since", text, code=2).stderr
    assert "beyond the calendar" in run("show", merged, "main@{0001-01-01}", code=1).stderr


@pytest.fixture
def long(path):
    with vzarr.open(path, author="Ada", durability="normal") as repo:
        session = repo.session("main")
        for number in range(200):
            session.commit(f"step {number}", allow_empty=True)
        session.close()
        yield repo


def test_the_first_commits_are_read_alone(long, monkeypatch):
    read = []
    original = history.get

    def get(environment, commit):
        read.append(commit)
        return original(environment, commit)

    monkeypatch.setattr(history, "get", get)
    log = long.iter_log("main", "main~100")
    read.clear()
    assert next(log).message == "step 199"
    assert len(set(read)) <= 3
    assert next(log).message == "step 198"
    assert len(set(read)) <= 4
    read.clear()
    assert len(long.log("main", limit=1)) == 1
    assert len(set(read)) <= 1


def test_iter_log_of_several(long):
    found = [commit.id for commit in long.iter_log("main~5", "main")]
    assert found == [commit.id for commit in long.log("main")]
    assert list(long.iter_log()) == []
    with pytest.raises(vzarr.RefNotFoundError):
        long.iter_log("nope")


def test_lines_come_before_the_last_commit_is_read(long, path, spawn):
    """The text of the first commit is out when the reading of a later one fails."""
    long.close()
    program = f"""
import sys, vzarr.cli
from vzarr import history
original, seen = history.get, set()
def get(environment, commit):
    seen.add(commit)
    if len(seen) > 100:
        import os
        os._exit(9)
    return original(environment, commit)
history.get = get
sys.argv = ["vzarr", "log", {str(path)!r}]
vzarr.cli.main()
"""
    done = spawn(program=("-c", program))
    assert done.returncode == 9
    assert "step 199" in done.stdout


def test_times_are_utc(merged, run_json):
    for commit in run_json("log", merged)["commits"]:
        assert datetime.fromisoformat(commit["time"]).tzinfo == UTC
