"""Fetch, pull and push between files of one machine."""

from __future__ import annotations

import threading

import pytest
import zarr

import vzarr
from tests.support import assert_sound
from tests.sync.conftest import AUTHOR, fill, values


def test_a_push_moves_what_is_new(first, second):
    commit = fill(second, "third", 20, 5)
    report = second.push()
    assert first.branches["main"] == commit
    (update,) = report.updates
    assert (update.name, update.how, update.new) == ("main", "fast-forward", commit)
    assert (report.commits, report.chunks) == (1, 2)
    assert report.url == first.path
    assert values(first) == values(second)
    assert first.root_id() == second.root_id()
    assert first.reflog("main")[0].operation == "push"
    assert second.session("origin/main").base == commit


def test_a_push_of_nothing_moves_nothing(first, second):
    report = second.push()
    assert [update.how for update in report.updates] == ["up to date"]
    assert (report.commits, report.nodes, report.chunks) == (0, 0, 0)
    assert report.wire_bytes < 1000


def test_what_is_not_a_fast_forward_is_refused(first, second):
    theirs, ours = fill(first, "theirs", 20, 5), fill(second, "ours", 40, 6)
    before = second.info().commits
    with pytest.raises(vzarr.NotFastForwardError, match=r"Pull first.*--force") as caught:
        second.push()
    assert caught.value.branch == "main"
    assert first.branches["main"] == theirs
    assert second.branches["main"] == ours
    assert second.info().commits == before
    with pytest.raises(KeyError):
        first.session(ours)

    report = second.push(force=True)
    assert [update.how for update in report.updates] == ["forced"]
    assert first.branches["main"] == ours
    assert first.reflog("main")[0].operation == "push (forced)"
    # What was dropped can be had back.
    assert first.reflog("main")[0].old == theirs


def test_a_pull_merges(first, second):
    fill(first, "theirs", 20, 5)
    fill(second, "ours", 40, 6)
    report = second.pull()
    assert report.how == "merge"
    merged = second.show("main")
    assert merged.message == f"Merge branch 'main' of {first.path}"
    assert values(second)[20:23] == [5] * 3
    assert values(second)[40:43] == [6] * 3
    second.push()
    assert first.branches["main"] == merged.id
    assert second.pull().how == "up to date"
    assert first.pull(second.path).how == "up to date"


def test_a_pull_goes_forward(first, second):
    commit = fill(first, "theirs", 20, 5)
    report = second.pull()
    assert (report.how, report.new, second.branches["main"]) == ("fast-forward", commit, commit)


def test_a_pull_with_conflicts_lists_them_and_keeps_what_was_fetched(first, second):
    theirs, ours = fill(first, "theirs", 20, 5), fill(second, "ours", 20, 6)
    with pytest.raises(vzarr.MergeConflict) as caught:
        second.pull()
    assert caught.value.conflicts
    assert second.branches["main"] == ours
    assert second.session("origin/main").base == theirs
    second.pull(strategy="theirs")
    assert values(second)[20:23] == [5] * 3


def test_a_pull_makes_a_branch_that_is_not_here(first, second):
    first.branches.create("new")
    report = second.pull(None, "new")
    assert (report.how, report.old) == ("created", None)
    assert second.branches["new"] == first.branches["new"]


def test_a_fetch_moves_no_branch(first, second):
    before = dict(second.branches)
    commit = fill(first, "theirs", 20, 5)
    first.tags.create("v2", message="again")
    first.branches.create("new")
    report = second.fetch()
    assert dict(second.branches) == before
    assert report.tracked["origin/main"] == commit
    assert second.session("origin/main").base == commit
    assert second.session("origin/new").base == commit
    assert second.tags["v2"] == commit
    assert second.tags.details()[1].message == "again"
    # It is kept, though no branch leads there.
    second.gc()
    second.expire(keep_last=0)
    second.gc()
    assert values(second, "origin/main") == values(first)
    assert second.reflog("origin/main")[0].new == commit


def test_a_tag_that_names_something_else_stays(first, second):
    second.tags.create("v2", at="v1")
    first.tags.create("v2")
    kept = second.tags["v2"]
    report = second.fetch()
    assert second.tags["v2"] == kept
    assert "kept" in [update.how for update in report.updates]
    with pytest.raises(vzarr.AlreadyExistsError, match="tags never move") as caught:
        second.push(tags=True)
    assert caught.value.name == "v2"
    second.push(tags=True, force=True)
    assert first.tags["v2"] == kept


