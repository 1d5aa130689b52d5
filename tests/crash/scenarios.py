"""What is done to a repository while the process is killed, or its system calls fail.

A scenario has a file to begin with, a way to get ready, and steps. Each step is acknowledged when
it has returned: a crash after that must not undo it, and a crash in it leaves the state before or
the state after it. A step that has failed is made again, and must then succeed.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from unittest import mock

import vzarr
from tests.processes import Child
from vzarr import changes, mapping, workspace
from vzarr.recovery import recover
from vzarr.session import Session

AUTHOR = "Test <test@example.org>"
CHUNK_BYTES = 5000
ARRAY = json.dumps(
    {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [64 * CHUNK_BYTES],
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [CHUNK_BYTES]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "bytes"}],
        "attributes": {},
    }
).encode()


def chunk(number: int) -> bytes:
    """Give the bytes of a chunk, which take two pages, and are others for each number."""
    return bytes([number % 251 + 1]) * CHUNK_BYTES


class World:
    """What the steps of one run share: the file, its repository, a session."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.repo: vzarr.Repository | None = None
        self.session: Session | None = None
        self.value: Any = None

    def open(self, **options: Any) -> vzarr.Repository:
        self.repo = vzarr.open(self.path, "r+", author=AUTHOR, timeout=5.0, **options)
        return self.repo

    @property
    def here(self) -> vzarr.Repository:
        assert self.repo is not None
        return self.repo

    @property
    def work(self) -> Session:
        assert self.session is not None
        return self.session


Step = Callable[[World], object]


@dataclass(frozen=True)
class Scenario:
    """One story: how the file is made, how a process gets ready, and what it then does."""

    name: str
    steps: tuple[Step, ...]
    prepare: Callable[[str], object] | None
    """Makes the file that the story begins with; None: there is none."""
    ready: Step = World.open
    """Runs before the first call that can fail."""
    thread: str = "main"
    """Which is traced: "main", "stage", which writes batches ahead of the commit, or "all"."""
    shared: bool = True
    """Whether another process may have the file open meanwhile."""
    drafts: bool = False
    """Whether a kill may leave a draft beside the file."""
    copy: str = ""
    """The name of another file that it makes, and that then shows the same."""


# ── files to begin with ──────────────────────────────────────────────────────────────────────────


def plain(path: str) -> None:
    """Two branches that differ, a tag, a few commits."""
    with vzarr.open(path, "w-", author=AUTHOR, durability="normal") as repo:
        commit(repo, "main", "first", {"a/zarr.json": ARRAY, "a/c/0": chunk(0), "a/c/1": chunk(1)})
        repo.tags.create("v1", message="one")
        repo.branches.create("dev")
        repo.branches.create("old", at="v1")
        commit(repo, "dev", "on dev", {"a/c/2": chunk(2), "a/c/1": chunk(11)})
        commit(repo, "main", "second", {"a/c/3": chunk(3), "notes/one": b"1"})


def commit(repo: vzarr.Repository, branch: str, message: str, values: dict[str, bytes]) -> str:
    session = repo.session(branch)
    for key, data in values.items():
        session.set(key, data)
    return session.commit(message)


def left_by_the_dead(path: str) -> None:
    """What a process that was killed leaves: staged chunks, and one session's checkpoint."""
    plain(path)

    def die(_pipe: object) -> None:
        with mock.patch.object(changes, "BATCH_BYTES", 2 * CHUNK_BYTES):
            repo = vzarr.open(path, "r+", author=AUTHOR, durability="normal")
            staged, saved = repo.session("main"), repo.session("main")
            for number in range(20, 26):
                staged.set(f"a/c/{number}", chunk(number))
                saved.set(f"a/c/{number}", chunk(number + 100))
            staged.fork()
            saved.checkpoint()
            os.kill(os.getpid(), signal.SIGKILL)

    Child(die).reap()


def garbage(path: str) -> None:
    """All kinds of garbage, among what is not."""
    left_by_the_dead(path)
    with vzarr.open(path, "r+", author=AUTHOR, durability="normal") as repo:
        commit(repo, "old", "lost", {f"a/c/{number}": chunk(number) for number in range(40, 44)})
        repo.branches.reset("old", "v1")
        repo.expire(older_than=timedelta())


# ── getting ready ────────────────────────────────────────────────────────────────────────────────


def with_edits(world: World, **options: Any) -> None:
    world.session = world.open(**options).session("main")
    edit(world, 4)


def with_an_autocommit(world: World) -> None:
    with_edits(world)
    autocommits(4)(world)


def edit(world: World, number: int) -> None:
    """Put chunks and a file into the session; nothing of it goes to the file system yet."""
    for each in range(number, number + 3):
        world.work.set(f"a/c/{each}", chunk(each))
    world.work.set("notes/two", str(number).encode())


