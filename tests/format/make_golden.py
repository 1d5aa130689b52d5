"""Make the golden files of format version 1, in ``tests/format/golden``, and their manifest.

``python -m tests.format.make_golden`` made them, once. They are not to be made again: that every
later release opens the files that the first one wrote is what they are for.

``v1.vzarr`` has a bit of everything. Clock, author and random ids are fixed, so that the same
records come out wherever this runs; ``test_golden.py`` checks that too. ``v1-killed.vzarr`` is a
file as a process left it that was killed with work in it: pages that are free, leases of the dead.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import lmdb
import numpy as np
import zarr

import vzarr
from vzarr import history, refs
from vzarr.author import default_author
from vzarr.environment import Environment
from vzarr.format import (
    FORK,
    SESSION,
    Blob,
    CommitRecord,
    Digest,
    JournalEdit,
    LeaseRecord,
    chunk_digest,
    encode_journal,
    encode_lease,
    session_key,
)
from vzarr.session import Session

DIRECTORY = Path(__file__).parent / "golden"
GOLDEN = DIRECTORY / "v1.vzarr"
KILLED = DIRECTORY / "v1-killed.vzarr"
MANIFEST = DIRECTORY / "manifest.json"
HOST = "golden.invalid"
AUTHOR = "Ada <ada@example.org>"
# 2026-01-01 00:00:00 UTC.
_START = 1_767_225_600
_ID = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
SESSION_ID = uuid.UUID("0f0e0d0c-0b0a-0908-0706-050403020100").bytes
FORK_ID = bytes(reversed(SESSION_ID))

GROUP = {"zarr_format": 3, "node_type": "group", "attributes": {"title": "golden"}}


def array(shape: list[int], chunks: list[int], dtype: str, **changes: object) -> dict[str, object]:
    """The metadata of an array of format 3, without compression: its chunks are plain bytes."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {},
        **changes,
    }


def array_v2(shape: list[int], chunks: list[int], dtype: str, separator: str) -> dict[str, object]:
    """The metadata of an array of format 2, without compression."""
    return {
        "zarr_format": 2,
        "shape": shape,
        "chunks": chunks,
        "dtype": dtype,
        "compressor": None,
        "filters": None,
        "fill_value": 0,
        "order": "C",
        "dimension_separator": separator,
    }


SHARDED = array(
    [8],
    [4],
    "int32",
    codecs=[
        {
            "name": "sharding_indexed",
            "configuration": {
                "chunk_shape": [2],
                "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
                "index_codecs": [
                    {"name": "bytes", "configuration": {"endian": "little"}},
                    {"name": "crc32c"},
                ],
                "index_location": "end",
            },
        }
    ],
)
DOTTED = {"name": "default", "configuration": {"separator": "."}}
V2_KEYS = {"name": "v2", "configuration": {"separator": "."}}


class _Clock:
    """Stands still, except that each step of the story is a minute later."""

    def __init__(self) -> None:
        self.minute = 0

    def __call__(self) -> int:
        return (_START + 60 * self.minute) * 10**9


def _document(session: Session, key: str, document: dict[str, object]) -> None:
    session.set(key, json.dumps(document, separators=(",", ":")).encode())


def _fill(session: Session, path: str, values: object) -> None:
    opened = zarr.open(session.store, path=path, mode="r+")
    assert isinstance(opened, zarr.Array)
    opened[...] = np.asarray(values)


def _first_data(session: Session) -> None:
    _document(session, "zarr.json", GROUP)
    _document(session, "ocean/zarr.json", GROUP)
    _document(session, "ocean/temperature/zarr.json", array([4, 6], [2, 3], "int16"))
    _fill(session, "ocean/temperature", np.arange(24).reshape(4, 6))
    _document(session, "ocean/depth/.zarray", array_v2([5], [2], "<i4", "."))
    _document(session, "ocean/depth/.zattrs", {"units": "m"})
    _fill(session, "ocean/depth", [0, 10, 20, 30, 40])


