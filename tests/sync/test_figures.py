"""The cost of a small push, in time and in bytes."""

from __future__ import annotations

import shutil
import statistics
import time

import pytest

import vzarr
from tests.sync.conftest import AUTHOR

_CHUNKS = 100_000
_DOCUMENT = (
    b'{"zarr_format":3,"node_type":"array","shape":[%d],"data_type":"uint8","chunk_grid":{"name":'
    b'"regular","configuration":{"chunk_shape":[1]}},"chunk_key_encoding":{"name":"default"},'
    b'"fill_value":0,"codecs":[{"name":"bytes"}]}' % _CHUNKS
)


@pytest.fixture
def large(tmp_path):
    """A repository with an array of a hundred thousand different chunks, and a clone of it."""
    path = tmp_path / "large.vzarr"
    with vzarr.open(path, author=AUTHOR) as repo:
        session = repo.session("main")
        session.set("a/zarr.json", _DOCUMENT)
        for number in range(_CHUNKS):
            session.set(f"a/c/{number}", b"chunk %d" % number)
        session.commit("all")
        # A copy of the file is as good as a clone, and sooner made.
        shutil.copy(path, tmp_path / "clone.vzarr")
        with vzarr.open(tmp_path / "clone.vzarr", author=AUTHOR) as clone:
            clone.remotes.add("origin", path)
            yield repo, clone
        assert repo.check().ok


def test_one_changed_chunk_is_pushed_for_little(large):
    repo, clone = large
    seconds, nbytes = [], []
    for number in range(7):
        session = clone.session("main")
        session.set(f"a/c/{number * 14_000}", b"changed %d" % number)
        session.commit("one chunk")
        begun = time.perf_counter()
        report = clone.push()
        seconds.append(time.perf_counter() - begun)
        nbytes.append(report.wire_bytes)
        assert report.chunks == 1
    assert repo.root_id() == clone.root_id()
    # One root, a node a level, a commit, a chunk, and what is said about them.
    assert max(nbytes) < 20_000
    # Meant to be a tenth of a second; the machine may be busy.
    assert statistics.median(seconds) < 0.3
