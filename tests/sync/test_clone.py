"""Clones: whole, of one branch, shallow and partial."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

import vzarr
from tests.support import assert_sound
from tests.sync.conftest import AUTHOR, fill, values


@pytest.fixture
def clone(first, tmp_path):
    """Clone the first repository with some options, and open the clone."""
    opened = []

    def clone(**options):
        path = tmp_path / f"clone{len(opened)}.vzarr"
        vzarr.clone(first.path, path, author=AUTHOR, **options)
        assert_sound(path)
        repo = vzarr.open(path, "r+", author=AUTHOR)
        opened.append(repo)
        return repo

    yield clone
    for repo in opened:
        repo.close()
        assert_sound(repo.path)


def test_a_clone_is_the_same_repository(first, tmp_path):
    report = vzarr.clone(first.path, tmp_path / "clone.vzarr", author=AUTHOR)
    assert report.branches == dict(first.branches)
    assert report.tags == dict(first.tags)
    assert report.commits == first.info().commits
    assert report.path == str(tmp_path / "clone.vzarr")
    assert sorted(each.name for each in tmp_path.iterdir() if "clone" in each.name) == [
        "clone.vzarr"
    ]
    with vzarr.open(tmp_path / "clone.vzarr", author=AUTHOR) as repo:
        assert repo.id == first.id
        assert dict(repo.branches) == dict(first.branches)
        assert [str(commit) for commit in repo.log("dev")] == [str(c) for c in first.log("dev")]
        assert repo.remotes["origin"].url == first.path
        assert repo.session("origin/dev").base == first.branches["dev"]
        assert repo.reflog("main")[0].operation == f"clone: from {first.path}"
        assert values(repo) == values(first)
        # What the transfer began from is garbage, and nothing else.
        assert repo.gc().commits == 1
        fill(repo, "goes on", 4, 4)
    assert_sound(tmp_path / "clone.vzarr")


def test_a_clone_of_one_branch(first, clone):
    repo = clone(branch="dev")
    assert list(repo.branches) == ["dev"]
    assert list(repo.tags) == []
    assert repo.root_id("dev") == first.root_id("dev")


def test_where_a_clone_cannot_be(first, tmp_path):
    (tmp_path / "there").write_text("x")
    with pytest.raises(vzarr.AlreadyExistsError):
        vzarr.clone(first.path, tmp_path / "there")
    with pytest.raises(vzarr.NotFoundError, match="does not exist"):
        vzarr.clone(first.path, tmp_path / "no" / "where.vzarr")
    with pytest.raises(vzarr.NotFoundError):
        vzarr.clone(tmp_path / "none.vzarr", tmp_path / "new.vzarr")
    with pytest.raises(vzarr.RefNotFoundError):
        vzarr.clone(first.path, tmp_path / "new.vzarr", branch="nope")
    for wrong in ({"depth": 0}, {"depth": True}, {"path": 3}):
        with pytest.raises(vzarr.InvalidInputError):
            vzarr.clone(first.path, tmp_path / "new.vzarr", **wrong)
    with pytest.raises(vzarr.InvalidInputError):
        vzarr.clone("", tmp_path / "new.vzarr")
    (tmp_path / "new.vzarr.part").write_text("something else")
    with pytest.raises(vzarr.NotARepositoryError):
        vzarr.clone(first.path, tmp_path / "new.vzarr")
    (tmp_path / "new.vzarr.part").unlink()
    with vzarr.open(tmp_path / "new.vzarr.part", author=AUTHOR):
        pass
    with pytest.raises(vzarr.NotARepositoryError, match="interrupted clone"):
        vzarr.clone(first.path, tmp_path / "new.vzarr")
    assert not (tmp_path / "new.vzarr").exists()


def test_a_repository_of_a_newer_format(first, second, monkeypatch):
    from vzarr import dialing, serving

    monkeypatch.setattr(serving, "identity", lambda objects: (2, bytes(16)))
    with pytest.raises(vzarr.FormatVersionError, match="install a newer"):
        second.fetch()
    # One that does not mind who asks, and is asked by an older one.
    monkeypatch.setattr(dialing, "FORMAT_VERSION", 9)
    with pytest.raises(vzarr.FormatVersionError, match="asks"):
        monkeypatch.setattr(serving, "identity", lambda objects: (10, bytes(16)))
        second.fetch()


# ── shallow ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def older(first):
    """Two more commits, so that there are snapshots that neither a branch nor a tag is on."""
    fill(first, "third", 120, 3)
    fill(first, "fourth", 120, 4)


def test_a_shallow_clone_has_all_commits_and_the_newest_snapshots(first, older, clone):
    whole, repo = clone(), clone(depth=1)
    assert repo.info().chunks < whole.info().chunks
    assert [commit.id for commit in repo.log("dev")] == [c.id for c in first.log("dev")]
    assert values(repo) == values(first)
    with pytest.raises(vzarr.AbsentError, match=r"vzarr fetch .* --complete") as caught:
        repo.session("main~2")
    assert caught.value.name == first.show("main~2").root
    assert values(repo, "v1") == values(first, "v1")
    for look in (
        lambda: repo.diff("main~2", "main"),
        lambda: repo.blame("t", ref="main~1"),
        lambda: repo.redact("t"),
    ):
        with pytest.raises(vzarr.AbsentError, match=r"vzarr fetch .* --complete"):
            look()
    report = repo.check("full")
    assert report.ok
    assert report.left_out == 2
    assert "left out by a shallow or partial clone: 2 " in str(report)
    repo.gc()
    repo.compact()
    assert repo.check("full").left_out == 2
    assert repo.du()


def test_the_log_of_a_path_ends_where_a_shallow_clone_does(first, older, clone):
    """As git's does: the oldest commit whose data is there counts as having made what it has."""
    repo = clone(depth=2, branch="main")
    oldest = repo.branches["main"], repo.show("main~1").id
    assert [commit.id for commit in repo.log("main", path="t")] == list(oldest)
    assert [commit.id for commit in repo.log("main", path="deep/u")] == [oldest[1]]
    assert list(repo.log("main", path="nowhere")) == []
    # What is there of older commits, because a tag is on it, is compared with what is there.
    repo = clone(depth=1)
    heads = [repo.branches["main"], repo.tags["v1"]]
    assert [commit.id for commit in repo.log("main", path="t")] == heads
    repo.fetch(complete=True)
    for path in ("t", "deep/u"):
        assert repo.log("main", path=path) == first.log("main", path=path)


