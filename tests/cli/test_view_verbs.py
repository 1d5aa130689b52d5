"""``ls``, ``view`` and ``cat``: what is in a snapshot."""

from __future__ import annotations

import base64
import json
import struct

import numpy as np
import pytest
import zarr

import vzarr
from tests.cli.test_process import on_terminal
from vzarr import sampling

ISSUES = "ignore::zarr.errors.UnstableSpecificationWarning"


@pytest.fixture
def seas(path):
    """Groups, and arrays of none to four dimensions."""
    with vzarr.open(path, author="Ada") as repo:
        with repo.transaction("main", "make") as store:
            root = zarr.create_group(store)
            group = root.create_group("north")
            sst = group.create_array(
                "sst", shape=(2, 4, 6), chunks=(1, 2, 3), dtype="f4", fill_value=np.nan,
                dimension_names=["time", "lat", "lon"],
                attributes={"units": "K", "long_name": "Sea Surface Temperature"},
            )  # fmt: skip
            sst[:] = np.arange(48).reshape(2, 4, 6)
            sst[1, 0, :3] = np.nan
            group.create_array("time", shape=(5,), dtype="i8")[:] = [0, 10, 5, 20, 20]
            group.create_array("one", shape=(), dtype="i2")[...] = 7
            group.create_array("deep", shape=(2, 2, 2, 2), dtype="u1")[:] = 1
            store.session.set("north/notes.txt", b"a note\n")
        with repo.transaction("main", "later") as store:
            zarr.open_array(store, path="north/time")[0] = 1
    return path


# ── ls ───────────────────────────────────────────────────────────────────────────────────────────


def test_ls(seas, run):
    assert run("ls", seas).stdout == "north/\n"
    assert run("ls", seas, "/north/").stdout.split() == ["deep", "notes.txt", "one", "sst", "time"]
    assert run("ls", seas, "north/sst").stdout == "sst\n"
    assert run("ls", seas, "--ref", "main~2").stdout == ""
    assert "nothing at 'south'" in run("ls", seas, "south", code=1).stderr


def test_ls_long(seas, run):
    rows = [line.split() for line in run("ls", seas, "north", "-l").stdout.splitlines()]
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name["sst"][:4] == ["2x4x6", "float32", "1x2x3", "8"]
    assert by_name["one"][:4] == ["()", "int16", "()", "1"]
    assert by_name["notes.txt"] == ["-", "-", "-", "1", "7"]
    (row,) = run("ls", seas, "-l").stdout.splitlines()
    # Documents of a group and four arrays, 8 + 1 + 1 + 1 chunks, a file.
    assert row.split()[:5] == ["north/", "-", "-", "-", "17"]


def test_ls_json(seas, run_json):
    with vzarr.open(seas, "r") as repo:
        head, first = repo.branches["main"], repo.show("main~1").id
    document = run_json("ls", seas, "north", "-c")
    assert (document["path"], document["ref"], document["commit"]) == ("north", "main", head)
    members = {each["name"]: each for each in document["members"]}
    assert members["time"]["last_commit"] == head
    assert members["sst"]["last_commit"] == first
    assert members["sst"]["path"] == "north/sst"
    assert members["sst"]["shape"] == [2, 4, 6]
    assert members["sst"]["stored"] == 8
    assert members["notes.txt"]["kind"] == "file"
    assert run_json("ls", seas)["members"][0]["kind"] == "group"


# ── view ─────────────────────────────────────────────────────────────────────────────────────────


def test_view_in_a_pipe(seas, run):
    lines = run("view", seas, "north/sst", "--width", 6).stdout.splitlines()
    assert lines[0] == "north/sst  Sea Surface Temperature [K]"
    assert lines[1] == "[1, 0:4, 0:6] of 2x4x6 float32, lat ↑, lon →"
    assert lines[2] == "the last of time; --index chooses another"
    # North is up: the greatest values come first, and what is missing is empty.
    assert lines[4:6] == ["**##%%", "::-::-"]
    assert lines[7] == "27 .:-=+*#%@ 47 K"
    assert lines[8] == "least 27, mean 37, greatest 47, 3 of 24 elements are missing"
    flat = run("view", seas, "north/sst", "--no-flip", "--width", 6).stdout.splitlines()
    assert "lat ↓" in flat[1]
    assert flat[4] != lines[4]


