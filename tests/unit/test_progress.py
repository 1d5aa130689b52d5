"""How far long work is: that all of it tells, in order, and ends where its listener raises."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, groupby
from types import SimpleNamespace

import numpy as np
import pytest
import zarr

from tests.unit.test_garbage import write
from vzarr.errors import MergeConflict
from vzarr.progress import Meter

Call = tuple[int, int, str]


class Listener:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def __call__(self, *call: int | str) -> None:
        self.calls.append(call)

    def parts(self) -> dict[str, tuple[int, int]]:
        """Give how much of how much was done in each part, which goes up only."""
        ends: dict[str, tuple[int, int]] = {}
        for what, calls in groupby(self.calls, lambda call: call[2]):
            assert what not in ends
            done = [call[0] for call in calls]
            assert done == sorted(done)
        for done, total, what in self.calls:
            assert 0 <= done <= max(total, done)
            ends[what] = done, total
        return ends

    def totals(self, what: str) -> set[int]:
        """Give what a part was thought to be while it went on."""
        return {total for done, total, part in self.calls if part == what and done < total}


class StopError(Exception):
    pass


@pytest.fixture(autouse=True)
def _all_calls(monkeypatch):
    monkeypatch.setattr("vzarr.progress.INTERVAL", 0)


@pytest.fixture
def sea(repo):
    """An array of ten chunks, of which main and dev changed four both, in other elements."""
    with repo.transaction("main", "make a sea") as store:
        zarr.create_array(
            store, name="a", shape=(40,), chunks=(4,), dtype="i4", compressors=None, fill_value=-1
        )[:] = 0
    repo.branches.create("dev")
    with repo.transaction("main", "ours") as store:
        zarr.open_array(store, path="a")[0:16:4] = 1
    with repo.transaction("dev", "theirs") as store:
        zarr.open_array(store, path="a")[1:24:4] = 2
    return repo


WORK: dict[str, Callable[..., object]] = {
    "merge": lambda repo, **how: repo.merge("dev", **how),
    "preview": lambda repo, **how: repo.merge("dev", dry_run=True, **how),
    "cherry-pick": lambda repo, **how: repo.cherry_pick("dev", **how),
    "revert": lambda repo, **how: repo.revert("main", **how),
    "squash": lambda repo, **how: repo.squash(since="main~2", **how),
    "expire": lambda repo, **how: repo.expire(keep_last=1, **how),
    "expire, dry": lambda repo, **how: repo.expire(keep_last=1, dry_run=True, **how),
    "du": lambda repo, **how: repo.du(**how),
    "blame": lambda repo, **how: repo.blame("a", **how),
}


@pytest.mark.parametrize("name", WORK)
def test_who_raises_ends_the_work_and_the_branch_stays(sea, name):
    heard = Listener()
    before = dict(sea.branches)
    roots = {branch: sea.root_id(branch) for branch in before}

    def stop(*call: int | str) -> None:
        heard(*call)
        raise StopError

    with pytest.raises(StopError):
        WORK[name](sea, progress=stop)
    assert len(heard.calls) == 1
    assert dict(sea.branches) == before
    WORK[name](sea)
    if name not in ("merge", "cherry-pick", "revert"):
        assert {branch: sea.root_id(branch) for branch in before} == roots


@pytest.mark.parametrize("name", WORK)
def test_nobody_is_told_once_the_branch_has_moved(sea, name):
    before = dict(sea.branches)
    for number in range(1, 100):
        calls = []

        def stop(*call: int | str, calls: list[Call] = calls, number: int = number) -> None:
            calls.append(call)
            if len(calls) == number:
                raise StopError

        try:
            WORK[name](sea, progress=stop)
        except StopError:
            assert dict(sea.branches) == before
        else:
            break
    assert 0 < len(calls) < number


@pytest.mark.parametrize("name", WORK)
def test_all_is_told_and_changes_nothing(sea, name):
    heard = Listener()
    WORK[name](sea, progress=heard)
    parts = heard.parts()
    assert parts
    assert all(done == total for done, total in parts.values())


def test_a_merge_counts_what_both_sides_changed(sea):
    heard = Listener()
    sea.merge("dev", progress=heard)
    assert list(heard.parts()) == ["look", "compare", "merge", "commit"]
    # Four chunks of sixteen bytes, as base, as ours and as theirs.
    assert 4 * 16 * 3 in heard.totals("merge")
    assert heard.parts()["merge"][0] >= 4 * 16 * 3
    merged = zarr.open_array(sea.store("main"), path="a", mode="r")
    expected = np.zeros(40, "i4")
    expected[0:16:4] = 1
    expected[1:24:4] = 2
    np.testing.assert_array_equal(merged, expected)


def test_a_merge_with_a_listener_is_the_same(sea):
    sea.branches.create("copy", at="main")
    heard = Listener()
    sea.merge("dev", "copy", progress=heard)
    sea.merge("dev", "main")
    assert sea.root_id("copy") == sea.root_id("main")
    assert heard.calls


def test_what_conflicts_hold_is_not_told_of_later(sea):
    with sea.transaction("dev", "in the way") as store:
        zarr.open_array(store, path="a")[0] = 3
    heard = Listener()
    with pytest.raises(MergeConflict) as caught:
        sea.merge("dev", progress=heard)
    (conflict,) = caught.value.conflicts
    told = list(heard.calls)
    assert np.frombuffer(conflict.theirs, "i4").tolist() == [3, 2, 0, 0]
    assert heard.calls == told
    preview = sea.merge("dev", dry_run=True, progress=heard)
    told = list(heard.calls)
    assert np.frombuffer(preview.conflicts[0].ours, "i4").tolist() == [1, 0, 0, 0]
    assert heard.calls == told


def test_a_squash_counts_commits(sea):
    heard = Listener()
    sea.squash(since="main~2", progress=heard)
    assert heard.parts() == {"commits": (2, 2), "commit": (0, 0)}


def test_expire_counts_what_it_looks_at_and_removes(repo):
    for number in range(20):
        write(repo, b"%d" % number)
    heard = Listener()
    report = repo.expire(keep_last=5, progress=heard)
    assert report.entries == 16
    assert heard.parts() == {"look": (42, 42), "remove": (16, 16)}
    assert heard.totals("remove") == {16}


def test_expire_keeps_what_it_had_removed_when_it_is_stopped(repo, monkeypatch):
    for number in range(20):
        write(repo, b"%d" % number)
    # One entry a txn: the clock goes on by one whenever it is looked at.
    ticks = count()
    monkeypatch.setattr("vzarr.expiry.time", SimpleNamespace(monotonic=lambda: next(ticks)))
    monkeypatch.setattr("vzarr.expiry._SECONDS", 1.5)

    def stop(done: int, total: int, what: str) -> None:
        if what == "remove" and done:
            raise StopError

    with pytest.raises(StopError):
        repo.expire(keep_last=5, progress=stop)
    monkeypatch.undo()
    assert len(repo.reflog()) == 20
    assert repo.expire(keep_last=5).kept == 5


def test_blame_counts_commits_and_is_done_before_the_last(sea):
    for number in range(6):
        with sea.transaction("main", f"step {number}") as store:
            zarr.open_array(store, path="a")[number] = 9
    heard = Listener()
    sea.blame("a", np.s_[0:8], progress=heard)
    stored = sea.info().commits
    assert stored in heard.totals("commits")
    done, total = heard.parts()["commits"]
    assert done == total < stored


def test_du_tells_of_garbage(sea):
    session = sea.session("main")
    session.set("file", b"never committed")
    session.checkpoint()
    heard = Listener()
    usage = sea.du(progress=heard)
    assert usage.unreferenced
    session.discard()
    parts = heard.parts()
    assert parts["commits"] == (sea.info().commits,) * 2
    assert parts["nodes"][0] > 5
    assert {"unreferenced nodes", "unreferenced chunks"} <= set(parts)
    assert parts["unreferenced chunks"][0] > 0


def test_a_meter_tells_nothing_between_parts():
    heard = Listener()
    meter = Meter(heard)
    meter.step(5)
    assert heard.calls == []
    meter.stage("one", 3)
    meter.step(2)
    meter.end()
    meter.step(1)
    meter.end()
    assert heard.calls == [(0, 3, "one"), (2, 3, "one"), (2, 2, "one")]
    assert meter.is_heard
    assert not Meter(None).is_heard
