"""Merge, cherry-pick, revert and squash: by example, against a model of dicts, and all at once."""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import vzarr
from tests.support import assert_sound
from tests.unit.test_session import GROUP, array
from vzarr import history
from vzarr.errors import (
    CommitNotFoundError,
    InvalidInputError,
    MergeConflict,
    ReadOnlyError,
    RefNotFoundError,
    SessionStateError,
)
from vzarr.format import CommitRecord, Digest

Content = dict[str, bytes]


def put(repo, branch: str, message: str = "change", **files: bytes | None) -> str:
    session = repo.session(branch)
    for key, data in files.items():
        if data is None:
            session.delete(key)
        else:
            session.set(key, data)
    return session.commit(message, allow_empty=True)


def content(repo, ref: str) -> Content:
    session = repo.session(ref)
    return {key: bytes(session.get(key)) for key in list(session.keys())}


@pytest.fixture
def forked(repo):
    """An array of three chunks and a file; a branch dev, which does not differ yet."""
    chunks = {f"a/c/{n}": b"%d" % n for n in range(3)}
    put(
        repo, "main", "fill", **{"zarr.json": GROUP, "a/zarr.json": array(), "file": b"f"}, **chunks
    )
    repo.branches.create("dev")
    return repo


# ── merge ────────────────────────────────────────────────────────────────────────────────────────


def test_merge_puts_both_sides_together(forked):
    ours = put(forked, "main", **{"a/c/0": b"main", "new": b"n"})
    theirs = put(forked, "dev", **{"a/c/1": b"dev", "a/c/2": None})
    merged = forked.merge("dev")
    commit = forked.show(merged)
    assert forked.branches["main"] == merged
    assert forked.branches["dev"] == theirs
    assert commit.parents == (ours, theirs)
    assert commit.message == "Merge branch 'dev'"
    assert forked.reflog("main")[0].operation == "merge: Merge branch 'dev'"
    found = content(forked, "main")
    assert (found["a/c/0"], found["a/c/1"], found["new"]) == (b"main", b"dev", b"n")
    assert "a/c/2" not in found


def test_the_current_session_sees_the_merge(forked):
    assert forked.store().session.get("a/c/0") == b"0"
    put(forked, "dev", **{"a/c/0": b"dev"})
    forked.merge("dev")
    assert forked.store().session.get("a/c/0") == b"dev"


def test_merge_fast_forwards(forked):
    head = put(forked, "dev", **{"a/c/1": b"dev"})
    assert forked.merge("dev", message="unused") == head
    assert forked.branches["main"] == head
    assert forked.reflog("main")[0].operation == "merge: fast-forward to dev"


def test_merge_makes_a_commit_where_asked(forked):
    old, head = forked.branches["main"], put(forked, "dev", **{"a/c/1": b"dev"})
    merged = forked.merge("dev", "main", "joined", no_ff=True, metadata={"n": 1}, author="A <a@b>")
    commit = forked.show(merged)
    assert commit.parents == (old, head)
    assert (commit.message, commit.metadata, commit.author) == ("joined", {"n": 1}, "A <a@b>")
    assert commit.root == forked.root_id("dev")


@pytest.mark.parametrize("ref", ["dev", "main", "main~1"])
@pytest.mark.parametrize("no_ff", [False, True])
def test_what_is_merged_already_is_left_alone(forked, ref, no_ff):
    head = put(forked, "main", file=b"1")
    before = Path(forked.path).read_bytes()
    assert forked.merge(ref, no_ff=no_ff) == head
    assert Path(forked.path).read_bytes() == before


def test_a_merge_that_changes_nothing_still_joins(forked):
    put(forked, "main", file=b"same")
    put(forked, "dev", "another message", file=b"same")
    merged = forked.merge("dev")
    assert len(forked.show(merged).parents) == 2
    assert forked.merge("dev") == merged


def test_messages_name_what_was_merged(forked):
    first = put(forked, "dev", x=b"1")
    forked.tags.create("v1", at=first)
    put(forked, "main", y=b"1")
    assert forked.show(forked.merge("v1")).message == "Merge tag 'v1'"
    forked.branches.create("other", at="main~1")
    put(forked, "other", z=b"1")
    message = forked.show(forked.merge("dev~0", "other")).message
    assert message == "Merge commit 'dev~0' into other"


