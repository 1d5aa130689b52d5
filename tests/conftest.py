"""What the tests share: repositories that are whole when a test ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from lmdb.verify import verify

import vzarr
from tests.support import assert_sound, in_use, is_left_out

# Machines are shared and slow at times. Continuous integration judges a change by examples that are
# the same each time; everywhere else new ones are looked for.
hypothesis.settings.register_profile("vzarr", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("vzarr")

# A shell that starts us in the background has Ctrl-C ignored, and so would all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out what Windows cannot even import."""
    return is_left_out(collection_path) or None


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Where a test's repository goes; the file is checked when the test has ended."""
    target = tmp_path / "test.vzarr"
    yield target
    if vzarr.exists(target):
        assert_sound(target)


@pytest.fixture
def repo(path: Path) -> Iterator[vzarr.Repository]:
    """An empty repository."""
    with vzarr.open(path, author="Test <test@example.org>") as repository:
        yield repository


@pytest.fixture
def file(tmp_path: Path) -> Iterator[str]:
    """Where the file of an environment goes. What a test opened is closed when it has ended."""
    target = str(tmp_path / "test.vzarr")
    before = in_use()
    yield target
    left = in_use() - before
    for environment in left:
        while environment._access.users:
            environment.close()
    assert not left
    if os.path.exists(target):
        assert verify(target) == []
