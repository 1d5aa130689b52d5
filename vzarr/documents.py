"""Three-way merge of JSON documents, key by key: what merges is merged, the order is kept."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_MISSING = object()
_INDENT = re.compile(r"\{\n( +)\"")


class _Overlap(Exception):  # noqa: N818 - control flow, never leaves the module
    """Both sides changed one value to different ones."""


def merge_documents(base: bytes, ours: bytes, theirs: bytes) -> bytes | None:
    """Merge two versions of a JSON object that come from one base.

    Objects merge per key at any depth, and ``shape`` per axis; every other value is taken whole.
    Gives None where both sides changed one value to different ones, or where one of the three is no
    JSON object. The result keeps our order and indentation; what only they added comes last. O(n).
    """
    documents = [_parse(data) for data in (base, ours, theirs)]
    if not all(isinstance(document, dict) for document in documents):
        return None
    try:
        merged = _merge_mappings(*documents)
    except _Overlap:
        return None
    indent = _INDENT.match(ours.decode())
    return json.dumps(merged, indent=len(indent[1]) if indent else None).encode()


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _merge_mappings(
    base: Mapping[str, Any], ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> dict[str, Any]:
    merged = {}
    for key in {**ours, **theirs}:
        sides = (base.get(key, _MISSING), ours.get(key, _MISSING), theirs.get(key, _MISSING))
        value = _merge_shapes(*sides) if key == "shape" else _merge_values(*sides)
        if value is not _MISSING:
            merged[key] = value
    return merged


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
