"""The documentation's site is whole: all pages are in it, and all public names have an entry."""

from __future__ import annotations

import inspect
import os
import pkgutil
import re
import subprocess
import sys

import pytest

import vzarr
from tests.meta.documents import ROOT

DOCS = ROOT / "docs"
API = (DOCS / "api.md").read_text(encoding="utf-8")


def navigation() -> list[str]:
    """List the pages of mkdocs.yml's nav, by their paths in docs/."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    (nav,) = re.findall(r"^nav:\n((?:[ ]+- .*\n)+)", text, re.MULTILINE)
    return re.findall(r"(\S+\.md)$", nav, re.MULTILINE)


def entries() -> set[str]:
    """List what the Python page has: a directive each, or a name among those of the internals."""
    directives = set(re.findall(r"^::: (\S+)$", API, re.MULTILINE))
    (internals,) = re.findall(r"^### For vzarr itself\n\n(.*?)\n\n", API, re.MULTILINE | re.DOTALL)
    return directives | {f"vzarr.Session.{name}" for name in re.findall(r"`(\w+)`", internals)}


def test_every_page_is_in_the_navigation_once():
    pages = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
    assert sorted(navigation()) == pages


def test_every_public_name_has_an_entry():
    assert {f"vzarr.{name}" for name in vzarr.__all__} - entries() == set()


@pytest.mark.parametrize("kind", [vzarr.Repository, vzarr.Session])
def test_every_public_method_has_an_entry(kind):
    public = [name for name, _ in inspect.getmembers(kind) if not name.startswith("_")]
    assert {f"vzarr.{kind.__name__}.{name}" for name in public} - entries() == set()


def test_every_entry_is_something_with_a_docstring():
    pytest.importorskip("fsspec")
    for entry in entries():
        assert inspect.getdoc(pkgutil.resolve_name(entry)), entry


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings_handlers.python")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "api" / "index.html").read_text(encoding="utf-8")
    for name in vzarr.__all__:
        assert f'id="vzarr.{name}"' in page, name
    assert (tmp_path / "benchmarks" / "bulk.svg").exists()
