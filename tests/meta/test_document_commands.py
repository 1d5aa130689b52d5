"""The commands in the documents work: as typed there, between the Python beside them."""

from __future__ import annotations

import pytest

from tests.meta.documents import Command, blocks, commands, matches, pages, program
from tests.meta.test_documents import NOT_RUN, run_page

# Pages whose commands are not run here, and why.
NOT_TYPED = {
    "docs/cli.md": "generated from the command line's own help, which tests/cli looks after",
}


@pytest.mark.parametrize(
    "page",
    [
        page
        for page in pages()
        if page not in NOT_RUN
        and page not in NOT_TYPED
        and any(block.language == "console" for block in blocks(page))
    ],
)
def test_the_commands_of_a_page_work(page, tmp_path):
    run_page(page, tmp_path)


def test_pages_that_are_not_typed_are_there():
    assert set(NOT_TYPED) <= set(pages())


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("", "whatever", True),
        ("On main", "On main\n", True),
        ("commit …\nAuthor Ada", "commit 1234\nAuthor: Ada\n", False),
        ("commit …\nAuthor: …", "commit 1234\nAuthor: Ada\n", True),
        ("a.b", "acb", False),
        ("…, whole", "4 chunks, whole, mostly", False),
    ],
)
def test_what_a_page_says_is_compared(expected, printed, same):
    assert matches(expected, printed) is same


def test_commands_are_found_with_what_they_print():
    text = "$ vzarr log a\none\n\ntwo\n$ vzarr du a   # why\n"
    assert list(commands(text)) == [
        Command("vzarr log a", "one\n\ntwo"),
        Command("vzarr du a   # why", ""),
    ]


@pytest.mark.parametrize("page", pages())
def test_programs_keep_the_line_numbers_of_their_pages(page):
    lines = program(page).splitlines()
    for block in blocks(page):
        if block.language == "python" and block.title is None:
            text = block.text.splitlines()
            assert lines[block.line : block.line + len(text)] == text
