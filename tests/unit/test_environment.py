"""The environment in one process: files, txns, growth, the write gate, errors."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import signal
import threading
import time
import timeit
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import lmdb.verify
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vzarr import access, creation, datafile, draft, lmdberrors, memorymap, portable, system
from vzarr.activity import Activity
from vzarr.environment import DATABASES, Environment, Txn
from vzarr.errors import (
    AlreadyExistsError,
    BusyError,
    CorruptError,
    FullError,
    InvalidInputError,
    NotARepositoryError,
    NotFoundError,
    ReadOnlyError,
    SessionStateError,
    StorageError,
    VzarrError,
)
from vzarr.lmdbfile import probe

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root to become somebody else")
on_linux = pytest.mark.skipif(not Path("/proc/locks").exists(), reason="takes /proc/locks")


def nothing(txn: Txn) -> None:
    """Initialise a file with no entries."""


@pytest.fixture
def environment(file: str) -> Iterator[Environment]:
    created = Environment.create(file, nothing)
    yield created
    created.close()


@contextlib.contextmanager
def opened(path: str, *, writable: bool = False, **options: Any) -> Iterator[Environment]:
    environment = Environment.open(path, writable=writable, **options)
    try:
        yield environment
    finally:
        environment.close()


@contextlib.contextmanager
def in_thread(work: Callable[[], Any]) -> Iterator[list[Any]]:
    """Run something beside the block, and give what it returned or raised, after the block."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run, name="beside")
    thread.start()
    try:
        yield results
    finally:
        thread.join(20)
        assert not thread.is_alive()


@contextlib.contextmanager
def held(environment: Environment, *, write: bool) -> Iterator[None]:
    """Have another thread inside a txn for the length of the block."""
    begun, finish = threading.Event(), threading.Event()

    def hold() -> None:
        with environment.write() if write else environment.read():
            begun.set()
            assert finish.wait(20)

    with in_thread(hold) as results:
        try:
            assert begun.wait(20)
            yield
        finally:
            finish.set()
    assert results == [None]


def until_somebody_waits(environment: Environment) -> None:
    """Return when another thread waits until it is alone."""
    deadline = time.monotonic() + 20
    while not environment._access.activity._shut:
        assert time.monotonic() < deadline
        time.sleep(0)


def as_nobody(work: Callable[[], Any]) -> Any:
    """Give what a function returns in a process that has no privileges; raise what it raises."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            result = work()
        except BaseException as error:
            result = error
        os.write(writer, pickle.dumps(describe(result)))
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        result = pickle.loads(pipe.read())
    os.waitpid(pid, 0)
    return result


def describe(result: Any) -> Any:
    if isinstance(result, OSError):
        return type(result).__name__, result.errno
    return type(result).__name__ if isinstance(result, BaseException) else result


@pytest.fixture
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory that everybody can reach; pytest's own are private."""
    import shutil
    import tempfile

    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def fill(environment: Environment, count: int, size: int = 50) -> None:
    with environment.write() as txn:
        for number in range(count):
            txn.put("nodes", b"%05d" % number, bytes(size))


# ---- create ---------------------------------------------------------------------------------


def test_create_makes_all_databases_and_runs_initialise(file: str) -> None:
    environment = Environment.create(file, lambda txn: txn.put("meta", b"format", b"1") and None)
    assert environment.path == file
    assert not environment.read_only
    with environment.read() as txn:
        assert txn.get("meta", b"format") == b"1"
        assert [txn.count(name) for name in DATABASES] == [1, *[0] * 8]
    environment.close()
    assert sorted(os.listdir(os.path.dirname(file))) == ["test.vzarr", "test.vzarr-lock"]
    assert probe(file).databases == frozenset(DATABASES)


def test_create_refuses_what_is_there(file: str, environment: Environment) -> None:
    before = Path(file).read_bytes()
    with pytest.raises(AlreadyExistsError, match="open it, or choose another path") as caught:
        Environment.create(file, nothing)
    assert caught.value.name == file
    assert Path(file).read_bytes() == before
    with pytest.raises(AlreadyExistsError):
        Environment.create(os.path.dirname(file), nothing)


def test_create_needs_a_directory(file: str) -> None:
    with pytest.raises(NotFoundError, match=r"the directory .* does not exist"):
        Environment.create(os.path.join(file, "a", "b"), nothing)


def test_create_leaves_nothing_when_initialise_fails(file: str) -> None:
    def fail(txn: Txn) -> None:
        txn.put("meta", b"format", b"1")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        Environment.create(file, fail)
    assert os.listdir(os.path.dirname(file)) == []


def test_create_leaves_nothing_when_a_failed_put_is_caught(file: str) -> None:
    def fail(txn: Txn) -> None:
        with contextlib.suppress(InvalidInputError):
            txn.put("meta", b"", b"1")

    with pytest.raises(InvalidInputError):
        Environment.create(file, fail)
    assert os.listdir(os.path.dirname(file)) == []


