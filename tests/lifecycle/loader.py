"""A data set and a loader as PyTorch has them: workers, shuffled indexes, epochs, a worker's death.

A data set knows its length and gives the element at an index. Workers get it inherited (fork) or
pickled (spawn), and each reads batches of indexes that the loader hands out.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import zarr

import vzarr


class HoldsArray:
    """The simplest way: it holds a ``zarr.Array`` of a read-only store."""

    def __init__(self, array: zarr.Array) -> None:
        self.array = array

    def __len__(self) -> int:
        return int(self.array.shape[0])

    def __getitem__(self, index: int) -> Any:
        return self.array[index]


class OpensLazily:
    """It holds path and commit, and each process opens them for itself at its first element."""

    def __init__(self, path: str, commit: str) -> None:
        self.path, self.commit = path, commit
        self._array: zarr.Array | None = None
        with vzarr.open(path, "r") as repo:
            self._length = zarr.open_array(repo.store(commit), path="x", mode="r").shape[0]

    def __len__(self) -> int:
        return int(self._length)

    def __getitem__(self, index: int) -> Any:
        if self._array is None:
            repo = vzarr.open(self.path, "r")
            self._array = zarr.open_array(repo.store(self.commit), path="x", mode="r")
        return self._array[index]


class HoldsRepository:
    """It holds an open repository: for workers that are forked, since that cannot be pickled."""

    def __init__(self, repo: vzarr.Repository, commit: str) -> None:
        self.repo, self.commit = repo, commit

    def __len__(self) -> int:
        return int(self._array.shape[0])

    @property
    def _array(self) -> zarr.Array:
        return zarr.open_array(self.repo.store(self.commit), path="x", mode="r")

    def __getitem__(self, index: int) -> Any:
        return self._array[index]


class WorkerDiedError(RuntimeError):
    """A worker ended by itself. PyTorch's loader raises ``RuntimeError`` too."""


def work(dataset: Any, pipe: Connection) -> None:
    """Give a batch for each list of indexes that comes."""
    while (indexes := pipe.recv()) is not None:
        if indexes == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        pipe.send((indexes, np.stack([dataset[index] for index in indexes])))


class Loader:
    """Gives batches of a data set in a new order at each iteration, read by worker processes."""

    def __init__(self, dataset: Any, *, batch: int, workers: int, method: str, seed: int) -> None:
        self.dataset = dataset
        self._batch = batch
        self._random = random.Random(seed)
        context = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(["vzarr", "zarr"])
        self._workers = []
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(dataset, theirs), daemon=True)
            process.start()
            theirs.close()
            self._workers.append((process, ours))

    def __iter__(self) -> Iterator[tuple[list[int], Any]]:
        order = list(range(len(self.dataset)))
        self._random.shuffle(order)
        batches = [order[at : at + self._batch] for at in range(0, len(order), self._batch)]
        waiting = 0
        for _, pipe in self._workers:
            if batches:
                pipe.send(batches.pop())
                waiting += 1
        while waiting:
            for pipe in wait([pipe for _, pipe in self._workers]):
                assert isinstance(pipe, Connection)
                try:
                    result = pipe.recv()
                except (EOFError, ConnectionResetError) as error:
                    raise WorkerDiedError("a worker died") from error
                waiting -= 1
                if batches:
                    pipe.send(batches.pop())
                    waiting += 1
                yield result

    def kill_one(self) -> None:
        """Have one worker die when it is asked for its next batch."""
        self._workers[0][1].send("die")

    def close(self) -> None:
        for process, pipe in self._workers:
            # One that died has no end of the pipe any more.
            with contextlib.suppress(BrokenPipeError):
                pipe.send(None)
            process.join(30)
            assert process.exitcode is not None
            pipe.close()
            process.close()
