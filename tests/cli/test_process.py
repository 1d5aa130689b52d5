"""What only a process of its own can show: start-up, streams, signals, terminals."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
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


@pytest.mark.parametrize("arguments", [["log"], ["log", "--json"], ["--help"], ["--version"]])
def test_a_disk_that_is_full(ocean, spawn, arguments):
    file = [] if arguments[0].startswith("--") else [ocean]
    with open("/dev/full", "w") as full:
        done = spawn(*arguments, *file, stdout=full)
    assert done.returncode == 1
    lost = "what is printed cannot be written: No space left on device"
    assert done.stderr == f"vzarr: error: {lost}\n"


def test_no_streams_at_all(ocean, tmp_path):
    """What began without them opens files; none of these may be what others print to."""
    good = ocean.read_bytes()
    tell = f"sh -c 'echo spoiled; echo spoiled >&2; echo $VZARR_COMMIT >> {tmp_path}/tested'"
    verbs = [f"bisect {ocean} main~2 main -- {tell}", f"log {ocean}", f"log {ocean} --json"]
    verbs += ["--help", f"check {ocean}"]
    for verb in verbs:
        for closed in (">&-", "2>&-", "<&- >&- 2>&-"):
            command = f"exec {sys.executable} -W error -m vzarr {verb} {closed}"
            done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=50)
            assert done.returncode == 0
            assert "Traceback" not in done.stderr
    assert (tmp_path / "tested").read_text().count("\n") >= 3
    assert ocean.read_bytes() == good
    # The same goes for the files of the command that bisect runs.
    (tmp_path / "test.py").write_text(
        "import os\nassert os.open(os.devnull, os.O_RDONLY) > 2, 'it gets the number of a stream'\n"
    )
    test = f"{sys.executable} {tmp_path}/test.py"
    for closed in ("2>&-", "<&- >&- 2>&-"):
        command = f"exec {sys.executable} -m vzarr bisect {ocean} main~2 main -- {test} {closed}"
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=50)
        assert done.returncode == 0
    command = f"exec {sys.executable} -m vzarr log nope >&- 2>&-"
    assert subprocess.run(command, shell=True, timeout=50).returncode == 1


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


@pytest.mark.parametrize("verb", ["blame", "du", "ls", "tag", "log --path"])
def test_an_argument_that_is_no_unicode(ocean, tmp_path, verb):
    verb, *option = verb.split()
    arguments = ["t\xfc", "-m", b"\xff"] if verb == "tag" else [*option, b"\xff"]
    done = subprocess.run(
        [sys.executable, "-m", "vzarr", verb, "--json", ocean, *arguments],
        capture_output=True,
        timeout=50,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(b"vzarr: error: ")
    assert b"not valid Unicode" in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert json.loads(done.stdout)["error"]["type"] == "InvalidInputError"


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


def test_colours_in_a_pipe_where_they_are_wanted(ocean, spawn):
    plain = spawn("branch", ocean).stdout
    assert "\x1b" not in plain
    coloured = spawn("branch", ocean, env={"FORCE_COLOR": "1", "TERM": "xterm-256color"}).stdout
    assert "\x1b[32mdev\x1b[0m" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain


def test_wide_letters_in_a_table(ocean, tmp_path):
    with vzarr.open(ocean, author="作者") as repo:
        repo.branches.create("海")
        repo.tags.create("t", message="海" * 80)
    _, text = on_terminal("branch", ocean, cwd=tmp_path, NO_COLOR="1")
    rows = [row for row in text.splitlines() if row.startswith(("dev ", "海 "))]
    # The ids begin in one column: one letter earlier where one is wide.
    assert len({row.index(row.split()[1]) + row.count("海", 0, 4) for row in rows}) == 1
    assert len(rows) == 2
    _, text = on_terminal("tag", ocean, cwd=tmp_path, NO_COLOR="1", columns=80)
    row = next(row for row in text.splitlines() if row.startswith("t "))
    assert row.endswith("…")
    assert sum(1 + (letter == "海") for letter in row) in (79, 80)


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
with out.progress() as progress:
    progress(0, 0, "measure")
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


@pytest.mark.parametrize(
    ("verb", "arguments", "result"),
    [
        ("merge", ["dev", "--no-ff"], "merge: branch main is now at"),
        ("merge", ["dev", "--dry-run"], "fast-forward: dev into main"),
        ("cherry-pick", ["dev"], "branch main is now at"),
        ("revert", ["main"], "branch main is now at"),
        ("squash", ["--since", "main~1"], "branch main is now at"),
        ("expire", ["--keep-last", "1"], "Removed"),
        ("du", [], "reachable"),
        ("blame", ["sst"], "append a step"),
    ],
)
def test_long_work_shows_how_far_it_is(ocean, tmp_path, verb, arguments, result):
    hidden_cursor = "\x1b[?25l"
    program = "import vzarr.cli, vzarr.output\nvzarr.output.PATIENCE_SECONDS = {}\nvzarr.cli.main()"
    plain = {"NO_COLOR": "1"}
    copy = tmp_path / "copy.vzarr"
    shutil.copy(ocean, copy)
    patient = ("-c", program.format(9))
    code, text = on_terminal(verb, copy, *arguments, cwd=tmp_path, program=patient, **plain)
    assert (code, hidden_cursor in text) == (0, False)
    assert result in text
    eager = ("-c", program.format(0))
    code, text = on_terminal(verb, ocean, *arguments, cwd=tmp_path, program=eager, **plain)
    assert (code, hidden_cursor in text) == (0, True)
    # The bar is gone before the result is told.
    assert result in text.rpartition("\x1b[2K")[2]
