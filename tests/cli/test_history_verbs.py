"""``move``, ``squash``, ``reflog`` and ``bisect``; what shells complete."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import zarr
from click.shell_completion import BashComplete, ShellComplete

import vzarr
from vzarr.cli import commands


def test_move(ocean, run, run_json):
    with vzarr.open(ocean) as repo, repo.transaction("dev", "group") as store:
        zarr.create_group(store, path="north")
    text = run("move", ocean, "/sst", "north/sst", "--on", "dev", "-m", "tidy").stdout
    with vzarr.open(ocean, "r") as repo:
        assert text == f"branch dev is now at {repo.branches['dev']}\n"
        assert repo.show("dev").message == "tidy"
        (change,) = repo.diff("dev~1", "dev").moved
        assert (change.old_path, change.path) == ("sst", "north/sst")
    document = run_json("move", ocean, "sst", "tos")
    assert set(document) == {"branch", "commit", "source", "destination"}
    assert run_json("show", ocean)["commit"]["message"] == "Move sst to tos"
    assert "nope" in run("move", ocean, "nope", "x", code=1).stderr
    assert "no branch 'x'" in run("move", ocean, "tos", "y", "--on", "x", code=1).stderr


def test_squash(ocean, run, run_json):
    with vzarr.open(ocean, "r") as repo:
        before, root = repo.branches["main"], repo.root_id("main")
    first, second = run("squash", ocean, "--since", "main~2", "-m", "all").stdout.splitlines()
    with vzarr.open(ocean, "r") as repo:
        assert first == f"branch main is now at {repo.branches['main']}"
        assert second == f"it was at {before}"
        assert repo.root_id("main") == root
        assert [commit.message for commit in repo.log("main")] == ["all", "create repository"]
    document = run_json("squash", ocean, "--since", "dev~1", "--on", "dev")
    assert (document["branch"], set(document)) == ("dev", {"branch", "commit", "replaced"})
    assert run("squash", ocean, code=2).stderr.count("--since") == 1


def test_reflog(ocean, run, run_json):
    assert run("reflog", ocean).stdout == run("branch", ocean, "--reflog", "main").stdout
    document = run_json("reflog", ocean, "dev")
    assert document["branch"] == "dev"
    assert len(document["moves"]) == 2
    assert "no branch 'nope'" in run("reflog", ocean, "nope", code=1).stderr


@pytest.fixture
def steps(path):
    with vzarr.open(path, author="Ada") as repo:
        for number in range(10):
            with repo.transaction("main", f"step {number}") as store:
                store.session.set("value", str(number).encode())
    return path


TEST = """
import os, sys, vzarr
with vzarr.open(os.environ["VZARR_FILE"], "r") as repo:
    value = int(bytes(repo.session(os.environ["VZARR_COMMIT"]).get("value")))
print("tried", value)
sys.exit(value >= int(sys.argv[1]))
"""


def test_bisect(steps, spawn):
    done = spawn("bisect", steps, "main~9", "main", "--", sys.executable, "-c", TEST, 6)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "    step 6"
    assert "the first bad one is" in done.stdout
    assert "tried" not in done.stdout
    assert 2 <= done.stderr.count("tried ") <= 4


def test_bisect_as_json(steps, run_json):
    document = run_json("bisect", steps, "main~9", "main", "--json", "--", "false")
    assert document["commit"]["message"] == "step 1"
    assert document["tests"] >= 1


def test_bisect_without_an_answer(steps, run):
    command = ["bisect", steps, "main~9", "main", "--"]
    assert "ended with 125" in run(*command, "sh", "-c", "exit 125", code=1).stderr
    assert "'/nosuch' cannot be run: No such file" in run(*command, "/nosuch", code=1).stderr


# ── completion ───────────────────────────────────────────────────────────────────────────────────


def complete(*words, incomplete="") -> list[str]:
    shell = ShellComplete(commands, {}, "vzarr", "_VZARR_COMPLETE")
    return [item.value for item in shell.get_completions([*map(str, words)], incomplete)]


def test_verbs_and_options_are_completed():
    assert "log" in complete()
    assert complete(incomplete="bis") == ["bisect"]
    assert "--graph" in complete("log", incomplete="--g")


def test_files_are_completed():
    shell = ShellComplete(commands, {}, "vzarr", "_VZARR_COMPLETE")
    (item,) = shell.get_completions(["log"], "oc")
    assert item.type == "file"


def test_names_are_completed(ocean):
    assert sorted(complete("log", ocean)) == ["dev", "main", "v1.0"]
    assert complete("diff", ocean, "main", incomplete="d") == ["dev"]
    assert complete("view", ocean) == ["sst"]
    assert complete("view", ocean, incomplete="x") == []
    assert complete("view", ocean, "sst", "--ref", incomplete="v") == ["v1.0"]
    assert complete("log", ocean, "--path") == ["sst"]
    assert sorted(complete("squash", ocean, "--on")) == ["dev", "main"]
    assert sorted(complete("reflog", ocean)) == ["dev", "main"]


def test_what_is_no_repository_completes_nothing(tmp_path):
    (tmp_path / "text").write_text("no repository")
    assert complete("log", tmp_path / "text") == []
    assert complete("log", tmp_path / "nope") == []
    assert not (tmp_path / "nope").exists()


def test_completion_imports_no_zarr(ocean, spawn):
    program = """
import atexit, sys
atexit.register(lambda: print(*{"zarr", "numpy"} & set(sys.modules), file=sys.stderr))
import vzarr.cli
vzarr.cli.main()
"""
    environment = {
        "_VZARR_COMPLETE": "bash_complete",
        "COMP_WORDS": f"vzarr view {ocean} ",
        "COMP_CWORD": "3",
    }
    done = spawn(program=("-c", program), env=environment)
    assert (done.stdout, done.stderr) == ("plain,sst\n", "\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts(run, run_json, shell, monkeypatch):
    monkeypatch.setattr(BashComplete, "_check_version", lambda _: None)
    script = run("completion", shell).stdout
    assert "_VZARR_COMPLETE" in script
    assert run_json("completion", shell)["script"] + "\n" == script


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_a_real_bash(ocean, run, tmp_path):
    (tmp_path / "vzarr").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vzarr "$@"\n')
    (tmp_path / "vzarr").chmod(0o755)
    program = f"""
PATH="{tmp_path}:$PATH"
eval "$(vzarr completion bash)"
complete -p vzarr
COMP_WORDS=(vzarr log {ocean} d) COMP_CWORD=3
_vzarr_completion vzarr
echo "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "-c", program], capture_output=True, text=True, timeout=50, check=True
    )
    complete, reply = done.stdout.splitlines()
    assert "-F _vzarr_completion" in complete
    assert reply == "dev"
