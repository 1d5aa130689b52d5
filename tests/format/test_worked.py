"""The worked bytes of ``docs/format.md`` are those that vzarr writes, and the reader reads them."""

from __future__ import annotations

import re

import pytest

from tests.format import reader, worked


def test_the_page_is_up_to_date() -> None:
    page = worked.PAGE.read_text()
    assert worked.fill(page) == page, "run python -m tests.format.worked"


def test_the_page_shows_every_example_once() -> None:
    assert sorted(worked.names(worked.PAGE.read_text())) == sorted(worked.examples())


def _bytes_of(name: str) -> list[bytes]:
    """The runs of bytes in a block, without remarks: what somebody would copy from the page."""
    found = re.search(
        rf"<!-- worked: {name} -->\n```text\n(.*?)\n```", worked.PAGE.read_text(), re.DOTALL
    )
    assert found is not None
    runs = found[1].split("\n\n")
    return [bytes.fromhex("".join(line[:50] for line in run.split("\n"))) for run in runs]


@pytest.mark.parametrize(
    ("name", "kind", "decode"),
    [
        ("leaf", "node", reader.decode_node),
        ("last leaf", "node", reader.decode_node),
        ("inner node", "node", reader.decode_node),
        ("directory node", "node", reader.decode_node),
        ("root entry", "entry", reader.decode_entry),
        ("empty entry", "entry", reader.decode_entry),
        ("commit", "commit", reader.decode_commit),
    ],
)
def test_objects_on_the_page_have_the_digests_beside_them(name, kind, decode) -> None:
    data, digest = _bytes_of(name)
    assert reader.digest(data, kind) == digest
    decode(data)


def test_other_records_on_the_page_can_be_read() -> None:
    key, value, _ = _bytes_of("branch")
    assert reader.unsealed("branches", key, value) == _bytes_of("commit")[1]
    reader.decode_tag(*_bytes_of("tag"))
    reader.decode_move(*_bytes_of("reflog"))
    reader.decode_reference(*_bytes_of("reference"))
    assert reader.decode_entry(*_bytes_of("array entry")).layout == (0, 1)
    assert reader.decode_lease(_bytes_of("lease")[1]).base == _bytes_of("commit")[1]
    assert reader.chunk_key(reader.Layout(0, 2), "c/1/258") == _bytes_of("coordinates")[0]


def test_the_root_id_on_the_page_follows_from_the_keys_and_values() -> None:
    assert reader.root_id(worked.SNAPSHOT) == _bytes_of("root entry")[1]
    assert reader.root_id({}) == _bytes_of("empty entry")[1]
