"""The picture of a history: every commit once, every line from a commit to its parents."""

from __future__ import annotations

from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vzarr.graph import children_first, draw, layout

History = list[tuple[str, str]]
"""Commits of one letter, each with its parents."""


def text(cells) -> str:
    return "".join(part for part, _ in cells).rstrip()


def picture(history: History, style="ascii", shown=None) -> list[str]:
    lines = []
    for row in layout(history, shown):
        drawing = draw(row, style)
        if not row.hidden:
            lines.append(f"{text(drawing.commit)} {row.commit}")
        if drawing.turns:
            lines.append(text(drawing.turns))
    return lines


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], []),
        ([("b", "a"), ("a", "")], ["* b", "* a"]),
        (
            [("m", "cb"), ("c", "a"), ("b", "a"), ("a", "")],
            ["* m", r"|-\ "[:-1], "* | c", "| * b", "|-/", "* a"],
        ),
        # A branch that is not merged.
        ([("c", "a"), ("b", "a"), ("a", "")], ["* c", "| * b", "|-/", "* a"]),
        # Several roots: below one stands nothing that is no parent of it.
        (
            [("b", "a"), ("a", ""), ("d", "c"), ("c", ""), ("e", "")],
            ["* b", "* a", "  * d", "  * c", "* e"],
        ),
        # Merges that crossed.
        (
            [("m", "ab"), ("n", "ba"), ("a", "r"), ("b", "r"), ("r", "")],
            ["* m", r"|-\ "[:-1], "| | * n", "|-+-/", "* | a", "| * b", "|-/", "* r"],
        ),
        # A line that goes below another one.
        (
            [("x", "w"), ("m", "cb"), ("b", "a"), ("w", "a"), ("c", "a"), ("a", "")],
            [
                "* x", "| * m", r"| |-\ "[:-1], "| | * b", "* | | w", "|-|-/", "| * c",
                "|-/", "* a",
            ],
        ),
    ],
)  # fmt: skip
def test_pictures(history, expected):
    assert picture(history) == expected


def test_with_box_characters():
    history = [("m", "cb"), ("c", "a"), ("b", "a"), ("a", "")]
    assert picture(history, "box") == ["● m", "├─╮", "● │ c", "│ ● b", "├─╯", "● a"]


def test_what_is_hidden_leaves_its_lines():
    history = [("e", "d"), ("d", "c"), ("c", "a"), ("b", "a"), ("a", "")]
    assert picture(history, shown={"e": 1, "c": 1, "a": 1}) == ["* e", "* c", "* a"]
    history = [("m", "xy"), ("x", "r"), ("y", "r"), ("r", "")]
    assert picture(history, shown={"m": 1, "r": 1}) == ["* m", r"|-\ "[:-1], "|-/", "* r"]
    # Nothing that is seen leads to it.
    assert picture([("t", "a"), ("a", "")], shown={"a": 1}) == ["* a"]


def test_a_history_without_end():
    def endless():
        number = 0
        while True:
            yield f"{number}", [f"{number + 1}"]
            number += 1

    assert [row.commit for row in islice(layout(endless()), 3)] == ["0", "1", "2"]


@st.composite
def histories(draw_from, *, skewed: bool = False) -> History:
    """Commits from the newest on, with up to three parents each."""
    names = [chr(ord("a") + number) for number in range(draw_from(st.integers(0, 14)))]
    found = []
    for number, name in enumerate(names):
        older = names[number + 1 :]
        parents = (
            st.lists(st.sampled_from(older), max_size=3, unique=True) if older else st.just([])
        )
        found.append((name, "".join(draw_from(parents))))
    return draw_from(st.permutations(found)) if skewed else found


UP, DOWN, LEFT, RIGHT = (-1, 0), (1, 0), (0, -1), (0, 1)
OPENINGS = {
    "│": {UP, DOWN}, "─": {LEFT, RIGHT}, "╭": {DOWN, RIGHT}, "╮": {DOWN, LEFT},
    "╰": {UP, RIGHT}, "╯": {UP, LEFT}, "├": {UP, DOWN, RIGHT}, "┤": {UP, DOWN, LEFT},
    "┬": {DOWN, LEFT, RIGHT}, "┴": {UP, LEFT, RIGHT}, "┼": {UP, DOWN, LEFT, RIGHT},
}  # fmt: skip


def follow(lines: list[str], start: tuple[int, int]) -> set[tuple[int, int]]:
    """Go along the lines from a mark, as eyes do, and give the marks that they lead to."""
    found = set()
    waiting = [(start, DOWN)]
    while waiting:
        (row, column), way = waiting.pop()
        row, column = row + way[0], column + way[1]
        sign = lines[row][column] if row < len(lines) and column < len(lines[row]) else " "
        if sign == "●":
            found.add((row, column))
        elif sign == "│" and way in (LEFT, RIGHT):
            # Below a line that passes.
            waiting.append(((row, column), way))
        else:
            back = (-way[0], -way[1])
            assert back in OPENINGS[sign], f"a line ends at {row}, {column}"
            ways = OPENINGS[sign] - {back, UP}
            if way == DOWN and (row - 1, column) != start and DOWN in ways:
                # What joins it here comes from elsewhere.
                ways = {DOWN}
            waiting += [((row, column), each) for each in ways]
    return found


@given(histories())
def test_each_commit_is_there_and_each_line_leads_to_a_parent(history):
    lines, marks = [], {}
    for row in layout(history):
        drawing = draw(row, "box")
        marks[len(lines), 2 * row.column] = row.commit
        lines.append(text(drawing.commit))
        assert lines[-1].count("●") == 1
        if drawing.turns:
            lines.append(text(drawing.turns))
    assert list(marks.values()) == [commit for commit, _ in history]
    for place, commit in marks.items():
        parents = dict(history)[commit]
        if not parents:
            row, column = place
            below = lines[row + 1] if row + 1 < len(lines) else ""
            assert below[column : column + 1] in ("", " ", "─")
            continue
        assert {marks[mark] for mark in follow(lines, place)} == set(parents)


@given(histories())
def test_the_margin_goes_on_where_the_next_row_begins(history):
    rows = list(layout(history))
    for above, row in pairwise(rows):
        assert set(above.below) == {
            *row.passing,
            *row.turning,
            *([row.column] if row.from_above else []),
        }
    assert not rows or rows[-1].below == ()


@given(histories(skewed=True))
def test_children_first(history):
    order = list(children_first(history))
    assert sorted(order) == sorted(commit for commit, _ in history)
    place = {commit: number for number, commit in enumerate(order)}
    assert all(place[commit] < place[each] for commit, parents in history for each in parents)


@given(histories())
def test_an_order_that_is_right_is_kept(history):
    assert list(children_first(history)) == [commit for commit, _ in history]