def test_several_branches_move_together_or_not_at_all(first, second):
    fill(first, "theirs", 20, 5)
    before = dict(first.branches)
    fill(second, "ours", 40, 6)
    second.branches.create("topic")
    with pytest.raises(vzarr.NotFastForwardError):
        second.push(None, ["topic", "main"])
    assert dict(first.branches) == before
    second.pull()
    second.push(None, ["topic", "main"])
    assert first.branches["topic"] == second.branches["topic"]


def test_a_new_repository_takes_whatever_comes(first, repo):
    first.push(repo.path, ["main", "dev"], tags=True)
    assert dict(repo.branches) == dict(first.branches)
    assert dict(repo.tags) == dict(first.tags)
    assert repo.root_id() == first.root_id()


def test_a_new_repository_pulls_whatever_there_is(first, repo):
    assert repo.pull(first.path).how == "fast-forward"
    assert repo.branches["main"] == first.branches["main"]


def test_another_repository_is_refused(first, repo):
    with repo.transaction("main", "something else") as store:
        zarr.create_array(store, name="x", shape=(4,), chunks=(2,), dtype="i4")[:] = 3
    before = dict(repo.branches), dict(first.branches)
    for call in (
        lambda: repo.push(first.path),
        lambda: repo.pull(first.path),
        lambda: repo.fetch(first.path),
        lambda: repo.push(first.path, force=True),
    ):
        with pytest.raises(vzarr.UnrelatedError, match="no commit in common"):
            call()
    assert (dict(repo.branches), dict(first.branches)) == before
    assert repo.info().commits == 2


def test_names_that_lead_nowhere(first, second, tmp_path):
    with pytest.raises(vzarr.NotFoundError, match="no remote 'upstream'"):
        second.fetch("upstream")
    with pytest.raises(vzarr.NotFoundError, match="vzarr init"):
        second.push(tmp_path / "none.vzarr")
    with pytest.raises(vzarr.RefNotFoundError, match="no branch 'nope'; it has dev, main"):
        second.fetch(None, "nope")
    with pytest.raises(vzarr.RefNotFoundError, match="no branch 'nope'"):
        second.push(None, "nope")
    with pytest.raises(vzarr.InvalidInputError, match="the repository itself"):
        second.push(second.path)
    with pytest.raises(vzarr.InvalidInputError):
        second.fetch(3)  # type: ignore[arg-type]
    (tmp_path / "text.vzarr").write_text("no repository")
    with pytest.raises(vzarr.NotARepositoryError):
        second.fetch(tmp_path / "text.vzarr")
    second.remotes.remove("origin")
    with pytest.raises(vzarr.NotFoundError, match="vzarr remote FILE add origin"):
        second.pull()


def test_prune_forgets_branches_that_are_gone(first, second):
    second.remotes.add("other", first.path)
    first.branches.create("new")
    for name in ("origin", "other"):
        second.fetch(name)
    at = first.branches["new"]
    first.branches.delete("new")
    first.branches.delete("dev")
    report = second.fetch()
    assert report.pruned == ()
    assert second.session("origin/new").base == at
    report = second.fetch(branches="main", prune=True)
    assert report.pruned == ("origin/dev", "origin/new")
    assert "origin/new is not there any more" in str(report)
    for name in report.pruned:
        with pytest.raises(vzarr.RefNotFoundError):
            second.session(name)
    # The reflog tells of it; a remote of another name, and our own branches, are none of it.
    newest = second.reflog("origin/new")[0]
    assert (newest.old, newest.new) == (at, None)
    assert newest.operation == f"fetch: from {first.path}"
    assert second.session("other/new").base == at
    assert "dev" in second.branches
    assert second.fetch(prune=True).pruned == ()


def test_prune_needs_a_remote_with_a_name(first, repo):
    repo.fetch(first.path)
    first.branches.delete("dev")
    with pytest.raises(vzarr.InvalidInputError, match=r"prune= .* repo.remotes.add"):
        repo.fetch(first.path, prune=True)
    assert repo.session("FETCH_HEAD/dev").base


def test_prune_and_complete_in_one_go(first, clone_of_part):
    first.branches.create("new")
    clone_of_part.fetch()
    first.branches.delete("new")
    report = clone_of_part.fetch(complete=True, prune=True)
    assert report.pruned == ("origin/new",)
    assert clone_of_part.check("full").left_out == 0
    assert clone_of_part.remotes["origin"].path == ""


@pytest.fixture
def clone_of_part(first, tmp_path):
    path = tmp_path / "part.vzarr"
    vzarr.clone(first.path, path, path="deep", author="Part <part@example.org>")
    with vzarr.open(path, author="Part <part@example.org>") as repo:
        yield repo


