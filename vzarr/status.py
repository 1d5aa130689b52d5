"""What a session would commit, in the shape of ``git status``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from vzarr.diff import Diff


@final
@dataclass(frozen=True, slots=True)
class Changes:
    """One kind of change: keys of documents and files, and chunk coordinates by array."""

    documents: tuple[str, ...]
    chunks: Mapping[str, list[tuple[int, ...]]]

    def __bool__(self) -> bool:
        return bool(self.documents or self.chunks)


@final
class Status:
    """The uncommitted changes of a session; prints like ``git status``."""

    __slots__ = ("_base", "_branch", "_diff")

    def __init__(self, branch: str | None, base: str, changes: Diff) -> None:
        self._branch = branch
        self._base = base
        self._diff = changes

    @property
    def diff(self) -> Diff:
        """The changes from the session's base to its present state."""
        return self._diff

    @property
    def added(self) -> Changes:
        """The documents and chunks that are new."""
        return self._only("added")

    @property
    def modified(self) -> Changes:
        """The documents and chunks that have another value than in the base."""
        return self._only("changed")

    @property
    def deleted(self) -> Changes:
        """The documents and chunks that are gone."""
        return self._only("removed")

    @property
    def moved(self) -> Mapping[str, str]:
        """The nodes that have another path: new → old."""
        return {node.path: node.old_path or "" for node in self._diff.moved}

    @property
    def is_clean(self) -> bool:
        """Whether there is nothing to commit."""
        return not self._diff

    def _only(self, kind: str) -> Changes:
        documents: list[str] = []
        chunks: dict[str, list[tuple[int, ...]]] = {}
        for node in self._diff:
            documents += [key for key, change in node.document_changes() if change == kind]
            coordinates = [chunk for chunk, change in node.iter_kinds() if change == kind]
            if coordinates:
                chunks[node.path] = coordinates
        return Changes(tuple(documents), chunks)

    def __bool__(self) -> bool:
        return bool(self._diff)

    def __str__(self) -> str:
        lines = self.head()
        if self._diff:
            lines += [f"  {line}" for line in str(self._diff).split("\n")]
        return "\n".join(lines)

    __repr__ = __str__

    def head(self) -> list[str]:
        """Say where the session is, and whether changes follow, in two lines."""
        where = f"On branch {self._branch}" if self._branch else "Read-only"
        what = (
            "Changes to be committed:" if self._diff else "nothing to commit, the session is clean"
        )
        return [f"{where}, at commit {self._base[:12]}", what]

    def _repr_html_(self) -> str:
        from vzarr.notebook import status_html

        return status_html(self)
