"""What only a process of its own can show: start-up, streams, signals, terminals."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import pytest

import vzarr

VERBS = ["init", "info", "tree", "log", "status", "show", "diff", "branch", "tag", "check"]


def _arguments(verb, ocean, tmp_path):
    match verb:
        case "init":
            return verb, tmp_path / "new.vzarr"
        case "diff":
            return verb, ocean, "main", "dev", "--no-values"
        case "show":
            return verb, ocean, "--no-values"
    return verb, ocean


def test_the_console_script(ocean):
    from importlib.metadata import entry_points

    from vzarr.cli import main

    (script,) = entry_points(group="console_scripts", name="vzarr")
    assert script.load() is main


def test_no_verb_but_demo_imports_zarr(ocean, tmp_path, spawn):
    calls = [[str(part) for part in _arguments(verb, ocean, tmp_path)] for verb in VERBS]
    calls += [[*call, "--json"] for call in calls[1:]]
    program = f"""
import sys
from vzarr.cli import commands
for arguments in {calls!r}:
    assert commands.main(arguments, standalone_mode=False) in (None, 0)
    found = {{"zarr", "numpy", "xarray", "asyncio"}} & set(sys.modules)
    assert not found, (arguments, found)
"""
    done = spawn(program=("-c", program))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("verb", ["log", "branch", "diff"])
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_reader_that_has_gone(ocean, tmp_path, spawn, verb, flags):
    receiver, sender = os.pipe()
    os.close(receiver)
    try:
        done = spawn(*_arguments(verb, ocean, tmp_path), *flags, stdout=sender)
    finally:
        os.close(sender)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_disk_that_is_full(ocean, spawn):
    with open("/dev/full", "w") as full:
        done = spawn("log", ocean, stdout=full)
    assert done.returncode == 1
    assert done.stderr.startswith("vzarr: error: ")
    assert done.stderr.count("\n") == 1


def test_ctrl_c(ocean, spawn):
    program = """
