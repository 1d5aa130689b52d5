"""The documents tell the truth: their Python runs, their links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)[^)]*\)")


def code(document: str) -> str:
    """Join a document's blocks, each behind as many empty lines that line numbers match."""
    text = (ROOT / document).read_text()
    lines: list[str] = []
    for match in BLOCK.finditer(text):
        start = text.count("\n", 0, match.start(1))
        lines += [""] * (start - len(lines)) + match[1].splitlines()
    return "\n".join(lines)


@pytest.mark.parametrize("document", ["README.md", "docs/tutorial.md", "docs/guide.md"])
def test_the_python_of_a_document_runs(document, tmp_path):
    script = tmp_path / "document.py"
    script.write_text(code(document))
    command = [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", str(script)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("document", [*sorted(ROOT.glob("docs/*.md")), ROOT / "README.md"])
def test_links_between_documents_lead_somewhere(document):
    for target in LINK.findall(document.read_text()):
        if not target.startswith(("http:", "https:")):
            assert (document.parent / target).exists(), target