def test_blame_ends_where_a_shallow_clone_does(first, older, clone):
    repo = clone(depth=2, branch="main")
    newest, oldest = repo.show("main"), repo.show("main~1")
    blame = repo.blame("t")
    whole = first.blame("t")
    assert blame.keys() == whole.keys()
    assert blame.or_before == {oldest.id}
    assert whole.or_before == frozenset()
    changed = {chunk for chunk, commit in whole.items() if commit == newest}
    assert {chunk for chunk, commit in blame.items() if commit == newest} == changed != set()
    assert {blame[chunk].id for chunk in blame.keys() - changed} == {oldest.id}
    lines = str(blame).splitlines()
    assert [line.startswith("at or before ") for line in lines] == [False, True]
    assert lines[1].startswith(f"at or before {oldest}")
    # Nothing older is asked for where it has no say.
    assert repo.blame("t", slice(120, 123)).or_before == frozenset()
    repo.fetch(complete=True)
    assert dict(repo.blame("t")) == dict(whole)


def test_blame_of_a_merge_with_a_side_that_is_left_out(first, older, clone):
    """What the other side has is its own; the rest may be older than the merge."""
    first.merge("dev", "main", "theirs")
    repo = clone(depth=1)
    fill(repo, "ours", 20, 3)
    blame = repo.blame("t")
    merge, dev = repo.show("main~1"), repo.show("dev")
    assert blame.or_before == {merge.id, dev.id}
    assert [blame[chunk,].id for chunk in (10, 50, 51)] == [repo.branches["main"], dev.id, dev.id]
    assert {commit.id for commit in blame.values()} == {repo.branches["main"], merge.id, dev.id}


