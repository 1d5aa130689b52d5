"""Zarr data of many shapes, for exports to write, and how to see what they wrote."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import zarr
from zarr.core.buffer import cpu


def v3(store) -> None:
    group = zarr.create_group(store, attributes={"title": "sea", "numbers": [1, 2.5, None]})
    sst = group.create_array("sst", shape=(5, 7), chunks=(2, 3), dtype="f4")
    sst[:] = np.arange(35).reshape(5, 7)
    sst.attrs["bad"] = float("nan")
    group.create_array("scalar", shape=(), dtype="i2")[...] = 3
    group.create_array("never/written", shape=(4,), chunks=(2,), dtype="i8")


def v2(store) -> None:
    group = zarr.create_group(store, zarr_format=2, attributes={"z": 1, "a": {"b": []}})
    for name, separator in (("dots", "."), ("slashes", "/")):
        array = group.create_array(
            name,
            shape=(5, 7),
            chunks=(2, 3),
            dtype="f4",
            chunk_key_encoding={"name": "v2", "separator": separator},
        )
        array[:] = np.arange(35).reshape(5, 7)
    group.create_group("empty")


def shards(store) -> None:
    array = zarr.create_array(
        store, name="a/b", shape=(40, 40), chunks=(5, 5), shards=(20, 20), dtype="i4"
    )
    array[3:30, :33] = 7


def groups(store) -> None:
    for name in ("a", "a/b/c", "0", "c", "ä ö", "x" * 200):
        zarr.create_group(store, path=name)


def raw(store) -> None:
    for number, key in enumerate(
        (
            *("file", "a/b", "c/0/0", "0.0", "0/1", "zarr", ".hidden", ".zattrs", "a b/c%2F"),
            *(
                "back\\slash",
                "new\nline",
                "tab\t",
                "quo'te\"",
                "名前/ファイル",
                "e\u0301",
                "é",
                "~",
            ),
        )
    ):
        zarr.core.sync.sync(store.set(key, cpu.Buffer.from_bytes(bytes([number]) * number)))


DATA = (v3, v2, shards, groups, raw)


def files(root: Path) -> dict[str, bytes | None]:
    """Read a tree: its files, and its directories as None."""
    found: dict[str, bytes | None] = {}
    for directory, directories, names in os.walk(root):
        base = Path(directory)
        found |= {str((base / name).relative_to(root)): None for name in directories}
        found |= {
            str((base / name).relative_to(root)): (base / name).read_bytes() for name in names
        }
    return found


def filled(repo, *writes) -> None:
    for write in writes:
        with repo.transaction("main", write.__name__) as store, warnings.catch_warnings():
            warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
            write(store)


def left_in(directory: Path) -> set[str]:
    return {name for name in os.listdir(directory) if not name.startswith("test.vzarr")}
