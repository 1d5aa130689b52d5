"""Repositories from strangers: every use of them gives an answer or a typed error, and soon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import lmdb
import pytest

import vzarr
from tests.fuzz.crafted import CRAFTED, ESCAPES, GROUP, craft, lease
from vzarr.check import check_file
from vzarr.environment import Environment
from vzarr.format import Digest, encode_lease, reflog_key, session_key
from vzarr.printable import printable

TORTURE = os.environ.get("VZARR_TORTURE") == "1"
# One of each kind; VZARR_TORTURE=1 has all, and the slow ones among them.
_SHORT = (
    "deep_groups",
    "lying_sums",
    "wrong_keys",
    "wrong_levels",
    "wrong_names",
    "missing_parents",
    "hostile_text",
    "odd_reflogs",
    "odd_sessions",
    "odd_session_keys",
    "pickles",
    "huge_chunks",
)
# What must not work, whatever else does; and what must.
_REFUSED = {
    "deep_groups": ["tree", "keys"],
    "missing_parents": ["log", "branches"],
    "hostile_names": ["branches", "tags"],
    "odd_reflogs": ["reflog", "write"],
    "odd_session_keys": ["gc", "sessions"],
    "pickles": ["merge"],
    "bombs": ["merge"],
    "huge_chunks": ["merge"],
}
_DONE = {
    "lying_sums": ["get", "tree"],
    "many_parents": ["log", "write", "quick check"],
    "long_history": ["log", "write", "quick check"],
    "hostile_text": ["log", "tree", "diff", "vzarr log", "vzarr tree", "vzarr diff main~1 main"],
    "hostile_documents": ["tree", "diff", "blame"],
    "odd_sessions": ["log", "write"],
    "pickles": ["log", "write", "merge of theirs"],
}


@pytest.fixture(scope="module")
def user() -> Iterator[subprocess.Popen[str]]:
    """A process that uses repositories; see ``exercise``."""
    call = [sys.executable, "-W", "ignore", "-m", "tests.fuzz.exercise"]
    with subprocess.Popen(
        call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                name not in _SHORT and not TORTURE, reason="VZARR_TORTURE=1 uses it, too"
            ),
        )
        for name in CRAFTED
    ],
)
def test_a_hostile_repository(user: subprocess.Popen[str], tmp_path: Path, name: str) -> None:
    path = tmp_path / "hostile.vzarr"
    craft(path, name)
    trap = Path(tempfile.gettempdir(), "vzarr-pwned")
    trap.unlink(missing_ok=True)
    assert user.stdin is not None
    assert user.stdout is not None
    user.stdin.write(f"{path}\n")
    user.stdin.flush()
    found: dict[str, str] = json.loads(user.stdout.readline())
    assert {use: what for use, what in found.items() if what.startswith("!")} == {}
    assert not trap.exists(), "code from the file was run"
    for use in _REFUSED.get(name, ()):
        assert found[use] != "ok", f"{use} should have been refused"
    for use in _DONE.get(name, ()):
        assert found[use] == "ok", f"{use} was refused: {found[use]}"
    # Nothing was written anywhere but to the file and the ones that LMDB keeps beside it.
    assert {each.name for each in tmp_path.iterdir()} <= {path.name, f"{path.name}-lock"}


def test_what_is_printed_commands_nobody(path: Path) -> None:
    """Also where the text is printed by the user's own program."""
    with vzarr.open(path, author="Test <test@example.org>") as repo:
        with repo.transaction("main", ESCAPES, metadata={"n": 1}) as store:
            store.session.set(f"{ESCAPES}/zarr.json", json.dumps(GROUP).encode())
        shown = [
            str(repo.show("main")),
            str(repo.tree("main")),
            str(repo.diff("main~1", "main")),
            str(repo.reflog("main")[0]),
        ]
    for text in shown:
        assert "pwned" in text
        assert printable(text, lines=True) == text
        assert "\ncommit 0000" not in text


# ── seals ────────────────────────────────────────────────────────────────────────────────────────

SEALED_RECORDS = {
    "branches": (b"dev", "branch dev:"),
    "tags": (b"v1", "tag v1:"),
    "reflog": (reflog_key("dev", 0), "move 0 of branch dev:"),
    "sessions": (session_key(b"s" * 16, 0), f"session {(b's' * 16).hex()}:"),
    "meta": (b"repository", "the record 'repository' in meta"),
}


@pytest.mark.parametrize("level", ["quick", "full"])
@pytest.mark.parametrize("database", SEALED_RECORDS)
def test_a_flipped_bit_in_a_record_without_a_digest(
    tmp_path: Path, database: str, level: Literal["quick", "full"]
) -> None:
    """It is told, also where the record would still make sense; and nobody is shown it."""
    path = tmp_path / "test.vzarr"
    with vzarr.open(path, author="Test <test@example.org>") as repo:
        repo.branches.create("dev", at="main")
        repo.tags.create("v1", at="main", message="a message")
        head = Digest(bytes.fromhex(repo.branches["main"]))
    environment = Environment.open(str(path), writable=True)
    with environment.write() as txn:
        txn.put("sessions", session_key(b"s" * 16, 0), encode_lease(lease(head, "host")))
    environment.close()
    key, told = SEALED_RECORDS[database]
    # The last byte of the record, before its seal: of a message, an operation, a digest, a name.
    arguments = {"subdir": False, "lock": False, "max_dbs": 16, "map_size": 1 << 28}
    with lmdb.open(str(path), **arguments) as raw:
        handle = raw.open_db(database.encode(), create=False)
        with raw.begin(write=True, db=handle) as transaction:
            data = bytearray(transaction.get(key))
            data[-5] ^= 1
            transaction.put(key, bytes(data))
    report = check_file(str(path), level)
    if level == "quick" and database in ("reflog", "sessions"):
        assert report.ok
    else:
        (problem,) = [found for found in report.problems if "checksum" in found.message]
        assert problem.message.startswith(told)

    def look() -> None:
        with vzarr.open(path, "r") as repo:
            dict(repo.branches)
            list(repo.tags.details())
            repo.reflog("dev")
            repo.sessions()

    with pytest.raises(vzarr.CorruptError, match="its checksum is wrong"):
        look()


def test_printable_text_stays_as_it_is() -> None:
    text = "Grüße, 世界 🌍"
    assert printable(text) == text
    assert printable("a\tb\nc", lines=True) == "a\tb\nc"
    assert printable("a\tb\nc\x1b[0m\ud800\u202e") == "a\\x09b\\x0ac\\x1b[0m\\ud800\\u202e"
