"""What is done to a repository while the process is killed, or its system calls fail.

A scenario has a file to begin with, a way to get ready, and steps. Each step is acknowledged when
it has returned: a crash after that must not undo it, and a crash in it leaves the state before or
the state after it. A step that has failed is made again, and must then succeed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, Self
from unittest import mock
from uuid import UUID

import vzarr
from tests.processes import Child
from vzarr import arrivals, changes, directories, importing, memorymap, workspace
from vzarr.errors import VzarrError
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
    short_writes: bool = True
    """Whether a write may be short. The fault writes nothing at all, which only those notice who
    take it for an error, as LMDB does, and do not go on after what is said to be written."""
    copy: str = ""
    """The name of another file that it makes, and that then shows the same."""
    look: Callable[[str], list[str]] | None = None
    """Goes on with what is left, and tells what is wrong, where there are no states to expect."""


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


def importable(path: str) -> None:
    """A repository, and a Zarr beside it that it has nothing of."""
    plain(path)
    source = os.path.join(os.path.dirname(path), SOURCE)
    os.makedirs(os.path.join(source, "c"))
    for key, data in IMPORTED.items():
        with open(os.path.join(source, key), "wb") as file:
            file.write(data)


SOURCE = "source.zarr"
IMPORTED = {"zarr.json": ARRAY, **{f"c/{number}": chunk(number + 60) for number in range(6)}}


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
    mock.patch.object(memorymap, "INITIAL_MAP_BYTES", 1 << 20).start()
    mock.patch.object(memorymap, "MINIMUM_MAP_BYTES", 1 << 20).start()
    with_edits(world)


def about_to_import(world: World) -> None:
    """Have an import save all chunks at once, and be the same in every run."""
    importing.__dict__["uuid"] = SimpleNamespace(uuid4=lambda: UUID(int=0))
    mock.patch.object(importing, "_CHECKPOINT_VALUES", 6).start()
    mock.patch.object(importing, "ThreadPoolExecutor", _OneThread).start()
    # Else, how old the files are by then would tell what is read again.
    mock.patch.object(directories, "_CLOCK_SLACK_MICROSECONDS", 10**15).start()
    world.open()


class _OneThread:
    """Does at once what it is told to do beside, so that each run makes the same calls."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*arguments))
        except VzarrError as error:
            future.set_exception(error)
        return future

    def shutdown(self, **_: Any) -> None:
        pass


def about_to_consume(world: World) -> None:
    """Have an import save and delete two chunks at a time, of a copy that is ours."""
    about_to_import(world)
    mock.patch.object(importing, "_CHECKPOINT_VALUES", 2).start()
    here = os.path.dirname(world.path)
    shutil.copytree(os.path.join(os.path.dirname(here), SOURCE), os.path.join(here, SOURCE))


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


class _Stop(Exception):
    """Ends an import that has saved all it read."""


def saves_an_import(world: World) -> None:
    def stop(_done: int, _total: int, what: str) -> None:
        if what == "look again":
            raise _Stop

    with contextlib.suppress(_Stop):
        _import(world, progress=stop)


def imports(world: World) -> None:
    _import(world)


def _import(world: World, **options: Any) -> None:
    source = os.path.join(os.path.dirname(os.path.dirname(world.path)), SOURCE)
    world.here.import_from(source, path="in", **options)


def consumes(world: World) -> None:
    source = os.path.join(os.path.dirname(world.path), SOURCE)
    world.here.import_from(source, path="in", consume=True)


def look_at_consumed(path: str) -> list[str]:
    """Count what is in one place or the other; import the rest; all must be there then."""
    source = os.path.join(os.path.dirname(path), SOURCE)
    with vzarr.open(path, "r+", author=AUTHOR, timeout=5.0) as repo:
        held = {name: _values_of(repo, name) for name in repo.branches}
        problems = [
            f"{key} is lost"
            for key, data in IMPORTED.items()
            if not any(values.get(key) == data for values in held.values())
            and not _has(os.path.join(source, key), data)
        ]
        # Without its mark, the last directory may be left, empty.
        if os.path.exists(source) and os.listdir(source):
            repo.import_from(source, path="in", consume=True)
        if _values_of(repo, "main") != IMPORTED:
            problems.append(f"it shows {_values_of(repo, 'main').keys()}")
        if os.path.exists(source) and os.listdir(source):
            problems.append(f"{os.listdir(source)} are left in the source")
        if any("importing" in name for name in repo.branches):
            problems.append("a branch is left behind")
        problems += map(str, repo.check("full").problems)
        repo.gc()
        problems += map(str, repo.check("full").problems)
    return problems


