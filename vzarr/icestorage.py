"""Where Icechunk repositories are: their URLs, how they are opened, and what their errors mean.

A URL is ``icechunk://`` and then a path, or the URL of a bucket: ``icechunk:///data/ocean``,
``icechunk://s3://bucket/ocean?region=eu-north-1``. What comes after the question mark goes to
Icechunk's own storage configuration; secrets come from the environment or ``storage_options``.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, final
from urllib.parse import parse_qsl, urlsplit

from vzarr.datafile import real_path
from vzarr.errors import (
    AlreadyExistsError,
    ConflictError,
    CorruptError,
    FormatVersionError,
    InvalidInputError,
    NotFoundError,
    ReadOnlyError,
    StorageError,
    TransferError,
    VzarrError,
)
from vzarr.format import DOCUMENTS

if TYPE_CHECKING:
    import icechunk

    Theirs: TypeAlias = icechunk.Storage | icechunk.Repository

SCHEME = "icechunk://"
_BUCKET = re.compile(r"(s3|gs|az)://")
_FLAGS = {"true": True, "false": False}
# What may stand in a URL, which people mail to each other: no secrets.
_S3_OPTIONS = frozenset(
    {"region", "endpoint_url", "allow_http", "anonymous", "force_path_style", "requester_pays"}
)
_OPTIONS = {"s3": _S3_OPTIONS, "gs": frozenset({"anonymous"}), "az": frozenset({"account"})}
_SHOWN = 300
_T = TypeVar("_T")


@final
@dataclass(frozen=True, slots=True)
class Place:
    """Where an Icechunk repository is, or is to be."""

    label: str
    """What people call it; without secrets."""
    storage: icechunk.Storage
    path: str | None
    """Its directory, if it is on this machine."""
    opened: icechunk.Repository | None = None
    """The repository that was handed in, with its configuration and all that it may access."""


def is_place(target: object) -> bool:
    """Whether this is a URL of an Icechunk repository, or Icechunk's ``Storage`` or ``Repository``.

    Whoever has such an object has imported Icechunk; nobody else should pay for that.
    """
    if isinstance(target, str):
        return target.startswith(SCHEME)
    module: Any = sys.modules.get("icechunk")
    return module is not None and isinstance(target, module.Storage | module.Repository)


def is_repository(directory: str) -> bool:
    """Whether a directory of this machine is an Icechunk repository, by the names in it."""
    snapshots, repo, refs = (
        os.path.join(directory, name) for name in ("snapshots", "repo", "refs")
    )
    # A Zarr may have groups of these names.
    if any(os.path.lexists(os.path.join(directory, name)) for name in DOCUMENTS):
        return False
    return os.path.isdir(snapshots) and (os.path.isfile(repo) or os.path.isdir(refs))


def place_of(target: Any, storage_options: Mapping[str, Any] | None = None) -> Place:
    """Find where a URL or a ``Storage`` leads. Raises ``InvalidInputError``. Opens nothing."""
    module = _icechunk()
    if not isinstance(target, str):
        return _place_of_storage(module, target, storage_options)
    where = target.removeprefix(SCHEME)
    bucket = _BUCKET.match(where)
    if bucket is not None:
        label = SCHEME + where.partition("?")[0]
        return Place(label, _bucket(bucket[1], where, storage_options or {}), None)
    if not where or "\0" in where or "://" in where:
        raise InvalidInputError(
            f"{target!r} leads nowhere: after {SCHEME} comes a path, or a URL that begins with "
            "s3://, gs:// or az://"
        )
    if storage_options:
        raise InvalidInputError(f"storage_options= are for buckets, and {where} is a path")
    path = real_path(os.path.expanduser(where))
    return Place(SCHEME + path, module.local_filesystem_storage(path), path)


def _place_of_storage(module: Any, target: Any, storage_options: object) -> Place:
    opened = target if isinstance(target, module.Repository) else None
    if opened is not None:
        target = opened.storage
    if storage_options is not None:
        raise InvalidInputError("storage_options= are for URLs; a Storage has its own")
    return Place(" ".join(repr(target).split())[:_SHOWN], target, None, opened)


def _bucket(kind: str, url: str, storage_options: Mapping[str, Any]) -> icechunk.Storage:
    module = _icechunk()
    try:
        # A # is a character of a prefix as others are.
        parts = urlsplit(url, allow_fragments=False)
    except ValueError as error:
        raise InvalidInputError(f"{SCHEME}{url.partition('?')[0]} is no URL: {error}") from error
    options: dict[str, Any] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in _OPTIONS[kind]:
            raise InvalidInputError(
                f"{name!r} is no option that a {kind}:// URL can have; it has "
                f"{', '.join(sorted(_OPTIONS[kind]))}. All others, and secrets above all, go into "
                "storage_options= or the environment"
            )
        options[name] = _FLAGS.get(value.lower(), value)
    options |= storage_options
    prefix = parts.path.strip("/")
    if not parts.netloc or not prefix:
        raise InvalidInputError(
            f"{SCHEME}{url.partition('?')[0]} names no place: {kind}://BUCKET/PREFIX, since "
            "Icechunk makes no repository at the root of a bucket"
        )
    make = {
        "s3": module.s3_storage,
        "gs": module.gcs_storage,
        "az": module.azure_storage,
    }[kind]
    place = {"container" if kind == "az" else "bucket": parts.netloc, "prefix": prefix}
    try:
        made: icechunk.Storage = make(**place, **options)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"Icechunk cannot take {kind}://{parts.netloc}: {error}") from error
    return made


def _icechunk() -> Any:
    try:
        import icechunk
    except ImportError as error:
        raise InvalidInputError(
            "Icechunk repositories need the package icechunk: pip install 'vzarr[icechunk]'"
        ) from error
    # Releases before had other errors, or none that say what happened.
    if not hasattr(icechunk, "RepositoryNotFoundError"):
        raise InvalidInputError(
            "Icechunk repositories need icechunk 2.3 or newer, which needs Python 3.12 or newer, "
            f"and this is icechunk {icechunk.__version__}: pip install 'vzarr[icechunk]'"
        )
    return icechunk


# ── opening ──────────────────────────────────────────────────────────────────────────────────────


def open_repository(place: Place) -> icechunk.Repository:
    """Open what is there. Raises ``NotFoundError``, ``FormatVersionError``, ``TransferError``."""
    if place.opened is not None:
        return place.opened
    module = _icechunk()
    with errors(place, "open"):
        try:
            opened: icechunk.Repository = module.Repository.open(place.storage)
        except module.RepositoryNotFoundError as error:
            raise NotFoundError(
                f"there is no Icechunk repository at {place.label}", name=place.label
            ) from error
    return opened


def open_or_create(place: Place) -> icechunk.Repository:
    """Open what is there, or make a repository if nothing is. Raises ``AlreadyExistsError``."""
    try:
        return open_repository(place)
    except NotFoundError:
        pass
    module = _icechunk()
    with errors(place, "make"):
        try:
            created: icechunk.Repository = module.Repository.create(place.storage)
        except module.InvalidInputError as error:
            if error.kind != "parent-directory-not-clean":
                raise
            raise AlreadyExistsError(
                f"there is something else than an Icechunk repository at {place.label}: choose "
                "another place",
                name=place.label,
            ) from error
    return created


def silence() -> None:
    """Keep Icechunk from writing its warnings to the terminal, if it is there."""
    try:
        import icechunk
    except ImportError:
        return
    if hasattr(icechunk, "set_logs_filter"):
        icechunk.set_logs_filter("error")


def wait(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run what Icechunk's stores do on zarr's own event loop."""
    from zarr.core.sync import sync

    return sync(coroutine)


