"""``vzarr import``: what it says, and what it leaves where it fails."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import vzarr
from tests.transfer.sources import files_of, values_of
from vzarr.cli import commands
from vzarr.directories import DirectorySource
from vzarr.output import scaled
from vzarr.verbs_import import _made


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(commands, ["import", *map(str, arguments)])


def test_a_new_file(source, path):
    done = run(source, path, "--path", "sea", "-m", "got it")
    assert (done.exit_code, done.stderr) == (0, "")
    with vzarr.open(path, "r") as repo:
        commit = repo.show("main")
        assert values_of(repo, "sea") == files_of(source)
    assert commit.message == "got it"
    assert done.stdout.startswith(f"{commit.id[:12]} on main: 2 arrays, 2 groups and 18 chunks")
    again = run(source, path, "--path", "sea")
    assert again.exit_code == 0
    assert again.stdout.startswith("Nothing to commit: sea of branch main has all of")


def test_one_of_each_is_said_so(source, path):
    for other in ("README.txt", "zarr.json"):
        (source / other).unlink(missing_ok=True)
    said = run(source / "raw", path).stdout
    assert "1 array, 0 groups and " in said


def test_json(source, path):
    facts = json.loads(run(source, path, "--json").stdout)
    assert (facts["arrays"], facts["groups"], facts["chunks"]) == (2, 2, 18)
    assert facts["commit"] is not None
    again = json.loads(run(source, path, "--json").stdout)
    assert (again["commit"], again["same"]) == (None, len(files_of(source)))
    (source / "README.txt").write_text("another")
    failed = run(source, path, "--json")
    assert failed.exit_code == 1
    assert json.loads(failed.stdout)["error"]["type"] == "AlreadyExistsError"


def test_overwrite_branch_and_ref(source, path, tmp_path):
    run(source, path)
    (source / "README.txt").write_text("another")
    assert run(source, path, "--overwrite").exit_code == 0
    with vzarr.open(path) as repo:
        repo.branches.create("dev")
    other = tmp_path / "other.vzarr"
    run(path, other, "--ref", "main~1")
    assert run(path, path, "--branch", "dev", "--path", "copy").exit_code == 0
    with vzarr.open(path) as repo:
        assert values_of(repo, "copy", "dev") == files_of(source)
        assert values_of(repo, "copy") == {}
    with vzarr.open(other) as repo:
        assert values_of(repo)["README.txt"] == b"not Zarr's"


def test_consume(source, path):
    whole = files_of(source)
    done = run(source, path, "--consume")
    assert done.stdout.rstrip().endswith("The source was deleted.")
    assert not source.exists()
    with vzarr.open(path) as repo:
        assert values_of(repo) == whole


@pytest.mark.parametrize("error", [KeyboardInterrupt, PermissionError(13, "no"), MemoryError])
def test_a_new_file_stays_once_it_has_the_data(source, path, monkeypatch, error):
    whole = files_of(source)
    remove = DirectorySource.remove

    def removed(*arguments):
        remove(*arguments)
        raise error

    monkeypatch.setattr(DirectorySource, "remove", removed)
    assert run(source, path, "--consume").exit_code != 0
    assert not source.exists()
    with vzarr.open(path, "r") as repo:
        assert values_of(repo) == whole


def test_a_new_file_stays_if_another_process_wrote_to_it(path):
    with pytest.raises(ValueError, match="of ours"), _made(str(path), "main"):
        with vzarr.open(path) as repo:
            repo.session("main").commit("theirs", allow_empty=True)
        raise ValueError("of ours")
    with vzarr.open(path, "r") as repo:
        assert repo.show("main").message == "theirs"


@pytest.mark.parametrize("what", ["missing", "no zarr", "half-written", "no branch"])
def test_a_new_file_is_not_left_where_it_fails(source, path, tmp_path, what):
    arguments: list[str | Path] = [source, path]
    if what == "missing":
        arguments[0] = tmp_path / "none.zarr"
    elif what == "no zarr":
        arguments[0] = source / "raw" / "c"
    elif what == "half-written":
        (source / "raw" / "c" / "3").write_bytes(b"x")
    else:
        arguments += ["--branch", "dev"]
    done = run(*arguments)
    assert done.exit_code == 1
    assert done.stderr.startswith("vzarr: error: ")
    assert len(done.stderr.splitlines()) == 1
    assert not path.exists()


def test_one_that_is_interrupted_goes_on(source, path):
    """Ctrl-C between two chunks: what was saved is there for the next run."""
    code = """
import os, signal, sys
from vzarr import importing
from vzarr.directories import DirectorySource
from vzarr.cli import main
importing._CHECKPOINT_VALUES = importing._PIECES_AT_ONCE = DirectorySource.workers = 1
real, count = DirectorySource.read, 0
def read(self, piece):
    global count
    count += 1
    if count == 12:
        os.kill(os.getpid(), signal.SIGINT)
    return real(self, piece)
DirectorySource.read = read
main()
"""
    command = [sys.executable, "-c", code, "import", str(source), str(path)]
    # A shell that runs the tests in the background may have told us to ignore it.
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert (done.returncode, done.stderr) == (130, "vzarr: interrupted\n")
    facts = json.loads(run(source, path, "--json").stdout)
    assert facts["resumed"]
    assert facts["same"] > 0
    with vzarr.open(path) as repo:
        assert values_of(repo) == files_of(source)
        assert len(repo.log("main")) == 2


def test_a_terminal_shows_how_far_it_is(source, path):
    """With a rate and the time that is left; a pipe is not told."""
    code = """
from vzarr import output
output.PATIENCE_SECONDS = -1
from vzarr.cli import main
main()
"""
    ours, theirs = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(ours, 4096):
                shown.append(data)
        except OSError:
            # How the end of a terminal looks on Linux.
            return

    reader = threading.Thread(target=read)
    reader.start()
    command = [sys.executable, "-c", code, "import", str(source), str(path)]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    environment.pop("NO_COLOR", None)
    subprocess.run(command, stderr=theirs, stdout=subprocess.DEVNULL, env=environment, check=True)
    os.close(theirs)
    reader.join()
    os.close(ours)
    text = b"".join(shown).decode(errors="replace")
    assert "look again" in text
    assert "0:00:0" in text or "-:--:--" in text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (7.25, "7.25"), (999, "999"), (1000, "1 k"), (12_345_678, "12.3 M"), (5e12, "5 T")],
)
def test_rates_have_three_digits(number, text):
    assert scaled(number) == text
