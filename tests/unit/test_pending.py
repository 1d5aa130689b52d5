"""What a session's status tells of chunks is what the tree of its edits tells."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import zarr

import vzarr
from vzarr import workspace
from vzarr.diff import diff

GROUP = b'{"zarr_format":3,"node_type":"group"}'


@pytest.fixture
def filled(repo) -> vzarr.Repository:
    with repo.transaction("main", "make") as store:
        for path, chunks in (("one", (1,)), ("group/two", (1, 2)), ("group/empty", (2, 2))):
            shape = (40,) if len(chunks) == 1 else (40, 60)
            made = zarr.create_array(store, name=path, shape=shape, chunks=chunks, dtype="i4")
            if path != "group/empty":
                made[:] = np.arange(made.size).reshape(shape) + 1
    return repo


@pytest.fixture
def folds(monkeypatch) -> list[int]:
    """Notes each time that edits are put into a tree."""
    noted: list[int] = []
    original = workspace.Hierarchy.edit

    def edit(self, edits):
        noted.append(len(edits))
        return original(self, edits)

    monkeypatch.setattr(workspace.Hierarchy, "edit", edit)
    return noted


def told(changes) -> list[object]:
    return [
        (change.path, change.kind, change.change, change.chunks, list(change.document_changes()))
        for change in changes
    ]


def by_tree(session) -> list[object]:
    work = session._work
    return told(diff(work.overlay, work.base, work.root, lambda *_: None))


@pytest.mark.parametrize("seed", range(5))
def test_edits_of_chunks_alone(filled, folds, seed):
    dice = random.Random(seed)
    session = filled.session("main")
    for _ in range(dice.choice([1, 10, 300])):
        key = dice.choice(
            [
                f"one/c/{dice.randrange(45)}",
                f"group/two/c/{dice.randrange(41)}/{dice.randrange(31)}",
                f"group/empty/c/{dice.randrange(2)}/0",
            ]
        )
        match dice.randrange(3):
            case 0:
                session.delete(key)
            case 1:
                session.set(key, dice.randbytes(4))
            case 2 if (value := session.get(key)) is not None:
                # To what it is already: no change at all.
                session.set(key, bytes(value))
    status = session.status()
    assert folds == []
    found = told(status.diff)
    lines, start = str(status), (3, 4)
    after = [list(change.iter_kinds(start)) for change in status.diff]
    assert found == by_tree(session)
    assert len(folds) <= 1
    again = session.status()
    assert told(again.diff) == found
    assert str(again) == lines
    assert [list(change.iter_kinds(start)) for change in again.diff] == after
    assert again.is_clean == status.is_clean == (not found)
    session.close()


@pytest.mark.parametrize("key", ["/one/c/0", "group//two/c/0/0", "one//c/0"])
def test_a_key_with_an_empty_name_is_a_file(filled, key):
    session = filled.session("main")
    session.set(key, b"1234")
    assert told(session.status().diff) == by_tree(session)
    assert not session.status().modified.chunks


def test_an_array_in_the_place_of_one_of_another_rank(filled):
    session = filled.session("main")
    session.delete_below("one")
    made = zarr.create_array(session.store, name="one", shape=(4, 4), chunks=(2, 2), dtype="i4")
    made[:] = 1
    assert "one" in str(session.status())
    session.discard()


def test_what_was_told_stays_while_the_session_goes_on(filled):
    session = filled.session("main")
    session.set("one/c/3", b"1234")
    status = session.status()
    session.set("one/c/4", b"1234")
    session.delete("one/c/3")
    assert status.modified.chunks == {"one": [(3,)]}
    assert session.status().modified.chunks == {"one": [(4,)]}
    assert session.status().deleted.chunks == {"one": [(3,)]}
    assert status.diff["one"].old[3] == 4
    session.discard()
    assert session.status().is_clean
    session.close()


@pytest.mark.parametrize("key", ["new/zarr.json", "one/zarr.json", "one/other", "plain", "one"])
def test_other_edits_are_told_by_the_tree(filled, folds, key):
    session = filled.session("main")
    session.set("one/c/3", b"1234")
    session.set(key, json.dumps(json.loads(GROUP)).encode())
    status = session.status()
    assert folds == [2]
    assert told(status.diff) == by_tree(session)
    assert len(status.diff) >= 1
    session.close()
