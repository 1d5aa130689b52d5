"""Helpers for tests."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from vzarr import environment
from vzarr.check import check_file
from vzarr.environment import Environment
from vzarr.format import (
    CHECKSUM_FROM_BYTES,
    chunk_checksum,
    chunk_digest,
    commit_digest,
    entry_digest,
    node_digest,
)
from vzarr.origins import entries

posix = pytest.mark.skipif(os.name == "nt", reason="about what Windows does not have")
"""Marks tests of forks, signals, permissions and other things that only POSIX has."""

# Harnesses that count system calls, signals, limits or forks; and modules that begin with them.
_POSIX_DIRECTORIES = {"concurrency", "crash", "damage", "fuzz", "lifecycle", "limits", "power"}
_POSIX_MODULE = re.compile(
    r"^(?:import|from) (?:fcntl|resource|tests\.processes)\b|os\.(?:fork|geteuid)\(", re.MULTILINE
)


def is_left_out(path: Path) -> bool:
    """Tell whether Windows has no use for a module of tests, because POSIX is what it is about."""
    if os.name != "nt" or path.suffix != ".py":
        return False
    return path.parent.name in _POSIX_DIRECTORIES or bool(
        _POSIX_MODULE.search(path.read_text(encoding="utf-8"))
    )


def in_use() -> set[Environment]:
    """Give what this process has open."""
    return {found for _, found in environment._registry._known.values()}


def assert_sound(path: str | os.PathLike[str]) -> None:
    """Check a repository as users do, and its garbage too: that also is what its digest says."""
    report = check_file(os.fspath(path), "full")
    # A test may store any bytes as a document.
    assert [problem for problem in report.problems if problem.kind != "metadata"] == [], report
    opened = Environment.open(os.fspath(path), writable=False)
    try:
        for database, *hashes in (
            ("chunks", chunk_digest),
            ("nodes", node_digest, entry_digest),
            ("commits", commit_digest),
        ):
            for key, data in entries(opened, database):
                assert any(hashed(data) == key for hashed in hashes), (database, key.hex())
        large = {
            key: data for key, data in entries(opened, "chunks") if len(data) >= CHECKSUM_FROM_BYTES
        }
        checksums = dict(entries(opened, "checksums"))
        assert checksums == {key: chunk_checksum(data) for key, data in large.items()}
    finally:
        opened.close()
