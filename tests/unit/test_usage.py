"""``du``: every byte is counted once, on the account of who reaches it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import zarr

from tests.unit.test_garbage import entries, forget_all
from tests.unit.test_session import GROUP, array, commit
from vzarr import census
from vzarr.errors import InvalidInputError, NotFoundError, RefNotFoundError
from vzarr.format import DIGEST_BYTES, decode_commit, decode_entry
from vzarr.node import decode_node


def reached(repo, root: bytes) -> dict[bytes, int]:
    """Find all that one snapshot reaches, object by object, without any of the code under test."""
    databases = entries(repo)
    found: dict[bytes, int] = {}

    def entry(data: bytes) -> None:
        one = decode_entry(data)
        for blob in [*one.documents.values(), *([one.file] if one.file else [])]:
            found[blob.digest] = blob.length
        for tree, is_index in ((one.index, True), (one.directory, False)):
            if tree is not None:
                node(tree.digest, is_index)

    def node(digest: bytes, is_index: bool) -> None:
        data = databases["nodes"][digest]
        found[digest] = len(data)
        one = decode_node(data)
        for value in one.values:
            if one.level:
                node(value[:DIGEST_BYTES], is_index)
            elif is_index:
                found[value[:DIGEST_BYTES]] = len(databases["chunks"][value[:DIGEST_BYTES]])
            else:
                entry(value)

    data = databases["nodes"][root]
    found[root] = len(data)
    entry(data)
    return found


def model(repo) -> tuple[dict[str, dict[bytes, int]], dict[str, set[str]]]:
    """Give the objects of each commit, with its own record, and the commits of each ref."""
    commits = {key.hex(): data for key, data in entries(repo)["commits"].items()}
    objects = {}
    for name, data in commits.items():
        objects[name] = reached(repo, decode_commit(data).root) | {bytes.fromhex(name): len(data)}
    lines = {}
    for name, head in [*repo.branches.items(), *repo.tags.items()]:
        waiting, line = [head], set()
        while waiting:
            one = waiting.pop()
            line.add(one)
            waiting += [parent.hex() for parent in decode_commit(commits[one]).parents]
        lines[name] = line
    return objects, lines


@pytest.mark.parametrize("gathered", [1 << 20, 8])
@pytest.mark.parametrize("seed", range(2))
def test_all_numbers_are_those_of_a_plain_count(repo, seed, gathered, monkeypatch):
    monkeypatch.setattr(census, "_GATHERED", gathered)
    generator = random.Random(seed)
    documents = {"zarr.json": GROUP, "a/zarr.json": array(1000), "b/zarr.json": array(1000)}
    commit(repo.session("main"), "begin", **documents, **{"a/c/0": b"zero"})
    for number in range(30):
        name = generator.choice(list(repo.branches))
        edits = {
            f"{generator.choice('ab')}/c/{generator.randrange(60)}": b"%d" % generator.randrange(40)
            for _ in range(generator.choice([1, 3, 40]))
        }
        session = repo.session(name)
        for key, data in edits.items():
            session.set(key, data)
        session.commit(f"write {number}", allow_empty=True)
        if number % 7 == 0:
            repo.branches.create(f"b{number}", at=name)
        if number % 5 == 0:
            repo.tags.create(f"t{number}", at=name)
    objects, lines = model(repo)
    found = repo.du(commits=100)

    everything = {digest: size for one in objects.values() for digest, size in one.items()}
    assert found.nbytes == sum(everything.values())
    assert found.commits + found.nodes + found.chunks == len(everything)
    assert (found.unreferenced, found.unreferenced_bytes, found.reflog_bytes) == (0, 0, 0)
    by_ref = {
        name: {digest: size for one in line for digest, size in objects[one].items()}
        for name, line in lines.items()
    }
    assert {(one.name, one.kind) for one in found.refs} == {
        *((name, "branch") for name in repo.branches),
        *((name, "tag") for name in repo.tags),
    }
    for one in found.refs:
        mine = by_ref[one.name]
        others = {d for name, theirs in by_ref.items() if name != one.name for d in theirs}
        assert one.nbytes == sum(mine.values())
        assert one.unique == sum(size for digest, size in mine.items() if digest not in others)
    assert {one.id for one in found.commit_usage} == set(objects)
    for one in found.commit_usage:
        others = {d for name, theirs in objects.items() if name != one.id for d in theirs}
        own = sum(size for digest, size in objects[one.id].items() if digest not in others)
        assert one.unique == own
    documents_bytes = len(GROUP) + len(array(1000))
    assert sum(one.history for one in found.arrays) == found.chunk_bytes - documents_bytes


def test_arrays_are_told_as_of_a_ref_and_over_all_history(repo):
    with repo.transaction("main", "one") as store:
        group = zarr.create_group(store)
        options = {"shape": (40,), "chunks": (10,), "compressors": None}
        group.create_array("g/x", dtype="i4", **options)[:] = np.arange(40)
        group.create_array("g/gone", dtype="f8", **options)[:] = 1
        group.create_array("text", dtype=str, shape=(3,), chunks=(3,), compressors=None)[:] = "abc"
    repo.tags.create("v1")
    with repo.transaction("main", "two") as store:
        group = zarr.open_group(store)
        group["g/x"][:10] = -1
        del group["g/gone"]
    arrays = {one.path: one for one in repo.du().arrays}
    one = arrays["g/x"]
    assert (one.logical, one.stored, one.chunks) == (160, 160, 4)
    assert (one.history, one.versions) == (200, 5)
    gone = arrays["g/gone"]
    assert (gone.logical, gone.stored, gone.chunks, gone.history, gone.versions) == (0, 0, 0, 80, 1)
    assert arrays["text"].logical is None
    assert {one.path for one in repo.du("g").arrays} == {"g/x", "g/gone"}
    before = {one.path: one for one in repo.du("g/gone", ref="v1", commits=0).arrays}
    assert list(before) == ["g/gone"]
    assert (before["g/gone"].logical, before["g/gone"].stored) == (320, 320)


def test_garbage_the_reflog_and_free_pages_have_their_lines(repo):
    commit(repo.session("main"), "base", file=b"base")
    repo.branches.create("dev")
    commit(repo.session("dev"), "lost", file=b"x" * 50_000)
    repo.branches.delete("dev")
    found = repo.du()
    assert found.reflog_bytes > 50_000
    assert found.unreferenced == 0
    assert [one.name for one in found.refs] == ["main"]
    assert found.refs[0].unique == found.refs[0].nbytes == found.nbytes - found.reflog_bytes
    forget_all(repo)
    dry = repo.gc(dry_run=True)
    found = repo.du()
    assert found.reflog_bytes == 0
    assert found.unreferenced == dry.commits + dry.nodes + dry.chunks
    assert found.unreferenced_bytes == dry.nbytes
    free = found.free_bytes
    repo.gc()
    found = repo.du()
    assert (found.unreferenced, found.unreferenced_bytes) == (0, 0)
    assert found.free_bytes >= free + 50_000


def test_it_prints_as_tables(repo):
    files = {"zarr.json": GROUP, "a/zarr.json": array(), "a/c/0": b"x" * 1000}
    commit(repo.session("main"), "first\nand more", **files)
    lines = str(repo.du()).splitlines()
    assert any(line.split()[:2] == ["main", "branch"] for line in lines)
    assert any(line.endswith(" first") for line in lines)
    row = next(line for line in lines if line.startswith("a "))
    assert row.split() == ["a", "40", "1,000", "1", "1,000", "1"]
    assert len(repo.du(commits=[repo.branches["main"]]).commit_usage) == 1


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"path": "nix"}, NotFoundError),
        ({"ref": "nix"}, RefNotFoundError),
        ({"commits": -1}, InvalidInputError),
    ],
)
def test_what_is_not_there_is_an_error(repo, options, error):
    with pytest.raises(error):
        repo.du(**options)
