"""The other side hangs up at any moment, lies, and sends what it likes."""

from __future__ import annotations

import io
import os
import random
import socket
import threading

import msgpack
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import vzarr
from tests.fuzz.mutation import mutate
from tests.support import assert_sound
from tests.sync.conftest import AUTHOR, fill, values
from vzarr import dialing, supply
from vzarr.errors import TransferError, VzarrError
from vzarr.format import chunk_digest, decode_remotes, encode_remotes
from vzarr.wire import FIELDS, GREETING, MAX_FRAME_BYTES, Channel, decode_message, encode_message

TORTURE = os.environ.get("VZARR_TORTURE") == "1"
DIGEST = bytes(range(32))


# ── a connection that ends ───────────────────────────────────────────────────────────────────────


class Cut:
    """A connection that ends after so many reads and writes of this side."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = -1
        self.count = 0
        whole = dialing._in_thread

        def in_thread(path: str, write: bool):
            connection = whole(path, write)

            class Manager:
                def __enter__(manager):
                    reader, writer = connection.__enter__()
                    return _Stream(reader, self), _Stream(writer, self)

                def __exit__(manager, *error):
                    return connection.__exit__(*error)

            return Manager()

        monkeypatch.setattr(dialing, "_in_thread", in_thread)

    def spend(self) -> bool:
        """Whether the connection still stands."""
        self.count += 1
        if self.left == 0:
            return False
        self.left -= 1
        return True


class _Stream:
    def __init__(self, stream, cut: Cut) -> None:
        self._stream, self._cut = stream, cut

    def read(self, length):
        return self._stream.read(length) if self._cut.spend() else b""

    def write(self, data):
        if not self._cut.spend():
            raise BrokenPipeError("cut")
        return self._stream.write(data)

    def flush(self):
        self._stream.flush()

    def close(self):
        self._stream.close()


@pytest.fixture
def cut(monkeypatch):
    return Cut(monkeypatch)


def _moments(cut: Cut, work) -> range:
    """Count the reads and writes of some work, and give some of them, or all."""
    cut.count = 0
    work()
    return range(0, cut.count, 1 if TORTURE else 3)


def test_a_push_that_is_cut_off_anywhere_moves_nothing(first, second, cut):
    before = first.branches["main"]
    fill(second, "ours", 40, 6)
    moments = _moments(cut, second.push)
    assert len(moments) > 5
    commit = second.branches["main"]
    for moment in moments:
        first.branches.reset("main", before)
        first.expire(keep_last=0)
        first.gc()
        cut.left = moment
        try:
            second.push()
        except TransferError:
            # The last word may have been lost, and the branch moved all the same.
            assert first.branches["main"] in (before, commit)
        else:
            assert first.branches["main"] == commit
        cut.left = -1
        assert_sound(first.path)
        second.push()
        assert first.branches["main"] == commit
    assert values(first) == values(second)


def test_a_fetch_that_is_cut_off_anywhere_moves_nothing(first, second, cut):
    before = second.session("origin/main").base
    commit = fill(first, "theirs", 40, 6)
    moments = _moments(cut, lambda: vzarr.clone(first.path, first.path + ".x", author=AUTHOR))
    for moment in moments:
        cut.left = moment
        try:
            second.fetch()
        except TransferError:
            assert second.session("origin/main").base == before
        else:
            assert second.session("origin/main").base == commit
            break
        cut.left = -1
        assert_sound(second.path)
    cut.left = -1
    second.fetch()
    assert values(second, "origin/main") == values(first)


def test_a_clone_that_is_cut_off_goes_on(first, cut, tmp_path):
    """Each attempt gets a little further than the one before, by what that has brought."""
    path = tmp_path / "clone.vzarr"
    attempts, came = 0, 0
    while not path.exists():
        cut.left = 24 + attempts
        try:
            came += vzarr.clone(first.path, path, author=AUTHOR).nodes
        except TransferError:
            assert not path.exists()
            attempts += 1
    assert attempts > 1
    assert sorted(each.name for each in tmp_path.iterdir() if "clone" in each.name) == [path.name]
    assert_sound(path)
    with vzarr.open(path, "r") as clone:
        assert values(clone) == values(first)


def test_what_came_is_not_sent_again_and_is_kept_from_gc(first, second, cut):
    with first.transaction("main", "much") as store:
        array = zarr.create_array(store, name="m", shape=(3000,), chunks=(2,), dtype="i4")
        array[:] = range(3000)
    cut.left = 36
    with pytest.raises(TransferError):
        second.fetch()
    cut.left = -1
    (left,) = [info for info in second.sessions() if info.checkpointed]
    assert left.alive is False
    assert left.branch == "~transfer"
    assert_sound(second.path)
    second.gc()
    report = second.fetch()
    assert 0 < report.chunks < 1500
    assert report.commits == 0
    assert [info for info in second.sessions() if info.checkpointed] == []
    assert_sound(second.path)
    assert values(second, "origin/main", path="m") == list(range(3000))


def test_what_an_interrupted_transfer_left_is_taken_by_another(first, second, cut, tmp_path):
    """It may be of other commits, of which nothing must get into the file."""
    lost = fill(first, "theirs", 40, 6)
    cut.left = 20
    with pytest.raises(TransferError):
        second.fetch()
    cut.left = -1
    assert any(info.checkpointed for info in second.sessions())
    base = second.branches["main"]
    first.branches.reset("main", base)
    fill(first, "something else", 60, 7)
    second.pull()
    assert values(second) == values(first)
    assert not any(info.checkpointed for info in second.sessions())
    with pytest.raises(vzarr.RefNotFoundError):
        second.show(lost)
    assert_sound(second.path)


# ── a side that lies ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("database", ["nodes", "chunks"])
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), (vzarr.CorruptError, TransferError)),
        (lambda data: data + b"x", (vzarr.CorruptError, TransferError)),
        (lambda data: data[:-1], vzarr.CorruptError),
        (lambda data: b"", vzarr.CorruptError),
        (lambda data: bytes(6 << 20), (vzarr.CorruptError, TransferError)),
        (lambda data: None, TransferError),
    ],
)
def test_objects_that_are_not_what_was_asked_for(first, second, database, change, error):
    before = dict(second.branches), second.session("origin/main").base
    fill(first, "theirs", 40, 6)
    with pytest.MonkeyPatch.context() as patch:
        honest = supply.Giver._get
        patch.setattr(
            supply.Giver,
            "_get",
            lambda giver, kind, digest: (
                change(honest(giver, kind, digest))
                if kind == database
                else honest(giver, kind, digest)
            ),
        )
        with pytest.raises(error):
            second.pull()
        # As the one that is pushed to sees it.
        with vzarr.open(second.path + ".third", author=AUTHOR) as third:
            with pytest.raises(error):
                first.push(third.path)
            assert third.info().commits == 1
    assert (dict(second.branches), second.session("origin/main").base) == before
    assert_sound(second.path)
    second.pull()
    assert values(second) == values(first)


@pytest.mark.parametrize(
    "records",
    [[], [b""], [b"nonsense"], [msgpack.packb([])], [b"x" * 100] * 3],
)
def test_commits_that_nobody_asked_for(first, second, monkeypatch, records):
    fill(first, "theirs", 40, 6)
    monkeypatch.setattr(supply, "list_commits", lambda *_: iter(records))
    with pytest.raises((TransferError, vzarr.CorruptError)):
        second.fetch()
    assert_sound(second.path)


def test_a_history_that_never_ends_is_not_believed(first, second, monkeypatch):
    """More commits than were asked for, or the same ones again and again."""
    fill(first, "theirs", 40, 6)
    honest = supply.list_commits

    def again(environment, wants, stops, limit):
        yield from list(honest(environment, wants, stops, limit)) * 100

    monkeypatch.setattr(supply, "list_commits", again)
    with pytest.raises(TransferError, match="other commits"):
        second.fetch()


def test_names_that_nobody_may_give(first, second, monkeypatch):
    ref = supply.list_refs(first._environment)[0]
    for name in ("../x", "a b", "", "x\x1b[2J", "a" * 500):
        monkeypatch.setattr(supply, "list_refs", lambda _, name=name: [ref._replace(name=name)])
        with pytest.raises(TransferError, match="makes no sense"):
            second.fetch()


def _speak(*frames: bytes, greeting: bytes = GREETING) -> Channel:
    return Channel(io.BytesIO(greeting + b"".join(frames)), io.BytesIO(), "them")


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
        (MAX_FRAME_BYTES + 1).to_bytes(4, "big"),
        b"\0\0\0\5abc",
        _framed(b"\xc1"),
        _framed(msgpack.packb("welcome")),
        _framed(msgpack.packb([])),
        _framed(msgpack.packb(["no such"])),
        _framed(msgpack.packb(["welcome", 1, bytes(16)])),
        _framed(msgpack.packb(["welcome", 1, bytes(15), True])),
        _framed(msgpack.packb(["welcome", -1, bytes(16), True])),
        _framed(msgpack.packb(["welcome", True, bytes(16), True])),
        _framed(msgpack.packb(["refs", [], False])),
        _framed(b"\xdd\xff\xff\xff\xff" * 200),
        _framed(b"\xdc\xff\xff" * 100_000),
        _framed(b"\x91" * 5000),
    ],
)
def test_frames_that_make_no_sense(data):
    channel = _speak(data)
    channel.greet()
    with pytest.raises(TransferError):
        channel.receive("welcome")


def test_another_protocol():
    for greeting in (b"", b"vzarr-2\n", b"SSH-2.0-OpenSSH", b"bash: vzarr: command not found\n"):
        with pytest.raises(TransferError):
            _speak(greeting=greeting).greet()


def test_errors_of_the_other_side_are_errors_here():
    def said(*fields):
        channel = _speak(_framed(encode_message(["error", *fields])))
        channel.greet()
        try:
            channel.receive("welcome")
        except VzarrError as error:
            return error
        raise AssertionError("it is an error")

    assert type(said("ReadOnlyError", "no", "")) is vzarr.ReadOnlyError
    assert said("NotFastForwardError", "no", "main").branch == "main"
    assert said("RefNotFoundError", "no", "x").name == "x"
    assert str(said("BusyError", "no", "")) == "them: no"
    for unknown in ("KeyError", "Holder", "SystemExit", "__all__", "printable", ""):
        assert type(said(unknown, "no", "")) is TransferError


@pytest.mark.parametrize("length", [1, 7, 4 << 20, (4 << 20) + 1, (9 << 20) + 5])
def test_objects_of_every_size_come_out_as_they_went_in(length):
    ours, theirs = socket.socketpair()
    objects = {chunk_digest(bytes([n])): bytes([n]) * length for n in range(3)}
    digests = [*objects, DIGEST]

    def send():
        with ours.makefile("wb") as writer:
            channel = Channel(io.BytesIO(), writer, "them")
            supply.send_objects(channel, digests, objects.get)
            channel.flush()

    thread = threading.Thread(target=send)
    thread.start()
    with ours, theirs, theirs.makefile("rb") as reader:
        found = supply.receive_objects(Channel(reader, io.BytesIO(), "them"), [length] * 4)
        thread.join()
    assert found == [*objects.values(), None]


# ── fuzzing ──────────────────────────────────────────────────────────────────────────────────────

SEEDS = tuple(
    encode_message(message)
    for message in (
        ["hello", 1, None],
        ["hello", 1, bytes(16)],
        ["welcome", 1, bytes(16), True],
        ["refs?"],
        ["refs", [["branch", "main", DIGEST], ["tag", "v1", b"x"]], False],
        ["commits?", [DIGEST], [DIGEST, bytes(32)], 32],
        ["commits", [b"a", b"bc"], True],
        ["absent?"],
        ["absent", [DIGEST], False],
        ["nodes?", [DIGEST]],
        ["chunks?", [DIGEST, DIGEST]],
        ["objects", [b"a", None]],
        ["part", 5000, b"abc"],
        ["push", [["branch", "main", DIGEST]], True],
        ["pushed", [["branch", "main", None, DIGEST, "created"]], 1, 2, 3, 4],
        ["error", "BusyError", "text", ""],
        ["bye"],
        ["bundle", 1, bytes(16), [["branch", "main", DIGEST]], [DIGEST], [DIGEST], []],
    )
)
few = settings(max_examples=2000 if TORTURE else 60)


def _judge(data: bytes) -> bool:
    """Decode a message; what comes out is spelled so again, but for the spelling of MessagePack."""
    try:
        message = decode_message(data)
    except TransferError:
        return False
    assert decode_message(encode_message(message)) == message
    return True


def test_all_messages_are_among_the_seeds():
    assert {decode_message(seed)[0] for seed in SEEDS} == set(FIELDS)


@given(data=st.binary(max_size=400))
@few
def test_any_bytes_are_a_message_or_an_error(data):
    _judge(data)


@given(seed=st.integers(0, 2**32 - 1))
@few
def test_messages_that_were_tampered_with(seed):
    chance = random.Random(seed)
    _judge(mutate(chance.choice(SEEDS), SEEDS, chance))


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 2**64 - 1)
    | st.text(max_size=5)
    | st.binary(max_size=33),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=12,
)


@given(name=st.sampled_from(sorted(FIELDS)), fields=st.lists(_values, max_size=6))
@few
def test_messages_of_the_wrong_types(name, fields):
    _judge(msgpack.packb([name, *fields]))


def test_a_record_of_remotes_is_spelled_one_way():
    from vzarr.format import RemoteRecord

    records = [RemoteRecord("a", "x"), RemoteRecord("b", "user@host:y", "deep/u")]
    assert decode_remotes(encode_remotes(records)) == records
    for wrong in ([["b", "x", ""], ["a", "x", ""]], [["a", "x"]], [["a", 1, ""]], {}, [[]], None):
        with pytest.raises(vzarr.CorruptError):
            decode_remotes(msgpack.packb(wrong))


def test_garbage_for_a_server_ends_it_without_a_word_too_many(first):
    """Random bytes after the greeting, to one that may be written to."""
    chance = random.Random(7)
    before = dict(first.branches)
    hello = _framed(encode_message(["hello", 1, bytes(16)]))
    for _ in range(300 if TORTURE else 20):
        frames = [mutate(chance.choice(SEEDS), SEEDS, chance) for _ in range(3)]
        speech = GREETING + hello + b"".join(map(_framed, frames))
        writer = io.BytesIO()
        writer.close = lambda: None
        dialing.serve_file(first.path, io.BytesIO(speech), writer)
        assert writer.getvalue().startswith(GREETING)
    assert dict(first.branches) == before
    assert_sound(first.path)
