"""The files that former releases wrote: every later release reads them, and says the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

import vzarr
from tests.format import make_golden
from tests.format.reader import File
from tests.support import assert_sound

HEADS = {
    "main": "d34c5a48866c33efaf3d4b8346c1313db85c5dd540973d22f7ab347e65386529",
    "side/one": "161f20454880905e9a762cec50d3793fcd4a2f7b37611cbc0fde0d60df942e0c",
}
# Message → (commit, root id), of the first parents of main, newest first.
HISTORY = {
    "merge side/one": (
        "d34c5a48866c33efaf3d4b8346c1313db85c5dd540973d22f7ab347e65386529",
        "20b25b68b716398c1df22b500525091e4ccccd5024f929ec963d5f4f775c5554",
    ),
    "edit a chunk, delete another": (
        "815069854973c6bd4cd2534741f8998d2e8984057ae0a3d93505c52227658f93",
        "20b25b68b716398c1df22b500525091e4ccccd5024f929ec963d5f4f775c5554",
    ),
    "a tree of several levels": (
        "4dc75701595a153f90d48e2be6149282fa2d56b4b49f240c022c0b895b869af5",
        "3f8542806252b7c72db06f73c93bb670934abaca6d156cf8a1c5638ce97eaa22",
    ),
    "all kinds of keys\n\nsharded, scalar, files": (
        "3534c6f617d7b994ddc619769ddc69b6ec2860b8ccbc340aa7e89f379979fa0d",
        "9930ae60135b4243f05b3dee23118a62908b0f84e5b849ce5deda1f11b52e693",
    ),
    "first data": (
        "c78fcb7848e2c98d21d85e8d21deea3c205450c9feff7444fa5c1487a9377441",
        "d561aa1388f58629efa7e8a119c2c917edb1c286d82978c9d8aebbc4406cfcd6",
    ),
    "create repository": (
        "9f9f203ec8c44c6053d0e5ca4fbd935ae82aab31080b7fdc341b2fbd2623c32a",
        "3e904b6c3c8d4a58674a665f0242e9b2bcca5ecdd0b98c8500fd8194d8c76e48",
    ),
}


@pytest.fixture
def golden(path: Path) -> Path:
    """A copy of the file, which is checked whole when the test has ended."""
    return Path(shutil.copy(make_golden.GOLDEN, path))


def values(store: object, path: str) -> np.ndarray:
    opened = zarr.open(store, path=path, mode="r")  # type: ignore[arg-type]
    assert isinstance(opened, zarr.Array)
    return np.asarray(opened[...])


def test_history(golden: Path) -> None:
    with vzarr.open(golden, "r") as repo:
        assert repo.id == "00112233-4455-6677-8899-aabbccddeeff"
        assert repo.format_version == 1
        assert dict(repo.branches) == HEADS
        assert {tag.name: (tag.commit, tag.message) for tag in repo.tags.details()} == {
            "v1": (HISTORY["a tree of several levels"][0], "first release")
        }
        commit, found = repo.show("main"), {}
        while True:
            found[commit.message] = (commit.id, commit.root)
            if not commit.parents:
                break
            commit = repo.show(commit.parents[0])
        assert found == HISTORY
        assert repo.show("main").parents[1] == HEADS["side/one"]
        assert repo.root_id("v1") == HISTORY["a tree of several levels"][1]


def test_a_commit(golden: Path) -> None:
    with vzarr.open(golden, "r") as repo:
        commit = repo.show("side/one")
    assert commit.parents == (HISTORY["all kinds of keys\n\nsharded, scalar, files"][0],)
    assert commit.author == "Ada <ada@example.org>"
    assert commit.time.isoformat() == "2026-01-01T00:03:00+00:00"
    assert commit.message == "move and delete"
    assert commit.metadata == {"step": 3, "list": [None, 0.5, {"ü": True}]}


def test_the_reflog(golden: Path) -> None:
    with vzarr.open(golden, "r") as repo:
        assert [entry.operation for entry in repo.reflog("gone")] == ["delete", "create: from main"]
        newest = repo.reflog("main")[0]
    assert newest.operation == "merge: side/one"
    assert newest.old == HISTORY["edit a chunk, delete another"][0]
    assert newest.new == HEADS["main"]


def test_arrays(golden: Path) -> None:
    with vzarr.open(golden, "r") as repo:
        store = repo.store("main")
        temperature = np.arange(24).reshape(4, 6)
        temperature[:2, :3] = -1
        assert np.array_equal(values(store, "ocean/temperature"), temperature)
        assert values(store, "ocean/depth").tolist() == [0, 10, 20, 30, 40]
        assert values(store, "shards").tolist() == [0, 100, 200, 300, 400, 500, 600, 700]
        assert values(store, "scalar").tolist() == 42
        assert values(store, "dotted").tolist() == [[1, 2], [3, 4]]
        assert values(store, "slashed").tolist() == [[5, 6], [7, 8]]
        long = np.arange(200)
        long[[7, 100]] = 0, 255
        assert np.array_equal(values(store, "long"), long)
        assert np.array_equal(values(repo.store("v1"), "long"), np.arange(200))
        side = repo.store("side/one")
        assert values(side, "depth").tolist() == [0, 10, 20, 30, 40]
        assert values(side, "ocean/temperature")[0, 0] == 0
        assert not repo.session("side/one").children("shards")


def test_keys(golden: Path) -> None:
    with vzarr.open(golden, "r") as repo:
        session = repo.session("main")
        assert session.get("notes.txt") == "Grüße\n".encode()
        assert session.get("dotted") == b"a file beside an array"
        assert session.get("ocean/temperature/c/01/0") == b"no chunk"
        assert session.get("a//b") == b""
        assert session.get("long/c/7") is None
        assert sorted(session.keys("ocean")) == [
            "ocean/depth/.zarray",
            "ocean/depth/.zattrs",
            *(f"ocean/depth/{n}" for n in range(3)),
            *(f"ocean/temperature/c/{n}" for n in ("0/0", "0/1", "01/0", "1/0", "1/1")),
            "ocean/temperature/zarr.json",
            "ocean/zarr.json",
        ]
        assert session.sums("long") == (200, 199 + len(session.get("long/zarr.json") or b""))


def test_it_can_be_written(golden: Path) -> None:
    with vzarr.open(golden, "r+", author="Test <test@example.org>") as repo:
        with repo.transaction("main", "more") as store:
            store.session.set("long/c/7", b"\x07")
        assert repo.show("main").parents == (HEADS["main"],)
        with repo.transaction("main", "less") as store:
            store.session.delete("long/c/7")
        assert repo.root_id("main") == HISTORY["merge side/one"][1]


def test_the_other_reader_agrees(golden: Path) -> None:
    file = File(str(golden))
    snapshots = file.verify()
    assert {name: head.hex() for name, head in file.branches.items()} == HEADS
    assert len(snapshots[file.branches["main"]]) == 229
    lease = file.leases[make_golden.SESSION_ID]
    assert (lease.host, lease.pid, lease.process_started) == ("golden.invalid", 4711, 123456)
    assert lease.base.hex() == HISTORY["edit a chunk, delete another"][0]
    assert len(file.batches[make_golden.SESSION_ID]) == 1
    fork = file.leases[make_golden.FORK_ID]
    assert (fork.kind, fork.parent) == (1, make_golden.SESSION_ID)
    assert fork.staged == lease.checkpoint
    assert file.batches[make_golden.FORK_ID] == file.batches[make_golden.SESSION_ID]


def test_it_is_small() -> None:
    assert make_golden.GOLDEN.stat().st_size <= 100_000


def test_this_release_writes_the_same_records(golden: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.vzarr"
    make_golden.make(made)
    assert_sound(made)
    assert File(str(made))._databases == File(str(golden))._databases
