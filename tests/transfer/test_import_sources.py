"""Imports of zip files, zarr's stores, URLs, other repositories and CAR files."""

from __future__ import annotations

import importlib.util
import warnings
import zipfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import zarr
from zarr.storage import FsspecStore, LocalStore, MemoryStore, ZipStore

import vzarr
from tests.transfer.sources import Stop, files_of, make_v2, make_v3, unfinished, values_of
from vzarr import importing
from vzarr.errors import (
    ConflictError,
    CorruptError,
    FormatError,
    InvalidInputError,
    NotFoundError,
    RefNotFoundError,
    StorageError,
)
from vzarr.sources import open_source


def make_zip(source: Path, target: Path, start: str = "", how: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(target, "w", how) as file:
        for key, data in files_of(source).items():
            file.writestr(start + key, data)
    return target


def stop(done: int, total: int, what: str) -> None:
    if what in ("look again", ""):
        raise Stop


# ── zip files ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("start", ["", "sea.zarr/"])
def test_zip(repo, source, tmp_path, how, start):
    archive = make_zip(source, tmp_path / "sea.zip", start, how)
    report = repo.import_from(archive)
    assert values_of(repo) == files_of(source)
    assert (report.chunks, report.files) == (18, 1)
    assert repo.import_from(archive).commit is None
    # What is the same in a directory is the same.
    assert repo.import_from(source).commit is None


def test_zip_as_zarr_writes_it(repo, tmp_path):
    store = ZipStore(tmp_path / "a.zip", mode="w")
    array = zarr.create_array(store, name="a", shape=(6,), chunks=(2,), dtype="i4")
    with warnings.catch_warnings(action="ignore"):
        # A zip file cannot replace a member, and zipfile says so.
        array[:] = 1
        array[:] = np.arange(6)
    store.close()
    repo.import_from(tmp_path / "a.zip")
    assert np.array_equal(zarr.open_array(repo.store("main"), path="a")[:], np.arange(6))
    assert repo.import_from(ZipStore(tmp_path / "a.zip", mode="r")).commit is None


def test_zip_that_is_damaged(repo, source, tmp_path):
    archive = make_zip(source, tmp_path / "sea.zip")
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-30])
    with pytest.raises(InvalidInputError, match="no whole zip file"):
        repo.import_from(archive)
    place = whole.index((source / "raw" / "c" / "7").read_bytes())
    archive.write_bytes(whole[: place + 5] + b"\xff\xff" + whole[place + 7 :])
    with pytest.raises(InvalidInputError, match=r"raw/c/7 of .* cannot be read: .*CRC"):
        repo.import_from(archive)
    assert values_of(repo) == {}


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a//b"])
def test_zip_with_names_that_escape(repo, source, tmp_path, name):
    archive = make_zip(source, tmp_path / "sea.zip")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(name, b"x")
    with pytest.raises(InvalidInputError, match="is no path: rename it"):
        repo.import_from(archive)


def test_zip_that_changes_is_begun_anew(repo, source, tmp_path, monkeypatch):
    archive = make_zip(source, tmp_path / "sea.zip")
    monkeypatch.setattr(importing, "_CHECKPOINT_VALUES", 1)
    monkeypatch.setattr("vzarr.archives.ZipSource.require_unchanged", lambda *_: stop(0, 0, ""))
    with pytest.raises(Stop):
        repo.import_from(archive)
    monkeypatch.undo()
    assert len(unfinished(repo)) == 1
    (source / "raw" / "c" / "3").write_bytes(b"y" * 800)
    make_zip(source, archive)
    report = repo.import_from(archive)
    assert not report.resumed
    assert unfinished(repo) == []
    assert values_of(repo) == files_of(source)


def test_zip_that_changes_meanwhile(repo, source, tmp_path, monkeypatch):
    archive = make_zip(source, tmp_path / "sea.zip")

    def tamper(done: int, total: int, what: str) -> None:
        if what == "import":
            make_zip(source, archive, how=zipfile.ZIP_DEFLATED)

    with pytest.raises((ConflictError, InvalidInputError)):
        repo.import_from(archive, progress=tamper)
    assert values_of(repo) == {}


# ── stores ───────────────────────────────────────────────────────────────────────────────────────


def test_local_store(repo, source):
    repo.import_from(LocalStore(source))
    assert values_of(repo) == files_of(source)


