"""Opening, checking out, naming, looking back: the repository without zarr in the way."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import lmdb
import pytest

import vzarr
from tests.support import posix
from vzarr.access import Access
from vzarr.environment import _registry
from vzarr.errors import (
    AlreadyExistsError,
    CommitNotFoundError,
    ConflictError,
    FormatVersionError,
    InvalidInputError,
    NotARepositoryError,
    NotFoundError,
    ReadOnlyError,
    RefNotFoundError,
    SessionStateError,
    StorageError,
)

GROUP = b'{"zarr_format": 3, "node_type": "group"}'


def write(repo: vzarr.Repository, message: str, **files: bytes) -> str:
    session = repo.session("main")
    for key, data in files.items():
        session.set(key, data)
    return session.commit(message)


# ── opening ──────────────────────────────────────────────────────────────────────────────────────


def test_one_that_is_let_go_of_where_its_locks_are_taken_is_closed_later(path, monkeypatch):
    repository = vzarr.open(path)
    access = repository._environment._access
    closed = threading.Event()
    dispose = Access.dispose
    monkeypatch.setattr(Access, "dispose", lambda self: (dispose(self), closed.set()))
    # As if Python collected garbage in the middle of opening another file.
    with _registry._lock:
        del repository
        assert access.users == 1
    assert closed.wait(30)
    assert access.users == 0


def test_a_new_repository_has_branch_main_with_one_empty_commit(repo):
    assert dict(repo.branches) == {"main": repo.log()[0].id}
    assert len(repo.log()) == 1
    assert list(repo.session("main").keys()) == []


def test_modes(path):
    with pytest.raises(NotFoundError, match="mode 'a'"):
        vzarr.open(path, "r")
    with pytest.raises(NotFoundError):
        vzarr.open(path, "r+")
    assert not path.exists()
    with vzarr.open(path, "w-") as repo:
        identity = repo.id
    with pytest.raises(AlreadyExistsError):
        vzarr.open(path, "w-")
    with vzarr.open(path) as repo:
        assert repo.id == identity
        assert not repo.read_only
    with vzarr.open(path, "r") as repo:
        assert repo.read_only
    with vzarr.open(path, "w") as repo:
        assert repo.id != identity


def test_mode_w_does_not_replace_what_is_open(path):
    with vzarr.open(path) as repo:
        write(repo, "keep", file=b"1")
        with pytest.raises(SessionStateError, match="open"):
            vzarr.open(path, "w")
        assert repo.session("main").get("file") == b"1"


def test_one_file_and_no_map_size_to_set(path):
    with vzarr.open(path) as repo:
        write(repo, "one", file=bytes(10_000))
    assert sorted(item.name for item in path.parent.iterdir() if "lock" not in item.name) == [
        path.name
    ]
    assert path.stat().st_size < 200_000


@pytest.mark.parametrize("argument", [{"mode": "x"}, {"durability": "some"}, {"verify": "maybe"}])
def test_wrong_choices_are_named(path, argument):
    with pytest.raises(InvalidInputError, match="is one of"):
        vzarr.open(path, **argument)
    assert not path.exists()


@pytest.mark.parametrize(
    "argument", [{"author": ""}, {"author": 3}, {"timeout": -1}, {"timeout": "x"}]
)
def test_wrong_arguments_are_named(path, argument):
    with pytest.raises(InvalidInputError, match=next(iter(argument))):
        vzarr.open(path, **argument)


@pytest.mark.parametrize("target", [3, None, b"bytes", "", "nul\0", "\udcff.vzarr"])
def test_a_path_is_text(target):
    with pytest.raises(InvalidInputError, match="path"):
        vzarr.open(target)


def test_what_is_no_repository_is_refused_and_left_alone(tmp_path):
    zero = tmp_path / "zero.vzarr"
    zero.touch()
    text = tmp_path / "text.vzarr"
    text.write_text("not LMDB at all\n" * 1000)
    directory = tmp_path / "directory.vzarr"
    directory.mkdir()
    other = tmp_path / "other.vzarr"
    environment = lmdb.open(str(other), subdir=False, max_dbs=2, lock=False)
    with environment.begin(write=True) as txn:
        environment.open_db(b"theirs", txn=txn)
        txn.put(b"key", b"value")
    environment.close()
    before = {item: item.is_file() and item.read_bytes() for item in tmp_path.iterdir()}
    for target in (zero, text, directory, other):
        for mode in ("r", "r+", "a", "w"):
            with pytest.raises(NotARepositoryError) as error:
                vzarr.open(target, mode)
            assert str(target) in str(error.value)
            assert "\n" not in str(error.value)
        with pytest.raises(NotARepositoryError):
            vzarr.delete(target)
        assert not vzarr.exists(target)
    assert {item: item.is_file() and item.read_bytes() for item in tmp_path.iterdir()} == before


def test_a_newer_format_is_refused_and_named(path):
    vzarr.open(path).close()
    from vzarr.environment import Environment
    from vzarr.format import FormatRecord, encode_format

    environment = Environment.open(str(path), writable=True)
    with environment.write() as txn:
        old = txn.get("meta", b"format")
        txn.put("meta", b"format", encode_format(FormatRecord(7, 6)))
    environment.close()
    with pytest.raises(FormatVersionError, match=r"version 7.*newer vzarr"):
        vzarr.open(path)
    environment = Environment.open(str(path), writable=True)
    with environment.write() as txn:
        txn.put("meta", b"format", encode_format(FormatRecord(2, 1)))
    with pytest.raises(FormatVersionError, match="mode 'r'"):
        vzarr.open(path)
    with vzarr.open(path, "r") as repo:
        assert repo.format_version == 2
    with environment.write() as txn:
        txn.put("meta", b"format", old)
    environment.close()


@posix
def test_no_permission_is_a_typed_error(path):
    vzarr.open(path).close()
    path.chmod(0)
    code = f"""
