"""What opening, committing and comparing cost does not grow with what the file holds.

Counted, not timed: pages that are looked at ahead of LMDB, nodes that are decoded, records that
are written. They follow the depth of the trees, which grows by one for a file 32 times as big.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vzarr
from tests.support import assert_sound
from vzarr import guard, objects
from vzarr.environment import Txn
from vzarr.hierarchy import Hierarchy

SIZES = (4_000, 1_000_000 if "VZARR_TORTURE" in os.environ else 64_000)
SIDE = 200
AUTHOR = "Test <test@example.org>"


@pytest.fixture(scope="module", params=SIZES)
def big(request, tmp_path_factory) -> Iterator[Path]:
    """A repository with one array of so many chunks."""
    size = request.param
    path = Path(tmp_path_factory.mktemp("big")) / "big.vzarr"
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [size // SIDE, SIDE],
        "data_type": "int64",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 1]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
    }
    with vzarr.open(path, author=AUTHOR) as repo:
        session = repo.session("main")
        session.set("a/zarr.json", json.dumps(document).encode())
        for number in range(size):
            session.set(key(number), number.to_bytes(8, "little"))
        session.commit("fill")
        session.close()
    yield path
    assert_sound(path)


def key(number: int) -> str:
    return f"a/c/{number // SIDE}/{number % SIDE}"


@pytest.fixture
def counts(monkeypatch) -> Counter[str]:
    """What has happened so far, with nothing remembered from before."""
    found: Counter[str] = Counter()

    def count(owner: object, name: str, what: str) -> None:
        original: Callable[..., object] = getattr(owner, name)

        def counting(*arguments: object, **options: object) -> object:
            found[what] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, counting)

    monkeypatch.setattr(objects, "_nodes", objects.Cache(objects._CACHE_BYTES))
    count(guard.Guard, "_read_page", "pages")
    count(objects, "decode_node", "nodes")
    count(Txn, "put", "puts")
    return found


def depth(view: Hierarchy) -> int:
    """How many levels of nodes lie over a chunk: of its index, and of the directory."""
    entry = view.entry("a")
    assert entry is not None
    assert entry.index is not None
    levels = 2 + view._store.load(entry.index.digest).level
    assert levels > 2
    return levels


def test_a_commit_of_one_chunk(big, counts):
    with vzarr.open(big, "r+", author=AUTHOR) as repo:
        assert counts["pages"] < 20
        for number in range(3):
            counts.clear()
            session = repo.session("main")
            session.set(key(1234 + number), b"changed")
            session.commit("one chunk")
            levels = depth(session.hierarchy)
            # New nodes, the chunk, root, commit, branch and move, with some room for a lease.
            assert levels < counts["puts"] <= levels + 8
            assert counts["nodes"] <= 3 * levels
            # A way of four pages for each record that is read or written.
            assert counts["pages"] <= 4 * (counts["puts"] + counts["nodes"] + 12)
            session.close()


def test_a_commit_decodes_nothing_that_it_made(big, counts):
    with vzarr.open(big, "r+", author=AUTHOR) as repo:
        for number in range(3):
            with repo.transaction("main", "one chunk") as store:
                store.session.set(key(2345), b"%d" % number)
                assert number == 0 or counts["nodes"] == 0
            assert number == 0 or counts["nodes"] == 0
            counts.clear()


def test_status_and_diff_of_one_chunk(big, counts):
    with vzarr.open(big, "r+", author=AUTHOR) as repo:
        session = repo.session("main")
        session.set(key(777), os.urandom(8))
        counts.clear()
        status = session.status()
        levels = depth(session.hierarchy)
        assert status.modified.chunks == {"a": [divmod(777, SIDE)]}
        assert counts["nodes"] <= 3 * levels
        session.commit("one more")
        session.close()
        objects._nodes = objects.Cache(objects._CACHE_BYTES)
        counts.clear()
        (node,) = repo.diff("main~1", "main")
        assert [chunk.coordinates for chunk in node.chunks] == [divmod(777, SIDE)]
        assert counts["nodes"] <= 4 * levels
        assert counts["puts"] == 0


def test_opening_and_reading_one_chunk(big, counts):
    with vzarr.open(big, "r") as repo:
        session = repo.session("main~0")
        assert session.get(key(4)) == (4).to_bytes(8, "little")
        levels = depth(session.hierarchy)
        assert counts["nodes"] <= levels + 1
        assert counts["pages"] <= 10 + 4 * (counts["nodes"] + 6)
