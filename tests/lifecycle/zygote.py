"""Interpreters that have vzarr and zarr imported already, and end like any other.

    python -m tests.lifecycle.zygote

For each line on its input, a list in JSON of a script, its argument, and files for its output, it
forks: the child runs the script, and comes to the end of its interpreter by itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path


def serve() -> str | None:
    """Fork for each request; in the child, give the script to run."""
    for line in sys.stdin:
        script, argument, out, err = json.loads(line)
        pid = os.fork()
        if not pid:
            for number, name in ((0, os.devnull), (1, out), (2, err)):
                descriptor = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
                os.dup2(descriptor, number)
                os.close(descriptor)
            sys.argv = ["script", argument]
            return script
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(status, flush=True)
    return None


class Zygote:
    """The process that forks, as a test sees it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.lifecycle.zygote"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str, argument: str, directory: Path) -> tuple[int, str, str]:
        """Run a script in an interpreter of its own; give its exit code and what it printed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        out, err = (directory / f"script.{name}" for name in ("out", "err"))
        for file in (out, err):
            file.unlink(missing_ok=True)
        request = [textwrap.dedent(script), argument, str(out), str(err)]
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        return status, out.read_text(), err.read_text()

    def close(self) -> None:
        self._process.communicate()


if __name__ == "__main__":
    import numpy  # noqa: F401, ICN001 - so that a script finds it imported
    import zarr  # noqa: F401

    import vzarr
    import vzarr.store  # noqa: F401

    script = serve()
    if script is not None:
        # As the main module, whose names live until the interpreter ends.
        exec(compile(script, "script", "exec"))
