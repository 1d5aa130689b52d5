"""The power fails at any moment: what was promised is there, and nothing is half there.

``VZARR_TORTURE=1`` tries every state that ``all_crashes`` lists, with new random ones each time;
otherwise it is a sample, the same each time. ``python -m tests.power.table`` counts them.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.power.campaign import (
    Outcome,
    Promises,
    Sync,
    all_crashes,
    report,
    run,
    sample,
    verify,
    without,
)
from tests.power.disk import Crash
from tests.power.recording import Event, Recording, build_shim, is_heard, obstacle, record
from tests.power.workloads import WORKLOADS

pytestmark = pytest.mark.skipif(bool(obstacle()), reason=f"NO POWER LOSS IS TRIED: {obstacle()}")

TORTURE = os.environ.get("VZARR_TORTURE") == "1"
_EACH = 3

Recorder = Callable[[str], Recording]


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    """Record each workload once."""
    shim = build_shim(tmp_path_factory.mktemp("shim"))
    if not is_heard(shim):
        pytest.skip("NO POWER LOSS IS TRIED: LD_PRELOAD has no effect on this Python")
    recordings: dict[str, Recording] = {}

    def get(workload: str) -> Recording:
        if workload not in recordings:
            directory = tmp_path_factory.mktemp(workload)
            recordings[workload] = record(workload, shim, directory)
        return recordings[workload]

    return get


def attempt(recording: Recording, directory: Path, *, each: int = _EACH) -> Outcome:
    """Try states of a recording; all promises hold in each."""
    seed = secrets.randbits(32) if TORTURE else 1
    draw = random.Random(seed)
    crashes = all_crashes(recording, draw, repeat=5)
    outcome = run(recording, crashes if TORTURE else sample(crashes, draw, each=each))
    assert not outcome.broken, f"seed {seed}: {report(recording, outcome, directory)}"
    assert set(outcome.lost) <= {0, 1}
    return outcome


@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_state_is_what_was_promised(
    workload: str, recorder: Recorder, tmp_path: Path
) -> None:
    outcome = attempt(recorder(workload), tmp_path)
    assert outcome.tried.total() > 15
    assert outcome.distinct > 10


@pytest.mark.parametrize("workload", WORKLOADS)
def test_no_write_is_missed(workload: str, recorder: Recorder) -> None:
    assert verify(recorder(workload)) > 1


def test_normal_may_lose_one_commit_and_full_none(recorder: Recorder) -> None:
    lost = {}
    for workload in ("normal", "full"):
        recording = recorder(workload)
        crashes = all_crashes(recording, random.Random(2), repeat=0)
        # Nothing that was not synced: the most that can be lost.
        least = [crash for crash in crashes if crash.kind == "synced"]
        lost[workload] = run(recording, least[::4]).lost
    assert set(lost["full"]) == {0}
    assert set(lost["normal"]) == {0, 1}


def test_what_threads_commit_at_once_is_there_when_it_is_acknowledged(recorder: Recorder) -> None:
    """Also where one of them relied on the flush of another."""
    recording = recorder("together")
    crashes = all_crashes(recording, random.Random(4), repeat=0)
    least = [crash for crash in crashes if crash.kind == "synced"]
    assert not run(recording, least).broken
    # Without the flushes that follow a txn, and serve those who have no next one to wait for:
    lying = without(
        recording, lambda sync: sync.kind == "s" and is_meta(sync.written), created=True
    )
    marks = [event.mark["kind"] for event in lying.events if event.kind == "m"]
    assert 0 < marks.count("a sync that did nothing") < marks.count("kept")
    crashes = all_crashes(lying, random.Random(4), repeat=0)
    outcome = run(lying, [crash for crash in crashes if crash.kind == "synced"])
    assert any("has the state" in reason for _, reason in outcome.broken)


# ---- the harness itself: on a system whose syncs lie, promises are broken --------------------


def is_meta(written: Event) -> bool:
    """Whether a write is that of LMDB's meta page."""
    return written.offset < 2 * 4096 and len(written.data) < 4096


