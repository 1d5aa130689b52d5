"""What is built: a wheel with the package alone, and sources that can be tested."""

from __future__ import annotations

import email
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from email.message import Message
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement

import vzarr

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "vzarr"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# What every user has to install. More would make each of them pay for what few need.
LIGHT = {
    "blake3",
    "click",
    "lmdb",
    "msgpack",
    "numcodecs",
    "numpy",
    "rich",
    "xxhash",
    "zarr",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built as pip would, but without a network."""
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that the source distribution unpacks to."""
    target = tmp_path_factory.mktemp("sources")
    (built,) = SdistBuilder(str(ROOT)).build(directory=str(target), versions=["standard"])
    with tarfile.open(built) as archive:
        archive.extractall(target, filter="data")
    return target / f"vzarr-{PROJECT['version']}"


def build_wheel(root: Path, target: Path) -> Path:
    (built,) = WheelBuilder(str(root)).build(directory=str(target), versions=["standard"])
    return Path(built)


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def read(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"vzarr-{PROJECT['version']}.dist-info/{name}").decode()


def metadata(wheel: Path) -> Message:
    return email.message_from_string(read(wheel, "METADATA"))


# ---- the wheel ------------------------------------------------------------------------------


def test_the_wheel_has_the_package_and_nothing_else(wheel):
    expected = {f"vzarr/{path.name}" for path in PACKAGE.glob("*.py")} | {"vzarr/py.typed"}
    about = f"vzarr-{PROJECT['version']}.dist-info"
    files = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    assert names(wheel) == expected | {f"{about}/{name}" for name in files}
    assert wheel.name == f"vzarr-{PROJECT['version']}-py3-none-any.whl"


def test_it_says_what_it_is(wheel):
    said = metadata(wheel)
    assert said["Version"] == vzarr.__version__ == PROJECT["version"]
    assert said["License-Expression"] == "Apache-2.0"
    assert said["Requires-Python"] == PROJECT["requires-python"] == ">=3.11"
    assert set(said.get_all("Classifier")) == set(PROJECT["classifiers"])
    assert "Typing :: Typed" in PROJECT["classifiers"]
    for minor in (11, 12, 13):
        assert f"Programming Language :: Python :: 3.{minor}" in PROJECT["classifiers"]
    assert set(said.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    # What the package index shows.
    assert said["Description-Content-Type"] == "text/markdown"
    assert said.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")


def test_what_everybody_installs_is_light(wheel):
    required = [Requirement(text) for text in metadata(wheel).get_all("Requires-Dist")]
    assert {one.name for one in required if one.marker is None} == LIGHT
    assert all("extra ==" in str(one.marker) for one in required if one.marker is not None)


def test_entry_points_lead_somewhere(wheel):
    found = ConfigParser()
    found.read_string(read(wheel, "entry_points.txt"))
    assert set(found.sections()) == {
        "console_scripts",
        "xarray.backends",
        "fsspec.specs",
        "zarr.codec_pipeline",
    }
    for section in found.sections():
        for name, target in found[section].items():
            assert name == "vzarr"
            module, _, attribute = target.partition(":")
            assert callable(getattr(import_module(module), attribute))


def requirements(extra: str) -> Iterator[Requirement]:
    """Give what an extra asks for here, and what the extras do that it names."""
    for text in PROJECT["optional-dependencies"][extra]:
        one = Requirement(text)
        if one.name == "vzarr":
            for other in one.extras:
                yield from requirements(other)
        elif one.marker is None or one.marker.evaluate():
            yield one


def test_what_extras_ask_for_exists():
    """The versions that these tests run with are among those that the extra for tests allows."""
    asked = list(requirements("test"))
    assert len(asked) > 10
    for one in (*map(Requirement, PROJECT["dependencies"]), *asked):
        assert one.specifier.contains(version(one.name), prereleases=True), one


# ---- the sources ----------------------------------------------------------------------------


def test_the_sources_have_what_their_tests_read(sources):
    here = {path.relative_to(sources).as_posix() for path in sources.rglob("*") if path.is_file()}
    for directory, pattern in (
        ("vzarr", "*.py"),
        ("tests", "*.py"),
        ("bench", "*.py"),
        ("docs", "*.md"),
    ):
        every = {path.relative_to(ROOT).as_posix() for path in (ROOT / directory).rglob(pattern)}
        assert every - here == set()
    single = ("pyproject.toml", "mkdocs.yml", ".ci/run", "README.md", "CHANGELOG.md", "LICENSE")
    assert {name for name in single if (ROOT / name).exists()} - here == set()
    assert ".github/workflows/ci.yml" in here


def test_the_sources_have_no_litter(sources):
    kept = {"vzarr", "tests", "bench", "docs", ".ci", ".github"}
    assert {path.name for path in sources.iterdir() if path.is_dir()} <= kept
    litter = {".pyc", ".so", ".lock", ".log", ".whl"}
    found = [path for path in sources.rglob("*") if path.suffix in litter]
    assert found == []
    assert sum(path.stat().st_size for path in sources.rglob("*") if path.is_file()) < 16 << 20


def test_the_sources_build_the_same_wheel(sources, wheel, tmp_path):
    again = build_wheel(sources, tmp_path)
    assert names(again) == names(wheel)
    assert read(again, "RECORD") == read(wheel, "RECORD")


def test_tests_run_from_the_sources(sources):
    """One of them, against the package beside them."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/meta/test_layers.py",
    ]
    done = subprocess.run(command, cwd=sources, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
