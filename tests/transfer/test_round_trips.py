"""What is exported and imported again is the same snapshot, with the same id."""

from __future__ import annotations

import pytest

import vzarr
from tests.transfer.exports import filled, groups, shards, v2, v3


@pytest.mark.parametrize("write", [v3, v2, shards, groups], ids=lambda write: write.__name__)
@pytest.mark.parametrize("name", ["out.zarr", "out.zip", "out.car", "memory://trip/out.zarr"])
def test_export_and_import(repo, tmp_path, write, name):
    filled(repo, write)
    target = name if "://" in name else tmp_path / name
    repo.export_to(target, overwrite="://" in name)
    with vzarr.open(tmp_path / "other.vzarr") as other:
        other.import_from(target)
        assert other.root_id() == repo.root_id()


@pytest.mark.parametrize("name", ["out.zarr", "out.zip", "out.car"])
def test_a_part_goes_to_another_place(repo, tmp_path, name):
    filled(repo, v3)
    repo.export_to(tmp_path / name, path="sst")
    repo.import_from(tmp_path / name, path="copies/sst")
    hierarchy = repo.session("main").hierarchy
    assert hierarchy.entry("copies/sst") == hierarchy.entry("sst")


@pytest.mark.parametrize("name", ["out.zip", "out.car"])
def test_a_damaged_export_is_not_imported(repo, tmp_path, name):
    with repo.transaction() as store:
        store.session.set(".zgroup", b'{"zarr_format": 2}')
        store.session.set("a/x", b"to be damaged" * 1000)
    repo.export_to(tmp_path / name)
    data = bytearray((tmp_path / name).read_bytes())
    data[data.index(b"to be damaged") + 1000] ^= 1
    (tmp_path / name).write_bytes(data)
    with vzarr.open(tmp_path / "other.vzarr") as other:
        with pytest.raises(vzarr.VzarrError):
            other.import_from(tmp_path / name)
        assert len(other.log("main")) == 1
