"""Sessions and commits: what is seen by whom, what is kept, what a conflict leaves behind."""

from __future__ import annotations

import json
import os
import threading

import pytest

import vzarr
from vzarr import changes
from vzarr.errors import (
    AlreadyExistsError,
    ConflictError,
    CorruptError,
    InvalidInputError,
    NotFoundError,
    ReadOnlyError,
    SessionStateError,
)
from vzarr.format import Blob, chunk_digest

GROUP = b'{"zarr_format": 3, "node_type": "group"}'


def array(shape: int = 40, **attributes: object) -> bytes:
    """An array document with chunks of 10."""
    return json.dumps(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [shape],
            "data_type": "uint8",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [10]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "codecs": [{"name": "bytes"}],
            "fill_value": 0,
            "attributes": attributes,
        }
    ).encode()


def commit(session: vzarr.Session, message: str = "change", **files: bytes | None) -> str:
    for key, data in files.items():
        if data is None:
            session.delete(key)
        else:
            session.set(key, data)
    return session.commit(message)


@pytest.fixture
def filled(repo):
    """A repository with an array of three chunks in a group."""
    commit(
        repo.session("main"),
        "fill",
        **{"zarr.json": GROUP, "a/zarr.json": array(), **{f"a/c/{n}": b"%d" % n for n in range(3)}},
    )
    return repo


# ── seeing ───────────────────────────────────────────────────────────────────────────────────────


def test_a_session_sees_its_own_edits_and_nobody_elses(repo):
    one, two = repo.session("main"), repo.session("main")
    one.set("file", b"1")
    assert one.get("file") == b"1"
    assert two.get("file") is None
    commit(one)
    assert two.get("file") is None
    assert repo.session("main").get("file") == b"1"


def test_a_session_goes_on_after_its_commit(repo):
    session = repo.session("main")
    first = commit(session, file=b"1")
    assert session.base == first
    assert not session.status()
    second = commit(session, file=b"2")
    assert repo.show(second).parents == (first,)


def test_discard_goes_back_to_the_base(filled):
    session = filled.session("main")
    session.set("a/c/0", b"x")
    session.delete("a/c/1")
    session.delete_below("a/c")
    session.discard()
    assert not session.has_changes
    assert session.get("a/c/1") == b"1"


def test_only_what_is_touched_is_discarded(filled):
    session = filled.session("main")
    work = session._work
    changes = work.changes
    session.discard()
    assert work.changes is changes
    # That leaves a trace alone.
    session.delete("a/c/77")
    session.discard()
    assert work.changes is not changes
    session.set("a/c/0", b"x")
    session.commit("one more")
    changes = work.changes
    session.discard()
    assert work.changes is changes
    assert session.get("a/c/0") == b"x"
    session.set("a/c/0", b"y")
    assert session.has_changes
    session.discard()
    assert work.changes is not changes
    assert session.get("a/c/0") == b"x"


@pytest.mark.parametrize("end", ["discard", "close"])
def test_a_session_that_ends_holds_no_former_base(filled, end):
    session = filled.session("main")
    for number in range(3):
        other = filled.session("main")
        other.set("a/c/0", b"%d more" % number)
        other.commit("beside it")
        session.rebase()
    assert session._former
    getattr(session, end)()
    assert not session._former


def test_a_file_that_is_closed_is_the_reason(path):
    repo = vzarr.open(path)
    session = repo.session("main")
    repo.close()
    with pytest.raises(vzarr.SessionStateError, match="closed"):
        session.commit("nothing")


def test_a_commit_is_remembered_as_it_is_read(filled):
    class Message(str):
        __slots__ = ()

    session = filled.session("main")
    session.set("a/c/0", b"x")
    commit = session.commit(Message("a text"))
    assert type(filled.show(commit).message) is str


