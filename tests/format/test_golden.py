"""The files that former releases wrote: every later release reads them, and says the same."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lmdb
import msgpack
import numpy as np
import pytest
import zarr

import vzarr
from tests.format import make_golden
from tests.format.reader import DATABASES, File, _read_databases
from tests.support import assert_sound
from vzarr.environment import Environment

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


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run() -> Run:
    """Run the command line in a process of its own; give its exit code, and what it wrote."""

    def run(*arguments: object) -> tuple[int, str, str]:
        call = [sys.executable, "-m", "vzarr", *map(str, arguments)]
        ended = subprocess.run(call, capture_output=True, text=True, timeout=60, check=False)
        return ended.returncode, ended.stdout, ended.stderr

    return run


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


def test_the_manifest_tells_of_every_file() -> None:
    manifest = json.loads(make_golden.MANIFEST.read_text())
    assert set(manifest) == {path.name for path in make_golden.DIRECTORY.glob("*.vzarr")}
    for name, facts in manifest.items():
        data = (make_golden.DIRECTORY / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == facts["sha256"], f"{name} was changed"
        assert len(data) == facts["bytes"] <= 128 << 10


def test_this_release_writes_the_same_records(golden: Path, tmp_path: Path) -> None:
    """All records of all databases, with their keys and seals, byte for byte."""
    made = tmp_path / "made.vzarr"
    make_golden.make(made)
    assert_sound(made)
    ours, theirs = _read_databases(str(made)), _read_databases(str(golden))
    for name in DATABASES:
        assert ours[name] == theirs[name], f"{name}: this is another format, with another version"


# ── the file that a killed process left ──────────────────────────────────────────────────────────


@pytest.fixture
def killed(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the file, on the machine where the process was killed."""
    monkeypatch.setattr("socket.gethostname", lambda: make_golden.HOST)
    return Path(shutil.copy(make_golden.KILLED, path))


def test_what_a_killed_process_left_is_told(killed: Path) -> None:
    with vzarr.open(killed, "r") as repo:
        assert repo.check("full").ok
        assert [commit.message for commit in repo.log()] == [
            "change 2",
            "change 1",
            "change 0",
            "numbers",
            "create repository",
        ]
        assert values(repo.store("main"), "numbers").tolist() == list(range(64))
        left = [session for session in repo.sessions() if session.kind != "reader"]
        assert {session.alive for session in left} == {False}
        assert {session.owner.host for session in left} == {make_golden.HOST}
        assert sorted(session.nbytes for session in left) == [64, 64, 12_000]
        saved = next(session for session in left if session.checkpointed is not None)
        fork = next(session for session in left if session.kind == "fork")
        assert fork.parent == saved.id
    File(str(killed)).verify()


def test_a_checkpoint_in_it_can_be_resumed_and_the_rest_is_garbage(killed: Path) -> None:
    with vzarr.open(killed, "r+", author="Test <test@example.org>") as repo:
        saved = next(session for session in repo.sessions() if session.checkpointed is not None)
        session = repo.resume(saved.id)
        numbers = values(session.store, "numbers")
        assert numbers.tolist() == [*reversed(range(8)), *range(8, 64)]
        with pytest.raises(vzarr.SessionStateError, match="were not merged"):
            session.commit("without what the fork wrote")
        session.discard()
        session.set("numbers/c/0", bytes(64))
        session.commit("resumed")
        assert values(repo.store("main"), "numbers").tolist() == [*[0] * 8, *range(8, 64)]
        gone = repo.gc()
        assert gone.sessions == 1
        assert gone.nbytes >= 12_000
        assert repo.check("full").garbage == 0


# ── files from the future ────────────────────────────────────────────────────────────────────────


def _become(path: Path, *fields: object) -> None:
    """Make a file one that a later version wrote."""
    environment = Environment.open(str(path), writable=True)
    with environment.write() as txn:
        txn.put("meta", b"format", msgpack.packb(["vzarr", *fields]))
    environment.close()


def test_a_file_that_needs_a_newer_reader(golden: Path, run: Run) -> None:
    _become(golden, 3, 2, "what came later")
    before = golden.read_bytes()
    for mode in ("r", "r+", "a"):
        with pytest.raises(vzarr.FormatVersionError, match="format version 3") as caught:
            vzarr.open(golden, mode)
        assert "reads up to version 1" in str(caught.value)
        assert "install a newer vzarr" in str(caught.value)
        assert caught.value.path == str(golden)
    for verb in ("log", "tree", "info", "status", "gc"):
        code, out, err = run(verb, golden)
        assert (code, out) == (1, "")
        assert err.count("\n") == 1
        assert "format version 3" in err
        assert "install a newer vzarr" in err
    assert golden.read_bytes() == before
    _become(golden, 1, 1)


def test_a_file_that_needs_a_newer_writer(golden: Path, run: Run) -> None:
    """What the old version reads rightly it reads, and it does not write."""
    _become(golden, 2, 1, {"later": [1, 2, 3]}, None)
    before = golden.read_bytes()
    with vzarr.open(golden, "r") as repo:
        assert repo.format_version == 2
        assert repo.branches["main"] == HEADS["main"]
        assert values(repo.store("main"), "scalar").tolist() == 42
    for mode in ("r+", "a"):
        with pytest.raises(vzarr.FormatVersionError, match="can read but not write"):
            vzarr.open(golden, mode)
    code, out, _ = run("log", golden, "--oneline")
    assert (code, out.count("\n")) == (0, 6 + 1)
    code, _, err = run("branch", golden, "new")
    assert code == 1
    assert "format version 2" in err
    assert "mode 'r'" in err
    assert golden.read_bytes() == before
    _become(golden, 1, 1)


def test_what_a_later_release_keeps_beside_the_repository_is_left_alone(golden: Path) -> None:
    arguments = {"subdir": False, "lock": False, "max_dbs": 16, "map_size": 1 << 28}
    with lmdb.open(str(golden), **arguments) as environment:
        later = environment.open_db(b"later")
        meta = environment.open_db(b"meta", create=False)
        with environment.begin(write=True) as txn:
            txn.put(b"key", b"value", db=later)
            txn.put(b"later", b"without a seal", db=meta)
    with vzarr.open(golden, "r+", author="Test <test@example.org>") as repo:
        assert repo.check("full").ok
        with repo.transaction("main", "more") as store:
            store.session.set("more", b"")
    File(str(golden)).verify()
    with lmdb.open(str(golden), readonly=True, **arguments) as environment:
        later = environment.open_db(b"later", create=False)
        meta = environment.open_db(b"meta", create=False)
        with environment.begin() as txn:
            assert txn.get(b"key", db=later) == b"value"
            assert txn.get(b"later", db=meta) == b"without a seal"