def test_conflicts_are_listed_and_nothing_is_written(forked):
    put(forked, "main", **{"a/c/0": b"x", "a/c/1": b"x", "file": b"x", "m": b"1"})
    put(forked, "dev", **{"a/c/0": b"y", "a/c/1": None, "file": b"y", "d": b"1"})
    before = Path(forked.path).read_bytes()
    with pytest.raises(MergeConflict, match="a: chunk") as error:
        forked.merge("dev")
    assert Path(forked.path).read_bytes() == before
    found = {(one.path, one.kind, one.coordinates) for one in error.value.conflicts}
    assert found == {("a", "chunk", (0,)), ("a", "chunk", (1,)), ("file", "file", None)}
    chunk = next(one for one in error.value.conflicts if one.coordinates == (0,))
    assert (chunk.base, chunk.ours, chunk.theirs) == (b"0", b"x", b"y")


@pytest.mark.parametrize(("strategy", "winner"), [("ours", b"x"), ("theirs", b"y")])
def test_a_strategy_decides_conflicts_alone(forked, strategy, winner):
    put(forked, "main", **{"a/c/0": b"x", "m": b"1"})
    put(forked, "dev", **{"a/c/0": b"y", "d": b"1"})
    forked.merge("dev", strategy=strategy)
    found = content(forked, "main")
    assert (found["a/c/0"], found["m"], found["d"]) == (winner, b"1", b"1")


def test_attributes_and_chunks_merge(forked):
    put(forked, "main", **{"a/zarr.json": array(units="K")})
    put(forked, "dev", **{"a/zarr.json": array(50, long="T"), "a/c/4": b"4"})
    forked.merge("dev")
    assert json.loads(content(forked, "main")["a/zarr.json"]) == json.loads(
        array(50, units="K", long="T")
    )


def test_either_direction_gives_the_same_snapshot(forked):
    """Also of documents, whose keys both sides added to and put into another order."""
    put(forked, "main", **{"a/zarr.json": array(units="K", z=1), "x": b"1"})
    theirs = json.loads(array(50, long="T"))
    shuffled = json.dumps(dict(sorted(theirs.items())), indent=2).encode()
    put(forked, "dev", **{"a/zarr.json": shuffled, "y": b"1"})
    heads = forked.branches["main"], forked.branches["dev"]
    forked.merge(heads[1], "main")
    forked.merge(heads[0], "dev")
    assert forked.root_id("main") == forked.root_id("dev")
    merged = json.loads(content(forked, "main")["a/zarr.json"])
    assert merged == theirs | {"attributes": {"long": "T", "units": "K", "z": 1}}


def test_unrelated_histories_have_an_empty_base(forked):
    orphan = plant(forked, [], {"other": b"1"})
    forked.branches.create("orphan", at=orphan)
    merged = forked.merge("orphan")
    assert forked.show(merged).parents[1] == orphan
    assert content(forked, "main")["other"] == b"1"
    clash = plant(forked, [], {"file": b"another"})
    with pytest.raises(MergeConflict):
        forked.merge(clash)


def plant(repo, parents: list[str], files: Content, time: int = 10**15) -> str:
    """Write a commit with any parents and time, on no branch."""
    session = repo.session("main")
    session.delete_below("")
    for key, data in files.items():
        session.set(key, data)
    head = repo.branches["main"]
    amended = session.commit("plant", allow_empty=True)
    root = Digest(bytes.fromhex(repo.root_id(amended)))
    repo.branches.reset("main", head)
    digests = tuple(Digest(bytes.fromhex(parent)) for parent in parents)
    with repo._environment.write() as txn:
        return history.put(txn, CommitRecord(digests, root, "a", time, "planted", {})).hex()


def test_criss_cross_merges_have_a_virtual_base(forked):
    put(forked, "main", **{"a/c/0": b"main"})
    put(forked, "dev", **{"a/c/1": b"dev"})
    main, dev = forked.branches["main"], forked.branches["dev"]
    forked.merge(dev, "main")
    forked.merge(main, "dev")
    # With either base alone, both sides changed what the other base lacks.
    put(forked, "main", **{"a/c/1": b"main again"})
    put(forked, "dev", **{"a/c/2": b"dev again"})
    preview = forked.merge("dev", dry_run=True)
    assert set(preview.bases) == {main, dev}
    assert not preview.conflicts
    forked.merge("dev")
    found = content(forked, "main")
    assert [found[f"a/c/{n}"] for n in range(3)] == [b"main", b"main again", b"dev again"]