def test_a_batch_that_found_the_file_busy_is_tried_again(filled, monkeypatch):
    monkeypatch.setattr("vzarr.changes.BATCH_BYTES", 1000)
    failed = threading.Event()
    original = changes.ChangeSet._write

    def write(self, batch):
        if not failed.is_set():
            failed.set()
            raise vzarr.BusyError("others write")
        original(self, batch)

    monkeypatch.setattr(changes.ChangeSet, "_write", write)
    session = filled.session("main")
    session.set("a/c/0", bytes(2000))
    assert failed.wait(60)
    session.commit("whoever it was has gone")
    assert filled.session("main").get("a/c/0") == bytes(2000)


def test_a_write_that_changes_nothing_is_no_change(filled):
    session = filled.session("main")
    session.set("a/c/0", b"0")
    session.set("a/c/9", b"x")
    session.delete("a/c/9")
    session.delete("never/there")
    assert not session.status()
    with pytest.raises(SessionStateError, match="allow_empty"):
        session.commit("nothing")
    before = filled.branches["main"]
    with filled.transaction("main", "nothing") as store:
        store.session.set("a/c/0", b"0")
    assert filled.branches["main"] == before
    empty = session.commit("on purpose", allow_empty=True)
    assert filled.root_id(empty) == filled.root_id(before)


def test_equal_content_has_one_root_id_in_any_file_and_order(tmp_path):
    content = {f"g/a/c/{n}": b"%d" % n for n in range(200)} | {
        "g/zarr.json": GROUP,
        "g/a/zarr.json": array(2000),
    }
    roots = set()
    for number, keys in enumerate((list(content), list(reversed(content)))):
        with vzarr.open(tmp_path / f"{number}.vzarr") as repo:
            session = repo.session("main")
            session.set("g/a/c/5", b"overwritten")
            for key in keys:
                session.set(key, content[key])
                if number and len(key) == 8:
                    session.commit(key)
            session.commit("last")
            roots.add(repo.root_id("main"))
    assert len(roots) == 1


def test_equal_chunks_are_stored_once(repo):
    data = bytes(range(256)) * 400
    session = repo.session("main")
    session.set("a/zarr.json", array())
    session.set("b/zarr.json", array())
    for key in ("a/c/0", "a/c/1", "b/c/0", "file"):
        session.set(key, data)
    session.commit("one")
    repo.branches.create("dev")
    other = repo.session("dev")
    other.set("elsewhere", data)
    other.commit("two")
    # One array document and one chunk.
    assert repo.info().chunks == 2


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("key", ["", 3, None, "\udc80"])
def test_a_key_is_text(repo, key):
    with pytest.raises(InvalidInputError):
        repo.session("main").set(key, b"")


def test_keys_may_be_longer_than_lmdbs(repo):
    session = repo.session("main")
    key = "/".join(["long" * 200] * 3)
    commit(session, **{key: b"1"})
    assert repo.session("main").get(key) == b"1"
    assert list(repo.session("main").keys()) == [key]


# ── commit, amend, transaction, run ──────────────────────────────────────────────────────────────


def test_commit_records_author_time_message_metadata(repo):
    session = repo.session("main")
    session.set("file", b"1")
    identity = session.commit(
        "subject\n\nbody", metadata={"n": 1, "list": (1, 2.5, None, "x")}, author="A <a@b>"
    )
    found = repo.show("main")
    assert found.id == identity
    assert found.message == "subject\n\nbody"
    assert found.metadata == {"n": 1, "list": [1, 2.5, None, "x"]}
    assert found.author == "A <a@b>"
    assert found.time.tzinfo is not None
    assert found.root == repo.root_id("main")


@pytest.mark.parametrize("message", [None, 3, b"bytes", "\udc80"])
def test_a_message_is_text_and_nothing_is_lost(repo, message):
    session = repo.session("main")
    session.set("file", b"1")
    with pytest.raises(InvalidInputError, match="message"):
        session.commit(message)
    assert session.get("file") == b"1"
    session.commit("fine")


