"""A bank: what snapshot isolation promises, what it does not, and what serializable adds.

Accounts are the chunks of one array, or the attributes of an array each. Whatever others do at the
same time, a transfer must leave their total as it was.
"""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zarr

import vzarr
from vzarr.errors import ConflictError, SessionStateError

ACCOUNTS = 6
OPENING = 1000
WORKERS = 4
TRANSFERS = 50
ISOLATIONS = ["snapshot", "serializable"]
REASON = "read by this session, and changed by another meanwhile"


@dataclass(frozen=True)
class Chunks:
    """All balances in one array, a chunk each."""

    def create(self, store: Any, balances: list[int]) -> None:
        array = zarr.create_array(
            store, name="accounts", shape=(len(balances),), chunks=(1,), dtype="i8"
        )
        array[:] = balances

    def balance(self, store: Any, account: int) -> int:
        return int(zarr.open_array(store, path="accounts", mode="r")[account])

    def set(self, store: Any, account: int, balance: int) -> None:
        zarr.open_array(store, path="accounts", mode="r+")[account] = balance

    def place(self, account: int) -> tuple[str, str, tuple[int, ...] | None]:
        return "accounts", "chunk", (account,)


@dataclass(frozen=True)
class Attributes:
    """Each balance in the metadata of an array of its own."""

    def create(self, store: Any, balances: list[int]) -> None:
        zarr.create_group(store)
        for account, balance in enumerate(balances):
            name, attributes = f"account{account}", {"balance": balance}
            zarr.create_array(store, name=name, shape=(0,), dtype="i1", attributes=attributes)

    def balance(self, store: Any, account: int) -> int:
        return zarr.open_array(store, path=f"account{account}", mode="r").attrs["balance"]

    def set(self, store: Any, account: int, balance: int) -> None:
        zarr.open_array(store, path=f"account{account}", mode="r+").attrs["balance"] = balance

    def place(self, account: int) -> tuple[str, str, tuple[int, ...] | None]:
        return f"account{account}", "document", None


Bank = Chunks | Attributes
banks = pytest.mark.parametrize("bank", [Chunks(), Attributes()], ids=["chunks", "attributes"])
isolations = pytest.mark.parametrize("isolation", ISOLATIONS)


def balances(bank: Bank, store: Any, accounts: int = ACCOUNTS) -> list[int]:
    return [bank.balance(store, account) for account in range(accounts)]


def withdraw(bank: Bank, store: Any, account: int, amount: int) -> None:
    bank.set(store, account, bank.balance(store, account) - amount)


def places(error: pytest.ExceptionInfo[ConflictError]) -> list[tuple[str, str, object]]:
    return [(it.path, it.kind, it.coordinates) for it in error.value.conflicts]


# ── two sessions, step by step ───────────────────────────────────────────────────────────────────


@pytest.fixture(params=[Chunks(), Attributes()], ids=["chunks", "attributes"])
def bank(request, repo) -> Bank:
    """Two accounts with 50 each."""
    with repo.transaction("main", "open the bank") as store:
        request.param.create(store, [50, 50])
    return request.param


def two_sessions(repo: vzarr.Repository, isolation: str) -> tuple[Any, Any]:
    return tuple(repo.session("main", isolation=isolation) for _ in range(2))


def withdraw_if_covered(bank: Bank, store: Any, account: int) -> None:
    """Take 80 out of one account, which may go below zero as long as both together do not."""
    if sum(balances(bank, store, 2)) >= 80:
        withdraw(bank, store, account, 80)


def test_write_skew_is_refused_and_names_what_was_read(repo, bank):
    first, second = two_sessions(repo, "serializable")
    withdraw_if_covered(bank, first.store, 0)
    withdraw_if_covered(bank, second.store, 1)
    head = first.commit("from the first account")
    with pytest.raises(ConflictError) as error:
        second.commit("from the second account")
    # What only the second wrote is no conflict; what it read and the first changed is.
    assert places(error) == [bank.place(0)]
    (conflict,) = error.value.conflicts
    assert conflict.reason == REASON
    assert conflict.base == conflict.ours != conflict.theirs
    if conflict.kind == "chunk":
        sides = ("base", "theirs")
        assert [conflict.decode(side).tolist() for side in sides] == [[50], [-30]]
    # Nothing was written, and the edits are still there.
    assert repo.branches["main"] == head
    assert balances(bank, repo.store("main"), 2) == [-30, 50]
    assert balances(bank, second.store, 2) == [50, -30]