@pytest.mark.parametrize("key", ["a/c/0", "file", "a/zarr.json", "b/zarr.json", "b/f"])
def test_a_conflict_that_was_resolved_two_ways_is_one_again(forked, key):
    deleted = dict.fromkeys(["a/zarr.json", "a/c/0", "a/c/1", "a/c/2"])
    put(forked, "main", **({**deleted} if key == "a/zarr.json" else {key: array(units="K")}))
    put(forked, "dev", **{key: array(units="C")})
    main, dev = forked.branches["main"], forked.branches["dev"]
    with pytest.raises(MergeConflict):
        forked.merge(dev, "main")
    forked.merge(dev, "main", strategy="ours")
    forked.merge(main, "dev", strategy="ours")
    for ref, into in (("dev", "main"), ("main", "dev")):
        with pytest.raises(MergeConflict) as error:
            forked.merge(ref, into)
        assert len(error.value.conflicts) == 1
    # And one that was resolved the same way is not.
    forked.branches.reset("dev", dev)
    forked.merge(main, "dev", strategy="theirs")
    put(forked, "dev", x=b"1")
    forked.merge("dev", "main")
    assert content(forked, "main") == content(forked, "dev")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("nowhere",), RefNotFoundError),
        (("dev", "nowhere"), RefNotFoundError),
        (("dev", "main~1"), InvalidInputError),
        (("dev", 3), InvalidInputError),
        (("dev", "main", 3), InvalidInputError),
        (("dev", "main", None, "union"), InvalidInputError),
    ],
)
def test_merge_refuses_what_makes_no_sense(forked, arguments, error):
    with pytest.raises(error):
        forked.merge(*arguments)


def test_a_repository_that_is_read_only_can_only_preview(forked):
    put(forked, "dev", x=b"1")
    with vzarr.open(forked.path, "r") as reader:
        assert reader.merge("dev", dry_run=True).kind == "fast-forward"
        for verb in (reader.merge, reader.cherry_pick, reader.revert):
            with pytest.raises(ReadOnlyError):
                verb("dev")
        with pytest.raises(ReadOnlyError):
            reader.squash("main", since="main~1")


def test_a_closed_repository_says_so(forked):
    forked.close()
    with pytest.raises(SessionStateError, match="closed"):
        forked.merge("dev", dry_run=True)


# ── dry run ──────────────────────────────────────────────────────────────────────────────────────


def test_a_preview_writes_nothing(forked):
    put(forked, "main", **{"a/c/0": b"x", "a/zarr.json": array(units="K"), "file": b"x"})
    put(forked, "dev", **{"a/c/1": b"y", "a/zarr.json": array(50), "file": b"y"})
    before = Path(forked.path).read_bytes()
    preview = forked.merge("dev", dry_run=True)
    assert Path(forked.path).read_bytes() == before
    assert (preview.kind, preview.source, preview.into) == ("merge", "dev", "main")
    assert [(one.path, one.kind) for one in preview.conflicts] == [("file", "file")]
    change = preview.diff["a"]
    assert [chunk.coordinates for chunk in change.chunks] == [(1,)]
    assert change.metadata["shape"] == ((40,), (50,))
    assert str(preview) == (
        "dev into main: merge with 1 conflict\n"
        "~ array a\n"
        "    shape: (40,) → (50,)\n"
        "    chunks: 1 changed: (1,) [10:20]\n"
        "! file: changed on both sides"
    )


def test_a_preview_shows_values(repo):
    with repo.transaction("main", "create") as store:
        zarr.save_array(store, np.zeros(4), path="a", zarr_format=3)
        zarr.save_array(store, np.zeros(4), path="b", zarr_format=3)
    repo.branches.create("dev")
    for branch, name in (("main", "a"), ("dev", "b")):
        with repo.transaction(branch, "change") as store:
            zarr.open_array(store, path=name)[:] = 1
    change = repo.merge("dev", dry_run=True).diff["b"]
    assert (change.old[:].sum(), change.new[:].sum()) == (0, 4)
    forward = repo.merge("dev", "dev", dry_run=True)
    assert forward.kind == "up to date"
    assert not forward.diff
    repo.branches.create("old", at="dev~1")
    forward = repo.merge("dev", "old", dry_run=True)
    assert forward.kind == "fast-forward"
    assert (forward.diff["b"].old[:].sum(), forward.diff["b"].new[:].sum()) == (0, 4)