@pytest.mark.parametrize(
    ("where", "step"),
    [
        (creation, "place"),
        (draft, "sync_directory"),
        (memorymap, "examine"),
        (memorymap, "_map_for_writing"),
    ],
)
def test_create_leaves_nothing_when_a_step_fails(
    file: str, monkeypatch: pytest.MonkeyPatch, where: Any, step: str
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(where, step, fail)
    with pytest.raises(OSError, match="No space left"):
        Environment.create(file, nothing)
    assert os.listdir(os.path.dirname(file)) == []


def test_a_full_disk_while_creating_is_a_full_error(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FullError, match=r"cannot create .*No space left"):
        Environment.create(file, nothing)
    assert os.listdir(os.path.dirname(file)) == []


def test_of_many_creators_one_wins(file: str) -> None:
    barrier = threading.Barrier(6)
    outcomes: list[object] = []

    def create() -> None:
        barrier.wait()
        try:
            outcomes.append(Environment.create(file, nothing))
        except AlreadyExistsError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [outcome for outcome in outcomes if isinstance(outcome, Environment)]
    assert len(outcomes) == 6
    assert len(winners) == 1
    winners[0].close()


def test_the_umask_decides_who_may_read(file: str) -> None:
    old = os.umask(0o007)
    try:
        Environment.create(file, nothing).close()
    finally:
        os.umask(old)
    assert os.stat(file).st_mode & 0o777 == 0o660
    assert os.stat(file + "-lock").st_mode & 0o777 == 0o660


def test_the_lock_file_has_its_full_size(environment: Environment) -> None:
    status = os.stat(environment.path + "-lock")
    assert status.st_size == datafile.LOCK_FILE_BYTES
    assert status.st_blocks * 512 >= datafile.LOCK_FILE_BYTES
    assert environment.info().max_readers == datafile.MAX_READERS


def test_a_lock_file_that_exists_is_not_touched(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Environment.create(file, nothing).close()
    before = os.stat(file + "-lock")
    monkeypatch.setattr(portable, "allocate", None)
    with opened(file):
        after = os.stat(file + "-lock")
    assert (before.st_ino, before.st_size) == (after.st_ino, after.st_size)


# ---- open and close -------------------------------------------------------------------------


def test_a_missing_file(file: str) -> None:
    for writable in (False, True):
        with pytest.raises(NotFoundError, match="does not exist") as caught:
            Environment.open(file, writable=writable)
        assert caught.value.name == file
    assert os.listdir(os.path.dirname(file)) == []


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("content", [b"", b"x", b"text\n" * 5000, bytes(100_000)])
def test_a_file_that_is_no_repository(
    tmp_path: Path, file: str, content: bytes, writable: bool
) -> None:
    other = tmp_path / "other"
    other.write_bytes(content)
    with pytest.raises(NotARepositoryError):
        Environment.open(str(other), writable=writable)
    assert os.listdir(tmp_path) == ["other"]
    assert other.read_bytes() == content


def test_a_directory_is_no_repository(tmp_path: Path, file: str) -> None:
    with pytest.raises(NotARepositoryError, match="is a directory"):
        Environment.open(str(tmp_path), writable=True)


@pytest.mark.parametrize("writable", [False, True])
def test_the_lmdb_file_of_another_program(tmp_path: Path, file: str, writable: bool) -> None:
    other = str(tmp_path / "other")
    with lmdb.open(other, subdir=False, lock=False, max_dbs=4, lib_version=0) as theirs:
        theirs.open_db(b"meta")
    before = Path(other).read_bytes()
    with pytest.raises(NotARepositoryError, match="another program") as caught:
        Environment.open(other, writable=writable)
    assert caught.value.path == other
    assert os.listdir(tmp_path) == ["other"]
    assert Path(other).read_bytes() == before


def test_a_path_with_a_null_byte(file: str) -> None:
    with pytest.raises(InvalidInputError, match="is no path"):
        Environment.open("a\0b", writable=False)


def test_one_environment_for_a_file(tmp_path: Path, file: str, environment: Environment) -> None:
    (tmp_path / "link").symlink_to(file)
    with opened(str(tmp_path / "link"), writable=True) as other:
        assert other is environment
        assert other.path == file
    fill(environment, 1)


def test_it_stays_open_until_all_have_closed_it(file: str) -> None:
    first = Environment.create(file, nothing)
    second = Environment.open(file, writable=True)
    first.close()
    fill(second, 1)
    second.close()
    for use in (second.read, second.write):
        with pytest.raises(SessionStateError, match="is closed"), use():
            pytest.fail("it is closed")
    with pytest.raises(SessionStateError, match="is closed"):
        second.last_txn_id()
    second.close()
    with opened(file) as third:
        assert third is not second
        assert third.info().entries["nodes"] == 1


def test_opening_by_many_threads_at_once(file: str) -> None:
    Environment.create(file, nothing).close()
    barrier = threading.Barrier(8)
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(15):
                barrier.wait()
                with opened(file, writable=bool(number % 2)) as environment:
                    with environment.read() as txn:
                        assert txn.count("nodes") == 0
                    if number == turn % 8 and not environment.read_only:
                        fill(environment, 0)
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_hard_links_are_refused(tmp_path: Path, file: str) -> None:
    Environment.create(file, nothing).close()
    os.link(file, tmp_path / "other")
    with pytest.raises(StorageError, match="2 names") as caught:
        Environment.open(str(tmp_path / "other"), writable=False)
    assert caught.value.errno == errno.EMLINK
    assert not (tmp_path / "other-lock").exists()
    os.unlink(tmp_path / "other")
    with opened(file, writable=True):
        pass


def test_a_creator_that_has_only_the_name_yet_is_waited_for(
    tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Environment.create(file, nothing).close()
    Path(tmp_path / "late").touch()
    monkeypatch.setattr(time, "sleep", lambda _: os.replace(file, tmp_path / "late"))
    with opened(str(tmp_path / "late")):
        pass


def test_reading_only(file: str) -> None:
    Environment.create(file, nothing).close()
    with opened(file) as environment:
        assert environment.read_only
        with pytest.raises(ReadOnlyError, match="open it for writing"), environment.write():
            pytest.fail("it may not write")
        with environment.read() as txn, pytest.raises(ReadOnlyError):
            txn.put("meta", b"key", b"value")
        with pytest.raises(ReadOnlyError):
            environment.sync()


def test_it_is_upgraded_in_place(file: str) -> None:
    Environment.create(file, nothing).close()
    with opened(file) as reader:
        with reader.read() as txn:
            assert txn.count("nodes") == 0
        with opened(file, writable=True) as writer:
            assert writer is reader
            assert not reader.read_only
            fill(writer, 3)
        fill(reader, 4)
        with opened(file) as other:
            assert not other.read_only
        assert reader.info().entries["nodes"] == 4


def test_an_upgrade_waits_for_the_txns_of_others(file: str) -> None:
    Environment.create(file, nothing).close()
    with opened(file) as reader:
        with contextlib.ExitStack() as stack, reader.read() as txn:
            work = in_thread(lambda: Environment.open(file, writable=True))
            results = stack.enter_context(work)
            until_somebody_waits(reader)
            assert txn.count("nodes") == 0
            assert results == []
        assert results == [reader]
        reader.close()


def test_opening_inside_a_txn(file: str) -> None:
    Environment.create(file, nothing).close()
    with opened(file) as reader:
        with reader.read():
            with opened(file) as other:
                assert other is reader
            with pytest.raises(SessionStateError, match="end that txn first"):
                Environment.open(file, writable=True)
        with opened(file, writable=True):
            pass


def test_closing_inside_a_txn(environment: Environment) -> None:
    with environment.read() as txn:
        with pytest.raises(SessionStateError, match="end that txn first"):
            environment.close()
        assert txn.count("nodes") == 0
    fill(environment, 1)


def test_closing_waits_for_the_txns_of_others(file: str) -> None:
    environment = Environment.create(file, nothing)
    with contextlib.ExitStack() as stack, held(environment, write=False):
        stack.enter_context(in_thread(environment.close))
        until_somebody_waits(environment)
    with pytest.raises(SessionStateError, match="is closed"), environment.read():
        pytest.fail("it is closed")


# ---- delete ---------------------------------------------------------------------------------


def test_delete(tmp_path: Path, file: str) -> None:
    Environment.create(file, nothing).close()
    Environment.delete(file)
    assert os.listdir(tmp_path) == []
    with pytest.raises(NotFoundError):
        Environment.delete(file)
    Environment.create(file, nothing).close()


def test_what_is_in_use_is_not_deleted(file: str, environment: Environment) -> None:
    with pytest.raises(SessionStateError, match="is open in this process"):
        Environment.delete(file)
    fill(environment, 1)


def test_what_is_being_written_is_not_deleted(file: str) -> None:
    Environment.create(file, nothing).close()
    with locked_elsewhere(file), pytest.raises(BusyError):
        Environment.delete(file, timeout=0.02)
    with opened(file):
        pass


# ---- files that are cut off -----------------------------------------------------------------


def with_unwritten_tail(file: str, pages: int) -> int:
    """Make a sound file whose last pages were taken, freed and never written; give its extent."""
    environment = Environment.create(file, nothing)
    # LMDB takes pages back within a txn only if it has looked for free ones.
    for number in range(4):
        fill(environment, number + 1)
    with environment.write() as txn:
        txn.put("chunks", b"big", bytes(pages * 4096))
        txn.delete("chunks", b"big")
        txn.put("chunks", b"small", b"value")
    extent = probe(file).required_bytes
    environment.close()
    return extent


def test_a_commit_leaves_no_unwritten_tail(file: str) -> None:
    extent = with_unwritten_tail(file, 100)
    assert os.path.getsize(file) >= extent > 100 * 4096


def test_a_writer_adds_a_short_tail(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(access.Access, "complete_file", lambda self: None)
        extent = with_unwritten_tail(file, 100)
    assert os.path.getsize(file) < extent
    with pytest.raises(CorruptError, match="open it once for writing"):
        Environment.open(file, writable=False)
    with opened(file, writable=True) as environment, environment.read() as txn:
        assert txn.get("chunks", b"small") == b"value"
    assert os.path.getsize(file) == extent
    with opened(file) as environment, environment.read() as txn:
        assert txn.get("chunks", b"small") == b"value"


def test_a_reader_waits_for_the_tail(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(access.Access, "complete_file", lambda self: None)
        extent = with_unwritten_tail(file, 100)
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", lambda _: os.truncate(file, extent))
        with opened(file):
            pass


@pytest.mark.parametrize("writable", [False, True])
def test_a_file_that_is_cut_off_is_not_mapped(file: str, writable: bool) -> None:
    environment = Environment.create(file, nothing)
    with environment.write() as txn:
        txn.put("chunks", b"big", bytes(2 << 20))
    environment.close()
    whole = Path(file).read_bytes()
    os.truncate(file, 1 << 20)
    with pytest.raises(CorruptError, match=r"cut off|is damaged") as caught:
        Environment.open(file, writable=writable)
    assert caught.value.path == file
    assert os.path.getsize(file) == 1 << 20
    Path(file).write_bytes(whole)


# ---- where a file lies ----------------------------------------------------------------------

MOUNTS = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
40 27 0:50 / /net rw - nfs4 server:/export rw,vers=4.2
41 40 0:51 / /net/scratch rw shared:1 - xfs /dev/vdb rw
42 27 0:52 / /net\040work\134 rw - cifs //server/share rw
43 27 0:53 / /covered rw - nfs server:/export rw
44 43 0:54 / /covered rw - tmpfs tmpfs rw
45 27 0:55 / /home/me/remote rw - fuse.sshfs me@server: rw
46 27 0:56 / /wsl rw - 9p C: rw
nonsense
"""


@pytest.fixture
def mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = system._lines

    def faked(path: str) -> list[str]:
        return MOUNTS.splitlines() if path.endswith("mountinfo") else lines(path)

    monkeypatch.setattr(system, "_lines", faked)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/a", "ext4"),
        ("/net/a", "nfs4"),
        ("/network/a", "ext4"),
        ("/net/scratch/a", "xfs"),
        ("/net work\\/a", "cifs"),
        ("/covered/a", "tmpfs"),
        ("/home/me/remote/deep/a", "fuse.sshfs"),
        ("/wsl", "9p"),
    ],
)
def test_the_file_system_of_a_path(mounts: None, path: str, kind: str) -> None:
    assert system._file_system(path) == kind
    if kind in ("ext4", "xfs", "tmpfs"):
        system.require_local(path)
    else:
        with pytest.raises(StorageError, match="unsafe_network_filesystem=True") as caught:
            system.require_local(path)
        assert kind in str(caught.value)


def test_network_file_systems_only_on_demand(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "_file_system", lambda path: "nfs4")
    with pytest.raises(StorageError, match="network file system"):
        Environment.create(file, nothing)
    assert os.listdir(os.path.dirname(file)) == []
    Environment.create(file, nothing, unsafe_network_filesystem=True).close()
    with pytest.raises(StorageError, match="network file system"):
        Environment.open(file, writable=False)
    with opened(file, unsafe_network_filesystem=True):
        pass


def test_usual_directories_are_local(tmp_path: Path) -> None:
    for directory in (tmp_path, Path.cwd(), Path("/dev/shm"), Path.home()):
        system.require_local(str(directory))


def test_where_there_is_no_list_of_mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "_lines", lambda path: [])
    system.require_local("/a")


# ---- files that others move, and permissions ------------------------------------------------


def test_a_file_that_was_deleted_or_replaced(tmp_path: Path, file: str) -> None:
    environment = Environment.create(file, nothing)
    fill(environment, 3)
    aside = str(tmp_path / "aside")
    os.rename(file, aside)
    with pytest.raises(StorageError, match="deleted or moved"), environment.write():
        pytest.fail("what is written would be lost")
    Path(file).write_bytes(Path(aside).read_bytes())
    with pytest.raises(StorageError, match="replaced by another file") as caught:
        environment.write().__enter__()
    assert caught.value.errno == errno.ESTALE
    with environment.read() as txn:
        assert txn.count("nodes") == 3
    with pytest.raises(StorageError, match="still open in this process"):
        Environment.open(file, writable=True)
    os.rename(aside, file)
    fill(environment, 4)
    environment.close()


@as_root
def test_a_file_that_is_not_ours_to_read(public: Path) -> None:
    path = str(public / "a")
    Environment.create(path, nothing).close()
    os.chmod(path, 0o600)
    for writable in (False, True):
        result = as_nobody(lambda writable=writable: Environment.open(path, writable=writable))
        assert result == ("StorageError", errno.EACCES)


def counted(path: str) -> tuple[int, bool]:
    with opened(path) as environment, environment.read() as txn:
        return txn.count("nodes"), environment.read_only


@as_root
def test_a_place_where_we_may_write_nothing(public: Path) -> None:
    path = str(public / "a")
    environment = Environment.create(path, nothing)
    fill(environment, 5)
    environment.close()
    os.unlink(path + "-lock")
    assert as_nobody(lambda: counted(path)) == (5, True)
    assert os.listdir(public) == ["a"]
    result = as_nobody(lambda: Environment.open(path, writable=True))
    assert result == ("StorageError", errno.EACCES)


@as_root
def test_a_lock_file_that_is_not_ours(public: Path) -> None:
    path = str(public / "a")
    Environment.create(path, nothing).close()
    os.chmod(path, 0o666)
    os.unlink(path + "-lock")
    # Somebody may write the file, so that reading it without a lock is out of the question.
    for writable in (False, True):
        result = as_nobody(lambda writable=writable: Environment.open(path, writable=writable))
        assert result == ("StorageError", errno.EACCES)
    assert os.listdir(public) == ["a"]


@as_root
def test_a_file_that_is_ours_to_read_in_a_place_to_write(public: Path) -> None:
    path = str(public / "a")
    Environment.create(path, nothing).close()
    os.unlink(path + "-lock")
    os.chmod(public, 0o777)
    assert as_nobody(lambda: counted(path)) == (0, True)
    assert os.stat(path + "-lock").st_uid == NOBODY


@as_root
def test_root_does_not_lock_the_owner_out(public: Path) -> None:
    path = str(public / "a")
    Environment.create(path, nothing).close()
    os.unlink(path + "-lock")
    os.chown(path, NOBODY, NOBODY)
    with opened(path):
        assert os.stat(path + "-lock").st_uid == NOBODY


# ---- read txns ------------------------------------------------------------------------------


def test_get_view_contains_count(environment: Environment) -> None:
    with environment.write() as txn:
        assert txn.put("nodes", b"key", b"value")
        assert txn.put("chunks", b"key", bytes(100_000))
    with environment.read() as txn:
        value = txn.get("nodes", b"key")
        assert value == b"value"
        assert type(value) is bytes
        view = txn.view("chunks", b"key")
        assert isinstance(view, memoryview)
        assert view.readonly
        assert view == bytes(100_000)
        assert txn.get("commits", b"key") is None
        assert txn.view("commits", b"key") is None
        assert (txn.contains("nodes", b"key"), txn.contains("nodes", b"ke")) == (True, False)
        assert (txn.count("nodes"), txn.count("tags")) == (1, 0)


def test_a_read_txn_sees_one_moment(environment: Environment) -> None:
    with environment.read() as txn:
        with in_thread(lambda: fill(environment, 3)) as results:
            pass
        assert results == [None]
        assert txn.count("nodes") == 0
        with environment.read() as inner:
            assert inner.count("nodes") == 3
        assert txn.count("nodes") == 0


def test_a_txn_is_over_at_the_end_of_its_block(environment: Environment) -> None:
    fill(environment, 3)
    with environment.read() as reader:
        entries = reader.scan("nodes")
        next(entries)
        fresh = reader.scan("nodes")
    with environment.write() as writer:
        pass
    uses = [
        lambda: reader.get("nodes", b"key"),
        lambda: reader.view("nodes", b"key"),
        lambda: reader.contains("nodes", b"key"),
        lambda: reader.count("nodes"),
        lambda: reader.scan("nodes"),
        lambda: next(entries),
        lambda: next(fresh),
        lambda: writer.put("nodes", b"key", b"value"),
        lambda: writer.delete("nodes", b"key"),
    ]
    for use in uses:
        with pytest.raises(SessionStateError, match="this txn is over"):
            use()


def test_places_among_the_readers_are_given_back(environment: Environment) -> None:
    fill(environment, 3)
    kept: list[Any] = []
    for _ in range(20):
        with environment.read() as txn:
            kept.extend([txn, txn.scan("nodes"), txn.scan("nodes")])
            next(kept[-1])
            kept.append(txn.view("nodes", b"00001"))
    # The one reader is the txn that counts.
    assert environment.info().readers == 1
    for _ in range(1100):
        with environment.read() as txn:
            pass


def test_too_many_readers(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (memorymap, lmdberrors):
        monkeypatch.setattr(name, "MAX_READERS", 4)
    monkeypatch.setattr(datafile, "LOCK_FILE_BYTES", 128 + 64 * 4)
    environment = Environment.create(file, nothing)
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(environment.read())
        with pytest.raises(StorageError, match="4 readers") as caught, environment.read():
            pytest.fail("there is no place left")
        assert caught.value.errno == errno.EAGAIN
    with environment.read() as txn:
        assert txn.count("nodes") == 0
    environment.close()


def test_keys_that_lmdb_does_not_take(environment: Environment) -> None:
    with environment.read() as txn:
        assert txn.get("nodes", b"k" * 600) is None
        with pytest.raises(InvalidInputError, match="1 to 511 bytes"):
            txn.get("nodes", b"")
    for key in (b"", b"k" * 512):
        with (
            pytest.raises(InvalidInputError, match="1 to 511 bytes"),
            environment.write() as txn,
        ):
            txn.put("nodes", key, b"value")


# ---- scans ----------------------------------------------------------------------------------

KEYS = st.binary(min_size=1, max_size=3).map(
    lambda key: bytes(b"\x00a\xfe\xff"[c % 4] for c in key)
)
MAYBE_KEYS = st.just(b"") | KEYS


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """An environment for the examples of a property, each of which writes its own entries."""
    created = Environment.create(str(tmp_path_factory.mktemp("shared") / "a"), nothing)
    yield created
    created.close()


def expected(
    model: dict[bytes, bytes], start: bytes, prefix: bytes, reverse: bool
) -> list[tuple[bytes, bytes]]:
    keys = [key for key in sorted(model, reverse=reverse) if key.startswith(prefix)]
    if start:
        keys = [key for key in keys if (key <= start if reverse else key >= start)]
    return [(key, model[key]) for key in keys]


@given(
    model=st.dictionaries(KEYS, st.binary(max_size=3), max_size=30),
    start=MAYBE_KEYS,
    prefix=MAYBE_KEYS,
    reverse=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_scan_is_a_sorted_dict(
    shared: Environment, model: dict[bytes, bytes], start: bytes, prefix: bytes, reverse: bool
) -> None:
    class Undo(Exception):
        pass

    options: dict[str, Any] = {"start": start, "prefix": prefix, "reverse": reverse}
    with contextlib.suppress(Undo), shared.write() as txn:
        for key, value in model.items():
            txn.put("nodes", key, value)
        entries = expected(model, start, prefix, reverse)
        assert list(txn.scan("nodes", **options)) == entries
        keys = [(key, b"") for key, _ in entries]
        assert list(txn.scan("nodes", keys_only=True, **options)) == keys
        last = max((key for key in model if key.startswith(prefix)), default=None)
        assert txn.last_key("nodes", prefix) == last
        raise Undo


@given(
    keys=st.sets(st.integers(0, 99), max_size=60),
    edits=st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), max_size=150),
    reverse=st.booleans(),
    size=st.sampled_from([3, 400, 1500]),
)
@settings(max_examples=150, deadline=None)
def test_a_scan_goes_on_while_entries_come_and_go(
    shared: Environment,
    keys: set[int],
    edits: list[tuple[bool, int]],
    reverse: bool,
    size: int,
) -> None:
    class Undo(Exception):
        pass

    model = {b"%02d" % key: bytes(size) for key in keys}
    waiting = iter(edits)
    with contextlib.suppress(Undo), shared.write() as txn:
        for key, value in model.items():
            txn.put("nodes", key, value)
        last = None
        for key, value in txn.scan("nodes", reverse=reverse):
            assert (key, value) == beyond(model, last, reverse)
            last = key
            for put, distance in [edit for edit, _ in zip(waiting, "12", strict=False)]:
                near = b"%02d" % (abs(int(key) + distance) % 100)
                if put:
                    model[near] = bytes(size // 2)
                    txn.put("nodes", near, model[near])
                else:
                    model.pop(near, None)
                    txn.delete("nodes", near)
        assert beyond(model, last, reverse) is None
        raise Undo


def beyond(
    model: dict[bytes, bytes], last: bytes | None, reverse: bool
) -> tuple[bytes, bytes] | None:
    """Give the next entry after a key."""
    for key in sorted(model, reverse=reverse):
        if last is None or (key < last if reverse else key > last):
            return key, model[key]
    return None


def test_a_scan_that_deletes_all(environment: Environment) -> None:
    fill(environment, 2000)
    with environment.write() as txn:
        for key, _ in txn.scan("nodes"):
            assert txn.delete("nodes", key)
        assert txn.count("nodes") == 0


# ---- write txns -----------------------------------------------------------------------------


def test_put_and_delete_tell_what_they_did(environment: Environment) -> None:
    with environment.write() as txn:
        assert txn.put("nodes", b"key", b"old", overwrite=False)
        assert not txn.put("nodes", b"key", b"new", overwrite=False)
        assert txn.get("nodes", b"key") == b"old"
        assert txn.put("nodes", b"key", bytearray(b"new"))
        assert txn.get("nodes", b"key") == b"new"
        assert txn.put("nodes", b"view", memoryview(b"value"))
        assert txn.put("nodes", b"empty", b"")
        assert txn.get("nodes", b"empty") == b""
        assert txn.delete("nodes", b"key")
        assert not txn.delete("nodes", b"key")
        assert txn.count("nodes") == 2


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_nothing_is_written_when_the_block_raises(
    environment: Environment, error: type[BaseException]
) -> None:
    def write() -> None:
        with environment.write() as txn:
            txn.put("nodes", b"key", b"value")
            raise error

    with pytest.raises(error):
        write()
    assert environment.info().entries["nodes"] == 0
    fill(environment, 1)


def test_nothing_is_written_when_an_error_was_caught(environment: Environment) -> None:
    def write() -> None:
        with environment.write() as txn:
            txn.put("nodes", b"key", b"value")
            with contextlib.suppress(InvalidInputError):
                txn.put("nodes", b"", b"value")

    with pytest.raises(InvalidInputError, match="1 to 511 bytes"):
        write()
    assert environment.info().entries["nodes"] == 0


def test_write_txns_do_not_nest(environment: Environment) -> None:
    with environment.read(), pytest.raises(SessionStateError, match="end that first"):
        environment.write().__enter__()
    with environment.write() as outer:
        outer.put("nodes", b"key", b"value")
        with pytest.raises(SessionStateError, match="end that first"):
            environment.write().__enter__()
        with environment.read() as txn:
            assert txn.count("nodes") == 0
    assert environment.info().entries["nodes"] == 1


def test_last_txn_id_counts_commits_that_change_something(environment: Environment) -> None:
    first = environment.last_txn_id()
    with environment.write():
        pass
    assert environment.last_txn_id() == first
    fill(environment, 1)
    assert environment.last_txn_id() == first + 1
    environment.sync()
    assert environment.last_txn_id() == first + 1


def test_info(environment: Environment) -> None:
    with environment.write() as txn:
        txn.put("chunks", b"big", bytes(1 << 20))
    info = environment.info()
    assert info.path == environment.path
    assert info.file_bytes == os.path.getsize(environment.path)
    assert 1 << 20 < info.used_bytes <= info.file_bytes
    assert info.map_bytes == memorymap.INITIAL_MAP_BYTES
    assert info.page_size == probe(environment.path).page_size
    assert info.last_txn_id == environment.last_txn_id()
    assert info.entries == {**dict.fromkeys(DATABASES, 0), "chunks": 1}
    with environment.write() as txn:
        txn.delete("chunks", b"big")
    after = environment.info()
    assert after.used_bytes < info.used_bytes - (1 << 20)
    assert after.file_bytes >= info.file_bytes


# ---- the write gate -------------------------------------------------------------------------


def test_a_busy_gate_names_the_thread(environment: Environment) -> None:
    with held(environment, write=True):
        for timeout in (0, 0.05):
            before = time.monotonic()
            with pytest.raises(BusyError, match="thread 'beside' of this process") as caught:
                environment.write(timeout=timeout).__enter__()
            assert time.monotonic() - before >= timeout
            holder = caught.value.holder
            assert holder is not None
            assert holder.pid == os.getpid()
            assert holder.since is not None
        with environment.read() as txn:
            assert txn.count("nodes") == 0
    fill(environment, 1)


def test_writers_wait_for_each_other(environment: Environment) -> None:
    def add() -> None:
        for _ in range(50):
            with environment.write(timeout=20) as txn:
                number = int(txn.get("meta", b"counter") or b"0")
                txn.put("meta", b"counter", b"%d" % (number + 1))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with environment.read() as txn:
        assert txn.get("meta", b"counter") == b"200"


class Alarm(Exception):
    """Raised by a signal, as Ctrl-C would."""


@pytest.mark.parametrize("by", ["thread", "flock"])
def test_waiting_can_be_interrupted(environment: Environment, by: str) -> None:
    def ring(*_: object) -> None:
        raise Alarm

    def wait() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        environment.write().__enter__()

    with contextlib.ExitStack() as stack:
        if by == "thread":
            stack.enter_context(held(environment, write=True))
        else:
            stack.enter_context(locked_elsewhere(environment.path))
        old = signal.signal(signal.SIGALRM, ring)
        try:
            with pytest.raises(Alarm):
                wait()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
    fill(environment, 1)


@contextlib.contextmanager
def locked_elsewhere(path: str) -> Iterator[None]:
    """Hold the gate by another descriptor, as another process would."""
    import fcntl

    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@on_linux
def test_a_busy_gate_names_the_process(environment: Environment) -> None:
    with locked_elsewhere(environment.path), pytest.raises(BusyError) as caught:
        environment.write(timeout=0.02).__enter__()
    holder = caught.value.holder
    assert holder is not None
    assert holder.pid == os.getpid()
    assert "python" in holder.command
    assert holder.since is not None
    assert abs(holder.since.timestamp() - time.time()) < 24 * 3600
    assert f"process {os.getpid()}" in str(caught.value)
    assert "waited 0.02 seconds" in str(caught.value)


def test_where_the_holder_cannot_be_found(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "_lines", lambda path: [])
    with (
        locked_elsewhere(environment.path),
        pytest.raises(BusyError, match="another process") as caught,
    ):
        environment.write(timeout=0).__enter__()
    assert caught.value.holder is None


LOCKS = """1: POSIX  ADVISORY  WRITE 10 fe:00:77 0 EOF
2: FLOCK  ADVISORY  WRITE 11 fe:01:77 0 EOF
3: FLOCK  ADVISORY  WRITE 12 fe:00:777 0 EOF
4: FLOCK  ADVISORY  WRITE 13 fe:00:77 0 EOF
5: FLOCK  ADVISORY  WRITE 0 fe:00:78 0 EOF
5: -> FLOCK  ADVISORY  WRITE 14 fe:00:78 0 EOF
"""


@pytest.mark.parametrize(
    ("major", "minor", "inode", "pid"),
    [(254, 0, 77, 13), (254, 1, 77, 11), (254, 0, 78, None), (254, 0, 7, None), (0, 9, 777, 12)],
)
def test_the_list_of_locks(
    monkeypatch: pytest.MonkeyPatch, major: int, minor: int, inode: int, pid: int | None
) -> None:
    monkeypatch.setattr(system, "_lines", lambda path: LOCKS.splitlines())
    assert system._flock_pid(major, minor, inode) == pid


def test_opening_for_writing_waits_at_the_gate(file: str) -> None:
    Environment.create(file, nothing).close()
    with locked_elsewhere(file):
        with pytest.raises(BusyError):
            Environment.open(file, writable=True, timeout=0.02)
        with opened(file) as environment, environment.read() as txn:
            assert txn.count("nodes") == 0
    with opened(file, writable=True, timeout=0):
        pass


# ---- growth ---------------------------------------------------------------------------------


@pytest.fixture
def small_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memorymap, "INITIAL_MAP_BYTES", 2 << 20)
    monkeypatch.setattr(memorymap, "MINIMUM_MAP_BYTES", 1 << 20)


def test_the_map_grows_ahead(small_map: None, environment: Environment) -> None:
    assert environment.info().map_bytes == 2 << 20
    for number in range(6):
        with environment.write(room=2 << 20) as txn:
            txn.put("chunks", b"%d" % number, bytes(2 << 20))
    info = environment.info()
    assert info.map_bytes > info.file_bytes > 12 << 20
    with environment.read() as txn:
        assert [len(value) for _, value in txn.scan("chunks")] == [2 << 20] * 6


def test_a_full_map_grows_at_the_next_write(small_map: None, environment: Environment) -> None:
    for _ in range(2):
        with pytest.raises(FullError, match="try again"), environment.write() as txn:
            txn.put("chunks", b"big", bytes(9 << 20))
        assert environment.info().entries["chunks"] == 0
    with environment.write() as txn:
        txn.put("chunks", b"big", bytes(9 << 20))
    assert environment.info().file_bytes > 9 << 20


def test_growth_waits_for_the_txns_of_others(small_map: None, environment: Environment) -> None:
    fill(environment, 3)

    def write() -> None:
        with environment.write(room=8 << 20) as txn:
            txn.put("chunks", b"big", bytes(8 << 20))

    with environment.read() as txn:
        view = txn.view("nodes", b"00001")
        with contextlib.ExitStack() as stack:
            results = stack.enter_context(in_thread(write))
            until_somebody_waits(environment)
            # Growth waits for us. We may even read on, new readers may not.
            with environment.read() as inner:
                assert inner.count("chunks") == 0
            newcomer = stack.enter_context(in_thread(lambda: environment.info().entries["chunks"]))
            assert view == bytes(50)
            txn._end()
            environment._access.activity.leave(txn)
        assert results == [None]
        assert newcomer[0] in (0, 1)
    assert environment.info().entries["chunks"] == 1


class Stub:
    """LMDB's environment with a method that fails some times; it is not to be subclassed."""

    def __init__(self, environment: Environment, method: str, *errors: BaseException) -> None:
        assert environment._access.opened is not None
        self._handle = environment._access.opened.handle
        self._method = method
        self._errors = list(errors)
        environment._access.opened = replace(environment._access.opened, handle=self)

    def __getattr__(self, name: str) -> Any:
        if name == self._method and self._errors:
            raise self._errors.pop()
        return getattr(self._handle, name)


def test_growth_without_address_space(small_map: None, environment: Environment) -> None:
    fill(environment, 3)
    Stub(environment, "set_mapsize", lmdb_error(lmdb.MemoryError, errno.ENOMEM))
    with pytest.raises(FullError, match="address space") as caught:
        environment.write(room=50 << 20).__enter__()
    assert caught.value.errno == errno.ENOMEM
    with environment.read() as txn:
        assert txn.count("nodes") == 3
    fill(environment, 4)


def test_the_map_is_as_big_as_it_can_be(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = lmdb.open

    def limited(*arguments: Any, map_size: int, **options: Any) -> lmdb.Environment:
        sizes.append(map_size)
        if map_size > 5 << 30:
            raise lmdb_error(lmdb.MemoryError, errno.ENOMEM)
        return real(*arguments, map_size=map_size, **options)

    Environment.create(file, nothing).close()
    monkeypatch.setattr(lmdb, "open", limited)
    with opened(file, writable=True) as environment:
        assert sizes == [size << 30 for size in (64, 32, 16, 8, 4)]
        fill(environment, 1)
    monkeypatch.setattr(memorymap, "MINIMUM_MAP_BYTES", 20 << 30)
    with pytest.raises(FullError, match="address space"):
        Environment.open(file, writable=True)


# ---- errors ---------------------------------------------------------------------------------


def lmdb_error(kind: type[lmdb.Error], code: int = 0) -> lmdb.Error:
    """Make an error as LMDB raises it; the constructor leaves the code out."""
    error = kind("what failed: why")
    if code:
        error.code = code  # type: ignore[misc]
    return error


@pytest.mark.parametrize(
    ("theirs", "theirs_code", "ours", "ours_code"),
    [
        (lmdb.MapFullError, -30792, FullError, errno.ENOSPC),
        (lmdb.MemoryError, errno.ENOMEM, FullError, errno.ENOMEM),
        (lmdb.DiskError, errno.ENOSPC, FullError, errno.ENOSPC),
        (lmdb.Error, errno.EIO, FullError, errno.EIO),
        (lmdb.Error, errno.EDQUOT, FullError, errno.EDQUOT),
        (lmdb.Error, errno.EFBIG, FullError, errno.EFBIG),
        (lmdb.Error, -30772, FullError, errno.EIO),
        (lmdb.BadValsizeError, -30781, InvalidInputError, None),
        (lmdb.ReadonlyError, errno.EACCES, ReadOnlyError, None),
        (lmdb.CorruptedError, -30796, CorruptError, None),
        (lmdb.PageNotFoundError, -30797, CorruptError, None),
        (lmdb.CursorFullError, -30787, CorruptError, None),
        (lmdb.InvalidError, -30793, CorruptError, None),
        (lmdb.VersionMismatchError, -30794, CorruptError, None),
        (lmdb.PanicError, -30795, StorageError, errno.EIO),
        (lmdb.ReadersFullError, -30790, StorageError, errno.EAGAIN),
        (lmdb.LockError, errno.EAGAIN, StorageError, errno.EAGAIN),
        (lmdb.BadTxnError, -30782, StorageError, None),
        (lmdb.TxnFullError, -30788, StorageError, None),
        (lmdb.Error, errno.EINVAL, StorageError, errno.EINVAL),
        (lmdb.Error, 0, StorageError, None),
    ],
)
def test_every_error_becomes_one_of_ours(
    tmp_path: Path,
    theirs: type[lmdb.Error],
    theirs_code: int,
    ours: type[VzarrError],
    ours_code: int | None,
) -> None:
    translated = lmdberrors.translate(lmdb_error(theirs, theirs_code), str(tmp_path))
    assert type(translated) is ours
    assert len(str(translated)) > 20
    assert getattr(translated, "errno", None) == ours_code


def test_a_full_disk_is_told_from_a_failing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = lmdb_error(lmdb.Error, errno.EIO)
    assert "MiB of the disk are free" in str(lmdberrors._full(str(tmp_path), error))
    monkeypatch.setattr(lmdberrors, "_free_bytes", lambda path: 4096)
    full = lmdberrors._full(str(tmp_path), error)
    assert "is full" in str(full)
    assert full.errno == errno.ENOSPC
    monkeypatch.setattr(lmdberrors, "_free_bytes", lambda path: None)
    assert "could not be written;" in str(lmdberrors._full(str(tmp_path), error))


def test_after_a_panic_the_file_is_opened_again(environment: Environment) -> None:
    fill(environment, 3)
    for use in (environment.read, environment.write):
        Stub(environment, "begin", lmdb_error(lmdb.PanicError, -30795))
        with use() as txn:
            assert txn.count("nodes") == 3
        assert environment._access.opened is not None
        assert not isinstance(environment._access.opened.handle, Stub)


def test_a_panic_that_stays_is_an_error(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = access.open_file

    def panicking(*arguments: Any, **options: Any) -> Any:
        environment._access.opened = real(*arguments, **options)
        Stub(environment, "begin", lmdb_error(lmdb.PanicError, -30795))
        return environment._access.opened

    Stub(environment, "begin", lmdb_error(lmdb.PanicError, -30795))
    with monkeypatch.context() as patch:
        patch.setattr(access, "open_file", panicking)
        with pytest.raises(StorageError, match="failed half way"), environment.read():
            pytest.fail("it panics")
    fill(environment, 1)


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (lmdb_error(lmdb.LockError, errno.EAGAIN), StorageError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_an_error_of_begin_leaves_nothing_locked(
    environment: Environment, error: BaseException, ours: type[BaseException]
) -> None:
    for use in (environment.read, environment.write):
        Stub(environment, "begin", error)
        with pytest.raises(ours):
            use().__enter__()
        assert environment._access.activity.inside() == []
    fill(environment, 1)


def test_a_commit_that_fails_writes_nothing(environment: Environment) -> None:
    """The files of this process may not grow: the commit fails as it would on a full disk."""
    import resource

    fill(environment, 3)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(environment.path), old[1]))
    try:
        with pytest.raises(FullError, match="as it was"), environment.write() as txn:
            txn.put("chunks", b"big", bytes(4 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    info = environment.info()
    assert (info.entries["chunks"], info.entries["nodes"]) == (0, 3)
    with environment.write() as txn:
        txn.put("chunks", b"big", bytes(4 << 20))
    assert environment.info().entries["chunks"] == 1


# ---- being alone ----------------------------------------------------------------------------


def test_activity_gives_up_inside_a_txn_of_its_own_thread() -> None:
    activity = Activity()
    activity.enter("me")
    assert not activity.shut(0)
    with pytest.raises(SessionStateError), activity.alone():
        pytest.fail("not alone")
    activity.leave("me")
    with activity.alone():
        pass


def test_activity_gives_up_in_time() -> None:
    activity = Activity()
    begun, finish = threading.Event(), threading.Event()

    def stay() -> None:
        activity.enter("them")
        begun.set()
        finish.wait(20)
        activity.leave("them")

    with in_thread(stay):
        assert begun.wait(20)
        assert not activity.shut(0.01)
        # Having given up, it holds nobody back.
        activity.enter("me")
        activity.leave("me")
        finish.set()
    assert activity.shut(20)
    with in_thread(lambda: activity.shut(0.01)) as results:
        pass
    assert results == [False]
    activity.open()


def test_activity_under_pressure() -> None:
    activity = Activity()
    inside, alone, errors = [0], [0], []
    stop = threading.Event()

    def visit(name: object) -> None:
        while not stop.is_set():
            activity.enter(name)
            inside[0] += 1
            if alone[0]:
                errors.append("somebody came in")
            activity.enter((name, "again"))
            activity.leave((name, "again"))
            activity.leave(name)

    def be_alone() -> None:
        for _ in range(150):
            with activity.alone():
                alone[0] += 1
                before = inside[0]
                time.sleep(0)
                if alone[0] != 1 or inside[0] != before:
                    errors.append("not alone")
                alone[0] -= 1

    visitors = [threading.Thread(target=visit, args=(number,)) for number in range(3)]
    loners = [threading.Thread(target=be_alone) for _ in range(2)]
    for thread in visitors + loners:
        thread.start()
    for thread in loners:
        thread.join(30)
    stop.set()
    for thread in visitors:
        thread.join(30)
    assert errors == []
    assert inside[0] > 0
    assert activity.inside() == []


# ---- speed ----------------------------------------------------------------------------------


def test_speed(environment: Environment, capsys: pytest.CaptureFixture[str]) -> None:
    """Print what the hot paths take; machines differ too much to assert it."""
    key, number = b"k" * 32, iter(range(10**9))
    with environment.write() as txn:
        txn.put("nodes", key, bytes(1000))

    def read() -> None:
        with environment.read() as txn:
            txn.get("nodes", key)

    def write() -> None:
        with environment.write() as txn:
            txn.put("nodes", next(number).to_bytes(32, "big"), bytes(100))

    def empty() -> None:
        with environment.write():
            pass

    def reopen() -> None:
        Environment.open(environment.path, writable=True).close()

    with environment.read() as txn:
        cases: dict[str, tuple[Callable[[], Any], int]] = {
            "get in an open txn": (lambda: txn.get("nodes", key), 20_000),
        }
        lines = [measure(name, *case) for name, case in cases.items()]
    cases = {
        "read txn with one get": (read, 20_000),
        "last_txn_id": (environment.last_txn_id, 5_000),
        "write txn without a write": (empty, 1_000),
        "write txn of 100 bytes": (write, 100),
        "open and close once more": (reopen, 200),
    }
    lines += [measure(name, *case) for name, case in cases.items()]
    with capsys.disabled():
        print("\n" + "\n".join(lines))


def measure(name: str, function: Callable[[], Any], times: int) -> str:
    best = min(timeit.repeat(function, number=times, repeat=3)) / times
    return f"{name:28}{best * 1e6:9.2f} µs"