def test_no_strategy_lets_a_stale_read_through(repo, bank):
    for strategy in ("ours", "theirs"):
        first, second = two_sessions(repo, "serializable")
        withdraw_if_covered(bank, first.store, 0)
        withdraw_if_covered(bank, second.store, 1)
        first.commit("from the first account")
        with pytest.raises(ConflictError):
            second.commit("from the second account", merge=strategy)
        repo.run(lambda store: bank.set(store, 0, 50))


def test_write_skew_is_the_anomaly_of_snapshot_isolation(repo, bank):
    first, second = two_sessions(repo, "snapshot")
    withdraw_if_covered(bank, first.store, 0)
    withdraw_if_covered(bank, second.store, 1)
    first.commit("from the first account")
    second.commit("from the second account")
    assert balances(bank, repo.store("main"), 2) == [-30, -30]


@isolations
def test_a_lost_update_is_refused(repo, bank, isolation):
    first, second = two_sessions(repo, isolation)
    withdraw(bank, first.store, 0, 10)
    withdraw(bank, second.store, 0, 20)
    first.commit("ten")
    with pytest.raises(ConflictError) as error:
        second.commit("twenty")
    assert bank.place(0) in places(error)
    assert balances(bank, repo.store("main"), 2) == [40, 50]


def test_two_equal_updates_are_two(repo, bank):
    """Both leave the same balance, which is no reason to take one for the other."""
    first, second = two_sessions(repo, "serializable")
    withdraw(bank, first.store, 0, 10)
    withdraw(bank, second.store, 0, 10)
    first.commit("ten")
    with pytest.raises(ConflictError) as error:
        second.commit("ten")
    assert places(error) == [bank.place(0)]
    repo.run(lambda store: withdraw(bank, store, 0, 10), isolation="serializable")
    assert balances(bank, repo.store("main"), 2) == [30, 50]


def test_sessions_that_read_apart_both_commit(repo, bank):
    first, second = two_sessions(repo, "serializable")
    withdraw(bank, first.store, 0, 10)
    withdraw(bank, second.store, 1, 20)
    first.commit("ten")
    second.commit("twenty")
    assert balances(bank, repo.store("main"), 2) == [40, 30]


def test_a_session_goes_on_from_its_commit_with_nothing_read(repo, bank):
    first, second = two_sessions(repo, "serializable")
    withdraw(bank, second.store, 1, 5)
    balances(bank, second.store, 2)
    second.commit("five")
    withdraw(bank, first.store, 0, 10)
    first.commit("ten")
    # It read the first account in its last transaction, not in this one.
    withdraw(bank, second.store, 1, 5)
    second.commit("five more")
    assert balances(bank, repo.store("main"), 2) == [40, 40]


def test_run_calls_again_until_what_it_read_holds(repo, bank):
    seen = []

    def close_account(store: Any) -> None:
        """Bring the first account's money to the second, while somebody else withdraws some."""
        found = balances(bank, store, 2)
        seen.append(found)
        if len(seen) == 1:
            repo.run(lambda other: withdraw(bank, other, 0, 30), "main", "in between")
        bank.set(store, 1, sum(found))
        bank.set(store, 0, 0)

    commit, _ = repo.run(close_account, "main", "close", isolation="serializable")
    assert seen == [[50, 50], [20, 50]]
    assert repo.branches["main"] == commit
    assert balances(bank, repo.store("main"), 2) == [0, 70]


