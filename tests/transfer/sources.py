"""Zarr data in directories, for imports to take over, and how to see that they did."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import zarr

import vzarr


class Stop(Exception):
    """Ends an import, as Ctrl-C would."""


def make_v3(path: Path, chunks: int = 12) -> Path:
    """Two groups, an array of chunks of 800 bytes, one with codecs, a stray file."""
    group = zarr.create_group(str(path), attributes={"title": "sea"})
    raw = group.create_array(
        "raw", shape=(100 * chunks,), chunks=(100,), dtype="f8", compressors=None
    )
    raw[:] = np.arange(100 * chunks)
    coded = group.create_array("deep/coded", shape=(6, 6), chunks=(2, 3), dtype="i4")
    coded[:] = np.arange(36).reshape(6, 6)
    (path / "README.txt").write_text("not Zarr's")
    return path


def make_v2(path: Path, separator: str = ".") -> Path:
    group = zarr.create_group(str(path), zarr_format=2, attributes={"title": "sea"})
    array = group.create_array(
        "t",
        shape=(6, 6),
        chunks=(2, 3),
        dtype="<i4",
        chunk_key_encoding={"name": "v2", "separator": separator},
    )
    array[:] = np.arange(36).reshape(6, 6)
    array.attrs["units"] = "K"
    return path


def files_of(path: Path) -> dict[str, bytes]:
    """Give all files of a directory by key."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def values_of(repo: vzarr.Repository, path: str = "", ref: str = "main") -> dict[str, bytes]:
    """Give all values below a path by key."""
    session = repo.session(ref)
    begin = len(path) + 1 if path else 0
    return {key[begin:]: bytes(session.get(key) or b"") for key in session.keys(path)}


def unfinished(repo: vzarr.Repository) -> list[vzarr.SessionInfo]:
    """Give the dead sessions that saved something."""
    return [each for each in repo.sessions() if each.checkpointed and each.alive is False]


def age(path: Path, monkeypatch: Any) -> None:
    """Have all files count as older than any import: their times cannot be set back for real."""
    from vzarr import directories

    monkeypatch.setattr(directories, "_CLOCK_SLACK_MICROSECONDS", -(10**15))
    assert os.path.isdir(path)


def edit_json(path: Path, **changes: Any) -> None:
    document = json.loads(path.read_bytes())
    path.write_text(json.dumps(document | changes))
