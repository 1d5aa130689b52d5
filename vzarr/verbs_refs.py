"""Verbs on branches and tags."""

from __future__ import annotations

from dataclasses import asdict

import click

from vzarr.command import (
    file_argument,
    open_file,
    output,
    require_branch,
    require_one_of,
    require_with,
    verb,
)
from vzarr.errors import AlreadyExistsError
from vzarr.facts import branch_facts
from vzarr.output import BRANCH, TAG, first_line, spell_time
from vzarr.verbs_history import list_moves


@verb(
    "vzarr branch ocean.vzarr",
    "vzarr branch ocean.vzarr dev --at v1.0",
    "vzarr branch ocean.vzarr --reset main --to main~1",
    keys="branches[name commit author time message]; with --reflog, branch moves[branch old new "
    "author time operation]; after a change, operation name commit and, if renamed, old_name",
)
@file_argument
@click.argument("name", required=False)
@click.option("--at", metavar="REF", help="Where NAME begins.  [default: main]")
@click.option("-d", "--delete", metavar="NAME", help="Delete a branch; its reflog stays.")
@click.option("-m", "--move", "--rename", nargs=2, metavar="OLD NEW", help="Rename a branch.")
@click.option("--reset", metavar="NAME", help="Move a branch to the commit that --to names.")
@click.option("--to", metavar="REF", help="Where --reset moves the branch.")
@click.option("--expected", metavar="REF", help="Reset only if the branch is here now.")
@click.option("--reflog", metavar="NAME", help="List every move of a branch.")
def branch(
    file: str,
    name: str | None,
    at: str | None,
    delete: str | None,
    move: tuple[str, str] | None,
    reset: str | None,
    to: str | None,
    expected: str | None,
    reflog: str | None,
) -> None:
    """List, create, rename, reset or delete branches.

    Lists them if only FILE is given. Creates NAME. After a --reset or --delete the reflog still
    tells the commits that the branch was at.
    """
    require_one_of(
        {"NAME": name, "--delete": delete, "--move": move, "--reset": reset, "--reflog": reflog}
    )
    require_with({"--at": at}, "NAME", name)
    require_with({"--to": to, "--expected": expected}, "--reset", reset)
    if name is not None:
        _create_branch(file, name, at or "main")
    elif delete is not None:
        _delete_branch(file, delete)
    elif move is not None:
        _rename_branch(file, *move)
    elif reset is not None:
        if to is None:
            raise click.UsageError("--reset needs --to REF.")
        _reset_branch(file, reset, to, expected)
    elif reflog is not None:
        list_moves(file, reflog)
    else:
        _list_branches(file)


def _list_branches(file: str) -> None:
    out = output()
    with open_file(file) as repo:
        branches = branch_facts(repo)
    out.document({"branches": branches})
    out.table(
        ["branch", "head", "message"],
        [
            [(entry["name"], BRANCH), out.commit_id(entry["commit"]), first_line(entry["message"])]
            for entry in branches
        ],
    )


def _create_branch(file: str, name: str, at: str) -> None:
    out = output()
    with open_file(file, "r+") as repo:
        if name in repo.branches:
            remedy = f"to move it: vzarr branch {file} --reset {name} --to REF"
            raise AlreadyExistsError(f"branch {name!r} exists; {remedy}", name=name)
        commit = repo.branches.create(name, at=at)
    out.document({"operation": "create", "name": name, "commit": commit})
    out.line("created branch ", (name, BRANCH), " at ", out.commit_id(commit))


def _delete_branch(file: str, name: str) -> None:
    out = output()
    with open_file(file, "r+") as repo:
        require_branch(repo, file, name)
        commit = repo.branches.delete(name)
    out.document({"operation": "delete", "name": name, "commit": commit})
    out.line("deleted branch ", (name, BRANCH), ", which was at ", out.commit_id(commit))


def _rename_branch(file: str, old: str, new: str) -> None:
    out = output()
    with open_file(file, "r+") as repo:
        require_branch(repo, file, old)
        repo.branches.rename(old, new)
        commit = repo.branches[new]
    out.document({"operation": "rename", "name": new, "commit": commit, "old_name": old})
    out.line("renamed branch ", (old, BRANCH), " to ", (new, BRANCH))


def _reset_branch(file: str, name: str, to: str, expected: str | None) -> None:
    out = output()
    with open_file(file, "r+") as repo:
        require_branch(repo, file, name)
        commit = repo.branches.reset(name, to, expected)
    out.document({"operation": "reset", "name": name, "commit": commit})
    out.line("branch ", (name, BRANCH), " is now at ", out.commit_id(commit))


@verb(
    "vzarr tag ocean.vzarr",
    'vzarr tag ocean.vzarr v1.0 --at main~1 -m "as published"',
    keys="tags[name commit message author time]; after a change, operation name commit",
)
@file_argument
@click.argument("name", required=False)
@click.option("--at", metavar="REF", help="What to tag.  [default: main]")
@click.option("-m", "--message", metavar="MSG", help="Why.")
@click.option("-d", "--delete", metavar="NAME", help="Delete a tag; its commit stays.")
def tag(
    file: str, name: str | None, at: str | None, message: str | None, delete: str | None
) -> None:
    """List, create or delete tags.

    Lists them if only FILE is given. Creates NAME, which never moves.
    """
    require_one_of({"NAME": name, "--delete": delete})
    require_with({"--at": at, "--message": message}, "NAME", name)
    if name is not None:
        _create_tag(file, name, at or "main", message or "")
    elif delete is not None:
        _delete_tag(file, delete)
    else:
        _list_tags(file)


def _list_tags(file: str) -> None:
    out = output()
    with open_file(file) as repo:
        tags = repo.tags.details()
    out.document({"tags": [asdict(entry) for entry in tags]})
    out.table(
        ["tag", "commit", "tagged", "message"],
        [
            [
                (entry.name, TAG),
                out.commit_id(entry.commit),
                spell_time(entry.time),
                first_line(entry.message),
            ]
            for entry in tags
        ],
    )


def _create_tag(file: str, name: str, at: str, message: str) -> None:
    out = output()
    with open_file(file, "r+") as repo:
        commit = repo.tags.create(name, at=at, message=message)
    out.document({"operation": "create", "name": name, "commit": commit})
    out.line("tagged ", out.commit_id(commit), " as ", (name, TAG))


def _delete_tag(file: str, name: str) -> None:
    out = output()
    with open_file(file, "r+") as repo:
        commit = repo.tags[name]
        repo.tags.delete(name)
    out.document({"operation": "delete", "name": name, "commit": commit})
    out.line("deleted tag ", (name, TAG), ", which was at ", out.commit_id(commit))
