"""The repository against a plain model: commits are dicts, branches are names for them."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import vzarr
from tests.support import assert_sound
from tests.unit.test_hierarchy import GROUP, v2_array, v3_array
from vzarr.errors import ConflictError

keys = st.sampled_from(
    ["file", "g/file", "a/c/0", "a/c/1", "a/c/2", "g/b/0", "g/b/1", "g/b/0.1", "g", "g/b/c/0/1"]
)
documents = st.sampled_from(
    [
        ("zarr.json", GROUP),
        ("g/zarr.json", GROUP),
        ("a/zarr.json", v3_array(1)),
        ("a/zarr.json", v3_array(1, ".")),
        ("g/b/.zarray", v2_array(1, ".")),
        ("g/b/.zarray", v2_array(2, ".")),
        ("g/b/zarr.json", v3_array(2)),
    ]
)
values = st.binary(max_size=3)
branch_names = st.sampled_from(["main", "one", "two"])
Content = dict[str, bytes]


class RepositoryMachine(RuleBasedStateMachine):
    """Two writers with a session each, on branches that both move."""

    commits = Bundle("commits")

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "model.vzarr"
        self.repo = vzarr.open(self.path, durability="normal")
        first = self.repo.branches["main"]
        self.snapshots: dict[str, Content] = {first: {}}
        self.heads = {"main": first}
        self.sessions = [self.repo.session("main"), self.repo.session("main")]
        self.contents: list[Content] = [{}, {}]

    def teardown(self) -> None:
        self.repo.close()
        assert_sound(self.path)
        self.directory.cleanup()

    @rule(who=st.integers(0, 1), key=keys, value=values)
    def set(self, who, key, value):
        self.sessions[who].set(key, value)
        self.contents[who][key] = value

    @rule(who=st.integers(0, 1), document=documents)
    def set_document(self, who, document):
        self.sessions[who].set(*document)
        self.contents[who][document[0]] = document[1]

    @rule(who=st.integers(0, 1), key=keys | documents.map(lambda document: document[0]))
    def delete(self, who, key):
        self.sessions[who].delete(key)
        self.contents[who].pop(key, None)

    @rule(who=st.integers(0, 1), path=st.sampled_from(["", "a", "g", "g/b", "a/c", "g/b/c"]))
    def delete_below(self, who, path):
        self.sessions[who].delete_below(path)
        prefix = f"{path}/" if path else ""
        for key in [key for key in self.contents[who] if key.startswith(prefix)]:
            del self.contents[who][key]

    @rule(who=st.integers(0, 1))
    def discard(self, who):
        self.sessions[who].discard()
        self.contents[who] = dict(self.snapshots[self.sessions[who].base])

    @rule(who=st.integers(0, 1), amend=st.booleans())
    def commit(self, who, amend):
        session, ours = self.sessions[who], self.contents[who]
        branch, base = session.branch, session.base
        head = self.heads[branch]
        changed = ours != self.snapshots[base]
        assert session.has_changes == changed
        if not changed:
            return
        if amend and head == base:
            commit = session.amend("amended")
        elif head == base:
            commit = session.commit("plain")
        else:
            merged = self.merge(self.snapshots[base], ours, self.snapshots[head])
            try:
                commit = session.commit("rebased")
            except ConflictError:
                assert self.repo.branches[branch] == head
                return
            # What only one side changed is never lost, whatever vzarr could merge beside it.
            assert merged is not None
            self.contents[who] = merged
        self.heads[branch] = commit
        self.snapshots[commit] = dict(self.contents[who])

    def merge(self, base: Content, ours: Content, theirs: Content) -> Content | None:
        """Merge key by key; None where a key was changed on both sides to different values."""
        merged = {}
        for key in {*base, *ours, *theirs}:
            old, our, their = base.get(key), ours.get(key), theirs.get(key)
            if our not in (old, their) and their != old:
                return None
            value = their if our == old else our
            if value is not None:
                merged[key] = value
        return merged

    @rule(name=branch_names, to=branch_names)
    def reset_or_create(self, name, to):
        if to not in self.heads:
            return
        if name in self.heads:
            self.repo.branches.reset(name, to)
        else:
            self.repo.branches.create(name, at=to)
        self.heads[name] = self.heads[to]

    @precondition(lambda self: len(self.heads) > 1)
    @rule(who=st.integers(0, 1), name=branch_names)
    def open_session(self, who, name):
        if name in self.heads:
            self.sessions[who] = self.repo.session(name)
            self.contents[who] = dict(self.snapshots[self.heads[name]])

    @rule()
    def reopen(self):
        branches = [session.branch for session in self.sessions]
        self.repo.close()
        self.repo = vzarr.open(self.path, durability="normal")
        self.sessions = [self.repo.session(branch) for branch in branches]
        self.contents = [dict(self.snapshots[self.heads[branch]]) for branch in branches]

    @invariant()
    def sessions_show_their_content(self):
        for session, content in zip(self.sessions, self.contents, strict=True):
            assert sorted(session.keys()) == sorted(content)
            for key, value in content.items():
                assert session.get(key) == value

    @invariant()
    def branches_are_where_they_should_be(self):
        assert dict(self.repo.branches) == self.heads

    @rule(data=st.data())
    def an_old_snapshot_is_as_it_was(self, data):
        commit = data.draw(st.sampled_from(sorted(self.snapshots)))
        session = self.repo.session(commit)
        assert {key: session.get(key) for key in list(session.keys())} == self.snapshots[commit]

    @rule(data=st.data())
    def equal_content_has_equal_roots(self, data):
        one, two = (data.draw(st.sampled_from(sorted(self.snapshots))) for _ in range(2))
        equal = self.snapshots[one] == self.snapshots[two]
        assert (self.repo.root_id(one) == self.repo.root_id(two)) == equal
        assert bool(self.repo.diff(one, two)) != equal


def test_repository_equals_its_model():
    thorough = settings(max_examples=150, stateful_step_count=40, deadline=None)
    run_state_machine_as_test(RepositoryMachine, settings=thorough)
