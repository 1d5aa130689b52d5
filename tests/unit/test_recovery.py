"""Recovery: all that is whole is saved, what is not is named, and nothing saved is wrong."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import zarr

import vzarr
from tests.support import assert_sound
from vzarr import portable, refs, retelling
from vzarr.errors import (
    AlreadyExistsError,
    CorruptError,
    FormatVersionError,
    InvalidInputError,
    NotARepositoryError,
    NotFoundError,
)
from vzarr.format import (
    DIGEST_BYTES,
    Blob,
    CommitRecord,
    Entry,
    FormatRecord,
    TreeRef,
    chunk_digest,
    decode_commit,
    decode_entry,
    encode_format,
)
from vzarr.node import decode_node
from vzarr.origins import entries
from vzarr.pages import NODE_HEADER, PAGE_HEADER, PAGE_NUMBER
from vzarr.rawfile import Place, node_at, starts_of
from vzarr.recovery import RecoverReport, recover
from vzarr.salvage import Salvage

AUTHOR = "Ada <ada@example.org>"
TORTURE = "VZARR_TORTURE" in os.environ
PAGE = 4096


# ── what there was, and what there is ────────────────────────────────────────────────────────────


@dataclass
class State:
    """All of a repository that users see."""

    branches: dict[str, str]
    tags: dict[str, tuple[str, str]]
    reflogs: dict[str, list[vzarr.ReflogEntry]]
    commits: dict[str, CommitRecord]
    snapshots: dict[str, dict[str, bytes]]
    """By commit: the digest behind each key."""
    id: str
    sessions: list[str]


def state_of(path: Path) -> State:
    with vzarr.open(path, "r") as repo:
        names = {
            key[:-9].decode() for key, _ in entries(repo._environment, "reflog", keys_only=True)
        }
        commits = {
            key.hex(): decode_commit(data) for key, data in entries(repo._environment, "commits")
        }
        with repo._environment.read() as txn:
            tags = {tag.name: (tag.commit, tag.message) for tag in refs.tags(txn)}
        return State(
            branches=dict(repo.branches),
            tags=tags,
            reflogs={name: list(repo.reflog(name)) for name in names if name in repo.branches},
            commits=commits,
            snapshots={
                commit: {key: blob.digest for key, blob in repo.session(commit).hierarchy.items()}
                for commit in commits
            },
            id=repo.id,
            sessions=sorted(each.id for each in repo.sessions() if each.checkpointed),
        )


@pytest.fixture(scope="module")
def _sea(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sea") / "test.vzarr"
    noise = np.random.default_rng(7)
    with vzarr.open(path, author=AUTHOR) as repo:
        with repo.transaction("main", "make") as store:
            zarr.create_group(store, attributes={"title": "sea"})
            sst = zarr.create_array(
                store, name="ocean/sst", shape=(60, 40), chunks=(30, 20), dtype="f4",
                compressors=None, fill_value=-1,
            )  # fmt: skip
            sst[:] = noise.random((60, 40))
            many = zarr.create_array(
                store, name="many", shape=(20, 20), chunks=(1, 1), dtype="i2", compressors=None
            )
            many[:] = np.arange(400).reshape(20, 20) + 1
            store.session.set("ocean/notes.txt", b"The buoy was lost in March.\n")
        repo.tags.create("v1", message="first")
        for number in range(4):
            with repo.transaction("main", f"step {number}") as store:
                zarr.open_array(store, path="ocean/sst")[30:, :20] = noise.random((30, 20))
                zarr.open_array(store, path="many")[number] = number + 1000
        repo.branches.create("dev", at="main~2")
        with repo.transaction("dev", "mend") as store:
            zarr.open_array(store, path="many").attrs["units"] = "m"
        repo.branches.create("gone", at="main~1")
        repo.branches.delete("gone")
        repo.tags.create("v2", message="second")
        session = repo.session("main")
        session.set("ocean/draft.txt", b"not committed")
        session.checkpoint()
    return path


@pytest.fixture(scope="module")
def _before(_sea: Path) -> State:
    return state_of(_sea)


@pytest.fixture
def before(_before: State) -> State:
    """What the repository was before it was damaged."""
    return _before


@pytest.fixture
def broken(tmp_path: Path, _sea: Path) -> Path:
    """A repository that is still whole, to be damaged."""
    return Path(shutil.copy(_sea, tmp_path / "broken.vzarr"))


@pytest.fixture
def saved(tmp_path: Path) -> Iterator[Path]:
    """Where what is saved goes; checked when the test has ended."""
    path = tmp_path / "saved.vzarr"
    yield path
    if path.exists():
        assert_sound(path)
        path.unlink()
    assert [name for name in os.listdir(tmp_path) if name.startswith(".vzarr-")] == []


def run(broken: Path, saved: Path) -> RecoverReport:
    """Recover, and see that the damaged file is left as it was."""
    content = broken.read_bytes()
    report = recover(broken, saved)
    assert broken.read_bytes() == content
    assert report.ok == (not report.lost)
    assert (report.path, report.saved) == (str(broken), str(saved))
    assert str(report) == repr(report)
    now = state_of(saved)
    assert now.branches == report.branches
    assert {name: commit for name, (commit, _) in now.tags.items()} == report.tags
    assert report.commits == len(now.commits)
    return report


def damage(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def places(path: Path, kind: str) -> dict[bytes, Place]:
    """Give where the objects of a sound file are."""
    found = Salvage(str(path))
    try:
        found.search(lambda _: None)
        return dict(found._objects[kind])
    finally:
        found.close()


def destroy(path: Path, digest: bytes, kind: str) -> None:
    """Flip a bit in each copy of an object, which may be on old pages, too."""
    place = places(path, kind)[digest]
    content = bytearray(path.read_bytes())
    data = bytes(content[place.offset : place.offset + place.nbytes])
    # Small ones may be a part of others by chance, but not behind their own keys.
    pattern = data if len(data) > DIGEST_BYTES else digest + data
    at = content.find(pattern)
    while at >= 0:
        content[at + len(pattern) - 1 - len(data) // 2] ^= 4
        at = content.find(pattern, at + 1)
    path.write_bytes(content)
    assert digest not in places(path, kind)


def blob_of(path: Path, key: str, ref: str = "main") -> Blob:
    with vzarr.open(path, "r") as repo:
        blob = repo.session(ref).hierarchy.find(key)
    assert blob is not None
    return blob


def assert_same(saved: Path, before: State) -> None:
    now = state_of(saved)
    assert now == before


# ── whole, or as good as whole ───────────────────────────────────────────────────────────────────


def test_a_whole_file(broken, saved, before):
    report = run(broken, saved)
    assert report.ok
    assert (report.moved, report.made, report.rewritten, report.notes) == ({}, {}, {}, ())
    assert_same(saved, before)
    assert f"{broken}: all was saved\n" in str(report)
    assert f"main at {before.branches['main'][:12]}" in str(report)
    with vzarr.open(saved, author=AUTHOR) as repo:
        session = repo.resume(before.sessions[0])
        assert session.get("ocean/draft.txt") == b"not committed"
        session.commit("what was saved before")
        repo.gc()


@pytest.mark.parametrize("lost", [(0,), (1,), (0, 1)])
def test_meta_pages_lost(broken, saved, before, lost):
    for page in lost:
        damage(broken, page * PAGE, bytes(PAGE))
    report = run(broken, saved)
    assert report.ok
    assert "meta pages of LMDB" in report.notes[0]
    assert_same(saved, before)


def test_everything_before_the_first_object_overwritten(broken, saved, before):
    damage(broken, 0, random.Random(1).randbytes(2 * PAGE))
    assert run(broken, saved).ok
    assert_same(saved, before)


def test_the_newest_state_is_lost_with_its_meta_page(broken, saved):
    """What only the newest state knew is found again by the moves that led there."""
    with vzarr.open(broken, author=AUTHOR) as repo, repo.transaction("main", "last") as store:
        store.session.set("last.txt", b"words")
    before = state_of(broken)
    newest = Salvage(str(broken)).metas()[0].txn_id % 2
    damage(broken, newest * PAGE + 16, bytes(100))
    assert run(broken, saved).branches == before.branches
    now = state_of(saved)
    assert (now.branches, now.tags, now.reflogs) == (before.branches, before.tags, before.reflogs)


def pages_with(path: Path, database: str) -> list[int]:
    """Give the leaf pages that the newest state has of a database, and any old ones."""
    found = Salvage(str(path))
    found.search(lambda _: None)
    keys = found.records[database]
    found.close()
    content = path.read_bytes()
    pages = []
    for page in range(2, len(content) // PAGE):
        data = content[page * PAGE : (page + 1) * PAGE]
        if data[10:12] != b"\2\0":
            continue
        starts = starts_of(data, int.from_bytes(data[12:14], "little"))
        nodes = [node_at(data, start) for start in starts]
        if any(node and node[0] != 2 and node[1] in keys for node in nodes):
            pages.append(page)
    return pages


def test_branches_lost(broken, saved, before):
    for page in pages_with(broken, "branches"):
        damage(broken, page * PAGE, bytes(PAGE))
    report = run(broken, saved)
    now = state_of(saved)
    assert (now.branches, now.tags, now.reflogs) == (before.branches, before.tags, before.reflogs)
    assert "gone" not in report.branches


def test_branches_and_reflog_lost(broken, saved, before):
    for page in {*pages_with(broken, "branches"), *pages_with(broken, "reflog")}:
        damage(broken, page * PAGE, bytes(PAGE))
    report = run(broken, saved)
    assert set(report.branches.values()) == set(before.branches.values())
    assert all(name.startswith("recovered-") for name in report.branches)
    assert report.made.keys() == report.branches.keys()
    assert "which had no name any more" in str(report)
    assert report.tags == {name: commit for name, (commit, _) in before.tags.items()}


def test_tags_lost(broken, saved, before):
    for page in pages_with(broken, "tags"):
        damage(broken, page * PAGE, bytes(PAGE))
    report = run(broken, saved)
    assert not report.ok
    assert [problem.kind for problem in report.lost] == ["tag"]
    assert report.tags == {}
    assert report.branches == before.branches


# ── objects lost ─────────────────────────────────────────────────────────────────────────────────


def test_a_chunk_lost(broken, saved, before):
    blob = blob_of(broken, "ocean/sst/c/1/0")
    with vzarr.open(broken, "r") as repo:
        whole = zarr.open_array(repo.store("main"), path="ocean/sst")[:]
    destroy(broken, blob.digest, "chunks")
    report = run(broken, saved)
    (problem,) = report.lost
    assert (problem.kind, problem.path, problem.coordinates) == ("chunk", "ocean/sst", (1, 0))
    assert problem.region == (slice(30, 60), slice(0, 20))
    assert problem.branches == ("main",)
    head = before.branches["main"]
    assert report.moved == {"main": head}
    # The branch is where it was a commit ago, and not a bit of it is another.
    assert report.branches["main"] == before.commits[head].parents[0].hex()
    assert report.branches["dev"] == before.branches["dev"]
    with vzarr.open(saved, "r") as repo:
        left = zarr.open_array(repo.store("salvaged/main"), path="ocean/sst")[:]
        (commit, *_) = repo.log("salvaged/main")
        assert (zarr.open_array(repo.store("salvaged/main"), path="many")[3] == 1003).all()
        reflog = repo.reflog("main")
        assert reflog[0].new == report.branches["main"]
        assert reflog[0].operation.startswith("recover: ")
    assert (left[30:, :20] == -1).all()
    left[30:, :20] = whole[30:, :20]
    assert (left == whole).all()
    assert report.rewritten[head] == commit.id
    assert commit.message == "step 3"
    assert commit.metadata[retelling.METADATA] == {
        "commit": head,
        "lost": [
            {"path": "ocean/sst", "kind": "chunk", "chunk": [1, 0], "region": [[30, 60], [0, 20]]}
        ],
    }
    # The tag named the head, and would name other data.
    assert report.tags["salvaged/v2"] == commit.id
    assert "v2" not in report.tags
    assert "elements [30:60, 0:20] of ocean/sst cannot be read at main" in str(report)


def test_a_chunk_lost_that_only_old_commits_have(broken, saved, before):
    blob = blob_of(broken, "ocean/sst/c/1/0", "main~1")
    destroy(broken, blob.digest, "chunks")
    report = run(broken, saved)
    assert [problem.commits for problem in report.lost] == [1]
    # The head is whole, but has another history: that keeps what is left of the commit.
    assert report.branches.keys() == {"main", "dev"}
    assert report.moved == {}
    head = before.branches["main"]
    assert report.rewritten[head] == report.branches["main"]
    now = state_of(saved)
    assert now.commits[report.branches["main"]].root == before.commits[head].root
    with vzarr.open(saved, "r") as repo:
        assert [commit.message for commit in repo.log("main")] == [
            "step 3", "step 2", "step 1", "step 0", "make", "create repository",
        ]  # fmt: skip


def test_a_chunk_lost_that_all_commits_have(broken, saved, before):
    blob = blob_of(broken, "many/c/19/19")
    destroy(broken, blob.digest, "chunks")
    report = run(broken, saved)
    (problem,) = report.lost
    assert (problem.coordinates, problem.commits) == ((19, 19), 6)
    with vzarr.open(saved, "r") as repo:
        assert [commit.message for commit in repo.log("main")] == ["create repository"]
        assert repo.log("salvaged/main")[0].message == "step 3"
        assert len(repo.log("salvaged/main")) == 6
        assert [commit.message for commit in repo.log("salvaged/dev")][:2] == ["mend", "step 1"]
        many = zarr.open_array(repo.store("salvaged/main"), path="many")
        assert many[19, 19] == 0
        assert many[19, 18] == 399
    assert report.tags.keys() == {"salvaged/v1", "salvaged/v2"}


def test_a_document_lost(broken, saved):
    blob = blob_of(broken, "ocean/sst/zarr.json")
    document = b""
    with vzarr.open(broken, "r") as repo:
        document = bytes(repo.session("main").get("ocean/sst/zarr.json"))
        whole = zarr.open_array(repo.store("main"), path="ocean/sst")[:]
    destroy(broken, blob.digest, "chunks")
    report = run(broken, saved)
    (problem,) = report.lost
    assert (problem.kind, problem.document) == ("document", "zarr.json")
    with vzarr.open(saved, author=AUTHOR) as repo:
        session = repo.session("salvaged/main")
        assert session.get("ocean/sst/zarr.json") is None
        assert session.get("ocean/sst/c/0/0") is not None
        # Written anew, it makes the array what it was.
        session.set("ocean/sst/zarr.json", document)
        session.commit("mend")
        assert (zarr.open_array(repo.store("salvaged/main"), path="ocean/sst")[:] == whole).all()


def index_of(path: Path, name: str, ref: str = "main") -> TreeRef:
    with vzarr.open(path, "r") as repo:
        entry = repo.session(ref).hierarchy.entry(name)
    assert entry is not None
    assert entry.index is not None
    return entry.index


def test_a_node_of_an_index_lost(broken, saved, before):
    root = decode_node(read(broken, "nodes", index_of(broken, "many").digest))
    assert root.level == 1
    lost = root.values[-2][:DIGEST_BYTES]
    leaf = decode_node(read(broken, "nodes", lost))
    destroy(broken, lost, "nodes")
    report = run(broken, saved)
    problem = report.lost[0]
    assert (problem.kind, problem.path) == ("index", "many")
    assert problem.region is not None
    now = state_of(saved)
    head = before.snapshots[before.branches["main"]]
    left = now.snapshots[now.branches["salvaged/main"]]
    gone = {f"many/c/{x}/{y}" for x, y in map(coordinates, leaf.keys)}
    assert left == {key: digest for key, digest in head.items() if key not in gone}


def coordinates(key: bytes) -> tuple[int, int]:
    return int.from_bytes(key[:4], "big"), int.from_bytes(key[4:], "big")


def read(path: Path, database: str, digest: bytes) -> bytes:
    with vzarr.open(path, "r") as repo, repo._environment.read() as txn:
        data = txn.get(database, digest)
    assert data is not None
    return data


def test_the_root_of_an_index_lost(broken, saved, before):
    destroy(broken, index_of(broken, "many").digest, "nodes")
    report = run(broken, saved)
    assert [(problem.kind, problem.path) for problem in report.lost] == [("index", "many")] * len(
        report.lost
    )
    now = state_of(saved)
    head = before.snapshots[before.branches["main"]]
    left = now.snapshots[now.branches["salvaged/main"]]
    assert left == {key: digest for key, digest in head.items() if not key.startswith("many/c/")}


def test_a_directory_lost(broken, saved, before):
    head = before.branches["main"]
    entry = decode_entry(read(broken, "nodes", before.commits[head].root))
    destroy(broken, entry.directory.digest, "nodes")
    report = run(broken, saved)
    assert "directory" in {problem.kind for problem in report.lost}
    now = state_of(saved)
    assert now.branches["main"] == before.commits[head].parents[0].hex()
    assert now.snapshots[now.branches["salvaged/main"]].keys() == {"zarr.json"}


@pytest.mark.parametrize("kind", ["commit", "root"])
def test_the_head_lost(broken, saved, before, kind):
    head = before.branches["main"]
    if kind == "commit":
        destroy(broken, bytes.fromhex(head), "commits")
    else:
        destroy(broken, before.commits[head].root, "roots")
    report = run(broken, saved)
    assert report.branches["main"] == before.commits[head].parents[0].hex()
    assert report.moved == {"main": head}
    assert not any(name.startswith("salvaged") for name in report.branches)
    assert report.tags.keys() == {"v1"}
    assert any("main" in problem.branches for problem in report.lost)


def test_a_commit_lost_in_between(broken, saved, before):
    """The reflog knows what came before it, so that history goes on there."""
    head = before.branches["main"]
    middle = before.commits[head].parents[0]
    destroy(broken, middle, "commits")
    report = run(broken, saved)
    assert report.moved == {}
    assert report.rewritten[head] == report.branches["main"]
    with vzarr.open(saved, "r") as repo:
        messages = [commit.message for commit in repo.log("main")]
        assert messages == ["step 3", "step 1", "step 0", "make", "create repository"]
        assert repo.root_id("main") == before.commits[head].root.hex()
    assert any(middle.hex()[:12] in problem.message for problem in report.lost)


def test_a_commit_lost_of_which_the_reflog_knows_nothing(broken, saved, before):
    with vzarr.open(broken, author=AUTHOR) as repo:
        repo.expire(keep_last=0)
    head = before.branches["main"]
    middle = before.commits[head].parents[0]
    destroy(broken, middle, "commits")
    for page in pages_with(broken, "reflog"):
        damage(broken, page * PAGE, bytes(PAGE))
    report = run(broken, saved)
    with vzarr.open(saved, "r") as repo:
        assert [commit.message for commit in repo.log("main")] == ["step 3"]
        kept = {commit.message for name in repo.branches for commit in repo.log(name)}
    assert kept == {"step 3", "step 1", "step 0", "make", "create repository", "mend"}
    assert not report.ok


def test_losses_of_several_kinds(broken, saved, before):
    head = before.snapshots[before.branches["main"]]
    for key in ("zarr.json", "many/c/0/0"):
        destroy(broken, head[key], "chunks")
    report = run(broken, saved)
    now = state_of(saved)
    left = now.snapshots[now.branches["salvaged/main"]]
    gone = {head["zarr.json"], head["many/c/0/0"]}
    assert left == {key: digest for key, digest in head.items() if digest not in gone}
    assert {problem.kind for problem in report.lost} == {"chunk", "document"}


def test_a_checkpoint_lost(broken, saved, before):
    destroy(broken, chunk_digest(b"not committed"), "chunks")
    report = run(broken, saved)
    (problem,) = report.lost
    assert problem.cost.endswith(f"in the uncommitted work of session {before.sessions[0]}")
    now = state_of(saved)
    assert now.sessions == []
    assert replace(now, sessions=before.sessions) == before


# ── pages ────────────────────────────────────────────────────────────────────────────────────────


class Oracle:
    """Knows what must be saved whatever is damaged, from where the sound file has each object."""

    def __init__(self, path: Path, before: State) -> None:
        self.before = before
        self.content = path.read_bytes()
        self._objects = [
            (place.offset, place.offset + place.nbytes, digest)
            for kind in ("chunks", "nodes", "roots", "commits")
            for digest, place in places(path, kind).items()
        ]
        self._data = {}
        with vzarr.open(path, "r") as repo:
            for database in ("nodes", "commits"):
                self._data.update(entries(repo._environment, database))

    def lost(self, damaged: bytes, *, alone: bool) -> set[bytes]:
        """Find the objects of which the bytes have changed.

        What stands before them on the page is found out otherwise, if it ``alone`` is damaged.
        """
        length = len(damaged)
        if length == len(self.content):
            old, new = (np.frombuffer(data, "u1") for data in (self.content, damaged))
            changed = np.concatenate([[0], np.cumsum(old != new)])
        return {
            digest
            for start, stop, digest in self._objects
            for first in [start if alone else start - (16 if start % PAGE == 16 else 40)]
            if (stop > length if length != len(self.content) else changed[stop] > changed[first])
        }

    def left(self, commit: str, lost: set[bytes]) -> dict[str, bytes]:
        """Find what is left of a snapshot; nothing where its record or its root is lost."""
        root = self.before.commits[commit].root
        if bytes.fromhex(commit) in lost or root in lost:
            return {}
        return dict(self._entry("", decode_entry(self._data[root]), lost))

    def _entry(self, base: str, entry: Entry, lost: set[bytes]) -> Iterator[tuple[str, bytes]]:
        found = {base + name: blob.digest for name, blob in entry.documents.items()}
        if entry.index is not None:
            for key, value in self._tree(entry.index.digest, lost):
                found[base + entry.layout.spell(key)] = value[:DIGEST_BYTES]
        yield from ((key, digest) for key, digest in found.items() if digest not in lost)
        if entry.directory is not None:
            for key, value in self._tree(entry.directory.digest, lost):
                name, member = key.decode(), decode_entry(value)
                if member.file is not None and member.file.digest not in lost:
                    yield base + name, member.file.digest
                yield from self._entry(f"{base}{name}/", member, lost)

    def _tree(self, digest: bytes, lost: set[bytes]) -> Iterator[tuple[bytes, bytes]]:
        if digest in lost:
            return
        node = decode_node(self._data[digest])
        for key, value in zip(node.keys, node.values, strict=True):
            if node.level:
                yield from self._tree(value[:DIGEST_BYTES], lost)
            else:
                yield key, value

    def judge(self, broken: Path, saved: Path, *, alone: bool = True) -> str:
        """Recover, and compare with what must be there; tell what came of it."""
        lost = self.lost(broken.read_bytes(), alone=alone)
        due = {commit: self.left(commit, lost) for commit in self.before.branches.values()}
        try:
            report = recover(broken, saved)
        except (NotARepositoryError, CorruptError):
            assert not any(due.values())
            assert not saved.exists()
            return "nothing left"
        assert_sound(saved)
        now = state_of(saved)
        saved.unlink()
        first = {new: old for old, new in report.rewritten.items()}
        seen: dict[str, dict[str, bytes]] = {}
        for commit, snapshot in now.snapshots.items():
            old = first.get(commit, commit)
            # Nothing is there that was not there before, at the same key.
            assert snapshot.items() <= self.before.snapshots[old].items()
            seen.setdefault(old, {}).update(snapshot)
        for commit, snapshot in due.items():
            assert snapshot.items() <= seen.get(commit, {}).items(), "more could have been saved"
        for name, head in now.branches.items():
            if name in self.before.branches and name not in report.moved:
                assert first.get(head, head) == self.before.branches[name]
            if name in self.before.branches:
                old = first.get(head, head)
                assert now.snapshots[head] == self.before.snapshots[old], "a hole under a name"
        if not lost:
            # What is damaged is LMDB's own, or a name that is found again.
            assert report.rewritten == {}
            assert set(now.branches.values()) >= set(self.before.branches.values())
        if report.ok:
            assert now.branches.items() >= self.before.branches.items()
            return "all saved"
        return "objects lost" if lost else "names lost"


@pytest.fixture(scope="module")
def oracle(_sea: Path, _before: State) -> Oracle:
    return Oracle(_sea, _before)


def sample(total: int, number: int, seed: int) -> list[int]:
    """Pick some of many; in the long mode all, or many."""
    return sorted(random.Random(seed).sample(range(total), min(total, number)))


def test_each_page_zeroed(broken, saved, oracle):
    content = broken.read_bytes()
    total = len(content) // PAGE
    counts: dict[str, int] = {}
    for page in sample(total, total if TORTURE else 12, 1):
        damage(broken, page * PAGE, bytes(PAGE))
        outcome = oracle.judge(broken, saved)
        counts[outcome] = counts.get(outcome, 0) + 1
        damage(broken, page * PAGE, content[page * PAGE : (page + 1) * PAGE])
    print(counts)
    assert counts.get("all saved", 0) > 1


def test_truncated_at_each_page(broken, saved, oracle):
    content = broken.read_bytes()
    total = len(content) // PAGE
    counts: dict[str, int] = {}
    lengths = [page * PAGE for page in sample(total, total if TORTURE else 10, 2)]
    lengths += [PAGE * 20 + 1000, len(content) - 1]
    for length in lengths:
        broken.write_bytes(content[:length])
        if length:
            outcome = oracle.judge(broken, saved)
            counts[outcome] = counts.get(outcome, 0) + 1
    print(counts)
    assert counts.get("nothing left", 0) + counts.get("objects lost", 0) > 1


def test_the_beginning_overwritten(broken, saved, oracle):
    content = broken.read_bytes()
    total = len(content) // PAGE
    noise = random.Random(3).randbytes(len(content))
    for page in sample(total, total if TORTURE else 8, 3):
        broken.write_bytes(noise[: page * PAGE] + content[page * PAGE :])
        oracle.judge(broken, saved)


def test_a_byte_flipped(broken, saved, oracle):
    content = broken.read_bytes()
    numbers = random.Random(4)
    counts: dict[str, int] = {}
    for _ in range(2000 if TORTURE else 30):
        at = numbers.randrange(len(content))
        damage(broken, at, bytes([content[at] ^ (1 << numbers.randrange(8))]))
        outcome = oracle.judge(broken, saved)
        counts[outcome] = counts.get(outcome, 0) + 1
        damage(broken, at, content[at : at + 1])
    print(counts)
    assert counts.get("all saved", 0) > 1


def test_damage_all_over(broken, saved, oracle):
    content = broken.read_bytes()
    numbers = random.Random(5)
    for _ in range(400 if TORTURE else 8):
        damaged = bytearray(content)
        for _ in range(numbers.randrange(1, 40)):
            at, length = numbers.randrange(len(content)), numbers.choice([1, 1, 16, 512, 4096])
            length = min(length, len(content) - at)
            damaged[at : at + length] = numbers.choice([bytes(length), numbers.randbytes(length)])
        broken.write_bytes(damaged)
        oracle.judge(broken, saved, alone=False)


# ── deep histories ───────────────────────────────────────────────────────────────────────────────


def test_a_deep_history(tmp_path, saved):
    """Each commit after the loss is kept, with its own data, and made from the one before."""
    broken = tmp_path / "broken.vzarr"
    number, size = (1000, 3000) if TORTURE else (40, 400)
    with vzarr.open(broken, author=AUTHOR, durability="normal") as repo:
        with repo.transaction("main", "make") as store:
            zarr.create_array(
                store, name="a", shape=(size,), chunks=(1,), dtype="i4", compressors=None
            )[:] = np.arange(size) + 1
        for step in range(number):
            session = repo.session("main")
            session.set(f"a/c/{step}", b"%04d" % step)
            session.commit(f"step {step}")
    before = state_of(broken)
    lost = {f"a/c/{chunk}" for chunk in (size - 300, size - 10)}
    for key in lost:
        destroy(broken, before.snapshots[before.branches["main"]][key], "chunks")
    report = run(broken, saved)
    assert {problem.commits for problem in report.lost} == {number + 1}
    now = state_of(saved)
    first = {new: old for old, new in report.rewritten.items()}
    assert len(first) == number + 1
    for new, old in first.items():
        whole = before.snapshots[old]
        assert now.snapshots[new] == {key: whole[key] for key in whole.keys() - lost}
    with vzarr.open(saved, "r") as repo:
        messages = [commit.message for commit in repo.log("salvaged/main")]
        assert messages[0] == f"step {number - 1}"
        assert len(messages) == number + 2


# ── where no page leads ──────────────────────────────────────────────────────────────────────────


def test_large_chunks_to_which_nothing_points(tmp_path, saved):
    """Their pages say nothing but how many they are; which chunk it is, the digest tells."""
    broken = tmp_path / "broken.vzarr"
    noise = random.Random(6)
    with vzarr.open(broken, author=AUTHOR) as repo, repo.transaction("main", "make") as store:
        for number in range(40):
            store.session.set(f"file{number}", noise.randbytes(noise.randrange(3000, 9000)))
    before = state_of(broken)
    digests = set(before.snapshots[before.branches["main"]].values())
    content = broken.read_bytes()
    for page in range(2, len(content) // PAGE):
        data = content[page * PAGE : (page + 1) * PAGE]
        if data[10:12] == b"\2\0" and any(digest in data for digest in digests):
            starts = starts_of(data, int.from_bytes(data[12:14], "little"))
            nodes = [node_at(data, start) for start in starts]
            if any(node and node[1] in digests for node in nodes):
                damage(broken, page * PAGE, bytes(PAGE))
    assert run(broken, saved).ok
    assert state_of(saved) == before


def test_a_node_whose_header_is_damaged(broken, saved, before):
    """Its key is found where it stands, and the bytes behind it are long enough."""
    index = index_of(broken, "many")
    leaf = decode_node(read(broken, "nodes", index.digest)).values[0][:DIGEST_BYTES]
    content = broken.read_bytes()
    at = content.find(leaf + b"\x96")
    while at >= 0:
        damage(broken, at - 8, b"\xff" * 8)
        at = content.find(leaf + b"\x96", at + 1)
    assert run(broken, saved).ok
    assert_same(saved, before)


def test_a_run_of_pages_that_says_it_is_longer(broken, saved, before):
    """What it seems to cover is looked at all the same."""
    content = broken.read_bytes()
    runs = [
        page
        for page in range(2, len(content) // PAGE)
        if content[page * PAGE + 10 : page * PAGE + 12] == b"\4\0"
    ]
    assert len(runs) > 3
    for page in runs:
        damage(broken, page * PAGE + 12, b"\xff\xff\xff\x7f")
    assert run(broken, saved).ok
    assert_same(saved, before)


def test_bad_sectors(broken, saved, monkeypatch, before):
    """What the disk does not give is lost, and nothing else."""
    blob = blob_of(broken, "ocean/sst/c/0/1")
    bad = places(broken, "chunks")[blob.digest].offset // 512 + 1
    pread = os.pread

    def failing(descriptor, nbytes, offset):
        if offset < (bad + 1) * 512 and bad * 512 < offset + nbytes:
            raise OSError(5, "Input/output error")
        return pread(descriptor, nbytes, offset)

    monkeypatch.setattr(portable, "pread", failing)
    found = Salvage(str(broken))
    found.search(lambda _: None)
    monkeypatch.undo()
    assert found.unreadable >= 512
    assert not found.contains("chunks", blob.digest)
    assert found.count("nodes") == len(places(broken, "nodes")) + len(places(broken, "roots"))
    found.close()


def test_a_large_value_said_to_be_empty(broken, saved, before):
    """A damaged length may be any, and none at all."""
    content = broken.read_bytes()
    large = [
        place
        for place in places(broken, "chunks").values()
        if place.offset % PAGE == PAGE_HEADER.size
    ]
    assert large
    for place in large:
        digest = chunk_digest(content[place.offset : place.offset + place.nbytes])
        at = content.find(digest + PAGE_NUMBER.pack(place.offset // PAGE))
        while at >= 0:
            damage(broken, at - NODE_HEADER.size, bytes(4))
            at = content.find(digest + PAGE_NUMBER.pack(place.offset // PAGE), at + 1)
    assert run(broken, saved).ok
    assert_same(saved, before)


# ── other files, wrong calls ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "is an empty file"),
        (b"x", "nothing of a vzarr repository|too short"),
        (b"once upon a time\n" * 10_000, "is no vzarr repository"),
        (bytes(100_000), "is no vzarr repository"),
        (random.Random(8).randbytes(300_000), "is no vzarr repository"),
    ],
)
def test_files_of_other_kinds(broken, saved, content, error):
    broken.write_bytes(content)
    with pytest.raises(NotARepositoryError, match=error):
        recover(broken, saved)
    assert not saved.exists()


def test_nothing_left_but_chunks(broken, saved, before):
    for commit in before.commits:
        destroy(broken, bytes.fromhex(commit), "commits")
    with pytest.raises(CorruptError, match="restore the file from a backup"):
        recover(broken, saved)
    assert not saved.exists()


def test_a_newer_format(broken, saved):
    from vzarr.environment import Environment

    environment = Environment.open(str(broken), writable=True)
    with environment.write() as txn:
        txn.put("meta", b"format", encode_format(FormatRecord(9, 9)))
    environment.close()
    with pytest.raises(FormatVersionError, match="has format 9"):
        recover(broken, saved)


def test_wrong_paths(broken, saved, tmp_path):
    with pytest.raises(NotFoundError, match="there is no file"):
        recover(tmp_path / "nope", saved)
    with pytest.raises(NotARepositoryError, match="no regular file"):
        recover(tmp_path, saved)
    with pytest.raises(InvalidInputError, match="writes another file"):
        recover(broken, broken)
    (tmp_path / "link").symlink_to(broken)
    with pytest.raises(InvalidInputError, match="writes another file"):
        recover(tmp_path / "link", broken)
    saved.write_bytes(b"there")
    with pytest.raises(AlreadyExistsError, match="exists already"):
        recover(broken, saved)
    assert saved.read_bytes() == b"there"
    saved.unlink()
    with pytest.raises(NotFoundError, match="directory"):
        recover(broken, tmp_path / "nowhere" / "saved.vzarr")
    for wrong in (None, 3, "", "a\0b"):
        with pytest.raises(InvalidInputError):
            recover(broken, wrong)
        with pytest.raises(InvalidInputError):
            recover(wrong, saved)


def test_a_full_disk(broken, saved, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vzarr.saving.place", full)
    with pytest.raises(vzarr.FullError):
        recover(broken, saved)
    assert not saved.exists()


def test_progress(broken, saved, monkeypatch):
    monkeypatch.setattr("vzarr.progress.INTERVAL", 0)
    calls = []
    recover(broken, saved, progress=lambda *call: calls.append(call))
    stages = list(dict.fromkeys(what for *_, what in calls))
    assert stages[:4] == ["search", "objects", "losses", "write"]
    assert "objects" in stages
    for stage in ("search", "write"):
        steps = [(done, total) for done, total, what in calls if what == stage]
        assert steps[0][0] == 0
        assert steps[-1][0] == steps[-1][1]
        assert all(done <= total for done, total in steps)


@pytest.mark.parametrize("stage", ["search", "write", "structure"])
def test_an_interrupt(broken, saved, stage):
    def progress(done, total, what):
        if what == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recover(broken, saved, progress=progress)
    assert not saved.exists()


# ── hostile files ────────────────────────────────────────────────────────────────────────────────


def test_pages_that_all_claim_the_rest_of_the_file(tmp_path, saved):
    """What may be hashed is bounded by the size of the file, whatever nodes say."""
    pages = 400
    content = bytearray(pages * PAGE)
    for page in range(pages):
        start = page * PAGE
        rest = pages - page
        if page % 2:
            content[start : start + 16] = PAGE_HEADER.pack(page, 4, rest & 0xFFFF, 0)
            continue
        nodes = [
            NODE_HEADER.pack(size & 0xFFFF, size >> 16, 1, 32)
            + random.Random(number).randbytes(32)
            + PAGE_NUMBER.pack(1 + 2 * number)
            for number in range(60)
            for size in [(pages - 2 * number - 2) * PAGE - 99]
        ]
        content[start : start + 16] = PAGE_HEADER.pack(page, 2, 16 + 120, 16 + 120)
        for number, node in enumerate(nodes):
            at = start + 16 + 120 + 48 * number
            content[start + 16 + 2 * number : start + 18 + 2 * number] = (at - start).to_bytes(
                2, "little"
            )
            content[at : at + 48] = node
    hostile = tmp_path / "hostile"
    hostile.write_bytes(content)
    found = Salvage(str(hostile))
    found.search(lambda _: None)
    assert found._hashable < 0
    assert not found.is_ours
    found.close()
    with pytest.raises(NotARepositoryError):
        recover(hostile, saved)
