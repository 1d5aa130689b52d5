"""Every verb, as text and as JSON."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
import zarr

import vzarr
from tests.cli.conftest import AUTHOR
from vzarr.cli import commands

COMMIT = {
    "id", "parents", "author", "time", "message", "metadata", "root", "branches", "tags",
}  # fmt: skip
INFO = {
    "path", "id", "format_version", "created", "file_bytes",
    "chunks", "commits", "branches", "tags",
}  # fmt: skip


@pytest.fixture
def ids(ocean):
    with vzarr.open(ocean, "r") as repo:
        return {
            "main": repo.branches["main"],
            "dev": repo.branches["dev"],
            "v1.0": repo.tags["v1.0"],
            "first": repo.show("main~2").id,
        }


# ── init, info ───────────────────────────────────────────────────────────────────────────────────


def test_init(path, run):
    text = run("init", path).stdout
    with vzarr.open(path, "r") as repo:
        assert text == f"created {path} with branch main at {repo.branches['main']}\n"


def test_init_json(path, run_json):
    facts = run_json("init", path)
    assert set(facts) == INFO
    assert facts["path"] == str(path)
    assert (facts["commits"], facts["branches"], facts["tags"], facts["chunks"]) == (1, 1, 0, 0)


def test_init_does_not_replace(ocean, ids, run, run_json):
    assert "exists already" in run("init", ocean, code=1).stderr
    assert run_json("log", ocean)["commits"][0]["id"] == ids["main"]


def test_info(ocean, run):
    lines = dict(re.split(r"  +", line) for line in run("info", ocean).stdout.splitlines())
    assert lines["path"] == str(ocean)
    assert lines["commits"] == "4"
    assert lines["tags"] == "1"


def test_info_json(ocean, run_json):
    facts = run_json("info", ocean)
    assert set(facts) == INFO
    assert facts["file_bytes"] == ocean.stat().st_size
    assert (facts["commits"], facts["branches"], facts["tags"]) == (4, 2, 1)
    assert datetime.fromisoformat(facts["created"]).tzinfo == UTC


# ── tree ─────────────────────────────────────────────────────────────────────────────────────────


def test_tree(ocean, run):
    assert run("tree", ocean).stdout == "/\n└── sst (3, 6) float32\n"
    assert run("tree", ocean, "v1.0").stdout == "/\n└── sst (2, 6) float32\n"


def test_tree_json(ocean, ids, run_json):
    document = run_json("tree", ocean)
    assert document["ref"] == "main"
    assert document["commit"] == ids["main"]
    assert document["nodes"] == [
        {
            "path": "",
            "kind": "group",
            "attributes": {"title": "sea"},
            "shape": None,
            "chunks": None,
            "dtype": None,
        },
        {
            "path": "sst",
            "kind": "array",
            "attributes": {"bad": "NaN"},
            "shape": [3, 6],
            "chunks": [1, 3],
            "dtype": "float32",
        },
    ]


# ── log ──────────────────────────────────────────────────────────────────────────────────────────


def test_log(ocean, ids, run):
    text = run("log", ocean, "-n", "2").stdout
    newest, older = text.split("\n\ncommit ")
    assert newest.startswith(f"commit {ids['main']} (main)\nAuthor: {AUTHOR}\nDate:   2")
    assert newest.endswith(" UTC\n\n    append a step")
    assert older.startswith(f"{ids['v1.0']} (tag: v1.0)\n")
    assert older.endswith("\n\n    make the sea\n\n    In two\n    lines.\n    run: 7\n")


def test_log_oneline(ocean, ids, run):
    assert run("log", ocean, "dev", "--oneline").stdout.splitlines() == [
        f"{ids['dev']} (dev) mend a corner",
        f"{ids['main']} (main) append a step",
        f"{ids['v1.0']} (tag: v1.0) make the sea",
        f"{ids['first']} create repository",
    ]


def test_log_json(ocean, ids, run_json):
    document = run_json("log", ocean, "v1.0")
    assert set(document) == {"ref", "path", "commits"}
    commit, first = document["commits"]
    assert set(commit) == COMMIT
    assert commit["id"] == ids["v1.0"]
    assert commit["parents"] == [first["id"]]
    assert commit["tags"] == ["v1.0"]
    assert commit["branches"] == []
    assert commit["author"] == AUTHOR
    assert commit["metadata"] == {"run": 7}
    assert commit["message"] == "make the sea\n\nIn two\nlines."
    assert datetime.fromisoformat(commit["time"]).tzinfo == UTC


def test_log_of_a_path(ocean, run, run_json):
    with vzarr.open(ocean) as repo, repo.transaction("main", "other") as store:
        zarr.create_array(store, name="other", shape=(1,), dtype="i1")
    assert len(run_json("log", ocean)["commits"]) == 4
    assert [c["message"] for c in run_json("log", ocean, "--path", "/other")["commits"]] == [
        "other"
    ]
    assert len(run_json("log", ocean, "--path", "sst")["commits"]) == 2
    assert run("log", ocean, "--path", "nowhere").stdout == ""


@pytest.mark.parametrize("ref", ["main~1", "v1.0", "main^", "dev~2"])
def test_refs(ocean, ids, run_json, ref):
    assert run_json("log", ocean, ref, "-n", 1)["commits"][0]["id"] == ids["v1.0"]


def test_a_beginning_of_an_id_and_a_date(ocean, ids, run_json):
    assert run_json("show", ocean, ids["dev"][:12])["commit"]["id"] == ids["dev"]
    assert run_json("show", ocean, "dev@{2999-01-01}")["commit"]["id"] == ids["dev"]


# ── status ───────────────────────────────────────────────────────────────────────────────────────


def test_status(ocean, ids, run):
    head, dev, main = run("status", ocean).stdout.splitlines()
    assert head == f"{ocean}: 4 commits, 2 branches, 1 tag"
    assert re.fullmatch(rf"dev   {ids['dev']}  2.* UTC  1 ahead  mend a corner", dev)
    assert re.fullmatch(rf"main  {ids['main']}  2.* UTC           append a step", main)


def test_status_json(ocean, ids, run, run_json):
    run("branch", ocean, "old", "--at", "main~2")
    document = run_json("status", ocean)
    assert set(document) == {"path", "commits", "tags", "branches"}
    assert {entry["name"]: (entry["ahead"], entry["behind"]) for entry in document["branches"]} == {
        "dev": (1, 0),
        "main": (0, 0),
        "old": (0, 2),
    }
    assert set(document["branches"][0]) == {
        "name", "commit", "author", "time", "message", "ahead", "behind",
    }  # fmt: skip


def test_status_without_main(ocean, run, run_json):
    run("branch", ocean, "-m", "main", "trunk")
    assert {entry["ahead"] for entry in run_json("status", ocean)["branches"]} == {None}
    assert "ahead" not in run("status", ocean).stdout


# ── show, diff ───────────────────────────────────────────────────────────────────────────────────


def test_show(ocean, ids, run):
    text = run("show", ocean, "dev").stdout
    assert text.startswith(f"commit {ids['dev']} (dev)\n")
    assert "~ array sst\n" in text
    assert "1 changed: (0, 0) [0:1, 0:3]" in text


def test_show_json(ocean, ids, run_json):
    document = run_json("show", ocean)
    assert set(document) == {"commit", "changes"}
    assert set(document["commit"]) == COMMIT
    (change,) = document["changes"]
    assert set(change) == {
        "path", "kind", "change", "old_path", "attributes", "metadata", "chunks", "values",
    }  # fmt: skip
    assert change["path"] == "sst"
    assert change["metadata"] == {"shape": {"old": [2, 6], "new": [3, 6]}}
    assert change["attributes"] == {"bad": {"old": None, "new": "NaN"}}
    assert [chunk["coordinates"] for chunk in change["chunks"]] == [[2, 0], [2, 1]]


def test_show_of_the_first_commit(ocean, ids, run, run_json):
    assert run("show", ocean, "main~2").stdout.endswith("\n    create repository\n")
    assert run_json("show", ocean, "main~2")["changes"] is None


def test_diff(ocean, run):
    text = run("diff", ocean, "v1.0", "dev").stdout
    assert "shape: (2, 6) → (3, 6)" in text
    assert "@bad: None → nan" in text
    assert "[0:1, 0:3]" in text
    assert run("diff", ocean, "v1.0..dev").stdout == text
    assert run("diff", ocean, "v1.0").stdout == run("diff", ocean, "v1.0", "main").stdout
    assert run("diff", ocean, "main", "main").stdout == ""


def test_diff_json(ocean, ids, run_json):
    document = run_json("diff", ocean, "main", "dev")
    assert document["old"] == {"ref": "main", "commit": ids["main"]}
    assert document["new"] == {"ref": "dev", "commit": ids["dev"]}
    assert document["equal"] is False
    (change,) = document["changes"]
    (chunk,) = change["chunks"]
    assert chunk["old_bytes"] > 0
    assert chunk["new_bytes"] > 0
    assert {**chunk, "old_bytes": 0, "new_bytes": 0} == {
        "coordinates": [0, 0],
        "kind": "changed",
        "region": [[0, 1], [0, 3]],
        "old_bytes": 0,
        "new_bytes": 0,
    }
    assert run_json("diff", ocean, "dev", "dev")["equal"] is True


def test_diff_of_another_encoding(ocean, run_json):
    with vzarr.open(ocean) as repo, repo.transaction("main", "narrower") as store:
        zarr.create_array(store, name="sst", shape=(3, 6), dtype="f2", overwrite=True)
    (change,) = run_json("diff", ocean, "main~1")["changes"]
    encoding = change["metadata"]["encoding"]
    assert encoding["old"]["data_type"] == "float32"
    assert encoding["new"]["data_type"] == "float16"


def test_diff_of_everything(ocean, run_json):
    changes = run_json("diff", ocean, "main~2")["changes"]
    assert [(change["path"], change["kind"], change["change"]) for change in changes] == [
        ("", "group", "added"),
        ("sst", "array", "added"),
    ]


def test_diff_exit_code(ocean, run, run_json):
    run("diff", ocean, "main", "dev", "--exit-code", code=1)
    run("diff", ocean, "main", "main", "--exit-code", code=0)
    assert run_json("diff", ocean, "main", "dev", "--exit-code", code=1)["equal"] is False


def test_show_and_diff_of_a_move(ocean, run, run_json):
    with vzarr.open(ocean) as repo:
        session = repo.session("main")
        session.move("sst", "temperature")
        session.commit("rename")
    assert run("show", ocean).stdout.endswith("> array sst → temperature\n")
    (change,) = run_json("show", ocean)["changes"]
    assert (change["path"], change["old_path"], change["change"]) == ("temperature", "sst", "moved")


# ── branch ───────────────────────────────────────────────────────────────────────────────────────


def test_branch_lists(ocean, ids, run, run_json):
    assert run("branch", ocean).stdout.splitlines() == [
        f"dev   {ids['dev']}  mend a corner",
        f"main  {ids['main']}  append a step",
    ]
    entries = run_json("branch", ocean)["branches"]
    assert [(entry["name"], entry["commit"]) for entry in entries] == [
        ("dev", ids["dev"]),
        ("main", ids["main"]),
    ]
    assert set(entries[0]) == {"name", "commit", "author", "time", "message"}


def test_branch_creates(ocean, ids, run, run_json):
    assert run("branch", ocean, "a/b").stdout == f"created branch a/b at {ids['main']}\n"
    assert run_json("branch", ocean, "c", "--at", "v1.0") == {
        "operation": "create",
        "name": "c",
        "commit": ids["v1.0"],
    }
    assert "--reset dev" in run("branch", ocean, "dev", code=1).stderr


@pytest.mark.parametrize("option", ["-d", "--delete"])
def test_branch_deletes(ocean, ids, run, run_json, option):
    expected = f"deleted branch dev, which was at {ids['dev']}\n"
    assert run("branch", ocean, option, "dev").stdout == expected
    assert [entry["name"] for entry in run_json("branch", ocean)["branches"]] == ["main"]
    assert run_json("branch", ocean, option, "main")["operation"] == "delete"
    assert run("branch", ocean).stdout == ""


@pytest.mark.parametrize("option", ["-m", "--move", "--rename"])
def test_branch_renames(ocean, ids, run, run_json, option):
    assert run("branch", ocean, option, "dev", "x").stdout == "renamed branch dev to x\n"
    assert run_json("branch", ocean, option, "x", "dev") == {
        "operation": "rename",
        "name": "dev",
        "old_name": "x",
        "commit": ids["dev"],
    }
    run("branch", ocean, option, "dev", "main", code=1)


def test_branch_resets(ocean, ids, run, run_json):
    text = run("branch", ocean, "--reset", "main", "--to", "main~1").stdout
    assert text == f"branch main is now at {ids['v1.0']}\n"
    again = ("branch", ocean, "--reset", "main", "--to", ids["main"], "--expected")
    assert "is at" in run(*again, "dev", code=1).stderr
    assert run_json(*again, "v1.0") == {
        "operation": "reset",
        "name": "main",
        "commit": ids["main"],
    }


def test_reflog(ocean, ids, run, run_json):
    run("branch", ocean, "-d", "dev")
    lines = run("branch", ocean, "--reflog", "dev").stdout.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["(none)", ids["dev"], ids["main"]]
    assert all(line.endswith(AUTHOR) for line in lines)
    document = run_json("branch", ocean, "--reflog", "dev")
    assert document["branch"] == "dev"
    assert set(document["moves"][0]) == {"branch", "old", "new", "author", "time", "operation"}
    assert [move["new"] for move in document["moves"]] == [None, ids["dev"], ids["main"]]


# ── tag ──────────────────────────────────────────────────────────────────────────────────────────


def test_tag_lists(ocean, ids, run, run_json):
    (line,) = run("tag", ocean).stdout.splitlines()
    assert re.fullmatch(rf"v1\.0  {ids['v1.0']}  2.* UTC  as published", line)
    (entry,) = run_json("tag", ocean)["tags"]
    assert set(entry) == {"name", "commit", "message", "author", "time"}
    assert entry["message"] == "as published\nreally"


def test_tag_creates_and_deletes(ocean, ids, run, run_json):
    assert run("tag", ocean, "v2", "-m", "why").stdout == f"tagged {ids['main']} as v2\n"
    assert run_json("tag", ocean, "v0", "--at", "main~2")["commit"] == ids["first"]
    assert "never move" in run("tag", ocean, "v2", "--at", "dev", code=1).stderr
    assert run("tag", ocean, "-d", "v2").stdout == f"deleted tag v2, which was at {ids['main']}\n"
    assert run_json("tag", ocean, "--delete", "v0") == {
        "operation": "delete",
        "name": "v0",
        "commit": ids["first"],
    }
    assert [entry["name"] for entry in run_json("tag", ocean)["tags"]] == ["v1.0"]


# ── what people write ────────────────────────────────────────────────────────────────────────────


def test_text_is_not_markup_and_commands_no_terminal(path, run, run_json):
    message = "[bold]loud[/bold] :smile: \x1b[31mred\x07 \u202f日本\ttab"
    with vzarr.open(path, author="Eve\x1b]0;title\x07\n<eve@example.org>") as repo:
        repo.commit(message, allow_empty=True)
        repo.tags.create("t", message=message)
    for verb in (["log"], ["log", "--oneline"], ["show"], ["status"], ["branch"], ["tag"]):
        text = run(verb[0], path, *verb[1:]).stdout
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "[bold]loud[/bold] :smile: \\x1b[31mred\\x07" in text
        assert "日本" in text
    assert len(run("branch", path, "--reflog", "main").stdout.splitlines()) == 2
    assert run_json("show", path)["commit"]["message"] == message


def test_long_lines_stay_whole_in_a_pipe(path, run):
    name, message = "b" * 300, "word " * 200 + "end"
    with vzarr.open(path) as repo:
        repo.branches.create(name)
        with repo.transaction(name, message) as store:
            zarr.create_array(store, name="x" * 200, shape=(1,), dtype="i1")
    (line,) = [line for line in run("status", path).stdout.splitlines() if name in line]
    assert line.endswith(message)
    assert f"{'x' * 200} (1,) int8" in run("tree", path, name).stdout


def test_version_and_help(run):
    assert run("--version").stdout == f"vzarr {vzarr.__version__}\n"
    assert run("-h").stdout == run("--help").stdout
    for verb, command in commands.commands.items():
        if command.hidden:
            continue
        assert verb in run("--help").stdout
        text = run(verb, "--help").stdout
        assert re.search(rf"Examples?:\n    vzarr {verb} ", text)
        assert "--json" in text
