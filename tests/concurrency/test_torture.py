"""Everything at once, with ``kill -9``: nothing acknowledged is lost, nothing is done twice.

The short version is one of the tests. The long one has eight processes and ten thousand commits:
``VZARR_TORTURE=1 python -m pytest -s tests/concurrency/test_torture.py``; or as many commits as
the variable says.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.concurrency.torture import LONG, LONG_COMMITS, Torture, choose_seed
from tests.concurrency.torture_actions import BATCH_BYTES
from tests.concurrency.torture_operations import Operation
from vzarr import changes, filelocks

pytestmark = pytest.mark.skipif(
    not filelocks.SUPPORTED, reason="this system does not tell who lives"
)


def test_processes_that_are_killed(path: Path, tmp_path: Path) -> None:
    logs, seed = tmp_path / "logs", choose_seed()
    if LONG:
        torture = Torture(path, logs, 8, LONG_COMMITS, seed, kill_every=2, samples=300)
    else:
        torture = Torture(path, logs, 3, 120, seed)
    verdict = torture.with_processes()
    torture.summarise(verdict)
    assert verdict.commits >= torture.commits
    assert torture.kills > 0
    if torture.commits >= 1000:
        # Of everything that there is, there was some.
        everything = {*Operation.kinds, "apply", "session", "merge", "pick", "revert"}
        assert verdict.how.keys() == everything
        assert all(verdict.told[kind] for kind in ("resume", "conflict", "rollback", "gc", "read"))


def test_threads(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "BATCH_BYTES", BATCH_BYTES)
    torture = Torture(path, tmp_path / "logs", 3, LONG_COMMITS // 5 if LONG else 100, choose_seed())
    verdict = torture.with_threads()
    torture.summarise(verdict)
    assert verdict.commits >= torture.commits
