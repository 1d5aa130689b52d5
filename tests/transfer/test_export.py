"""Exports to directories, zip files and URLs are what zarr itself would have written."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import LocalStore, ZipStore

import vzarr
from tests.transfer.exports import DATA, files, filled, left_in, shards, v2, v3
from vzarr import contents, outlets
from vzarr.car import CarFile

# ── what is written ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("write", DATA, ids=lambda write: write.__name__)
def test_a_directory_is_what_local_store_writes(repo, tmp_path, write):
    write(LocalStore(tmp_path / "theirs"))
    filled(repo, write)
    report = repo.export_to(tmp_path / "ours")
    theirs, ours = files(tmp_path / "theirs"), files(tmp_path / "ours")
    assert ours == theirs
    values = [value for value in theirs.values() if value is not None]
    assert (report.keys, report.nbytes) == (len(values), sum(map(len, values)))
    assert (report.form, report.commit) == ("directory", repo.branches["main"])
    for name in ("", *theirs):
        modes = [os.stat(tmp_path / tree / name).st_mode for tree in ("theirs", "ours")]
        assert modes[0] == modes[1], name


@pytest.mark.parametrize("write", DATA, ids=lambda write: write.__name__)
def test_a_zip_file_has_the_same_keys_and_bytes(repo, tmp_path, write):
    filled(repo, write)
    for name in ("one.zip", "two.ZIP"):
        assert repo.export_to(tmp_path / name).form == "zip"
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.ZIP").read_bytes()
    session = repo.session("main")
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert archive.testzip() is None
        assert {each.compress_type for each in archive.infolist()} == {zipfile.ZIP_STORED}
        found = {name: archive.read(name) for name in archive.namelist()}
    assert found == {key: bytes(session.get(key)) for key in list(session.keys())}


def test_zip_store_reads_a_zip_file(repo, tmp_path):
    filled(repo, v3)
    repo.export_to(tmp_path / "out.zip")
    with ZipStore(tmp_path / "out.zip", mode="r") as store:
        group = zarr.open_group(store, mode="r")
        assert group.attrs["title"] == "sea"
        assert np.array_equal(group["sst"][:], np.arange(35).reshape(5, 7))


def test_a_zip_file_may_be_larger_than_old_zip_files(repo, tmp_path, monkeypatch):
    filled(repo, v3)
    # What else would take 4 GiB, or 65,536 keys.
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    repo.export_to(tmp_path / "out.zip")
    monkeypatch.undo()
    with ZipStore(tmp_path / "out.zip", mode="r") as store:
        assert zarr.open_array(store, path="scalar", mode="r")[...] == 3


def test_a_part_of_any_commit_can_be_exported(repo, tmp_path):
    filled(repo, v3, v2)
    first = repo.log("main")[1].id
    zarr.save_array(LocalStore(tmp_path / "theirs"), np.zeros(3), path="x")
    with repo.transaction("main", "another") as store:
        zarr.open_array(store, path="sst")[:] = 0
    for ref, target in (("main", "new.zarr"), (first, "old.zarr"), ("main~2", "older.zarr")):
        repo.export_to(tmp_path / target, ref=ref, path="/sst/")
    assert not zarr.open_array(tmp_path / "new.zarr", mode="r")[:].any()
    assert zarr.open_array(tmp_path / "old.zarr", mode="r")[4, 6] == 34
    old = files(tmp_path / "old.zarr")
    assert old == files(tmp_path / "older.zarr")
    assert {"zarr.json", "c/0/0"} <= old.keys()
    assert len(repo.export_to(tmp_path / "all").path) == 0


def test_work_that_is_not_committed_is_not_exported(repo, tmp_path):
    filled(repo, v3)
    repo.store().session.set("stray", b"0")
    repo.export_to(tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr" / "stray").exists()
    repo.discard()


def test_progress_ends_at_the_bytes_that_were_written(repo, tmp_path):
    filled(repo, v3)
    seen = []
    report = repo.export_to(tmp_path / "out.zarr", progress=lambda *told: seen.append(told))
    assert (report.nbytes, report.nbytes, "write") in seen
    assert seen[0] == (0, report.nbytes, "write")


@given(
    st.dictionaries(
        st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=3).map("/".join),
        st.binary(max_size=20),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=40)
def test_any_keys_are_exported_or_refused(tmp_path_factory, keys):
    directory = tmp_path_factory.mktemp("keys")
    with vzarr.open(directory / "a.vzarr") as repo:
        with repo.transaction() as store:
            for key, value in keys.items():
                store.session.set(key, value)
        names = {name for key in keys for name in key.split("/")}
        parents = {key.rpartition("/")[0] for key in keys}
        parents |= {parent.rpartition("/")[0] for parent in parents}
        fine = not names & {"", ".", ".."} and not parents & set(keys)
        fine = fine and not any("\0" in name for name in names)
        try:
            repo.export_to(directory / "out.zarr")
        except vzarr.InvalidInputError:
            assert not fine
            assert not os.path.lexists(directory / "out.zarr")
        else:
            assert fine
            found = files(directory / "out.zarr")
            assert {key: value for key, value in found.items() if value is not None} == keys


# ── URLs ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def memory():
    """fsspec's file system in memory, empty."""
    system = fsspec.filesystem("memory")
    for name in system.ls("/", detail=False):
        system.rm(name, recursive=True)
    yield system
    for name in system.ls("/", detail=False):
        system.rm(name, recursive=True)


