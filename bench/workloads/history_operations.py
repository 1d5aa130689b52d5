"""What a history is good for: compare, merge, list and blame, on an array of many chunks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bench.engines import ICECHUNK, VZARR, Engine
from bench.harness import Case, Run, Workload
from bench.workloads.history import CHUNK_BYTES, MESSAGE, fill, filled

ENGINES = (VZARR, ICECHUNK)
LOGGED = 20
"""Commits that the log shows."""


class OnVzarr:
    """The operations as vzarr has them."""

    def __init__(self, repo: Any) -> None:
        self.repo = repo

    def edit(self, chunks: Sequence[int], seed: int, branch: str = "main") -> Any:
        """Give a session with these chunks changed."""
        session = self.repo.session(branch)
        for chunk, data in new_chunks(chunks, seed):
            session.set(f"a/c/{chunk}", data)
        return session

    def commit(self, session: Any) -> str:
        return session.commit(MESSAGE)

    def discard(self, session: Any) -> None:
        session.close()

    def head(self) -> str:
        return self.repo.branches["main"]

    def status(self, session: Any) -> int:
        return changed_chunks(session.status().diff)

    def diff(self, old: str, new: str) -> int:
        return changed_chunks(self.repo.diff(old, new))

    def log(self, count: int) -> int:
        return len(self.repo.log("main", limit=count))

    def list(self) -> int:
        return count_keys(self.repo.store(self.head()))


class OnIcechunk:
    """The operations as Icechunk has them. It merges no branches."""

    def __init__(self, repo: Any) -> None:
        self.repo = repo

    def edit(self, chunks: Sequence[int], seed: int) -> Any:
        import asyncio

        from zarr.core.buffer import cpu
        from zarr.core.sync import sync

        session = self.repo.writable_session("main")

        async def put() -> None:
            new = new_chunks(chunks, seed)
            sets = (session.store.set(f"a/c/{n}", cpu.Buffer.from_bytes(data)) for n, data in new)
            await asyncio.gather(*sets)

        sync(put())
        return session

    def commit(self, session: Any) -> str:
        return session.commit(MESSAGE)

    def discard(self, session: Any) -> None:
        session.discard_changes()

    def head(self) -> str:
        return self.repo.lookup_branch("main")

    def status(self, session: Any) -> int:
        return sum(map(len, session.status().updated_chunks.values()))

    def diff(self, old: str, new: str) -> int:
        changes = self.repo.diff(from_snapshot_id=old, to_snapshot_id=new)
        return sum(map(len, changes.updated_chunks.values()))

    def log(self, count: int) -> int:
        return len(list(islice(self.repo.ancestry(branch="main"), count)))

    def list(self) -> int:
        return count_keys(self.repo.readonly_session("main").store)


Operations = OnVzarr | OnIcechunk


def operations(engine: Engine, repo: Any) -> Operations:
    return OnVzarr(repo) if engine.family == VZARR.family else OnIcechunk(repo)


def new_chunks(chunks: Sequence[int], seed: int) -> list[tuple[int, bytes]]:
    random = np.random.default_rng(seed)
    return [(chunk, random.bytes(CHUNK_BYTES)) for chunk in chunks]


def changed_chunks(changes: Any) -> int:
    return len(changes["a"].chunks)


def count_keys(store: Any) -> int:
    from zarr.core.sync import sync

    async def collect() -> int:
        return len([key async for key in store.list_prefix("a/")])

    return sync(collect())


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


# ── comparing ────────────────────────────────────────────────────────────────────────────────────


def compare(run: Run, *, chunks: int, changed: int, repeats: int) -> None:
    """Tell what changed, in a session and between commits; list commits and keys."""
    path = filled(run, chunks)
    run.warm_up()
    one, *many = np.random.default_rng(4).choice(chunks, 1 + changed, replace=False).tolist()
    with run.engine.open(path, write=True) as opened:
        repo = operations(run.engine, opened.repo)
        pairs = {}
        for what, some in (("1 chunk", [one]), (f"{changed:,} chunks", many)):
            old = repo.head()
            series = [time_status(repo, some, seed) for seed in range(repeats)]
            run.record(f"status, {what}", statistics.median(series) * 1e3, "ms")
            pairs[what] = old, repo.commit(repo.edit(some, repeats)), some
        for seed in range(LOGGED):
            repo.commit(repo.edit([one], seed))
        for what, (old, new, some) in pairs.items():
            cold = run.afresh(diff_afresh, run.engine, path, old, new, len(some))
            run.record(f"diff, {what}, first", cold * 1e3, "ms")
            series = [time_diff(repo, old, new, len(some)) for _ in range(repeats)]
            run.record(f"diff, {what}", statistics.median(series) * 1e3, "ms")
        series = [seconds(lambda: repo.log(LOGGED)) for _ in range(repeats)]
        run.record(f"log, {LOGGED} commits", statistics.median(series) * 1e3, "ms")
        with run.clock("list all keys", "µs", amount=chunks):
            # The document of the array is one more.
            assert repo.list() == chunks + 1


def time_status(repo: Operations, chunks: Sequence[int], seed: int) -> float:
    """Time the first look at a session that has changed some chunks, and drop it."""
    session = repo.edit(chunks, seed)
    begin = time.perf_counter()
    found = repo.status(session)
    took = time.perf_counter() - begin
    assert found == len(chunks), f"{found} chunks are said to have changed, not {len(chunks)}"
    repo.discard(session)
    return took


def time_diff(repo: Operations, old: str, new: str, changed: int) -> float:
    begin = time.perf_counter()
    found = repo.diff(old, new)
    took = time.perf_counter() - begin
    assert found == changed, f"{found} chunks are said to have changed, not {changed}"
    return took


def diff_afresh(engine: Engine, path: Path, old: str, new: str, changed: int) -> float:
    """Time a diff in a process that has nothing of the trees in memory."""
    with engine.open(path) as opened:
        return time_diff(operations(engine, opened.repo), old, new, changed)


# ── merging ──────────────────────────────────────────────────────────────────────────────────────


def merge(run: Run, *, chunks: int, changed: int, repeats: int) -> None:
    """Merge two branches that changed as many chunks each, none of them both."""
    path = filled(run, chunks)
    random = np.random.default_rng(5).choice(chunks, 2 * changed, replace=False).tolist()
    with run.engine.open(path, write=True) as opened:
        repo = opened.repo
        on = OnVzarr(repo)
        base = on.head()
        for where, ours, theirs in (
            ("scattered", random[:changed], random[changed:]),
            ("in rows", range(changed), range(chunks - changed, chunks)),
        ):
            repo.branches.create("dev", at=base)
            head = on.commit(on.edit(ours, 1))
            on.commit(on.edit(theirs, 2, "dev"))
            cold = run.afresh(merge_afresh, path, head)
            run.record(f"merge, {where}, first", cold * 1e3, "ms")
            times = [merge_again(repo, head) for _ in range(repeats)]
            run.record(f"merge, {where}", statistics.median(times) * 1e3, "ms")
            times = [seconds(lambda: repo.merge("dev", dry_run=True)) for _ in range(repeats)]
            run.record(f"preview, {where}", statistics.median(times) * 1e3, "ms")
            assert on.diff(base, repo.merge("dev")) == 2 * changed
            repo.branches.reset("main", base)
            repo.branches.delete("dev")


def merge_again(repo: Any, head: str) -> float:
    took = seconds(lambda: repo.merge("dev"))
    repo.branches.reset("main", head)
    return took


def merge_afresh(path: Path, head: str) -> float:
    """Time a merge in a process that has nothing of the trees in memory."""
    with VZARR.open(path, write=True) as opened:
        return merge_again(opened.repo, head)


# ── blame ────────────────────────────────────────────────────────────────────────────────────────


def blame(run: Run, *, chunks: int, commits: int, changed: int, repeats: int) -> None:
    """Find for each chunk the commit that changed it last."""
    path = run.directory / "history"
    fill(run.engine, path, chunks)
    random = np.random.default_rng(6)
    with run.engine.open(path, write=True) as opened:
        on = OnVzarr(opened.repo)
        for number in range(commits):
            on.commit(on.edit(random.choice(chunks, changed, replace=False).tolist(), number))
        cold = run.afresh(blame_afresh, path)
        run.record("blame, first", cold * 1e3, "ms")
        times = [seconds(lambda: opened.repo.blame("a")) for _ in range(repeats)]
        run.record("blame", statistics.median(times) * 1e3, "ms")
        times = [seconds(lambda: opened.repo.blame("a", slice(0, 1))) for _ in range(repeats)]
        run.record("blame, one chunk", statistics.median(times) * 1e3, "ms")


def blame_afresh(path: Path) -> float:
    with VZARR.open(path) as opened:
        return seconds(lambda: opened.repo.blame("a"))


# ── the workloads ────────────────────────────────────────────────────────────────────────────────


def case(chunks: int, changed: int, *, repeats: int = 5, engines: Sequence[Engine] = ()) -> Case:
    options = {"chunks": chunks, "changed": changed, "repeats": repeats}
    names = tuple(engine.name for engine in engines)
    # What is timed is repeated within a round.
    return Case(f"{chunks:,} chunks, {changed:,} changed", options, names, rounds=1)


def blamed(chunks: int, commits: int, changed: int, *, repeats: int = 5) -> Case:
    options = {"chunks": chunks, "commits": commits, "changed": changed, "repeats": repeats}
    return Case(f"{chunks:,} chunks, {commits:,} commits of {changed}", options, rounds=1)


WORKLOADS = (
    Workload(
        number=7,
        name="diff",
        title="Status, diff, log and list",
        sentence=(
            "An array of chunks of 64 bytes is on disk, and chunks at random are changed. "
            '"status" tells what a session has changed, "diff" what differs between two commits, '
            'each chunk by name; "first" is the first call of a fresh process. The log is of a '
            "branch's newest commits; the list is of all keys of the store, one by one."
        ),
        engines=ENGINES,
        sizes={
            "tiny": (case(100, 10, repeats=1),),
            "laptop": (case(100_000, 1_000), case(1_000_000, 1_000, engines=[VZARR])),
            "large": (case(100_000, 1_000), case(1_000_000, 1_000)),
        },
        measure=compare,
        chart=("diff, 1 chunk", "diff, 1,000 chunks"),
    ),
    Workload(
        number=7,
        name="merge",
        title="Merge",
        sentence=(
            "Two branches of an array of chunks of 64 bytes changed as many chunks each, all "
            "different ones, at random or in a row; then they are merged. A preview tells the "
            "outcome and writes nothing. The peers merge no branches."
        ),
        engines=(VZARR,),
        sizes={
            "tiny": (case(100, 10, repeats=1),),
            "laptop": (case(1_000_000, 1_000),),
            "large": (case(1_000_000, 1_000), case(1_000_000, 100_000)),
        },
        measure=merge,
    ),
    Workload(
        number=7,
        name="blame",
        title="Blame",
        sentence="For each chunk of an array, the commit that changed it last is looked for.",
        engines=(VZARR,),
        sizes={
            "tiny": (blamed(50, 5, 2, repeats=1),),
            "laptop": (blamed(10_000, 1_000, 1), blamed(10_000, 1_000, 10)),
            "large": (blamed(10_000, 1_000, 1), blamed(10_000, 1_000, 10)),
        },
        measure=blame,
    ),
)
