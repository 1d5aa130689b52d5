"""What is done to a repository while the shim listens: ``python -m tests.power.workloads``.

A workload marks in the log what it has just been promised: which refs the file has from now on, and
whether for sure (``durability="full"``); what a commit holds; what a checkpoint has saved. After
each mark stands a digest of the file itself, so that a write that the shim missed is noticed.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from typing import Any

import numpy as np
import zarr

import vzarr
from tests.power.contents import AUTHOR, contents_of, refs_of
from vzarr import changes, flushes
from vzarr.access import Access
from vzarr.session import Session
from vzarr.txn import Txn

_BATCH_BYTES = 48 << 10


class Scene:
    """A repository under the shim, and the marks about it."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.path = os.path.join(directory, "test.vzarr")
        self.draw = random.Random(7)
        self._mark = ctypes.CDLL(None).power_mark
        self._told: set[str] = set()

    def open(self, durability: str = "full") -> vzarr.Repository:
        return vzarr.open(self.path, author=AUTHOR, durability=durability)  # type: ignore[arg-type]

    def mark(self, **what: Any) -> None:
        data = json.dumps(what).encode()
        self._mark(data, ctypes.c_size_t(len(data)))

    def promised(self, repo: vzarr.Repository, *, durable: bool = True) -> None:
        """Mark the refs as they are, and what the heads hold."""
        refs = refs_of(repo)
        for commit in {*refs["branches"].values(), *refs["tags"].values()} - self._told:
            self._told.add(commit)
            # An open session would keep its commit from being collected.
            with closing(repo.session(commit)) as session:
                self.mark(kind="contents", commit=commit, digest=contents_of(session))
        name = os.path.basename(repo.path)
        self.mark(kind="refs", file=name, refs=refs, durable=durable)
        self.compare(repo.path)

    def compare(self, path: str) -> None:
        """Mark what the file holds, for the replay to compare."""
        with open(path, "rb") as file:
            digest = hashlib.blake2b(file.read()).hexdigest()
        self.mark(kind="bytes", file=os.path.basename(path), digest=digest)

    def noise(self, size: int) -> bytes:
        return self.draw.randbytes(size)


def creation(scene: Scene) -> None:
    """A file is created, closed, opened and written."""
    with scene.open() as repo:
        scene.promised(repo)
    with scene.open() as repo:
        with repo.transaction("main", "first") as store:
            zarr.create_array(store, name="a", data=np.arange(20), chunks=(5,))
        scene.promised(repo)


def full(scene: Scene) -> None:
    """Small commits, each durable: what others freed is used again, and the file grows."""
    _commits(scene, lambda number: True)


def normal(scene: Scene) -> None:
    """The same commits, none of them durable by itself."""
    _commits(scene, lambda number: False)


def mixed(scene: Scene) -> None:
    """Commits of both kinds in turn, through two openings of one file."""
    _commits(scene, lambda number: number % 5 == 2)


def _commits(scene: Scene, is_durable: Callable[[int], bool]) -> None:
    durable, normal = scene.open("full"), scene.open("normal")
    with durable, normal:
        scene.promised(durable)
        with durable.transaction("main", "array") as store:
            zarr.create_array(store, name="a", shape=(40,), chunks=(4,), dtype="i8", fill_value=0)[
                :
            ] = np.arange(40)
        scene.promised(durable)
        for number in range(18):
            repo = durable if is_durable(number) else normal
            session = repo.session("main")
            _edit(scene, session, number)
            session.commit(f"commit {number}")
            session.close()
            scene.promised(repo, durable=repo is durable)


def _edit(scene: Scene, session: Session, number: int) -> None:
    array = zarr.open_array(session.store, path="a")
    array[number : number + 6] = number
    array.attrs["number"] = number
    # A value of many pages, larger each time, beside small ones that replace each other.
    session.set(f"large/{number % 4}", scene.noise(3_000 * (number % 7)))
    for small in range(number % 5):
        session.set(f"small/{small}", scene.noise(200))
    if number % 6 == 5:
        session.delete_below("small")


def together(scene: Scene) -> None:
    """Threads commit at once, each on its own branch, and share flushes where they can."""
    # As if the disk were slow: whoever has committed waits for the next one's flush.
    flushes._SLOW, flushes._PATIENCE, flushes._LONGEST = 0.0, 1_000_000, 1.0
    with scene.open() as repo:
        scene.promised(repo)
        branches = ["one", "two", "three"]
        for branch in branches:
            repo.branches.create(branch)
            scene.promised(repo)
        commit = Access._commit

        def commit_and_tell(access: Access, txn: Txn) -> None:
            commit(access, txn)
            # Nobody else writes now. The state is there, and nobody has been promised it.
            scene.promised(repo, durable=False)

        def work(branch: str) -> None:
            barrier.wait()
            for number in range(8):
                session = repo.session(branch)
                session.set(f"{branch}/{number % 3}", scene.noise(1_000 * (number + 1)))
                made = session.commit(f"commit {number}")
                scene.mark(kind="kept", file="test.vzarr", branch=branch, commit=made)
                session.close()

        barrier = threading.Barrier(len(branches))
        Access._commit = commit_and_tell  # type: ignore[method-assign]
        try:
            with ThreadPoolExecutor(len(branches)) as pool:
                list(pool.map(work, branches))
        finally:
            Access._commit = commit  # type: ignore[method-assign]
        scene.promised(repo)


