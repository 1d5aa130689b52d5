"""Two repositories, the second a clone of the first, and ways to reach one from the other."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

import vzarr
from tests.support import assert_sound

AUTHOR = "Test <test@example.org>"


def fill(repo: vzarr.Repository, message: str, start: int, value: int, *, path: str = "t") -> str:
    """Commit some elements of an array."""
    with repo.transaction("main", message) as store:
        zarr.open_array(store, path=path)[start : start + 3] = value
    return repo.branches["main"]


def values(repo: vzarr.Repository, ref: str = "main", *, path: str = "t") -> list[int]:
    """Give the elements of an array."""
    return zarr.open_array(repo.store(ref), path=path, mode="r")[:].tolist()


@pytest.fixture(scope="session")
def _first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sync") / "first.vzarr"
    with vzarr.open(path, author=AUTHOR) as repo:
        with repo.transaction("main", "make it") as store:
            group = zarr.create_group(store, attributes={"title": "sea"})
            array = group.create_array("t", shape=(200,), chunks=(2,), dtype="i4")
            array[:] = np.arange(200)
            deep = group.create_group("deep").create_array(
                "u", shape=(80,), chunks=(2,), dtype="i2"
            )
            deep[:] = np.arange(80)
        repo.tags.create("v1", message="as published")
        fill(repo, "second", 10, -1)
        repo.branches.create("dev")
        with repo.transaction("dev", "on dev") as store:
            zarr.open_array(store, path="t")[100:104] = -7
    return path


@pytest.fixture
def first(tmp_path: Path, _first: Path) -> Iterator[vzarr.Repository]:
    """A repository with two branches, a tag and a few commits."""
    path = tmp_path / "first.vzarr"
    shutil.copy(_first, path)
    with vzarr.open(path, author=AUTHOR) as repo:
        yield repo
    assert_sound(path)


@pytest.fixture
def second(tmp_path: Path, first: vzarr.Repository) -> Iterator[vzarr.Repository]:
    """A clone of it."""
    path = tmp_path / "second.vzarr"
    vzarr.clone(first.path, path, author=AUTHOR)
    with vzarr.open(path, author="Second <second@example.org>") as repo:
        yield repo
    assert_sound(path)


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let a script be ssh: it notes its arguments, and runs the command here.

    What the fixture is called with is run first; "false" stands for a machine that is down.
    """
    bin_path = os.path.dirname(sys.executable)

    def use(first: str = "true") -> None:
        script = tmp_path / "ssh.sh"
        script.write_text(
            f'printf "%s\\n" "$@" > {shlex.quote(str(tmp_path / "arguments"))}\n'
            f"PATH={shlex.quote(bin_path)}:$PATH\n"
            f'{first} || exit 255\nexec sh -c "$2"\n'
        )
        monkeypatch.setenv("VZARR_SSH", f"sh {shlex.quote(str(script))}")

    use()
    return use
