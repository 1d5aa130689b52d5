"""Helpers for tests."""

from __future__ import annotations

import os

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