@pytest.mark.parametrize("write", DATA[:-1], ids=lambda write: write.__name__)
def test_a_url_gets_an_object_for_each_key(repo, tmp_path, memory, write):
    filled(repo, write)
    report = repo.export_to("memory://data/out.zarr")
    assert (report.form, report.target) == ("url", "memory://data/out.zarr")
    repo.export_to(tmp_path / "out.zarr")
    expected = {k: v for k, v in files(tmp_path / "out.zarr").items() if v is not None}
    start = "/data/out.zarr/"
    found = {name.removeprefix(start): memory.cat_file(name) for name in memory.find(start)}
    assert found == expected


def test_zarr_reads_what_is_at_a_url(repo, memory):
    filled(repo, v3)
    repo.export_to("memory://out.zarr")
    assert zarr.open_array("memory://out.zarr/sst", mode="r")[4, 6] == 34


def test_a_url_is_overwritten_only_if_asked(repo, memory):
    filled(repo, v3)
    repo.export_to("memory://out.zarr")
    filled(repo, shards)
    with pytest.raises(vzarr.AlreadyExistsError, match=r"memory://out\.zarr exists already"):
        repo.export_to("memory://out.zarr", path="a")
    repo.export_to("memory://out.zarr", path="a", overwrite=True)
    assert sorted(memory.ls("/", detail=False)) == ["/out.zarr"]
    assert "/out.zarr/b/zarr.json" in memory.find("/out.zarr")
    assert not memory.exists("/out.zarr/sst")


@pytest.mark.parametrize("name", ["out.zip", "out.car"])
def test_a_file_at_a_url_is_the_file_at_a_path(repo, tmp_path, memory, name):
    filled(repo, v3)
    repo.export_to(tmp_path / name)
    repo.export_to(f"memory://{name}")
    assert memory.cat_file(f"/{name}") == (tmp_path / name).read_bytes()


def test_the_url_of_a_file_is_a_path(repo, tmp_path):
    filled(repo, v3)
    report = repo.export_to(f"file://{tmp_path}/out.zarr")
    assert (report.form, report.target) == ("directory", f"{tmp_path}/out.zarr")


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_is_left_at_a_url_that_fails(repo, memory, monkeypatch, overwrite):
    filled(repo, v3)
    if overwrite:
        repo.export_to("memory://out.zarr", path="sst")
    before = memory.find("/")
    count = iter(range(100))
    pipe = type(memory).pipe_file

    def fail(self, path, value, **options):
        if next(count) == 5:
            raise ConnectionResetError(104, "the network is gone")
        return pipe(self, path, value, **options)

    monkeypatch.setattr(type(memory), "pipe_file", fail)
    with pytest.raises(vzarr.StorageError, match=r"memory://out\.zarr.*the network is gone"):
        repo.export_to("memory://out.zarr", overwrite=overwrite)
    assert memory.find("/") == before


def test_what_makes_a_zarr_of_it_comes_last_at_a_url(repo, memory, monkeypatch):
    filled(repo, v3)
    order = []
    pipe = type(memory).pipe_file

    def note(self, path, value, **options):
        order.append(path)
        return pipe(self, path, value, **options)

    monkeypatch.setattr(type(memory), "pipe_file", note)
    repo.export_to("memory://out.zarr")
    documents = [path.endswith("zarr.json") for path in order]
    assert sorted(documents) == documents
    assert order[-1] == "/out.zarr/zarr.json"