def test_view_of_an_index(seas, run):
    assert "[0, 0:4, 1:3] of" in run("view", seas, "north/sst", "--index", "0, :, 1:3").stdout
    text = run("view", seas, "north/sst", "--index", "[0, ..., 2]").stdout
    assert "[0, 0:4, 2] of 2x4x6 float32, lat →" in text
    assert "2 … 20 K, from the bottom to the top" in text
    text = run("view", seas, "north/sst", "--index", "-2,3,5").stdout
    assert text.endswith("\n23 K\n")
    assert "out of bounds" in run("view", seas, "north/sst", "--index", "2", code=1).stderr
    assert "no index" in run("view", seas, "north/sst", "--index", "a", code=2).stderr
    assert "4 axes" in run("view", seas, "north/sst", "--index", "0,0,0,0", code=1).stderr
    assert "no elements" in run("view", seas, "north/sst", "--index", "0,2:2", code=1).stderr


def test_view_of_other_dimensions(seas, run):
    text = run("view", seas, "north/time", "--ref", "main~1", "--width", 10).stdout
    assert "██" in text
    assert "0 … 20, from the bottom to the top" in text
    assert run("view", seas, "north/one").stdout.endswith("\n\n7\n")
    assert "the last of axis 0, axis 1;" in run("view", seas, "north/deep").stdout
    assert "is a group" in run("view", seas, "north", code=1).stderr
    assert "no array" in run("view", seas, "nope", code=1).stderr


def test_view_json(seas, run_json):
    document = run_json("view", seas, "north/sst", "--index", "0, :2, :2")
    assert document["values"] == [[0, 1], [6, 7]]
    assert document["index"] == [[0, 1], [0, 2], [0, 2]]
    assert document["dimensions"] == ["time", "lat", "lon"]
    assert (document["minimum"], document["maximum"], document["mean"]) == (0, 7, 3.5)
    assert (document["missing"], document["elements"]) == (0, 4)
    assert run_json("view", seas, "north/one")["values"] == 7
    assert run_json("view", seas, "north/time")["values"] == [1, 10, 5, 20, 20]


def test_view_in_colours(seas, tmp_path):
    code, text = on_terminal("view", seas, "north/sst", cwd=tmp_path, COLORTERM="truecolor")
    assert code == 0
    assert "▀" in text
    assert "\x1b[38;2;" in text
    _, text = on_terminal("view", seas, "north/sst", cwd=tmp_path, COLORTERM="")
    assert "\x1b[38;5;" in text
    assert "\x1b[38;2;" not in text
    _, text = on_terminal("view", seas, "north/sst", cwd=tmp_path, NO_COLOR="1")
    assert "▀" not in text
    assert "@" in text


def test_view_fits_the_terminal(path, tmp_path):
    with vzarr.open(path) as repo, repo.transaction("main", "make") as store:
        zarr.create_array(store, name="a", shape=(300, 300), dtype="f4")[:] = 1
        zarr.create_array(store, name="b", shape=(3, 3), dtype="f4")[:] = 1
    for name in "ab":
        _, text = on_terminal("view", path, name, cwd=tmp_path, columns=60, NO_COLOR="1")
        assert len(text.splitlines()) <= 40
        assert max(map(len, text.splitlines())) <= 60


def test_missing_values_are_blank(path, run_json):
    spelled = base64.b64encode(struct.pack("<d", -999.0)).decode()
    with vzarr.open(path) as repo, repo.transaction("main", "make") as store:
        zarr.create_array(
            store, name="a", shape=(4,), dtype="i2", fill_value=-1,
            attributes={"_FillValue": spelled, "scale_factor": 0.5, "add_offset": 10},
        )[:] = [-999, 2, -1, 4]  # fmt: skip
        zarr.create_array(store, name="all", shape=(4,), dtype="f4", fill_value=np.nan)
    document = run_json("view", path, "a")
    assert document["values"] == ["NaN", 11, "NaN", 12]
    assert document["missing"] == 2
    assert run_json("view", path, "all")["minimum"] is None


def test_what_cannot_be_drawn(path, run):
    with vzarr.open(path) as repo, repo.transaction("main", "make") as store:
        zarr.create_array(store, name="dates", shape=(2,), dtype="M8[s]")[:] = 1
        zarr.create_array(store, name="all", shape=(4,), dtype="f4", fill_value=np.nan)
    assert "vzarr cat prints them" in run("view", path, "dates", code=1).stderr
    assert "all elements are missing" in run("view", path, "all").stdout