def test_reading_alone_is_never_refused(repo, bank):
    session = repo.session("main", isolation="serializable")
    with repo.transaction("main", "nothing", isolation="serializable") as store:
        before = balances(bank, store, 2)
        balances(bank, session.store, 2)
        repo.run(lambda other: withdraw(bank, other, 0, 30), "main", "in between")
        # Still the snapshot that it began with.
        assert balances(bank, store, 2) == before
        # To change something and take that back is to change nothing.
        bank.set(store, 1, 7)
        bank.set(store, 1, 50)
    calls = []

    def look(store: Any) -> list[int]:
        calls.append(balances(bank, store, 2))
        repo.run(lambda other: withdraw(bank, other, 1, 1), "main", "in between")
        return calls[-1]

    assert repo.run(look, isolation="serializable")[1] == [20, 50]
    assert len(calls) == 1
    with pytest.raises(SessionStateError, match="nothing to commit"):
        session.commit("nothing")
    messages = [commit.message for commit in repo.log("main")]
    assert messages == ["in between", "in between", "open the bank", "create repository"]


def add_reading(store: Any, path: str, value: int) -> None:
    zarr.create_array(store, name=path, shape=(1,), dtype="i8")[:] = value


def summarise(store: Any) -> int:
    """Add up what is in a group, and note the sum beside it."""
    members = dict(zarr.open_group(store, path="readings", mode="r").arrays())
    total = int(sum(array[0] for array in members.values()))
    add_reading(store, "summary", total)
    return total


@pytest.fixture
def readings(repo) -> vzarr.Repository:
    with repo.transaction("main", "create") as store:
        for path in ("", "readings", "others"):
            zarr.create_group(store, path=path)
        for number in range(3):
            add_reading(store, f"readings/r{number}", number)
    return repo


def test_a_phantom_is_refused(readings):
    first, second = two_sessions(readings, "serializable")
    assert summarise(first.store) == 3
    add_reading(second.store, "readings/r3", 10)
    second.commit("one more")
    with pytest.raises(ConflictError) as error:
        first.commit("the sum")
    assert places(error) == [("readings", "listing", None)]
    assert "readings: what lies below" in str(error.value)
    assert REASON in str(error.value)
    assert readings.run(summarise, isolation="serializable")[1] == 13


def test_a_member_that_goes_is_a_phantom_too(readings):
    first, second = two_sessions(readings, "serializable")
    summarise(first.store)
    second.delete_below("readings/r1")
    second.commit("one less")
    with pytest.raises(ConflictError) as error:
        first.commit("the sum")
    assert ("readings", "listing", None) in places(error)


def test_a_phantom_is_let_through_under_snapshot_isolation(readings):
    first, second = two_sessions(readings, "snapshot")
    summarise(first.store)
    add_reading(second.store, "readings/r3", 10)
    second.commit("one more")
    first.commit("the sum")
    assert zarr.open_array(readings.store("main"), path="summary")[0] == 3


def test_a_member_of_another_group_is_no_phantom(readings):
    first, second = two_sessions(readings, "serializable")
    summarise(first.store)
    add_reading(second.store, "others/r3", 10)
    second.commit("elsewhere")
    first.commit("the sum")
    assert zarr.open_array(readings.store("main"), path="summary")[0] == 3


# ── four processes at random ─────────────────────────────────────────────────────────────────────


def transfer(bank: Bank, store: Any, chance: random.Random, amount: int) -> dict[int, int]:
    """Read two accounts and write both; give what changed by how much."""
    source, target = chance.sample(range(ACCOUNTS), 2)
    if bank.balance(store, source) < amount:
        return {}
    withdraw(bank, store, source, amount)
    withdraw(bank, store, target, -amount)
    return {source: -amount, target: amount}


def overdraw(bank: Bank, store: Any, chance: random.Random, amount: int) -> dict[int, int]:
    """Read all accounts and write one, which may go below zero if all together cover it."""
    account, amount = chance.randrange(ACCOUNTS), 2 * amount
    if sum(balances(bank, store)) < amount:
        return {}
    withdraw(bank, store, account, amount)
    return {account: -amount}


Rule = Callable[[Bank, Any, random.Random, int], dict[int, int]]


