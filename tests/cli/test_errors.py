"""Bad input: one line, the right exit code, and nothing created or changed."""

from __future__ import annotations

import errno
import os

import pytest

import vzarr
from vzarr.command import Commands

READING = [
    ("info",),
    ("tree",),
    ("log",),
    ("status",),
    ("show",),
    ("branch",),
    ("tag",),
    ("diff", "main"),
    ("branch", "--reflog", "main"),
]
WRITING = [
    ("branch", "new"),
    ("branch", "--delete", "main"),
    ("branch", "--rename", "main", "x"),
    ("branch", "--reset", "main", "--to", "main"),
    ("tag", "new"),
    ("tag", "--delete", "x"),
]


def _snapshot(directory):
    return {
        entry.name: (entry.read_bytes() if entry.is_file() else None, entry.stat().st_mtime_ns)
        for entry in directory.iterdir()
    }


def _fails(run, *arguments, code=1):
    result = run(*arguments, code=code)
    assert result.stdout == ""
    assert result.stderr.startswith("vzarr: error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    return result.stderr


def _at(arguments, file):
    return (arguments[0], file, *arguments[1:])


@pytest.mark.parametrize("arguments", READING + WRITING)
@pytest.mark.parametrize("kind", ["missing", "directory", "empty", "text", "lmdb", "nowhere"])
def test_what_is_no_repository(tmp_path, run, run_json, arguments, kind):
    file = tmp_path / "thing"
    match kind:
        case "directory":
            file.mkdir()
        case "empty":
            file.touch()
        case "text":
            file.write_text("once upon a time\n" * 1000)
        case "lmdb":
            import lmdb

            lmdb.open(str(file), subdir=False, lock=False).close()
        case "nowhere":
            file = tmp_path / "no" / "thing"
    before = _snapshot(tmp_path)
    message = _fails(run, *_at(arguments, file))
    assert str(file) in message
    if kind in ("missing", "nowhere"):
        assert f"vzarr init {file}" in message
    error = run_json(*_at(arguments, file), code=1)
    assert set(error) == {"error"}
    assert set(error["error"]) == {"type", "message"}
    assert issubclass(getattr(vzarr, error["error"]["type"]), vzarr.VzarrError)
    assert _snapshot(tmp_path) == before


@pytest.mark.parametrize("kind", ["file", "directory", "dangling"])
def test_init_where_something_is(tmp_path, run, kind):
    file = tmp_path / "thing"
    if kind == "file":
        file.write_text("mine")
    elif kind == "directory":
        file.mkdir()
    else:
        file.symlink_to("gone")
    before = sorted(tmp_path.iterdir())
    assert "exists already" in _fails(run, "init", file)
    assert sorted(tmp_path.iterdir()) == before


def test_init_in_no_directory(tmp_path, run):
    _fails(run, "init", tmp_path / "no" / "thing")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_path(run):
    for verb in ("init", "log"):
        _fails(run, verb, "")


@pytest.mark.parametrize(
    "ref",
    [
        "nope",
        "main~9",
        "main^2",
        "main@{yesterday}",
        "main@{1999-01-01}",
        "abc",
        "0" * 64,
        "../main",
        "\udc80",
    ],
)
@pytest.mark.parametrize(
    "arguments",
    [
        ("log", "REF"),
        ("tree", "REF"),
        ("show", "REF"),
        ("diff", "REF", "main"),
        ("diff", "main", "REF"),
        ("branch", "new", "--at", "REF"),
        ("branch", "--reset", "main", "--to", "REF"),
        ("branch", "--reset", "main", "--to", "main", "--expected", "REF"),
        ("tag", "new", "--at", "REF"),
    ],
    ids=" ".join,
)
def test_unknown_refs(ocean, run, run_json, arguments, ref):
    before = run_json("branch", ocean), run_json("tag", ocean)
    _fails(run, *_at([ref if part == "REF" else part for part in arguments], ocean))
    assert (run_json("branch", ocean), run_json("tag", ocean)) == before


def test_an_ambiguous_beginning(path, run, run_json):
    seen: dict[str, str] = {}
    with vzarr.open(path, durability="normal") as repo:
        while True:
            commit = repo.commit("another", allow_empty=True)
            if commit[:4] in seen:
                break
            seen[commit[:4]] = commit
    message = _fails(run, "show", path, commit[:4])
    assert "ambiguous" in message
    assert commit[:12] in message
    assert seen[commit[:4]][:12] in message
    assert run_json("show", path, commit[:4], code=1)["error"]["type"] == "InvalidInputError"


@pytest.mark.parametrize("name", ["", "a b", "a..b", "/a", "a~1", "@", "HEAD", "a.lock", "x" * 401])
def test_bad_names(ocean, run, run_json, name):
    before = run_json("branch", ocean), run_json("tag", ocean)
    for arguments in (
        ("branch", ocean, name),
        ("branch", ocean, "-m", "dev", name),
        ("tag", ocean, name),
    ):
        message = _fails(run, *arguments)
        assert "is no branch name" in message or "is no tag name" in message
    assert (run_json("branch", ocean), run_json("tag", ocean)) == before


@pytest.mark.parametrize("arguments", [("-d", "x"), ("-m", "x", "y"), ("--reflog", "x")])
def test_unknown_branches(ocean, run, arguments):
    message = _fails(run, "branch", ocean, *arguments)
    assert "there is no branch 'x'" in message
    assert "repo." not in message


def test_an_unknown_tag(ocean, run):
    assert "there is no tag 'x'" in _fails(run, "tag", ocean, "-d", "x")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("log",),
        ("log", "FILE", "main", "more"),
        ("log", "FILE", "-n", "-1"),
        ("log", "FILE", "-n", "many"),
        ("log", "FILE", "--nonsense"),
        ("diff", "FILE"),
        ("branch", "FILE", "a", "--delete", "b"),
        ("branch", "FILE", "--delete", "a", "--reflog", "b"),
        ("branch", "FILE", "--at", "main"),
        ("branch", "FILE", "--to", "main"),
        ("branch", "FILE", "--expected", "main"),
        ("branch", "FILE", "--reset", "main"),
        ("branch", "FILE", "--rename", "main"),
        ("tag", "FILE", "a", "--delete", "b"),
        ("tag", "FILE", "--at", "main"),
        ("tag", "FILE", "-m", "why"),
        ("demo", "FILE"),
    ],
    ids=" ".join,
)
def test_wrong_usage(ocean, run, arguments):
    before = _snapshot(ocean.parent)
    result = run(*[str(ocean) if part == "FILE" else part for part in arguments], code=2)
    assert result.stdout == ""
    assert "Error: " in result.stderr or "Usage: " in result.stderr
    assert _snapshot(ocean.parent) == before


def test_a_file_that_cannot_be_read(ocean, run, monkeypatch):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    ocean.chmod(0)
    _fails(run, "log", ocean)
    ocean.chmod(0o600)


def test_a_file_that_cannot_be_written(ocean, run):
    if os.geteuid() == 0:
        pytest.skip("root writes everything")
    ocean.chmod(0o400)
    run("log", ocean)
    _fails(run, "branch", ocean, "new")
    ocean.chmod(0o600)


def test_errors_of_the_system(ocean, run, run_json, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "the disk\nis on fire")

    monkeypatch.setattr(vzarr, "open", fail)
    assert "the disk is on fire" in _fails(run, "log", ocean)
    assert run_json("log", ocean, code=1)["error"]["type"] == "OSError"


def test_bugs_are_not_hidden(ocean, run, monkeypatch):
    def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(vzarr, "open", fail)
    with pytest.raises(RuntimeError):
        run("log", ocean)


def test_an_interrupt(ocean, run, monkeypatch):
    def press(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(vzarr, "open", press)
    result = run("log", ocean, code=130)
    assert (result.stdout, result.stderr) == ("", "vzarr: interrupted\n")


def test_every_verb_goes_through_one_place():
    from vzarr.cli import commands

    assert isinstance(commands, Commands)
