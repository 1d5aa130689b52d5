"""``vzarr.mapping``: keys and bytes for code that wants a mapping."""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import MutableMapping

import numpy as np
import pytest
import zarr
from dask.base import tokenize
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

import vzarr

VALUES = {"a/zarr.json": b"{}", "a/c/0": b"zero", "a/c/1": b"one", "file": b"", "0/.zgroup": b"{ }"}


@pytest.fixture
def filled(repo):
    with repo.transaction("main", "fill") as store:
        vzarr.mapping(store).update(VALUES)
    return repo


def test_it_is_a_mapping_like_a_dict(filled):
    mapping = filled.mapping("main")
    assert isinstance(mapping, MutableMapping)
    assert mapping == VALUES
    assert dict(mapping) == VALUES
    assert len(mapping) == len(VALUES)
    assert sorted(mapping) == sorted(VALUES)
    assert sorted(mapping.values()) == sorted(VALUES.values())
    assert "file" in mapping
    assert "a" not in mapping
    assert 3 not in mapping
    assert mapping.get("nix") is None
    assert mapping.get(b"file", 1) == 1
    assert all(type(value) is bytes for value in mapping.values())


@pytest.mark.parametrize("key", ["nix", "", "a", "a/c", 3, None])
def test_a_missing_key_is_a_key_error(filled, key):
    with pytest.raises(KeyError) as caught:
        filled.mapping("main")[key]
    assert isinstance(caught.value, vzarr.NotFoundError)
    assert caught.value.name == str(key)


def test_a_commit_is_only_read(filled):
    mapping = filled.mapping("main")
    assert mapping.read_only
    for change in (
        lambda: mapping.update(a=b"0"),
        lambda: mapping.__setitem__("a", b"0"),
        lambda: mapping.pop("file"),
        mapping.clear,
        mapping.rmdir,
    ):
        with pytest.raises(vzarr.ReadOnlyError, match="only reads"):
            change()
    assert mapping == VALUES


def test_a_transaction_is_written_through_it(filled):
    with filled.transaction("main", "edit") as store:
        mapping = vzarr.mapping(store)
        assert not mapping.read_only
        mapping["new"] = bytearray(b"bytes")
        mapping["array"] = np.arange(6, dtype="u1").reshape(2, 3).T
        mapping["view"] = memoryview(b"abcdef")[::2]
        del mapping["file"]
        assert mapping.pop("a/c/0") == b"zero"
        assert mapping.setdefault("a/c/1", b"x") == b"one"
        mapping.rmdir("0")
        assert filled.mapping("main") == VALUES
    found = filled.mapping("main")
    expected = {"a/zarr.json": b"{}", "a/c/1": b"one", "new": b"bytes", "view": b"ace"}
    assert found == expected | {"array": bytes([0, 3, 1, 4, 2, 5])}
    assert filled.log("main", limit=1)[0].message == "edit"


def test_what_is_written_is_copied(repo):
    with repo.transaction() as store:
        value = bytearray(b"before")
        vzarr.mapping(store)["a"] = value
        value[:] = b"after!"
    assert repo.mapping("main")["a"] == b"before"


def test_all_or_none_of_several_are_taken(repo):
    with repo.transaction() as store:
        mapping = vzarr.mapping(store)
        for bad in ({"a": b"0", "b": "text"}, {"a": b"0", "": b"0"}, {"a": b"0", 3: b"0"}):
            with pytest.raises(vzarr.InvalidInputError):
                mapping.setitems(bad)
        assert not mapping
        mapping["a"] = b"0"
        with pytest.raises(vzarr.NotFoundError, match="nix"):
            mapping.delitems(["a", "nix"])
        assert "a" in mapping
        mapping.delitems(["a"])
        mapping.update()
        assert not mapping


def test_many_at_once_as_fsspec_gives_them(filled):
    mapping = filled.mapping("main")
    assert mapping.getitems(["file", "a/c/1"]) == {"file": b"", "a/c/1": b"one"}
    assert mapping.getitems(["file", "nix"], on_error="omit") == {"file": b""}
    found = mapping.getitems(["nix"], on_error="return")
    assert isinstance(found["nix"], KeyError)
    with pytest.raises(KeyError):
        mapping.getitems(["nix"])
    with pytest.raises(vzarr.InvalidInputError, match="on_error="):
        mapping.getitems(["nix"], on_error="ignore")


def test_names_and_sizes_as_stores_of_zarr_2_gave_them(filled):
    mapping = filled.mapping("main")
    assert mapping.listdir() == ["0", "a", "file"]
    assert mapping.listdir("/a/") == ["c", "zarr.json"]
    assert (mapping.getsize("a/c/0"), mapping.getsize("a"), mapping.getsize()) == (4, 9, 12)


@pytest.mark.parametrize("each", [True, "each"])
def test_with_autocommit_each_write_is_a_commit(filled, each):
    mapping = filled.mapping("main", autocommit=each)
    mapping.update({"one": b"1", "two": b"2"})
    assert filled.log("main", limit=1)[0].message == "write one and 1 more"
    assert filled.mapping("main")["two"] == b"2"
    del mapping["one"]
    mapping.rmdir("a")
    with filled.transaction("main", "another's") as store:
        vzarr.mapping(store)["three"] = b"3"
    assert mapping["three"] == b"3"
    assert sorted(mapping) == ["0/.zgroup", "file", "three", "two"]
    messages = [commit.message for commit in filled.log("main")]
    assert messages[0] == "another's"
    assert ("delete one" in messages) == (each == "each")
    mapping.clear()
    assert not filled.mapping("main")