@pytest.mark.parametrize("options", [{"depth": 1}, {"path": "deep/u"}])
def test_a_part_can_be_recovered_and_backed_up(first, older, clone, tmp_path, options):
    repo = clone(**options)
    repo.backup(tmp_path / "backup.vzarr")
    left_out = repo.check("full").left_out
    vzarr.recover(repo.path, tmp_path / "saved.vzarr")
    for name in ("backup.vzarr", "saved.vzarr"):
        with vzarr.open(tmp_path / name, "r") as copy:
            assert copy.check("full").left_out == left_out > 0
            assert dict(copy.branches) == dict(repo.branches)
            assert values(copy, path="deep/u") == values(first, path="deep/u")
            assert copy.remotes["origin"] == repo.remotes["origin"]


def test_a_shallow_clone_is_worked_in_and_pushed_from(first, older, clone):
    repo = clone(depth=1)
    fill(repo, "ours", 20, 3)
    fill(first, "theirs", 40, 4)
    assert repo.pull().how == "merge"
    repo.push()
    assert values(first)[20:23] == [3] * 3
    assert first.root_id() == repo.root_id()
    assert repo.check("full").left_out == 2


def test_a_shallow_clone_can_be_completed(first, older, clone):
    repo = clone(depth=1)
    report = repo.fetch(complete=True)
    assert report.nodes
    assert repo.check("full").left_out == 0
    assert repo.root_id("main~2") == first.root_id("main~2")
    assert len(repo.diff("main~1", "main"))
    assert repo.fetch(complete=True).nodes == 0


def test_a_clone_of_a_shallow_clone_is_one(first, older, clone, tmp_path):
    repo = clone(depth=1)
    vzarr.clone(repo.path, tmp_path / "again.vzarr", author=AUTHOR)
    assert_sound(tmp_path / "again.vzarr")
    with vzarr.open(tmp_path / "again.vzarr", "r") as again:
        assert again.check("full").left_out == 2
        assert values(again) == values(first)


def test_a_part_is_not_pushed_to_where_nothing_is(older, clone, repo):
    shallow = clone(depth=1)
    with pytest.raises(vzarr.TransferError, match="part of another repository"):
        shallow.push(repo.path)
    assert repo.info().commits == 1
    assert repo.check("full").left_out == 0


def test_depth_counts_on_each_line(first, older, clone):
    repo = clone(depth=2, branch="main")
    for ref in ("main", "main~1"):
        assert values(repo, ref) == values(first, ref)
    assert repo.check("full").left_out == 2
    repo = clone(depth=2)
    for ref in ("main", "main~1", "dev", "dev~1", "v1"):
        assert values(repo, ref) == values(first, ref)
    assert repo.check("full").left_out == 0


# ── partial ──────────────────────────────────────────────────────────────────────────────────────


def test_a_partial_clone_has_one_array_and_the_documents(first, clone):
    repo = clone(path="deep/u")
    assert values(repo, path="deep/u") == values(first, path="deep/u")
    assert repo.root_id() == first.root_id()
    assert str(repo.tree()) == str(first.tree())
    array = zarr.open_array(repo.store("main"), path="t", mode="r")
    assert array.shape == (200,)
    with pytest.raises(vzarr.AbsentError):
        array[:]
    assert repo.check("full").left_out
    repo.gc()
    assert repo.du()
    assert values(repo, path="deep/u") == values(first, path="deep/u")