import os, vzarr, vzarr.environment
if os.geteuid() == 0:  # root may read anything; another user may not
    os.setgid(65534), os.setuid(65534)
try:
    vzarr.open({str(path)!r})
except vzarr.StorageError as error:
    print(error.errno, error)
"""
    for directory in path.parents:
        if directory.stat().st_uid == os.getuid():
            directory.chmod(directory.stat().st_mode | 0o011)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    path.chmod(0o644)
    assert result.stdout.startswith("13 "), result.stderr
    assert str(path) in result.stdout


def test_exists_and_delete(path):
    assert not vzarr.exists(path)
    with pytest.raises(NotFoundError):
        vzarr.delete(path)
    repo = vzarr.open(path)
    assert vzarr.exists(path)
    with pytest.raises(SessionStateError, match="open"):
        vzarr.delete(path)
    repo.close()
    vzarr.delete(path)
    assert list(path.parent.iterdir()) == []


def test_a_closed_repository_says_so(path):
    repo = vzarr.open(path)
    repo.close()
    repo.close()
    assert "closed" in repr(repo)
    for call in (repo.session, repo.log, repo.info, repo.status, lambda: repo.branches):
        with pytest.raises(SessionStateError, match="closed"):
            call()


def test_info_and_repr_help(repo):
    write(repo, "one", file=b"1")
    info = repo.info()
    assert (info.commits, info.chunks, info.branches, info.tags) == (2, 1, 1, 0)
    assert info.file_bytes == Path(repo.path).stat().st_size
    assert repo.id in str(info)
    assert "main" in repr(repo)
    assert repo.path in repr(repo)
    assert repo.format_version == 1


def test_two_handles_of_one_file_see_each_other(path, repo):
    with vzarr.open(path) as other:
        write(other, "by the other", file=b"1")
        assert repo.session("main").get("file") == b"1"
    write(repo, "still open", file=b"2")


# ── sessions by ref ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def history(repo):
    """Three commits on main after the first, as ids from old to new."""
    return [write(repo, f"commit {n}", file=f"{n}".encode()) for n in (1, 2, 3)]


def test_refs_of_every_kind(repo, history):
    repo.tags.create("v1", at="main~1", message="release")
    repo.branches.create("dev", at="v1")
    expected = {
        "main": b"3",
        "dev": b"2",
        "v1": b"2",
        "main~1": b"2",
        "main~2": b"1",
        "main~": b"2",
        "main^": b"2",
        "main^^": b"1",
        "main~1^1": b"1",
        "~2": b"1",
        history[0]: b"1",
        history[1][:12]: b"2",
        history[1][:12].upper(): b"2",
    }
    for ref, value in expected.items():
        session = repo.session(ref)
        assert session.get("file") == value, ref
        assert session.read_only == (ref not in ("main", "dev")), ref
        assert repo.store(ref).read_only


def test_a_session_as_of_a_time(repo, history):
    times = [repo.show(commit).time for commit in history]
    assert repo.session(times[0]).get("file") == b"1"
    assert repo.session(at=times[1]).get("file") == b"2"
    assert repo.session("main", at=times[1] + timedelta(microseconds=1)).get("file") == b"2"
    assert repo.session(f"main@{{{times[0].isoformat()}}}").get("file") == b"1"
    assert repo.session(datetime.now(UTC) + timedelta(days=1)).get("file") == b"3"
    assert repo.session(times[0].astimezone().replace(tzinfo=None)).get("file") == b"1"
    with pytest.raises(CommitNotFoundError):
        repo.session(at=datetime(1999, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    "ref", ["nope", "abcd", "f" * 64, "", "main~99", "main^2", "a b", "nul\0", "\udc80"]
)
def test_an_unknown_ref_is_named(repo, history, ref):
    with pytest.raises((RefNotFoundError, CommitNotFoundError)) as error:
        repo.session(ref)
    assert isinstance(error.value, KeyError)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ref", [3, b"main", ["main"], "main@{yesterday}"])
def test_what_cannot_be_a_ref_is_refused(repo, ref):
    with pytest.raises(InvalidInputError):
        repo.session(ref)


def test_an_ambiguous_prefix_lists_the_candidates(repo):
    session = repo.session("main")
    seen: dict[str, str] = {}
    for number in range(2000):
        commit = session.commit(f"{number}", allow_empty=True)
        if commit[:4] in seen:
            break
        seen[commit[:4]] = commit
    else:
        pytest.fail("2000 commits without two that begin alike")
    with pytest.raises(InvalidInputError, match=commit[:12]):
        repo.session(commit[:4])
    assert repo.session(commit[:20]).base == commit


# ── the current session ──────────────────────────────────────────────────────────────────────────


def test_the_short_way(repo):
    repo.store().session.set("file", b"1")
    assert repo.status()
    first = repo.commit("one", metadata={"run": 7})
    assert repo.log()[0].id == first
    assert repo.log()[0].metadata == {"run": 7}
    repo.store().session.set("file", b"2")
    repo.discard()
    assert not repo.status()
    assert repo.store().session.get("file") == b"1"


def test_checkout_keeps_uncommitted_work_safe(repo):
    repo.store().session.set("file", b"1")
    with pytest.raises(SessionStateError, match="uncommitted"):
        repo.checkout("main")
    repo.checkout("main", discard=True)
    assert repo.store().session.get("file") is None


def test_checkout_of_a_commit_warns_and_only_reads(repo, history):
    with pytest.warns(vzarr.ReadOnlyCheckoutWarning, match="read-only"):
        session = repo.checkout(history[0])
    assert session.get("file") == b"1"
    with pytest.raises(ReadOnlyError, match="open a branch"):
        session.set("file", b"x")
    with pytest.raises(ReadOnlyError):
        repo.commit("no")
    assert repo.log()[0].id == history[0]
    repo.checkout("fix", create=True)
    repo.store().session.set("file", b"fixed")
    repo.commit("fix")
    assert repo.session("fix").get("file") == b"fixed"
    assert repo.session("main").get("file") == b"3"


def test_checkout_create_refuses_a_name_that_is_taken(repo):
    with pytest.raises(AlreadyExistsError):
        repo.checkout("main", create=True)
    with pytest.raises(InvalidInputError):
        repo.checkout(None, create=True)


def test_a_read_only_repository_refuses_writes(path):
    vzarr.open(path).close()
    with vzarr.open(path, "r") as repo:
        assert repo.session("main").read_only
        with pytest.raises(ReadOnlyError, match="mode 'r"), repo.transaction("main", "no"):
            pass
        with pytest.raises(ReadOnlyError):
            repo.branches.create("dev")
        with pytest.raises(ReadOnlyError):
            repo.tags.create("v1")


# ── branches, tags, reflog ───────────────────────────────────────────────────────────────────────


def test_branches_are_a_mapping_with_verbs(repo, history):
    branches = repo.branches
    assert branches.create("dev", at="main~1") == history[1]
    assert dict(branches) == {"main": history[2], "dev": history[1]}
    assert len(branches) == 2
    assert "dev" in branches
    with pytest.raises(RefNotFoundError):
        branches["nope"]
    branches.rename("dev", "topic/one")
    assert branches["topic/one"] == history[1]
    assert "dev" not in branches
    assert branches.reset("topic/one", "main", expected=history[1]) == history[2]
    with pytest.raises(ConflictError, match="nothing was moved"):
        branches.reset("topic/one", "main~1", expected=history[1])
    assert branches.delete("topic/one") == history[2]
    with pytest.raises(RefNotFoundError):
        branches.delete("topic/one")
    with pytest.raises(AlreadyExistsError):
        branches.create("main")
    with pytest.raises(AlreadyExistsError):
        branches.rename("main", "main")


def test_reflog_tells_every_move_and_undoes(repo, history):
    repo.branches.reset("main", history[0])
    entries = repo.reflog("main")
    assert [entry.new for entry in entries] == [history[0], *reversed(history), entries[-1].new]
    assert entries[0].old == history[2]
    assert entries[0].operation.startswith("reset")
    repo.branches.reset("main", entries[0].old)
    assert repo.branches["main"] == history[2]
    repo.branches.create("gone")
    repo.branches.delete("gone")
    assert [entry.new for entry in repo.reflog("gone")] == [None, history[2]]
    with pytest.raises(RefNotFoundError):
        repo.reflog("never")


def test_tags_never_move(repo, history):
    repo.tags.create("v1", at=history[0], message="the first")
    with pytest.raises(AlreadyExistsError, match="never move"):
        repo.tags.create("v1")
    (tag,) = repo.tags.details()
    assert (tag.name, tag.commit, tag.message) == ("v1", history[0], "the first")
    assert dict(repo.tags) == {"v1": history[0]}
    repo.tags.delete("v1")
    with pytest.raises(RefNotFoundError):
        repo.tags.delete("v1")
    with pytest.raises(RefNotFoundError):
        repo.tags["v1"]


BAD_NAMES = [
    "", " ", "a b", "a..b", ".a", "a/.b", "a.lock", "a/b.lock/c", "a.", "/a", "a/", "a//b", "-a",
    "@", "HEAD", "a@{b", "a~1", "a^", "a:b", "a?", "a*", "a[b", "a\\b", "a\tb", "a\x7f",
    "x" * 401, "\udc80", 3,
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_follow_gits_rules(repo, name):
    with pytest.raises(InvalidInputError):
        repo.branches.create(name)
    with pytest.raises(InvalidInputError):
        repo.tags.create(name)
    assert dict(repo.branches).keys() == {"main"}


@pytest.mark.parametrize("name", ["a", "a/b", "ünï", "v1.0", "x" * 400, "@x", "a-b_c", "main2"])
def test_names_that_git_takes(repo, name):
    repo.branches.create(name)
    assert repo.session(name).branch == name


# ── log ──────────────────────────────────────────────────────────────────────────────────────────


def test_log_by_path_and_limit(repo):
    ids = [
        write(repo, "a", **{"a/zarr.json": GROUP}),
        write(repo, "b", **{"b/zarr.json": GROUP}),
        write(repo, "a again", **{"a/x/zarr.json": GROUP}),
    ]
    assert [commit.id for commit in repo.log(path="a")] == [ids[2], ids[0]]
    assert [commit.id for commit in repo.log(path="/b/")] == [ids[1]]
    assert [commit.id for commit in repo.log(limit=2)] == [ids[2], ids[1]]
    assert [commit.message for commit in repo.log("main~1")] == ["b", "a", "create repository"]
    assert repo.log(path="nothing") == ()
    assert str(repo.log(limit=1)).startswith(ids[2][:12])
    with pytest.raises(InvalidInputError):
        repo.log(limit=-1)


def test_log_survives_a_clock_that_goes_backwards(repo, monkeypatch):
    times = iter([5, 3, 4, 1])
    monkeypatch.setattr("vzarr.session.now", lambda: next(times, 0))
    session = repo.session("main")
    for number in range(3):
        session.commit(f"{number}", allow_empty=True)
    assert [commit.message for commit in repo.log(limit=3)] == ["2", "1", "0"]


def test_author_comes_from_the_call_the_repository_or_the_surroundings(path, monkeypatch):
    from vzarr.author import default_author

    default_author.cache_clear()
    monkeypatch.setenv("VZARR_AUTHOR", "Env <env@example.org>")
    with vzarr.open(path) as repo:
        assert repo.log()[0].author == "Env <env@example.org>"
    default_author.cache_clear()
    with vzarr.open(path, "w", author="Open <open@example.org>") as repo:
        assert repo.log()[0].author == "Open <open@example.org>"
        session = repo.session("main")
        session.commit("1", allow_empty=True)
        session.commit("2", allow_empty=True, author="Call <call@example.org>")
        assert [commit.author for commit in repo.log(limit=2)] == [
            "Call <call@example.org>",
            "Open <open@example.org>",
        ]
        with pytest.raises(InvalidInputError):
            session.commit("3", allow_empty=True, author=" ")


def test_a_hard_link_is_refused(path):
    vzarr.open(path).close()
    link = path.with_name("link.vzarr")
    os.link(path, link)
    with pytest.raises(StorageError, match="link"):
        vzarr.open(link)
    link.unlink()