DAMAGE = "(AssertionError|CorruptError|NotARepositoryError): "

# Which syncs do nothing in which workload, and what must then be found.
LIES: dict[str, tuple[str, Callable[[Sync], bool], str]] = {
    "no sync works": ("normal", lambda sync: sync.kind == "s", DAMAGE),
    "the data is not synced": (
        "full",
        lambda sync: sync.kind == "s" and not is_meta(sync.written),
        DAMAGE,
    ),
    "the meta page is not synced": (
        "full",
        lambda sync: sync.kind == "s" and is_meta(sync.written),
        "has the state",
    ),
    "checkpoints are not synced": (
        "staging",
        lambda sync: sync.kind == "s" and is_meta(sync.written),
        "the checkpoint of session",
    ),
    "a new file's name is not synced": (
        "creation",
        lambda sync: sync.kind == "d",
        "the file is not there",
    ),
    "a new file's data is not synced": ("creation", lambda sync: sync.kind == "s", DAMAGE),
    "a compacted file's name is not synced": (
        "compaction",
        lambda sync: sync.kind == "d" and not sync.is_first,
        "has the state",
    ),
    "a backup's data is not synced": (
        "backup",
        lambda sync: sync.kind == "s" and not sync.is_first,
        rf"copy.vzarr: .*{DAMAGE}",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lost_sync_is_noticed(lie: str, recorder: Recorder) -> None:
    workload, is_lost, expected = LIES[lie]
    recording = without(recorder(workload), is_lost, created=workload != "creation")
    draw = random.Random(3)
    crashes = sample(all_crashes(recording, draw, repeat=2), draw, each=6)
    outcome = run(recording, crashes, stop_after=4)
    reasons = [reason for _, reason in outcome.broken]
    assert any(re.search(expected, reason, re.DOTALL) for reason in reasons), reasons


def test_a_state_that_breaks_a_promise_can_be_tried_again(
    recorder: Recorder, tmp_path: Path
) -> None:
    recording = without(recorder("creation"), lambda sync: sync.kind == "d", created=False)
    outcome = run(recording, [Crash(len(recording.events), "synced", 0)])
    crash, reason = outcome.broken[0]
    assert reason in report(recording, outcome, tmp_path)
    kept = pickle.loads((tmp_path / "recording.pickle").read_bytes())
    assert kept == (recording, [crash])
    assert [again for again, _ in run(*kept).broken] == [crash]


def test_states_that_cannot_be_told_apart_are_refused() -> None:
    def mark(refs: str) -> Event:
        note = {"kind": "refs", "file": "test.vzarr", "refs": {"main": refs}, "durable": True}
        return Event("m", data=json.dumps(note).encode())

    Promises(Recording("again", (mark("a"), mark("a"), mark("b"))))
    with pytest.raises(AssertionError, match="one that there was before"):
        Promises(Recording("back", (mark("a"), mark("b"), mark("a"))))


def test_a_state_that_kills_who_opens_it_is_reported() -> None:
    refs = Event("m", data=b'{"kind": "refs", "file": "test.vzarr", "refs": {}, "durable": true}')
    # The judge cannot write this file, and ends with a traceback.
    lethal = Event("c", inode=1, name="no such directory/test.vzarr")
    recording = Recording("lethal", (refs, lethal, Event("u", name=lethal.name)))
    crashes = [Crash(position, "prefix", 0) for position in (1, 2, 3)]
    outcome = run(recording, crashes)
    assert [crash for crash, _ in outcome.broken] == crashes
    found = [reason.splitlines()[0] for _, reason in outcome.broken]
    missing = "test.vzarr: the file is not there"
    assert found == [
        missing,
        "test.vzarr: the process that opened it ended: exit code 1",
        missing,
    ]
