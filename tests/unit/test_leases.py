"""Leases: whose staged work is whose, and whether the owner lives."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from typing import Any

import pytest

import vzarr
from tests.processes import Child
from vzarr import leases
from vzarr.environment import Environment
from vzarr.errors import SessionStateError
from vzarr.format import FORK, Digest, LeaseRecord, encode_lease, session_key
from vzarr.leases import NOBODY, Lease

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

BASE, NEXT = Digest(b"b" * 32), Digest(b"n" * 32)
ROOT, LATER = Digest(b"r" * 32), Digest(b"l" * 32)


@pytest.fixture
def environment(repo: vzarr.Repository) -> Environment:
    return repo._environment


@pytest.fixture
def lease(environment: Environment) -> Lease:
    return Lease.create(environment, "main", BASE)


def put(lease: Lease, **changes: Any) -> LeaseRecord:
    with lease._environment.write() as txn:
        lease.record = lease.put(txn, **changes)
    return lease.record


def add(lease: Lease, digests: bytes, nbytes: int) -> None:
    with lease._environment.write() as txn:
        lease.record = lease.add(txn, digests, nbytes)


def clean(environment: Environment) -> None:
    """Drop what points to nowhere, which a check of the file would say."""
    with environment.write() as txn:
        for session_id, _ in list(leases.leases(txn)):
            leases.delete(txn, session_id)
        assert txn.count("sessions") == 0


def listed(environment: Environment) -> list[tuple[bytes, LeaseRecord]]:
    with environment.read() as txn:
        return list(leases.leases(txn))


# ── what is in the file ──────────────────────────────────────────────────────────────────────────


def test_a_lease_is_written_when_it_is_needed(lease: Lease, environment: Environment) -> None:
    assert not lease.written
    assert listed(environment) == []
    before = leases.now()
    record = put(lease)
    assert lease.written
    assert listed(environment) == [(lease.id, record)]
    assert (record.pid, record.host) == (os.getpid(), socket.gethostname())
    assert record.token == environment.token
    assert record.process_started == leases.process_started(os.getpid()) > 0
    assert record.command == " ".join([os.path.basename(sys.executable), *sys.argv])[:200]
    assert (record.branch, record.base, record.parent) == ("main", BASE, None)
    assert record.created <= before <= record.updated <= leases.now()
    clean(environment)


def test_batches_are_numbered_and_counted(lease: Lease, environment: Environment) -> None:
    for number in range(1, 4):
        add(lease, b"d" * 32 * number, 10)
    assert lease.record.nbytes == 30
    with environment.read() as txn:
        assert [number for number, _ in leases.records(txn, lease.id)] == [1, 2, 3]
        assert [number for number, _ in leases.records(txn, lease.id, after=1)] == [2, 3]
        assert dict(leases.records(txn, lease.id))[2] == b"d" * 64
        assert leases.last_number(txn, lease.id) == 3
        assert leases.last_number(txn, uuid.uuid4().bytes) == 0
        assert leases.find(txn, lease.id) == lease.record
        assert leases.find(txn, uuid.uuid4().bytes) is None
    clean(environment)


def test_leases_are_listed_without_what_lies_beside_them(environment: Environment) -> None:
    kept = [Lease.create(environment, f"branch-{number}", BASE) for number in range(5)]
    for number, lease in enumerate(kept):
        for _ in range(number):
            add(lease, b"d" * 32, 1)
        put(lease)
    # A batch may be left without a lease, and is nobody's.
    with environment.write() as txn:
        txn.put("sessions", session_key(uuid.uuid4().bytes, 7), b"d" * 32)
    # The last id of all has no successor.
    with environment.write() as txn:
        last = b"\xff" * 16
        txn.put("sessions", session_key(last, 0), encode_lease(kept[0].record))
        txn.put("sessions", session_key(last, 0xFFFFFFFF), b"d" * 32)
    found = listed(environment)
    assert [session_id for session_id, _ in found] == sorted([*(each.id for each in kept), last])
    assert {record.branch for _, record in found} == {f"branch-{number}" for number in range(5)}
    with environment.write() as txn:
        for key, _ in txn.scan("sessions"):
            txn.delete("sessions", key)


def test_a_lease_is_deleted_with_its_batches_and_forks(environment: Environment) -> None:
    lease, other = (Lease.create(environment, "main", BASE) for _ in range(2))
    for each in (lease, other):
        add(each, b"d" * 32, 1)
    with environment.write() as txn:
        for parent in (lease, other):
            fork = replace(parent.record, kind=FORK, parent=parent.id, staged=ROOT)
            key = uuid.uuid4().bytes
            txn.put("sessions", session_key(key, 0), encode_lease(fork))
            txn.put("sessions", session_key(key, 1), b"journal")
    with environment.write() as txn:
        lease.delete(txn)
        assert txn.count("sessions") == 4
    assert {record.parent for _, record in listed(environment)} == {None, other.id}
    lease.renew(NEXT)
    assert not lease.written
    # Nothing is left to delete, and nothing is.
    with environment.write() as txn:
        lease.delete(txn)
        assert txn.count("sessions") == 4
    assert put(lease).base == NEXT
    clean(environment)


def test_what_was_not_deleted_is_known_to_be_there(lease: Lease, environment: Environment) -> None:
    """A session without changes may go on from another commit, and have staged bytes."""
    add(lease, b"d" * 32, 1)
    lease.renew(NEXT)
    assert lease.written
    # A deletion that did not come to its end is none.
    with pytest.raises(ZeroDivisionError), environment.write() as txn:
        lease.delete(txn)
        raise ZeroDivisionError
    with environment.write() as txn:
        lease.delete(txn)
        assert txn.count("sessions") == 0


def test_a_checkpoint_keeps_the_base_it_was_made_from(
    lease: Lease, environment: Environment
) -> None:
    put(lease, staged=ROOT, checkpoint=ROOT, checkpointed=1)
    lease.base = NEXT
    # A batch that is staged while the session is being rebased.
    add(lease, b"d" * 32, 1)
    assert (lease.record.base, lease.record.checkpoint) == (BASE, ROOT)
    record = put(lease, staged=LATER, checkpoint=LATER, checkpointed=2)
    assert (record.base, record.checkpoint) == (NEXT, LATER)
    lease.renew(BASE)
    assert (put(lease).base, lease.record.checkpoint) == (BASE, None)
    clean(environment)


def test_a_lease_that_has_ended_is_not_written(lease: Lease, environment: Environment) -> None:
    add(lease, b"d" * 32, 1)
    lease.close()
    with pytest.raises(SessionStateError, match="has ended"), environment.write() as txn:
        lease.put(txn)
    with environment.write() as txn:
        # What others may have resumed is not ours to delete.
        lease.delete(txn)
        assert txn.count("sessions") == 2
    clean(environment)


# ── life ─────────────────────────────────────────────────────────────────────────────────────────


def alive(lease: Lease, **changes: Any) -> bool | None:
    return leases.is_alive(lease._environment, lease.id, replace(lease.record, **changes))


def test_a_lease_of_this_process_lives_as_long_as_its_session(lease: Lease) -> None:
    fork = uuid.uuid4().bytes
    forked = replace(lease.record, kind=FORK, parent=lease.id)
    assert alive(lease) is True
    assert leases.is_alive(lease._environment, fork, forked) is True
    lease.close()
    assert alive(lease) is False
    assert leases.is_alive(lease._environment, fork, forked) is False


def test_a_lease_that_nobody_refers_to_is_dead(environment: Environment) -> None:
    lease = Lease.create(environment, "main", BASE)
    session_id, record = lease.id, lease.record
    assert leases.is_alive(environment, session_id, record)
    del lease
    assert leases.is_alive(environment, session_id, record) is False


def test_the_end_of_an_old_copy_is_not_the_end_of_the_session(environment: Environment) -> None:
    old = Lease.create(environment, "main", BASE)
    old.close()
    resumed = Lease(environment, old.id, old.record)
    old.close()
    assert alive(resumed) is True
    del old
    assert alive(resumed) is True


@pytest.fixture
def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


ELSEWHERE = {"token": 4711, "host": "elsewhere"}


@pytest.mark.parametrize(
    ("present", "changes", "expected"),
    [
        (True, {"token": 4711}, True),
        (False, {"token": 4711}, False),
        # Containers on one machine have their own names, and share the system's locks.
        (True, ELSEWHERE, True),
        (False, ELSEWHERE, None),
        (None, ELSEWHERE, None),
        # Where there are no such locks, the process tells.
        (None, {"token": 4711}, True),
        (None, {"token": 4711, "process_started": 1}, False),
        (None, {"token": NOBODY}, False),
        (False, {"token": NOBODY}, False),
    ],
)
def test_a_lease_of_another_process_lives_as_long_as_it_has_the_file_open(
    lease: Lease,
    monkeypatch: pytest.MonkeyPatch,
    present: bool | None,
    changes: dict[str, Any],
    expected: bool | None,
) -> None:
    monkeypatch.setattr(Environment, "is_present", lambda *_: present)
    assert alive(lease, **changes) is expected


def test_a_process_that_has_ended(lease: Lease, monkeypatch: pytest.MonkeyPatch, gone: int) -> None:
    monkeypatch.setattr(Environment, "is_present", lambda *_: None)
    assert leases.process_started(gone) == 0
    # Not even where the system did not tell when it began.
    assert alive(lease, token=4711, pid=gone, process_started=0) is False
    # The first process of all is not ours to signal, and runs.
    begun = leases.process_started(1)
    assert alive(lease, token=4711, pid=1, process_started=begun) is True

    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert alive(lease, token=4711, pid=1, process_started=begun) is True


# ── what is told of it ───────────────────────────────────────────────────────────────────────────


def test_what_is_told_of_a_lease(lease: Lease) -> None:
    record = replace(
        lease.record,
        pid=4711,
        host="ocean",
        command="python append.py",
        nbytes=1_234_567,
        created=1_700_000_000_000_000,
        updated=1_700_000_060_000_000,
    )
    found = leases.describe(lease.id, record, alive=True)
    assert (found.id, found.kind, found.parent) == (lease.id.hex(), "session", None)
    assert (found.branch, found.base, found.nbytes) == ("main", BASE.hex(), 1_234_567)
    created = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert (found.created, found.updated) == (created, created + timedelta(minutes=1))
    assert found.checkpointed is None
    assert found.owner == vzarr.errors.Holder(4711, "ocean", "python append.py", created)
    assert str(found) == (
        f"{lease.id.hex()}  session on main at {BASE.hex()[:12]}, alive, 1,234,567 bytes staged: "
        "process 4711 (python append.py) on ocean, since 2023-11-14 22:13:20 UTC"
    )
    saved = replace(
        record, kind=FORK, parent=lease.id, checkpoint=ROOT, checkpointed=record.updated, nbytes=0
    )
    found = leases.describe(lease.id, saved, alive=False)
    assert (found.kind, found.parent) == ("fork", lease.id.hex())
    assert ", dead, saved 2023-11-14 22:14:20: process" in str(found)
    assert "of another machine" in str(leases.describe(lease.id, saved, None))
    reader = replace(found, id="", kind="reader", branch=None, base="123456789")
    assert str(reader).startswith(f"{'-':<32}  reader at 123456789, dead")


def test_a_command_is_shortened(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["-c", "x" * 10_000, "\udc80"])
    leases._owner.cache_clear()
    command = Lease.create(environment, "main", BASE).record.command
    assert len(command) == 200
    monkeypatch.setattr(sys, "argv", ["\udc80"])
    leases._owner.cache_clear()
    lease = Lease.create(environment, "main", BASE)
    assert lease.record.command.endswith(" ?")
    put(lease)
    clean(environment)
    leases._owner.cache_clear()


# ── fork ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_child_process_has_leases_of_its_own(lease: Lease, environment: Environment) -> None:
    def work(_: Connection) -> tuple[bytes, int, bool]:
        record = put(lease)
        assert record.token == environment.token
        return lease.id, record.pid, record.pid == os.getpid()

    child = Child(work)
    session_id, pid, own = child.result()
    assert session_id != lease.id
    assert (pid, own) == (child.pid, True)
    (found,) = listed(environment)
    assert found[0] == session_id
    assert leases.is_alive(environment, *found) is False
    assert alive(lease) is True
    clean(environment)


def test_a_child_process_does_not_go_on_with_what_its_parent_staged(
    lease: Lease, environment: Environment
) -> None:
    """The parent may delete that at any time, and the child's work would rest on nothing."""
    add(lease, b"d" * 32, 1)
    before = listed(environment)

    def work(_: Connection) -> str:
        for change in (lease.put, lease.delete):
            with (
                pytest.raises(SessionStateError, match=f"in process {os.getppid()}"),
                environment.write() as txn,
            ):
                change(txn)
        grandchild = Child(lambda _: lease._parent)
        assert grandchild.result() == os.getppid()
        lease.renew(NEXT)
        assert put(lease).base == NEXT
        with environment.write() as txn:
            lease.delete(txn)
        return "done"

    assert Child(work).result() == "done"
    assert listed(environment) == before
    assert alive(lease) is True
    clean(environment)