@pytest.mark.parametrize("url", ["nonsense://x/out.zarr", "icechunks://x"])
def test_a_url_that_fsspec_does_not_know(repo, url):
    filled(repo, v3)
    with pytest.raises(vzarr.InvalidInputError, match="cannot export to"):
        repo.export_to(url)


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


ODD = {
    "a//b": "is no name",
    "/a": "is no name",
    "a/": "is no name",
    "../a": r"'\.\.' is no name",
    "a/./b": r"'\.' is no name",
    "nul\0": "NUL",
    "n" * 300: "longer than 255 bytes",
    "/".join(["d" * 100] * 50): r"longer than [\d,]+ bytes",
    "both/below": "'both' is a key, too",
}


@pytest.mark.parametrize("key", ODD, ids=lambda key: repr(key[:10]))
def test_a_key_that_no_file_can_have_is_named_before_anything_is_written(repo, tmp_path, key):
    with repo.transaction() as store:
        for each in (key, "fine", "both"):
            store.session.set(each, b"0")
    with pytest.raises(vzarr.InvalidInputError, match=ODD[key]) as caught:
        repo.export_to(tmp_path / "out.zarr")
    assert repr(key[:100])[1:-1] in str(caught.value)
    assert "fine" not in str(caught.value)
    assert left_in(tmp_path) == set()
    # A CAR file has no names, but maps like directories.
    if key != "both/below":
        repo.export_to(tmp_path / "out.car")
    else:
        repo.export_to(tmp_path / "out.zip")


def test_of_many_such_keys_a_few_are_named(repo, tmp_path):
    with repo.transaction() as store:
        for number in range(1000):
            store.session.set(f"{number}/../x", b"0")
    with pytest.raises(vzarr.InvalidInputError, match="and 995 more") as caught:
        repo.export_to(tmp_path / "out.zarr")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["out.zarr", "out.zip", "out.car"])
def test_what_is_there_is_overwritten_only_if_asked_and_if_it_is_an_export(repo, tmp_path, name):
    filled(repo, v3)
    target = tmp_path / name
    repo.export_to(target, path="sst")
    before = files(target) or target.read_bytes()
    with pytest.raises(vzarr.AlreadyExistsError, match="overwrite") as caught:
        repo.export_to(target)
    assert caught.value.name == str(target)
    assert (files(target) or target.read_bytes()) == before
    repo.export_to(target, overwrite=True)
    assert (files(target) or target.read_bytes()) != before
    assert left_in(tmp_path) == {name}
    other = tmp_path / f"of-users-{name}"
    if name == "out.zarr":
        other.mkdir()
        (other / "thesis.tex").write_text("x")
    else:
        other.write_text("thesis")
    for path in (other, tmp_path / "test.vzarr"):
        with pytest.raises(vzarr.VzarrError, match=r"not be overwritten|is the repository"):
            repo.export_to(path, overwrite=True)
    assert left_in(tmp_path) == {name, other.name}


def test_an_empty_directory_may_be_overwritten(repo, tmp_path):
    filled(repo, v3)
    (tmp_path / "out.zarr").mkdir()
    repo.export_to(tmp_path / "out.zarr", overwrite=True)
    assert (tmp_path / "out.zarr" / "zarr.json").exists()


def test_a_directory_with_the_repository_in_it_is_not_overwritten(repo, tmp_path):
    filled(repo, v3)
    (tmp_path / "zarr.json").write_text("{}")
    with pytest.raises(vzarr.InvalidInputError, match="has it inside"):
        repo.export_to(tmp_path, overwrite=True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"path": "nix"}, vzarr.NotFoundError, "nothing to export at 'nix'"),
        ({"path": 3}, vzarr.InvalidInputError, "path="),
        ({"ref": "nix"}, vzarr.RefNotFoundError, "nix"),
        ({"storage_options": {"anon": True}}, vzarr.InvalidInputError, "for URLs"),
    ],
)
def test_bad_arguments(repo, tmp_path, options, error, message):
    filled(repo, v3)
    with pytest.raises(error, match=message):
        repo.export_to(tmp_path / "out.zarr", **options)
    assert left_in(tmp_path) == set()


@pytest.mark.parametrize("target", ["", 3, "a\0b", b"bytes"])
def test_a_target_that_is_no_path(repo, target):
    with pytest.raises(vzarr.InvalidInputError, match="a path is"):
        repo.export_to(target)