@pytest.mark.parametrize("metadata", [3, {1: 2}, {"x": object()}, {"x": 2**70}, {"x": b"1"}])
def test_metadata_is_like_json(repo, metadata):
    with pytest.raises(InvalidInputError, match="metadata"):
        repo.session("main").commit("x", metadata=metadata, allow_empty=True)


def test_amend_replaces_the_last_commit(repo):
    session = repo.session("main")
    first = commit(session, "one", file=b"1")
    second = commit(session, "two", file=b"2")
    session.set("file", b"3")
    amended = session.amend()
    assert repo.branches["main"] == amended
    assert repo.show(amended).parents == (first,)
    assert repo.show(amended).message == "two"
    assert repo.session("main").get("file") == b"3"
    assert repo.reflog("main")[0].old == second
    assert repo.show(session.amend("better")).message == "better"


def test_amend_refuses_when_the_branch_moved_on(repo):
    session, other = repo.session("main"), repo.session("main")
    commit(other, file=b"1")
    session.set("x", b"1")
    with pytest.raises(ConflictError, match="moved on"):
        session.amend("late")
    assert session.get("x") == b"1"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_transaction_is_all_or_nothing(filled, error):
    before, root = filled.branches["main"], filled.root_id("main")
    with pytest.raises(error), filled.transaction("main", "fails") as store:
        store.session.set("a/c/0", b"x")
        store.session.delete_below("a")
        raise error
    assert filled.branches["main"] == before
    assert filled.root_id("main") == root
    with pytest.raises(SessionStateError, match="ended"):
        store.session.set("late", b"x")


def test_a_transaction_commits_once_and_its_store_reads_on(filled):
    with filled.transaction("main", "both", metadata={"k": 1}) as store:
        store.session.set("a/c/0", b"x")
        store.session.set("a/c/1", b"y")
    (last, *_) = filled.log()
    assert (last.message, last.metadata) == ("both", {"k": 1})
    assert store.session.get("a/c/0") == b"x"


def test_a_transaction_needs_a_branch(filled):
    filled.tags.create("v1")
    with pytest.raises(ReadOnlyError, match="no branch"), filled.transaction("v1", "x"):
        pass


def test_run_retries_on_conflict(filled):
    calls = []

    def append(store):
        calls.append(store.session.get("a/c/0"))
        if len(calls) == 1:
            commit(filled.session("main"), "in between", **{"a/c/0": b"theirs"})
        store.session.set("a/c/0", calls[-1] + b"+ours")
        return len(calls)

    identity, result = filled.run(append, "main", "append")
    assert result == 2
    assert filled.branches["main"] == identity
    assert filled.session("main").get("a/c/0") == b"theirs+ours"


def test_run_gives_up_after_so_many_retries(filled):
    attempts = []

    def hopeless(store):
        attempts.append(len(attempts))
        commit(filled.session("main"), **{"a/c/1": bytes(attempts)})
        store.session.set("a/c/1", b"never")

    with pytest.raises(ConflictError):
        filled.run(hopeless, "main", "never", retries=3)
    assert len(attempts) == 4


def test_run_without_changes_makes_no_commit(filled):
    assert filled.run(lambda store: 7) == (filled.branches["main"], 7)


# ── another writer first ─────────────────────────────────────────────────────────────────────────