test_what_cannot_be_drawn = pytest.mark.filterwarnings(ISSUES)(test_what_cannot_be_drawn)


def test_of_a_large_array_little_is_read(path, run, run_json, monkeypatch):
    values = np.arange(40 * 30).reshape(40, 30)
    with vzarr.open(path) as repo, repo.transaction("main", "make") as store:
        zarr.create_array(store, name="a", shape=(40, 30), chunks=(2, 3), dtype="i4")[:] = values
    monkeypatch.setattr(sampling, "MAX_CHUNKS", 25)
    read = []
    original = sampling.Sampler._chunk

    def count(self, coordinates):
        read.append(coordinates)
        return original(self, coordinates)

    monkeypatch.setattr(sampling.Sampler, "_chunk", count)
    document = run_json("view", path, "a")
    assert document["of_chunks"] == 200
    assert document["chunks"] == len(set(read)) == len(read) <= 25
    # From all parts of the array.
    rows, columns = zip(*read, strict=True)
    assert min(rows) < 5
    assert max(rows) >= 15
    assert min(columns) < 3
    assert max(columns) >= 7
    shown = np.array(document["values"])
    assert (np.diff(shown, axis=0) >= 0).all()
    assert (np.diff(shown, axis=1) >= 0).all()
    assert "25 of 200 chunks were read" in run("view", path, "a").stdout.replace(
        str(document["chunks"]), "25"
    )


def test_an_array_of_any_size(path, run):
    document = {
        "zarr_format": 3, "node_type": "array", "shape": [2**40, 2**40], "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [10, 10]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0, "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
    }  # fmt: skip
    with vzarr.open(path) as repo, repo.transaction("main", "make") as store:
        store.session.set("a/zarr.json", json.dumps(document).encode())
    assert "chunks were read" in run("view", path, "a").stdout
    assert "too many to print" in run("cat", path, "a", code=1).stderr


def test_show_with_a_picture(seas, run, run_json):
    text = run("show", seas, "main~1", "--path", "north/sst", "--index", "0").stdout
    assert text.startswith("commit ")
    assert "[0, 0:4, 0:6] of 2x4x6" in text
    assert "chunks:" not in text
    document = run_json("show", seas, "--path", "north/sst")
    assert set(document) == {"commit", "view"}
    assert document["view"]["commit"] == document["commit"]["id"]
    assert "--path" in run("show", seas, "--index", "0", code=2).stderr


# ── cat ──────────────────────────────────────────────────────────────────────────────────────────


def test_cat(seas, run, run_json):
    assert run("cat", seas, "north/time").stdout == "[ 1 10  5 20 20]\n"
    text = run("cat", seas, "north/sst", "--region", "0, 1:3, :2").stdout
    assert text == "[[ 6.  7.]\n [12. 13.]]\n"
    assert run("cat", seas, "north/one").stdout == "7\n"
    document = run_json("cat", seas, "north/sst", "--region", "1, 0, 2:5")
    assert document["values"] == ["NaN", 27, 28]
    assert document["index"] == [[1, 2], [0, 1], [2, 5]]
    assert "no array 'nope'" in run("cat", seas, "nope", code=1).stderr


def test_cat_prints_all_in_a_pipe(path, run):
    with vzarr.open(path) as repo, repo.transaction("main", "make") as store:
        zarr.create_array(store, name="a", shape=(3000,), dtype="i4")[:] = np.arange(3000)
    text = run("cat", path, "a").stdout
    assert text.strip("[]\n").split() == [str(number) for number in range(3000)]


def test_cat_raw(seas, run):
    values = np.arange(48, dtype="<f4").reshape(2, 4, 6)
    values[1, 0, :3] = np.nan
    assert run("cat", seas, "north/sst", "--raw").stdout_bytes == values.tobytes()
    part = run("cat", seas, "north/sst", "--raw", "--region", "0, 1:4, 2").stdout_bytes
    assert part == values[0, 1:4, 2].tobytes()
    assert run("cat", seas, "north/one", "--raw").stdout_bytes == struct.pack("<h", 7)


