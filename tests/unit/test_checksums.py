"""Checksums of large chunks: written and deleted with them, and the digest decides in doubt."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import vzarr
from vzarr import CorruptError, Repository, objects
from vzarr.format import CHECKSUM_FROM_BYTES, chunk_checksum, chunk_digest
from vzarr.session import Session

LARGE = bytes(range(256)) * (CHECKSUM_FROM_BYTES // 256)
SMALL = LARGE[:-1]


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is computed of chunks when they are read."""
    seen: list[str] = []
    digest, checksum = objects.chunk_digest, objects.chunk_checksum
    monkeypatch.setattr(
        objects, "chunk_digest", lambda data: (seen.append("digest"), digest(data))[1]
    )
    monkeypatch.setattr(
        objects, "chunk_checksum", lambda data: (seen.append("checksum"), checksum(data))[1]
    )
    return seen


def stored(repo: Repository) -> dict[bytes, bytes]:
    with repo.session("main").environment.read() as txn:
        return dict(txn.scan("checksums"))


def commit(repo: Repository, **values: bytes) -> None:
    with repo.transaction("main", "values") as store:
        for key, data in values.items():
            store.session.set(key, data)


def test_large_chunks_have_one(repo):
    commit(repo, large=LARGE, small=SMALL, again=LARGE)
    assert stored(repo) == {chunk_digest(LARGE): chunk_checksum(LARGE)}


def test_staged_ones_have_it_too(repo, monkeypatch):
    monkeypatch.setattr("vzarr.changes.BATCH_BYTES", 1)
    session = repo.session("main")
    session.set("large", LARGE)
    session._work.changes.drain()
    assert stored(repo) == {chunk_digest(LARGE): chunk_checksum(LARGE)}
    session.discard()


def test_a_fork_writes_it(repo):
    session = repo.session("main")
    fork = session.fork()
    fork.set("large", LARGE)
    assert stored(repo) == {chunk_digest(LARGE): chunk_checksum(LARGE)}
    session.merge_fork(fork)
    session.commit("forked")


@pytest.mark.parametrize("read", ["get", "in_place"])
def test_reading_compares_it_and_spares_the_digest(repo, hashed, read):
    commit(repo, large=LARGE, small=SMALL)
    session = repo.session("main")
    hashed.clear()
    assert get(session, "large", read) == LARGE
    assert hashed == ["checksum"]
    hashed.clear()
    assert get(session, "small", read) == SMALL
    assert hashed == ["digest"]


def get(session: Session, key: str, read: str) -> bytes:
    if read == "get":
        return bytes(session.get(key) or b"")
    with session.in_place() as in_place:
        return bytes(in_place(session.find(key)))


@pytest.mark.parametrize("change", ["delete", "damage"])
def test_without_a_right_one_the_digest_decides(path, hashed, change):
    with vzarr.open(path) as repo:
        commit(repo, large=LARGE)
        environment = repo.session("main").environment
        with environment.write() as txn:
            if change == "delete":
                txn.delete("checksums", chunk_digest(LARGE))
            else:
                txn.put("checksums", chunk_digest(LARGE), bytes(16))
        hashed.clear()
        assert repo.session("main").get("large") == LARGE
        assert hashed[-1] == "digest"
        with environment.write() as txn:
            txn.put("checksums", chunk_digest(LARGE), chunk_checksum(LARGE))


@pytest.mark.parametrize("read", ["get", "in_place"])
def test_damaged_bytes_have_neither(repo, monkeypatch, read):
    commit(repo, large=LARGE)
    monkeypatch.setattr(objects, "chunk_checksum", lambda data: bytes(16))
    monkeypatch.setattr(objects, "chunk_digest", lambda data: bytes(32))
    with pytest.raises(CorruptError, match="its bytes do not match"):
        get(repo.session("main"), "large", read)


def test_never_and_first(path, hashed):
    with vzarr.open(path) as repo:
        commit(repo, large=LARGE)
    with vzarr.open(path, verify="never") as repo:
        hashed.clear()
        assert repo.session("main").get("large") == LARGE
        assert hashed == []
    with vzarr.open(path, verify="first") as repo:
        for _ in range(2):
            assert repo.session("main").get("large") == LARGE
        assert hashed == ["checksum"]


def test_garbage_takes_it(repo):
    commit(repo, large=LARGE)
    session = repo.session("main")
    session.set("gone", LARGE[::-1])
    session._work.spill()
    session.discard()
    session.close()
    assert repo.gc().chunks >= 1
    assert stored(repo) == {chunk_digest(LARGE): chunk_checksum(LARGE)}


def test_a_copy_and_a_recovered_file_have_it(repo, tmp_path):
    commit(repo, large=LARGE)
    repo.backup(tmp_path / "copy.vzarr")
    vzarr.recover(tmp_path / "copy.vzarr", tmp_path / "saved.vzarr")
    for name in ("copy", "saved"):
        with vzarr.open(tmp_path / f"{name}.vzarr", "r") as other:
            assert stored(other) == {chunk_digest(LARGE): chunk_checksum(LARGE)}