@pytest.mark.parametrize("clash", [False, True])
def test_chunks_that_both_sides_changed_in_part(repo, clash):
    """More of them than fit into memory at once go to the file, but for a preview."""
    with repo.transaction("main", "create") as store:
        zarr.create_array(
            store, name="a", shape=(12, 1 << 20), chunks=(1, 1 << 20), dtype="u1", compressors=None
        )
        zarr.open_array(store, path="a")[:] = np.arange(1, 13)[:, None]
    repo.branches.create("dev")
    for branch, column in (("main", 0), ("dev", 0 if clash else 5)):
        with repo.transaction(branch, "change") as store:
            zarr.open_array(store, path="a")[:, column] = 100 + len(branch)
    before, head = Path(repo.path).read_bytes(), repo.branches["main"]
    preview = repo.merge("dev", dry_run=True)
    assert Path(repo.path).read_bytes() == before
    if clash:
        assert len(preview.conflicts) == 12
        with pytest.raises(MergeConflict):
            repo.merge("dev")
        assert repo.branches["main"] == head
    else:
        assert (preview.diff["a"].new[3, :6] >= 100).tolist() == [True, *[False] * 4, True]
        assert Path(repo.path).read_bytes() == before
        repo.merge("dev")
        repo.branches.create("around", at="dev")
        repo.merge(head, "around")
        assert repo.root_id("around") == repo.root_id("main")
    assert not repo._environment.info().entries["sessions"]


def test_a_preview_is_what_the_merge_does(forked):
    old = put(forked, "main", **{"a/c/0": b"x"})
    put(forked, "dev", **{"a/c/1": b"y", "b/zarr.json": GROUP})
    preview = forked.merge("dev", dry_run=True)
    merged = forked.merge("dev")
    assert str(preview.diff) == str(forked.diff(old, merged))


# ── cherry-pick ──────────────────────────────────────────────────────────────────────────────────


def test_cherry_pick_applies_one_change(forked):
    put(forked, "dev", "first", **{"a/c/0": b"first"})
    session = forked.session("dev")
    session.set("a/c/1", b"second")
    second = session.commit("second\n\nbody", metadata={"n": 2}, author="B <b@b>")
    head = put(forked, "main", **{"a/c/2": b"main"})
    before = datetime.now(UTC)
    commit = forked.show(forked.cherry_pick(second))
    assert commit.parents == (head,)
    assert (commit.message, commit.metadata) == ("second\n\nbody", {"n": 2})
    assert commit.author == "B <b@b>"
    assert commit.time >= before
    found = content(forked, "main")
    assert [found[f"a/c/{n}"] for n in range(3)] == [b"0", b"second", b"main"]


def test_cherry_pick_says_where_from_if_asked(forked):
    picked = put(forked, "dev", "first", **{"a/c/0": b"first"})
    commit = forked.show(forked.cherry_pick(picked, note_origin=True, author="C <c@c>"))
    assert commit.message == f"first\n\n(cherry picked from commit {picked})"
    assert commit.author == "C <c@c>"


def test_what_is_there_already_is_not_picked_again(forked):
    picked = put(forked, "dev", "first", **{"a/c/0": b"first"})
    head = forked.cherry_pick(picked)
    with pytest.raises(SessionStateError, match="nothing to commit"):
        forked.cherry_pick(picked)
    assert forked.branches["main"] == head


def test_cherry_pick_conflicts(forked):
    picked = put(forked, "dev", **{"a/c/0": b"dev"})
    head = put(forked, "main", **{"a/c/0": b"main"})
    with pytest.raises(MergeConflict, match="cherry-pick") as error:
        forked.cherry_pick(picked)
    assert forked.branches["main"] == head
    assert len(error.value.conflicts) == 1
    forked.cherry_pick(picked, strategy="theirs")
    assert content(forked, "main")["a/c/0"] == b"dev"