def rebase(repo, ours: dict[str, bytes | None], theirs: dict[str, bytes | None], **options) -> str:
    mine, other = repo.session("main"), repo.session("main")
    commit(other, "theirs", **theirs)
    for key, data in ours.items():
        if data is None:
            mine.delete(key)
        else:
            mine.set(key, data)
    return mine.commit("ours", **options)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"a/c/0": b"x"}, {"a/c/1": b"y"}),
        ({"a/c/0": b"x"}, {"a/c/0": b"x"}),
        ({"a/c/0": None}, {"a/c/0": None}),
        ({"a/c/0": None}, {"a/c/3": b"y"}),
        ({"a/c/0": b"x"}, {"a/zarr.json": array(80, units="K")}),
        ({"b/zarr.json": GROUP}, {"d/zarr.json": GROUP}),
        ({"b/zarr.json": GROUP}, {"b/zarr.json": GROUP}),
        ({"b/zarr.json": GROUP}, {"a/c/2": b"y"}),
        ({"file": b"x"}, {"other": b"y"}),
        ({"a/c/0": b"x"}, {"a/zarr.json": array(80), "a/c/1": b"y"}),
        ({"a/zarr.json": array(50), "o": b"1"}, {"a/zarr.json": array(50)}),
    ],
)
def test_what_does_not_overlap_is_rebased(filled, ours, theirs):
    identity = rebase(filled, ours, theirs)
    assert filled.branches["main"] == identity
    session = filled.session("main")
    for key, data in {**theirs, **ours}.items():
        assert session.get(key) == data
    assert session.get("a/c/2") is not None


OVERLAPS = [
    ({"a/c/0": b"x"}, {"a/c/0": b"y"}, "chunk"),
    ({"a/c/0": None}, {"a/c/0": b"y"}, "chunk"),
    ({"a/c/3": b"x"}, {"a/c/3": b"y"}, "chunk"),
    ({"a/zarr.json": array(units="K")}, {"a/zarr.json": array(units="C")}, "document"),
    (
        {"a/zarr.json": array(50), "a/c/4": b"x", "o": b"1"},
        {"a/zarr.json": array(50), "a/c/4": b"x"},
        "document",
    ),
    ({"file": b"x"}, {"file": b"y"}, "file"),
    ({"b/zarr.json": GROUP}, {"b/zarr.json": array()}, "node"),
    ({"b/zarr.json": array()}, {"b/c/0": b"x"}, "node"),
    ({"a/zarr.json": None, "a/c/0": None, "a/c/1": None, "a/c/2": None}, {"a/c/0": b"y"}, "node"),
    ({"a/c/0": b"x"}, {"a/zarr.json": array().replace(b"uint8", b"uint16")}, None),
]


@pytest.mark.parametrize(("ours", "theirs", "kind"), OVERLAPS[:-1])
def test_what_overlaps_is_a_conflict_and_nothing_is_lost(filled, ours, theirs, kind):
    mine, other = filled.session("main"), filled.session("main")
    head = commit(other, "theirs", **theirs)
    for key, data in ours.items():
        if data is None:
            mine.delete(key)
        else:
            mine.set(key, data)
    with pytest.raises(ConflictError) as error:
        mine.commit("ours")
    assert filled.branches["main"] == head
    (conflict,) = error.value.conflicts
    assert conflict.kind == kind
    assert conflict.path in ("a", "b", "file")
    if kind == "chunk":
        (key,) = ours
        assert conflict.coordinates == (int(key[-1]),)
        assert conflict.region == (slice(int(key[-1]) * 10, int(key[-1]) * 10 + 10),)
        assert (conflict.ours, conflict.theirs) == (ours[key], theirs[key])
        # One byte is no chunk of ten: there are no elements to merge.
        assert "zarr cannot decode" in conflict.reason
    assert mine.has_changes
    identity = mine.commit("ours after all", merge="ours")
    assert filled.show(identity).parents == (head,)
    for key, data in ours.items():
        assert filled.session("main").get(key) == data


@pytest.mark.parametrize(("ours", "theirs", "kind"), OVERLAPS[:-1])
def test_theirs_wins_where_asked(filled, ours, theirs, kind):
    ours = {"untouched": b"1", **ours}
    rebase(filled, ours, theirs, merge="theirs")
    session = filled.session("main")
    assert session.get("untouched") == b"1"
    for key, data in theirs.items():
        assert session.get(key) == data


def test_attributes_and_shape_of_one_document_merge(filled):
    rebase(filled, {"a/zarr.json": array(units="K")}, {"a/zarr.json": array(50, long="T")})
    assert json.loads(filled.session("main").get("a/zarr.json")) == json.loads(
        array(50, units="K", long="T")
    )


