"""Helpers for tests."""

from __future__ import annotations

import os

import lmdb.verify

from vzarr import history
from vzarr.btree import Tree
from vzarr.environment import Environment
from vzarr.format import (
    Digest,
    Entry,
    blob_measure,
    chunk_digest,
    decode_blob,
    decode_entry,
    encode_entry,
    entry_measure,
)
from vzarr.metadata import layout_of
from vzarr.objects import Objects, Overlay


def assert_sound(path: str | os.PathLike[str]) -> None:
    """Check a repository whole: LMDB's structure, every commit, tree, digest, length and layout."""
    assert lmdb.verify.verify(os.fspath(path)) == []
    environment = Environment.open(os.fspath(path), writable=False)
    try:
        checker = _Checker(environment)
        with environment.read() as txn:
            heads = [bytes(value) for _, value in txn.scan("branches")]
            commits = [bytes(key) for key, _ in txn.scan("commits")]
        assert set(heads) <= set(commits)
        for commit in commits:
            record = history.get(environment, Digest(commit))
            checker.entry(checker.objects.load_root(record.root))
    finally:
        environment.close()


class _Checker:
    def __init__(self, environment: Environment) -> None:
        self.objects = Objects(environment, "always")
        self.overlay = Overlay(self.objects)
        self.indexes = Tree(self.overlay, blob_measure)
        self.directories = Tree(self.overlay, entry_measure)
        self.seen: set[bytes] = set()

    def entry(self, entry: Entry) -> None:
        encoded = encode_entry(entry)
        if encoded in self.seen:
            return
        self.seen.add(encoded)
        assert entry.layout == layout_of(entry.documents, self.objects.read)
        for blob in [*entry.documents.values(), *([entry.file] if entry.file else [])]:
            self.blob(blob)
        self.indexes.check(entry.index)
        for _, value in self.indexes.scan(entry.index):
            self.blob(decode_blob(value))
        self.directories.check(entry.directory)
        for _, value in self.directories.scan(entry.directory):
            member = decode_entry(value)
            assert not member.is_empty
            self.entry(member)

    def blob(self, blob) -> None:
        if blob.digest not in self.seen:
            self.seen.add(blob.digest)
            assert chunk_digest(self.objects.read(blob)) == blob.digest