def test_cherry_pick_and_revert_of_a_merge_need_its_mainline(forked):
    put(forked, "main", **{"a/c/0": b"main"})
    put(forked, "dev", **{"a/c/1": b"dev"})
    merged = forked.merge("dev")
    root = forked.root_id("main~1")
    forked.branches.create("old", at="main~2")
    for verb in (forked.cherry_pick, forked.revert):
        with pytest.raises(InvalidInputError, match="mainline"):
            verb(merged)
        for wrong in (0, 3, "1"):
            with pytest.raises(InvalidInputError, match="mainline"):
                verb(merged, mainline=wrong)
    forked.cherry_pick(merged, "old", mainline=1)
    assert content(forked, "old")["a/c/0"] == b"0"
    assert content(forked, "old")["a/c/1"] == b"dev"
    reverted = forked.revert(merged, mainline=1)
    assert forked.root_id("main") == root
    first = forked.show(merged).parents[0]
    assert forked.show(reverted).message == (
        f"Revert \"Merge branch 'dev'\"\n\nThis reverts commit {merged},\n"
        f"reversing the changes made to {first}."
    )


def test_a_first_commit_can_be_picked(forked):
    orphan = plant(forked, [], {"other": b"1"})
    forked.cherry_pick(orphan)
    assert content(forked, "main")["other"] == b"1"
    forked.revert(orphan)
    assert "other" not in content(forked, "main")


def test_a_commit_that_was_collected_meanwhile_is_noticed(forked, monkeypatch):
    picked = put(forked, "dev", **{"a/c/0": b"dev"})
    head = forked.branches["main"]
    require = history.require

    def collect(txn, commits):
        for commit in commits:
            txn.delete("commits", commit)
        require(txn, commits)

    monkeypatch.setattr(history, "require", collect)
    with pytest.raises(CommitNotFoundError, match="deleted meanwhile"):
        forked.cherry_pick(picked)
    with pytest.raises(CommitNotFoundError):
        forked.merge(picked)
    assert forked.branches["main"] == head


# ── revert ───────────────────────────────────────────────────────────────────────────────────────


def test_revert_undoes_one_change_alone(forked):
    bad = put(forked, "main", "bad\n\nidea", **{"a/c/0": b"bad", "a/c/1": None, "new": b"n"})
    put(forked, "main", **{"a/c/2": b"good"})
    commit = forked.show(forked.revert(bad))
    assert commit.message == f'Revert "bad"\n\nThis reverts commit {bad}.'
    assert commit.author == "Test <test@example.org>"
    found = content(forked, "main")
    assert [found[f"a/c/{n}"] for n in range(3)] == [b"0", b"1", b"good"]
    assert "new" not in found
    with pytest.raises(SessionStateError, match="nothing to commit"):
        forked.revert(bad)


def test_revert_of_a_revert_brings_it_back(forked):
    put(forked, "main", **{"a/c/0": b"x"})
    root = forked.root_id("main")
    forked.revert("main")
    forked.revert("main")
    assert forked.root_id("main") == root


def test_revert_of_a_move_moves_back(forked):
    root = forked.root_id("main")
    session = forked.session("main")
    session.move("a", "moved")
    moved = session.commit("move")
    forked.revert(moved)
    assert forked.root_id("main") == root


def test_revert_conflicts_with_later_changes(forked):
    bad = put(forked, "main", **{"a/c/0": b"bad"})
    head = put(forked, "main", **{"a/c/0": b"later"})
    with pytest.raises(MergeConflict, match="revert"):
        forked.revert(bad)
    assert forked.branches["main"] == head


# ── squash ───────────────────────────────────────────────────────────────────────────────────────


def test_squash_makes_one_commit_of_several(forked):
    start = forked.branches["main"]
    put(forked, "main", "one", **{"a/c/0": b"1"})
    put(forked, "dev", "aside", **{"a/c/1": b"1"})
    forked.merge("dev")
    old = put(forked, "main", "three\n\nbody", **{"a/c/2": b"3"})
    root = forked.root_id("main")
    commit = forked.show(forked.squash("main", since=start))
    assert commit.parents == (start,)
    assert commit.root == root
    assert commit.message == "Squash 3 commits\n\n* one\n* Merge branch 'dev'\n* three"
    (move, *_) = forked.reflog("main")
    assert (move.old, move.operation) == (old, "squash: Squash 3 commits")
    again = forked.squash("main", since=start, message="all", metadata={"n": 3})
    assert (forked.show(again).message, forked.show(again).metadata) == ("all", {"n": 3})