def _other_kinds(session: Session) -> None:
    _document(session, "shards/zarr.json", SHARDED)
    _fill(session, "shards", np.arange(8) * 100)
    _document(session, "scalar/zarr.json", array([], [], "uint8", chunk_key_encoding=V2_KEYS))
    _fill(session, "scalar", 42)
    _document(session, "dotted/zarr.json", array([2, 2], [1, 1], "int8", chunk_key_encoding=DOTTED))
    _fill(session, "dotted", [[1, 2], [3, 4]])
    _document(session, "slashed/.zarray", array_v2([2, 2], [1, 2], "|u1", "/"))
    _fill(session, "slashed", [[5, 6], [7, 8]])
    session.set("notes.txt", "Grüße\n".encode())
    session.set("dotted", b"a file beside an array")
    session.set("ocean/temperature/c/01/0", b"no chunk")
    session.set("a//b", b"")


def _long_array(session: Session) -> None:
    _document(session, "long/zarr.json", array([200], [1], "uint8"))
    for number in range(200):
        session.set(f"long/c/{number}", bytes([number]))


def _edit(session: Session) -> None:
    session.set("long/c/100", b"\xff")
    session.delete("long/c/7")
    session.set("ocean/temperature/c/0/0", np.full((2, 3), -1, "<i2").tobytes())


def _side_work(session: Session) -> None:
    session.move("ocean/depth", "depth")
    session.delete_below("shards")


@contextmanager
def _default_author(author: str) -> Iterator[None]:
    """Say who the author is where the caller cannot: at the creation of a file."""
    default_author.cache_clear()
    with mock.patch.dict(os.environ, {"VZARR_AUTHOR": author}):
        yield
    default_author.cache_clear()