def test_a_target_in_no_directory(repo, tmp_path):
    filled(repo, v3)
    for name in ("out.zarr", "out.zip", "out.car"):
        with pytest.raises(vzarr.NotFoundError, match="does not exist: create it"):
            repo.export_to(tmp_path / "nix" / name)


def test_a_new_repository_has_nothing_to_export(repo, tmp_path):
    with pytest.raises(vzarr.NotFoundError, match="nothing to export at '/'"):
        repo.export_to(tmp_path / "out.zarr")


# ── how it is done ───────────────────────────────────────────────────────────────────────────────


def test_without_syncfs_each_file_is_flushed(repo, tmp_path, monkeypatch):
    filled(repo, v3)
    synced = []
    monkeypatch.setattr(outlets.ctypes, "CDLL", lambda *_, **__: None)
    monkeypatch.setattr(outlets.os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    repo.export_to(tmp_path / "out.zarr")
    root = tmp_path / "out.zarr"
    assert {os.stat(root / name).st_ino for name in ("", *files(root))} <= set(synced)


def test_a_directory_is_replaced_where_two_cannot_be_exchanged(repo, tmp_path, monkeypatch):
    filled(repo, v3)
    monkeypatch.setattr(vzarr.draft, "_rename_in_one_step", lambda path, target, flag: False)
    repo.export_to(tmp_path / "out.zarr", path="sst")
    repo.export_to(tmp_path / "out.zarr", overwrite=True)
    assert (tmp_path / "out.zarr" / "sst" / "zarr.json").exists()
    assert left_in(tmp_path) == {"out.zarr"}
    with pytest.raises(vzarr.AlreadyExistsError):
        repo.export_to(tmp_path / "out.zarr")


def test_two_keys_that_a_file_system_takes_for_one(repo, tmp_path, monkeypatch):
    with repo.transaction() as store:
        for key in ("data/Chunk", "data/chunk"):
            store.session.set(key, b"0")
    create = outlets._create
    monkeypatch.setattr(outlets, "_create", lambda path: create(path.lower()))
    with pytest.raises(vzarr.InvalidInputError, match="differ in case"):
        repo.export_to(tmp_path / "out.zarr")
    assert left_in(tmp_path) == set()


def anonymous_bytes() -> int:
    """Give how much memory this process has that is no file's."""
    (line,) = re.findall(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) << 10


@pytest.mark.filterwarnings("ignore::vzarr.BlockSizeWarning")
@pytest.mark.parametrize("name", ["out.zarr", "out.zip", "out.car"])
def test_memory_is_that_of_a_few_batches(repo, tmp_path, name):
    size, count = 2 << 20, 64
    with repo.transaction() as store:
        for number in range(count):
            store.session.set(f"{number}", bytes([number]) * size)
    # Once, so that what is loaded and pooled does not count.
    repo.export_to(tmp_path / f"first-{name}")
    before, most = anonymous_bytes(), 0

    def look(*_: object) -> None:
        nonlocal most
        most = max(most, anonymous_bytes() - before)

    repo.export_to(tmp_path / name, progress=look)
    if name == "out.car":
        with CarFile(tmp_path / name) as file:
            for _ in file.items():
                look()
    assert most < size * count // 3


def test_batches_have_so_many_bytes_or_keys():
    blob = vzarr.format.Blob(vzarr.format.Digest(bytes(32)), 3 << 20)
    small = vzarr.format.Blob(vzarr.format.Digest(bytes(32)), 1)
    items = [("a", blob)] * 5 + [("b", small)] * 600
    found = list(contents.batches(items))
    assert [item for batch in found for item in batch] == items
    assert [len(batch) for batch in found] == [2, 2, 256, 256, 89]


def test_what_a_thread_raises_comes_out_and_the_others_have_ended():
    blob = vzarr.format.Blob(vzarr.format.Digest(bytes(32)), 4 << 20)
    running = []

    def work(batch):
        running.append(1)
        try:
            if batch[0][0] == 5:
                raise vzarr.CorruptError("broken")
            return batch[0][0]
        finally:
            running.pop()

    results = contents.spread(contents.batches((n, blob) for n in range(100)), work)
    seen = []
    with pytest.raises(vzarr.CorruptError):
        seen.extend(results)
    assert seen == [0, 1, 2, 3, 4]
    assert running == []
    results = contents.spread(contents.batches((n, blob) for n in range(5)), work)
    assert list(results) == [0, 1, 2, 3, 4]