def test_squash_refuses_what_is_not_on_the_line(forked):
    put(forked, "main", **{"a/c/0": b"1"})
    aside = put(forked, "dev", **{"a/c/1": b"1"})
    forked.merge("dev")
    with pytest.raises(InvalidInputError, match="first parents"):
        forked.squash("main", since=aside)
    with pytest.raises(SessionStateError, match="nothing to squash"):
        forked.squash("main", since="main")
    with pytest.raises(RefNotFoundError):
        forked.squash("nowhere", since="main")


def test_a_session_from_before_a_squash_can_still_commit(forked):
    put(forked, "main", **{"a/c/0": b"1"})
    session = forked.session("main")
    session.set("a/c/1", b"mine")
    forked.squash("main", since="main~1", message="squashed")
    session.commit("mine")
    assert content(forked, "main")["a/c/1"] == b"mine"


# ── merge bases ──────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_merge_bases_of_any_graph_whatever_its_clocks(data):
    with (
        tempfile.TemporaryDirectory() as directory,
        vzarr.open(Path(directory) / "graph.vzarr", durability="normal") as repo,
    ):
        root = Digest(bytes.fromhex(repo.root_id("main")))
        parents: dict[Digest, tuple[Digest, ...]] = {}
        with repo._environment.write() as txn:
            for number in range(data.draw(st.integers(2, 14))):
                some = st.lists(st.sampled_from(list(parents)), max_size=2, unique=True)
                chosen = tuple(data.draw(some)) if parents else ()
                time = data.draw(st.integers(0, 5))
                record = CommitRecord(chosen, root, "a", time, str(number), {})
                parents[history.put(txn, record)] = chosen
        one, two, three = (data.draw(st.sampled_from(list(parents))) for _ in range(3))
        for ours, theirs in (([one], [two]), ([one, two], [three])):
            found = history.merge_bases(repo._environment, ours, theirs)
            assert len(set(found)) == len(found)
            assert set(found) == best_common(parents, ours, theirs)
            assert found == history.merge_bases(repo._environment, theirs, ours)


def ancestors(parents, commit) -> set:
    found, waiting = set(), [commit]
    while waiting:
        commit = waiting.pop()
        if commit not in found:
            found.add(commit)
            waiting += parents[commit]
    return found


def best_common(parents, ours, theirs) -> set:
    common = set().union(*(ancestors(parents, one) for one in ours)) & set().union(
        *(ancestors(parents, one) for one in theirs)
    )
    behind = {old for new in common for old in ancestors(parents, new) if old != new}
    return common - behind


# ── against a model ──────────────────────────────────────────────────────────────────────────────

BRANCHES = ["main", "one", "two"]
STRATEGIES = st.sampled_from(["fail", "ours", "theirs"])
KEYS = ["a/c/0", "a/c/1", "a/c/2", "a/c/3", "g/b/c/0", "g/b/c/1", "file", "g/file"]
EDITS = st.dictionaries(
    st.sampled_from(KEYS), st.none() | st.sampled_from([b"x", b"y", b"z"]), min_size=1, max_size=4
)