def _values_of(repo: vzarr.Repository, branch: str) -> dict[str, bytes]:
    session = repo.session(branch)
    found = {key[3:]: bytes(session.get(key) or b"") for key in session.keys("in")}
    session.close()
    return found


def _has(path: str, data: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read() == data
    except FileNotFoundError:
        return False


def copies(world: World) -> None:
    copy = os.path.join(os.path.dirname(world.path), "copy.vzarr")
    world.here.backup(copy, overwrite=os.path.exists(copy))


def exports(name: str) -> Step:
    def step(world: World) -> None:
        target = os.path.join(os.path.dirname(world.path), name)
        world.here.export_to(target, path="a", overwrite=os.path.exists(target))

    return step


def beside(path: str, name: str) -> str:
    """Give the path of another file in the same directory."""
    return os.path.join(os.path.dirname(path), name)


def with_another(path: str) -> None:
    """A repository, another one that has gone on from it, and a bundle of that."""
    plain(path)
    other = beside(path, OTHER)
    shutil.copy(path, other)
    with vzarr.open(other, "r+", author=AUTHOR, durability="normal") as repo:
        values = {f"a/c/{number}": chunk(number + 80) for number in range(5, 12)}
        commit(repo, "main", "elsewhere", values)
        repo.bundle(beside(path, BUNDLE), "main", since="main~1")


OTHER, BUNDLE = "other.vzarr", "new.vzb"


def pulls(world: World) -> None:
    # Above the file, which has a directory of its own.
    world.here.pull(beside(os.path.dirname(world.path), OTHER))


def unbundles(world: World) -> None:
    world.here.unbundle(beside(os.path.dirname(world.path), BUNDLE))


def look_at_pulled(path: str) -> list[str]:
    """Go on with what has come, and see that all of it has; nothing must be left of the first."""
    other = beside(os.path.dirname(path), OTHER)
    with vzarr.open(path, "r+", author=AUTHOR, timeout=5.0) as repo:
        problems = [str(each) for each in repo.check("full").problems]
        before = repo.log("main", limit=1)[0].message
        if before not in ("second", "elsewhere"):
            problems.append(f"main is at {before}")
        repo.gc()
        report = repo.pull(other)
        with vzarr.open(other, "r") as source:
            if repo.branches["main"] != source.branches["main"]:
                problems.append(f"it is at {report.new}")
        session = repo.session("main")
        problems += [
            f"chunk {number} is another"
            for number in range(5, 12)
            if bytes(session.get(f"a/c/{number}") or b"") != chunk(number + 80)
        ]
        session.close()
        problems += [f"{each} is left" for each in repo.sessions() if each.checkpointed]
        repo.gc()
        problems += map(str, repo.check("full").problems)
    return problems


def saves_what_came(world: World) -> None:
    """Keep what has arrived at each object, as if there were very much of it."""
    mock.patch.object(arrivals, "_SAVE_BYTES", 3 * CHUNK_BYTES).start()
    world.open()


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
        Scenario("import", (saves_an_import, imports), importable, about_to_import),
        Scenario(
            "import, consuming",
            (consumes,),
            importable,
            about_to_consume,
            look=look_at_consumed,
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
        *(
            Scenario(
                f"export to {what}",
                (exports(name), exports(name)),
                plain,
                thread="all",
                drafts=True,
                copy=name,
                short_writes=False,
            )
            for what, name in {
                "a directory": "out.zarr",
                "a zip file": "out.zip",
                "a CAR file": "out.car",
            }.items()
        ),
        Scenario("pull", (pulls, pulls), with_another, thread="all"),
        Scenario(
            "pull of much",
            (pulls, pulls),
            with_another,
            ready=saves_what_came,
            thread="all",
            look=look_at_pulled,
        ),
        Scenario("unbundle", (unbundles, unbundles), with_another),
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