def work(path: Path, bank: Bank, rule: Rule, isolation: str, worker: int, barrier: Any) -> Any:
    """Run the rule often; give what each of the commits changed."""
    done = []
    with vzarr.open(path, durability="normal") as repo:
        barrier.wait()
        for number in range(TRANSFERS):
            # No two workers ever move the same amount: to set an account to the same balance is no
            # conflict under snapshot isolation.
            amount = 1 + worker + WORKERS * random.Random(worker * TRANSFERS + number).randrange(40)

            def attempt(store: Any) -> dict[int, int]:
                chance = random.Random(worker * TRANSFERS + number)  # noqa: B023 - runs at once
                return rule(bank, store, chance, amount)  # noqa: B023

            commit, moved = repo.run(
                attempt, "main", f"{worker}", retries=10_000, isolation=isolation
            )
            if moved:
                done.append((commit, moved))
    return done


@banks
@isolations
@pytest.mark.parametrize("rule", [transfer, overdraw])
def test_processes_at_once(path, bank, rule, isolation):
    with vzarr.open(path) as repo, repo.transaction("main", "open the bank") as store:
        bank.create(store, [OPENING] * ACCOUNTS)
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(WORKERS) as pool:
        barrier = manager.Barrier(WORKERS)
        tasks = [(path, bank, rule, isolation, worker, barrier) for worker in range(WORKERS)]
        done = dict(pair for pairs in pool.starmap(work, tasks) for pair in pairs)
    with vzarr.open(path, "r") as repo:
        commits = [commit.id for commit in repo.log("main")]
        assert len(commits) == len(done) + 2
        # Each commit did just what its transaction said: nothing was lost, nothing done twice.
        expected = [OPENING] * ACCOUNTS
        for commit in reversed(commits[:-2]):
            for account, change in done[commit].items():
                expected[account] += change
            found = balances(bank, repo.store(commit))
            assert found == expected
            if rule is transfer:
                assert sum(found) == OPENING * ACCOUNTS
                assert min(found) >= 0
            elif isolation == "serializable":
                # Under snapshot isolation it may be less: two that each read what the other wrote.
                assert sum(found) >= 0


# ── writes that leave no trace ───────────────────────────────────────────────────────────────────


def set_again(session: vzarr.Session) -> None:
    session.set("d/a", b"old")


def delete_absent(session: vzarr.Session) -> None:
    session.delete("d/b")


def delete_all_below(session: vzarr.Session) -> None:
    session.delete_below("d")


def move_there(session: vzarr.Session) -> None:
    session.move("g", "h")


@pytest.mark.parametrize(
    ("write", "key"),
    [
        (set_again, "d/a"),
        (delete_absent, "d/b"),
        (delete_all_below, "d/b"),
        (move_there, "h/file"),
    ],
)
def test_a_write_without_a_trace_is_not_undone_by_one_before(repo, write, key):
    """In the order of the commits it comes last, so it would have to stand."""
    with repo.transaction("main", "create") as store:
        for path in ("", "g"):
            zarr.create_group(store, path=path)
        store.session.set("d/a", b"old")
    first, second = two_sessions(repo, "serializable")
    first.set(key, b"new")
    first.commit("first")
    write(second)
    second.set("other", b"1")
    with pytest.raises(ConflictError):
        second.commit("second")
    assert repo.session("main").get(key) == b"new"


def test_whole_chunks_written_blindly_are_not_merged(repo):
    """No serial order of the two gives a chunk with elements of both."""
    with repo.transaction("main", "create") as store:
        zarr.create_array(store, name="t", shape=(4,), chunks=(4,), dtype="i8")[:] = 5
    first, second = two_sessions(repo, "serializable")
    zarr.open_array(first.store, path="t")[:] = [5, 2, 2, 2]
    zarr.open_array(second.store, path="t")[:] = [1, 5, 5, 5]
    first.commit("first")
    with pytest.raises(ConflictError) as error:
        second.commit("second")
    assert places(error) == [("t", "chunk", (0,))]


def test_what_was_read_is_not_forgotten_with_the_edits(repo, bank):
    first, second = two_sessions(repo, "serializable")
    found = bank.balance(second.store, 0)
    second.set("draft", b"1")
    second.discard()
    withdraw(bank, first.store, 0, 10)
    first.commit("ten")
    bank.set(second.store, 1, found + 1)
    with pytest.raises(ConflictError) as error:
        second.commit("what is in the other account")
    assert places(error) == [bank.place(0)]