def test_a_new_dtype_conflicts_with_chunks_of_the_old_one(filled):
    ours, theirs, _ = OVERLAPS[-1]
    with pytest.raises(ConflictError) as error:
        rebase(filled, ours, theirs)
    assert error.value.conflicts[0].kind == "node"


def test_an_unknown_strategy_is_named(repo):
    with pytest.raises(InvalidInputError, match="fail, ours, theirs"):
        repo.session("main").commit("x", merge="union", allow_empty=True)


def test_a_move_and_an_unrelated_write_merge(filled):
    mine, other = filled.session("main"), filled.session("main")
    commit(other, "theirs", **{"b/zarr.json": GROUP})
    mine.move("a", "moved")
    mine.commit("ours")
    session = filled.session("main")
    assert session.get("moved/c/1") == b"1"
    assert session.get("a/c/1") is None
    assert session.get("b/zarr.json") == GROUP


# ── move, delete ─────────────────────────────────────────────────────────────────────────────────


def test_move_writes_no_chunk(filled):
    before = filled.info().chunks
    session = filled.session("main")
    session.set("g/zarr.json", GROUP)
    session.move("a", "g/b")
    assert sorted(session.keys("g/b")) == ["g/b/c/0", "g/b/c/1", "g/b/c/2", "g/b/zarr.json"]
    assert session.status().moved == {"g/b": "a"}
    session.commit("move")
    assert filled.info().chunks == before
    assert filled.session("main").get("g/b/c/1") == b"1"


def test_move_refuses_what_git_would(filled):
    session = filled.session("main")
    with pytest.raises(NotFoundError):
        session.move("nope", "b")
    session.set("b", b"in the way")
    with pytest.raises(AlreadyExistsError):
        session.move("a", "b")
    session.delete("b")
    with pytest.raises(InvalidInputError):
        session.move("a", "a/inside")
    with pytest.raises(InvalidInputError):
        session.move("a", "nowhere/b")
    with pytest.raises(InvalidInputError):
        session.move(3, "b")
    assert not session.has_changes


# ── status and diff ──────────────────────────────────────────────────────────────────────────────


def test_status_names_documents_and_chunks(filled):
    session = filled.session("main")
    session.set("a/c/0", b"x")
    session.set("a/c/3", b"new")
    session.delete("a/c/1")
    session.set("a/zarr.json", array(40, units="K"))
    session.set("b/zarr.json", GROUP)
    session.set("note.txt", b"n")
    status = session.status()
    assert status.added.chunks == {"a": [(3,)]}
    assert status.modified.chunks == {"a": [(0,)]}
    assert status.deleted.chunks == {"a": [(1,)]}
    assert set(status.added.documents) == {"b/zarr.json", "note.txt"}
    assert status.modified.documents == ("a/zarr.json",)
    text = str(status)
    assert text.startswith("On branch main")
    assert "@units: None → 'K'" in text
    assert "[30:40]" in text
    assert "clean" in str(filled.session("main").status())


def test_diff_tells_nodes_attributes_chunks_and_values(filled):
    session = filled.session("main")
    session.set("a/c/0", bytes(range(10)))
    session.set("a/zarr.json", array(50, units="K"))
    session.set("b/zarr.json", GROUP)
    session.commit("second")
    diff = filled.diff("main~1", "main")
    assert [(node.path, node.change) for node in diff] == [("a", "changed"), ("b", "added")]
    change = diff["a"]
    assert change.attributes == {"units": (None, "K")}
    assert change.metadata == {"shape": ((40,), (50,))}
    assert [chunk.coordinates for chunk in change.chunks] == [(0,)]
    assert change.regions == [(slice(0, 10),)]
    assert list(change.new[change.regions[0]]) == list(range(10))
    assert change.new.attrs["units"] == "K"
    assert change.old.shape == (40,)
    assert diff["b"].old is None
    assert not filled.diff("main", "main")
    with pytest.raises(KeyError):
        diff["nothing"]
    back = filled.diff("main", "main~1")
    assert [(node.path, node.change) for node in back] == [("a", "changed"), ("b", "removed")]


