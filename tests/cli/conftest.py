"""A small repository, and two ways to run the command line on it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner, Result

import vzarr
from vzarr.author import default_author
from vzarr.cli import commands

AUTHOR = "Ada <ada@example.org>"


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("VZARR_AUTHOR", AUTHOR)
    monkeypatch.setenv("VZARR_PAGER", "cat")
    default_author.cache_clear()
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    yield
    default_author.cache_clear()


@pytest.fixture
def ocean(path: Path, _ocean: Path) -> Path:
    """Three commits on main, one more on dev, a tag v1.0 on main~1."""
    shutil.copy(_ocean, path)
    return path


@pytest.fixture(scope="session")
def _ocean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ocean") / "ocean.vzarr"
    with vzarr.open(path, author=AUTHOR) as repo:
        with repo.transaction(
            "main", "make the sea\n\nIn two\nlines.", metadata={"run": 7}
        ) as store:
            group = zarr.create_group(store, attributes={"title": "sea"})
            sst = group.create_array("sst", shape=(2, 6), chunks=(1, 3), dtype="f4")
            sst[:] = np.arange(12).reshape(2, 6)
        repo.tags.create("v1.0", message="as published\nreally")
        with repo.transaction("main", "append a step") as store:
            sst = zarr.open_array(store, path="sst")
            sst.resize((3, 6))
            sst[2] = 5
            sst.attrs["bad"] = float("nan")
        repo.branches.create("dev")
        with repo.transaction("dev", "mend a corner") as store:
            zarr.open_array(store, path="sst")[0, :3] = -1
    return path


@pytest.fixture
def run() -> Callable[..., Result]:
    """Run a command in this process; ``code`` is the exit code that it must have."""

    def run(*arguments: object, code: int = 0) -> Result:
        result = CliRunner().invoke(commands, [str(part) for part in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
def run_json(run: Callable[..., Result]) -> Callable[..., Any]:
    """Run a command with --json and give the document."""

    def run_json(*arguments: object, code: int = 0) -> Any:
        def refuse(constant: str) -> None:
            raise ValueError(f"{constant} is no JSON")

        return json.loads(run(*arguments, "--json", code=code).stdout, parse_constant=refuse)

    return run_json


@pytest.fixture
def spawn(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``python -m vzarr`` in a process of its own, where a warning is an error."""

    def spawn(
        *arguments: object, program: tuple[str, ...] = ("-m", "vzarr"), **options: Any
    ) -> subprocess.CompletedProcess[str]:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        environment = {**os.environ, **options.pop("env", {})}
        return subprocess.run(
            [sys.executable, "-W", "error", *program, *map(str, arguments)],
            text=True,
            timeout=50,
            cwd=tmp_path,
            env=environment,
            **options,
        )

    return spawn
