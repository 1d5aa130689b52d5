"""A disk that is full at any moment of an ingest; then there is room again, and it goes on."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import zarr

import vzarr
from tests.limits.conftest import MIB, Disk
from tests.support import assert_sound

SEEDS = range(100) if os.environ.get("VZARR_TORTURE") else range(4)
CHUNK = 20_000


def chunk(random_: random.Random) -> bytes:
    return random_.randbytes(CHUNK)


def read_all(repo: vzarr.Repository, ref: str = "main") -> dict[str, bytes]:
    session = repo.session(ref)
    return {key: bytes(session.get(key)) for key in session.keys("")}


class Ingest:
    """Writes of files to one branch by one way, and what must be in it."""

    def __init__(self, repo: vzarr.Repository, seed: int) -> None:
        self.repo = repo
        self.random = random.Random(seed)
        self.expected: dict[str, bytes] = {}
        self.failures = 0
        self.files = 0

    def edits(self, count: int) -> dict[str, bytes]:
        """Make some files, of which a few are written anew."""
        self.files += count
        first = max(0, self.files - count - self.random.randrange(3))
        return {f"f{number}": chunk(self.random) for number in range(first, self.files)}

    def again(self, disk: Disk, work) -> None:
        """Do something, a second time if the disk was full: nothing may have come of the first."""
        try:
            work()
        except vzarr.FullError as error:
            told = str(error)
        else:
            return
        self.failures += 1
        assert "room" in told
        assert self.repo.path in told
        # Reading goes on, of what was committed before.
        assert read_all(self.repo) == self.expected
        disk.make_room()
        work()

    def transaction(self, disk: Disk) -> None:
        edits = self.edits(self.random.randrange(1, 40))

        def work() -> None:
            with self.repo.transaction("main", "edit") as store:
                for key, data in edits.items():
                    store.session.set(key, data)

        self.again(disk, work)
        self.expected |= edits

    def session(self, disk: Disk) -> None:
        """One session that goes on with its edits after the disk was full."""
        edits = self.edits(self.random.randrange(1, 40))
        session = self.repo.session("main")
        waiting = dict(edits)

        def work() -> None:
            for key in list(waiting):
                session.set(key, waiting[key])
                del waiting[key]
            if self.random.random() < 0.5:
                session.checkpoint()
            session.commit("edit")

        self.again(disk, work)
        session.close()
        self.expected |= edits

    def autocommit(self, disk: Disk) -> None:
        edits = self.edits(5)
        session = self.repo.store("main", autocommit=True).session
        for key, data in edits.items():

            def work(key: str = key, data: bytes = data) -> None:
                session.set(key, data)
                session.autocommit(f"write {key}", each=False)

            self.again(disk, work)
            self.expected[key] = data

    def fork(self, disk: Disk) -> None:
        edits = self.edits(8)
        session = self.repo.session("main")
        fork = session.fork()

        def work() -> None:
            for key, data in edits.items():
                fork.set(key, data)

        self.again(disk, work)

        def end() -> None:
            session.merge_fork(fork)
            session.commit("merge the fork's edits")

        self.again(disk, end)
        session.close()
        self.expected |= edits

    def merge(self, disk: Disk) -> None:
        name = f"side{len(self.repo.branches)}"
        self.again(disk, lambda: self.repo.branches.create(name))
        edits = self.edits(10)

        def work() -> None:
            with self.repo.transaction(name, "edit") as store:
                for key, data in edits.items():
                    store.session.set(key, data)

        self.again(disk, work)
        self.again(disk, lambda: self.repo.merge(name, no_ff=True))
        self.expected |= edits

    def gc(self, disk: Disk) -> None:
        def work() -> None:
            self.repo.expire(keep_last=1)
            self.repo.gc()

        self.again(disk, work)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_ingest_goes_on_when_there_is_room_again(disk: Disk, seed: int) -> None:
    path = disk.where / "test.vzarr"
    with vzarr.open(path, author="Test <test@example.org>") as repo:
        ingest = Ingest(repo, seed)
        acts = [
            ingest.transaction,
            ingest.session,
            ingest.autocommit,
            ingest.fork,
            ingest.merge,
            ingest.gc,
        ]
        for number in range(50):
            if ingest.random.random() < 0.8:
                disk.fill(leave=ingest.random.randrange(50_000))
            ingest.random.choice(acts)(disk)
            disk.make_room()
            if number % 5 == 0:
                assert read_all(repo) == ingest.expected
        assert read_all(repo) == ingest.expected
    assert ingest.failures > 3
    assert_sound(path)


def test_a_full_disk_at_a_write_through_zarr(disk: Disk) -> None:
    path = disk.where / "test.vzarr"
    data = np.random.default_rng(0).integers(0, 255, 40 * MIB, "u1")
    with vzarr.open(path) as repo:
        disk.fill(leave=10 * MIB)
        with pytest.raises(vzarr.FullError, match="make room"), repo.transaction() as store:
            zarr.create_array(store, name="a", data=data, chunks=(MIB,), compressors=None)
        assert [*repo.session("main").keys("")] == []
        disk.make_room()
        repo.gc()
        with repo.transaction() as store:
            less = data[: 20 * MIB]
            zarr.create_array(store, name="a", data=less, chunks=(MIB,), compressors=None)
        array = zarr.open_array(repo.store(), path="a", mode="r")
        assert np.array_equal(array[:], less)
    assert_sound(path)


def test_no_room_for_a_new_file(disk: Disk) -> None:
    path = disk.where / "test.vzarr"
    for room in (0, 4_096, 40_000):
        disk.make_room()
        disk.fill(leave=room)
        with pytest.raises(vzarr.FullError, match="make room"):
            vzarr.open(path)
        assert os.listdir(disk.where) == ["ballast"]
    disk.make_room()
    with vzarr.open(path) as repo, repo.transaction() as store:
        store.session.set("a", b"1")
    assert_sound(path)