def test_a_diff_that_fills_a_box_says_so(repo):
    session = repo.session("main")
    commit(session, **{"a/zarr.json": array()})
    commit(session, **{f"a/c/{number}": b"x" for number in (1, 2, 3)})
    assert "3 added, all of [10:40]" in str(repo.diff("main~1"))
    commit(session, **{"a/c/0": b"y", "a/c/2": b"y"})
    assert "(0,) [0:10], (2,) [20:30]" in str(repo.diff("main~1"))


def test_diff_finds_moves_and_lists_new_subtrees(filled):
    session = filled.session("main")
    session.move("a", "z")
    session.set("g/zarr.json", GROUP)
    session.set("g/x/zarr.json", array())
    session.set("g/x/c/0", b"x")
    session.commit("move")
    diff = filled.diff("main~1")
    assert [(node.path, node.change) for node in diff] == [
        ("g", "added"),
        ("g/x", "added"),
        ("z", "moved"),
    ]
    assert diff.moved[0].old_path == "a"
    assert diff["z"].old.shape == (40,)
    assert [chunk.kind for chunk in diff["g/x"].chunks] == ["added"]


def test_diff_handles_nan_attributes_and_odd_documents(repo):
    session = repo.session("main")
    commit(session, **{"a/zarr.json": array(40, bad=float("nan")), "x/zarr.json": b"not json"})
    commit(session, **{"a/c/0": b"1", "x/zarr.json": b"still not"})
    diff = repo.diff("main~1", "main")
    assert diff["a"].attributes == {}
    assert diff["x/zarr.json"].kind == "file"


# ── staging ──────────────────────────────────────────────────────────────────────────────────────


def test_big_transactions_are_staged_and_still_all_or_nothing(repo, monkeypatch):
    monkeypatch.setattr("vzarr.changes.BATCH_BYTES", 10_000)
    session = repo.session("main")
    session.set("a/zarr.json", array(10_000))
    for number in range(200):
        session.set(f"a/c/{number}", number.to_bytes(2, "big") * 500)
    assert repo.branches["main"] == repo.log()[-1].id
    environment = session.environment
    assert environment.info().entries["sessions"] > 2
    assert session.get("a/c/7") == (7).to_bytes(2, "big") * 500
    session.commit("staged")
    assert environment.info().entries["sessions"] == 0
    assert repo.session("main").get("a/c/199") == (199).to_bytes(2, "big") * 500


class LazyTask:
    """The background writer at its slowest: it writes a batch when somebody waits for it."""

    def __init__(self, work) -> None:
        self.pid = os.getpid()
        self.error = None
        self._work = work

    def wait(self) -> None:
        work, self._work = self._work, lambda: None
        work()


@pytest.mark.parametrize("resolve", ["commit", "amend"])
def test_staged_bytes_are_in_the_file_before_the_branch_moves(filled, monkeypatch, resolve):
    monkeypatch.setattr("vzarr.changes.BATCH_BYTES", 1)
    monkeypatch.setattr("vzarr.changes._Task", LazyTask)
    session = filled.session("main")
    session.set("a/c/0", b"staged")
    getattr(session, resolve)("x")
    assert filled.session("main").get("a/c/0") == b"staged"
    assert session.environment.info().entries["sessions"] == 0


def test_what_a_merge_makes_is_in_the_file_before_the_branch_moves(filled, monkeypatch):
    mine, other = filled.session("main"), filled.session("main")
    commit(other, "theirs", **{"a/zarr.json": array(40, long="T")})
    mine.set("a/zarr.json", array(40, units="K"))
    monkeypatch.setattr("vzarr.changes.BATCH_BYTES", 1)
    monkeypatch.setattr("vzarr.changes._Task", LazyTask)
    mine.commit("ours")
    assert b"units" in filled.session("main").get("a/zarr.json")
    assert mine.environment.info().entries["sessions"] == 0