# ── errors ───────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def errors(place: Place, what: str) -> Iterator[None]:
    """Give our errors for Icechunk's, which then say what could not be done to the place."""
    module = _icechunk()
    try:
        yield
    except VzarrError:
        raise
    except module.IcechunkError as error:
        raise _translated(module, error, place, f"cannot {what} {place.label}") from error
    except (OSError, ValueError) as error:
        # A refreshing of credentials, or a server that answers with what is no answer.
        raise StorageError(
            f"cannot {what} {place.label}: {error}", code=getattr(error, "errno", None)
        ) from error


def _translated(module: Any, error: Any, place: Place, failed: str) -> VzarrError:
    kind = str(getattr(error, "kind", ""))
    # The rest is where in Icechunk it was.
    why = str(error).partition("\n\ncontext")[0].replace("\n", " ")[:_SHOWN]
    text = f"{failed}: {why}"
    if kind == "unsupported-spec-version":
        return FormatVersionError(f"{text}; a newer Icechunk may: pip install -U icechunk")
    if isinstance(error, module.StorageError):
        if place.path is not None:
            return StorageError(text)
        return TransferError(
            f"{text}. See that the bucket exists, and that credentials and endpoint are right; the "
            "same call goes on where this one ended"
        )
    if isinstance(error, module.FormatError):
        return CorruptError(text, path=place.path or place.label)
    if isinstance(error, module.ConflictError):
        return ConflictError(f"{text}; somebody else writes there: try again")
    for theirs, ours in (
        (module.AlreadyExistsError, AlreadyExistsError),
        (module.ReadOnlyError, ReadOnlyError),
        (module.InvalidInputError, InvalidInputError),
        (module.NotFoundError, NotFoundError),
    ):
        if isinstance(error, theirs):
            return ours(text)
    return StorageError(text)