def in_small_batches(world: World) -> None:
    """Stage every second chunk; the thread that does so is there already, to be traced."""
    mock.patch.object(changes, "BATCH_BYTES", 2 * CHUNK_BYTES).start()
    mock.patch.object(workspace, "_FOLD_EDITS", 4).start()
    mock.patch.object(workspace, "_SPILL_NODE_BYTES", 1).start()
    world.session = world.open().session("main")
    changes.submit(lambda: None).result()


def in_a_small_map(world: World) -> None:
    """Have LMDB map hardly more than the file, so that the map has to grow with each write."""
    mock.patch.object(mapping, "INITIAL_MAP_BYTES", 1 << 20).start()
    mock.patch.object(mapping, "MINIMUM_MAP_BYTES", 1 << 20).start()
    with_edits(world)


def nothing(_world: World) -> None:
    """Begin with the file not open."""


# ── steps ────────────────────────────────────────────────────────────────────────────────────────


def commits(message: str) -> Step:
    """Commit the session's edits; a commit that was made but not confirmed is not made again."""

    def step(world: World) -> None:
        if world.here.log("main", limit=1)[0].message != message:
            world.work.commit(message)

    return step


def edits_and_commits(number: int) -> Step:
    def step(world: World) -> None:
        edit(world, number)
        commits(f"commit {number}")(world)

    return step


def stages_and_commits(world: World) -> None:
    for number in range(10, 22):
        world.work.set(f"a/c/{number}", chunk(number))
    commits("a big one")(world)


def amends(world: World) -> None:
    if world.here.log("main", limit=1)[0].message != "amended":
        world.work.amend("amended")


def checkpoints(number: int) -> Step:
    def step(world: World) -> None:
        edit(world, number)
        world.value = world.work.checkpoint()

    return step


def resumes(world: World) -> None:
    (dead,) = [each for each in world.here.sessions() if each.checkpointed and each.alive is False]
    world.session = world.here.resume(dead.id)


def forks(world: World) -> None:
    world.value = world.work.fork()


def writes_to_the_fork(world: World) -> None:
    for number in range(30, 33):
        world.value.set(f"a/c/{number}", chunk(number))


def takes_the_fork_over(world: World) -> None:
    if world.work.get("a/c/32") is None:
        world.work.merge_fork(world.value)


def autocommits(number: int) -> Step:
    def step(world: World) -> None:
        edit(world, number)
        world.work.autocommit("by itself", each=False)

    return step


def in_a_turn(world: World) -> None:
    if world.here.log("main", limit=1)[0].message != "alone":
        with world.here.transaction("main", "alone", exclusive=True) as store:
            store.session.set("a/c/5", chunk(5))


def discards(world: World) -> None:
    world.work.discard()


def once(name: str, do: Step, done: Callable[[World], bool]) -> Step:
    """Make a step that is not made again if it has been, though it could not be confirmed."""

    def step(world: World) -> None:
        if not done(world):
            do(world)

    step.__name__ = name
    return step


def refers(do: Step, done: Callable[[vzarr.Repository], bool]) -> Step:
    return once("refers", do, lambda world: done(world.here))


def grows_and_shrinks(world: World) -> None:
    """Take pages at the end of the file in a txn that frees them again."""
    environment = world.here._environment
    with environment.write(room=1 << 20) as txn:
        txn.put("chunks", b"\xff" * 32, bytes(1 << 19))
        txn.delete("chunks", b"\xff" * 32)


def copies(world: World) -> None:
    copy = os.path.join(os.path.dirname(world.path), "copy.vzarr")
    world.here.backup(copy, overwrite=os.path.exists(copy))


def recovers(world: World) -> None:
    copy = os.path.join(os.path.dirname(world.path), "copy.vzarr")
    if not os.path.exists(copy):
        recover(world.path, copy)


def deletes(world: World) -> None:
    if world.value and not os.path.lexists(world.path):
        return
    world.value = "tried"
    vzarr.delete(world.path)