def test_nothing_of_what_is_left_out_is_touched_even_if_another_file_has_it(first, clone):
    """Trees of both files are in one process, whose caches must not mix them."""
    repo = clone(path="deep/u")
    values(first)
    with pytest.raises(vzarr.AbsentError), repo.transaction("main", "no") as store:
        zarr.open_array(store, path="t")[:4] = 1
    assert repo.check("full").ok


def test_a_partial_clone_is_worked_in_and_pulled_into(first, clone):
    repo = clone(path="deep/u")
    fill(repo, "ours", 20, 3, path="deep/u")
    fill(first, "theirs", 40, 4)
    fill(first, "and here", 60, 5, path="deep/u")
    assert repo.pull().how == "merge"
    repo.push()
    assert values(first, path="deep/u")[20:23] == [3] * 3
    assert values(repo, path="deep/u") == values(first, path="deep/u")
    assert values(first)[40:43] == [4] * 3
    assert first.root_id() == repo.root_id()
    with pytest.raises(vzarr.AbsentError):
        values(repo)


def test_a_partial_clone_can_be_completed(first, clone):
    repo = clone(path="deep")
    repo.fetch(complete=True)
    assert repo.check("full").left_out == 0
    assert values(repo) == values(first)
    assert repo.remotes["origin"].path == ""
    fill(first, "later", 2, 2)
    repo.pull()
    assert values(repo) == values(first)


def test_a_path_that_is_nowhere(first, tmp_path):
    with pytest.raises(vzarr.NotFoundError, match="no commit of") as caught:
        vzarr.clone(first.path, tmp_path / "clone.vzarr", path="deep/no", author=AUTHOR)
    assert caught.value.name == "deep/no"
    with pytest.raises(vzarr.NotFoundError):
        first.bundle(tmp_path / "x.vzb", path="deep/no")
    assert not (tmp_path / "x.vzb").exists()


def test_plain_files_beside_the_path_are_left_out(first, clone):
    session = first.session("main")
    session.set("notes.txt", b"The buoy was lost.")
    session.set("deep/u/notes.txt", b"It was found.")
    session.commit("notes")
    repo = clone(path="deep")
    assert bytes(repo.session("main").get("deep/u/notes.txt") or b"") == b"It was found."
    with pytest.raises(vzarr.AbsentError):
        repo.session("main").get("notes.txt")


def test_large_values_travel_in_parts(repo, tmp_path):
    data = np.random.default_rng(1).integers(0, 255, 11 << 20, dtype="u1")
    with repo.transaction("main", "large") as store:
        array = zarr.create_array(
            store, name="x", shape=data.shape, chunks=data.shape, dtype="u1", compressors=None
        )
        array[:] = data
    report = vzarr.clone(repo.path, tmp_path / "clone.vzarr", author=AUTHOR)
    assert report.nbytes > data.nbytes
    with vzarr.open(tmp_path / "clone.vzarr", "r") as clone:
        assert (zarr.open_array(clone.store("main"), path="x", mode="r")[:] == data).all()
    assert_sound(tmp_path / "clone.vzarr")


def test_it_tells_how_far_it_is(first, tmp_path):
    seen = []
    vzarr.clone(
        first.path,
        tmp_path / "clone.vzarr",
        author=AUTHOR,
        progress=lambda *facts: seen.append(facts),
    )
    assert {what for _, _, what in seen} == {"commits", "bytes"}
    done = [(done, total) for done, total, what in seen if what == "bytes"]
    assert done == sorted(done)
    assert all(0 < one <= whole for one, whole in done)
    seen.clear()
    first.bundle(tmp_path / "all.vzb", progress=lambda *facts: seen.append(facts))
    assert {what for _, _, what in seen} == {"bytes"}

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vzarr.clone(first.path, tmp_path / "other.vzarr", author=AUTHOR, progress=stop)
    assert not (tmp_path / "other.vzarr").exists()
    vzarr.clone(first.path, tmp_path / "other.vzarr", author=AUTHOR)
    assert_sound(tmp_path / "other.vzarr")
