"""JSON documents: parsed within bounds, and merged key by key.

Documents may come from a stranger. What is too large or too deep to be parsed safely counts as no
document at all, in every release and on every Python alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

MAX_DOCUMENT_BYTES = 2**26
"""A longer document counts as none: parsed, it might take fifty times as much memory."""
# Parsers give up at a depth that depends on Python; what a document means must not.
_MAX_DEPTH = 100
# The end of a string may be missing: else the search would begin anew at each quote in it.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_BRACKETS = re.compile(rb"[\[\]{}]")
_MISSING = object()
_INDENT = re.compile(r"\{\n( +)\"")
_ZARRS_INDENT = 2


class _Overlap(Exception):  # noqa: N818 - control flow, never leaves the module
    """Both sides changed one value to different ones."""


def parse_document(data: bytes) -> dict[str, Any] | None:
    """Parse a JSON object; None for what is none, or too large, or nested too deeply. O(n)."""
    if len(data) > MAX_DOCUMENT_BYTES or _is_too_deep(data):
        return None
    try:
        document = json.loads(data.decode())
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _is_too_deep(data: bytes) -> bool:
    if data.count(b"[") + data.count(b"{") <= _MAX_DEPTH:
        return False
    depth = 0
    for bracket in _BRACKETS.finditer(_STRING.sub(b"", data)):
        depth += 1 if bracket.group() in b"[{" else -1
        if depth > _MAX_DEPTH:
            return True
    return False


def merge_documents(base: bytes, ours: bytes, theirs: bytes) -> bytes | None:
    """Merge two versions of a JSON object that come from one base.

    Objects merge per key at any depth, and ``shape`` per axis; every other value is taken whole.
    Gives None where both sides changed one value to different ones, or where one of the three is no
    JSON object. Which side is called ours makes no difference: keys come in the base's order, then
    those that one side added in its order, or sorted if both added some; the indentation is the
    base's, or the new one of a side. O(n log n).
    """
    sides = (base, ours, theirs)
    documents = [document for data in sides if (document := parse_document(data)) is not None]
    if len(documents) < len(sides):
        return None
    try:
        merged = _merge_mappings(*documents)
        return json.dumps(merged, indent=_merge_indents(*map(_indent, sides))).encode()
    except _Overlap:
        return None


def encode_document(document: Mapping[str, Any]) -> bytes:
    """Encode a JSON object as zarr does. Raises what ``json.dumps`` raises. O(n)."""
    return json.dumps(dict(document), indent=_ZARRS_INDENT).encode()


def is_document(data: bytes) -> bool:
    """Whether bytes are a JSON object. O(n)."""
    return parse_document(data) is not None


def _indent(data: bytes) -> int | None:
    found = _INDENT.match(data.decode())
    return len(found[1]) if found else None


def _merge_indents(base: int | None, ours: int | None, theirs: int | None) -> int | None:
    if ours == theirs:
        return ours
    if base in (ours, theirs):
        return theirs if ours == base else ours
    return base


def _merge_mappings(
    base: Mapping[str, Any], ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> dict[str, Any]:
    merged = {}
    for key in _order(base, ours, theirs):
        sides = (base.get(key, _MISSING), ours.get(key, _MISSING), theirs.get(key, _MISSING))
        value = _merge_shapes(*sides) if key == "shape" else _merge_values(*sides)
        if value is not _MISSING:
            merged[key] = value
    return merged


def _order(
    base: Mapping[str, Any], ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> list[str]:
    our_new, their_new = ([key for key in side if key not in base] for side in (ours, theirs))
    if our_new and their_new and our_new != their_new:
        return [*base, *sorted({*our_new, *their_new})]
    return [*base, *(our_new or their_new)]


def _merge_values(base: Any, ours: Any, theirs: Any) -> Any:
    if _same(ours, theirs) or _same(base, theirs):
        return ours
    if _same(base, ours):
        return theirs
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return _merge_mappings(base if isinstance(base, dict) else {}, ours, theirs)
    raise _Overlap


def _merge_shapes(base: Any, ours: Any, theirs: Any) -> Any:
    """Merge axis by axis, so that one side may grow time while the other grows depth."""
    shapes = (base, ours, theirs)
    if not all(isinstance(shape, list) and len(shape) == len(ours) for shape in shapes):
        return _merge_values(base, ours, theirs)
    return [_merge_values(*lengths) for lengths in zip(base, ours, theirs, strict=True)]


def _same(one: Any, two: Any) -> bool:
    # As text, because a NaN is not equal to itself, and True is not 1.
    return one is two or (
        type(one) is type(two) and one is not _MISSING and json.dumps(one) == json.dumps(two)
    )


def agreed_keys(base: bytes, ours: bytes, theirs: bytes) -> list[str]:
    """List the keys that both sides changed, or added, alike, at any depth; as paths.

    Lengths of axes do not count. Nothing is listed where one of the three is no JSON object. O(n).
    """
    sides = (base, ours, theirs)
    documents = [document for data in sides if (document := parse_document(data)) is not None]
    if len(documents) < len(sides):
        return []
    return list(_agreed("", *documents))


def _agreed(
    path: str, base: Mapping[str, Any], ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> Iterator[str]:
    for key in {**base, **ours, **theirs}:
        old, our, their = (side.get(key, _MISSING) for side in (base, ours, theirs))
        if _same(old, our) or _same(old, their) or (key == "shape" and not path):
            continue
        if isinstance(our, dict) and isinstance(their, dict):
            yield from _agreed(f"{path}{key}/", old if isinstance(old, dict) else {}, our, their)
        elif our is not _MISSING and _same(our, their):
            yield f"{path}{key}"
