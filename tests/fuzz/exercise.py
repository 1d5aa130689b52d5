"""Use a repository in every way there is, and tell what came of it.

``python -m tests.fuzz.exercise`` reads paths of repositories, one a line, and answers
each with a line of JSON: what each use gave. That is ``ok``, the name of an error of vzarr's, or,
with a ``!`` before it, what must not be. Each repository is used in a process of its own, forked
from this one, with 2 GiB of address space, and a use that takes too long is ended by a signal.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from itertools import islice
from typing import Any
from unittest import mock

# All that will be needed, before the first fork.
import numpy as np  # noqa: F401
import rich.progress  # noqa: F401
import zarr  # noqa: F401

import vzarr
from vzarr import check, elements, exporting  # noqa: F401
from vzarr.cli import commands
from vzarr.icestorage import silence

ADDRESS_SPACE_BYTES = 2 << 30
SECONDS = 60
_SOME = 2000
# What no output may hold: controls other than line ends, and marks of the direction of writing.
_FORBIDDEN = [*range(9), *range(11, 32), *range(127, 160), 0x202E, 0x2066, 0x2028]

Use = Callable[[vzarr.Repository], object]


def _some(found: Iterator[Any]) -> list[Any]:
    return list(islice(found, _SOME))


def _each(repo: vzarr.Repository, use: Callable[[vzarr.Session, str], object]) -> None:
    """Do something with each node; a refusal of one does not keep us from the others."""
    session = repo.session("main")
    for path, _, _ in islice(session.hierarchy.nodes(), 200):
        try:
            use(session, path)
        except vzarr.VzarrError:
            continue


def _write(repo: vzarr.Repository) -> None:
    with repo.transaction("main", "mine") as store:
        store.session.set("mine.txt", b"mine")


def _overwrite(repo: vzarr.Repository) -> None:
    session = repo.session("main")
    for key in ("zarr.json", "t/zarr.json", "large/zarr.json", "g/g/zarr.json"):
        session.set(key, b'{"zarr_format":3,"node_type":"group"}')
    session.commit("over it")


def _remove(repo: vzarr.Repository) -> None:
    session = repo.session("main")
    for name in session.children("")[:50]:
        session.delete_below(name)
    session.commit("away with it", allow_empty=True)


def _export(repo: vzarr.Repository, name: str) -> None:
    """Export to a directory, which must have nothing else in it afterwards."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            with warnings.catch_warnings(action="ignore", category=vzarr.BlockSizeWarning):
                repo.export_to(os.path.join(directory, name))
        except vzarr.VzarrError:
            assert os.listdir(directory) == []
            raise
        assert os.listdir(directory) == [name]


def _export_to_icechunk(repo: vzarr.Repository) -> None:
    """Export to an Icechunk repository in memory, where it is installed; Python 3.11 has none.

    Each commit is a transaction there, so thousands of them take minutes, as they should.
    """
    try:
        import icechunk
    except ImportError:
        return
    silence()
    if repo.info().commits > _SOME:
        return
    repo.export_to(icechunk.in_memory_storage())


def _clone(repo: vzarr.Repository, **options: Any) -> None:
    """Clone it, and fetch from it into what then is there."""
    with tempfile.TemporaryDirectory() as directory:
        target = os.path.join(directory, "clone.vzarr")
        vzarr.clone(repo.path, target, author="Test <test@example.org>", **options)
        with vzarr.open(target, "r+", author="Test <test@example.org>") as clone:
            clone.fetch()
            str(clone.check("quick"))


def _bundle(repo: vzarr.Repository, **options: Any) -> None:
    with tempfile.TemporaryDirectory() as directory:
        try:
            repo.bundle(os.path.join(directory, "all.vzb"), **options)
        except vzarr.VzarrError:
            assert os.listdir(directory) == []
            raise


def _sessions(repo: vzarr.Repository) -> None:
    for found in repo.sessions():
        str(found)
        if found.kind == "session" and found.checkpointed:
            repo.resume(found.id)


