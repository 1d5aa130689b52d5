"""Several clones push and pull at once, while garbage is collected: nothing is lost."""

from __future__ import annotations

import os
import random

import vzarr
from tests.processes import Other
from tests.support import assert_sound
from tests.sync.conftest import AUTHOR

TORTURE = os.environ.get("VZARR_TORTURE") == "1"
ROUNDS = 100 if TORTURE else 6
CLONES = 3


def _pushes(pipe, path: str, number: int) -> None:
    """Commit and push, and pull where others were faster."""
    chance = random.Random(number)
    with vzarr.open(path, author=AUTHOR) as repo:
        for count in range(ROUNDS):
            session = repo.session("main")
            data = chance.randbytes(chance.choice([10, 5000, 200_000]))
            session.set(f"of{number}/{count}", data)
            session.commit(f"{number}: {count}")
            while True:
                try:
                    repo.push()
                    break
                except vzarr.NotFastForwardError:
                    repo.pull()
            if chance.random() < 0.2:
                repo.gc()


def _collects(pipe, path: str) -> int:
    """Collect garbage in the middle of it, until it is told to end."""
    rounds = 0
    with vzarr.open(path, author=AUTHOR) as repo:
        while not pipe.poll():
            repo.gc()
            repo.expire(keep_last=2)
            rounds += 1
    return rounds


def test_nothing_is_lost(first, tmp_path):
    first.close()
    clones = [str(tmp_path / f"clone{number}.vzarr") for number in range(CLONES)]
    for clone in clones:
        vzarr.clone(first.path, clone, author=AUTHOR)
    collector = Other(_collects, first.path)
    pushers = [Other(_pushes, clone, number) for number, clone in enumerate(clones)]
    for pusher in pushers:
        pusher.result()
    collector.send("end")
    assert collector.result() > 0
    with vzarr.open(first.path, "r", author=AUTHOR) as repo:
        session = repo.session("main")
        for number in range(CLONES):
            assert len(session.children(f"of{number}")) == ROUNDS
        session.close()
    for clone in clones:
        assert_sound(clone)