class MergeMachine(RuleBasedStateMachine):
    """Branches that are edited and merged in any direction, and dicts merged key by key."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "model.vzarr"
        self.repo = vzarr.open(self.path, durability="normal")
        self.contents: dict[str, Content] = {}
        self.parents: dict[str, tuple[str, ...]] = {}

    def teardown(self) -> None:
        self.repo.close()
        assert_sound(self.path)
        self.directory.cleanup()

    @initialize()
    def begin(self):
        documents = {"zarr.json": GROUP, "g/zarr.json": GROUP, "a/zarr.json": array()}
        put(self.repo, "main", **documents, **{"g/b/zarr.json": array()})
        head = self.repo.branches["main"]
        self.contents[head] = content(self.repo, head)
        self.parents[head] = ()
        for branch in BRANCHES[1:]:
            self.repo.branches.create(branch)

    def note(self, commit: str, files: Content) -> None:
        self.contents[commit] = files
        self.parents[commit] = self.repo.show(commit).parents

    @rule(branch=st.sampled_from(BRANCHES), edits=EDITS)
    def edit(self, branch, edits):
        files = {**self.contents[self.repo.branches[branch]], **edits}
        commit = put(self.repo, branch, **edits)
        self.note(commit, {key: data for key, data in files.items() if data is not None})

    @rule(
        ref=st.sampled_from(BRANCHES),
        into=st.sampled_from(BRANCHES),
        no_ff=st.booleans(),
        strategy=STRATEGIES,
    )
    def merge(self, ref, into, no_ff, strategy):
        self.join(self.repo.branches[ref], into, no_ff, strategy)

    @rule(
        one=st.sampled_from(BRANCHES),
        two=st.sampled_from(BRANCHES),
        edits=st.tuples(EDITS, EDITS),
        strategies=st.tuples(STRATEGIES, STRATEGIES),
    )
    def edit_both_and_merge_crosswise(self, one, two, edits, strategies):
        self.edit(one, edits[0])
        self.edit(two, edits[1])
        heads = self.repo.branches[one], self.repo.branches[two]
        for ref, into, strategy in zip(heads, (two, one), strategies, strict=True):
            self.join(ref, into, no_ff=True, strategy=strategy)

    def join(self, ref, into, no_ff, strategy):
        head, other = self.repo.branches[into], self.repo.show(ref).id
        if other in ancestors(self.parents, head):
            assert self.repo.merge(ref, into, no_ff=no_ff) == head
            return
        if head in ancestors(self.parents, other) and not no_ff:
            assert self.repo.merge(ref, into) == other
            return
        merged, overlaps = self.model([head], [other], self.contents[head], self.contents[other])
        preview = self.repo.merge(ref, into, dry_run=True)
        assert {key_of(conflict) for conflict in preview.conflicts} == overlaps
        if overlaps:
            with pytest.raises(MergeConflict) as error:
                self.repo.merge(ref, into, no_ff=no_ff)
            assert {key_of(conflict) for conflict in error.value.conflicts} == overlaps
            assert self.repo.branches[into] == head
            if strategy == "fail":
                return
            winner = self.contents[head if strategy == "ours" else other]
            merged = {key: data for key, data in merged.items() if key not in overlaps}
            merged |= {key: winner[key] for key in overlaps if key in winner}
        commit = self.repo.merge(ref, into, strategy=strategy, no_ff=no_ff)
        self.note(commit, merged)
        assert self.parents[commit] == (head, other)
        if overlaps:
            return
        # The other way round gives the same.
        self.repo.branches.create("around", at=other)
        self.repo.merge(head, "around", no_ff=True)
        assert self.repo.root_id("around") == self.repo.root_id(into)
        self.repo.branches.delete("around")

    def model(
        self, ours: list[str], theirs: list[str], our: Content, their: Content
    ) -> tuple[Content, set[str]]:
        base = self.virtual(best_common(self.parents, ours, theirs))
        merged, overlaps = {}, set()
        for key in {*base, *our, *their}:
            old, one, two = base.get(key), our.get(key), their.get(key)
            if one != two and old not in (one, two):
                overlaps.add(key)
                value = old
            else:
                value = two if one == old else one
            if value is not None:
                merged[key] = value
        return merged, overlaps

    def virtual(self, bases: set[str]) -> Content:
        def age(base: str):
            return self.repo.show(base).time, base

        first, *others = sorted(bases, key=age)
        merged, so_far = self.contents[first], [first]
        for base in others:
            merged, _ = self.model(so_far, [base], merged, self.contents[base])
            so_far.append(base)
        return merged

    @rule(branch=st.sampled_from(BRANCHES))
    def revert_at_once(self, branch):
        head = self.repo.branches[branch]
        if len(self.parents[head]) != 1:
            return
        (parent,) = self.parents[head]
        if self.contents[parent] == self.contents[head]:
            with pytest.raises(SessionStateError):
                self.repo.revert(branch, branch)
            return
        self.note(self.repo.revert(branch, branch), self.contents[parent])
        assert self.repo.root_id(branch) == self.repo.root_id(parent)

    @rule(branch=st.sampled_from(BRANCHES), back=st.integers(1, 4))
    def squash(self, branch, back):
        line = [head := self.repo.branches[branch]]
        while len(line) <= back and self.parents[line[-1]]:
            line.append(self.parents[line[-1]][0])
        if len(line) > 1:
            commit = self.repo.squash(branch, since=line[-1])
            self.note(commit, self.contents[head])
            assert self.parents[commit] == (line[-1],)

    @invariant()
    def branches_hold_what_the_model_says(self):
        for head in self.repo.branches.values():
            if head in self.contents:
                assert content(self.repo, head) == self.contents[head]


def key_of(conflict) -> str:
    if conflict.coordinates is None:
        return conflict.path
    return f"{conflict.path}/c/{conflict.coordinates[0]}"


def test_merges_equal_their_model():
    run_state_machine_as_test(
        MergeMachine, settings=settings(max_examples=80, stateful_step_count=30, deadline=None)
    )


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(KEYS), st.none() | st.binary(max_size=2), min_size=1, max_size=4
        ),
        max_size=6,
    )
)
def test_picking_all_commits_of_a_branch_gives_its_root(changes):
    with (
        tempfile.TemporaryDirectory() as directory,
        vzarr.open(Path(directory) / "pick.vzarr", durability="normal") as repo,
    ):
        put(repo, "main", **{"a/zarr.json": array(), "a/c/0": b"0"})
        repo.branches.create("dev")
        for edits in changes:
            put(repo, "dev", **edits)
        line = [commit.id for commit in repo.log("dev")][::-1]
        start = line.index(repo.branches["main"])
        for parent, commit in pairwise(line[start:]):
            if repo.root_id(parent) != repo.root_id(commit):
                repo.cherry_pick(commit)
            assert repo.root_id("main") == repo.root_id(commit)


# ── at once ──────────────────────────────────────────────────────────────────────────────────────

WRITERS = 3
ROUNDS = 6


def write_and_merge(path, writer: int, barrier) -> list[str]:
    """Commit rows of one's own on a branch and merge it into main, or commit them to main."""
    merged = []
    with vzarr.open(path) as repo:
        barrier.wait()
        for number in range(ROUNDS):
            branch = "main" if writer == 0 else f"writer-{writer}"
            with repo.transaction(branch, f"writer {writer}, row {number}") as store:
                zarr.open_array(store, path="rows")[writer * ROUNDS + number] = writer + 1
            merged.append(repo.merge(branch))
        return merged


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_merges_and_commits_at_once_lose_nothing(path, kind):
    with vzarr.open(path) as repo:
        with repo.transaction("main", "create") as store:
            shape = (WRITERS * ROUNDS, 4)
            zarr.create_array(store, name="rows", shape=shape, chunks=(1, 4), dtype="i8")
        for writer in range(1, WRITERS):
            repo.branches.create(f"writer-{writer}")
    if kind == "threads":
        barrier = threading.Barrier(WRITERS)
        with ThreadPoolExecutor(WRITERS) as pool:
            futures = [
                pool.submit(write_and_merge, path, writer, barrier) for writer in range(WRITERS)
            ]
            heads = [head for future in futures for head in future.result()]
    else:
        context = multiprocessing.get_context("spawn")
        with context.Manager() as manager, context.Pool(WRITERS) as pool:
            shared = manager.Barrier(WRITERS)
            found = pool.starmap(write_and_merge, [(path, n, shared) for n in range(WRITERS)])
            heads = [head for one in found for head in one]
    with vzarr.open(path, "r") as repo:
        logged = {commit.id for commit in repo.log("main")}
        assert set(heads) <= logged
        assert {repo.branches[f"writer-{writer}"] for writer in range(1, WRITERS)} <= logged
        rows = zarr.open_array(repo.store("main"), path="rows")[:]
        expected = np.repeat(np.arange(1, WRITERS + 1), ROUNDS)
        assert (rows == expected[:, None]).all()


def test_a_merge_is_redone_on_a_head_that_moved(forked, monkeypatch):
    put(forked, "dev", **{"a/c/1": b"dev"})
    put(forked, "main", **{"a/c/0": b"main"})
    # One move: for the second attempt the merge has the branch to itself.
    moves = iter([{"a/c/2": b"between"}])
    real = vzarr.Session.commit_as

    def late(self, *arguments, **options):
        for files in moves:
            put(forked, "main", **files)
            break
        return real(self, *arguments, **options)

    monkeypatch.setattr(vzarr.Session, "commit_as", late)
    merged = forked.merge("dev")
    monkeypatch.undo()
    found = content(forked, "main")
    assert [found[f"a/c/{n}"] for n in range(3)] == [b"main", b"dev", b"between"]
    assert len(forked.show(merged).parents) == 2
    assert not forked._environment.info().entries["sessions"]
