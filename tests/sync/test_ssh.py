"""Transfers to other machines: the same protocol, through a pipe to ``vzarr serve``."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

import vzarr
from tests.support import assert_sound
from tests.sync.conftest import AUTHOR, fill, values


def test_clone_push_and_pull_through_a_pipe(first, ssh, tmp_path):
    url = f"ada@buoy:{first.path}"
    vzarr.clone(url, tmp_path / "clone.vzarr", author=AUTHOR)
    assert (tmp_path / "arguments").read_text().splitlines() == [
        "ada@buoy",
        f"vzarr serve --stdio --read-only -- {shlex.quote(first.path)}",
    ]
    with vzarr.open(tmp_path / "clone.vzarr", author=AUTHOR) as clone:
        assert clone.remotes["origin"].url == url
        commit = fill(clone, "ours", 40, 6)
        report = clone.push()
        assert "--read-only" not in (tmp_path / "arguments").read_text()
        assert first.branches["main"] == commit
        assert report.wire_bytes < 20_000
        fill(first, "theirs", 20, 5)
        assert clone.pull().how == "fast-forward"
        fill(first, "more", 30, 5)
        fill(clone, "ours", 40, 7)
        with pytest.raises(vzarr.NotFastForwardError, match=r"ada@buoy:.*Pull first") as caught:
            clone.push()
        assert caught.value.branch == "main"
        assert values(clone)[20:23] == [5] * 3
    assert_sound(tmp_path / "clone.vzarr")


def test_what_the_other_machine_says_is_told(first, second, ssh, tmp_path):
    with pytest.raises(vzarr.NotFoundError, match="there is no file"):
        second.fetch(f"buoy:{tmp_path}/none.vzarr")
    (tmp_path / "text").write_text("no repository")
    with pytest.raises(vzarr.NotARepositoryError):
        second.push(f"buoy:{tmp_path}/text")


def test_a_machine_that_cannot_be_reached(second, ssh, monkeypatch):
    ssh("false")
    with pytest.raises(vzarr.TransferError, match="it said nothing"):
        second.fetch("buoy:x.vzarr")
    ssh("echo Welcome to the buoy")
    with pytest.raises(vzarr.TransferError, match="began with 'Welcome "):
        second.fetch("buoy:x.vzarr")
    monkeypatch.setenv("VZARR_SSH", "/no/such/ssh")
    with pytest.raises(vzarr.TransferError, match=r"cannot run /no/such/ssh .*VZARR_SSH"):
        second.fetch("buoy:x.vzarr")
    monkeypatch.setenv("VZARR_SSH", "ssh 'unbalanced")
    with pytest.raises(vzarr.InvalidInputError, match="is no command"):
        second.fetch("buoy:x.vzarr")


def test_no_option_is_smuggled_into_ssh(second, ssh, tmp_path):
    with pytest.raises(vzarr.InvalidInputError, match="no name of a machine"):
        second.fetch("-oProxyCommand=touch owned:x.vzarr")
    assert not (tmp_path / "arguments").exists()


def test_a_path_is_quoted_for_the_shell_there(second, ssh, tmp_path):
    with pytest.raises(vzarr.NotFoundError):
        second.fetch(f"buoy:{tmp_path}/$(touch owned); x 'y'.vzarr")
    assert not (tmp_path / "owned").exists()


def test_a_file_with_a_colon_is_a_file(first, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vzarr.clone(first.path, "a:b.vzarr", author=AUTHOR)
    with vzarr.open("c.vzarr", author=AUTHOR) as repo:
        repo.pull("a:b.vzarr")
        assert repo.branches["main"] == first.branches["main"]


def test_a_server_for_readers_refuses_a_push(first, second, ssh, monkeypatch, tmp_path):
    fill(second, "ours", 40, 6)
    script = tmp_path / "readers.sh"
    serve = f"{shlex.quote(sys.executable)} -m vzarr serve --stdio --read-only"
    script.write_text(f"exec {serve} {shlex.quote(first.path)}\n")
    monkeypatch.setenv("VZARR_SSH", f"sh {shlex.quote(str(script))}")
    before = first.branches["main"]
    with pytest.raises(vzarr.ReadOnlyError, match="for reading only"):
        second.push("buoy:whatever")
    second.fetch("buoy:whatever")
    assert first.branches["main"] == before


def test_what_is_printed_there_does_not_get_into_the_protocol(first, tmp_path):
    """``vzarr serve`` gives its stdout away before anything else can use it."""
    result = subprocess.run(
        [sys.executable, "-m", "vzarr", "serve", "--stdio", first.path],
        input=b"nonsense" * 4,
        capture_output=True,
        timeout=50,
        check=False,
    )
    assert result.returncode == 0
    assert result.stdout.startswith(b"vzarr-1\n")
    assert result.stderr == b""
