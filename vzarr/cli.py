"""The command line, ``vzarr VERB FILE …``: all verbs, and where the process begins.

A verb opens the file, gathers facts and hands them to an ``Output``: text for people, or one JSON
document for programs. Verbs that read open the file with mode "r", so that a mistyped path creates
nothing. zarr is not imported here: it takes longer than all that these verbs do.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Never

import click

from vzarr import (
    completion,
    verbs,
    verbs_diff,
    verbs_export,
    verbs_history,
    verbs_import,
    verbs_log,
    verbs_merge,
    verbs_refs,
    verbs_rescue,
    verbs_space,
    verbs_sync,
    verbs_upkeep,
    verbs_view,
)
from vzarr.command import PROBLEM, Commands, abandon_stdout, note_no_pager
from vzarr.output import Output, complain

__all__ = ["Output", "commands", "main"]


def main() -> Never:
    """Run the command line and end the process; the console script ``vzarr``."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show an arrow, and a path that is no Unicode, are no errors.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        commands(prog_name="vzarr")
    except OSError as error:
        # Of the help: verbs have told of theirs.
        abandon_stdout()
        complain(
            "vzarr: ", ("error: ", "red"), f"what is printed cannot be written: {error.strerror}"
        )
        sys.exit(PROBLEM)
    raise AssertionError("click ends the process")


def _open_closed_streams() -> None:
    """Let nothing be read from, and written to, the streams that the process began without.

    Else files of ours get their numbers, and what a child process prints goes into the repository.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # It gets the lowest number that is free.
            number = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - to the end


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vzarr", message="vzarr %(version)s")
@click.option(
    "--no-pager",
    is_flag=True,
    expose_value=False,
    callback=note_no_pager,
    help="Print log, show and diff without a pager.",
)
def commands() -> None:
    """Git-like versions and transactions for Zarr arrays, in one file.

    FILE is a repository. A REF is a branch, a tag, a commit id or its first digits (four or more),
    each with git's suffixes: main~2, v1.0^, main@{2026-03-01}.

    Text is coloured on a terminal and plain in a pipe, with ids in full. With --json a verb prints
    one JSON document: times are ISO 8601, ids 64 hexadecimal digits, a region [start, stop] for
    each dimension. An error is one line on stderr and, with --json, a document {"error": {"type",
    "message"}}.

    Exit codes: 0 done, 1 an error, 2 wrong usage, 130 interrupted.
    """


# In the order in which they are listed.
for _verb in (
    verbs.init,
    verbs.info,
    verbs.tree,
    verbs_view.ls,
    verbs_log.log,
    verbs.status,
    verbs_diff.show,
    verbs_diff.diff,
    verbs_view.view,
    verbs_view.cat,
    verbs_refs.branch,
    verbs_refs.tag,
    verbs_merge.merge,
    verbs_merge.cherry_pick,
    verbs_merge.revert,
    verbs_history.move,
    verbs_history.squash,
    verbs_history.reflog,
    verbs_history.bisect,
    verbs_merge.blame,
    verbs.check,
    verbs_upkeep.sessions,
    verbs_upkeep.gc,
    verbs_upkeep.expire,
    verbs_upkeep.compact,
    verbs_upkeep.backup,
    verbs_import.import_,
    verbs_export.export,
    verbs_sync.clone,
    verbs_sync.fetch,
    verbs_sync.pull,
    verbs_sync.push,
    verbs_sync.remote,
    verbs_sync.bundle,
    verbs_sync.unbundle,
    verbs_sync.serve,
    verbs_space.du,
    verbs_space.redact,
    verbs_rescue.recover,
    verbs.demo,
    completion.completion,
):
    commands.add_command(_verb)
completion.complete_names(commands)