def collection(scene: Scene) -> None:
    """Garbage is collected, and its pages are used again by the commits that follow."""
    durable, normal = scene.open("full"), scene.open("normal")
    with durable, normal:
        scene.promised(durable)
        for number in range(12):
            repo = normal if number % 3 == 1 else durable
            with repo.transaction("main", f"commit {number}") as store:
                session = store.session
                for part in range(4):
                    session.set(f"part/{part}", scene.noise(2_500 * (part + 1)))
            # While somebody can read from it, its commit is in use.
            del store, session
            scene.promised(repo, durable=repo is durable)
            if number % 3 == 2:
                # History is cut off, so that there is something to collect.
                repo.squash("main", since="main~2")
                scene.promised(repo, durable=repo is durable)
                repo.expire(older_than=timedelta(0))
                scene.compare(repo.path)
                assert repo.gc().chunks
                scene.compare(repo.path)


def staging(scene: Scene) -> None:
    """Sessions write ahead of their commits, save their work, go on, and give up."""
    changes.BATCH_BYTES = _BATCH_BYTES
    with scene.open() as repo:
        scene.promised(repo)
        for number in range(5):
            session = repo.session("main")
            for part in range(12):
                session.set(f"part/{part}", scene.noise(9_000 + 500 * number))
                if part % 4 == 3:
                    saved = session.checkpoint()
                    scene.mark(kind="saved", session=saved, digest=contents_of(session))
                    scene.compare(repo.path)
            scene.mark(kind="ending", session=session.id)
            if number == 2:
                session.discard()
            else:
                session.commit(f"commit {number}")
                scene.promised(repo)
            session.close()
        repo.gc(checkpoints_older_than=timedelta(0))
        scene.compare(repo.path)


def history(scene: Scene) -> None:
    """Branches, tags, merges, amendments, resets: everything that moves a ref."""
    with scene.open() as repo:
        scene.promised(repo)

        def commit(branch: str, *keys: str) -> None:
            with repo.transaction(branch, f"on {branch}") as store:
                for key in keys:
                    store.session.set(key, scene.noise(700))

        steps: list[Callable[[], object]] = [
            lambda: repo.branches.create("dev"),
            lambda: commit("dev", "dev/a", "dev/b"),
            lambda: commit("main", "main/a"),
            lambda: repo.merge("dev", into="main"),
            lambda: repo.tags.create("v1"),
            lambda: commit("dev", "dev/c"),
            lambda: repo.cherry_pick("dev", onto="main"),
            lambda: repo.revert("main", on="main"),
            lambda: repo.branches.rename("dev", "old"),
            lambda: repo.branches.reset("main", "main~1"),
            lambda: commit("main", "main/b"),
            lambda: repo.branches.delete("old"),
            lambda: repo.tags.create("v2"),
            lambda: repo.tags.delete("v1"),
            lambda: commit("main", "main/c"),
        ]
        for step in steps:
            step()
            scene.promised(repo)


def tail(scene: Scene) -> None:
    """Txns take pages at the end of the file and free them again, so that none writes them."""
    with scene.open() as repo:
        scene.promised(repo)
        for number in range(4):
            with repo._environment.write() as txn:
                txn.put("meta", b"scratch", bytes(60_000 * (number + 1)))
                txn.put("meta", b"kept", scene.noise(50))
                txn.delete("meta", b"scratch")
            with repo._environment.write() as txn:
                txn.delete("meta", b"kept")
            with repo.transaction("main", f"commit {number}") as store:
                store.session.set("a", scene.noise(5_000))
            scene.promised(repo)


def compaction(scene: Scene) -> None:
    """The file is written anew without its garbage, and renamed over the old one."""
    durable, normal = scene.open("full"), scene.open("normal")
    with durable, normal:
        scene.promised(durable)
        for number in range(6):
            repo = normal if number % 2 else durable
            _fill(scene, repo, number)
            scene.promised(repo, durable=repo is durable)
            if number % 3 == 2:
                durable.branches.reset("main", "main~2")
                durable.expire(older_than=timedelta(0))
                scene.promised(durable)
                assert durable.compact().garbage
                scene.promised(durable)


def _fill(scene: Scene, repo: vzarr.Repository, number: int) -> None:
    # In a function, so that nobody can read from the store any more, and its commit is free.
    with repo.transaction("main", f"commit {number}") as store:
        for part in range(4):
            store.session.set(f"part/{part}", scene.noise(4_000 * (part + 1)))


def backup(scene: Scene) -> None:
    """Copies are made between commits, each over the one before."""
    copy = os.path.join(scene.directory, "copy.vzarr")
    with scene.open("normal") as repo:
        scene.promised(repo)
        for number in range(4):
            _fill(scene, repo, number)
            scene.promised(repo, durable=False)
            repo.backup(copy, overwrite=number > 0)
            # A backup is durable, however the original was opened.
            with vzarr.open(copy, "r") as copied:
                scene.promised(copied)


WORKLOADS: dict[str, Callable[[Scene], None]] = {
    function.__name__: function
    for function in (
        creation,
        full,
        normal,
        mixed,
        together,
        staging,
        history,
        collection,
        compaction,
        backup,
        tail,
    )
}


if __name__ == "__main__":
    WORKLOADS[sys.argv[1]](Scene(sys.argv[2]))
