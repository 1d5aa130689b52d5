"""One side of a transfer: a repository that another one fetches from, or pushes to."""

from __future__ import annotations

import contextlib
from typing import Any, BinaryIO, Literal

from vzarr.committing import Settings
from vzarr.errors import FormatVersionError, ReadOnlyError, TransferError, VzarrError
from vzarr.format import FORMAT_VERSION, decode_format, decode_repository
from vzarr.moving import Mover
from vzarr.objects import Objects
from vzarr.reception import Reception
from vzarr.supply import REQUESTS, Asker, Giver, decode_ref
from vzarr.wire import Channel, send_error

Read = Literal["r", "r+"]


def serve_file(path: str, reader: BinaryIO, writer: BinaryIO, *, read_only: bool = False) -> None:
    """Serve a repository on two streams until the other side ends it.

    Errors are told to the other side; nothing is raised but for a programming mistake.
    """
    from vzarr.opening import open as open_repository

    channel = Channel(reader, writer, "the other side")
    mode: Read = "r" if read_only else "r+"
    try:
        channel.greet()
        # Before the file is opened: what is wrong with it is the answer.
        _, version, their_id = channel.receive("hello")
        with open_repository(path, mode) as repo:
            repo.serve(channel, version, their_id)
    except VzarrError as error:
        # There may be nobody any more to tell it to.
        with contextlib.suppress(TransferError):
            send_error(channel, error)
    finally:
        channel.close()


def serve(
    objects: Objects,
    settings: Settings,
    channel: Channel,
    version: int,
    their_id: bytes | None,
    *,
    read_only: bool,
) -> None:
    """Answer the other side, which has said hello, until it says bye. See ``docs/sync.md``."""
    own_version, own_id = identity(objects)
    if version < own_version:
        raise FormatVersionError(
            f"{objects.environment.path} has format version {own_version}, and the vzarr that asks "
            f"knows up to {version}: install a newer one there (pip install --upgrade vzarr)",
            path=objects.environment.path,
        )
    channel.send("welcome", own_version, own_id, not read_only)
    giver = Giver(objects.environment, channel)
    while True:
        message = channel.receive(*REQUESTS, "push", "bye")
        if message[0] == "bye":
            return
        if message[0] != "push":
            giver.answer(message)
            continue
        if read_only:
            raise ReadOnlyError(
                f"{objects.environment.path} is served for reading only: nothing can be pushed"
            )
        _take_push(objects, settings, channel, (their_id or own_id, own_id), *message[1:])


def _take_push(
    objects: Objects,
    settings: Settings,
    channel: Channel,
    ids: tuple[bytes, bytes],
    rows: list[list[Any]],
    force: bool,
) -> None:
    """Ask for what is missing, and move the names."""
    wanted = [decode_ref(*row) for row in rows]
    # Who pushes a part of a history must not make another repository one.
    reception = Reception(
        objects, settings, Asker(channel), other=channel.other, whole=True, ids=ids
    )
    keep = True
    try:
        reception.gather(ref.commit for ref in wanted)
        mover = Mover(
            objects.environment, settings, reception, force=force, keep_tags=False, why="push"
        )
        updates = mover.move(wanted)
        keep = False
    finally:
        reception.close(keep=keep)
    moved = [
        [
            update.kind,
            update.name,
            None if update.old is None else bytes.fromhex(update.old),
            bytes.fromhex(update.new),
            update.how,
        ]
        for update in updates
    ]
    came = reception.received
    channel.send("pushed", moved, came.commits, came.nodes, came.chunks, came.nbytes)
    channel.flush()


def identity(objects: Objects) -> tuple[int, bytes]:
    """Give the version of the format of a file, and the id of the repository."""
    with objects.environment.read() as txn:
        version, record = txn.get("meta", b"format"), txn.get("meta", b"repository")
    if version is None or record is None:
        return FORMAT_VERSION, bytes(16)
    return decode_format(version).version, decode_repository(record).id
