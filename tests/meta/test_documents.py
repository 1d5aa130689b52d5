"""The documents tell the truth: their Python runs, their links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.meta.documents import ROOT, Block, blocks, pages, program

LINK = re.compile(r"\]\(([^)#]+)[^)]*\)")

# Pages whose Python does not run here, and why.
NOT_RUN = {
    "docs/coming-from.md": "test_coming_from runs it, the cells of its tables too",
}

# What a page needs that is not everywhere: the module, and its oldest version.
NEEDS = {"docs/beyond-one-machine.md": ("icechunk", "2.3")}


def runs(block: Block) -> bool:
    return block.language == "python" and block.title is None


@pytest.mark.parametrize(
    "page",
    [
        page
        for page in pages()
        if page not in NOT_RUN
        and any(map(runs, blocks(page)))
        and not any(block.language == "console" for block in blocks(page))
    ],
)
def test_the_python_of_a_page_runs(page, tmp_path):
    run_page(page, tmp_path)


def run_page(page, directory):
    if page in NEEDS:
        module, version = NEEDS[page]
        pytest.importorskip(module, minversion=version)
    script = directory / "page.py"
    script.write_text(program(page), encoding="utf-8")
    command = [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", str(script)]
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


def test_pages_that_do_not_run_are_there():
    assert {*NOT_RUN, *NEEDS} <= set(pages())


@pytest.mark.parametrize("page", pages())
def test_links_between_pages_lead_somewhere(page):
    document = ROOT / page
    for target in LINK.findall(document.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (document.parent / target).exists(), target
