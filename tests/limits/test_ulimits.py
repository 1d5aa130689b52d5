"""What ``ulimit`` limits: address space, the size of files, open files; and many repositories."""

from __future__ import annotations

import errno
import os
import random
from contextlib import ExitStack
from pathlib import Path

import pytest

import vzarr
from tests.limits.conftest import MIB, address_space, limit, limited
from tests.processes import Child
from tests.support import assert_sound


def fill(path: Path, count: int) -> dict[str, bytes]:
    """Make a repository with so many files of 1 MiB."""
    files = {f"f{number}": random.Random(number).randbytes(MIB) for number in range(count)}
    with vzarr.open(path) as repo, repo.transaction() as store:
        for key, data in files.items():
            store.session.set(key, data)
    return files


def read_all(repo: vzarr.Repository) -> dict[str, bytes]:
    session = repo.session("main")
    return {key: bytes(session.get(key)) for key in session.keys("")}


def test_little_address_space(path: Path) -> None:
    """A file of 40 MiB is read and written by a process that may use 600 MiB more."""
    files = fill(path, 40)

    def work() -> None:
        with vzarr.open(path) as repo:
            assert read_all(repo) == files
            with repo.transaction() as store:
                store.session.set("more", b"1")

    limited(work, more_space=600 * MIB)
    with vzarr.open(path) as repo:
        assert read_all(repo) == files | {"more": b"1"}


def test_too_little_address_space(path: Path) -> None:
    fill(path, 40)

    def work() -> None:
        with pytest.raises(vzarr.FullError, match="ulimit -v"):
            vzarr.open(path)
        # The limit is gone, and all is well: nothing of the first attempt is in the way.
        limit("AS", None)
        with vzarr.open(path) as repo, repo.transaction() as store:
            store.session.set("more", b"1")

    limited(work, more_space=64 * MIB)


def test_memory_runs_out_within_a_transaction(path: Path) -> None:
    files = fill(path, 4)
    large = random.Random(0).randbytes(96 * MIB)

    def work() -> None:
        with vzarr.open(path) as repo:
            session = repo.session("main")
            session.set("f0", b"changed")
            limit("AS", address_space() + 8 * MIB)
            with pytest.raises((MemoryError, vzarr.FullError)):
                session.set("large", large)
                session.commit("too large")
            assert read_all(repo) == files
            limit("AS", None)
            # What was set is still there, and can be committed now.
            session.commit("not too large now")

    limited(work)
    with vzarr.open(path) as repo:
        assert read_all(repo) == files | {"f0": b"changed", "large": large}


def test_a_limit_on_the_size_of_files(path: Path) -> None:
    files = fill(path, 2)
    limit_bytes = path.stat().st_size + 8 * MIB

    def work() -> None:
        with vzarr.open(path) as repo:
            session = repo.session("main")
            with pytest.raises(vzarr.FullError, match="size of files"):
                for number in range(40):
                    session.set(f"more{number}", random.Random(number).randbytes(MIB))
                session.commit("too much")
            assert read_all(repo) == files
            limit("FSIZE", None)
            for number in range(40):
                session.set(f"more{number}", random.Random(number).randbytes(MIB))
            session.commit("not too much now")

    limited(work, FSIZE=limit_bytes)
    with vzarr.open(path) as repo:
        assert len(read_all(repo)) == 42


def test_no_more_files_can_be_opened(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.vzarr" for number in range(64)]
    for path in paths:
        fill(path, 0)

    def work() -> int:
        # Modules that are first imported when a file cannot be opened could not be, either.
        vzarr.open(paths[0]).close()
        opened = []
        limit("NOFILE", len(os.listdir("/proc/self/fd")) + 60)
        with pytest.raises(vzarr.StorageError) as raised:
            for path in paths:
                opened.append(vzarr.open(path))  # noqa: PERF401
        assert raised.value.errno == errno.EMFILE, raised.value
        assert 10 < len(opened) < len(paths)
        # Those that are open go on.
        for repo in opened:
            with repo.transaction() as store:
                store.session.set("a", b"1")
        opened.pop().close()
        opened.pop().close()
        with vzarr.open(paths[-1]) as repo, repo.transaction() as store:
            store.session.set("a", b"1")
        return len(opened) + 2

    count = limited(work)
    for number, path in enumerate(paths):
        with vzarr.open(path) as repo:
            expected = number < count or number == len(paths) - 1
            assert read_all(repo) == ({"a": b"1"} if expected else {})


def test_two_hundred_repositories_in_one_process(tmp_path: Path) -> None:
    def work() -> None:
        opened = [vzarr.open(tmp_path / f"{number}.vzarr") for number in range(200)]
        for number, repo in enumerate(opened):
            with repo.transaction() as store:
                store.session.set("a", str(number).encode())
        for number, repo in enumerate(opened):
            assert read_all(repo) == {"a": str(number).encode()}
        for repo in opened:
            repo.close()

    limited(work)
    assert_sound(tmp_path / "0.vzarr")
    assert_sound(tmp_path / "199.vzarr")


def test_many_repositories_in_little_address_space(tmp_path: Path) -> None:
    """When no more fit, opening says so, and those that are open go on."""

    def work() -> int:
        opened = []
        with pytest.raises(vzarr.FullError, match="ulimit -v"):
            for number in range(200):
                opened.append(vzarr.open(tmp_path / f"{number}.vzarr"))  # noqa: PERF401
        for repo in opened:
            with repo.transaction() as store:
                store.session.set("a", b"1")
            assert read_all(repo) == {"a": b"1"}
        return len(opened)

    count = limited(work, more_space=(16 << 30))
    assert count > 5
    for number in range(count):
        assert_sound(tmp_path / f"{number}.vzarr")
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


def test_more_readers_than_lmdb_takes(path: Path) -> None:
    """Killed processes leave their places taken; who comes then takes them back."""
    fill(path, 1)
    with vzarr.open(path) as repo:
        for _ in range(2):
            children = [Child(lambda pipe: hold_places(path, pipe, 120)) for _ in range(9)]
            outcomes = [child.receive() for child in children]
            assert "all" in outcomes
            assert any("close some" in outcome for outcome in outcomes), outcomes
            with pytest.raises(vzarr.StorageError, match="1022 readers"):
                read_all(repo)
            for child in children:
                os.kill(child.pid, 9)
                child.reap()
            assert len(read_all(repo)) == 1


def hold_places(path: Path, pipe, count: int) -> None:
    with vzarr.open(path, "r") as repo, ExitStack() as held:
        outcome = "all"
        try:
            for _ in range(count):
                held.enter_context(repo._environment.read())
        except vzarr.StorageError as error:
            outcome = str(error)
        pipe.send(outcome)
        pipe.recv()
