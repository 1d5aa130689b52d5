"""Ctrl-C at every moment of an export: the target is whole or not there, and the next one works."""

from __future__ import annotations

import gc
import os
import shutil
import threading
import zipfile
from pathlib import Path

import pytest

import vzarr
from tests.lifecycle import interrupts
from tests.lifecycle.interrupts import Interrupter
from tests.processes import until
from tests.transfer.exports import files
from vzarr.car import CarFile

MOMENTS = 10**9 if "VZARR_TORTURE" in os.environ else 5

# What a generator or finalizer was interrupted in, when nobody waited for it, cannot be raised.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def shown(target: Path) -> dict[str, bytes]:
    if target.suffix == ".zip":
        with zipfile.ZipFile(target) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    if target.suffix == ".car":
        with CarFile(target) as file:
            return dict(file.items())
    return {key: value for key, value in files(target).items() if value is not None}


def running() -> list[threading.Thread]:
    """List the threads of exports; but for those that never began, which stay in Python's list."""
    return [each for each in threading.enumerate() if "export" in each.name and each.is_alive()]


def delete(target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["out.zarr", "out.zip", "out.car"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_interrupted_at_any_moment(repo, tmp_path, monkeypatch, name, overwrite):
    # Of our own: in the locks of the standard library's pool, Ctrl-C may leave one locked.
    monkeypatch.setattr(interrupts, "PLACES", interrupts.PLACES[:1])
    target = tmp_path / name
    old, new = {".zgroup": b"{}"}, {".zgroup": b"{}", "a/0": b"0", "a/1": b"1", "b": b"2"}
    with repo.transaction() as store:
        vzarr.mapping(store).update({f"new/{key}": value for key, value in new.items()})
        vzarr.mapping(store).update({f"old/{key}": value for key, value in old.items()})

    def begin() -> None:
        delete(target)
        if overwrite:
            repo.export_to(target, path="old")

    def count() -> int:
        begin()
        interrupter = Interrupter(None)
        with interrupter():
            repo.export_to(target, path="new", overwrite=overwrite)
        return interrupter.moments

    count()
    total = count()
    assert total > 50
    step = max(1, total // MOMENTS)
    for number in range(1, total + 1, step):
        begin()
        interrupter = Interrupter(number)
        try:
            with interrupter():
                repo.export_to(target, path="new", overwrite=overwrite)
        except KeyboardInterrupt:
            pass
        where = f"interrupted at {interrupter.where}, moment {number}"
        # What the exception kept alive ends the threads that nobody could tell to.
        gc.collect()
        until(lambda: not running())
        found = shown(target) if target.exists() else None
        assert found in (old if overwrite else None, new), where
        try:
            repo.export_to(target, path="new", overwrite=True)
        except BaseException as error:
            error.add_note(where)
            raise
        assert shown(target) == new, where
        assert [each for each in os.listdir(tmp_path) if each.startswith(".vzarr-")] == [], where