def test_a_commit_that_another_made_already_leaves_no_lease(filled, monkeypatch):
    monkeypatch.setattr("vzarr.changes.BATCH_BYTES", 1)
    mine, other = filled.session("main"), filled.session("main")
    mine.set("a/c/0", b"same")
    head = commit(other, "theirs", **{"a/c/0": b"same"})
    assert mine.commit("ours") == head
    assert mine.environment.info().entries["sessions"] == 0


def test_discard_takes_back_the_lease_of_staged_work(repo, monkeypatch):
    monkeypatch.setattr("vzarr.changes.BATCH_BYTES", 1)
    session = repo.session("main")
    session.set("a", b"1")
    session.set("b", b"2")
    session.discard()
    assert session.environment.info().entries["sessions"] == 0
    assert session.get("a") is None
    session.set("a", b"1")
    session.commit("again")
    assert repo.session("main").get("a") == b"1"


def test_nodes_spill_and_the_commit_is_the_same(repo, monkeypatch, tmp_path):
    content = {f"a/c/{number}": b"%d" % number for number in range(3000)}

    def fill(target: vzarr.Repository) -> str:
        session = target.session("main")
        session.set("a/zarr.json", array(30_000))
        for key, data in content.items():
            session.set(key, data)
        session.commit("fill")
        return target.root_id()

    with vzarr.open(tmp_path / "other.vzarr") as other:
        expected = fill(other)
    monkeypatch.setattr("vzarr.workspace._FOLD_EDITS", 500)
    monkeypatch.setattr("vzarr.workspace._SPILL_NODE_BYTES", 10_000)
    assert fill(repo) == expected
    assert repo.session("main").environment.info().entries["sessions"] == 0


def test_overwritten_bytes_that_were_never_staged_are_not_written(repo):
    session = repo.session("main")
    for number in range(50):
        session.set("file", b"%d" % number)
        assert list(session.keys()) == ["file"]
    session.commit("once")
    assert repo.info().chunks == 1


# ── damage ───────────────────────────────────────────────────────────────────────────────────────


def test_a_damaged_chunk_is_an_error_and_not_wrong_data(tmp_path):
    path = tmp_path / "damaged.vzarr"
    data = bytes(range(256)) * 64
    with vzarr.open(path) as repo:
        commit(repo.session("main"), file=data)
    content = path.read_bytes()
    place = content.index(data)
    path.write_bytes(content[: place + 5000] + b"!" + content[place + 5001 :])
    with vzarr.open(path) as repo, pytest.raises(CorruptError, match="digest"):
        repo.session("main").get("file")
    with vzarr.open(path, verify="never") as repo:
        assert repo.session("main").get("file") != data
    with vzarr.open(path, verify="first") as repo, pytest.raises(CorruptError):
        repo.session("main").get("file")


def test_put_tells_whether_bytes_are_new(repo, monkeypatch):
    """Neither in the file, nor in a batch under way, nor waiting for one."""
    monkeypatch.setattr(changes, "BATCH_BYTES", 1000)
    session = repo.session("main")

    def put(key: str, data: bytes) -> bool:
        return session.put(key, Blob(chunk_digest(data), len(data)), data)

    assert put("a", b"1")
    assert not put("b", b"1")
    assert put("large", b"x" * 2000)
    assert not put("again", b"x" * 2000)
    session.commit("put")
    assert not put("c", b"1")
    assert not put("a", b"x" * 2000)
    values = {key: bytes(session.get(key) or b"") for key in list(session.keys(""))}
    assert values == {
        "a": b"x" * 2000,
        "again": b"x" * 2000,
        "b": b"1",
        "c": b"1",
        "large": b"x" * 2000,
    }
