"""Imports of Zarr directories: byte for byte, in one commit, and again without one."""

from __future__ import annotations

import errno
import os
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr

import vzarr
from tests.processes import Child
from tests.transfer import sources
from tests.transfer.sources import Stop, files_of, make_v2, make_v3, unfinished, values_of
from vzarr import changes, directories, importing
from vzarr.directories import DirectorySource
from vzarr.environment import Environment
from vzarr.errors import (
    AlreadyExistsError,
    BusyError,
    ConflictError,
    FullError,
    InvalidInputError,
    NotFoundError,
    ReadOnlyError,
    RefNotFoundError,
    StorageError,
)

# ── what is taken over ───────────────────────────────────────────────────────────────────────────


def test_all_is_taken_over_byte_for_byte(repo, source):
    before = repo.branches["main"]
    report = repo.import_from(source)
    assert values_of(repo) == files_of(source)
    assert report.commit == repo.branches["main"]
    commit = repo.show("main")
    assert commit.parents == (before,)
    assert commit.message == "import sea.zarr"
    assert commit.metadata["import"]["source"] == str(source)
    files = files_of(source)
    assert (report.arrays, report.groups, report.chunks, report.files) == (2, 2, 18, 1)
    assert report.nbytes == sum(map(len, files.values()))
    assert report.new_bytes == sum(len(data) for data in set(files.values()))
    assert (report.same, report.skipped, report.resumed, report.consumed) == (0, 0, False, False)
    assert f"2 arrays, 2 groups and 18 chunks of {source}" in str(report)


@pytest.mark.parametrize("separator", [".", "/"])
def test_format_2(repo, tmp_path, separator):
    source = make_v2(tmp_path / "old.zarr", separator)
    report = repo.import_from(str(source), path="in/side")
    assert values_of(repo, "in/side") == files_of(source)
    assert (report.arrays, report.groups, report.chunks) == (1, 1, 6)
    group = zarr.open_group(repo.store("main"), mode="r")
    assert group.metadata.zarr_format == 2
    assert np.array_equal(group["in/side/t"], np.arange(36).reshape(6, 6))
    assert group["in/side/t"].attrs["units"] == "K"


def test_shards_and_odd_names(repo, tmp_path):
    source = tmp_path / "odd.zarr"
    array = zarr.create_array(
        str(source), name="ä ö/0", shape=(40, 40), chunks=(5, 5), shards=(20, 20), dtype="i4"
    )
    array[3:30, :33] = 7
    (source / "ä ö" / "0" / "c.note").write_bytes(b"")
    report = repo.import_from(source)
    assert values_of(repo) == files_of(source)
    assert (report.chunks, report.files) == (4, 1)


def test_a_single_array_and_a_scalar(repo, tmp_path):
    array = zarr.create_array(str(tmp_path / "a.zarr"), shape=(), dtype="f4")
    array[...] = 4
    report = repo.import_from(tmp_path / "a.zarr", path="deep/down/a")
    assert (report.arrays, report.groups, report.chunks) == (1, 0, 1)
    group = zarr.open_group(repo.store("main"), mode="r")
    assert group["deep/down/a"][()] == 4
    assert [path for path, _ in group["deep"].members()] == ["down"]


def test_consolidated_metadata_are_left_out(repo, tmp_path):
    plain = make_v3(tmp_path / "plain.zarr")
    with warnings.catch_warnings(action="ignore"):
        zarr.consolidate_metadata(make_v3(tmp_path / "three.zarr").as_posix())
        zarr.consolidate_metadata(make_v2(tmp_path / "two.zarr").as_posix())
    assert b"consolidated" in (tmp_path / "three.zarr" / "zarr.json").read_bytes()
    assert repo.import_from(tmp_path / "three.zarr", path="three").skipped == 0
    # As if nobody had consolidated it.
    assert values_of(repo, "three") == files_of(plain)
    report = repo.import_from(tmp_path / "two.zarr", path="two")
    assert report.skipped == 1
    kept = files_of(tmp_path / "two.zarr")
    del kept[".zmetadata"]
    assert values_of(repo, "two") == kept


def test_what_a_killed_writer_left_is_skipped(repo, source):
    (source / "raw" / "c" / f"3.{'0a' * 16}.partial").write_bytes(b"half")
    kept = files_of(source)
    kept = {key: data for key, data in kept.items() if not key.endswith(".partial")}
    assert repo.import_from(source).skipped == 1
    assert values_of(repo) == kept


