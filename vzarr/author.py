"""Who the author of a commit is, where the caller does not say.

Beside the command line this is the only module that looks at the process's surroundings.
"""

from __future__ import annotations

import functools
import getpass
import os
import shutil
import socket

from vzarr import portable


@functools.cache
def default_author() -> str:
    """``VZARR_AUTHOR``, else the name and mail in git's configuration, else user@host.

    Asks git once a process (a few milliseconds), and only when a first commit needs it.
    """
    given = os.environ.get("VZARR_AUTHOR", "").strip()
    return given or _git_author() or f"{_user()}@{socket.gethostname()}"


def _git_author() -> str:
    git = shutil.which("git")
    if git is None:
        return ""
    # Those who read only need no author, nor wait for this to be imported.
    import subprocess

    command = [git, "config", "--get-regexp", r"^user\.(name|email)$"]
    try:
        output = subprocess.run(  # noqa: S603 - a fixed command of the user's own git
            command, capture_output=True, text=True, timeout=5, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    fields = dict(line.split(" ", 1) for line in output.splitlines() if " " in line)
    name, mail = fields.get("user.name", ""), fields.get("user.email", "")
    return f"{name} <{mail}>" if name and mail else name or mail


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return portable.user_name()