def test_memory_store(repo):
    store = MemoryStore()
    group = zarr.create_group(store, attributes={"a": 1})
    array = group.create_array("x", shape=(100,), chunks=(10,), dtype="i4")
    array[:] = np.arange(100)
    report = repo.import_from(store, path="there")
    expected = {key: value.to_bytes() for key, value in store._store_dict.items()}
    assert values_of(repo, "there") == expected
    assert (report.arrays, report.groups, report.chunks) == (1, 1, 10)
    assert repo.import_from(store, path="there").commit is None


def test_store_that_changes_meanwhile(repo):
    store = MemoryStore()
    array = zarr.create_array(store, shape=(100,), chunks=(10,), dtype="i4")
    array[:] = np.arange(100)

    def resize(done: int, total: int, what: str) -> None:
        if what == "look again" and not done:
            array.resize((200,))

    with pytest.raises(ConflictError, match="was changed"):
        repo.import_from(store, progress=resize)


class Silent(MemoryStore):
    """A store that does not list, as most web servers do not."""

    supports_listing = False

    async def list_prefix(self, prefix: str):
        raise AssertionError("it does not list")
        yield ""


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_store_that_does_not_list(repo, zarr_format):
    known = MemoryStore()
    group = zarr.create_group(known, zarr_format=zarr_format)
    for name in ("x", "deep/y"):
        array = group.create_array(name, shape=(5, 7), chunks=(2, 3), dtype="f4", fill_value=0)
        array[:3] = 1
    store = Silent(known._store_dict)
    with pytest.raises(InvalidInputError, match=r"does not list .* no consolidated metadata"):
        repo.import_from(store)
    with warnings.catch_warnings(action="ignore"):
        zarr.consolidate_metadata(known)
    report = repo.import_from(store)
    # Chunks that were never written are asked for in vain.
    assert (report.arrays, report.chunks) == (2, 12)
    values = zarr.open_group(repo.store("main"), mode="r", zarr_format=zarr_format)
    for name in ("x", "deep/y"):
        assert np.array_equal(values[name][:3], np.ones((3, 7)))
        assert not values[name][4:].any()


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_array_in_a_store_that_does_not_list(repo, zarr_format):
    known = MemoryStore()
    array = zarr.create_array(
        known, shape=(5, 7), chunks=(2, 3), dtype="f4", zarr_format=zarr_format
    )
    array[:] = 3
    assert repo.import_from(Silent(known._store_dict), path="a").chunks == 9
    assert (zarr.open_array(repo.store("main"), path="a")[:] == 3).all()


class Failing(MemoryStore):
    """A store whose server is gone."""

    async def get(self, key: str, *args: Any, **options: Any) -> Any:
        if key.endswith("/3"):
            raise TimeoutError("gone")
        return await super().get(key, *args, **options)


def test_store_that_fails(repo):
    store = Failing()
    zarr.create_array(store, shape=(100,), chunks=(10,), dtype="i4")[:] = 1
    with pytest.raises(StorageError, match=r"cannot read c/3 of .*: TimeoutError: gone"):
        repo.import_from(store)
    assert values_of(repo) == {}


# ── URLs ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def memory(source: Path) -> str:
    files = fsspec.filesystem("memory")
    for key, data in files_of(source).items():
        files.pipe_file(f"/import/sea.zarr/{key}", data)
    yield "memory://import/sea.zarr"
    files.rm("/import", recursive=True)


def test_url(repo, source, memory):
    report = repo.import_from(memory)
    assert values_of(repo) == files_of(source)
    assert report.source == memory
    assert repo.show("main").metadata["import"]["source"] == memory
    assert repo.import_from(memory).commit is None
    assert repo.import_from(FsspecStore.from_url(memory, read_only=True)).commit is None


def test_url_of_files(repo, source, tmp_path):
    source.rename(tmp_path / "a b.zarr")
    repo.import_from(f"file://{tmp_path}/a%20b.zarr")
    assert values_of(repo) == files_of(tmp_path / "a b.zarr")


def test_url_of_a_zip(repo, source, tmp_path):
    archive = make_zip(source, tmp_path / "sea.zip")
    repo.import_from(f"zip://::file://{archive}")
    assert values_of(repo) == files_of(source)


def test_url_is_gone_on_with(repo, source, memory, monkeypatch):
    monkeypatch.setattr(importing, "_CHECKPOINT_VALUES", 1)
    with pytest.raises(Stop):
        repo.import_from(memory, progress=stop)
    asked: list[str] = []
    real = FsspecStore.get

    async def get(self, key, *args, **options):
        asked.append(key)
        return await real(self, key, *args, **options)

    monkeypatch.setattr(FsspecStore, "get", get)
    assert repo.import_from(memory).resumed
    assert {key.rpartition("/")[2] for key in asked} == {"zarr.json"}
    assert values_of(repo) == files_of(source)