def test_a_file_is_opened_for_it_alone(filled, path):
    filled.tags.create("v1")
    with filled.transaction("main", "more") as store:
        vzarr.mapping(store)["more"] = b"1"
    filled.close()
    with vzarr.mapping(path) as mapping:
        assert mapping["more"] == b"1"
        assert repr(mapping) == f"<vzarr.VzarrMapping of {mapping.store!r}>"
    with vzarr.mapping(str(path), ref="v1") as mapping:
        assert mapping == VALUES
    with vzarr.mapping(path, autocommit=True) as mapping:
        mapping["more"] = b"2"
    with vzarr.open(path, "r") as repo:
        assert vzarr.mapping(repo, ref="main")["more"] == b"2"


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(vzarr.NotFoundError, match="there is no file"):
        vzarr.mapping(tmp_path / "nix.vzarr")
    with vzarr.mapping(tmp_path / "new.vzarr", autocommit=True) as mapping:
        mapping["a"] = b"0"
        assert len(mapping) == 1


def test_bad_sources(repo):
    for source in ("", 3, None, {}, b"path"):
        with pytest.raises(vzarr.InvalidInputError, match="a mapping is made of"):
            vzarr.mapping(source)
    for options in ({"ref": "main"}, {"autocommit": True}):
        with pytest.raises(vzarr.InvalidInputError, match="for files and repositories"):
            vzarr.mapping(repo.session("main"), **options)
    with pytest.raises(vzarr.RefNotFoundError):
        repo.mapping("nix")


def test_the_current_session_is_written_until_its_commit(repo):
    repo.mapping()["a"] = b"0"
    assert not repo.mapping("main")
    repo.commit("a")
    assert repo.mapping("main") == {"a": b"0"}


def test_a_fork_is_written_through_it(repo):
    session = repo.session("main")
    session.set("old", b"0")
    fork = session.fork()
    mapping = pickle.loads(pickle.dumps(vzarr.mapping(fork)))
    mapping["new"] = b"1"
    del mapping["old"]
    assert dict(mapping) == {"new": b"1"}
    mapping.rmdir()
    assert len(mapping) == 0
    mapping["new"] = b"2"
    session.merge_fork(fork)
    assert vzarr.mapping(session) == {"new": b"2"}
    session.commit("forked")


def test_it_is_pickled_as_its_store(filled):
    mapping = filled.mapping("main")
    again = pickle.loads(pickle.dumps(mapping))
    assert again == mapping == copy.copy(mapping)
    assert tokenize(again) == tokenize(mapping)
    again.close()


def test_zarr_reads_and_writes_the_store_below(repo):
    with repo.transaction("main", "array") as store:
        mapping = vzarr.mapping(store)
        zarr.save_array(mapping.store, np.arange(10), path="x")
    assert zarr.open_array(repo.mapping("main").store, path="x", mode="r")[9] == 9


KEYS = st.sampled_from(["a", "b", "a/b", "c/0/1", "x/zarr.json", "x/c/0", "0.0", "é"])


class Dict(RuleBasedStateMachine):
    """A mapping on a session beside a dict."""

    @initialize()
    def begin(self):
        self.directory = tempfile.TemporaryDirectory()
        self.repo = vzarr.open(f"{self.directory.name}/test.vzarr")
        self.mapping = self.repo.mapping()
        self.dict: dict[str, bytes] = {}

    @rule(key=KEYS, value=st.binary(max_size=9))
    def set(self, key, value):
        self.mapping[key] = value
        self.dict[key] = value

    @rule(key=KEYS)
    def pop(self, key):
        assert self.mapping.pop(key, None) == self.dict.pop(key, None)

    @rule(values=st.dictionaries(KEYS, st.binary(max_size=9), max_size=4))
    def update(self, values):
        self.mapping.update(values)
        self.dict.update(values)

    @rule(key=KEYS)
    def delete(self, key):
        for each in (self.mapping, self.dict):
            try:
                del each[key]
            except KeyError:
                assert key not in self.dict

    @rule()
    def clear(self):
        self.mapping.clear()
        self.dict.clear()

    @rule()
    def commit(self):
        if self.repo.status():
            self.repo.commit("so far")

    @rule(key=KEYS)
    def look(self, key):
        assert self.mapping.get(key) == self.dict.get(key)
        assert (key in self.mapping) == (key in self.dict)
        assert len(self.mapping) == len(self.dict)
        assert dict(self.mapping) == self.dict
        assert self.mapping.getsize() == sum(map(len, self.dict.values()))

    def teardown(self):
        if hasattr(self, "repo"):
            self.repo.discard()
            self.repo.close()
            self.directory.cleanup()


TestDict = Dict.TestCase
TestDict.settings = settings(max_examples=20, stateful_step_count=25)
