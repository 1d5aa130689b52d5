"""A repository is killed before every system call, and every system call fails, once each.

The default takes some calls of each scenario, spread evenly, the first and the last among them;
``VZARR_TORTURE=1`` takes all. ``python -m tests.crash.table`` makes a table of what came out.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from tests.crash.runner import Runner, spread
from tests.crash.scenarios import SCENARIOS
from tests.crash.strace import Fault

TRIALS = 10**9 if "VZARR_TORTURE" in os.environ else 4
"""How many kills, and how many errors, each scenario gets."""


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with Runner(tmp_path_factory.mktemp("crash")) as found:
        if found.why_not:
            pytest.skip(
                "NOT TESTED: crashes and failures at every system call, because "
                f"{found.why_not}. Install strace and allow ptrace (in a container: "
                "--cap-add=SYS_PTRACE) to run these tests."
            )
        yield found


@pytest.mark.parametrize(("name", "how"), list(itertools.product(SCENARIOS, ("killed", "failing"))))
def test_every_call(runner: Runner, name: str, how: str):
    """Killed before a call, or one that fails: nothing is lost, and the work goes on."""
    kills, errors = runner.begin(name)
    faults = kills if how == "killed" else errors
    assert len({fault.call for fault in faults}) > 2
    _try_all(runner, faults)


def _try_all(runner: Runner, faults: list[Fault]) -> None:
    outcomes = [runner.attempt(fault) for fault in spread(faults, TRIALS)]
    assert "\n".join(str(each) for each in outcomes if each.problems) == ""
    missed = [str(each) for each in outcomes if each.verdict == "missed"]
    # The calls of threads beside others come now and then in another order.
    allowed = len(outcomes) // 4 if SCENARIOS[outcomes[0].scenario].thread == "all" else 0
    assert len(missed) <= allowed, missed


@pytest.mark.parametrize(
    ("name", "kills", "said"),
    [
        ("two commits in one step", True, "it shows"),
        ("a file left behind", True, "stray is left behind"),
        ("an error of another kind", False, "not one of ours"),
    ],
)
def test_flaws_are_found(runner: Runner, name: str, kills: bool, said: str):
    outcomes = [runner.attempt(fault) for fault in spread(runner.begin(name)[0 if kills else 1], 8)]
    assert said in "".join(map(str, outcomes))