def test_url_without_a_zarr(repo):
    with pytest.raises(InvalidInputError, match="memory://nowhere is no Zarr"):
        repo.import_from("memory://nowhere")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        repo.import_from("nosuchthing://nowhere")


@pytest.mark.skipif(importlib.util.find_spec("aiohttp") is not None, reason="aiohttp is there")
def test_url_whose_package_is_missing(repo):
    with pytest.raises(InvalidInputError, match="pip install"):
        repo.import_from("http://localhost:1/sea.zarr")


def test_secrets_of_urls_are_not_told(source, memory):
    from vzarr.sources import _without_secrets

    assert _without_secrets("s3://key:secret@bucket/a.zarr") == "s3://bucket/a.zarr"
    assert _without_secrets("https://host/a.zarr?token=1") == "https://host/a.zarr"


# ── repositories ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def other(tmp_path: Path, source: Path) -> Path:
    """A repository with the source, before and after a change."""
    path = tmp_path / "other.vzarr"
    with vzarr.open(path) as repo:
        repo.import_from(source)
        repo.tags.create("v1")
        with repo.transaction("main", "second") as store:
            zarr.open_array(store, path="raw")[:100] = -1
    return path


def test_repository_at_a_ref(repo, source, other):
    report = repo.import_from(other, ref="v1")
    assert values_of(repo) == files_of(source)
    assert report.source == str(other)
    with vzarr.open(other) as opened:
        assert repo.root_id("main") == opened.root_id("v1")
        # Only what differs is read.
        report = repo.import_from(other, overwrite=True)
        assert report.new_bytes == 800
        assert repo.root_id("main") == opened.root_id("main")
        assert repo.import_from(opened.store("main")).commit is None
    assert repo.import_from(f"vzarr://{other}").commit is None
    with pytest.raises(RefNotFoundError):
        repo.import_from(other, ref="nowhere")
    with vzarr.open(other) as opened:
        repo.import_from(opened.store("v1"), path="v1")
    assert repo.show("main").message == "import other.vzarr"


def test_from_another_branch_of_the_same_file(repo, source):
    repo.branches.create("dev")
    repo.import_from(source, branch="dev")
    report = repo.import_from(repo.store("dev"), path="copy")
    assert report.new_bytes == 0
    assert values_of(repo, "copy") == files_of(source)


def test_repository_that_is_damaged(repo, other, source):
    data = other.read_bytes()
    chunk = (source / "raw" / "c" / "7").read_bytes()
    other.write_bytes(data.replace(chunk, chunk[:-1] + b"\xff"))
    with pytest.raises(CorruptError):
        repo.import_from(other)
    assert values_of(repo) == {}


def test_a_ref_of_what_has_none(repo, source):
    with pytest.raises(InvalidInputError, match="ref="):
        repo.import_from(repo.store("main"), ref="main")
    with pytest.raises(NotFoundError):
        repo.import_from("vzarr:///no/where.vzarr")


# ── CAR files ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("make", [make_v2, make_v3])
def test_car(repo, tmp_path, make):
    source = make(tmp_path / "a.zarr")
    repo.import_from(source)
    repo.export_to(tmp_path / "a.car")
    with vzarr.open(tmp_path / "b.vzarr") as second:
        report = second.import_from(tmp_path / "a.car")
        assert second.root_id("main") == repo.root_id("main")
        assert report.arrays == (1 if make is make_v2 else 2)
        assert second.import_from(tmp_path / "a.car").commit is None


def test_car_that_is_damaged(repo, source, tmp_path):
    repo.import_from(source, path="sea")
    repo.export_to(tmp_path / "a.car", path="sea")
    whole = (tmp_path / "a.car").read_bytes()
    before = repo.branches["main"]
    for data in (whole[:-10], whole[:-10] + b"\xff" * 10, whole[:40]):
        (tmp_path / "a.car").write_bytes(data)
        with pytest.raises(FormatError):
            repo.import_from(tmp_path / "a.car", path="again")
    assert repo.branches["main"] == before


def test_a_source_can_be_opened_before(repo, source):
    opened = open_source(source)
    assert repo.import_from(opened).commit is not None