def test_links_are_followed(repo, source, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (source / "raw" / "c").rename(elsewhere)
    (source / "raw" / "c").symlink_to(elsewhere, target_is_directory=True)
    repo.import_from(source)
    assert values_of(repo)["raw/c/3"] == (elsewhere / "3").read_bytes()
    assert len(values_of(repo)) == 23


def test_large_chunks_come_through_buffers_that_are_used_again(repo, tmp_path):
    source = tmp_path / "large.zarr"
    array = zarr.create_array(
        str(source), shape=(1 << 20,), chunks=(1 << 16,), dtype="f8", compressors=None
    )
    array[:] = np.random.default_rng(1).random(1 << 20)
    repo.import_from(source)
    assert values_of(repo) == files_of(source)


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_progress(path, source, durability):
    told: list[tuple[int, int, str]] = []
    with vzarr.open(path, durability=durability) as repo:
        repo.import_from(source, progress=lambda *args: told.append(args))
    assert {what for *_, what in told} == {"look", "import", "look again"}
    done = {what: (done, total) for done, total, what in told}
    pieces = [data for key, data in files_of(source).items() if not key.endswith("zarr.json")]
    assert done["import"] == (sum(map(len, pieces)),) * 2


def test_message_metadata_author_and_branch(repo, source):
    repo.branches.create("dev")
    report = repo.import_from(
        source, branch="dev", message="got it", metadata={"who": 1}, author="A <a@b>"
    )
    commit = repo.show("dev")
    assert (commit.id, commit.message, commit.author) == (report.commit, "got it", "A <a@b>")
    assert commit.metadata["who"] == 1
    assert values_of(repo) == {}


# ── what is there already ────────────────────────────────────────────────────────────────────────


def test_again_there_is_nothing_to_commit(repo, source):
    first = repo.import_from(source, path="sea")
    again = repo.import_from(source, path="sea")
    assert again.commit is None
    assert repo.branches["main"] == first.commit
    assert (again.same, again.new_bytes) == (len(files_of(source)), 0)
    assert str(again).startswith("Nothing to commit: sea of branch main has all of")
    assert repo.import_from(source, path="sea", overwrite=True).commit is None
    # Equal data elsewhere are stored once.
    assert repo.import_from(source, path="twin").new_bytes == 0
    assert [each for each in repo.sessions() if each.checkpointed] == []


@pytest.mark.parametrize("change", ["chunk", "document", "more here", "more there", "a file"])
def test_another_thing_at_the_path_is_kept(repo, source, change):
    repo.import_from(source, path="sea")
    if change == "chunk":
        (source / "raw" / "c" / "3").write_bytes(b"x" * 800)
    elif change == "document":
        sources.edit_json(source / "zarr.json", attributes={})
    elif change == "more here":
        (source / "new").write_bytes(b"1")
    elif change == "more there":
        (source / "raw" / "c" / "3").unlink()
    else:
        (source / "README.txt").write_text("another")
    before = repo.branches["main"]
    with pytest.raises(AlreadyExistsError, match="overwrite=True") as caught:
        repo.import_from(source, path="sea")
    assert caught.value.name == "sea"
    assert repo.branches["main"] == before
    report = repo.import_from(source, path="sea", overwrite=True)
    assert report.commit == repo.branches["main"]
    assert values_of(repo, "sea") == files_of(source)


def test_overwriting_the_root_replaces_all(repo, source, tmp_path):
    repo.import_from(make_v2(tmp_path / "old.zarr"))
    with pytest.raises(AlreadyExistsError, match="the root of branch 'main'"):
        repo.import_from(source)
    repo.import_from(source, overwrite=True)
    assert values_of(repo) == files_of(source)


def test_a_path_inside_an_array(repo, source):
    repo.import_from(source)
    with pytest.raises(InvalidInputError, match="raw of branch 'main' is an array"):
        repo.import_from(source, path="raw/inside")


def test_another_writer_at_the_same_place(repo, source):
    def write(done: int, total: int, what: str) -> None:
        if what == "look again" and "other" not in values_of(repo, "sea"):
            session = repo.session("main")
            session.set("sea/raw/zarr.json", b"{}")
            session.set("sea/other", b"1")
            session.commit("in between")

    with pytest.raises(ConflictError, match="overwrite=True") as caught:
        repo.import_from(source, path="sea", progress=write)
    assert caught.value.conflicts
    assert repo.show("main").message == "in between"
    repo.import_from(source, path="sea", overwrite=True)
    assert values_of(repo, "sea") == files_of(source)


@pytest.mark.parametrize("when", ["before", "between"])
def test_another_writer_of_other_elements(repo, source, monkeypatch, when):
    """A merge would put both chunks together, which then is the one of neither."""
    theirs = np.zeros(100)
    # What is zero in the source is where nothing is written, too.
    theirs[0] = 7

    def write(*_: object) -> None:
        if not values_of(repo, "sea"):
            session = repo.session("main")
            for key in ("zarr.json", "raw/zarr.json"):
                session.set(f"sea/{key}", (source / key).read_bytes())
            session.set("sea/raw/c/0", theirs.tobytes())
            session.commit("in between")

    with monkeypatch.context() as patch:
        if when == "before":
            patch.setattr(DirectorySource, "require_unchanged", write)
        else:
            real = vzarr.Session.rebase

            def rebase(self, *arguments):
                real(self, *arguments)
                write()

            patch.setattr(vzarr.Session, "rebase", rebase)
        with pytest.raises(ConflictError, match="sea/raw/c/0 has become another"):
            repo.import_from(source, path="sea")
    assert values_of(repo, "sea")["raw/c/0"][:8] == theirs.tobytes()[:8]
    with monkeypatch.context() as patch:
        patch.setattr(DirectorySource, "require_unchanged", write)
        repo.branches.reset("main", "main~2" if when == "between" else "main~1")
        repo.import_from(source, path="sea", overwrite=True)
    assert repo.show("main~1").message == "in between"
    assert values_of(repo, "sea") == files_of(source)


def test_another_writer_elsewhere(repo, source):
    def write(done: int, total: int, what: str) -> None:
        if what == "look again" and not values_of(repo):
            session = repo.session("main")
            session.set("other", b"1")
            session.commit("in between")

    repo.import_from(source, path="sea", progress=write)
    assert values_of(repo, "sea") == files_of(source)
    assert values_of(repo)["other"] == b"1"


# ── bad input ────────────────────────────────────────────────────────────────────────────────────


def refused(repo: vzarr.Repository, source: object, error: type[Exception], match: str, **options):
    """See that an import is refused, and leaves nothing."""
    before, sizes = repo.branches["main"], repo.info().chunks
    with pytest.raises(error, match=match):
        repo.import_from(source, **options)
    assert repo.branches["main"] == before
    assert unfinished(repo) == []
    assert repo.info().chunks == sizes


def test_missing_or_not_a_zarr(repo, tmp_path):
    refused(repo, tmp_path / "none.zarr", NotFoundError, "there is nothing at")
    refused(repo, tmp_path, InvalidInputError, "is no Zarr: it has no zarr.json")
    make_v3(tmp_path / "in" / "side")
    refused(repo, tmp_path / "in", InvalidInputError, "there is one at 'side' in it")
    (tmp_path / "file").write_text("x")
    refused(repo, tmp_path / "file", InvalidInputError, "nothing that can be imported")
    (tmp_path / "empty").touch()
    refused(repo, tmp_path / "empty", InvalidInputError, "nothing that can be imported")
    for wrong in (3, None, b"x", ""):
        refused(repo, wrong, InvalidInputError, "a path")


@pytest.mark.parametrize("document", ["zarr.json", "deep/coded/zarr.json"])
@pytest.mark.parametrize("text", ["", '{"zarr_format": 3, "node_ty', "{}", '{"zarr_format": 3}'])
def test_documents_that_are_half_written(repo, source, document, text):
    (source / document).write_text(text)
    refused(repo, source, InvalidInputError, f"{document} of .* is only half-written")


def test_format_2_documents_that_are_half_written(repo, tmp_path):
    source = make_v2(tmp_path / "old.zarr")
    whole = (source / "t" / ".zarray").read_bytes()
    (source / "t" / ".zarray").write_bytes(whole[:-20])
    refused(repo, source, InvalidInputError, "t/.zarray of .* is only half-written")
    (source / "t" / ".zarray").write_bytes(whole)
    (source / ".zgroup").write_text("")
    refused(repo, source, InvalidInputError, ".zgroup of .* is only half-written")


@pytest.mark.parametrize(
    ("chunk", "nbytes", "why"),
    [
        ("raw/c/3", 799, "799 bytes, not 800"),
        ("raw/c/3", 0, "0 bytes"),
        ("deep/coded/c/0/0", 0, "empty"),
    ],
)
def test_chunks_that_are_half_written(repo, source, chunk, nbytes, why):
    whole = (source / chunk).read_bytes()
    (source / chunk).write_bytes(whole[:nbytes])
    before = repo.branches["main"]
    with pytest.raises(InvalidInputError, match=f"{chunk} of .* is only half-written .*{why}"):
        repo.import_from(source)
    assert repo.branches["main"] == before
    (source / chunk).write_bytes(whole)
    repo.import_from(source)
    assert values_of(repo) == files_of(source)


def test_names_and_things_that_no_repository_holds(repo, source, tmp_path):
    os.mkfifo(source / "pipe")
    refused(repo, source, InvalidInputError, "pipe of .* is neither a file nor a directory")
    (source / "pipe").unlink()
    (source / "loop").symlink_to(source, target_is_directory=True)
    refused(repo, source, (InvalidInputError, StorageError), "loop|links")
    (source / "loop").unlink()
    (source / os.fsdecode(b"\xff")).write_text("x")
    refused(repo, source, InvalidInputError, "not valid Unicode: rename it")
    for path in ("a//b", "../b", "a/.", ".vzarr-import/x"):
        refused(repo, tmp_path, InvalidInputError, "path=", path=path)


@pytest.mark.parametrize("consume", [False, True])
def test_a_repository_inside_of_its_source(source, consume):
    with vzarr.open(source / "in.vzarr") as repo:
        before = files_of(source)
        with pytest.raises(InvalidInputError, match="would be imported into itself"):
            repo.import_from(source, consume=consume)
        assert files_of(source).keys() == before.keys()


def test_branches_that_are_none(repo, source, path):
    refused(repo, source, RefNotFoundError, "nowhere", branch="nowhere")
    repo.tags.create("v1")
    refused(repo, source, ReadOnlyError, "no branch", branch="v1")
    with vzarr.open(path, "r") as reader:
        refused(reader, source, ReadOnlyError, "mode 'r'")


def test_a_directory_that_cannot_be_read(repo, source, monkeypatch):
    real = os.open

    def refuse(path, *args, **options):
        if str(path).endswith("raw/c/3"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *args, **options)

    monkeypatch.setattr(directories.os, "open", refuse)
    with pytest.raises(StorageError, match="raw/c/3: Permission denied") as caught:
        repo.import_from(source)
    assert caught.value.errno == errno.EACCES


# ── a source that changes ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("change", ["another", "longer", "more", "less", "document", "same size"])
def test_a_source_that_changes_meanwhile(repo, source, change):
    def tamper(done: int, total: int, what: str) -> None:
        if what == "look again" and not done:
            chunk = source / "raw" / "c" / "3"
            if change == "less":
                chunk.unlink(missing_ok=True)
            elif change == "more":
                (source / "raw" / "c" / "99").write_bytes(b"x" * 800)
            elif change == "document":
                sources.edit_json(source / "zarr.json", attributes={"new": 1})
            else:
                chunk.write_bytes(b"x" * (801 if change == "longer" else 800))

    before = repo.branches["main"]
    with pytest.raises(ConflictError, match="was changed while it was imported"):
        repo.import_from(source, progress=tamper)
    assert repo.branches["main"] == before


def test_a_chunk_that_goes_or_shrinks_while_it_is_read(repo, source, monkeypatch):
    real = DirectorySource.read

    def late(self, piece):
        if piece.keys == ("raw/c/5",):
            (source / "raw" / "c" / "5").unlink()
        return real(self, piece)

    monkeypatch.setattr(DirectorySource, "read", late)
    with pytest.raises(ConflictError, match=r"raw/c/5 of .* was changed"):
        repo.import_from(source)


# ── going on ─────────────────────────────────────────────────────────────────────────────────────


def stopped(repo: vzarr.Repository, source: Path, monkeypatch, **options) -> None:
    """Let an import end after all is read and saved."""

    def stop(done: int, total: int, what: str) -> None:
        if what == "look again":
            raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(importing, "_CHECKPOINT_VALUES", 1)
        repo.import_from(source, progress=stop, **options)
    assert len(unfinished(repo)) == 1


def reads(monkeypatch) -> list[str]:
    """List which pieces are read from here on."""
    found: list[str] = []
    real = DirectorySource.read

    def read(self, piece):
        found.extend(piece.keys)
        return real(self, piece)

    monkeypatch.setattr(DirectorySource, "read", read)
    return found


def test_what_was_saved_is_not_read_again(repo, source, monkeypatch):
    stopped(repo, source, monkeypatch, path="sea")
    assert values_of(repo) == {}
    sources.age(source, monkeypatch)
    again = reads(monkeypatch)
    report = repo.import_from(source, path="sea")
    # Documents are; they are few.
    assert {key.rpartition("/")[2] for key in again} == {"zarr.json"}
    assert report.resumed
    assert (report.new_bytes, report.chunks) == (0, 18)
    assert values_of(repo, "sea") == files_of(source)
    assert unfinished(repo) == []
    assert len(repo.log()) == 2
    assert repo.import_from(source, path="sea").resumed is False


def test_what_was_touched_since_is_read_again(repo, source, monkeypatch):
    stopped(repo, source, monkeypatch)
    (source / "raw" / "c" / "3").write_bytes(b"y" * 800)
    (source / "raw" / "c" / "4").unlink()
    (source / "raw" / "c" / "40").write_bytes(b"z" * 800)
    again = reads(monkeypatch)
    assert repo.import_from(source).resumed
    assert "raw/c/3" in again
    assert values_of(repo) == files_of(source)


def test_another_source_or_path_does_not_go_on_with_it(repo, source, tmp_path, monkeypatch):
    stopped(repo, source, monkeypatch)
    assert not repo.import_from(source, path="there").resumed
    other = make_v3(tmp_path / "other.zarr")
    assert not repo.import_from(other, path="other").resumed
    assert len(unfinished(repo)) == 1


def test_one_that_runs_is_not_run_twice(repo, source, path):
    def work(pipe):
        def wait(done: int, total: int, what: str) -> None:
            if what == "look again" and not done:
                pipe.send("saved")
                pipe.recv()

        importing._CHECKPOINT_VALUES = 1
        with vzarr.open(path, "r+") as other:
            return other.import_from(source, progress=wait).resumed

    child = Child(work)
    assert child.receive() == "saved"
    with pytest.raises(BusyError, match="running already") as caught:
        repo.import_from(source)
    assert caught.value.holder is not None
    assert caught.value.holder.pid == child.pid
    child.pipe.send(None)
    assert child.result() is False
    assert repo.import_from(source).commit is None


@pytest.mark.parametrize("number", range(1, 7))
def test_a_full_disk(repo, source, monkeypatch, number):
    """Whatever write meets it: nothing is half-done, and the next run goes on."""
    monkeypatch.setattr(changes, "BATCH_BYTES", 4000)
    monkeypatch.setattr(importing, "_CHECKPOINT_VALUES", 6)
    monkeypatch.setattr(importing, "_PIECES_AT_ONCE", 1)
    real, count, lock = Environment.write, 0, threading.Lock()

    def write(self, **options):
        nonlocal count
        with lock:
            count += 1
        if count >= number:
            raise FullError("no room: make room")
        return real(self, **options)

    before = repo.branches["main"]
    with monkeypatch.context() as patch:
        patch.setattr(Environment, "write", write)
        with pytest.raises(FullError):
            repo.import_from(source)
    assert repo.branches["main"] == before
    repo.import_from(source)
    assert values_of(repo) == files_of(source)


def test_it_is_killed_while_it_reads(repo, source, path, monkeypatch):
    """At each piece: what was saved is there, and the next run has all of it."""
    numbers = range(2, 20) if "VZARR_TORTURE" in os.environ else (2, 7, 19)
    for number in numbers:

        def work(pipe, number=number):
            real, count = DirectorySource.read, 0

            def read(self, piece):
                nonlocal count
                count += not piece.keys[0].endswith("zarr.json")
                if count == number:
                    os.kill(os.getpid(), 9)
                return real(self, piece)

            DirectorySource.read, DirectorySource.workers = read, 1
            changes.BATCH_BYTES, importing._CHECKPOINT_VALUES = 1000, 3
            importing._PIECES_AT_ONCE = 1
            with vzarr.open(path, "r+") as other:
                other.import_from(source, path=f"at/{number}")

        Child(work).reap()
        # Reading runs ahead of saving, by three pieces at most.
        saved = len(unfinished(repo))
        assert saved == 1 if number > 6 else saved in (0, 1)
        report = repo.import_from(source, path=f"at/{number}")
        assert report.resumed == saved
        assert values_of(repo, f"at/{number}") == files_of(source)
        assert repo.show("main").id == report.commit
        assert unfinished(repo) == []
