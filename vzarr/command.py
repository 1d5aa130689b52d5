"""What all verbs of the command line share: errors turned into words, ``--json``, arguments."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import click

import vzarr
from vzarr.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    RefNotFoundError,
    StorageError,
    VzarrError,
)
from vzarr.facts import conflict_facts
from vzarr.opening import Mode
from vzarr.output import Output, complain
from vzarr.repository import Repository

_Function = TypeVar("_Function", bound=Callable[..., Any])

PROBLEM = 1
"""The exit code where something is wrong, or differs."""
_INTERRUPTED, _HUNG_UP = 130, 141
# What the repository's files meet is a ``VzarrError``.
_OUTPUT_LOST = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Commands(click.Group):
    """The verbs in the order of their definition, and the one place that turns errors to words."""

    def list_commands(self, _: click.Context) -> list[str]:
        """Give their names."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb; end with one line and an exit code where it raises."""
        try:
            super().invoke(ctx)
            # What a closed pipe does not take has to come to light here, not at the exit.
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader, say ``head``, has seen enough.
            abandon_stdout()
            ctx.exit(_HUNG_UP)
        except (VzarrError, OSError, UnicodeEncodeError) as raised:
            error = _in_our_words(raised)
            complain("vzarr: ", ("error: ", "red"), str(error))
            try:
                about: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
                if isinstance(error, ConflictError) and error.conflicts:
                    about["conflicts"] = [conflict_facts(one) for one in error.conflicts]
                Output(as_json=_wants_json(ctx)).document({"error": about})
                sys.stdout.flush()
            except OSError:
                # The error was stdout's, say a full disk.
                abandon_stdout()
            ctx.exit(PROBLEM)
        except KeyboardInterrupt:
            complain("vzarr: interrupted")
            ctx.exit(_INTERRUPTED)


def _in_our_words(error: Exception) -> Exception:
    if isinstance(error, UnicodeEncodeError):
        # Of an argument: what is printed is escaped.
        return InvalidInputError(
            f"{error.object!r} is not valid Unicode, as all names, paths and messages have to be"
        )
    if type(error) is OSError and error.errno in _OUTPUT_LOST:
        what = f"what is printed cannot be written: {error.strerror}"
        return StorageError(what, code=error.errno)
    return error


def abandon_stdout() -> None:
    """Keep Python from writing what is left, and failing again, at the exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


_JSON = "vzarr.json"


def _wants_json(ctx: click.Context) -> bool:
    return bool(ctx.find_root().meta.get(_JSON, False))


def output() -> Output:
    """Give where the running verb shows its results."""
    return Output(as_json=_wants_json(click.get_current_context()))


def _note_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta[_JSON] = value


_NO_PAGER = "vzarr.no_pager"


def note_no_pager(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    """Remember that ``--no-pager`` was given."""
    ctx.meta[_NO_PAGER] = value


def paged(out: Output) -> AbstractContextManager[None]:
    """Show what is printed in a pager, unless ``--no-pager`` was given."""
    return out.paged(not click.get_current_context().meta.get(_NO_PAGER, False))


def verb(*examples: str, keys: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a verb of a function whose docstring is its help; with ``--json`` and its keys."""
    option = click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_note_json,
        help="Print one JSON document.",
    )
    # click fills paragraphs, but for those that begin with \b.
    title = "Example" if len(examples) == 1 else "Examples"
    epilog = "\n  ".join([f"\b\n{title}:", *examples]) + f"\n\nJSON: {keys}"

    def make(function: Callable[..., Any]) -> click.Command:
        return click.command(epilog=epilog)(option(function))

    return make


def file_argument(function: _Function) -> _Function:
    """Give a verb its FILE."""
    return click.argument("file", type=click.Path())(function)


def ref_argument(function: _Function) -> _Function:
    """Give a verb a REF, which is main if it is not given."""
    return click.argument("ref", default="main", metavar="[REF]")(function)


ref_option = click.option(
    "--ref", default="main", metavar="REF", help="Of which commit.  [default: main]"
)


def open_file(file: str, mode: Mode = "r") -> Repository:
    """Open a repository that exists."""
    require_file(file)
    return vzarr.open(file, mode)


def require_file(file: str) -> None:
    """Raise ``NotFoundError`` if there is no such file."""
    if file and not os.path.lexists(os.path.expanduser(file)):
        raise NotFoundError(
            f"there is no file {file}; create a repository with: vzarr init {file}", name=file
        )


def require_branch(repo: Repository, file: str, name: str) -> None:
    """Raise ``RefNotFoundError`` if there is no such branch."""
    if name not in repo.branches:
        raise no_branch(file, name)


def no_branch(file: str, name: str) -> RefNotFoundError:
    """Say that there is no such branch."""
    return RefNotFoundError(
        f"there is no branch {name!r}; to list the branches: vzarr branch {file}", name=name
    )


def require_one_of(actions: Mapping[str, object]) -> None:
    """Raise an error of usage if several of these are given."""
    given = [name for name, value in actions.items() if value is not None]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} do not go together.")


def require_with(options: Mapping[str, object], other: str, value: object) -> None:
    """Raise an error of usage if any of these is given without another."""
    for name, given in options.items():
        if given is not None and value is None:
            raise click.UsageError(f"{name} goes with {other}.")


strategy_option = click.option(
    "--strategy",
    type=click.Choice(["fail", "ours", "theirs"]),
    default="fail",
    help="Whose value to take in a conflict: the branch's, or the other's.  [default: fail]",
)

_DAYS = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def moment(_: click.Context, parameter: click.Parameter, text: str | None) -> datetime | None:
    """Read a number of days before now, or a date; without a zone it is local time."""
    if text is None:
        return None
    try:
        if _DAYS.fullmatch(text):
            return datetime.now(UTC) - timedelta(days=float(text))
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(
            f"{text!r} is no number of days and no ISO 8601 date, such as 2026-03-01.",
            param=parameter,
        ) from error


_INDEX = re.compile(
    r"(?P<index>-?\d{1,19})|(?P<start>-?\d{1,19})?:(?P<stop>-?\d{1,19})?|(?P<rest>\.\.\.)"
)


def parse_region(text: str, option: str = "--region") -> tuple[Any, ...]:
    """Read an index as numpy would take it, with or without brackets."""
    parts: list[Any] = []
    inner = text.strip().removeprefix("[").removesuffix("]").strip()
    for part in inner.split(",") if inner else ():
        match = _INDEX.fullmatch(part.strip())
        if match is None:
            raise click.BadParameter(
                f"{part!r} is no index such as 5, 0:10 or :", param_hint=option
            )
        if match["rest"]:
            parts.append(...)
        elif match["index"]:
            parts.append(int(match["index"]))
        else:
            ends = (int(end) if end else None for end in (match["start"], match["stop"]))
            parts.append(slice(*ends))
    return tuple(parts)
