"""A small repository with something of everything, and what is to be read from it."""

from __future__ import annotations

import json
import os
import random
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import vzarr
from vzarr import refs
from vzarr.errors import VzarrError
from vzarr.leases import leases
from vzarr.repository import Repository

AUTHOR = "Test <test@example.org>"
CHUNKS = 60
CHUNK_BYTES = 64
BIG_BYTES = 9000

_ARRAY = {
    "zarr_format": 3,
    "node_type": "array",
    "shape": [CHUNKS * CHUNK_BYTES],
    "data_type": "uint8",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [CHUNK_BYTES]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "fill_value": 0,
    "codecs": [{"name": "bytes"}],
    "attributes": {"text": "x" * 600},
}
_GROUP = {"zarr_format": 3, "node_type": "group"}


def make(path: Path) -> None:
    """Write the file: trees of two levels, values on pages of their own, free pages, a session."""
    pid = os.fork()
    if not pid:
        # A session whose process is gone leaves its checkpoint behind.
        try:
            _fill(vzarr.open(path, "w-", author=AUTHOR))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    with vzarr.open(path, author=AUTHOR) as repo:
        assert len(repo.sessions()) == 1
        repo.gc()
        # A few more, so that there are free pages of several commits.
        session = repo.session("main")
        for number in range(3):
            session.set(f"a/c/{number}", random.Random(100 + number).randbytes(CHUNK_BYTES))
            session.commit(f"after gc {number}")
        assert repo.check("full").ok


def _fill(repo: Repository) -> None:
    random_bytes = random.Random(0).randbytes
    session = repo.session("main")
    session.set("zarr.json", json.dumps(_GROUP).encode())
    session.set("a/zarr.json", json.dumps(_ARRAY).encode())
    for number in range(CHUNKS):
        session.set(f"a/c/{number}", random_bytes(CHUNK_BYTES))
    for number in range(2):
        session.set(f"files/{number}", random_bytes(BIG_BYTES * (number + 1)))
    session.commit("fill")
    repo.branches.create("dev", at="main")
    repo.tags.create("v1", at="main", message="the first")
    other = repo.session("dev")
    for number in range(5):
        other.set(f"a/c/{number * 11}", random_bytes(CHUNK_BYTES))
        other.set("files/log", random_bytes(3000))
        other.commit(f"experiment {number}: " + "m" * 90)
    repo.tags.create("v2", at="dev", message="m" * 3000)
    repo.branches.create("gone", at="dev")
    gone = repo.session("gone")
    gone.set("files/gone", random_bytes(4 * BIG_BYTES))
    gone.commit("will be deleted")
    repo.branches.delete("gone")
    repo.expire(older_than=timedelta(0), branch="gone")
    session.set("files/uncommitted", random_bytes(5000))
    session.checkpoint()


# ── what is read from it ─────────────────────────────────────────────────────────────────────────

Facts = dict[str, Any]
DAMAGED = "damaged"
"""Stands for a value that was refused."""


def _data(repo: Repository, ref: str) -> dict[str, Any]:
    session = repo.session(ref)
    try:
        found: dict[str, Any] = {}
        for key in list(session.keys()):
            try:
                data = session.get(key)
                found[key] = None if data is None else bytes(data)
            except VzarrError:
                found[key] = DAMAGED
        return found
    finally:
        session.close()


def _tags(repo: Repository) -> list[refs.Tag]:
    with repo._environment.read() as txn:
        return list(refs.tags(txn))


def _leases(repo: Repository) -> list[Any]:
    with repo._environment.read() as txn:
        return list(leases(txn))


READS: dict[str, Callable[[Repository], Any]] = {
    "id": lambda repo: (repo.id, repo.format_version),
    "branches": lambda repo: dict(repo.branches),
    "tags": _tags,
    "log of main": lambda repo: list(repo.log("main")),
    "log of dev": lambda repo: list(repo.log("dev")),
    "reflog of main": lambda repo: repo.reflog("main"),
    "reflog of dev": lambda repo: repo.reflog("dev"),
    "sessions": _leases,
    "data of main": lambda repo: _data(repo, "main"),
    "data of dev": lambda repo: _data(repo, "dev"),
}


def observe(path: Path) -> Facts:
    """Read everything from a sound file."""
    with vzarr.open(path, "r") as repo:
        return {name: read(repo) for name, read in READS.items()}


WRITES: dict[str, Callable[[Repository], Any]] = {
    "commit": lambda repo: _commit(repo),
    "tag": lambda repo: repo.tags.create("new", at="main"),
    "delete a tag": lambda repo: repo.tags.delete("v1"),
    "delete a branch": lambda repo: repo.branches.delete("dev"),
    "checkpoint": lambda repo: _checkpoint(repo),
    "discard a session": lambda repo: _discard(repo),
    "expire": lambda repo: repo.expire(older_than=timedelta(0)),
    "gc": lambda repo: repo.gc(),
    "commit again": lambda repo: _commit(repo),
}
"""What a user may do next, in this order."""
NEW = {f"a/c/{number}": bytes([number]) * CHUNK_BYTES for number in range(0, CHUNKS, 9)}
NEW["files/new"] = bytes(range(256)) * 40


def _commit(repo: Repository) -> None:
    session = repo.session("main")
    try:
        for key, data in NEW.items():
            session.set(key, data)
        session.commit("new", allow_empty=True)
    finally:
        session.close()


def _checkpoint(repo: Repository) -> None:
    session = repo.session("main")
    try:
        session.set("files/later", bytes(5000))
        session.checkpoint()
        session.discard()
    finally:
        session.close()


def _discard(repo: Repository) -> None:
    for found in repo.sessions():
        session = repo.resume(found.id)
        session.discard()
        session.close()
