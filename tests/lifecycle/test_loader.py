"""Training from a repository, as PyTorch's DataLoader does it."""

from __future__ import annotations

import contextlib
import os
import pickle

import numpy as np
import pytest
import zarr

import vzarr
from tests.lifecycle.loader import (
    HoldsArray,
    HoldsRepository,
    Loader,
    OpensLazily,
    WorkerDiedError,
)

TORTURE = "VZARR_TORTURE" in os.environ
SAMPLES, EPOCHS, WORKERS = 60, 3, 2

# Forking a process that has threads is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

DATA = np.arange(SAMPLES * 4).reshape(SAMPLES, 4)


@pytest.fixture
def filled(repo):
    """A repository with a tagged training set, of which the branch has moved on."""
    with repo.transaction("main", "data") as store:
        zarr.create_array(store, name="x", data=DATA, chunks=(4, 4))
    repo.tags.create("training")
    with repo.transaction("main", "other data") as store:
        zarr.open_array(store, path="x")[:] = -1
    return repo


def dataset_of(kind: type, repo: vzarr.Repository):
    if kind is OpensLazily:
        return OpensLazily(repo.path, repo.tags["training"])
    if kind is HoldsRepository:
        return HoldsRepository(repo, "training")
    return HoldsArray(zarr.open_array(repo.store("training"), path="x", mode="r"))


METHODS = ["fork", "forkserver", *(["spawn"] if TORTURE else [])]
CASES = [
    (kind, method)
    for kind in (HoldsArray, OpensLazily, HoldsRepository)
    for method in METHODS
    if not (kind is HoldsRepository and method != "fork")
]


@contextlib.contextmanager
def loading(dataset, method):
    loader = Loader(dataset, batch=8, workers=WORKERS, method=method, seed=1)
    try:
        yield loader
    finally:
        loader.close()


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_epochs(filled, kind, method):
    """Each sample comes once in an epoch, in another order, while others commit."""
    dataset = dataset_of(kind, filled)
    # The parent reads as well, before and after it has workers: to normalise, to show one.
    np.testing.assert_array_equal(dataset[3], DATA[3])
    orders = []
    with loading(dataset, method) as loader:
        for epoch in range(EPOCHS):
            order = []
            for indexes, batch in loader:
                np.testing.assert_array_equal(batch, DATA[indexes])
                order += indexes
            assert sorted(order) == list(range(SAMPLES))
            orders.append(tuple(order))
            with filled.transaction("main", f"epoch {epoch}") as store:
                zarr.open_array(store, path="x")[epoch] = epoch
    assert len(set(orders)) == EPOCHS
    np.testing.assert_array_equal(dataset[5], DATA[5])


@pytest.mark.parametrize("method", METHODS[:2])
def test_a_worker_dies(filled, method):
    """The loader says so; the parent, and a new loader on the same data set, go on."""
    dataset = dataset_of(HoldsArray, filled)
    with loading(dataset, method) as loader:
        next(iter(loader))
        loader.kill_one()
        with pytest.raises((WorkerDiedError, BrokenPipeError, ConnectionResetError)):
            for _ in range(3):
                list(loader)
    with loading(dataset, method) as loader:
        assert sum(len(indexes) for indexes, _ in loader) == SAMPLES
    filled.gc()
    # The dead keep nothing: their locks ended with them.
    assert all(session.alive for session in filled.sessions())
    with filled.transaction("main", "after") as store:
        zarr.open_array(store, path="x")[:] = 1


def test_a_repository_cannot_be_sent(filled):
    """It says what can: a store that reads, or the path."""
    with pytest.raises(TypeError):
        pickle.dumps(HoldsRepository(filled, "training"))


def test_with_pytorch(filled):
    data = pytest.importorskip("torch.utils.data", reason="PyTorch is not installed")
    loader = data.DataLoader(
        dataset_of(HoldsArray, filled), batch_size=8, shuffle=True, num_workers=WORKERS
    )
    for _ in range(EPOCHS):
        found = np.concatenate([batch.numpy() for batch in loader])
        np.testing.assert_array_equal(np.sort(found[:, 0]), DATA[:, 0])