def head_is(message: str, branch: str = "main") -> Callable[[World], bool]:
    return lambda world: world.here.log(branch, limit=1)[0].message == message


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "create",
            (lambda world: vzarr.open(world.path, "a", author=AUTHOR).close(),),
            prepare=None,
            ready=nothing,
            shared=False,
            drafts=True,
        ),
        Scenario("open", (World.open,), plain, ready=nothing, shared=False),
        Scenario("commit", (commits("one"), edits_and_commits(8)), plain, ready=with_edits),
        Scenario(
            "commit, normal",
            (commits("one"), edits_and_commits(8)),
            plain,
            ready=lambda world: with_edits(world, durability="normal"),
        ),
        Scenario(
            "staged, in its thread",
            (stages_and_commits,),
            plain,
            ready=in_small_batches,
            thread="stage",
        ),
        Scenario("staged, and its commit", (stages_and_commits,), plain, ready=in_small_batches),
        Scenario("growth of the map", (commits("one"),), plain, ready=in_a_small_map),
        Scenario("a file too short", (grows_and_shrinks, commits("one")), plain, ready=with_edits),
        Scenario("exclusive", (in_a_turn,), plain),
        Scenario("amend", (amends,), plain, ready=with_edits),
        Scenario("autocommit", (autocommits(4),), plain, ready=with_edits),
        Scenario("autocommit, amending", (autocommits(8),), plain, ready=with_an_autocommit),
        Scenario("checkpoint", (checkpoints(4), checkpoints(8)), plain, ready=with_edits),
        Scenario("resume", (resumes, commits("resumed")), left_by_the_dead),
        Scenario("discard", (checkpoints(4), discards), plain, ready=with_edits),
        Scenario(
            "fork",
            (forks, writes_to_the_fork, takes_the_fork_over, commits("with a fork's")),
            plain,
            ready=with_edits,
        ),
        Scenario(
            "merge",
            (
                once(
                    "merge",
                    lambda world: world.here.merge("dev", message="merged"),
                    head_is("merged"),
                ),
            ),
            plain,
        ),
        Scenario(
            "history",
            (
                once(
                    "pick",
                    lambda world: world.here.cherry_pick("dev", "main", message="picked"),
                    head_is("picked"),
                ),
                once(
                    "revert",
                    lambda world: world.here.revert("main", message="reverted"),
                    head_is("reverted"),
                ),
                once(
                    "squash",
                    lambda world: world.here.squash("main", since="v1", message="squashed"),
                    head_is("squashed"),
                ),
            ),
            plain,
        ),
        Scenario(
            "branches and tags",
            (
                refers(lambda w: w.here.branches.create("new"), lambda r: "new" in r.branches),
                refers(lambda w: w.here.branches.rename("new", "b"), lambda r: "b" in r.branches),
                refers(
                    lambda w: w.here.branches.reset("b", "v1"),
                    lambda r: r.branches["b"] == r.tags["v1"],
                ),
                refers(lambda w: w.here.branches.delete("b"), lambda r: "b" not in r.branches),
                refers(lambda w: w.here.tags.create("v2"), lambda r: "v2" in r.tags),
                refers(lambda w: w.here.tags.delete("v1"), lambda r: "v1" not in r.tags),
            ),
            plain,
        ),
        Scenario("gc", (lambda world: world.here.gc(),), garbage),
        Scenario(
            "redact",
            (
                once(
                    "redact",
                    lambda world: world.here.redact("a"),
                    lambda world: world.here.session("main").get("a/c/0") is None,
                ),
            ),
            plain,
        ),
        Scenario(
            "compact",
            (lambda world: world.here.compact(timeout=2.0),),
            garbage,
            thread="all",
            shared=False,
            drafts=True,
        ),
        Scenario(
            "backup, twice", (copies, copies), plain, thread="all", drafts=True, copy="copy.vzarr"
        ),
        Scenario("recover", (recovers,), plain, thread="all", drafts=True, copy="copy.vzarr"),
        Scenario(
            "delete",
            (deletes, lambda world: vzarr.open(world.path, "a", author=AUTHOR).close()),
            plain,
            ready=nothing,
            shared=False,
            drafts=True,
        ),
        Scenario(
            "expire",
            (
                lambda world: world.here.expire(keep_last=1, branch="main"),
                lambda world: world.here.expire(older_than=timedelta(), branch="dev"),
            ),
            plain,
        ),
    )
}


# ── what the judge must find ─────────────────────────────────────────────────────────────────────


def commits_twice(world: World) -> None:
    world.work.commit("half")
    edit(world, 8)
    world.work.commit("whole")


def leaves_a_file(world: World) -> None:
    stray = os.path.join(os.path.dirname(world.path), "stray")
    with open(stray, "w"):
        world.work.commit("one")
    os.unlink(stray)


def lets_an_error_out(world: World) -> None:
    try:
        world.work.commit("one")
    except vzarr.VzarrError as error:
        raise OSError("not one of ours") from error


FLAWED = {
    scenario.name: scenario
    for scenario in (
        Scenario("two commits in one step", (commits_twice,), plain, ready=with_edits),
        Scenario("a file left behind", (leaves_a_file,), plain, ready=with_edits),
        Scenario("an error of another kind", (lets_an_error_out,), plain, ready=with_edits),
    )
}
"""Stories that break a promise at some call, each another one."""


def find(name: str) -> Scenario:
    """Find a scenario, flawed or not."""
    return (SCENARIOS | FLAWED)[name]
