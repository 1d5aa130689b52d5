"""What a shallow or partial clone has left out: noted by digest, so that it is no damage.

Snapshots, groups, arrays and files may be absent; commits never are. The note counts for what is
not there: an object that came in another way is simply read.
"""

from __future__ import annotations

from collections.abc import Iterable

from vzarr.environment import Txn
from vzarr.errors import AbsentError
from vzarr.format import ABSENT_PREFIX


def note(txn: Txn, digests: Iterable[bytes]) -> None:
    """Note that objects are left out, those of them that are not there. O(log n) each."""
    for digest in digests:
        if not _is_there(txn, digest):
            txn.put("meta", ABSENT_PREFIX + digest, b"", overwrite=False)


def is_noted(txn: Txn, digest: bytes) -> bool:
    """Tell whether an object that is not there was left out. O(log n)."""
    return txn.contains("meta", ABSENT_PREFIX + digest)


def is_any(txn: Txn) -> bool:
    """Tell whether anything was left out. O(log n)."""
    return txn.last_key("meta", ABSENT_PREFIX) is not None


def noted(txn: Txn) -> list[bytes]:
    """List what was left out and is not there. O(log n) each."""
    found = txn.scan("meta", prefix=ABSENT_PREFIX, keys_only=True)
    digests = (key.removeprefix(ABSENT_PREFIX) for key, _ in found)
    return [digest for digest in digests if not _is_there(txn, digest)]


def forget_found(txn: Txn) -> None:
    """Forget that objects were left out which are there by now. O(those left out · log n)."""
    for key, _ in txn.scan("meta", prefix=ABSENT_PREFIX, keys_only=True):
        if _is_there(txn, key.removeprefix(ABSENT_PREFIX)):
            txn.delete("meta", key)


def _is_there(txn: Txn, digest: bytes) -> bool:
    return txn.contains("nodes", digest) or txn.contains("chunks", digest)


def left_out(what: str, digest: bytes, path: str) -> AbsentError:
    """Say that something was left out."""
    return AbsentError(
        f"{what} {digest.hex()[:12]} is not in {path}, which is a shallow or partial clone: fetch "
        f"all of it with: vzarr fetch {path} --complete",
        name=digest.hex(),
    )