READING: dict[str, Use] = {
    "info": lambda repo: str(repo.info()),
    "branches": lambda repo: dict(repo.branches),
    "tags": lambda repo: [str(tag) for tag in repo.tags.details()],
    "reflog": lambda repo: [str(move) for move in repo.reflog("main")],
    "log": lambda repo: [str(commit) for commit in repo.log("main")],
    "log of a path": lambda repo: repo.log("main", path="t", limit=3),
    "show": lambda repo: str(repo.show("main")),
    "far back": lambda repo: repo.show("main~999999999999"),
    "very far back": lambda repo: repo.show("main~" + "9" * 5000),
    "as of": lambda repo: repo.session("main", at=datetime(2020, 1, 1, tzinfo=UTC)),
    "tree": lambda repo: str(repo.tree("main")),
    "keys": lambda repo: _some(repo.session("main").keys("")),
    "children": lambda repo: _each(repo, lambda session, path: session.children(path)),
    "sums": lambda repo: _each(repo, lambda session, path: session.sums(path)),
    "get": lambda repo: [repo.session("main").get(key) for key in ("t/c/0", "zarr.json", "a/b/c")],
    "diff": lambda repo: str(repo.diff("main~1", "main")),
    "chunks of diff": lambda repo: [
        _some(change.iter_chunks()) for change in repo.diff("main~1", "main").changes
    ],
    "blame": lambda repo: _each(repo, lambda _, path: str(repo.blame(path))),
    "root": lambda repo: repo.root_id("main"),
    "sessions": _sessions,
    "quick check": lambda repo: str(repo.check("quick")),
    "full check": lambda repo: str(repo.check("full")),
    "du": lambda repo: str(repo.du()),
    "export": lambda repo: _export(repo, "out.zarr"),
    "export, zip": lambda repo: _export(repo, "out.zip"),
    "export, CAR": lambda repo: _export(repo, "out.car"),
    "export, Icechunk": _export_to_icechunk,
    "clone": _clone,
    "clone, a part": lambda repo: _clone(repo, path="t", depth=1),
    "bundle": _bundle,
    "bundle, a part": lambda repo: _bundle(repo, refs="main", path="t", depth=1),
    "mapping": lambda repo: _some(iter(repo.mapping("main"))),
}
WRITING: dict[str, Use] = {
    "write": _write,
    "merge": lambda repo: repo.merge("dev", into="main"),
    "merge of theirs": lambda repo: repo.merge("dev", into="main", strategy="theirs"),
    "merge by element": lambda repo: repo.merge(
        "dev", into="main", strategy=lambda conflict: conflict.base if conflict.path else "ours"
    ),
    "overwrite": _overwrite,
    "move": lambda repo: repo.session("main").move("t", "u"),
    "branch": lambda repo: repo.branches.create("mine", at="main"),
    "tag": lambda repo: repo.tags.create("mine", at="main"),
    "revert": lambda repo: repo.revert("main", on="main"),
    "expire": lambda repo: repo.expire(older_than=datetime(2000, 1, 1, tzinfo=UTC)),
    "gc": lambda repo: repo.gc(),
    "remove": _remove,
    "redact": lambda repo: repo.redact("t", reason="gone", force=True),
    "compact": lambda repo: repo.compact(),
    "remotes": lambda repo: [str(each) for each in repo.remotes.values()],
    "remote": lambda repo: repo.remotes.add("lab", "/nowhere/x.vzarr"),
    "fetch": lambda repo: repo.fetch(),
}
VERBS = [
    ["info"], ["tree"], ["log"], ["log", "--oneline"], ["log", "--path", "t"], ["status"],
    ["show"], ["show", "main~1"], ["diff", "main~1", "main"], ["branch"],
    ["branch", "--reflog", "main"], ["tag"], ["blame", "t"], ["check"],
    ["check", "--full"], ["sessions"], ["gc", "--dry-run"], ["merge", "dev", "--dry-run"],
]  # fmt: skip


def _judged(use: Callable[[], object]) -> str:
    def late(*_: object) -> None:
        raise _LateError

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        use()
    except vzarr.VzarrError as error:
        return type(error).__name__
    except _LateError:
        return f"! took more than {SECONDS} s"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"! {type(error).__name__}: {str(error)[:200]} in {where.filename}:{where.lineno}"
    finally:
        signal.alarm(0)
    return "ok"


class _LateError(BaseException):
    """Raised by the alarm, for nobody to catch."""


def _verb(path: str, arguments: list[str], *, as_json: bool) -> None:
    """Run the command line as on a terminal, and look at what it prints."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    code: object = None
    arguments = [arguments[0], path, *arguments[1:], *(["--json"] if as_json else [])]
    with redirect_stdout(out), redirect_stderr(err):
        try:
            commands(arguments)
        except SystemExit as ended:
            code = ended.code
        finally:
            out.flush()
            err.flush()
    assert code in (0, 1, None), f"exit code {code}: {err.buffer.getvalue()[-200:]!r}"
    for stream in (out, err):
        text = stream.buffer.getvalue().decode()
        assert isinstance(text, str)
        found = [character for character in text if ord(character) in _FORBIDDEN]
        assert not found, f"{found!r} printed by {arguments}"
        lines = [line for line in text.split("\n") if line.startswith("commit 0000")]
        assert not lines, f"a line that is not ours printed by {arguments}"
        assert "Traceback" not in text
    if as_json:
        json.loads(out.buffer.getvalue() or b"{}")


def exercise(path: str) -> dict[str, str]:
    """Use one repository; give what came of each use."""
    found: dict[str, str] = {}
    for mode, uses in (("r", READING), ("r+", WRITING)):
        for name, use in uses.items():

            def opened(use: Use = use, mode: Any = mode) -> None:
                with vzarr.open(path, mode, author="Test <test@example.org>") as repo:
                    use(repo)

            found[name] = _judged(opened)
        if mode == "r":
            for arguments in VERBS:
                for as_json in (False, True):
                    name = " ".join(["vzarr", *arguments, *(["--json"] if as_json else [])])
                    found[name] = _judged(lambda a=arguments, j=as_json: _verb(path, a, as_json=j))
    return found


def _in_a_child(path: str) -> dict[str, str]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        limits = (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        try:
            with mock.patch.dict(os.environ, {"NO_COLOR": "1"}):
                answer = exercise(path)
        except BaseException as error:
            answer = {"all of it": f"! {error!r}"}
        with os.fdopen(writing, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) or not text:
        return {"all of it": f"! ended by signal {status & 127}, code {status >> 8}"}
    answer = json.loads(text)
    assert isinstance(answer, dict)
    return answer


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(_in_a_child(line.rstrip("\n"))), flush=True)
