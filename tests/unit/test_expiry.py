"""What ``expire`` says will be lost: just the commits that the next gc then deletes."""

from __future__ import annotations

import random

import pytest

from tests.unit.test_garbage import NOW, has_commit, write


def commits(repo) -> set[str]:
    with repo._environment.read() as txn:
        return {key.hex() for key, _ in txn.scan("commits", keys_only=True)}


@pytest.mark.parametrize("seed", range(8))
def test_what_it_lists_is_what_a_collection_deletes(repo, seed):
    generator = random.Random(seed)
    repo.branches.create("dev")
    for number in range(60):
        name = generator.choice(list(repo.branches))
        match generator.randrange(6):
            case 0:
                repo.branches.reset(name, generator.choice(sorted(commits(repo))))
            case 1:
                repo.branches.create(f"b{number}", at=name)
            case 2 if name != "main":
                repo.branches.delete(name)
            case 3 if number % 10 == 0:
                repo.tags.create(f"t{number}", at=name)
            case _:
                write(repo, b"%d" % number, name)
    before = commits(repo)
    rule = generator.choice([{"older_than": NOW}, {"keep_last": 2}, {"keep_last": 0}])
    rule["branch"] = generator.choice([None, "main"])
    dry = repo.expire(**rule, dry_run=True)
    assert commits(repo) == before
    report = repo.expire(**rule)
    assert (dry.lost, dry.lost_commits) == (report.lost, report.lost_commits)
    assert (dry.entries, dry.kept, dry.branches) == (report.entries, report.kept, report.branches)
    repo.gc()
    lost = {one.id for one in report.lost}
    assert lost == before - commits(repo)
    assert len(lost) == report.lost_commits


def test_it_names_them_by_branch_with_message_and_time(repo):
    kept = write(repo, b"kept")
    lost = repo.show(write(repo, b"lost"))
    repo.branches.reset("main", kept)
    report = repo.expire(keep_last=0, dry_run=True)
    (found,) = report.lost
    assert (found.branch, found.id, found.message) == ("main", lost.id, "write")
    assert found.time == lost.time
    assert f"main: {lost.id[:12]}" in str(report)
    assert "Only they kept 1 commits, which the next gc would then delete:" in str(report)
    assert has_commit(repo, lost.id)


def test_it_says_when_nothing_is_lost(repo):
    write(repo, b"1")
    write(repo, b"2")
    report = repo.expire(keep_last=0)
    assert (report.entries, report.lost) == (2, ())
    assert "No commit is lost" in str(report)


def test_a_long_list_is_cut_and_counted(repo):
    first = repo.branches["main"]
    for number in range(25):
        write(repo, b"%d" % number)
    repo.branches.reset("main", first)
    report = repo.expire(keep_last=0, dry_run=True)
    assert report.lost_commits == 25
    assert str(report).endswith("… and 5 more")
