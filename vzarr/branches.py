"""``repo.branches`` and ``repo.tags``: names and commit ids as mappings, with git's verbs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import final

from vzarr import refs
from vzarr.committing import Settings, change_names
from vzarr.environment import Environment, Txn
from vzarr.errors import ConflictError, RefNotFoundError
from vzarr.format import Digest, TagRecord
from vzarr.history import Commit, check_message, describe, get, now
from vzarr.refs import Tag
from vzarr.revisions import resolve


class _Names(Mapping[str, str]):
    """What branches and tags have in common."""

    def __init__(self, environment: Environment, settings: Settings, *, read_only: bool) -> None:
        self._environment = environment
        self._settings = settings
        self._read_only = read_only

    def _resolve(self, ref: str | datetime) -> Digest:
        return resolve(self._environment, ref).commit

    def _write(self, change: Callable[[Txn], None]) -> None:
        change_names(
            self._environment,
            self._settings,
            change,
            what="branches and tags",
            read_only=self._read_only,
        )

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return "\n".join(f"{name}  {commit[:12]}" for name, commit in self.items()) or "(none)"

    def _repr_html_(self) -> str:
        from vzarr.notebook import names_html

        kind = "branch" if isinstance(self, Branches) else "tag"
        return names_html(self._commits(), len(self), kind)

    def _commits(self) -> Iterator[tuple[str, Commit]]:
        for name, commit in self.items():
            digest = Digest(bytes.fromhex(commit))
            yield name, describe(digest, get(self._environment, digest))


@final
class Branches(_Names):
    """The branches: name → id of the head commit, as the file is now."""

    def __getitem__(self, name: str) -> str:
        with self._environment.read() as txn:
            return refs.head(txn, name).hex()

    def __iter__(self) -> Iterator[str]:
        with self._environment.read() as txn:
            return iter([name for name, _ in refs.branches(txn)])

    def create(self, name: str, at: str | datetime = "main") -> str:
        """Make a branch at a commit and give that commit's id. O(log n), one fsync.

        Raises ``AlreadyExistsError``, ``InvalidInputError`` for a name that git would not take,
        and ``RefNotFoundError`` for ``at``.
        """
        refs.check_name(name)
        commit = self._resolve(at)
        author = self._settings.author()
        self._write(
            lambda txn: refs.create_branch(txn, name, commit, author, now(), f"create: from {at}")
        )
        return commit.hex()

    def delete(self, name: str) -> str:
        """Delete a branch and give its last head; its commits stay until a gc, its reflog too.

        Raises ``RefNotFoundError``. O(log n), one fsync.
        """
        author = self._settings.author()
        deleted: list[Digest] = []
        self._write(
            lambda txn: deleted.append(refs.delete_branch(txn, name, author, now(), "delete"))
        )
        return deleted[0].hex()

    def rename(self, old: str, new: str) -> None:
        """Give a branch another name. Sessions on the old name cannot commit any more.

        Raises ``RefNotFoundError``, ``AlreadyExistsError``, ``InvalidInputError``. O(log n).
        """
        refs.check_name(new)
        author = self._settings.author()

        def change(txn: Txn) -> None:
            head = refs.head(txn, old)
            refs.create_branch(txn, new, head, author, now(), f"rename: from {old}")
            refs.delete_branch(txn, old, author, now(), f"rename: to {new}")

        self._write(change)

    def reset(self, name: str, to: str | datetime, expected: str | None = None) -> str:
        """Move a branch to any commit and give that commit's id: a compare-and-set.

        With ``expected``, raises ``ConflictError`` unless the branch is there now. The commits that
        it leaves behind stay in its reflog. Raises ``RefNotFoundError``. O(log n), one fsync.
        """
        commit = self._resolve(to)
        wanted = self._resolve(expected) if expected is not None else None
        author = self._settings.author()

        def change(txn: Txn) -> None:
            head = refs.head(txn, name)
            if wanted is not None and head != wanted:
                raise ConflictError(
                    f"branch {name!r} is at {head.hex()[:12]}, not at {wanted.hex()[:12]}; "
                    "nothing was moved"
                )
            if head != commit:
                refs.move_branch(txn, name, head, commit, author, now(), f"reset: to {to}")

        self._write(change)
        return commit.hex()


@final
class Tags(_Names):
    """The tags: name → commit id. A tag never moves."""

    def __getitem__(self, name: str) -> str:
        with self._environment.read() as txn:
            record = refs.find_tag(txn, name)
        if record is None:
            raise RefNotFoundError(f"there is no tag {name!r}", name=name)
        return record.commit.hex()

    def __iter__(self) -> Iterator[str]:
        return (tag.name for tag in self.details())

    def details(self) -> list[Tag]:
        """List the tags with their messages, authors and times."""
        with self._environment.read() as txn:
            return list(refs.tags(txn))

    def create(self, name: str, at: str | datetime = "main", message: str = "") -> str:
        """Make a tag on a commit and give that commit's id. O(log n), one fsync.

        Raises ``AlreadyExistsError``, ``InvalidInputError`` for a name that git would not take,
        and ``RefNotFoundError`` for ``at``.
        """
        refs.check_name(name, "tag")
        check_message(message)
        commit = self._resolve(at)
        record = TagRecord(commit, message, self._settings.author(), now())
        self._write(lambda txn: refs.create_tag(txn, name, record))
        return commit.hex()

    def delete(self, name: str) -> None:
        """Delete a tag; its commit stays until a gc. Raises ``RefNotFoundError``. O(log n)."""
        self._write(lambda txn: refs.delete_tag(txn, name))
