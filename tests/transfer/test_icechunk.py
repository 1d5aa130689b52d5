"""Histories in Icechunk repositories and out of them again, judged by Icechunk's own reader."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.core.buffer import cpu
from zarr.core.sync import sync

import vzarr
from tests.fuzz.crafted import craft
from tests.processes import Other
from tests.transfer.icehistories import (
    Historian,
    assert_equal,
    assert_replayed,
    assert_same,
    commits,
    open_at,
    snapshots,
    write,
)
from vzarr import adoption, nodediff, progress, replay
from vzarr.errors import (
    AlreadyExistsError,
    BusyError,
    CorruptError,
    FormatVersionError,
    InvalidInputError,
    NotFastForwardError,
    NotFoundError,
    RefNotFoundError,
    StorageError,
)
from vzarr.icestorage import SCHEME, place_of
from vzarr.turns import Turn
from vzarr.unfinished import branch_of

icechunk = pytest.importorskip("icechunk", minversion="2.3")
SEEDS = range(60) if "VZARR_TORTURE" in os.environ else range(2)


@pytest.fixture(autouse=True)
def quiet() -> None:
    icechunk.set_logs_filter("error")


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "ice")


@pytest.fixture
def back(tmp_path: Path) -> Any:
    """Another empty repository."""
    with vzarr.open(tmp_path / "back.vzarr", author="Other <o@example.org>") as repository:
        yield repository
    assert vzarr.open(tmp_path / "back.vzarr").check("full").ok


def foreign(place: str, *edits: Any) -> Any:
    """Make a repository with Icechunk alone; each edit gets a group and becomes a commit."""
    theirs = icechunk.Repository.create(icechunk.local_filesystem_storage(place))
    for number, edit in enumerate(edits):
        session = theirs.writable_session("main")
        edit(zarr.open_group(session.store, mode="a"))
        session.commit(f"edit {number}", {"author": "Them <t@example.org>", "n": number})
    return theirs


def array_of(value: int, name: str = "a", shape: int = 4) -> Any:
    def edit(group: zarr.Group) -> None:
        group.create_array(name, shape=(shape,), chunks=(2,), dtype="i4", overwrite=True)[:] = value

    return edit


# ── there and back ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", SEEDS)
def test_any_history_goes_there_and_back(repo, back, place, seed):
    """In parts; every commit is the same to zarr on both sides, and to vzarr when it is back."""
    historian = Historian(repo, seed)
    before: set[str] = set()
    dropped = False
    for _ in range(3):
        historian.write(9)
        report = repo.export_to(SCHEME + place, overwrite=True)
        assert_replayed(repo, place)
        assert (report.form, report.known) == ("icechunk", len(before & commits(repo).keys()))
        assert report.known + report.commits == len(commits(repo))
        taken = back.import_from(place, overwrite=True)
        for name in set(back.branches) - set(repo.branches):
            # Icechunk's are not deleted when ours are.
            back.branches.delete(name)
            dropped = True
        assert_equal(repo, back)
        # What only a deleted branch had comes again.
        assert taken.commits == report.commits or (dropped and taken.commits > report.commits)
        for name in list(repo.branches):
            if name != "main" and historian.random.random() < 0.5:
                repo.branches.delete(name)
        before = set(commits(repo))
    assert repo.export_to(SCHEME + place).commits == 0
    back.import_from(place, overwrite=True)
    assert back.import_from(place).commit is None


def test_what_a_snapshot_says(repo, place):
    first = repo.branches["main"]
    write(repo, 1)
    session = repo.session("main")
    session.set("zarr.json", b'{"zarr_format": 3,   "node_type": "group"}')
    commit = session.commit("ä\n\nb", metadata={"b": [1.5, None], "a": 1}, author="Ö <o@e>")
    report = repo.export_to(SCHEME + place)
    assert (report.commits, report.known, report.names) == (3, 0, ("main",))
    assert report.commit == commit
    assert report.target == SCHEME + place
    theirs = open_at(place)
    info, _, root, beginning = theirs.ancestry(branch="main")
    assert beginning.parent_id is None
    assert root.metadata["vzarr"]["commit"] == first
    assert (info.message, info.metadata["author"]) == ("ä\n\nb", "Ö <o@e>")
    assert info.metadata["time"] == repo.show("main").time.isoformat(timespec="microseconds")
    assert info.metadata["vzarr"]["commit"] == commit
    # Only what differs was written: one document.
    diff = theirs.diff(from_snapshot_id=info.parent_id, to_snapshot_id=info.id)
    assert (diff.updated_groups, diff.updated_chunks, diff.new_arrays) == ({"/"}, {}, set())
    store = theirs.readonly_session(branch="main").store
    from zarr.core.buffer import default_buffer_prototype

    document = sync(store.get("zarr.json", default_buffer_prototype())).to_bytes()
    assert document == b'{"zarr_format": 3,   "node_type": "group"}'
    assert "3 commits replayed (0 were there)" in str(report)


def test_a_merge_is_a_commit_on_its_first_parent(repo, back, place):
    write(repo, 1)
    repo.branches.create("side")
    side = write(repo, 2, branch="side", name="b")
    first = write(repo, 3)
    merged = repo.merge("side", into="main")
    repo.branches.delete("side")
    repo.export_to(SCHEME + place)
    theirs, found = open_at(place), snapshots(open_at(place))
    info = theirs.lookup_snapshot(found[merged])
    assert info.parent_id == found[first]
    assert info.metadata["vzarr"]["parents"] == [first, side]
    # What has no name there would be garbage to Icechunk.
    helper = f"vzarr/{side[:12]}"
    assert theirs.list_branches() == {"main", helper}
    assert theirs.lookup_branch(helper) == found[side]
    back.import_from(place)
    assert_equal(repo, back)
    # Once a branch holds the line, the helper goes.
    repo.branches.create("side", side)
    assert repo.export_to(SCHEME + place).names == ("side",)
    assert open_at(place).list_branches() == {"main", "side"}


def test_one_branch_alone(repo, place):
    write(repo, 1)
    repo.branches.create("dev")
    write(repo, 2, branch="dev")
    write(repo, 3)
    repo.tags.create("v1", "dev")
    assert repo.export_to(SCHEME + place, ref="dev").names == ("dev",)
    theirs = open_at(place)
    assert theirs.list_branches() == {"main", "dev"}
    assert [each.message for each in theirs.ancestry(branch="main")] == ["Repository initialized"]
    assert repo.export_to(SCHEME + place, ref="v1").names == ("v1",)
    assert repo.export_to(SCHEME + place).commits == 1
    assert_replayed(repo, place)
    with pytest.raises(RefNotFoundError, match="no branch or tag 'nope'"):
        repo.export_to(SCHEME + place, ref="nope")


def test_storages_and_repositories_of_icechunks_own(repo, back):
    storage = icechunk.in_memory_storage()
    write(repo, 1)
    repo.export_to(storage)
    theirs = icechunk.Repository.open(storage)
    assert_same(repo.store("main"), theirs.readonly_session(branch="main").store)
    assert back.import_from(theirs).commits == 2
    assert_equal(repo, back)
    assert back.import_from(storage).commits == 0


# ── names ────────────────────────────────────────────────────────────────────────────────────────


def test_a_branch_that_was_reset(repo, place):
    old = write(repo, 1)
    write(repo, 2)
    repo.export_to(SCHEME + place)
    repo.branches.reset("main", old)
    with pytest.raises(NotFastForwardError, match="does not descend from") as caught:
        repo.export_to(SCHEME + place)
    assert caught.value.branch == "main"
    write(repo, 3)
    before = open_at(place).lookup_branch("main")
    with pytest.raises(NotFastForwardError, match="--overwrite"):
        repo.export_to(SCHEME + place)
    assert open_at(place).lookup_branch("main") == before
    report = repo.export_to(SCHEME + place, overwrite=True)
    assert (report.commits, report.names) == (1, ("main",))
    assert_replayed(repo, place)


def test_commits_of_others_are_never_dropped_and_come_by_import(repo, place):
    write(repo, 1)
    repo.export_to(SCHEME + place)
    theirs = open_at(place)
    session = theirs.writable_session("main")
    zarr.open_array(session.store, path="a")[0:2] = 7
    snapshot = session.commit("theirs", {"author": "Them <t@example.org>"})
    write(repo, 2)
    with pytest.raises(NotFastForwardError, match=snapshot):
        repo.export_to(SCHEME + place, overwrite=True)
    repo.branches.reset("main", "main~1")
    report = repo.import_from(place)
    assert (report.commits, report.known, report.chunks) == (1, 2, 1)
    commit = repo.show("main")
    assert (commit.message, commit.author) == ("theirs", "Them <t@example.org>")
    assert commit.metadata["icechunk"] == {"snapshot": snapshot, "root": commit.root}
    # Now we have it, and go on from it.
    write(repo, 3)
    assert repo.export_to(SCHEME + place).commits == 1
    log = [each.message for each in open_at(place).ancestry(branch="main")]
    assert log[:3] == ["write 3", "theirs", "write 1"]
    # An amended copy says that it is that snapshot, and is not.
    repo.branches.reset("main", "main~1")
    session = repo.session("main")
    session.set("zarr.json", b'{"zarr_format": 3, "node_type": "group", "attributes": {"x": 1}}')
    session.amend()
    assert repo.export_to(SCHEME + place, overwrite=True).commits == 1
    assert_same(repo.store("main"), open_at(place).readonly_session(branch="main").store)


def test_tags_that_cannot_be_made(repo, place):
    write(repo, 1)
    repo.tags.create("v1")
    repo.export_to(SCHEME + place)
    write(repo, 2)
    repo.tags.delete("v1")
    repo.tags.create("v1")
    with pytest.raises(AlreadyExistsError, match="tags there never move") as caught:
        repo.export_to(SCHEME + place, overwrite=True)
    assert caught.value.name == "v1"
    open_at(place).delete_tag("v1")
    with pytest.raises(AlreadyExistsError, match="name of a deleted one"):
        repo.export_to(SCHEME + place)


@pytest.mark.parametrize("told", [True, False])
def test_a_tag_that_was_deleted_there_leaves_all_as_it_was(repo, place, monkeypatch, told):
    """Also where it is deleted after the look; and other tags that were made have their facts."""
    write(repo, 1)
    repo.export_to(SCHEME + place)
    theirs = open_at(place)
    theirs.create_tag("v2", theirs.lookup_branch("main"))
    theirs.delete_tag("v2")
    before = theirs.lookup_branch("main")
    write(repo, 2)
    repo.tags.create("v1", message="one")
    repo.tags.create("v2")
    if not told:
        monkeypatch.setattr(replay._Replay, "_deleted_tags", lambda _: set())
    with pytest.raises(AlreadyExistsError, match="name of a deleted one") as caught:
        repo.export_to(SCHEME + place)
    assert caught.value.name == "v2"
    assert open_at(place).lookup_branch("main") == before
    assert (snapshots(open_at(place)).keys() == commits(repo).keys()) is not told
    assert open_at(place).list_branches() == {"main"}
    repo.tags.delete("v2")
    assert "main" in repo.export_to(SCHEME + place).names
    assert_replayed(repo, place)
    assert open_at(place).get_metadata()["vzarr-tags"].keys() == {"v1"}
    assert open_at(place).get_metadata()["vzarr-tags"]["v1"]["message"] == "one"


def test_two_branches_leave_one_commit(repo, place):
    write(repo, 1)
    repo.branches.create("dev")
    repo.export_to(SCHEME + place)
    write(repo, 2)
    write(repo, 3, branch="dev")
    assert repo.export_to(SCHEME + place).names == ("dev", "main")
    assert_replayed(repo, place)
    assert open_at(place).list_branches() == {"main", "dev"}


def test_branches_of_others_that_begin_as_helpers_do(repo, back, place):
    theirs = foreign(place, array_of(1), array_of(2))
    theirs.create_branch("vzarr/theirs", theirs.lookup_branch("main"))
    assert repo.import_from(place).names == ("main", "vzarr/theirs")
    write(repo, 3)
    repo.export_to(SCHEME + place)
    assert open_at(place).list_branches() == {"main", "vzarr/theirs"}
    back.import_from(place)
    assert_equal(repo, back)


# ── erased here ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("imported", [True, False])
@pytest.mark.parametrize("deleted", [True, False])
def test_what_was_redacted_is_there_still_and_the_export_says_so(
    repo, place, tmp_path, imported, deleted
):
    """Also where the head has the same content as before, because the array was deleted there."""

    def delete(group: zarr.Group) -> None:
        del group["a"]

    if imported:
        foreign(place, array_of(1), delete if deleted else array_of(2, "b"))
        repo.import_from(place)
        why = r"imported here and has been changed since .*export to a new place"
    else:
        write(repo, 1)
        with repo.transaction("main", "two") as store:
            (delete if deleted else array_of(2, "b"))(zarr.open_group(store))
        repo.export_to(SCHEME + place)
        why = r"exported from here and has been removed since .*export to a new place"
    theirs = open_at(place).lookup_branch("main")
    repo.redact("a", force=True)
    for overwrite in (False, True):
        with pytest.raises(NotFastForwardError, match=why) as caught:
            repo.export_to(SCHEME + place, overwrite=overwrite)
        assert "Import" not in str(caught.value)
    write(repo, 3, name="c")
    with pytest.raises(NotFastForwardError, match=why):
        repo.export_to(SCHEME + place)
    assert open_at(place).lookup_branch("main") == theirs
    repo.export_to(f"{SCHEME}{tmp_path}/new")
    assert_replayed(repo, str(tmp_path / "new"))


# ── what Icechunk cannot hold ────────────────────────────────────────────────────────────────────

_ARRAY = (
    '{"zarr_format": 3, "node_type": "array", "shape": [2], "data_type": "int8", "fill_value": 0,'
    '"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1]}},'
    '"chunk_key_encoding": %s, "codecs": [{"name": "bytes"}], "attributes": {}}'
)
_DEFAULT = '{"name": "default", "configuration": {"separator": "%s"}}'


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"a/.zarray": b"{}"}, r"'a/\.zarray' .*Zarr format 2"),
        ({"notes.txt": b"x"}, r"'notes\.txt' .*neither metadata nor a chunk"),
        ({"a/zarr.json": (_ARRAY % _DEFAULT % ".").encode()}, "'a/zarr.json' .*c/0/0"),
        ({"a/zarr.json": (_ARRAY % '{"name": "v2"}').encode()}, "'a/zarr.json' .*c/0/0"),
        (
            {"zarr.json": b'{"zarr_format": 3, "node_type": "group", "attributes": {"x": NaN}}'},
            "'zarr.json' .*NaN or Infinity, which strict JSON",
        ),
        ({"zarr.json": b"{"}, "'zarr.json' .*not what Zarr means"),
        (
            {"a/zarr.json": (_ARRAY % _DEFAULT % "/").encode(), "a/c/2": b"x"},
            "'a/c/2' .*outside of its array",
        ),
        (
            {"a/zarr.json": (_ARRAY % _DEFAULT % "/").encode(), "a/c/1": b""},
            "'a/c/1' .*an empty chunk",
        ),
        ({"a//b/zarr.json": b'{"zarr_format": 3, "node_type": "group"}'}, "'a//b' .*no name"),
    ],
)
def test_what_icechunk_cannot_hold_is_told_before(repo, place, values, named):
    fine = {"zarr.json": b'{"zarr_format": 3, "node_type": "group"}'}
    write(repo, 1, name="fine")
    with repo.transaction("main", "odd") as store:
        vzarr.mapping(store).update(values)
    odd = repo.branches["main"]
    with repo.transaction("main", "even") as store:
        vzarr.mapping(store).update(fine)
    with pytest.raises(InvalidInputError, match=named) as caught:
        repo.export_to(SCHEME + place)
    assert odd[:12] in str(caught.value)
    assert not os.path.exists(place)
    # What comes before it can go there, and stays as it is.
    repo.branches.create("fine", "main~2")
    repo.export_to(SCHEME + place, ref="fine")
    before = sorted(os.listdir(place))
    with pytest.raises(InvalidInputError, match=named):
        repo.export_to(SCHEME + place)
    assert sorted(os.listdir(place)) == before
    assert open_at(place).list_branches() == {"main", "fine"}


def test_chunks_that_a_smaller_shape_leaves_outside(repo, place):
    """Icechunk would drop them, and they would be missing when the array grows again."""
    write(repo, 1)
    with repo.transaction("main", "shrink") as store:
        mapping = vzarr.mapping(store)
        mapping["a/zarr.json"] = mapping["a/zarr.json"].replace(b"4", b"2", 1)
    assert zarr.open_array(repo.store("main"), path="a").shape == (2,)
    with pytest.raises(InvalidInputError, match=r"'a/c/1' .*outside of its array"):
        repo.export_to(SCHEME + place)
    with repo.transaction("main", "clean") as store:
        del vzarr.mapping(store)["a/c/1"]
    repo.squash("main", since="main~2")
    repo.export_to(SCHEME + place)
    assert_replayed(repo, place)


def test_an_array_of_format_2_that_gives_way_to_one_of_format_3(repo, place):
    for number, shape in ((2, (4,)), (3, (4, 4))):
        with repo.transaction("main", f"format {number}") as store:
            group = zarr.open_group(store, mode="a", zarr_format=3)
            if number == 3:
                del group["a"]
            zarr.create_array(store, name="a", shape=shape, dtype="i4", zarr_format=number)
    with pytest.raises(InvalidInputError, match="Zarr format 2"):
        repo.export_to(SCHEME + place)
    assert not os.path.exists(place)


@pytest.mark.parametrize(
    "name", ["shared_groups", "shared_groups_on_both_sides", "shared_groups_in_arrays"]
)
def test_more_groups_than_can_be_replayed(tmp_path, place, name):
    craft(tmp_path / "hostile.vzarr", name)
    refused = pytest.raises(InvalidInputError, match="more than 500,000 groups, arrays and files")
    with vzarr.open(tmp_path / "hostile.vzarr", "r") as repo, refused:
        repo.export_to(SCHEME + place)
    assert not os.path.exists(place)


def test_groups_are_counted_with_those_of_an_array_that_goes(repo, place, monkeypatch):
    """All that is below it is written again, though it does not differ."""
    write(repo, 1)
    with repo.transaction("main", "groups") as store:
        for number in range(60):
            store.session.set(f"g/h/{number}/zarr.json", b'{"zarr_format":3,"node_type":"group"}')
        store.session.set("g/zarr.json", (_ARRAY % _DEFAULT % "/").encode())
    with repo.transaction("main", "no array") as store:
        store.session.set("g/zarr.json", b'{"zarr_format":3,"node_type":"group"}')
    monkeypatch.setattr(nodediff, "_UNCOUNTED", 1)
    diffs = nodediff.NodeDiffs(repo._objects)
    roots = [
        repo._objects.load_root(bytes.fromhex(repo.root_id(ref))) for ref in ("main~1", "main")
    ]
    monkeypatch.setattr(nodediff, "MAX_MEMBERS", 63)
    assert len(list(diffs.nodes(*roots))) == 61
    monkeypatch.setattr(nodediff, "MAX_MEMBERS", 62)
    with pytest.raises(InvalidInputError, match="too many to replay"):
        list(diffs.nodes(*roots))


def test_bad_targets(repo, place, tmp_path):
    write(repo, 1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_bytes(b"")
    with pytest.raises(AlreadyExistsError, match="something else than an Icechunk"):
        repo.export_to(f"{SCHEME}{tmp_path}/full")
    (tmp_path / "plain").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot .* icechunk:///"):
        repo.export_to(f"{SCHEME}{tmp_path}/plain/ice")
    for url, why in {
        SCHEME: "leads nowhere",
        f"{SCHEME}http://host/x": "leads nowhere",
        f"{SCHEME}s3://bucket": "s3://BUCKET/PREFIX",
        f"{SCHEME}s3://bucket/x?secret_access_key=y": "no option that a s3:// URL can have",
        f"{SCHEME}az://container/x": "cannot take az://",
        f"{SCHEME}s3://[x/y": "is no URL",
    }.items():
        with pytest.raises(InvalidInputError, match=why):
            repo.export_to(url)
    with pytest.raises(InvalidInputError, match="for buckets"):
        repo.export_to(SCHEME + place, storage_options={"region": "x"})
    with pytest.raises(InvalidInputError, match="has its own"):
        repo.export_to(icechunk.in_memory_storage(), storage_options={})
    with pytest.raises(InvalidInputError, match="a path is a string"):
        repo.export_to(icechunk.RepositoryConfig.default())
    with pytest.raises(InvalidInputError, match="takes the whole history"):
        repo.export_to(SCHEME + place, path="a")
    repo.branches.create("vzarr/0123456789ab")
    with pytest.raises(InvalidInputError, match="rename it"):
        repo.export_to(SCHEME + place)
    assert not os.path.exists(place)


def test_a_url_has_no_fragment():
    place = place_of(f"{SCHEME}s3://bucket/pre#fix?region=us-east-1")
    assert "pre#fix" in repr(place.storage)


def test_without_icechunk(repo, place, monkeypatch):
    monkeypatch.setitem(sys.modules, "icechunk", None)
    for call in (repo.export_to, repo.import_from):
        with pytest.raises(InvalidInputError, match=r"pip install 'vzarr\[icechunk\]'"):
            call(SCHEME + place)


def test_an_icechunk_that_is_too_old(repo, place, monkeypatch):
    monkeypatch.delattr(icechunk, "RepositoryNotFoundError")
    with pytest.raises(InvalidInputError, match=r"need icechunk 2\.3 or newer"):
        repo.export_to(SCHEME + place)


# ── killed ───────────────────────────────────────────────────────────────────────────────────────


def _killed(pipe: Connection, path: str, call: str, place: str, stage: str, number: int) -> None:
    """Export or import until the so-and-so-manieth step of a stage, and die of it."""
    icechunk.set_logs_filter("error")
    progress.INTERVAL = 0.0
    count = 0

    def watch(done: int, total: int, what: str) -> None:
        nonlocal count
        count += what == stage
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    with vzarr.open(path, "r+") as repo:
        getattr(repo, call)(place, progress=watch)


def _die(*arguments: Any) -> None:
    other = Other(_killed, *arguments)
    with pytest.raises(EOFError):
        other.receive()
    other.reap()


@pytest.fixture
def history(repo) -> vzarr.Repository:
    """Ten commits, among them a merge of a line without a name."""
    for number in range(4):
        write(repo, number)
    repo.branches.create("side")
    for number in range(3):
        write(repo, number, branch="side", name="b")
    repo.merge("side", into="main", message="merge", no_ff=True)
    repo.branches.delete("side")
    repo.tags.create("v1", "main~1", "one")
    write(repo, 9)
    return repo


def test_an_export_that_is_killed_goes_on(history, back, path, place):
    known = [0]
    for number in (4, 12):
        _die(str(path), "export_to", SCHEME + place, "replay", number)
        theirs = open_at(place)
        # Nobody sees any of it before all of it is there.
        assert [each.message for each in theirs.ancestry(branch="main")] == [
            "Repository initialized"
        ]
        assert theirs.list_tags() == set()
        known.append(len(snapshots(theirs)))
    assert known == sorted(set(known))
    report = history.export_to(SCHEME + place)
    assert (report.known, report.known + report.commits) == (known[-1], len(commits(history)))
    assert_replayed(history, place)
    assert len(open_at(place).list_branches()) == 2
    back.import_from(place)
    assert_equal(history, back)


def test_an_import_that_is_killed_goes_on(history, back, place):
    history.export_to(SCHEME + place)
    before, known = dict(back.branches), 0
    for number in (3, 5):
        _die(back.path, "import_from", SCHEME + place, "commits", number)
        helpers = {name: head for name, head in back.branches.items() if name not in before}
        (name,) = helpers
        assert name.startswith("importing/")
        assert before.items() <= dict(back.branches).items()
        assert dict(back.tags) == {}
        assert len(commits(back)) > known
        known = len(commits(back))
    report = back.import_from(place)
    assert report.resumed
    assert report.known > 0
    assert report.commits < len(commits(history))
    assert_equal(history, back)
    with pytest.raises(RefNotFoundError):
        back.reflog(name)


def test_two_imports_at_once(history, back, place):
    history.export_to(SCHEME + place)
    from vzarr.format import chunk_digest

    turn = Turn(back._environment, branch_of(chunk_digest((SCHEME + place).encode()).hex()))
    turn.acquire(5)
    with vzarr.open(back.path, timeout=0.1) as other, pytest.raises(BusyError):
        other.import_from(place)
    turn.release()
    assert back.import_from(place).commits


# ── repositories of others ───────────────────────────────────────────────────────────────────────


def test_a_foreign_history(repo, back, place):
    def change(group: zarr.Group) -> None:
        group["a"].resize((6,))
        group["a"][4:] = 5
        group["a"].attrs["units"] = "K"

    def nest(group: zarr.Group) -> None:
        array_of(3, "g/h/deep")(group)
        del group["a"]

    theirs = foreign(place, array_of(1), change, nest)
    theirs.create_tag("v1", theirs.lookup_branch("main"))
    theirs.create_branch("dev", theirs.lookup_branch("main"))
    session = theirs.rearrange_session("dev")
    session.move("/g/h", "/k")
    session.commit("move")
    session = theirs.writable_session("dev")
    zarr.open_array(session.store, path="k/deep")[1] = -1
    head = session.commit("")
    report = repo.import_from(place)
    assert (report.commits, report.names) == (6, ("dev", "main", "v1"))
    assert [each.message for each in repo.log("dev")] == [
        "",
        "move",
        "edit 2",
        "edit 1",
        "edit 0",
        "Repository initialized",
    ]
    for commit in repo.log("dev"):
        snapshot = commit.metadata["icechunk"]["snapshot"]
        info = theirs.lookup_snapshot(snapshot)
        assert (commit.message, commit.time) == (info.message, info.written_at)
        store = theirs.readonly_session(snapshot_id=snapshot).store
        assert_same(repo.store(commit.id), store)
    assert {each.author for each in repo.log("main")} == {"Icechunk", "Them <t@example.org>"}
    assert repo.show("main").metadata["n"] == 2
    assert repo.tags["v1"] == repo.branches["main"]
    # The same commits wherever and whenever it is imported, and one snapshot alone by its name.
    back.import_from(place)
    assert_equal(repo, back)
    assert repo.import_from(place).commit is None
    alone = repo.import_from(place, ref="v1", path="alone")
    assert alone.commits is None
    assert np.array_equal(zarr.open_array(repo.store("main"), path="alone/g/h/deep"), [3] * 4)
    assert repo.import_from(place, ref=head, path="by/id").chunks == 2
    with pytest.raises(RefNotFoundError, match="no branch, tag or snapshot 'v2'"):
        repo.import_from(place, ref="v2", path="x")


def test_a_history_that_was_expired(repo, place):
    theirs = foreign(place, array_of(1), array_of(2, "b"), array_of(3, "c"), array_of(4, "d"))
    times = [each.written_at for each in theirs.ancestry(branch="main")]
    assert theirs.expire_snapshots(times[1] - timedelta(microseconds=1))
    theirs = open_at(place)
    assert len(list(theirs.ancestry(branch="main"))) == 3
    repo.import_from(place)
    for commit in repo.log("main"):
        store = theirs.readonly_session(snapshot_id=commit.metadata["icechunk"]["snapshot"]).store
        assert_same(repo.store(commit.id), store)
    assert len(repo.log("main")) == 3


def test_what_changed_is_not_what_icechunk_says(repo, place, monkeypatch):
    """The check at the end finds it, whatever it is."""
    from vzarr.icereading import News, Snapshot

    foreign(place, array_of(1), array_of(2, "b"))
    monkeypatch.setattr(Snapshot, "news", lambda self, parent, *, first: News(gone={""}))
    with pytest.raises(CorruptError, match="has other arrays, groups or chunks"):
        repo.import_from(place)
    assert dict(repo.tags) == {}
    assert len(repo.log("main")) == 1


def test_metadata_that_make_no_sense(repo, place):
    """Whoever says to have been a commit of ours, and cannot have been, is somebody else."""
    theirs = icechunk.Repository.create(icechunk.local_filesystem_storage(place))
    right = {"parents": [], "root": "00" * 32, "commit": "11" * 32, "metadata": "{}"}
    said: list[Any] = [
        7,
        {"commit": "zz"},
        right | {"metadata": "["},
        right | {"root": "00"},
        right | {"parents": [None]},
        right | {"metadata": '[["a", 1]]'},
        right,
    ]
    for number, each in enumerate(said):
        session = theirs.writable_session("main")
        array_of(number)(zarr.open_group(session.store, mode="a"))
        metadata = {"author": "Them", "time": "2026-01-02T03:04:05+00:00", "vzarr": each}
        session.commit(f"edit {number}", metadata)
    theirs.create_tag("before", next(iter(theirs.ancestry(branch="main"))).parent_id)
    report = repo.import_from(place)
    assert report.commits == len(said) + 1
    assert len(repo.log("before")) == len(said)
    # The last one says it rightly, but its data are others.
    head = repo.show("main")
    assert (head.author, head.parents, head.time.year) == ("Them", (), 2026)
    assert head.id != "11" * 32
    assert set(head.metadata) == {"icechunk"}
    for commit in [head, *repo.log("before")]:
        snapshot = commit.metadata["icechunk"]["snapshot"]
        assert_same(repo.store(commit.id), theirs.readonly_session(snapshot_id=snapshot).store)
    assert repo.import_from(place).commit is None


def test_commits_that_say_to_be_each_others_parents(repo, place):
    theirs = icechunk.Repository.create(icechunk.local_filesystem_storage(place))
    ids = ["11" * 32, "22" * 32]
    for mine, other in (ids, ids[::-1]):
        said = {"parents": [other], "root": "00" * 32, "commit": mine, "metadata": "{}"}
        metadata = {"author": "A", "time": "2026-01-02T03:04:05+00:00", "vzarr": said}
        theirs.writable_session("main").commit("", metadata, allow_empty=True)
    with pytest.raises(CorruptError, match="its own ancestor"):
        repo.import_from(place)


def test_virtual_chunks(repo, place, tmp_path):
    (tmp_path / "data.bin").write_bytes(np.arange(4, dtype="<i4").tobytes())
    url = f"file://{tmp_path}/"
    config = icechunk.RepositoryConfig.default()
    store = icechunk.local_filesystem_store(str(tmp_path))
    config.set_virtual_chunk_container(icechunk.VirtualChunkContainer(url, store))
    storage = icechunk.local_filesystem_storage(place)
    theirs = icechunk.Repository.create(storage, config=config)
    theirs.save_config()
    session = theirs.writable_session("main")
    group = zarr.open_group(session.store, mode="a")
    group.create_array("v", shape=(4,), chunks=(2,), dtype="<i4", compressors=None)
    for number in range(2):
        session.store.set_virtual_ref(
            f"v/c/{number}", f"{url}data.bin", offset=8 * number, length=8
        )
    session.commit("virtual")
    with pytest.raises((InvalidInputError, StorageError), match=r"cannot read v/c/\d of"):
        repo.import_from(place)
    access = icechunk.credentials.LocalFileSystemAccess
    allowed = icechunk.Repository.open(storage, authorize_virtual_chunk_access={url: access})
    repo.import_from(allowed)
    assert np.array_equal(zarr.open_array(repo.store("main"), path="v")[:], np.arange(4))


def test_branches_here_that_have_other_commits(repo, back, place):
    write(repo, 1)
    repo.export_to(SCHEME + place)
    mine = write(back, 5)
    with pytest.raises(NotFastForwardError, match="pull from that") as caught:
        back.import_from(place)
    assert caught.value.branch == "main"
    assert back.branches["main"] == mine
    back.import_from(place, overwrite=True)
    assert_equal(repo, back)
    # One that is ahead stays there.
    ahead = write(back, 6)
    assert back.import_from(place).commit is None
    assert back.branches["main"] == ahead
    back.tags.create("v1")
    repo.tags.create("v1", "main")
    repo.export_to(SCHEME + place)
    with pytest.raises(AlreadyExistsError, match="tags never move"):
        back.import_from(place)


def test_bad_sources(repo, place, tmp_path):
    for source in (SCHEME + place, f"{SCHEME}{tmp_path}"):
        with pytest.raises(NotFoundError, match="no Icechunk repository at"):
            repo.import_from(source)
    assert not os.path.exists(place)
    foreign(place, array_of(1))
    repo.branches.create("dev")
    for options, why in (
        ({"path": "x"}, "path= does not go"),
        ({"message": "x"}, "message= does not go"),
        ({"branch": "dev"}, "branch= does not go"),
        ({"consume": True}, "cannot be consumed"),
    ):
        with pytest.raises(InvalidInputError, match=why):
            repo.import_from(place, **options)
    theirs = open_at(place)
    theirs.create_branch("no..good", theirs.lookup_branch("main"))
    with pytest.raises(InvalidInputError, match=r"'no\.\.good' is no branch name"):
        repo.import_from(place)
    theirs.delete_branch("no..good")
    for name in ("repo", "snapshots"):
        broken = tmp_path / f"broken-{name}"
        shutil.copytree(place, broken)
        files = [broken / name] if name == "repo" else list((broken / name).iterdir())
        for file in files:
            file.write_bytes(file.read_bytes()[:30])
        with pytest.raises((CorruptError, StorageError), match=r"cannot (open|read)"):
            repo.import_from(broken)
    assert len(repo.log("main")) == 1
    assert list(repo.branches) == ["dev", "main"]


def test_an_array_that_was_made_smaller_by_its_document(repo, back, place):
    """Icechunk drops the chunks outside, and does not say so."""

    def shrink(group: zarr.Group) -> None:
        metadata = group["a"].metadata.to_dict() | {"shape": (2,)}
        buffer = cpu.Buffer.from_bytes(json.dumps(metadata).encode())
        sync(group.store.set("a/zarr.json", buffer))

    theirs = foreign(place, array_of(1, shape=6), shrink, lambda group: group["a"].resize((6,)))
    repo.import_from(place)
    for commit in repo.log("main"):
        snapshot = commit.metadata["icechunk"]["snapshot"]
        assert_same(repo.store(commit.id), theirs.readonly_session(snapshot_id=snapshot).store)
    assert np.array_equal(zarr.open_array(repo.store("main"), path="a"), [1, 1, 0, 0, 0, 0])


def test_a_commit_made_here_while_an_import_moves_the_names(repo, place, monkeypatch):
    foreign(place, array_of(1))
    repo.import_from(place)
    write(repo, 2, name="b")
    finish, made = adoption._Gathered.finish, []

    def late(self: Any, move: Any) -> Any:
        if not made:
            made.append(write(repo, 3, name="b"))
        return finish(self, move)

    monkeypatch.setattr(adoption._Gathered, "finish", late)
    repo.import_from(place, overwrite=True)
    assert repo.branches["main"] == made[0]


@pytest.mark.parametrize("said", [7, {"v1": 7}, {"v1": {"message": "m", "author": 1}}])
@pytest.mark.parametrize("time", [2**63, -(2**62), 1.5, True])
def test_metadata_of_tags_that_make_no_sense(repo, place, said, time):
    theirs = foreign(place, array_of(1))
    theirs.create_tag("v1", theirs.lookup_branch("main"))
    if isinstance(said, dict) and isinstance(said["v1"], dict):
        said = {"v1": said["v1"] | {"time": time}}
    theirs.update_metadata({"vzarr-tags": said})
    repo.import_from(place)
    (tag,) = repo.tags.details()
    assert (tag.author, tag.time) == ("Them <t@example.org>", repo.show("v1").time)
    repo.tags.create("v2")
    repo.export_to(SCHEME + place)
    assert open_at(place).get_metadata()["vzarr-tags"]["v2"]["message"] == ""


def test_icechunks_first_format(repo, back):
    storage = icechunk.in_memory_storage()
    theirs = icechunk.Repository.create(storage, spec_version=1)
    session = theirs.writable_session("main")
    array_of(1)(zarr.open_group(session.store, mode="a"))
    theirs.create_tag("v1", session.commit("one"))
    assert repo.import_from(storage).names == ("main", "v1")
    with pytest.raises(FormatVersionError, match="upgrade it"):
        repo.export_to(storage)


def test_a_zarr_with_groups_of_icechunks_names_is_a_zarr(repo, tmp_path):
    group = zarr.create_group(str(tmp_path / "odd.zarr"))
    for name in ("snapshots", "refs"):
        group.create_group(name)
    assert repo.import_from(tmp_path / "odd.zarr").groups == 3


def test_a_newer_format(repo, place):
    foreign(place, array_of(1))
    file = Path(place) / "repo"
    data = bytearray(file.read_bytes())
    # Magic of 12 bytes, name of the writer in 24, then the version.
    assert data[36] in (1, 2)
    data[36] = 9
    file.write_bytes(data)
    with pytest.raises(FormatVersionError, match="pip install -U icechunk"):
        repo.import_from(place)
