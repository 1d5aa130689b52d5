"""What not every system has is used in the modules that know what to do where it is missing.

``mypy --platform win32`` and ``--platform darwin``, which the continuous integration runs, say the
same of what they can infer. This tells at once, and of names that are looked up as well.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import vzarr

PACKAGE = Path(vzarr.__file__).parent

# Those that ask which system it is.
KNOWING = {"portable", "windows", "filelocks", "system"}
# Of the standard library, for some systems only.
PARTIAL = {
    "fcntl",
    "grp",
    "msvcrt",
    "posix",
    "pwd",
    "resource",
    "select",
    "termios",
    "tty",
    "winreg",
}
# What all systems have in os. Whoever needs another name looks up in Python's documents where it is
# to be had, and adds it here or a function to ``portable``.
EVERYWHERE = {
    *("DirEntry", "O_CREAT", "O_EXCL", "O_RDONLY", "O_RDWR", "O_WRONLY", "PathLike", "W_OK"),
    *("SEEK_CUR", "SEEK_END", "SEEK_SET", "X_OK", "R_OK", "F_OK", "access", "close", "cpu_count"),
    *("devnull", "dup", "dup2", "environ", "fdopen", "fsencode", "fsdecode", "fspath", "fstat"),
    *("fsync", "ftruncate", "get_terminal_size", "getcwd", "getpid", "isatty", "linesep", "link"),
    *("listdir", "lseek", "makedirs", "mkdir", "name", "open", "path", "pipe", "read", "readlink"),
    *("rename", "replace", "rmdir", "scandir", "sep", "set_inheritable", "stat", "stat_result"),
    *("strerror", "symlink", "truncate", "unlink", "urandom", "utime", "walk", "write"),
}

MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem not in KNOWING)


def tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", MODULES)
def test_nothing_that_only_some_systems_have(module):
    used: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names} & PARTIAL
        elif isinstance(node, ast.ImportFrom):
            used |= {str(node.module)} & PARTIAL
            if node.module == "os":
                used |= {alias.name for alias in node.names} - EVERYWHERE
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "os" and node.attr not in EVERYWHERE:
                used.add(f"os.{node.attr}")
            elif node.value.id == "signal" and node.attr not in {"SIGINT", "SIGTERM", "signal"}:
                used.add(f"signal.{node.attr}")
        elif str(getattr(node, "value", "")).startswith(("/proc", "/sys", "/dev")):
            used.add(str(node.value))  # type: ignore[attr-defined]
    assert used == set()


@pytest.mark.parametrize("module", MODULES)
def test_who_loads_the_c_library_knows_that_windows_has_none(module):
    """``ctypes.CDLL(None)`` is a TypeError there."""
    calls = [node for node in ast.walk(tree(module)) if isinstance(node, ast.Call)]
    assert not [call for call in calls if getattr(call.func, "attr", "") in {"CDLL", "WinDLL"}]
