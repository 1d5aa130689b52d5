"""``repo.run``: many processes append to one array, and each row is there once.

The full number, eight processes with a hundred rows each, is run with ``VZARR_TORTURE=1``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import vzarr
from tests.processes import Other, threads
from vzarr import filelocks
from vzarr.errors import ConflictError
from vzarr.turns import is_taken

TORTURE = "VZARR_TORTURE" in os.environ
WRITERS, ROWS = (8, 100) if TORTURE else (4, 25)
SECONDS = 60


@pytest.fixture
def filled(repo: vzarr.Repository) -> vzarr.Repository:
    with repo.transaction("main", "create") as store:
        zarr.create_array(store, name="rows", shape=(0, 2), chunks=(10, 2), dtype="i4")
    return repo


def append(store: Any, writer: int, number: int) -> int:
    """Append a row, and give the length then."""
    return int(zarr.open_array(store, path="rows").append(np.array([[writer, number]]))[0])


def append_rows(pipe: Connection, path: Path, writer: int, options: dict[str, Any]) -> list[int]:
    with vzarr.open(path) as repo:
        pipe.send("ready")
        pipe.recv()
        return [
            repo.run(lambda store, n=number: append(store, writer, n), "main", "append", **options)[
                1
            ]
            for number in range(ROWS)
        ]


def check(repo: vzarr.Repository, lengths: list[list[int]]) -> None:
    rows = zarr.open_array(repo.store("main"), path="rows")[:]
    assert rows.shape == (WRITERS * ROWS, 2)
    for writer in range(WRITERS):
        # Each row once, and those of one writer in their order.
        assert rows[rows[:, 0] == writer, 1].tolist() == list(range(ROWS))
        # Each where it was told that it would be.
        places = [length - 1 for length in lengths[writer]]
        assert rows[places].tolist() == [[writer, number] for number in range(ROWS)]
    # One commit a row, each a row longer than the one before.
    commits = repo.log("main")
    assert len(commits) == WRITERS * ROWS + 2
    for commit, length in ((commits[0], WRITERS * ROWS), (commits[WRITERS * ROWS // 2], None)):
        shape = zarr.open_array(repo.store(commit.id), path="rows").shape
        assert shape[0] == (length or WRITERS * ROWS - WRITERS * ROWS // 2)
    assert [found for found in repo.sessions() if found.kind != "reader"] == []


OPTIONS = [pytest.param({}, id="optimistic")]
if filelocks.SUPPORTED:
    OPTIONS.append(pytest.param({"exclusive": True}, id="exclusive"))


@pytest.mark.parametrize("options", OPTIONS)
def test_processes_append_to_one_array(
    filled: vzarr.Repository, path: Path, options: dict[str, Any]
) -> None:
    others = [
        Other(append_rows, path, writer, options, method="spawn") for writer in range(WRITERS)
    ]
    for other in others:
        assert other.receive() == "ready"
    begun = time.monotonic()
    for other in others:
        other.send()
    lengths = [other.result() for other in others]
    seconds = time.monotonic() - begun
    assert seconds < SECONDS
    if TORTURE:
        print(f"{WRITERS} by {ROWS} rows, {options or 'optimistic'}: {seconds:.1f} s")
    check(filled, lengths)
    assert not filelocks.SUPPORTED or not is_taken(filled._environment, "main")


def test_threads_append_to_one_array(filled: vzarr.Repository) -> None:
    lengths: list[list[int]] = [[] for _ in range(WRITERS)]

    def work(writer: int) -> None:
        for number in range(ROWS):
            _, length = filled.run(
                lambda store: append(store, writer, number)  # noqa: B023 - called at once
            )
            lengths[writer].append(length)

    with threads(*[lambda writer=writer: work(writer) for writer in range(WRITERS)]):
        pass
    check(filled, lengths)


def test_run_beside_all_other_writers(filled: vzarr.Repository) -> None:
    """Exclusive ones, optimistic ones, and ones that do not care for the array."""
    rows: list[Callable[[int], object]] = [
        lambda number: filled.run(lambda store: append(store, 0, number), retries=1000),
        lambda number: filled.run(lambda store: append(store, 1, number), exclusive=True),
        lambda number: filled.run(lambda store: store.session.set("file", b"%d" % number)),
    ]

    def work(write: Callable[[int], object]) -> None:
        for number in range(ROWS):
            write(number)

    with threads(*[lambda write=write: work(write) for write in rows]):
        pass
    found = zarr.open_array(filled.store("main"), path="rows")[:]
    for writer in range(2):
        assert found[found[:, 0] == writer, 1].tolist() == list(range(ROWS))
    assert len(found) == 2 * ROWS
    assert filled.session("main").get("file") == b"%d" % (ROWS - 1)


def test_a_run_that_fails_leaves_nothing(filled: vzarr.Repository) -> None:
    before = filled.branches["main"]

    def fail(store: Any) -> None:
        append(store, 0, 0)
        raise ZeroDivisionError

    for exclusive in (False, filelocks.SUPPORTED):
        with pytest.raises(ZeroDivisionError):
            filled.run(fail, exclusive=exclusive)
    assert filled.branches["main"] == before
    assert filled.sessions() == []


def test_a_conflict_that_the_function_raises_is_one(filled: vzarr.Repository) -> None:
    attempts: list[str] = []

    def fail(store: Any) -> None:
        attempts.append(store.session.id)
        append(store, 0, len(attempts))
        if len(attempts) < 3:
            raise ConflictError("not now")

    filled.run(fail)
    # Each attempt has a session of its own, on the head as it is then.
    assert len(set(attempts)) == 3
    assert zarr.open_array(filled.store("main"), path="rows")[:].tolist() == [[0, 3]]
