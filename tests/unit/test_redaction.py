"""Redaction: the data are gone from every commit and from the file, and all else is as it was."""

from __future__ import annotations

import random
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, GzipCodec

import vzarr
from tests.unit.test_garbage import end, entries, forget_all
from tests.unit.test_session import GROUP, array, commit
from vzarr import redaction, rewriting
from vzarr.errors import (
    BusyError,
    CommitNotFoundError,
    InvalidInputError,
    NotFoundError,
    ReadOnlyError,
    RefNotFoundError,
    SessionNotFoundError,
    SessionStateError,
)

SECRET = b"the patient's name is "


def raw(repo) -> bytes:
    """Give all bytes of the file."""
    return Path(repo.path).read_bytes()


def log(repo, *refs: str) -> list[str]:
    """List the commits of refs, oldest first."""
    return list(dict.fromkeys(entry.id for ref in refs for entry in reversed(repo.log(ref))))


def values(repo, ref: str, path: str = "a"):
    return zarr.open_array(repo.store(ref), path=path, mode="r")[...]


def secret(length: int, number: int = 0) -> bytes:
    """Make a chunk that can be recognised wherever some of it is left."""
    return (SECRET + b"%04d. " % number) * (length // len(SECRET))


def compact(repo) -> None:
    """Give the free pages back; what is garbage stays, and would be found."""
    repo.compact(gc=False, verify=None)


# ── gone ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("length", [60, 1_500, 5_000, 200_000])
def test_a_secret_leaves_fifty_commits_two_branches_a_merge_a_tag_and_the_file(repo, length):
    """In pages of its own, in pages with other records, and where these were copied and joined."""
    commit(repo.session("main"), "before", **{"zarr.json": GROUP, "a/zarr.json": array()})
    before = repo.branches["main"]
    commit(repo.session("main"), "secret", **{"a/c/3": secret(length), "a/c/4": b"open"})
    for number in range(24):
        commit(repo.session("main"), f"main {number}", **{"a/c/5": b"m%d" % number})
    repo.branches.create("dev")
    for number in range(24):
        edits = {"a/c/6": b"d%d" % number}
        if number == 12:
            edits["a/c/3"] = secret(length, 1)
        commit(repo.session("dev"), f"dev {number}", **edits)
        commit(repo.session("main"), f"more {number}", **{"a/c/7": b"n%d" % number})
    repo.merge("dev", into="main")
    repo.tags.create("v1", at="main~3")
    repo.branches.reset("dev", "dev~2")
    assert SECRET in raw(repo)
    old, shown = log(repo, "main", "dev"), {}
    for ref in old:
        shown[ref] = (repo.show(ref), dict(repo.session(ref).hierarchy.items()))
    heads = dict(repo.branches)

    report = repo.redact("a", np.s_[30:40], reason="erasure request 7")

    assert (report.changed, report.chunks, report.reencoded) == (74, 2, 0)
    assert report.nbytes == len(secret(length)) * 2
    assert (report.branches, report.tags, report.elsewhere) == (("dev", "main"), ("v1",), ())
    assert set(report.rewritten) == set(old) - {before, log(repo, "main")[0]}
    for ref in old:
        new = report.rewritten.get(ref, ref)
        was, now = shown[ref][0], repo.show(new)
        assert now.parents == tuple(report.rewritten.get(one, one) for one in was.parents)
        assert (now.author, now.time, now.message) == (was.author, was.time, was.message)
        rest = {key: blob for key, blob in shown[ref][1].items() if key != "a/c/3"}
        assert dict(repo.session(new).hierarchy.items()) == rest
        if new != ref:
            with pytest.raises((CommitNotFoundError, RefNotFoundError)):
                repo.session(ref)
    assert dict(repo.branches) == {name: report.rewritten[head] for name, head in heads.items()}
    assert repo.tags["v1"] == log(repo, "main~3")[-1]
    assert repo.reflog("main")[0].operation == "redact a: erasure request 7"
    assert not set(report.rewritten) & {
        one for name in repo.branches for move in repo.reflog(name) for one in (move.old, move.new)
    }
    compact(repo)
    assert SECRET not in raw(repo)
    assert b"erasure request" in raw(repo)


CODECS = {
    "raw": {"compressors": None},
    "blosc": {"compressors": BloscCodec(cname="lz4", shuffle="shuffle")},
    "gzip": {"compressors": GzipCodec()},
    "sharded": {"shards": (8, 12), "compressors": BloscCodec(cname="zstd")},
    "sharded raw": {"shards": (8, 12), "compressors": None},
}


@pytest.mark.parametrize("codec", [*CODECS, "v2", "v2 raw"])
@pytest.mark.parametrize("seed", range(2))
def test_a_region_is_fill_value_in_every_commit_and_all_else_is_as_it_was(repo, codec, seed):
    generator = random.Random(f"{codec} {seed}")
    with repo.transaction("main", "create") as store:
        zarr.create_group(store, zarr_format=2 if codec.startswith("v2") else 3)
        options = {"shape": (20, 30), "chunks": (4, 6), "dtype": "i4", "fill_value": -7}
        if codec.startswith("v2"):
            options |= {"zarr_format": 2}
            options |= {"compressors": None} if codec == "v2 raw" else {}
        else:
            options |= CODECS[codec]
        zarr.create_array(store, name="a", **options)
        zarr.create_array(store, name="b", shape=(50,), dtype="i4")[:] = 5
    region = np.s_[3:9, 5:13]
    model, originals = {}, set()
    for number in range(12):
        with repo.transaction("main", f"write {number}") as store:
            target = zarr.open_array(store, path="a")
            if number == 6:
                target.resize((7, 30))
            if number == 9:
                target.resize((16, 40))
            rows, columns = (sorted(generator.sample(range(length + 1), 2)) for length in (20, 40))
            part = target[slice(*rows), slice(*columns)]
            noise = np.random.default_rng(number).integers(1, 1 << 30, part.shape)
            target[slice(*rows), slice(*columns)] = noise
        model[repo.branches["main"]] = values(repo, "main")
        with repo._environment.read() as txn:
            for key, blob in repo.session("main").hierarchy.items("a"):
                if "json" not in key and ".z" not in key:
                    originals.add((key, txn.get("chunks", blob.digest)))
    del store, target

    report = repo.redact("a", region)

    for old, expected in model.items():
        expected[region] = -7
        new = report.rewritten.get(old, old)
        np.testing.assert_array_equal(values(repo, new), expected)
        assert (values(repo, new, "b") == 5).all()
    present = set()
    for ref in log(repo, "main"):
        for key, blob in repo.session(ref).hierarchy.items("a"):
            with repo._environment.read() as txn:
                present.add((key, txn.get("chunks", blob.digest)))
    gone = {data for _, data in originals - present} - {data for _, data in present}
    assert gone
    compact(repo)
    everything = raw(repo)
    assert not [data for data in gone if len(data) > 40 and data in everything]
    # What was cut away by a shrunk array went as well: it does not come back by growing.
    with repo.transaction("main", "grow") as store:
        zarr.open_array(store, path="a").resize((20, 40))
    assert (values(repo, "main")[region] == -7).all()
    assert not repo.redact("a", region).rewritten


def test_a_group_goes_with_all_below_it_but_for_documents(repo):
    documents = {"zarr.json": GROUP, "g/zarr.json": GROUP, "g/a/zarr.json": array()}
    rest = {"b/zarr.json": array(), "b/c/0": b"kept", "file": b"kept as well"}
    data = {"g/a/c/0": b"one", "g/a/c/1": b"two", "g/notes/x.txt": b"three", "g": b"four"}
    commit(repo.session("main"), "all", **documents, **rest, **data)
    report = repo.redact("g")
    assert report.chunks == 4
    assert report.nbytes == sum(map(len, data.values()))
    assert set(repo.session("main").keys()) == {*documents, *rest}
    commit(repo.session("main"), "again", **data)
    assert repo.redact("g/notes/x.txt").nbytes == 5
    assert repo.redact("").chunks == 5
    assert set(repo.session("main").keys()) == {*documents, "b/zarr.json"}


def test_what_only_the_reflog_has_goes_too(repo):
    first = repo.branches["main"]
    commit(repo.session("main"), "secret", secret=SECRET)
    commit(repo.session("main"), "more", other=b"x")
    repo.branches.reset("main", first)
    repo.branches.create("gone", at=repo.reflog("main")[0].old)
    repo.branches.delete("gone")
    report = repo.redact("secret")
    assert (report.changed, report.branches) == (2, ())
    assert repo.branches["main"] == first
    earlier = repo.reflog("main")[0].old
    assert earlier in report.rewritten.values()
    assert repo.reflog("gone")[0].old == earlier
    assert list(repo.session(earlier).keys()) == ["other"]
    compact(repo)
    assert SECRET not in raw(repo)


def test_a_move_is_followed_both_ways_and_a_namesake_is_not(repo):
    files = {"zarr.json": GROUP, "g/zarr.json": GROUP, "g/a/zarr.json": array()}
    commit(repo.session("main"), "early", **files, **{"g/a/c/0": b"s1", "g/a/c/1": b"o1"})
    commit(repo.session("main"), "overwritten", **{"g/a/c/0": b"s2"})
    session = repo.session("main")
    session.move("g", "h")
    session.commit("move")
    commit(repo.session("main"), "namesake", **files, **{"g/a/c/0": b"another"})
    commit(repo.session("main"), "late", **{"h/a/c/0": b"s3"})
    session = repo.session("main")
    session.move("h/a", "i")
    session.commit("move again")
    del session
    report = repo.redact("h/a", np.s_[:10])
    assert report.paths == ("g/a", "h/a", "i")
    assert "It was moved: g/a, h/a, i." in str(report)
    assert report.chunks == 3
    shown = [dict(repo.session(ref).hierarchy.items()) for ref in log(repo, "main")]
    assert not [key for keys in shown[:4] for key in keys if key == "g/a/c/0"]
    assert [key for key in shown[-1] if "/c/" in key] == ["g/a/c/0", "i/c/1"]
    forget_all(repo)
    assert repo.gc().chunks == 0


def test_the_same_bytes_elsewhere_are_named_or_dropped(repo):
    commit(
        repo.session("main"),
        "copies",
        **{"zarr.json": GROUP, "a/zarr.json": array(), "b/zarr.json": array()},
        **{"a/c/0": SECRET, "a/c/7": SECRET, "b/c/2": SECRET, "b/c/3": b"x", "copy.txt": SECRET},
    )
    commit(repo.session("main"), "fewer", **{"b/c/2": None})
    first = repo.redact("a", np.s_[:10])
    newest, older = repo.branches["main"], repo.log()[1].id
    assert {(one.path, one.coordinates, one.commit) for one in first.elsewhere} == {
        ("a", (7,), newest),
        ("b", (2,), older),
        ("copy.txt", None, newest),
    }
    assert (first.chunks, first.nbytes, first.elsewhere_places) == (1, 0, 3)
    assert f"a chunk (7,), in commit {newest[:12]}" in str(first)
    dry = repo.redact("copy.txt", everywhere=True, dry_run=True)
    second = repo.redact("copy.txt", everywhere=True)
    for report in (dry, second):
        assert (report.nbytes, report.elsewhere) == (len(SECRET), ())
    keys = set(repo.session("main~1").keys())
    assert keys == {"zarr.json", "a/zarr.json", "b/zarr.json", "b/c/3"}
    compact(repo)
    assert SECRET not in raw(repo)


def test_values_behind_the_edge_of_a_shrunk_array_are_data_too(repo):
    with repo.transaction("main", "write") as store:
        target = zarr.create_array(
            store, name="a", shape=(10,), chunks=(6,), dtype="i4", compressors=None
        )
        target[:] = np.arange(1, 11)
        target.resize((8,))
    del store, target
    hidden = np.arange(9, 11, dtype="<i4").tobytes()
    assert hidden in raw(repo)
    assert repo.redact("a", np.s_[8:]).reencoded == 1
    np.testing.assert_array_equal(values(repo, "main"), np.arange(1, 9))
    compact(repo)
    assert hidden not in raw(repo)


def test_a_lossy_chunk_goes_as_a_whole_or_not_at_all(repo, monkeypatch):
    from numcodecs import Quantize

    with repo.transaction("main", "write") as store:
        zarr.create_group(store, zarr_format=2)
        target = zarr.create_array(
            store,
            name="a",
            shape=(12,),
            chunks=(4,),
            dtype="f8",
            zarr_format=2,
            filters=[Quantize(3, "f8")],
            compressors=None,
        )
        target[:] = np.linspace(0.1, 0.9, 12)
    del store, target
    before = entries(repo)
    written = values(repo, "main")
    # Values that are quantised already survive another round: only worse ones do not.
    monkeypatch.setattr(Quantize, "encode", lambda self, data: np.asarray(data) * 1.5)
    with pytest.raises(InvalidInputError, match=r"chunk \(0,\) of a .* whole_chunks=True"):
        repo.redact("a", np.s_[2:6])
    assert entries(repo) == before
    repo.redact("a", np.s_[2:6], whole_chunks=True)
    written[:8] = 0
    np.testing.assert_array_equal(values(repo, "main"), written)


# ── nothing else ─────────────────────────────────────────────────────────────────────────────────


def test_a_dry_run_tells_the_same_and_changes_nothing(repo):
    commit(repo.session("main"), "write", **{"a/zarr.json": array(), "a/c/0": b"1", "b": b"2"})
    before = entries(repo)
    dry = repo.redact("a", dry_run=True)
    assert entries(repo) == before
    assert str(dry).startswith("Would erase 1 chunks (1 bytes) of a from 1 commits")
    report = repo.redact("a")
    for fact in ("rewritten", "changed", "chunks", "nbytes", "branches", "tags", "paths"):
        assert getattr(dry, fact) == getattr(report, fact)
    assert str(report).startswith("Erased 1 chunks (1 bytes) of a from 1 commits")
    assert "run compact now" in str(report)


def test_where_there_is_nothing_to_erase_nothing_is_written(repo):
    commit(repo.session("main"), "write", **{"a/zarr.json": array(), "a/c/0": b"1"})
    before = entries(repo)
    report = repo.redact("a", np.s_[10:])
    assert not report.rewritten
    assert str(report).startswith("Nothing to erase")
    assert entries(repo) == before


@pytest.mark.parametrize(
    ("where", "region", "error"),
    [
        ("nix", None, NotFoundError),
        (7, None, InvalidInputError),
        ("a", -1, InvalidInputError),
        ("a", np.s_[2:2], InvalidInputError),
        ("a", np.s_[::2], InvalidInputError),
        ("a", np.s_[..., ...], InvalidInputError),
        ("a", np.s_[0, 0], InvalidInputError),
        ("a", "x", InvalidInputError),
        ("", 0, InvalidInputError),
        ("file", 0, InvalidInputError),
    ],
)
def test_what_cannot_be_meant_is_refused(repo, where, region, error):
    files = {"zarr.json": GROUP, "a/zarr.json": array(), "a/c/0": b"1", "file": b"2"}
    commit(repo.session("main"), "write", **files)
    before = entries(repo)
    with pytest.raises(error):
        repo.redact(where, region)
    assert entries(repo) == before


def test_a_reader_may_only_look(repo):
    commit(repo.session("main"), "write", file=b"1")
    with vzarr.open(repo.path, "r") as reader:
        assert reader.redact("file", dry_run=True).chunks == 1
        with pytest.raises(ReadOnlyError):
            reader.redact("file")


def test_much_that_is_new_is_written_ahead_in_bounded_memory(repo, monkeypatch):
    monkeypatch.setattr(redaction, "_SPILL_BYTES", 2_000)
    monkeypatch.setattr(rewriting, "_SPILL_EVERY", 1)
    with repo.transaction("main", "write") as store:
        target = zarr.create_array(store, name="a", shape=(160, 4), chunks=(2, 4), dtype="i4")
        target[:] = 1
    for number in range(8):
        with repo.transaction("main", f"row {number}") as store:
            zarr.open_array(store, path="a")[20 * number] = number + 2
    del store, target
    model = {ref: values(repo, ref) for ref in log(repo, "main")[1:]}
    report = repo.redact("a", np.s_[:, 1])
    for old, expected in model.items():
        expected[:, 1] = 0
        np.testing.assert_array_equal(values(repo, report.rewritten[old]), expected)
    assert repo.gc().nodes == 0


# ── others ───────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def another_process(repo, ref: str):
    """Have a session open in another process, which holds it until it is told to end."""
    code = (
        "import sys, vzarr\n"
        f"repo = vzarr.open({str(repo.path)!r}, 'r')\n"
        f"session = repo.session({ref!r})\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "open\n"
        yield process
        process.stdin.close()
        assert process.wait() == 0


def test_a_session_of_another_process_is_named(repo):
    first = repo.branches["main"]
    commit(repo.session("main"), "write", file=SECRET)
    with another_process(repo, first):
        assert repo.redact("file", dry_run=True).sessions == ()
    with another_process(repo, repo.branches["main"]) as process:
        with pytest.raises(BusyError, match=f"process {process.pid}") as caught:
            repo.redact("file")
        assert caught.value.holder.pid == process.pid
        (found,) = repo.redact("file", dry_run=True).sessions
        assert found.owner.pid == process.pid
        assert repo.session("main").get("file") == SECRET
        (lost,) = repo.redact("file", force=True).sessions
        assert lost.owner.pid == process.pid
    assert repo.session("main").get("file") is None


def test_a_session_that_began_before_cannot_bring_the_data_back(repo):
    commit(repo.session("main"), "write", file=SECRET, other=b"1")
    old = repo.branches["main"]
    session = repo.session("main")
    session.set("other", b"2")
    with pytest.raises(SessionStateError, match=session.id):
        repo.redact("file")
    (lost,) = repo.redact("file", force=True).sessions
    assert lost.id == session.id
    with pytest.raises(CommitNotFoundError):
        session.commit("with the old data")
    with pytest.raises(SessionStateError, match="deleted meanwhile"):
        session.checkpoint()
    session.close()
    for bring_back in (repo.branches.reset, repo.branches.create):
        with pytest.raises((CommitNotFoundError, RefNotFoundError)):
            bring_back("main" if bring_back == repo.branches.reset else "new", old)
    repo.gc()
    compact(repo)
    assert SECRET not in raw(repo)


def test_a_checkpoint_with_the_data_is_named_and_dropped_if_forced(repo):
    commit(repo.session("main"), "write", file=SECRET, other=b"1")
    harmless = repo.session(repo.log()[-1].id)
    session = repo.session("main")
    session.set("other", b"2")
    saved = session.checkpoint()
    end(session)
    session._closed = True
    vzarr.session.open_sessions.pop(session.id)
    with pytest.raises(SessionStateError, match=saved):
        repo.redact("file")
    report = repo.redact("file", force=True)
    assert [info.id for info in report.sessions] == [saved]
    with pytest.raises(SessionNotFoundError):
        repo.resume(saved)
    assert harmless.get("file") is None
    del session
    compact(repo)
    assert SECRET not in raw(repo)


def test_uncommitted_work_that_holds_the_data_is_named_too(repo):
    session = repo.session("main")
    session.set("file", SECRET)
    session.checkpoint()
    other = repo.session("main")
    other.set("file", SECRET)
    other.commit("write")
    other.close()
    with pytest.raises(SessionStateError, match=session.id):
        repo.redact("file")
    session.discard()
    assert repo.redact("file").held == 0


def test_the_current_session_goes_on_with_the_new_history(repo):
    commit(repo.session("main"), "write", file=SECRET)
    repo.checkout("main")
    repo.store().session.set("new", b"1")
    with pytest.raises(SessionStateError, match="current session has changes"):
        repo.redact("file")
    repo.discard()
    repo.redact("file")
    repo.store().session.set("new", b"1")
    repo.commit("goes on")
    assert set(repo.session("main").keys()) == {"new"}


def test_a_commit_that_comes_in_between_is_redacted_with_the_others(repo):
    commit(repo.session("main"), "write", **{"a/zarr.json": array(), "a/c/0": SECRET + b"1"})
    seen = []

    def progress(done: int, total: int, what: str) -> None:
        if not seen:
            seen.append(what)
            session = repo.session("main")
            commit(session, "between", **{"a/c/0": SECRET + b"2", "a/c/1": b"kept"})
            session.close()

    report = repo.redact("a", np.s_[:10], progress=progress)
    assert seen == ["rewriting snapshots"]
    assert (report.changed, report.chunks) == (2, 2)
    assert set(repo.session("main").keys()) == {"a/zarr.json", "a/c/1"}
    compact(repo)
    assert SECRET not in raw(repo)


def test_a_session_that_comes_in_between_stops_it(repo):
    commit(repo.session("main"), "write", file=SECRET)
    opened = []

    def progress(*_: object) -> None:
        if not opened:
            opened.append(repo.session("main"))

    before = entries(repo)
    with pytest.raises(SessionStateError, match=r"Close them"):
        repo.redact("file", progress=progress)
    assert entries(repo) == before
    assert opened[0].get("file") == SECRET


def test_commits_of_others_go_on_meanwhile_and_never_bring_the_data_back(repo):
    """A writer in another process commits as fast as it can, from before until after."""
    commit(repo.session("main"), "write", secret=SECRET, n=b"0")
    code = (
        "import sys, vzarr\n"
        f"repo = vzarr.open({str(repo.path)!r})\n"
        "print('open', flush=True)\n"
        "failed = done = 0\n"
        "while done < 3000 and failed == 0:\n"
        "    try:\n"
        "        with repo.transaction('main', 'n') as store:\n"
        "            store.session.set('n', b'%d' % done)\n"
        "        store = None\n"
        "    except (vzarr.CommitNotFoundError, vzarr.RefNotFoundError, vzarr.ConflictError):\n"
        "        failed += 1\n"
        "    done += 1\n"
        "    if done == 20:\n"
        "        print('writing', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "open\n"
        assert other.stdout.readline() == "writing\n"
        # At any moment it has a session on the head, or on the one before.
        repo.redact("secret", force=True)
        other.stdout.read()
        assert other.wait() == 0
    assert set(repo.session("main").keys()) == {"n"}
    assert all("secret" not in set(repo.session(ref).keys()) for ref in log(repo, "main"))
    repo.gc()
    compact(repo)
    assert SECRET not in raw(repo)
