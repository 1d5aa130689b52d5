"""What must hold when the torture has ended: the proof, from the file, the logs and the model."""

from __future__ import annotations

import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import vzarr
from tests.concurrency import torture_operations as do
from tests.concurrency.torture_model import (
    Replay,
    assert_consistent,
    assert_equal,
    history_of,
    read_state,
)
from tests.concurrency.torture_operations import State
from tests.concurrency.torture_sessions import resume_one
from tests.concurrency.torture_worker import Fate, Log, Worker
from vzarr.history import Commit


@dataclass
class Told:
    """What the workers said, each in its own log."""

    records: list[dict[str, Any]]

    @classmethod
    def read(cls, paths: Sequence[Path]) -> Told:
        records = []
        for path in paths:
            # What follows the last end of a line was never said.
            lines = path.read_bytes().split(b"\n")[:-1]
            records += [json.loads(line) for line in lines]
        told = cls(records)
        crashes = told.of("crash")
        assert not crashes, crashes[0]["traceback"]
        return told

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["kind"] == kind]


@dataclass
class Verdict:
    """What the check has counted."""

    commits: int = 0
    """Acknowledged."""
    unacknowledged: int = 0
    """In the file, of workers that were killed before they could say so."""
    replayed: int = 0
    compared: int = 0
    told: Counter[str] = field(default_factory=Counter)
    how: Counter[str] = field(default_factory=Counter)
    """How the commits came about, and of what operations they are."""


def settle(repo: vzarr.Repository, log: Log, seed: int) -> None:
    """Go on with what the dead have saved, and collect what else they left."""
    heir = Worker(repo, log, Fate(_never), name=1_000_000, slot=0, slots=1, seed=seed)
    for session in repo.sessions():
        assert session.alive is False, session
        if session.checkpointed and session.kind == "session":
            resume_one(heir, session.id)
    repo.expire(older_than=timedelta())
    repo.gc()


def _never(_: object) -> None:
    raise AssertionError("nobody dies any more")


def check(repo: vzarr.Repository, told: Told, *, seed: int, samples: int) -> Verdict:
    """Check that nothing acknowledged is lost, nothing done twice, and all is as it should be."""
    verdict = Verdict(told=Counter(record["kind"] for record in told.records))
    heads = _check_refs(repo, told)
    histories = {name: history_of(repo, name) for name in heads}
    commits = {commit.id: commit for history in histories.values() for commit in history}
    _check_once(commits.values(), verdict)
    _check_acknowledged(histories, told, verdict)
    # Of what was written with autocommit, no commit says anything.
    replay = Replay({it.id: it for it in commits.values() if it.metadata or not it.parents})
    verdict.replayed = len(replay.states)
    _check_contents(repo, replay, heads, random.Random(seed), samples, verdict)
    _check_autocommits(repo, replay, heads, told)
    _check_leftovers(repo)
    return verdict


def _check_refs(repo: vzarr.Repository, told: Told) -> dict[str, str]:
    """Check that branches and tags are there, unless somebody began to delete them."""
    heads = dict(repo.branches)
    gone = {record["name"] for record in told.of("dropping")}
    for record in told.of("branch"):
        assert record["name"] in heads or record["name"] in gone, record
    tags = dict(repo.tags)
    gone = {record["name"] for record in told.of("untagging")}
    for record in told.of("tag"):
        kept = tags.get(record["name"])
        assert kept == record["commit"] or (kept is None and record["name"] in gone), record
    return heads


def _check_once(commits: Any, verdict: Verdict) -> None:
    """Check that nobody's work is there twice."""
    seen: dict[tuple[int, int], str] = {}
    for commit in commits:
        note = commit.metadata
        if "how" not in note:
            continue
        who = note["worker"], note["sequence"]
        assert who not in seen, f"{who} is in {seen.get(who)} and in {commit.id}"
        seen[who] = commit.id
        verdict.how[note["how"]] += 1
        verdict.how.update({operation["do"] for operation in note["operations"]})


def _check_acknowledged(
    histories: Mapping[str, Sequence[Commit]], told: Told, verdict: Verdict
) -> None:
    """Check that what was acknowledged is in the history of its branch, unless amended there."""
    reached = {name: {commit.id: commit for commit in hist} for name, hist in histories.items()}
    replaced = {
        old
        for history in histories.values()
        for commit in history
        for old in commit.metadata.get("replaces", ())
    }
    by_branch = defaultdict(list)
    for record in told.of("commit"):
        by_branch[record["branch"]].append(record)
    acknowledged = set()
    for branch, records in by_branch.items():
        for record in records:
            assert record["id"] not in acknowledged, record
            acknowledged.add(record["id"])
            if branch in reached and record["id"] not in replaced:
                note = reached[branch][record["id"]].metadata
                assert all(note[name] == record[name] for name in ("worker", "sequence")), record
    verdict.commits = len(acknowledged)
    silent = Counter[int]()
    for commit in reached["main"].values():
        if commit.parents and commit.id not in acknowledged and commit.metadata["worker"] > 0:
            silent[commit.metadata["worker"]] += 1
    verdict.unacknowledged = silent.total()


def _check_contents(
    repo: vzarr.Repository,
    replay: Replay,
    heads: Mapping[str, str],
    chance: random.Random,
    samples: int,
    verdict: Verdict,
) -> None:
    """Compare heads, tags and some other commits with the replay."""
    wanted = {head for name, head in heads.items() if not name.startswith("auto/")}
    wanted.update(repo.tags.values())
    rest = sorted(replay.states.keys() - wanted)
    wanted.update(chance.sample(rest, min(samples, len(rest))))
    for commit in sorted(wanted):
        found = read_state(repo.store(commit))
        what = f"commit {commit}: {repo.show(commit).metadata}"
        assert_equal(found, replay.states[commit], what)
        assert_consistent(found, what)
    verdict.compared = len(wanted)


def _check_autocommits(
    repo: vzarr.Repository, replay: Replay, heads: Mapping[str, str], told: Told
) -> None:
    """Check that every write that returned is there, and at most one that did not."""
    writing, wrote = defaultdict(list), Counter(it["branch"] for it in told.of("wrote"))
    for record in told.of("writing"):
        writing[record["branch"]].append(record["operation"])
    bases = {record["name"]: record["base"] for record in told.of("branch")}
    for name, operations in writing.items():
        number = wrote[name]
        assert number <= len(operations) <= number + 1
        found = read_state(repo.store(heads[name]))
        states = [
            do.apply_all(operations[:done], replay.states[bases[name]])
            for done in {number, len(operations)}
        ]
        assert any(_is_equal(found, state) for state in states), name


def _is_equal(found: State, expected: State) -> bool:
    try:
        assert_equal(found, expected, "")
    except AssertionError:
        return False
    return True


def _check_leftovers(repo: vzarr.Repository) -> None:
    """Check that nothing is left of the dead, and nothing is damaged."""
    assert [it for it in repo.sessions() if it.owner.pid != os.getpid()] == []
    with repo._environment.read() as txn:
        assert txn.count("sessions") == 0
    from vzarr.check import check as full

    report = full(repo._objects, "full")
    assert report.ok, report
    assert report.garbage == 0, report
