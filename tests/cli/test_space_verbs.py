"""``vzarr du`` and ``vzarr redact``, and what ``vzarr expire`` says will be lost."""

from __future__ import annotations

import numpy as np
import zarr

import vzarr


def test_du_prints_tables_and_facts(ocean, run, run_json):
    facts = run_json("du", ocean)
    assert {(one["name"], one["kind"]) for one in facts["refs"]} == {
        ("main", "branch"),
        ("dev", "branch"),
        ("v1.0", "tag"),
    }
    assert facts["nbytes"] == sum(facts[f"{kind}_bytes"] for kind in ("chunk", "node", "commit"))
    (sst,) = facts["arrays"]
    assert (sst["path"], sst["logical"], sst["chunks"]) == ("sst", 72, 6)
    assert [one["message"] for one in facts["commit_usage"]][:2] == [
        "mend a corner",
        "append a step",
    ]
    text = run("du", ocean, "sst", "--ref", "v1.0", "--commits", 1).stdout
    assert "array in v1.0" in text
    assert f"{facts['file_bytes']:,}" in text
    assert "append a step" not in text


def test_du_of_what_is_not_there_is_a_problem(ocean, run):
    assert "nix" in run("du", ocean, "nix", code=1).stderr
    run("du", ocean, "--commits", -1, code=2)


def test_redact_tells_first_and_then_erases(ocean, run, run_json):
    arguments = ("redact", ocean, "sst", "--region", "1:, 4", "--reason", "request 7")
    before = ocean.read_bytes()
    text = run(*arguments, "--dry-run").stdout
    assert text.startswith("Would erase 2 chunks")
    assert ocean.read_bytes() == before
    facts = run_json(*arguments)
    assert (facts["changed"], facts["branches"], facts["tags"]) == (3, ["dev", "main"], ["v1.0"])
    assert len(facts["rewritten"]) == 3
    assert facts["collected"]["commits"] == 0
    with vzarr.open(ocean, "r") as repo:
        assert repo.reflog("main")[0].operation == "redact sst: request 7"
        values = zarr.open_array(repo.store("dev"), path="sst", mode="r")[...]
    expected = np.arange(12.0).reshape(2, 6)
    expected = np.vstack([expected, np.full((1, 6), 5.0)])
    expected[0, :3] = -1
    expected[1:, 4] = 0
    np.testing.assert_array_equal(values, expected)
    assert run(*arguments).stdout.startswith("Nothing to erase")
    assert run("redact", ocean, "sst").stdout.rstrip().endswith("keep what they have.")


def test_redact_tells_usage_from_problems(ocean, run):
    run("redact", ocean, code=2)
    run("redact", ocean, "sst", "--region", "a", code=2)
    assert (
        "count from the beginning" in run("redact", ocean, "sst", "--region", "-1", code=1).stderr
    )
    assert "nix" in run("redact", ocean, "nix", code=1).stderr


def test_expire_says_which_commits_will_be_lost_before_it_does(ocean, run, run_json):
    with vzarr.open(ocean, author="Ada <ada@example.org>") as repo:
        lost = [repo.branches["dev"]]
        repo.branches.reset("dev", "main~1")
        for number in range(2):
            with repo.transaction("dev", f"try {number}") as store:
                zarr.open_array(store, path="sst")[0, 0] = 7 + number
            lost.append(repo.branches["dev"])
        repo.branches.delete("dev")
    arguments = ("expire", ocean, "--keep-last", 1, "--older-than", 0)
    text = run(*arguments, "--dry-run").stdout
    assert "Only they kept 3 commits, which the next gc would then delete:" in text
    for commit in lost:
        assert commit[:12] in text
    assert "dev: " in text
    assert "mend a corner" in text
    facts = run_json(*arguments)
    assert facts["lost_commits"] == 3
    assert {(one["branch"], one["id"]) for one in facts["lost"]} == {("dev", one) for one in lost}
    assert run_json("gc", ocean)["commits"] == 3
