"""docs/cli.md says what --help says."""

from tests.cli.generate_docs import TARGET, render


def test_the_page_is_fresh():
    assert TARGET.read_text(encoding="utf-8") == render(), (
        "docs/cli.md is stale; write it again: python -m tests.cli.generate_docs"
    )