def test_who_only_reads_is_not_pushed_to(first, second):
    commit = fill(second, "ours", 40, 6)
    with vzarr.open(second.path, "r") as reading:
        reading.push()
        # Though others of this process may write to the file.
        assert reading.session("origin/main").base != commit
        for call in (reading.fetch, reading.pull, lambda: reading.remotes.remove("origin")):
            with pytest.raises(vzarr.ReadOnlyError):
                call()
    assert first.branches["main"] == second.branches["main"]


def test_remotes_are_remembered(first, second, tmp_path):
    assert dict(second.remotes).keys() == {"origin"}
    second.remotes.add("lab", "ada@example.org:x.vzarr", path="/deep/")
    assert str(second.remotes["lab"]) == "lab  ada@example.org:x.vzarr (only deep)"
    with pytest.raises(vzarr.AlreadyExistsError):
        second.remotes.add("lab", "y")
    for name in ("a b", "", "a/b", "FETCH_HEAD", 3):
        with pytest.raises(vzarr.InvalidInputError):
            second.remotes.add(name, "y")
    with pytest.raises(vzarr.InvalidInputError):
        second.remotes.add("y", "")
    second.branches.create("topic/one")
    with pytest.raises(vzarr.AlreadyExistsError, match="'topic/one' would be mistaken"):
        second.remotes.add("topic", "y")
    with vzarr.open(second.path, "r") as again:
        assert list(again.remotes) == ["lab", "origin"]
    second.remotes.remove("origin")
    with pytest.raises(vzarr.RefNotFoundError):
        second.session("origin/main")
    with pytest.raises(vzarr.NotFoundError):
        second.remotes.remove("origin")
    second.compact()
    assert list(second.remotes) == ["lab"]


def test_a_remote_is_found_from_everywhere(first, repo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    repo.remotes.add("near", "first.vzarr")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert repo.remotes["near"].url == first.path
    repo.pull("near")
    assert repo.branches["main"] == first.branches["main"]


def test_a_repository_without_a_name_is_known_by_what_was_fetched(first, repo):
    repo.fetch(first.path)
    assert repo.session("FETCH_HEAD/dev").base == first.branches["dev"]


def test_of_pushes_at_once_one_wins(first, second, tmp_path):
    vzarr.clone(first.path, tmp_path / "third.vzarr", author=AUTHOR)
    outcomes = []
    barrier = threading.Barrier(2)
    with vzarr.open(tmp_path / "third.vzarr", author=AUTHOR) as third:
        fill(second, "ours", 40, 6)
        fill(third, "theirs", 60, 6)

        def push(repo):
            barrier.wait()
            try:
                outcomes.append(repo.push().updates[0].how)
            except vzarr.NotFastForwardError:
                outcomes.append("refused")

        threads = [threading.Thread(target=push, args=(repo,)) for repo in (second, third)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["fast-forward", "refused"]
        for repo in (second, third):
            repo.pull()
            repo.push()
    assert values(first)[40:43] == values(first)[60:63] == [6] * 3
    assert_sound(tmp_path / "third.vzarr")


def test_a_push_waits_for_who_has_the_branch(first, second):
    fill(second, "ours", 40, 6)
    begun, go_on = threading.Event(), threading.Event()

    def hold():
        with first.transaction("main", "alone", exclusive=True) as store:
            begun.set()
            go_on.wait()
            zarr.open_array(store, path="t")[0] = 9

    holder = threading.Thread(target=hold)
    holder.start()
    begun.wait()
    refused = []

    def push():
        try:
            second.push()
        except vzarr.NotFastForwardError as error:
            refused.append(error)

    pusher = threading.Thread(target=push)
    pusher.start()
    go_on.set()
    pusher.join()
    holder.join()
    # The transaction came first, so that the push was no fast-forward any more.
    assert len(refused) == 1
    second.pull()
    second.push()
    assert values(first)[0] == 9


def test_arrays_that_moved_and_came_back_travel_once(first, second):
    before = values(second)
    with second.transaction("main", "rewrite") as store:
        zarr.open_array(store, path="t")[:] = 1
    second.move("deep/u", "v")
    second.commit("moved")
    second.revert("main~1")
    report = second.push()
    # One chunk of the same value all over, one document; the rest is there.
    assert report.chunks <= 2
    assert values(first) == before
    assert first.root_id() == second.root_id()


def test_merges_travel_with_both_sides(first, second):
    second.merge("dev", into="main")
    fill(second, "after", 2, 3)
    second.push(None, ["main"])
    assert first.branches["main"] == second.branches["main"]
    assert len(first.log("main")) == len(second.log("main"))
    assert first.root_id() == second.root_id()
