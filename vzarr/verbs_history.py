"""Verbs that change or search a history: move, squash, reflog, bisect."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import asdict

import click

from vzarr.command import file_argument, no_branch, open_file, output, require_branch, verb
from vzarr.errors import InvalidInputError, RefNotFoundError
from vzarr.facts import COMMIT_KEYS, Names
from vzarr.format import Digest
from vzarr.history import Commit
from vzarr.output import BRANCH, QUIET, first_line, spell_time
from vzarr.printable import plural
from vzarr.verbs_log import commit_lines

# What a shell says of a command that it cannot run, or that a signal has ended.
_NO_ANSWER = range(125, 256)

on_option = click.option(
    "--on", default="main", metavar="BRANCH", help="The branch.  [default: main]"
)
message_option = click.option("-m", "--message", metavar="MSG", help="Why.")


@verb(
    "vzarr move ocean.vzarr atlantic/temp atlantic/temperature",
    keys="branch commit source destination",
)
@file_argument
@click.argument("source")
@click.argument("destination")
@on_option
@message_option
def move(file: str, source: str, destination: str, on: str, message: str | None) -> None:
    """Rename a group or array, or move it to another group, by a commit on a branch.

    No chunk is copied, however many there are; diff and blame follow it.
    """
    out = output()
    with open_file(file, "r+") as repo:
        require_branch(repo, file, on)
        with closing(repo.session(on)) as session:
            session.move(source.strip("/"), destination.strip("/"))
            commit = session.commit(message or f"Move {source} to {destination}")
    out.document({"branch": on, "commit": commit, "source": source, "destination": destination})
    out.line("branch ", (on, BRANCH), " is now at ", out.commit_id(commit))


@verb(
    'vzarr squash ocean.vzarr --since v1.0 -m "the whole of March"',
    keys="branch commit replaced; replaced is the commit at which the branch was",
)
@file_argument
@click.option("--since", required=True, metavar="REF", help="The last commit to keep.")
@on_option
@click.option("-m", "--message", metavar="MSG", help="[default: lists what it replaces]")
def squash(file: str, since: str, on: str, message: str | None) -> None:
    """Replace the commits of a branch after a REF by one.

    The data stay as they are. The reflog keeps the commits that were there.
    """
    out = output()
    with open_file(file, "r+") as repo:
        require_branch(repo, file, on)
        before = repo.branches[on]
        with out.progress() as progress:
            commit = repo.squash(on, since=since, message=message, progress=progress)
    out.document({"branch": on, "commit": commit, "replaced": before})
    out.line("branch ", (on, BRANCH), " is now at ", out.commit_id(commit))
    out.line(("it was at ", QUIET), out.commit_id(before))


@verb(
    "vzarr reflog ocean.vzarr",
    "vzarr reflog ocean.vzarr dev",
    keys="branch moves[branch old new author time operation]",
)
@file_argument
@click.argument("branch", default="main", metavar="[BRANCH]")
def reflog(file: str, branch: str) -> None:
    """List every move of a branch, newest first.

    BRANCH is main if it is not given, and may be one that was deleted. What it was at can be had
    back: vzarr branch FILE --reset BRANCH --to ID, or vzarr branch FILE BRANCH --at ID if it was
    deleted.
    """
    list_moves(file, branch)


def list_moves(file: str, name: str) -> None:
    """Print every move of a branch."""
    out = output()
    with open_file(file) as repo:
        try:
            moves = repo.reflog(name)
        except RefNotFoundError as error:
            raise no_branch(file, name) from error
    out.document({"branch": name, "moves": [asdict(move) for move in moves]})
    out.table(
        ["head", "moved", "operation", "author"],
        [
            [out.commit_id(move.new), spell_time(move.time), move.operation, move.author]
            for move in moves
        ],
    )


@verb(
    "vzarr bisect ocean.vzarr v1.0 main -- python no_nan.py",
    keys=f"commit{{{COMMIT_KEYS}}} tests",
)
@file_argument
@click.argument("good")
@click.argument("bad")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def bisect(file: str, good: str, bad: str, command: tuple[str, ...]) -> None:
    """Find the commit that broke something, by halving.

    Runs COMMAND for commits between GOOD and BAD, with VZARR_FILE and VZARR_COMMIT in its
    environment. It ends with 0 if that commit is good, with 1 to 124 if it is bad; anything else
    ends the search. What it prints goes to stderr.
    """
    import subprocess

    from vzarr.blame import bisect as find_first_bad

    out = output()
    tests = 0

    def run(commit: Commit) -> bool:
        nonlocal tests
        tests += 1
        environment = {
            **os.environ,
            "VZARR_FILE": os.path.abspath(os.path.expanduser(file)),
            "VZARR_COMMIT": commit.id,
        }
        # Its output is not the result of this verb.
        try:
            done = subprocess.run(command, env=environment, check=False, stdout=2)  # noqa: S603
        except OSError as error:
            raise InvalidInputError(f"{command[0]!r} cannot be run: {error.strerror}") from error
        code = done.returncode
        if code < 0 or code in _NO_ANSWER:
            raise InvalidInputError(
                f"{command[0]!r} gave no answer for commit {commit.id[:12]}: it ended with {code}"
            )
        return code == 0

    def tell(commit: Commit, left: int) -> None:
        subject = first_line(commit.message)
        out.line(
            (f"{left} commit{plural(left)} left, test ", QUIET),
            out.commit_id(commit.id),
            " ",
            subject,
        )

    with open_file(file) as repo:
        first, last = (Digest(bytes.fromhex(repo.show(ref).id)) for ref in (good, bad))
        # Not the repository's own: that opens a store for the test, and imports zarr for that.
        commit = find_first_bad(repo.session(good).environment, first, last, run, tell)
        names = Names(repo)
    out.document({"commit": names.facts(commit), "tests": tests})
    out.line()
    out.line("the first bad one is")
    for line in commit_lines(commit, names):
        out.line(*line)