import signal, vzarr, vzarr.cli
vzarr.open = lambda *_: signal.raise_signal(signal.SIGINT)
vzarr.cli.main()
"""
    done = spawn("log", ocean, program=("-c", program))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "vzarr: interrupted\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding(ocean, spawn, encoding):
    with vzarr.open(ocean) as repo:
        repo.commit("日本 → ü", allow_empty=True)
    for flags in ([], ["--json"]):
        done = spawn("log", ocean, *flags, env={"PYTHONIOENCODING": encoding}, encoding=encoding)
        assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["commits"][0]["message"] == "日本 → ü"


def test_a_path_that_is_no_unicode(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.vzarr"
    done = subprocess.run(
        [sys.executable, "-m", "vzarr", "info", path, "--json"], capture_output=True, timeout=50
    )
    assert done.returncode == 1
    assert done.stderr.startswith(b"vzarr: error: there is no file")
    assert done.stderr.count(b"\n") == 1
    assert json.loads(done.stdout)["error"]["type"] == "NotFoundError"


# ── on a terminal ────────────────────────────────────────────────────────────────────────────────


def on_terminal(*arguments, cwd, columns=100, program=("-m", "vzarr"), **environment):
    """Run a command on a pseudo-terminal and give the exit code and what it shows."""
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        process = subprocess.Popen(
            [sys.executable, "-W", "error", *program, *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=cwd,
            env={**os.environ, "TERM": "xterm-256color", **environment},
        )
    finally:
        os.close(theirs)
    shown = []
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:
            # The terminal's other side is closed.
            break
        if not part:
            break
        shown.append(part)
    os.close(ours)
    return process.wait(timeout=50), b"".join(shown).decode().replace("\r\n", "\n")


def test_colours_and_short_ids_on_a_terminal(ocean, tmp_path):
    with vzarr.open(ocean, "r") as repo:
        head = repo.branches["main"]
    code, text = on_terminal("branch", ocean, cwd=tmp_path)
    assert code == 0
    assert "\x1b[" in text
    assert head[:12] in text
    assert head[:13] not in text
    assert "branch" in text.splitlines()[0]
    _, text = on_terminal("diff", ocean, "main", "dev", cwd=tmp_path)
    assert "\x1b[36m[0:1, 0:3]" in text
    _, text = on_terminal("log", ocean, cwd=tmp_path)
    assert head in text


def test_no_color(ocean, tmp_path):
    for verb in ("log", "status", "tag"):
        _, text = on_terminal(verb, ocean, cwd=tmp_path, NO_COLOR="1")
        assert "\x1b[3" not in text


def test_a_narrow_terminal(ocean, tmp_path):
    _, text = on_terminal("status", ocean, cwd=tmp_path, columns=40, NO_COLOR="1")
    rows = text.splitlines()[1:]
    assert len(rows) == 3
    assert all("…" in row for row in rows)


def test_an_error_on_a_terminal(tmp_path):
    code, text = on_terminal("log", "nope", cwd=tmp_path, NO_COLOR="1")
    assert code == 1
    assert text.startswith("vzarr: error: there is no file nope")


def test_json_on_a_terminal(ocean, tmp_path):
    code, text = on_terminal("log", ocean, "--json", cwd=tmp_path)
    assert code == 0
    assert len(json.loads(text)["commits"]) == 3


def test_a_pager(ocean, tmp_path):
    pager = {"VZARR_PAGER": "sed s/^/PAGED/"}
    for verb in (["log"], ["log", "--graph"], ["show", "dev"], ["diff", "main", "dev"]):
        verb.insert(1, ocean)
        verb += ["--no-values"] * (verb[0] != "log")
        code, text = on_terminal(*verb, cwd=tmp_path, **pager)
        assert code == 0
        assert all(line.startswith("PAGED") for line in text.splitlines())
        # It shows colours, though it is no terminal itself.
        assert "\x1b[33m" in text
        _, plain = on_terminal("--no-pager", *verb, cwd=tmp_path, **pager)
        assert plain == text.replace("PAGED", "")
    assert "PAGED" not in on_terminal("log", ocean, "--json", cwd=tmp_path, **pager)[1]
    assert "PAGED" not in on_terminal("info", ocean, cwd=tmp_path, **pager)[1]
    _, text = on_terminal("log", ocean, cwd=tmp_path, VZARR_PAGER="", PAGER="sed s/^/PAGED/")
    assert "PAGED" not in text


def test_a_pager_that_is_left(path, tmp_path):
    with vzarr.open(path, durability="normal") as repo:
        session = repo.session("main")
        for number in range(2000):
            session.commit(f"step {number}", allow_empty=True)
        session.close()
    code, text = on_terminal("log", path, cwd=tmp_path, VZARR_PAGER="head -n 5")
    assert code == 0
    assert len(text.splitlines()) == 5
    code, text = on_terminal("log", path, cwd=tmp_path, VZARR_PAGER="no-such-pager")
    assert code == 0
    assert "no-such-pager" in text


def test_errors_are_not_paged(ocean, tmp_path):
    pager = {"VZARR_PAGER": "sed s/^/PAGED/", "NO_COLOR": "1"}
    code, text = on_terminal("log", ocean, "nope", cwd=tmp_path, **pager)
    assert code == 1
    assert text.startswith("vzarr: error: ")
    code, text = on_terminal("show", ocean, "--path", "x", cwd=tmp_path, **pager)
    assert code == 1
    assert text.splitlines()[-1].startswith("vzarr: error: ")


def test_what_takes_long_says_so(ocean, tmp_path):
    program = """
import threading
from vzarr import output
output.PATIENCE_SECONDS = 0.0
shown = threading.Event()
out = output.Output()
with out.waiting("measure"):
    # Nothing sets it: the bar draws itself ten times a second meanwhile.
    shown.wait(1.5)
print("done")
"""
    code, text = on_terminal(cwd=tmp_path, program=("-c", program))
    assert code == 0
    assert "measure" in text
    assert text.rstrip().endswith("done")
    code, text = on_terminal(cwd=tmp_path, program=("-c", program.replace("= 0.0", "= 9.0")))
    assert text == "done\n"
