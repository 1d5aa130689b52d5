"""Bundles: what another repository lacks, in one file."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

import vzarr
from tests.support import assert_sound
from tests.sync.conftest import AUTHOR, fill, values

TORTURE = os.environ.get("VZARR_TORTURE") == "1"


@pytest.fixture
def out(tmp_path):
    """Where a bundle goes."""
    return tmp_path / "march.vzb"


def test_a_bundle_of_all_makes_a_clone(first, out, tmp_path):
    report = first.bundle(out)
    assert report.refs == {**first.branches, **first.tags}
    assert report.needs == ()
    assert report.file_bytes == out.stat().st_size
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".vzarr")] == []
    vzarr.clone(out, tmp_path / "clone.vzarr", author=AUTHOR)
    assert_sound(tmp_path / "clone.vzarr")
    with vzarr.open(tmp_path / "clone.vzarr", "r") as clone:
        assert dict(clone.branches) == dict(first.branches)
        assert dict(clone.tags) == dict(first.tags)
        assert values(clone, "dev") == values(first, "dev")
        assert clone.id == first.id


def test_a_bundle_has_just_what_is_new(first, second, out):
    whole = first.bundle(out)
    base = first.branches["main"]
    commit = fill(first, "new", 20, 5)
    report = first.bundle(out, "main", since=base, overwrite=True)
    assert report.refs == {"main": commit}
    assert report.needs == (base,)
    assert (report.commits, report.chunks) == (1, 2)
    assert report.file_bytes < whole.file_bytes / 5
    taken = second.unbundle(out)
    assert [update.how for update in taken.updates] == ["fast-forward"]
    assert (taken.commits, taken.chunks) == (1, 2)
    assert second.branches["main"] == commit
    assert second.root_id() == first.root_id()
    assert [update.how for update in second.unbundle(out).updates] == ["up to date"]


def test_a_bundle_since_another_one(first, second, out, tmp_path):
    fill(first, "march", 20, 5)
    first.bundle(out, since="main~1")
    fill(first, "april", 30, 6)
    first.bundle(tmp_path / "april.vzb", since=str(out))
    with pytest.raises(vzarr.CommitNotFoundError, match="goes on from commits") as caught:
        second.unbundle(tmp_path / "april.vzb")
    assert caught.value.name == first.show("main~1").id
    with pytest.raises(vzarr.CommitNotFoundError):
        second.pull(tmp_path / "april.vzb")
    with pytest.raises(vzarr.CommitNotFoundError):
        vzarr.clone(tmp_path / "april.vzb", tmp_path / "clone.vzarr", author=AUTHOR)
    second.unbundle(out)
    second.unbundle(tmp_path / "april.vzb")
    assert values(second) == values(first)


def test_a_bundle_is_merged_by_a_pull(first, second, out):
    fill(first, "theirs", 20, 5)
    ours = fill(second, "ours", 40, 6)
    first.bundle(out, "main")
    with pytest.raises(vzarr.NotFastForwardError, match="Pull"):
        second.unbundle(out)
    assert second.branches["main"] == ours
    told = set()
    assert second.pull(out, progress=lambda *facts: told.add(facts[2])).how == "merge"
    # The merge as well as what came before it.
    assert "commit" in told
    assert values(second)[20:23] == [5] * 3
    assert second.unbundle(out, force=True).updates[0].how == "forced"
    assert second.branches["main"] == first.branches["main"]
    with pytest.raises(vzarr.ReadOnlyError, match="is a bundle"):
        second.push(out)


def test_shallow_and_partial_bundles(first, out, tmp_path):
    for number, options in enumerate(({"depth": 1}, {"path": "deep/u"})):
        report = first.bundle(out, "main", overwrite=True, **options)
        assert report.left_out
        path = tmp_path / f"{number}.vzarr"
        vzarr.clone(out, path, author=AUTHOR)
        assert_sound(path)
        with vzarr.open(path, "r+", author=AUTHOR) as clone:
            assert clone.check("full").left_out == report.left_out
            assert values(clone, path="deep/u") == values(first, path="deep/u")
            assert clone.root_id() == first.root_id()
            clone.fetch(first.path, complete=True)
            assert clone.check("full").left_out == 0
        assert_sound(path)


def test_what_cannot_be_bundled(first, out, tmp_path):
    with pytest.raises(vzarr.InvalidInputError, match="nothing to put"):
        first.bundle(out, "main", since="main")
    with pytest.raises(vzarr.RefNotFoundError):
        first.bundle(out, "nope")
    with pytest.raises(vzarr.RefNotFoundError):
        first.bundle(out, since="nope")
    with pytest.raises(vzarr.NotFoundError):
        first.bundle(tmp_path / "no" / "x.vzb")
    assert not out.exists()
    out.write_text("mine")
    with pytest.raises(vzarr.AlreadyExistsError):
        first.bundle(out)
    assert out.read_text() == "mine"
    with pytest.raises(vzarr.CorruptError):
        first.unbundle(out)
    with pytest.raises(vzarr.StorageError):
        first.unbundle(tmp_path / "none.vzb")


def test_a_bundle_of_another_repository_is_refused(first, repo, out):
    fill_other(repo)
    first.bundle(out)
    before = dict(repo.branches)
    with pytest.raises(vzarr.UnrelatedError):
        repo.unbundle(out)
    assert dict(repo.branches) == before


def fill_other(repo):
    session = repo.session("main")
    session.set("a", b"something else")
    session.commit("other")


def test_a_bundle_that_is_damaged_is_refused_as_a_whole(first, second, out, tmp_path):
    commit = fill(first, "new", 20, 5)
    first.bundle(out, "main", since="main~1")
    whole = out.read_bytes()
    before = dict(second.branches)
    chance = random.Random(3)
    for length in [*range(0, 200, 7), *chance.sample(range(len(whole)), 40)]:
        out.write_bytes(whole[:length])
        with pytest.raises(vzarr.CorruptError):
            second.unbundle(out)
    second.close()
    for place in chance.sample(range(len(whole)), 400 if TORTURE else 20):
        # Each time another file: what was whole in a damaged bundle is kept for the next time.
        copy = tmp_path / f"{place}.vzarr"
        shutil.copy(second.path, copy)
        out.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with vzarr.open(copy, author=AUTHOR) as repo:
            with pytest.raises(vzarr.FormatError):
                repo.unbundle(out)
            assert dict(repo.branches) == before
            out.write_bytes(whole)
            repo.unbundle(out)
            assert repo.branches["main"] == commit
        assert_sound(copy)


def test_a_bundle_of_a_damaged_repository_is_not_written(first, out):
    path = first.path
    first.close()
    data = bytearray(Path(path).read_bytes())
    with vzarr.open(path, "r") as repo:
        chunk = bytes(repo.session("main").get("t/c/7") or b"")
    place = data.find(chunk)
    assert place > 0
    original = bytes(data)
    data[place] ^= 1
    with open(path, "r+b") as file:
        file.write(data)
    try:
        with vzarr.open(path, "r") as repo, pytest.raises(vzarr.CorruptError):
            repo.bundle(out)
        assert not os.path.exists(out)
    finally:
        with open(path, "r+b") as file:
            file.write(original)


def test_commits_of_one_moment_are_put_into_order(first, out, tmp_path, monkeypatch):
    """Times do not tell which commit is the parent: a clock may be coarse, or go backwards."""
    monkeypatch.setattr("time.time_ns", lambda: 1_767_225_600_000_000_000)
    base = first.branches["main"]
    for number in range(12):
        first.branches.create(f"b{number}", at=base)
        session = first.session(f"b{number}")
        session.set(f"file{number}", b"%d" % number)
        session.commit(f"on {number}")
        first.merge(f"b{number}", into="main", no_ff=True)
    first.bundle(out)
    vzarr.clone(out, tmp_path / "clone.vzarr", author=AUTHOR)
    assert_sound(tmp_path / "clone.vzarr")
    vzarr.clone(first.path, tmp_path / "other.vzarr", author=AUTHOR)
    assert_sound(tmp_path / "other.vzarr")
    with vzarr.open(tmp_path / "clone.vzarr", "r") as clone:
        assert dict(clone.branches) == dict(first.branches)
