"""Export a snapshot, or a part of one: to a directory, a zip file, a CAR file, or by fsspec.

What is exported is what zarr was shown: each key with its bytes, unchanged. It is written beside
the target, made durable, and then gets its name; so the target is whole or as it was.
"""

from __future__ import annotations

import os
import stat
import tempfile
import warnings
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, final

from vzarr import portable
from vzarr.car import INLINE, BlockSizeWarning, CarFile, fill_car
from vzarr.contents import Contents, Limits, require_names
from vzarr.datafile import our_errors, real_path
from vzarr.draft import Draft, draft_path
from vzarr.errors import (
    AlreadyExistsError,
    FormatError,
    FullError,
    InvalidInputError,
    NotFoundError,
)
from vzarr.format import DOCUMENTS
from vzarr.objects import Objects
from vzarr.outlets import Remote, fill_directory, fill_zip
from vzarr.printable import pace, printable
from vzarr.progress import Meter, Progress
from vzarr.session import Session

Form = Literal["directory", "zip", "car", "url", "icechunk"]

_SUFFIXES: dict[str, Form] = {".zip": "zip", ".car": "car"}
# What a key takes beside its value, roughly: the rest of a page, or its lines in lists.
_BYTES_BESIDE: dict[Form, int] = {"directory": 2048, "zip": 100, "car": 80, "url": 0}
_ZIP_NAME_BYTES = 0xFFFF
_WORDS: dict[Form, str] = {
    "directory": "a directory",
    "zip": "a zip file",
    "car": "a CAR file",
    "url": "a file system",
}


@final
@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export wrote; prints as a line."""

    target: str
    """The absolute path without links, or the URL."""
    form: Form
    """What the target is; ``url`` for one object a key in a file system of fsspec."""
    commit: str
    """What was exported; of a history, the newest commit."""
    path: str
    """The group or array whose keys these are; empty for all."""
    keys: int
    nbytes: int
    """What the values have together, in bytes."""
    seconds: float
    root: str | None = None
    """Of a CAR file the id of its root (CID), which names the data everywhere."""
    warnings: tuple[str, ...] = ()
    """What readers elsewhere could stumble over."""
    commits: int | None = None
    """Of a history: how many commits were replayed; keys and bytes are those that they wrote."""
    known: int | None = None
    """Of a history: how many commits were there before."""
    names: tuple[str, ...] = ()
    """Of a history: the branches that were made or moved there, and the tags that were made."""

    def __str__(self) -> str:
        if self.commits is not None:
            return self._history()
        what = self.path or "everything"
        line = (
            f"{self.target}: {what} of {self.commit[:12]}, {self.keys:,} keys with "
            f"{self.nbytes:,} bytes, {pace(self.nbytes, self.seconds)}."
        )
        return line if self.root is None else f"{line}\nroot {self.root}"

    def _history(self) -> str:
        names = printable(", ".join(self.names)) or "no name moved"
        return (
            f"{self.target}: {self.commits:,} commits replayed ({self.known:,} were there), "
            f"{self.keys:,} keys with {self.nbytes:,} bytes; {names}; "
            f"{pace(self.nbytes, self.seconds)}."
        )

    __repr__ = __str__


def export(
    session: Session,
    target: str,
    *,
    path: str = "",
    overwrite: bool = False,
    storage_options: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Export what a session shows; see ``Repository.export_to``."""
    if not isinstance(path, str):
        raise InvalidInputError(f"path= is the path of a group or array, not {path!r}")
    contents = Contents(session, path)
    meter = Meter(progress)
    if "://" in target:
        remote = Remote(target, storage_options)
        if remote.is_local:
            target = remote.path
        else:
            return _export_to_url(contents, session.base, remote, meter, overwrite=overwrite)
    elif storage_options is not None:
        raise InvalidInputError(f"storage_options= are for URLs, and {target} is a path")
    return _export_to_path(contents, session, target, meter, overwrite=overwrite)


