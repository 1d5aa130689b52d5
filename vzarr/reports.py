"""What a repository tells of itself, to print."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import final

from vzarr.history import Commit


@final
@dataclass(frozen=True, slots=True)
class Info:
    """What ``repo.info()`` tells; prints as a table."""

    path: str
    id: str
    format_version: int
    created: datetime
    file_bytes: int
    """Size of the file, in bytes."""
    chunks: int
    """Distinct chunks, documents and files stored, over all history."""
    commits: int
    branches: int
    tags: int
    branch: str | None
    """The branch of the current session, if there is one."""

    def rows(self) -> dict[str, str | int]:
        """Give the facts by name, spelled as they are printed."""
        return {
            "path": self.path,
            "id": self.id,
            "format version": self.format_version,
            "created": f"{self.created:%Y-%m-%d %H:%M:%S} UTC",
            "file size": f"{self.file_bytes:,} bytes",
            "distinct chunks": f"{self.chunks:,}",
            "commits": f"{self.commits:,}",
            "branches": self.branches,
            "tags": self.tags,
        }

    def __str__(self) -> str:
        return "\n".join(f"{name:<16} {value}" for name, value in self.rows().items())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from vzarr.notebook import info_html

        return info_html(self)


class Log(tuple[Commit, ...]):
    """Commits, newest first; prints one a line."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "(no commits)"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from vzarr.notebook import log_html

        return log_html(self)
