"""zarr's two state machines, alone and with commits between their steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import hypothesis.strategies as st
import pytest
import zarr
from hypothesis import HealthCheck, note, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)
from zarr.testing.stateful import (
    SyncStoreWrapper,
    ZarrHierarchyStateMachine,
    ZarrStoreStateMachine,
)

from vzarr import Repository, Session, VzarrStore

# The machines make arrays of every dtype.
pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")


class Versioned(RuleBasedStateMachine):
    """Rules for a machine beside: commit, begin anew, discard, and look at earlier commits."""

    repo: Repository
    session: Session

    def begin(self, repo: Repository) -> VzarrStore:
        self.repo = repo
        self.session = repo.session("main")
        self.snapshots: dict[str, Mapping[str, bytes]] = {}
        return self.session.store

    def contents(self) -> Mapping[str, bytes]:
        """What the model holds now."""
        raise NotImplementedError

    def swap(self, store: VzarrStore) -> None:
        """Go on with another store."""
        raise NotImplementedError

    @rule()
    def commit(self) -> None:
        note("(commit)")
        # Empty or not: what an example does must not depend on what the one before it left.
        commit = self.session.commit("a step", allow_empty=True)
        self.snapshots[commit] = self.contents()

    @rule()
    def reopen(self) -> None:
        self.commit()
        note("(reopen)")
        self.session = self.repo.session("main")
        self.swap(self.session.store)

    @rule(prefix=st.sampled_from(["", "a", "0", "c"]))
    def discard(self, prefix: str) -> None:
        self.commit()
        note("(discard)")
        self.session.set("stray", b"stray")
        self.session.delete_below(prefix)
        self.session.set(f"{prefix}/stray".lstrip("/"), b"stray")
        self.session.discard()
        assert not self.session.has_changes

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data())
    def look_back(self, data: st.DataObject) -> None:
        commit, expected = data.draw(st.sampled_from(list(self.snapshots.items())))
        note(f"(look back) at {commit}")
        store = self.repo.store(commit)
        assert sorted(SyncStoreWrapper(store).list()) == sorted(expected)
        assert {key: store.get_sync(key).to_bytes() for key in expected} == expected


class VersionedStore(Versioned, ZarrStoreStateMachine):
    def __init__(self, repo: Repository) -> None:
        super().__init__(self.begin(repo))

    def contents(self) -> Mapping[str, bytes]:
        return {key: value.to_bytes() for key, value in self.model.items()}

    def swap(self, store: VzarrStore) -> None:
        self.store = SyncStoreWrapper(store)


class VersionedHierarchy(Versioned, ZarrHierarchyStateMachine):
    def __init__(self, repo: Repository) -> None:
        super().__init__(self.begin(repo))

    def contents(self) -> Mapping[str, bytes]:
        # zarr's machine gives the two arrays it makes other dimension names at times, so that the
        # model knows the keys and not every document.
        return {key: bytes(self.session.get(key)) for key in self.model._store_dict}

    def swap(self, store: VzarrStore) -> None:
        self.store = store


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send every value to the file at once."""
    monkeypatch.setattr("vzarr.changes.BATCH_BYTES", 1)


@pytest.fixture(autouse=True)
def newest_features() -> Iterator[None]:
    known = zarr.config.get("array.rectilinear_chunks", None) is not None
    with zarr.config.set({"array.rectilinear_chunks": True} if known else {}):
        yield


def run(machine: Callable[[], RuleBasedStateMachine], examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


class TestStoreMachine:
    def test_fresh(self, repo):
        run(lambda: ZarrStoreStateMachine(repo.session("main").store), 60)

    def test_staged(self, repo, staged):
        run(lambda: ZarrStoreStateMachine(repo.session("main").store), 60)

    def test_committed(self, repo):
        run(lambda: VersionedStore(repo), 120)

    def test_staged_and_committed(self, repo, staged):
        run(lambda: VersionedStore(repo), 60)


class TestHierarchyMachine:
    def test_fresh(self, repo):
        run(lambda: ZarrHierarchyStateMachine(repo.session("main").store), 40)

    def test_staged(self, repo, staged):
        run(lambda: ZarrHierarchyStateMachine(repo.session("main").store), 20)

    def test_committed(self, repo):
        run(lambda: VersionedHierarchy(repo), 60)

    def test_staged_and_committed(self, repo, staged):
        run(lambda: VersionedHierarchy(repo), 40)
