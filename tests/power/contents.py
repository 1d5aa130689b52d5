"""What a repository holds, in a few words: for those who note it, and those who look again.

Apart from the workloads, because these need zarr, and to judge a state does not.
"""

from __future__ import annotations

import hashlib

import vzarr
from vzarr.session import Session

AUTHOR = "Test <test@example.org>"


def refs_of(repo: vzarr.Repository) -> dict[str, dict[str, str]]:
    """Give all that a repository says is there, and how each branch came to where it is.

    A reset goes back to refs that there were before. Only by its entry in the reflog, which is
    written with it, can it be told from the loss of what it undoes.
    """
    branches = dict(repo.branches)
    moves = {}
    for name in branches:
        move = repo.reflog(name)[0]
        moves[name] = f"{move.time.isoformat()} {move.operation}"
    return {"branches": branches, "tags": dict(repo.tags), "moves": moves}


def contents_of(session: Session) -> str:
    """Give a digest of all keys and values of a session."""
    hashed = hashlib.blake2b(digest_size=16)
    for key in sorted(session.keys()):
        value = session.get(key)
        assert value is not None
        hashed.update(f"{key}\0{len(value)}\0".encode() + bytes(value))
    return hashed.hexdigest()
