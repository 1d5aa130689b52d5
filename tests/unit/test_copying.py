"""Copies of a data file: pages as they are, or filled anew in the order of keys."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import pytest

import vzarr
from tests.processes import Child
from tests.unit.test_compaction import listing
from tests.unit.test_garbage import entries, make_garbage, write
from tests.unit.test_session import commit
from vzarr import copying, lmdbfile
from vzarr.draft import Draft
from vzarr.environment import DATABASES
from vzarr.errors import CorruptError, FullError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs open file locks")

PAGE = 4096


@pytest.fixture
def many(repo):
    """A repository of some hundred small objects, which came in the order of their digests."""
    for number in range(120):
        write(repo, b"%d" % number * 20)
    return repo


def leaves(repo) -> int:
    with repo._environment.read() as txn:
        return sum(txn.leaf_pages(name) for name in DATABASES)


def fewest_leaves(repo) -> float:
    """Give how many pages the entries would fill to the last byte."""
    with repo._environment.read() as txn:
        found = (len(key) + len(data) + 10 for name in DATABASES for key, data in txn.scan(name))
        return sum(found) / (PAGE - 16)


def test_small_objects_fill_their_pages(many, tmp_path):
    content, least = entries(many), fewest_leaves(many)
    assert leaves(many) > 1.25 * least
    many.backup(tmp_path / "copy.vzarr", verify=None)
    many.compact(gc=False)
    # A database has a last page that is not full.
    assert leaves(many) < 1.1 * least + len(DATABASES)
    assert os.path.getsize(many.path) < os.path.getsize(tmp_path / "copy.vzarr")
    assert entries(many) == content
    facts = many._environment.info()
    assert facts.used_bytes == facts.file_bytes


def test_large_chunks_are_copied_by_pages(repo, monkeypatch):
    """They fill their pages already, and LMDB would have each in memory once more."""
    commit(repo.session("main"), **{f"large/{number}": os.urandom(1 << 20) for number in range(4)})
    content = entries(repo)
    monkeypatch.setattr(copying, "map_file", None)
    report = repo.compact(verify=None)
    monkeypatch.undo()
    assert report.after < (4 << 20) + 50 * PAGE
    assert entries(repo) == content


def test_large_chunks_among_many_small_ones_stay_whole(many):
    large = os.urandom(300_000)
    commit(many.session("main"), large=large)
    before = leaves(many)
    many.compact()
    assert leaves(many) < before
    assert many.session("main").get("large") == large


@pytest.mark.parametrize("batch", [1, 5_000, 30_000])
def test_it_is_filled_in_bounded_txns(many, monkeypatch, batch):
    monkeypatch.setattr(copying, "_BATCH_BYTES", batch)
    content, calls = entries(many), []
    report = many.compact(gc=False, progress=lambda *call: calls.append(call))
    assert entries(many) == content
    copies = [(done, total) for done, total, what in calls if what == "copy"]
    assert len(copies) > 2
    assert copies == sorted(copies)
    assert copies[-1][0] == copies[-1][1]
    # What the meta page counts is there, although nobody wrote the last pages that came free.
    found = lmdbfile.probe(many.path)
    assert found.required_bytes <= found.file_bytes == report.after
    write(many, b"on")


def test_the_pages_of_a_copy_have_a_size_of_their_own(many, tmp_path):
    """Those of a file that was made on another machine may be larger."""
    with (
        Draft(str(tmp_path / "copy.vzarr"), 0o600) as draft,
        many._environment.read() as txn,
        many._environment._access.inside() as opened,
    ):
        larger = dataclasses.replace(opened, page_size=4 * PAGE)
        copying.copy_densely(larger, txn, draft, lambda *_: None)
        assert draft.nbytes == lmdbfile.probe(draft.path).required_bytes


def test_keys_that_are_not_in_order_are_damage(many, monkeypatch):
    original = copying._entries

    def backwards(*arguments):
        yield from reversed(list(original(*arguments)))

    monkeypatch.setattr(copying, "_entries", backwards)
    inode = os.stat(many.path).st_ino
    with pytest.raises(CorruptError, match="not in order"):
        many.compact(verify=None)
    assert os.stat(many.path).st_ino == inode
    assert listing(many) == ["test.vzarr", "test.vzarr-lock"]
    write(many, b"on")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_it_can_be_interrupted_between_txns(many, monkeypatch, error):
    monkeypatch.setattr(copying, "_BATCH_BYTES", 5_000)
    calls = []

    def interrupt(*call: object) -> None:
        calls.append(call)
        if len(calls) == 3:
            raise error

    readers = many._environment.info().readers
    with pytest.raises(error):
        many.compact(gc=False, progress=interrupt)
    assert [what for _, _, what in calls] == ["copy"] * 3
    assert listing(many) == ["test.vzarr", "test.vzarr-lock"]
    # No txn is left that would keep pages from being used again.
    assert many._environment.info().readers == readers
    write(many, b"on")
    many.compact()


def test_a_disk_that_is_full_leaves_the_file_as_it_is(many):
    size = os.path.getsize(many.path)

    def limited(_):
        import resource

        with vzarr.open(many.path) as repo:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 4, size // 4))
            with pytest.raises(FullError):
                repo.compact(gc=False)
            return sorted(os.listdir(os.path.dirname(repo.path)))

    many.close()
    assert Child(limited).result() == ["test.vzarr", "test.vzarr-lock"]


def test_a_damaged_page_is_told_and_never_kills(path: Path):
    """The entries are read through LMDB, which would walk into it."""
    with vzarr.open(path, author="Test") as repo:
        make_garbage(repo)
    whole, step = path.read_bytes(), 1 if "VZARR_TORTURE" in os.environ else 9

    def compact(_) -> str:
        try:
            with vzarr.open(path) as repo:
                repo.compact(gc=False, verify=None)
        except CorruptError:
            return "told"
        return "compacted"

    outcomes = []
    for page in range(2, len(whole) // PAGE, step):
        for filling in (b"\0", b"\xff"):
            path.write_bytes(whole[: PAGE * page] + filling * PAGE + whole[PAGE * (page + 1) :])
            outcomes.append(Child(compact).result())
    path.unlink()
    # What is in values and on free pages does not concern LMDB.
    assert {"told", "compacted"} == set(outcomes)
