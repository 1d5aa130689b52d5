"""Histories for Icechunk repositories, and how to see that both sides have the same."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import zarr

import vzarr
from vzarr.errors import MergeConflict


def open_at(place: Any) -> Any:
    """Open a local directory, or a storage, with Icechunk itself."""
    import icechunk

    if isinstance(place, str):
        place = icechunk.local_filesystem_storage(place)
    return icechunk.Repository.open(place)


def contents(store: Any) -> dict[str, Any]:
    """Give all groups and arrays of a store as zarr reads them: attributes, metadata, values."""
    found: dict[str, Any] = {}
    try:
        root = zarr.open_group(store, mode="r")
    except FileNotFoundError:
        return found
    found[""] = dict(root.attrs)
    for path, node in root.members(max_depth=None):
        facts: dict[str, Any] = {"attributes": dict(node.attrs)}
        if isinstance(node, zarr.Array):
            facts |= {"metadata": node.metadata.to_dict(), "values": np.asarray(node[...])}
        found[path] = facts
    return found


def assert_same(one: Any, other: Any) -> None:
    """See that two stores show the same."""
    first, second = contents(one), contents(other)
    assert first.keys() == second.keys()
    for path, facts in first.items():
        others = second[path]
        if "values" in facts:
            np.testing.assert_array_equal(facts.pop("values"), others.pop("values"))
        assert repr(facts) == repr(others), path


def snapshots(theirs: Any) -> dict[str, str]:
    """Find the snapshot of each commit: commit id → snapshot id."""
    found = {}
    heads = [theirs.lookup_branch(name) for name in theirs.list_branches()]
    heads += [theirs.lookup_tag(name) for name in theirs.list_tags()]
    for head in heads:
        for info in theirs.ancestry(snapshot_id=head):
            ours = info.metadata.get("vzarr")
            if ours is not None:
                assert found.setdefault(ours["commit"], info.id) == info.id, "replayed twice"
    return found


def commits(repo: vzarr.Repository) -> dict[str, vzarr.Commit]:
    """Give all commits that branches and tags lead to, by id."""
    heads = {*repo.branches.values(), *repo.tags.values()}
    return {commit.id: commit for head in heads for commit in repo.log(head)}


def assert_replayed(repo: vzarr.Repository, place: Any) -> None:
    """See with Icechunk's own reader that all commits, branches and tags are there."""
    theirs = open_at(place)
    found, ours = snapshots(theirs), commits(repo)
    assert found.keys() >= ours.keys()
    for identity, commit in ours.items():
        info = theirs.lookup_snapshot(found[identity])
        assert info.message == commit.message
        assert info.metadata["author"] == commit.author
        assert info.metadata["vzarr"]["parents"] == list(commit.parents)
        assert info.metadata["vzarr"]["root"] == commit.root
        if commit.parents:
            assert info.parent_id == found[commit.parents[0]]
        session = repo.session(identity)
        assert_same(session.store, theirs.readonly_session(snapshot_id=info.id).store)
    for name, head in repo.branches.items():
        assert theirs.lookup_branch(name) == found[head]
    for name, head in repo.tags.items():
        assert theirs.lookup_tag(name) == found[head]


def assert_equal(one: vzarr.Repository, other: vzarr.Repository) -> None:
    """See that two repositories have the same commits, by id, and the same names for them."""
    assert dict(one.branches) == dict(other.branches)
    assert one.tags.details() == other.tags.details()
    assert commits(one) == commits(other)


def write(repo: vzarr.Repository, value: int, *, branch: str = "main", name: str = "a") -> str:
    """Commit an array of two chunks with a value."""
    with repo.transaction(branch, f"write {value}") as store:
        group = zarr.open_group(store, mode="a")
        array = group.require_array(name, shape=(4,), chunks=(2,), dtype="i4", fill_value=-1)
        array[:] = value
    return repo.branches[branch]


# ── random histories ─────────────────────────────────────────────────────────────────────────────


