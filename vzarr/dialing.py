"""Reach another repository: a file here, or one on another machine through ssh.

Both speak the same protocol, over a pair of streams. A file here is served by a thread of this
process; one elsewhere by ``vzarr serve`` there, as git does it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast, final

from vzarr.errors import FormatVersionError, InvalidInputError, NotFoundError, TransferError
from vzarr.format import FORMAT_VERSION
from vzarr.remotes import is_elsewhere, split_url
from vzarr.serving import serve_file
from vzarr.wire import Channel

_ENDING_SECONDS = 5.0


@final
@dataclass(frozen=True, slots=True)
class Connection:
    """A repository at the other end."""

    channel: Channel
    id: bytes
    writable: bool


@contextlib.contextmanager
def connect(url: str, own_id: bytes | None, *, write: bool = False) -> Iterator[Connection]:
    """Reach the repository at a path, or at ``user@host:path``.

    Raises ``TransferError`` if it cannot be reached, and what it says itself: ``NotFoundError``,
    ``FormatVersionError`` and others.
    """
    streams = _through_ssh(url, write) if is_elsewhere(url) else _in_thread(url, write)
    with streams as (reader, writer):
        channel = Channel(reader, writer, url)
        try:
            channel.greet()
            channel.send("hello", FORMAT_VERSION, own_id)
            _, version, their_id, writable = channel.receive("welcome")
            if version > FORMAT_VERSION:
                raise FormatVersionError(
                    f"{url} has format version {version}, and this release knows up to "
                    f"{FORMAT_VERSION}: install a newer vzarr (pip install --upgrade vzarr)",
                    path=url,
                )
            yield Connection(channel, their_id, writable)
            channel.send("bye")
            channel.flush()
        finally:
            channel.close()


@contextlib.contextmanager
def _in_thread(path: str, write: bool) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Have a thread serve a file of this machine."""
    target = os.path.expanduser(path)
    if not os.path.lexists(target):
        raise NotFoundError(
            f"there is no repository {path}: create it with: vzarr init {path}", name=path
        )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader, writer = (cast(BinaryIO, ours.makefile(mode)) for mode in ("rb", "wb"))
        their_reader, their_writer = (
            cast(BinaryIO, theirs.makefile(mode)) for mode in ("rb", "wb")
        )

        def run() -> None:
            try:
                serve_file(target, their_reader, their_writer, read_only=not write)
            finally:
                # The streams share the socket: who waits for us must see that we have ended.
                with contextlib.suppress(OSError):
                    theirs.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=run, name="vzarr-serve")
        thread.start()
        try:
            yield reader, writer
        finally:
            # Whatever it waits for, it ends by this.
            with contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextlib.contextmanager
def _through_ssh(url: str, write: bool) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Run ``vzarr serve`` on another machine; ``VZARR_SSH`` is the command that reaches it."""
    host, path = split_url(url)
    if host.startswith("-"):
        # ssh would take it for an option, and some of these run programs.
        raise InvalidInputError(f"{host!r} is no name of a machine")
    mode = "" if write else "--read-only "
    command = [*_ssh(), host, f"vzarr serve --stdio {mode}-- {shlex.quote(path)}"]
    try:
        process = subprocess.Popen(  # noqa: S603 - the user's own ssh
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
    except OSError as error:
        raise TransferError(
            f"cannot run {command[0]} to reach {url}: {error.strerror}. VZARR_SSH names another "
            "command"
        ) from error
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield cast(BinaryIO, process.stdout), cast(BinaryIO, process.stdin)
    finally:
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                stream.close()
        try:
            process.wait(_ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ssh() -> list[str]:
    given = os.environ.get("VZARR_SSH", "").strip()
    try:
        return shlex.split(given) if given else ["ssh"]
    except ValueError as error:
        raise InvalidInputError(f"VZARR_SSH is {given!r}, which is no command: {error}") from error