def test_cat_of_a_key(seas, run, run_json):
    with vzarr.open(seas, "r") as repo:
        session = repo.session("main")
        document, chunk = session.get("north/sst/zarr.json"), session.get("north/sst/c/0/0/0")
    assert run("cat", seas, "north/sst/zarr.json").stdout_bytes == document
    assert run("cat", seas, "north/sst/c/0/0/0").stdout_bytes == bytes(chunk)
    assert run("cat", seas, "north/notes.txt").stdout == "a note\n"
    assert run_json("cat", seas, "north/sst/zarr.json")["document"]["shape"] == [2, 4, 6]
    assert run_json("cat", seas, "north/notes.txt")["nbytes"] == 7
    assert "--region" in run("cat", seas, "north/notes.txt", "--region", "0", code=2).stderr


@pytest.mark.filterwarnings(ISSUES)
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([1 + 2j]), [[1, 2]]),
        (np.array(["2020-01-01T00:00:00"], "M8[s]"), ["2020-01-01T00:00:00"]),
        (np.array([b"ab\xff"], "S3"), ["ab\\xff"]),
        (np.array(["é"], "U1"), ["é"]),
        (np.array([True]), [True]),
        (np.array([2**63], "u8"), [2**63]),
    ],
)
def test_cat_as_json(path, run_json, values, expected):
    with vzarr.open(path) as repo, repo.transaction("main", "make") as store:
        made = zarr.create_array(store, name="a", shape=values.shape, dtype=values.dtype)
        made[:] = values
    assert run_json("cat", path, "a")["values"] == expected


def test_a_terminal_is_not_commanded(path, tmp_path):
    with vzarr.open(path) as repo, repo.transaction("main", "make") as store:
        store.session.set("a/x.json", json.dumps({"k": "\x1b]0;title\x07"}).encode())
        store.session.set("a/b", b"\x1b]0;title\x07")
        zarr.create_array(
            store, name="n", shape=(2, 2), dtype="f4", attributes={"units": "\x1b[31m\x07"}
        )[:] = 1
    for arguments in (["a/b"], ["a/b", "--raw"], ["n", "--raw"]):
        code, text = on_terminal("cat", path, *arguments, cwd=tmp_path)
        assert code == 1
        assert "pipe them" in text
        assert "\x1b]" not in text
    for arguments in (["cat", path, "a/x.json"], ["view", path, "n"]):
        _, text = on_terminal(*arguments, cwd=tmp_path)
        assert "\x07" not in text


RECORDS = np.array([[(1, 2.5)], [(3, 4.5)]], dtype=[("a", "<i4"), ("b", "<f8")])


@pytest.mark.filterwarnings(ISSUES)
def test_records_as_json(path, run_json):
    with vzarr.open(path) as repo, repo.transaction("main", "make") as store:
        made = zarr.create_array(store, name="a", shape=(2, 1), dtype=RECORDS.dtype)
        made[:] = RECORDS
    assert run_json("cat", path, "a")["values"] == [["(1, 2.5)"], ["(3, 4.5)"]]


@pytest.mark.parametrize("name", ["missing_value", "_FillValue", "scale_factor", "add_offset"])
def test_attributes_beyond_all_numbers(path, run, name):
    with vzarr.open(path) as repo:
        with repo.transaction("main", "make") as store:
            zarr.create_array(store, name="a", shape=(4,), dtype="f4")[:] = 1
        with repo.transaction("main", "mark") as store:
            array = zarr.open_array(store, path="a")
            array.attrs[name] = 10**400
            array[:2] = 2
    assert run("view", path, "a").stdout
    assert "2 of 4 changed" in run("diff", path, "main~1", "main").stdout


@pytest.mark.parametrize("option", [("cat", "--region"), ("view", "--index")])
def test_indexes_that_are_none(ocean, run, option):
    verb, name = option
    assert "one ellipsis" in run(verb, ocean, "sst", name, "...,...", code=1).stderr
    assert "is no index" in run(verb, ocean, "sst", name, "9" * 30, code=2).stderr


def test_an_axis_beyond_the_machine(path, run):
    with vzarr.open(path) as repo, repo.transaction("main", "make") as store:
        zarr.create_array(store, name="a", shape=(2**64,), chunks=(2**60,), dtype="i1")
    for verb in ("cat", "view"):
        assert "too long" in run(verb, path, "a", code=1).stderr


def test_raw_is_no_json(ocean, run):
    assert "do not go together" in run("cat", ocean, "sst", "--raw", "--json", code=2).stderr