class Historian:
    """Makes a history of all that a history can have, the same for the same seed."""

    def __init__(self, repo: vzarr.Repository, seed: int) -> None:
        self.repo = repo
        self.random = random.Random(seed)
        self.number = 0

    def write(self, steps: int) -> None:
        for _ in range(steps):
            self.number += 1
            self._step()

    def _step(self) -> None:
        kind = self.random.choice(["commit"] * 7 + ["branch", "merge", "merge", "tag", "drop"])
        branches = list(self.repo.branches)
        branch = self.random.choice(branches)
        if kind == "branch" and len(branches) < 4:
            self.repo.branches.create(f"b/{self.number}", branch)
        elif kind == "merge":
            self._merge(branch, self.random.choice(branches))
        elif kind == "tag":
            self.repo.tags.create(f"v{self.number}", branch, f"tag {self.number}")
        elif kind == "drop" and branch != "main":
            self.repo.branches.delete(branch)
        else:
            self._commit(branch)

    def _merge(self, source: str, into: str) -> None:
        if source != into:
            try:
                self.repo.merge(source, into=into, strategy="theirs")
            except MergeConflict:
                self.repo.merge(source, into=into, strategy="ours")

    def _commit(self, branch: str) -> None:
        session = self.repo.session(branch)
        for _ in range(self.random.randrange(4)):
            with warnings.catch_warnings(action="ignore"):
                self._edit(session)
        odd = {"z": 1, "a": [float("nan"), 2**63, {"ö": None}]}
        metadata = odd if self.number % 5 == 0 else None
        session.commit(f"step {self.number}\n\nä", metadata=metadata, allow_empty=True)
        session.close()

    def _edit(self, session: vzarr.Session) -> None:
        root = zarr.open_group(session.store, mode="a")
        arrays = [path for path, node in root.members(None) if isinstance(node, zarr.Array)]
        groups = [path for path, node in root.members(None) if isinstance(node, zarr.Group)]
        where = self.random.choice([*groups, ""])
        name = self.random.choice("pqrst")
        path = f"{where}/{name}" if where else name
        kind = self.random.choice(["create", "create", "write", "write", "write", "resize"])
        if self.random.random() < 0.35:
            kind = self.random.choice(["group", "attributes", "move", "delete", "again"])
        if kind == "create" and path.count("/") < 3:
            self._create(root, path)
        elif kind == "group" and path.count("/") < 3:
            root.create_group(path, attributes={"n": self.number}, overwrite=True)
        elif kind == "attributes":
            node = root[self.random.choice([*arrays, *groups])] if arrays or groups else root
            node.attrs["k"] = self.number
        elif kind == "move" and groups + arrays:
            self._move(session, self.random.choice(groups + arrays), path)
        elif kind == "delete" and groups + arrays:
            del root[self.random.choice(groups + arrays)]
        elif kind == "again" and arrays:
            self._create(root, self.random.choice(arrays))
        elif arrays:
            self._change(root[self.random.choice(arrays)], kind)

    def _create(self, root: zarr.Group, path: str) -> None:
        options = self.random.choice(
            [
                {"shape": (6, 5), "chunks": (2, 2), "dtype": "i4", "compressors": None},
                {"shape": (6, 5), "chunks": (2, 5), "dtype": "f8"},
                {"shape": (8, 8), "chunks": (2, 2), "shards": (4, 4), "dtype": "i2"},
                {"shape": (5,), "chunks": (2,), "dtype": "str"},
                {"shape": (40,), "chunks": (30,), "dtype": "f8", "compressors": None},
                {"shape": (), "chunks": (), "dtype": "u1"},
            ]
        )
        array = root.create_array(path, overwrite=True, **options)
        self._change(array, "write")

    def _change(self, array: zarr.Array, kind: str) -> None:
        if kind == "resize" and array.ndim:
            axes = [max(0, length + self.random.randrange(-4, 5)) for length in array.shape]
            array.resize(tuple(axes))
            return
        region = tuple(
            slice(*sorted((self.random.randrange(n + 1), self.random.randrange(n + 1))))
            for n in array.shape
        )
        value = self.random.choice([0, self.number, self.number + 1]) % 120
        array[region] = f"s{value}" if array.ndim == 1 and array.shape[0] < 20 else value

    def _move(self, session: vzarr.Session, source: str, destination: str) -> None:
        try:
            session.move(source, destination)
        except vzarr.VzarrError:
            # Into itself, or to where something is.
            return