def make(path: Path) -> None:
    """Write the repository to a path."""
    clock = _Clock()
    with (
        mock.patch("time.time_ns", clock),
        mock.patch("uuid.uuid4", return_value=_ID),
        _default_author(AUTHOR),
        vzarr.open(path, "w-", author=AUTHOR) as repo,
    ):
        steps = {
            ("main", "first data"): _first_data,
            ("main", "all kinds of keys\n\nsharded, scalar, files"): _other_kinds,
            ("side/one", "move and delete"): _side_work,
            ("main", "a tree of several levels"): _long_array,
            ("main", "edit a chunk, delete another"): _edit,
        }
        for number, ((branch, message), edit) in enumerate(steps.items(), 1):
            clock.minute = number
            if branch not in repo.branches:
                repo.branches.create(branch, at="main")
            session = repo.session(branch)
            edit(session)
            session.commit(message, metadata={"step": number, "list": [None, 0.5, {"ü": True}]})
        clock.minute = 6
        repo.tags.create("v1", at="main~1", message="first release")
        repo.branches.create("gone", at="main")
        repo.branches.delete("gone")
        _merge(Path(repo.path), clock() // 1000)


def _merge(path: Path, time: int) -> None:
    """Write by hand what no random part may be in: a merge commit, and a session left behind."""
    environment = Environment.open(str(path), writable=True)
    with environment.write() as txn:
        ours, theirs = (refs.head(txn, branch) for branch in ("main", "side/one"))
    root = history.get(environment, ours).root
    record = CommitRecord((ours, theirs), root, AUTHOR, time, "merge side/one", {})
    lease = LeaseRecord(
        kind=SESSION,
        token=4712,
        pid=4711,
        process_started=123456,
        host=HOST,
        command="python -m golden",
        parent=None,
        branch="main",
        base=Digest(ours),
        created=time,
        updated=time,
        nbytes=26,
        staged=None,
        checkpoint=root,
        checkpointed=time,
    )
    fork = replace(
        lease, kind=FORK, parent=SESSION_ID, checkpoint=None, checkpointed=None, staged=root
    )
    with environment.write() as txn:
        merged = history.put(txn, record)
        refs.move_branch(txn, "main", ours, merged, AUTHOR, time, "merge: side/one")
        staged = b"staged and never committed"
        txn.put("chunks", chunk_digest(staged), staged)
        txn.put("sessions", session_key(SESSION_ID, 0), encode_lease(lease))
        txn.put("sessions", session_key(SESSION_ID, 1), chunk_digest(staged))
        edits: list[JournalEdit] = [("n", Blob(chunk_digest(staged), len(staged))), ("o", None)]
        txn.put("sessions", session_key(FORK_ID, 0), encode_lease(fork))
        txn.put("sessions", session_key(FORK_ID, 1), encode_journal(edits))
    environment.close()


def _compact(source: Path, target: Path) -> None:
    """Copy a file without the free pages in it."""
    target.unlink(missing_ok=True)
    with lmdb.open(str(source), subdir=False, readonly=True, lock=False, max_dbs=16) as environment:
        environment.copy(str(target), compact=True)


# ── the file of a process that was killed ────────────────────────────────────────────────────────


def die(path: str) -> None:
    """Commit, stage, save a checkpoint, fork, and be killed. Run in a process of its own."""
    sys.argv = ["golden"]
    with (
        mock.patch("socket.gethostname", return_value=HOST),
        mock.patch("vzarr.changes.BATCH_BYTES", 4096),
    ):
        repo = vzarr.open(path, "w-", author=AUTHOR)
        with repo.transaction("main", "numbers") as store:
            _document(store.session, "zarr.json", GROUP)
            _document(store.session, "numbers/zarr.json", array([64], [8], "int64"))
            _fill(store.session, "numbers", np.arange(64))
        for number in range(3):
            with repo.transaction("main", f"change {number}") as store:
                store.session.set("notes.txt", b"%d" % number * 2000)
        repo.gc()
        saved = repo.session("main")
        saved.set("numbers/c/0", np.arange(8, dtype="<i8")[::-1].tobytes())
        saved.checkpoint()
        fork = saved.fork()
        fork.set("numbers/c/1", bytes(64))
        staged = repo.session("main")
        for number in range(8):
            staged.set(f"staged/{number}", bytes([number]) * 2000)
        # A checkpoint of neither: what is staged in batches is there when another commit is.
        while repo.info().chunks < 20:
            staged.set(f"more/{repo.info().chunks}", os.urandom(2000))
        os.kill(os.getpid(), signal.SIGKILL)


def _make_killed(path: Path) -> None:
    call = f"from tests.format.make_golden import die; die({str(path)!r})"
    ended = subprocess.run([sys.executable, "-c", call], check=False)
    assert ended.returncode == -signal.SIGKILL
    path.with_name(path.name + "-lock").unlink()


# ── the manifest ─────────────────────────────────────────────────────────────────────────────────

_CONTENTS = {
    GOLDEN.name: "Arrays of both Zarr formats (sharded, without dimensions, with every spelling of "
    "chunk keys, with an index of several levels), nested groups, plain files, a file beside an "
    "array; two branches, a merge, a tag, reflogs also of a branch that was deleted; the lease of "
    "a session with a batch and a checkpoint, and of a fork with a journal. Without free pages.",
    KILLED.name: "What a killed process left: four commits and what gc made of them, free pages, "
    "the leases of two sessions, one with a checkpoint, one with values that are staged in "
    "batches, and of a fork with a journal.",
}


def _describe(path: Path) -> dict[str, object]:
    libraries = ("lmdb", "msgpack", "blake3", "xxhash", "zarr", "numpy")
    return {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        "format_version": 1,
        "written_by": f"vzarr {vzarr.__version__}",
        "python": platform.python_version(),
        "libraries": {name: metadata.version(name) for name in libraries},
        "machine": f"{sys.byteorder}-endian, pages of {os.sysconf('SC_PAGE_SIZE')} bytes",
        "made_by": "python -m tests.format.make_golden",
        "holds": _CONTENTS[path.name],
    }


if __name__ == "__main__":
    with TemporaryDirectory() as directory:
        draft = Path(directory) / "draft.vzarr"
        make(draft)
        _compact(draft, GOLDEN)
        killed = Path(directory) / "killed.vzarr"
        _make_killed(killed)
        shutil.copyfile(killed, KILLED)
    manifest = {path.name: _describe(path) for path in (GOLDEN, KILLED)}
    MANIFEST.write_text(json.dumps(manifest, indent=2) + "\n")
    print(MANIFEST.read_text())