def export_history(
    objects: Objects,
    target: Any,
    *,
    ref: object = None,
    path: str = "",
    overwrite: bool = False,
    storage_options: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Replay the history into an Icechunk repository; see ``Repository.export_to``."""
    from vzarr.icestorage import place_of
    from vzarr.replay import replay

    if path:
        raise InvalidInputError(
            f"path={path!r} is a part of a snapshot, and an Icechunk repository takes the whole "
            "history: export the part to a directory or a zip file"
        )
    if ref is not None and not isinstance(ref, str):
        raise InvalidInputError(f"ref= is a branch or a tag here, not {ref!r}")
    meter = Meter(progress)
    place = place_of(target, storage_options)
    done = replay(objects, place, ref, meter, overwrite=overwrite)
    return ExportReport(
        target=place.label,
        form="icechunk",
        commit=done.newest,
        path="",
        keys=done.values,
        nbytes=done.nbytes,
        seconds=meter.seconds,
        commits=done.commits,
        known=done.known,
        names=tuple(done.moved),
    )


def _export_to_path(
    contents: Contents, session: Session, target: str, meter: Meter, *, overwrite: bool
) -> ExportReport:
    target = real_path(target)
    form = _form(target)
    with our_errors(f"cannot look at {target}"):
        there = os.path.lexists(target)
        if there:
            _require_ours(target, form, session.environment.path, overwrite=overwrite)
        directory = os.path.dirname(target)
        if not os.path.isdir(directory):
            raise NotFoundError(f"the directory {directory} does not exist: create it", name=target)
        # First what takes no time: small files can hold more keys than anybody lists.
        _require_room(contents, form, directory)
        require_names(contents, _limits(form, directory, target))
    as_directory = form == "directory"
    with Draft(target, 0o777 if as_directory else 0o666, directory=as_directory) as draft:
        found = _fill(form, contents, draft, meter)
        with our_errors(f"cannot write {target}"):
            if there:
                draft.replace()
            else:
                draft.place()
    return _report(contents, session.base, meter, target, form, found)


def _export_to_url(
    contents: Contents, commit: str, remote: Remote, meter: Meter, *, overwrite: bool
) -> ExportReport:
    form: Form = _form(remote.path)
    if form == "directory":
        form = "url"
    if not overwrite:
        remote.require_absent()
    require_names(contents, _limits(form, "", remote.path))
    found = _Found()
    if form == "url":
        remote.fill(contents, meter, overwrite=overwrite)
    else:
        # Such a file is finished with what is written at its beginning.
        with (
            our_errors(f"cannot write to {tempfile.gettempdir()}"),
            tempfile.TemporaryDirectory(prefix="vzarr-") as directory,
        ):
            _require_room(contents, form, directory)
            with Draft(os.path.join(directory, "export"), 0o600) as draft:
                found = _fill(form, contents, draft, meter)
                remote.put(draft.path)
    return _report(contents, commit, meter, remote.url, form, found)


@final
class _Found(NamedTuple):
    """What comes to light when a CAR file is written."""

    root: str | None = None
    warnings: tuple[str, ...] = ()


def _fill(form: Form, contents: Contents, draft: Draft, meter: Meter) -> _Found:
    if form == "car":
        root, warned = fill_car(contents, draft, meter)
        return _Found(str(root), warned)
    (fill_directory if form == "directory" else fill_zip)(contents, draft, meter)
    return _Found()


def _report(
    contents: Contents, commit: str, meter: Meter, target: str, form: Form, found: _Found
) -> ExportReport:
    for words in found.warnings:
        # At the call of ``Repository.export_to``.
        warnings.warn(f"{target}: {words}", BlockSizeWarning, stacklevel=5)
    return ExportReport(
        target=target,
        form=form,
        commit=commit,
        path=contents.path,
        keys=contents.count,
        nbytes=contents.nbytes,
        seconds=meter.seconds,
        root=found.root,
        warnings=found.warnings,
    )


def _form(target: str) -> Form:
    return _SUFFIXES.get(os.path.splitext(target)[1].lower(), "directory")


def _limits(form: Form, directory: str, target: str) -> Limits:
    """Say what keys the target can hold."""
    match form:
        case "directory":
            names, path = portable.name_limits(directory)
            # Absolute, with a NUL at the end. The draft's name may be longer than the target's.
            longest = max(len(os.fsencode(name)) for name in (target, draft_path(target)))
            return Limits(_WORDS[form], names, path - longest - 2, file_names=True)
        case "car":
            return Limits(_WORDS[form], documents=INLINE)
        case _:
            return Limits(_WORDS[form], _ZIP_NAME_BYTES, _ZIP_NAME_BYTES, files=False)


def _require_room(contents: Contents, form: Form, directory: str) -> None:
    """Raise ``FullError`` if there is no room for an export in a directory."""
    needed = contents.nbytes + contents.count * _BYTES_BESIDE[form]
    free = portable.free_bytes(directory)
    if free < needed:
        raise FullError(
            f"the export takes some {needed:,} bytes, and {directory} has room for {free:,}: make "
            "room, or choose another directory"
        )


def _require_ours(target: str, form: Form, repository: str, *, overwrite: bool) -> None:
    """Raise unless the target may be overwritten, and is what an export would have written."""
    if repository == target or repository.startswith(f"{target}/"):
        raise InvalidInputError(
            f"{target} is the repository, or has it inside: choose another path"
        )
    if not overwrite:
        raise AlreadyExistsError(
            f"{target} exists already: choose another path, or overwrite it with overwrite=True "
            "(on the command line --overwrite)",
            name=target,
        )
    if not _is_export(target, form):
        raise AlreadyExistsError(
            f"{target} will not be overwritten, because it is not {_WORDS[form]} with Zarr data: "
            "delete it, or choose another path",
            name=target,
        )


def _is_export(target: str, form: Form) -> bool:
    mode = os.stat(target).st_mode
    if form == "directory":
        names = os.listdir(target) if stat.S_ISDIR(mode) else ["a file"]
        return not names or any(name in DOCUMENTS for name in names)
    if not stat.S_ISREG(mode):
        return False
    if form == "zip":
        return zipfile.is_zipfile(target)
    with suppress(FormatError), CarFile(target):
        return True
    return False
