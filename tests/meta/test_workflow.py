"""The workflows on GitHub do what ``.ci/run`` does, and no more is open to them than they need."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / ".github" / "workflows"
SCRIPT = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def workflow(name: str) -> dict[Any, Any]:
    # YAML 1.1 takes the key "on" for True.
    return yaml.safe_load((WORKFLOWS / name).read_text(encoding="utf-8"))


def steps(name: str) -> list[tuple[str, dict[str, Any]]]:
    """List all steps of a workflow with their jobs."""
    jobs = workflow(name)["jobs"]
    return [(job, step) for job, described in jobs.items() for step in described["steps"]]


def plain(text: str) -> str:
    """Spell a command as both do: without where its results go, and how loud it is."""
    text = re.sub(r'"?\$(work|RUNNER_TEMP)"?/([\w*./-]+)"?', r"\2", text)
    text = re.sub(r" (--quiet|-qq?)\b", "", text.replace("python3 ", "python "))
    return re.sub(r"\s+", " ", text).strip()


def commands(job: str) -> set[str]:
    """Give what a job of ci.yml runs, one command each."""
    texts = [step["run"] for name, step in steps("ci.yml") if name == job and "run" in step]
    return {plain(part) for text in texts for part in text.split("&&")}


# What the script does by a function of its own, or in another directory.
SPELLED_OTHERWISE = {
    "sudo apt-get update": "apt-get update",
    "sudo apt-get install -y strace gcc": "apt-get install -y strace gcc",
    'cd "$RUNNER_TEMP"': 'cd "$work"',
}


@pytest.mark.parametrize("job", ["lint", "test", "demo", "docs", "build"])
def test_the_script_runs_what_the_workflow_does(job):
    script = plain(SCRIPT)
    asked = commands(job)
    assert asked
    missing = {one for one in asked if SPELLED_OTHERWISE.get(one, one) not in script}
    assert missing == set()


def test_the_workflow_runs_what_the_script_does():
    every = set().union(*map(commands, ("lint", "test", "demo", "docs", "build")))
    tools = r"python3 -m (?:pytest|vzarr|build)|ruff|mypy|mkdocs|twine|check-wheel-contents|vzarr"
    line = rf"^\s*(?:cd \S+ && )?((?:{tools})\b[^>|&\n]*)"
    ran = {plain(found) for found in re.findall(line, SCRIPT, re.MULTILINE)}
    assert len(ran) >= 11
    assert ran - every == set()


def test_it_runs_on_all_systems_and_the_oldest_and_the_newest_python():
    matrix = workflow("ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    assert set(matrix["os"]) == {"ubuntu-latest", "macos-latest", "windows-latest"}
    named = [
        text.rpartition(" ")[2] for text in PROJECT["classifiers"] if ":: Python :: 3." in text
    ]
    assert matrix["python"] == [named[0], named[-1]] == ["3.11", "3.13"]


@pytest.mark.parametrize("name", ["ci.yml", "release.yml"])
def test_permissions_are_least_and_versions_pinned(name):
    described = workflow(name)
    assert described["permissions"] == {"contents": "read"}
    for job in described["jobs"].values():
        assert job.get("permissions", {"id-token": "write"}) == {"id-token": "write"}
        assert 0 < job["timeout-minutes"] <= 60
    for _, step in steps(name):
        assert ("uses" in step) != ("run" in step)
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w.-]+@(v\d+|release/v\d+)", step["uses"])
        # Text from outside is no part of a command.
        assert "${{" not in step.get("run", "")


def test_a_newer_push_ends_the_run_of_an_older_one():
    assert workflow("ci.yml")["concurrency"]["cancel-in-progress"] is True


def test_only_a_tag_is_released_and_without_a_password():
    described = workflow("release.yml")
    assert described[True] == {"push": {"tags": ["v*"]}}
    publish = described["jobs"]["publish"]
    assert publish["needs"] == "build"
    assert publish["permissions"] == {"id-token": "write"}
    assert "secrets." not in (WORKFLOWS / "release.yml").read_text(encoding="utf-8")


def test_a_release_is_checked_as_every_change_is():
    builds = {plain(step["run"]) for job, step in steps("release.yml") if "run" in step}
    assert commands("build") <= builds
