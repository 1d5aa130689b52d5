"""What users of zarr do, in both formats and with both codec pipelines, against numpy.

Every result is looked at twice: in the session that wrote it, and after its commit.
"""

from __future__ import annotations

import itertools
import operator
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numcodecs
import numpy as np
import pytest
import zarr
import zarr.codecs
from numpy.testing import assert_array_equal
from zarr.core.buffer import cpu
from zarr.dtype import VariableLengthBytes
from zarr.errors import ContainsArrayError, ContainsGroupError

from vzarr import ReadOnlyError, Repository, VzarrStore

Views = Callable[[], Iterator[VzarrStore]]

PIPELINES = {"batched": "zarr.core.codec_pipeline.BatchedCodecPipeline"}
if hasattr(zarr.core.codec_pipeline, "FusedCodecPipeline"):
    PIPELINES["fused"] = "zarr.core.codec_pipeline.FusedCodecPipeline"
HAS_RECTILINEAR = zarr.config.get("array.rectilinear_chunks", None) is not None

unstable = pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
not_in_v3 = pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
order_in_v3 = pytest.mark.filterwarnings("ignore:The `order` keyword argument has no effect")


@pytest.fixture(params=PIPELINES.values(), ids=PIPELINES, autouse=True)
def pipeline(request: pytest.FixtureRequest) -> Iterator[None]:
    with zarr.config.set({"codec_pipeline.path": request.param}):
        yield


@pytest.fixture(params=[2, 3], ids=["v2", "v3"])
def zarr_format(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def store(repo: Repository) -> VzarrStore:
    return repo.session("main").store


@pytest.fixture
def views(repo: Repository, store: VzarrStore) -> Views:
    """The store as it is, and after a commit a read-only store of the new head."""

    def views() -> Iterator[VzarrStore]:
        yield store
        store.session.commit("what the test wrote", allow_empty=True)
        yield repo.store("main")

    return views


def read(store: VzarrStore, path: str = "a") -> zarr.Array:
    return zarr.open_array(store, path=path, mode="r")


def numbers(*shape: int, dtype: str = "int32") -> np.ndarray:
    return np.arange(1, 1 + np.prod(shape), dtype=dtype).reshape(shape)


# ── groups ───────────────────────────────────────────────────────────────────────────────────────


class TestGroups:
    def test_save_and_load(self, store, views, zarr_format):
        data = numbers(7, 5)
        zarr.save(store, data, path="a", zarr_format=zarr_format)
        zarr.save_array(store, data * 2, path="b/c", zarr_format=zarr_format)
        for view in views():
            assert_array_equal(zarr.load(view, path="a", zarr_format=zarr_format), data)
            assert_array_equal(zarr.load(view, path="b/c"), data * 2)

    def test_save_an_array_as_the_root(self, store, views, zarr_format):
        zarr.save(store, numbers(7, 5), zarr_format=zarr_format)
        for view in views():
            assert_array_equal(zarr.load(view), numbers(7, 5))

    def test_save_group(self, store, views, zarr_format):
        zarr.save_group(store, numbers(3), path="g", zarr_format=zarr_format, x=numbers(4, 2))
        for view in views():
            group = zarr.open_group(view, path="g", mode="r")
            assert sorted(group) == ["arr_0", "x"]
            assert_array_equal(group["arr_0"][:], numbers(3))
            assert_array_equal(group["x"][:], numbers(4, 2))

    def test_nested_groups(self, store, views, zarr_format):
        root = zarr.open_group(store, mode="a", zarr_format=zarr_format)
        root.create_group("a/b/c")
        root.require_group("a/b").create_array("x", shape=(3,), dtype="i4")
        root["a"].create_group("d", attributes={"deep": True})
        for view in views():
            root = zarr.open_group(view, mode="r")
            assert sorted(name for name, _ in root.members(max_depth=None)) == [
                "a",
                "a/b",
                "a/b/c",
                "a/b/x",
                "a/d",
            ]
            assert sorted(root["a"].group_keys()) == ["b", "d"]
            assert list(root["a/b"].array_keys()) == ["x"]
            assert root["a/d"].attrs.asdict() == {"deep": True}
            assert "a/b/x" in root
            assert "a/b/y" not in root
            assert root.nmembers(max_depth=None) == 5
            with pytest.raises(KeyError):
                root["none"]

    def test_attributes(self, store, views, zarr_format):
        attributes = {"units": "m/s", "range": [0.5, None, "ü"], "deep": {"a": {"b": [1, True]}}}
        root = zarr.create_group(store, zarr_format=zarr_format, attributes=attributes)
        array = root.create_array("a", shape=(2,), dtype="f8", attributes={"first": 1, "second": 2})
        root.attrs["units"] = "km/h"
        root.update_attributes({"more": [1, 2, 3]})
        array.attrs.put({"only": "this"})
        array.attrs["nan"] = "NaN"
        for view in views():
            root = zarr.open_group(view, mode="r")
            assert dict(root.attrs) == {**attributes, "units": "km/h", "more": [1, 2, 3]}
            assert dict(root["a"].attrs) == {"only": "this", "nan": "NaN"}

    def test_attributes_of_a_snapshot_are_not_changed(self, repo, store):
        zarr.create_group(store, attributes={"a": 1})
        store.session.commit("group")
        group = zarr.open_group(repo.store("main"), mode="r")
        with pytest.raises(ReadOnlyError):
            group.attrs["a"] = 2
        assert zarr.open_group(repo.store("main"), mode="r").attrs["a"] == 1

    def test_info(self, store, views, zarr_format):
        root = zarr.open_group(store, mode="a", zarr_format=zarr_format)
        array = root.create_array("a", shape=(10, 10), chunks=(5, 5), dtype="i4", compressors=None)
        array[:5, :5] = 1
        for view in views():
            group = zarr.open_group(view, mode="r")
            assert "VzarrStore" in str(group.info)
            assert group.info_complete()._count_arrays == 1
            assert "VzarrStore" in str(group["a"].info)
            complete = group["a"].info_complete()
            assert complete._count_chunks_initialized == 1
            documents = sum(len(view.session.get(f"a/{name}") or b"") for name in DOCUMENTS)
            assert complete._count_bytes_stored == 5 * 5 * 4 + documents

    def test_tree(self, store, views, zarr_format):
        root = zarr.open_group(store, mode="a", zarr_format=zarr_format)
        root.create_group("a/b").create_array("x", shape=(3, 4), dtype="f4")
        for view in views():
            drawn = str(zarr.open_group(view, mode="r").tree())
            assert [line.split()[-1] for line in drawn.splitlines()][:3] == ["/", "a", "b"]
            assert "x (3, 4) float32" in drawn

    def test_create_hierarchy(self, store, views):
        metadata = {
            "": zarr.core.group.GroupMetadata(attributes={"root": True}),
            "a/b": zarr.core.group.GroupMetadata(),
        }
        assert sorted(name for name, _ in zarr.create_hierarchy(store=store, nodes=metadata)) == [
            "",
            "a",
            "a/b",
        ]
        for view in views():
            assert zarr.open_group(view, mode="r").attrs["root"]
            assert "b" in zarr.open_group(view, path="a", mode="r")

    def test_deletions(self, store, views, zarr_format):
        root = zarr.open_group(store, mode="a", zarr_format=zarr_format)
        for path in ("x", "keep", "g/x", "g/y", "gg/x"):
            root.create_array(path, shape=(4,), chunks=(1,), dtype="i4")[:] = 1
        del root["x"]
        del root["g/x"]
        for view in views():
            group = zarr.open_group(view, mode="r")
            assert sorted(name for name, _ in group.members(max_depth=None)) == [
                "g",
                "g/y",
                "gg",
                "gg/x",
                "keep",
            ]
        del root["g"]
        for view in views():
            group = zarr.open_group(view, mode="r")
            assert sorted(group) == ["gg", "keep"]
            assert not list(view.session.keys("g"))
            assert_array_equal(group["gg/x"][:], 1)

    def test_overwrite(self, store, views, zarr_format):
        zarr.save_array(store, numbers(8, 8), path="g/a", zarr_format=zarr_format)
        with pytest.raises(ContainsArrayError):
            zarr.create_array(store, name="g/a", shape=(2,), dtype="f4", zarr_format=zarr_format)
        with pytest.raises(ContainsGroupError):
            zarr.create_group(store, path="g", zarr_format=zarr_format)
        array = zarr.create_array(
            store, name="g/a", shape=(2,), dtype="f4", zarr_format=zarr_format, overwrite=True
        )
        array[:] = 1.5
        for view in views():
            assert_array_equal(read(view, "g/a")[:], np.float32([1.5, 1.5]))
            chunks = [
                key for key in view.session.keys("g/a") if key.split("/")[-1] not in DOCUMENTS
            ]
            assert len(chunks) == 1
        zarr.create_group(store, path="g", zarr_format=zarr_format, overwrite=True)
        for view in views():
            assert not list(zarr.open_group(view, path="g", mode="r"))

    def test_an_array_becomes_a_group_and_back(self, store, views, zarr_format):
        root = zarr.open_group(store, mode="a", zarr_format=zarr_format)
        root.create_array("a", data=numbers(4, 4), chunks=(2, 2))
        root.create_group("a", overwrite=True).create_array("0", data=numbers(3))
        for view in views():
            assert_array_equal(zarr.open_group(view, mode="r")["a/0"][:], numbers(3))
        root.create_array("a", data=numbers(2, 2), overwrite=True)
        for view in views():
            assert_array_equal(read(view)[:], numbers(2, 2))

    def test_both_formats_beside_each_other(self, store, views):
        zarr.save_array(store, numbers(3), path="two", zarr_format=2)
        zarr.save_array(store, numbers(4), path="three", zarr_format=3)
        for view in views():
            assert_array_equal(read(view, "two")[:], numbers(3))
            assert_array_equal(read(view, "three")[:], numbers(4))

    def test_consolidated_metadata_is_refused_in_zarrs_words(self, store, views, zarr_format):
        zarr.create_group(store, zarr_format=zarr_format)
        for view in views():
            with pytest.raises(TypeError, match="doesn't support consolidated metadata"):
                zarr.consolidate_metadata(view)
            with pytest.raises(ValueError, match="doesn't support consolidated metadata"):
                zarr.open_consolidated(view, mode="r")
            assert zarr.open_group(view, mode="r", use_consolidated=None) is not None

    def test_what_is_not_there(self, store, views):
        for view in views():
            with pytest.raises(FileNotFoundError):
                zarr.open_group(view, path="none", mode="r")
            with pytest.raises(FileNotFoundError):
                zarr.open_array(view, path="none", mode="r")
            with pytest.raises(FileNotFoundError):
                zarr.open(view, path="none", mode="r")


DOCUMENTS = ("zarr.json", ".zarray", ".zattrs", ".zgroup")


class TestModes:
    """zarr.open's mode letters, on the store of a session and on that of a snapshot."""

    @pytest.fixture(autouse=True)
    def array(self, store: VzarrStore, pipeline: None) -> None:
        zarr.create_array(store, name="a", data=numbers(4), attributes={"old": True})
        zarr.create_group(store, path="g", attributes={"old": True})

    def test_r(self, views):
        for view in views():
            for path in ("a", "g"):
                node = zarr.open(view, path=path, mode="r")
                assert node.read_only
                with pytest.raises(ReadOnlyError):
                    node.attrs["new"] = 1
            with pytest.raises(ReadOnlyError):
                zarr.open_array(view, path="a", mode="r")[0] = 5
            with pytest.raises(ReadOnlyError):
                zarr.open_group(view, path="g", mode="r").create_group("h")
            assert_array_equal(read(view)[:], numbers(4))

    def test_r_plus(self, store, views):
        zarr.open(store, path="a", mode="r+")[0] = 5
        zarr.open_group(store, path="g", mode="r+").create_group("h")
        with pytest.raises(FileNotFoundError):
            zarr.open_group(store, path="none", mode="r+")
        for view in views():
            assert read(view)[0] == 5
            assert "h" in zarr.open_group(view, path="g", mode="r")

    def test_a(self, store, views):
        zarr.open(store, path="a", mode="a")[0] = 5
        zarr.open_group(store, path="new", mode="a").attrs["made"] = True
        zarr.open_array(store, path="array", mode="a", shape=(2,), dtype="i4")[:] = 3
        for view in views():
            assert read(view)[0] == 5
            assert zarr.open_group(view, path="new", mode="r").attrs["made"]
            assert read(view, "array")[1] == 3

    def test_w(self, store, views):
        zarr.open_group(store, path="g", mode="w").attrs["new"] = True
        zarr.open_array(store, path="a", mode="w", shape=(2,), dtype="i4")[:] = 3
        for view in views():
            assert dict(zarr.open_group(view, path="g", mode="r").attrs) == {"new": True}
            assert_array_equal(read(view)[:], np.int32([3, 3]))
            assert dict(read(view).attrs) == {}

    def test_w_of_the_root_is_undone_by_discard(self, store, views):
        store.session.commit("first")
        zarr.open_group(store, mode="w")
        assert sorted(store.session.keys()) == ["zarr.json"]
        store.session.discard()
        for view in views():
            assert_array_equal(read(view)[:], numbers(4))

    def test_w_minus(self, store, views):
        for path in ("a", "g"):
            with pytest.raises(FileExistsError):
                zarr.open_group(store, path=path, mode="w-")
        zarr.open_group(store, path="new", mode="w-")
        for view in views():
            assert sorted(zarr.open_group(view, mode="r")) == ["a", "g", "new"]

    @pytest.mark.parametrize("mode", ["r+", "a", "w", "w-"])
    def test_a_snapshot_opens_with_no_mode_that_writes(self, repo, store, mode):
        store.session.commit("first")
        head = repo.store("main")
        with pytest.raises(ValueError, match="read-only"):
            zarr.open(head, path="a", mode=mode)
        with pytest.raises(ValueError, match="read-only"):
            zarr.open_group(head, path="g", mode=mode)

    def test_without_a_mode_a_snapshot_is_read(self, repo, store):
        store.session.commit("first")
        assert_array_equal(zarr.open(repo.store("main"), path="a")[:], numbers(4))


# ── the life of an array ─────────────────────────────────────────────────────────────────────────


class TestArrays:
    @pytest.fixture
    def create(self, store: VzarrStore, zarr_format: int) -> Callable[..., zarr.Array]:
        def create(**options) -> zarr.Array:
            options = {"name": "a", "zarr_format": zarr_format, **options}
            return zarr.create_array(store, **options)

        return create

    def test_resize(self, create, views):
        data = numbers(10, 10)
        array = create(data=data, chunks=(3, 4), fill_value=-1)
        array.resize((13, 5))
        expected = np.full((13, 5), -1, "int32")
        expected[:10] = data[:, :5]
        for view in views():
            assert read(view).shape == (13, 5)
            assert_array_equal(read(view)[:], expected)
            # 4 rows of chunks, of which the second column is partly outside of the array by now.
            assert read(view).nchunks_initialized == 8
        array.resize((0, 5))
        for view in views():
            assert read(view).nchunks_initialized == 0
            assert read(view)[:].shape == (0, 5)

    @pytest.mark.parametrize("axis", [0, 1])
    def test_append(self, create, views, axis):
        data = numbers(5, 6)
        array = create(data=data, chunks=(2, 4))
        for factor in (10, 100):
            assert array.append(data * factor, axis=axis) == array.shape
        expected = np.concatenate([data, data * 10, data * 100], axis=axis)
        for view in views():
            assert_array_equal(read(view)[:], expected)

    def test_appends_in_many_commits(self, repo, store, create):
        array = create(shape=(0, 3), chunks=(2, 3), dtype="i4")
        commits = {0: store.session.commit("empty")}
        for step in range(1, 6):
            array.append(np.full((3, 3), step, "i4"))
            commits[step] = store.session.commit(f"step {step}")
        for step, commit in commits.items():
            expected = np.repeat(np.arange(1, step + 1), 3)
            assert_array_equal(read(repo.store(commit))[:, 1], expected)

    @order_in_v3
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_order(self, create, views, order):
        data = numbers(6, 9)
        create(shape=data.shape, dtype=data.dtype, chunks=(4, 4), order=order)[:] = data
        for view in views():
            assert_array_equal(read(view)[:], data)
            assert_array_equal(read(view)[2:5, 7], data[2:5, 7])

    @pytest.mark.parametrize("separator", [".", "/"])
    @pytest.mark.parametrize("encoding", ["default", "v2"])
    def test_dimension_separators(self, create, views, zarr_format, separator, encoding):
        if zarr_format == 2:
            encoding = "v2"
        data = numbers(3, 4, 5)
        create(
            data=data,
            chunks=(2, 2, 2),
            chunk_key_encoding={"name": encoding, "separator": separator},
        )
        prefix = f"c{separator}" if encoding == "default" else ""
        key = f"a/{prefix}{separator.join('112')}"
        for view in views():
            assert_array_equal(read(view)[:], data)
            assert key in set(view.session.keys("a"))
            assert view.session.get(key)
            assert read(view).nchunks_initialized == 12

    @pytest.mark.parametrize("write_empty", [False, True])
    def test_write_empty_chunks(self, create, views, write_empty):
        array = create(
            shape=(8, 8),
            chunks=(4, 4),
            dtype="f4",
            fill_value=7,
            config={"write_empty_chunks": write_empty},
        )
        array[:] = 1
        array[:4] = 7
        for view in views():
            assert read(view).nchunks_initialized == (4 if write_empty else 2)
            assert_array_equal(read(view)[:, 0], np.repeat(np.float32([7, 1]), 4))

    @pytest.mark.parametrize("value", [42, None])
    def test_zero_dimensions(self, create, views, value):
        array = create(shape=(), dtype="i8", fill_value=5)
        if value is not None:
            array[...] = value
        for view in views():
            assert read(view).shape == ()
            assert read(view)[()] == (5 if value is None else value)
            assert read(view).nchunks_initialized == (value is not None)

    @pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0)])
    def test_empty_arrays(self, create, views, shape):
        create(shape=shape, dtype="f8")
        for view in views():
            assert read(view)[:].shape == shape
            assert read(view).nchunks_initialized == 0

    def test_a_huge_sparse_array(self, create, views):
        side = 2**22
        array = create(shape=(side, side), chunks=(512, 512), dtype="f4", fill_value=np.nan)
        points = [(0, 0), (side - 1, side - 1), (123_456, 3_210_987), (2**21, 2**21)]
        for number, point in enumerate(points):
            array[point] = number
        for view in views():
            found = read(view)
            assert [found[point] for point in points] == [0, 1, 2, 3]
            assert np.isnan(found[1, 1])
            assert np.isnan(found[-2:, :2]).all()
            assert view.session.sums("a")[0] <= 4 + len(DOCUMENTS)

    def test_sizes(self, create, views):
        array = create(shape=(100,), chunks=(10,), dtype="u1", compressors=None)
        assert array.nchunks_initialized == 0
        array[:35] = 1
        for view in views():
            found = read(view)
            assert found.nchunks == 10
            assert found.nchunks_initialized == 4
            documents = sum(len(view.session.get(f"a/{name}") or b"") for name in DOCUMENTS)
            assert found.nbytes_stored() == 40 + documents

    def test_a_name_that_begins_another_name(self, store, create, views):
        """zarr counts "ab" among the chunks of "a" on stores that list prefixes of strings."""
        for name in ("a", "ab", "a.b", "a0"):
            create(name=name, data=numbers(6), chunks=(2,))
        for view in views():
            for name in ("a", "ab", "a.b", "a0"):
                assert read(view, name).nchunks_initialized == 3
                assert read(view, name).info_complete()._count_chunks_initialized == 3

    def test_from_array_within_a_store(self, store, create, views):
        source = create(data=numbers(7, 7), chunks=(3, 3))
        zarr.from_array(store, data=source, name="copy/b")
        for view in views():
            assert_array_equal(read(view, "copy/b")[:], numbers(7, 7))
            assert read(view, "copy/b").chunks == (3, 3)

    def test_from_array_out_of_a_snapshot(self, repo, store, create, views):
        create(data=numbers(7, 7), chunks=(3, 3))
        first = store.session.commit("first")
        zarr.open_array(store, path="a", mode="r+")[:] = 0
        old = read(repo.store(first))
        zarr.from_array(store, data=old, name="restored", overwrite=True)
        zarr.from_array(store, data=old, name="a", overwrite=True)
        for view in views():
            assert_array_equal(read(view, "restored")[:], numbers(7, 7))
            assert_array_equal(read(view, "a")[:], numbers(7, 7))

    @pytest.mark.skipif(
        not hasattr(zarr.core.array, "_stores_share_data"), reason="this zarr does not look"
    )
    def test_from_array_onto_itself_is_refused(self, store, create, views):
        create(data=numbers(7, 7), chunks=(3, 3))
        for source in (read(store), zarr.open_array(store, path="a")):
            with pytest.raises(ValueError, match="overlap"):
                zarr.from_array(store, data=source, name="a", overwrite=True)
        for view in views():
            assert_array_equal(read(view)[:], numbers(7, 7))

    def test_from_and_to_other_stores(self, store, views, zarr_format):
        memory = zarr.storage.MemoryStore()
        source = zarr.create_array(
            memory, name="a", data=numbers(7, 7), chunks=(3, 3), zarr_format=zarr_format
        )
        zarr.from_array(store, data=source, name="a")
        for number, view in enumerate(views()):
            back = zarr.from_array(memory, data=read(view), name=f"back{number}")
            assert_array_equal(back[:], numbers(7, 7))

    def test_arrays_named_like_chunks(self, store, views, zarr_format):
        root = zarr.open_group(store, mode="a", zarr_format=zarr_format)
        for name in ("0", "1", "0.0", "c", "c.0", "10/0"):
            root.create_array(name, data=numbers(4, 4), chunks=(2, 2))
        for view in views():
            group = zarr.open_group(view, mode="r")
            for name in ("0", "1", "0.0", "c", "c.0", "10/0"):
                assert_array_equal(group[name][:], numbers(4, 4))
            assert sorted(group) == ["0", "0.0", "1", "10", "c", "c.0"]
        del root["0"]
        for view in views():
            assert sorted(zarr.open_group(view, mode="r")) == ["0.0", "1", "10", "c", "c.0"]

    def test_names_of_all_kinds(self, store, views, zarr_format):
        # The last is longer than a key of LMDB can be.
        names = ["with space", "ünïcödé", "日本語", "%2F", "a+b=c", "UPPER", "upper", "n" * 600]
        root = zarr.open_group(store, mode="a", zarr_format=zarr_format)
        for name in names:
            root.create_array(name, data=numbers(4), chunks=(2,))
        for view in views():
            group = zarr.open_group(view, mode="r")
            assert sorted(group) == sorted(names)
            for name in names:
                assert_array_equal(group[name][:], numbers(4))

    def test_ome_zarr(self, store, views, zarr_format):
        image = numbers(1, 2, 64, 64, dtype="uint16")
        separator = {"name": "v2" if zarr_format == 2 else "default", "separator": "/"}
        root = zarr.open_group(store, path="plate/A/1/0", mode="a", zarr_format=zarr_format)
        datasets = []
        for level in range(3):
            data = image[..., :: 2**level, :: 2**level]
            root.create_array(
                str(level), data=data, chunks=(1, 1, 32, 32), chunk_key_encoding=separator
            )
            scale = {"type": "scale", "scale": [1.0, 1.0, 2.0**level, 2.0**level]}
            datasets.append({"path": str(level), "coordinateTransformations": [scale]})
        root.attrs["multiscales"] = [{"version": "0.4", "axes": list("tcyx"), "datasets": datasets}]
        labels = root.create_group("labels", attributes={"labels": ["0"]})
        labels.create_array("0/0", data=image[0], chunks=(1, 32, 32), chunk_key_encoding=separator)
        for view in views():
            group = zarr.open_group(view, path="plate/A/1/0", mode="r")
            assert sorted(group) == ["0", "1", "2", "labels"]
            (multiscale,) = group.attrs["multiscales"]
            for level, dataset in enumerate(multiscale["datasets"]):
                assert_array_equal(group[dataset["path"]][:], image[..., :: 2**level, :: 2**level])
            assert_array_equal(group["labels/0/0"][1, 10:40, 50], image[0, 1, 10:40, 50])
            assert group["0"].nchunks_initialized == 8


# ── indexing ─────────────────────────────────────────────────────────────────────────────────────


class TestIndexing:
    """Each selection is read from zarr and numpy, and written to both."""

    @pytest.fixture
    def data(self) -> np.ndarray:
        return numbers(11, 13)

    @pytest.fixture
    def array(self, store: VzarrStore, data: np.ndarray, zarr_format: int) -> zarr.Array:
        return zarr.create_array(
            store, name="a", data=data, chunks=(4, 5), zarr_format=zarr_format, fill_value=-1
        )

    @pytest.mark.parametrize(
        "selection",
        [
            ...,
            5,
            -1,
            (5, 6),
            slice(None),
            slice(2, 9),
            slice(1, 10, 3),
            (slice(3, 4), slice(None)),
            (slice(0, 0), slice(2, 3)),
            (..., 7),
            (slice(-3, None), slice(None, -9)),
        ],
        ids=str,
    )
    def test_basic(self, array, data, views, selection):
        for view in views():
            assert_array_equal(read(view)[selection], data[selection])
            assert_array_equal(read(view).get_basic_selection(selection), data[selection])
        array[selection] = array[selection] * 1000
        data[selection] *= 1000
        for view in views():
            assert_array_equal(read(view)[:], data)

    @pytest.mark.parametrize(
        "selection",
        [
            ([0, 3, 10], [1, 2, 12]),
            ([10, 0, 3], slice(2, 9)),
            (slice(1, 10, 3), [5]),
            (4, [0, 12]),
            (np.arange(11) % 3 == 0, np.arange(13) % 4 == 1),
        ],
        ids=str,
    )
    def test_orthogonal(self, array, data, views, selection):
        rows, columns = np.arange(11)[selection[0]], np.arange(13)[selection[1]]
        expected = data[rows][..., columns]
        for view in views():
            assert_array_equal(read(view).oindex[selection], expected)
        array.oindex[selection] = expected * 1000
        data[np.ix_(np.atleast_1d(rows), np.atleast_1d(columns))] *= 1000
        for view in views():
            assert_array_equal(read(view)[:], data)

    @pytest.mark.parametrize(
        "selection",
        [([0, 3, 10], [1, 2, 12]), ([7, 7], [0, 1]), ([[0, 1], [2, 3]], [[4, 5], [6, 7]]), (2, 3)],
        ids=str,
    )
    def test_coordinates(self, array, data, views, selection):
        expected = data[tuple(np.asarray(axis) for axis in selection)]
        for view in views():
            assert_array_equal(np.squeeze(read(view).vindex[selection]), expected)
            found = read(view).get_coordinate_selection(selection)
            assert_array_equal(np.squeeze(found), expected)
        array.vindex[selection] = expected * 1000
        data[tuple(np.asarray(axis) for axis in selection)] = expected * 1000
        for view in views():
            assert_array_equal(read(view)[:], data)

    def test_masks(self, array, data, views):
        mask = data % 7 == 0
        for view in views():
            assert_array_equal(read(view).vindex[mask], data[mask])
            assert_array_equal(read(view).get_mask_selection(mask), data[mask])
            assert_array_equal(read(view)[mask], data[mask])
        array.vindex[mask] = -5
        data[mask] = -5
        for view in views():
            assert_array_equal(read(view)[:], data)

    @pytest.mark.parametrize(
        ("selection", "region"),
        [
            ((0, 0), np.s_[:4, :5]),
            ((2, 2), np.s_[8:, 10:]),
            ((slice(1, 3), 1), np.s_[4:, 5:10]),
            (-1, np.s_[8:, :]),
            (slice(None), np.s_[:, :]),
        ],
        ids=str,
    )
    def test_blocks(self, array, data, views, selection, region):
        for view in views():
            assert_array_equal(read(view).blocks[selection], data[region])
            assert_array_equal(read(view).get_block_selection(selection), data[region])
        array.blocks[selection] = array.blocks[selection] * 1000
        data[region] *= 1000
        for view in views():
            assert_array_equal(read(view)[:], data)

    @unstable
    def test_fields(self, store, views, zarr_format):
        data = np.array([(1, 2.5), (3, 4.5), (5, 6.5)], dtype=[("x", "i4"), ("y", "f8")])
        array = zarr.create_array(
            store, name="a", shape=(3,), chunks=(2,), dtype=data.dtype, zarr_format=zarr_format
        )
        array[:] = data
        # zarr 3 reads all fields or fails with one, on any store.
        for view in views():
            found = read(view)
            assert_array_equal(found["x", "y"], data)
            assert_array_equal(found.get_basic_selection(slice(1, 3), fields=["x", "y"]), data[1:])
            assert_array_equal(
                found.get_orthogonal_selection([2, 0], fields=["x", "y"]), data[[2, 0]]
            )
        data["y"][1:] = [0.25, 0.5]
        array[1:] = data[1:]
        for view in views():
            assert_array_equal(read(view)[:], data)

    def test_out_of_bounds(self, array, views):
        for view in views():
            with pytest.raises(IndexError):
                read(view)[11, 0]
            with pytest.raises(IndexError):
                read(view).blocks[3, 0]

    def test_a_result_is_the_users_own(self, array, data, views):
        for view in views():
            result = read(view)[:]
            result[:] = 0
            assert_array_equal(read(view)[:], data)

    @pytest.mark.parametrize("length", [100, 100_000, 1_000_000])
    def test_the_users_array_may_change_after_the_write(self, store, views, zarr_format, length):
        """A chunk is copied when it is set: zarr hands over views of the array it is given."""
        data = np.ones(length, "u1")
        array = zarr.create_array(
            store,
            name="a",
            shape=data.shape,
            dtype="u1",
            chunks=data.shape,
            compressors=None,
            zarr_format=zarr_format,
        )
        array[:] = data
        data[:] = 9
        for view in views():
            assert (read(view)[:] == 1).all()


# ── types and codecs ─────────────────────────────────────────────────────────────────────────────

_RNG = np.random.default_rng(0)

# name: (what is written, the dtype to create, the fill value)
DTYPES = {
    "bool": (_RNG.random(9) > 0.5, None, True),
    "i1": (np.arange(-4, 5, dtype="i1"), None, -1),
    ">i4": (np.arange(9, dtype=">i4"), None, 7),
    "u8": (np.array([0, 1, 2**64 - 1] * 3, dtype="u8"), None, 2**63),
    "f2": (np.linspace(0, 1, 9, dtype="f2"), None, 0.5),
    "f4 nan": (np.array([1, np.nan, np.inf, -np.inf] * 2 + [0], dtype="f4"), None, np.nan),
    "f8 inf": (np.linspace(-1, 1, 9), None, np.inf),
    "f8 -inf": (np.linspace(-1, 1, 9), None, -np.inf),
    "c8": (np.arange(9, dtype="c8") * (1 - 2j), None, 1 + 1j),
    "c16 nan": (np.array([1 + 2j, np.nan, complex(0, np.nan)] * 3), None, complex("nan")),
    "M8": (np.array(["2026-03-01", "NaT", "1969-12-31T23:59:59"] * 3, "M8[s]"), None, "NaT"),
    "m8": (np.arange(9, dtype="m8[ns]"), None, np.timedelta64(3, "ns")),
    "fixed bytes": (np.array([b"a", b"bcd", b""] * 3), None, b"x"),
    "fixed text": (np.array(["a", "übc", "日本"] * 3), None, "x"),
    "raw": (np.frombuffer(bytes(range(27)), dtype="V3"), None, None),
    "text": (np.array(["", "a", "longer than the others ü"] * 3, dtype=object), str, "x"),
    "bytes": (np.array([b"", b"a", b"\x00\xff"] * 3, dtype=object), VariableLengthBytes(), b"x"),
    "structure": (
        np.array([(i, i / 2, b"ab") for i in range(9)], [("a", "i4"), ("b", "f8"), ("c", "S2")]),
        None,
        None,
    ),
}


class TestTypes:
    @unstable
    @pytest.mark.parametrize(("data", "dtype", "fill_value"), DTYPES.values(), ids=DTYPES)
    def test_every_dtype(self, store, views, zarr_format, data, dtype, fill_value):
        options = {} if fill_value is None else {"fill_value": fill_value}
        array = zarr.create_array(
            store,
            name="a",
            shape=(12,),
            chunks=(4,),
            dtype=data.dtype if dtype is None else dtype,
            zarr_format=zarr_format,
            **options,
        )
        array[:9] = data
        for view in views():
            found = read(view)
            assert_array_equal(found[:9].astype(data.dtype), data)
            assert found.dtype.kind == array.dtype.kind
            if fill_value is not None:
                fill = np.array([fill_value] * 3, dtype=data.dtype)
                assert_array_equal(found[9:].astype(data.dtype), fill)
        array[2:7] = data[:5]
        expected = np.concatenate([data[:2], data[:5], data[7:9]])
        for view in views():
            assert_array_equal(read(view)[:9].astype(data.dtype), expected)


V2_CODECS = {
    "default": {},
    "none": {"compressors": None},
    "zstd": {"compressors": numcodecs.Zstd(level=5)},
    "blosc": {"compressors": numcodecs.Blosc(cname="lz4", shuffle=2)},
    "gzip": {"compressors": numcodecs.GZip()},
    "lzma": {"compressors": numcodecs.LZMA()},
    "delta": {"filters": [numcodecs.Delta("i4")]},
    "delta, uncompressed": {"filters": [numcodecs.Delta("i4")], "compressors": None},
    "two filters": {"filters": [numcodecs.Delta("i4"), numcodecs.Shuffle(4)]},
    "offset": {"filters": [numcodecs.FixedScaleOffset(0, 1, "i4", "i2")]},
}
V3_CODECS = {
    "default": {},
    "none": {"compressors": None},
    "zstd": {"compressors": zarr.codecs.ZstdCodec(level=5, checksum=True)},
    "blosc": {"compressors": zarr.codecs.BloscCodec(cname="lz4")},
    "gzip": {"compressors": zarr.codecs.GzipCodec()},
    "crc32c": {"compressors": zarr.codecs.Crc32cCodec()},
    "zstd, crc32c": {"compressors": [zarr.codecs.ZstdCodec(), zarr.codecs.Crc32cCodec()]},
    "transpose": {"filters": zarr.codecs.TransposeCodec(order=(1, 0))},
    "big-endian": {"serializer": zarr.codecs.BytesCodec(endian="big")},
    # Made when they are needed, since an older zarr warns of them.
    "delta": lambda: {"filters": zarr.codecs.numcodecs.Delta(dtype="i4")},
    "shuffle": lambda: {"compressors": zarr.codecs.numcodecs.Shuffle(elementsize=4)},
    "sharding": {"shards": (8, 10)},
}


class TestCodecs:
    @not_in_v3
    @pytest.mark.parametrize(
        ("zarr_format", "codecs"),
        [
            pytest.param(format_, codecs, id=f"v{format_}, {name}")
            for format_, known in ((2, V2_CODECS), (3, V3_CODECS))
            for name, codecs in known.items()
        ],
    )
    def test_every_codec(self, store, views, zarr_format, codecs):
        data = numbers(11, 13)
        codecs = codecs() if callable(codecs) else codecs
        array = zarr.create_array(
            store, name="a", data=data, chunks=(4, 5), zarr_format=zarr_format, **codecs
        )
        for view in views():
            assert_array_equal(read(view)[:], data)
            assert_array_equal(read(view)[3:9, 4], data[3:9, 4])
        array[2:7, 3:11] = data[2:7, 3:11] * 2
        data[2:7, 3:11] *= 2
        for view in views():
            assert_array_equal(read(view)[:], data)


class TestSharding:
    @pytest.fixture
    def data(self) -> np.ndarray:
        return numbers(32, 24)

    @pytest.fixture(params=["end", "start"])
    def array(self, request, store: VzarrStore, data: np.ndarray) -> zarr.Array:
        return zarr.create_array(
            store,
            name="a",
            shape=data.shape,
            dtype=data.dtype,
            chunks=(4, 4),
            shards={"shape": (16, 12), "index_location": request.param},
            fill_value=0,
        )

    def test_whole(self, array, data, views):
        array[:] = data
        for view in views():
            assert_array_equal(read(view)[:], data)
            assert read(view).shards == (16, 12)
            assert sorted(view.session.keys("a/c")) == ["a/c/0/0", "a/c/0/1", "a/c/1/0", "a/c/1/1"]

    @pytest.mark.parametrize(
        "region", [np.s_[5, 5], np.s_[:4, :4], np.s_[3:30, 2], np.s_[10:20, 7:15]]
    )
    def test_parts(self, array, data, views, region):
        array[region] = data[region]
        expected = np.zeros_like(data)
        expected[region] = data[region]
        for view in views():
            assert_array_equal(read(view)[region], data[region])
            assert_array_equal(read(view)[:], expected)
        array[region] = 0
        for view in views():
            assert_array_equal(read(view)[:], 0)
            # A shard that holds only fill values is deleted.
            assert not list(view.session.keys("a/c"))

    def test_random_parts_in_random_order(self, array, data, views):
        expected = np.zeros_like(data)
        rng = np.random.default_rng(1)
        for _ in range(12):
            rows, columns = (np.sort(rng.integers(0, n + 1, 2)) for n in data.shape)
            region = np.s_[rows[0] : rows[1], columns[0] : columns[1]]
            array[region] = expected[region] = rng.integers(0, 3)
        for view in views():
            found = read(view)
            assert_array_equal(found[:], expected)
            for row, column in itertools.product((0, 3, 17, 31), (0, 11, 12, 23)):
                assert found[row, column] == expected[row, column]
            assert_array_equal(found.oindex[[0, 31, 5], 3:20], expected[[0, 31, 5], 3:20])

    def test_resize_and_append(self, array, data, views):
        array[:] = data
        array.append(data)
        array.resize((40, 20))
        for view in views():
            assert_array_equal(read(view)[:], np.concatenate([data, data])[:40, :20])


@pytest.mark.skipif(not HAS_RECTILINEAR, reason="this zarr has only regular chunks")
class TestRectilinear:
    @pytest.fixture(autouse=True)
    def allowed(self) -> Iterator[None]:
        with zarr.config.set({"array.rectilinear_chunks": True}):
            yield

    @pytest.fixture
    def array(self, store: VzarrStore) -> zarr.Array:
        chunks = ([2, 3, 5], [4, 4, 1])
        array = zarr.create_array(store, name="a", shape=(10, 9), chunks=chunks, dtype="i4")
        array[:] = numbers(10, 9)
        return array

    def test_reading_and_writing(self, array, views):
        data = numbers(10, 9)
        for view in views():
            found = read(view)
            assert_array_equal(found[:], data)
            assert_array_equal(found[1:6, 3:9], data[1:6, 3:9])
            assert len(list(view.session.keys("a/c"))) == 9
        array[4:, 8] = data[4:, 8] = 5
        for view in views():
            assert_array_equal(read(view)[:], data)

    def test_the_repository_knows_the_regions(self, repo, store, array):
        before = store.session.commit("before")
        array[6, 5] = 99
        after = store.session.commit("after")
        (node,) = repo.diff(before, after)
        (chunk,) = node.iter_chunks()
        assert chunk.coordinates == (2, 1)
        assert chunk.region == np.s_[5:10, 4:8]


# ── threads ──────────────────────────────────────────────────────────────────────────────────────


class TestThreads:
    @pytest.fixture(params=["in memory", "staged"])
    def batches(self, request, monkeypatch: pytest.MonkeyPatch) -> None:
        if request.param == "staged":
            monkeypatch.setattr("vzarr.changes.BATCH_BYTES", 2000)

    def test_many_threads_write_chunks_of_their_own(self, store, views, batches, zarr_format):
        data = _RNG.integers(0, 1000, (64, 50), dtype="i4")
        array = zarr.create_array(
            store,
            name="a",
            shape=data.shape,
            chunks=(1, 50),
            dtype="i4",
            compressors=None,
            zarr_format=zarr_format,
        )
        together = threading.Barrier(8)

        def write(thread: int) -> None:
            together.wait()
            for row in range(thread, 64, 8):
                array[row] = data[row]
                assert_array_equal(array[row], data[row])

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(8)))
        for view in views():
            assert_array_equal(read(view)[:], data)
            assert read(view).nchunks_initialized == 64

    def test_threads_that_read_see_what_others_have_written(self, store, views, batches):
        """What is on its way into the file is found at every moment of its way."""
        values = {f"a/{number}": f"{number} ".encode() * 100 for number in range(150)}
        keys = list(values)
        written = 0

        def write() -> None:
            nonlocal written
            for key, value in values.items():
                store.set_sync(key, cpu.Buffer.from_bytes(value))
                written += 1

        def look() -> None:
            while written < len(keys):
                last = written
                # The one that was written, and the one that is being written.
                for number, key in enumerate(keys[max(0, last - 3) : last + 1], max(0, last - 3)):
                    found = store.get_sync(key)
                    assert found is not None or number >= last
                    assert found is None or found.to_bytes() == values[key]

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            with ThreadPoolExecutor(3) as pool:
                tasks = [pool.submit(look), pool.submit(look), pool.submit(write)]
                for task in tasks:
                    task.result()
        finally:
            sys.setswitchinterval(interval)
        for view in views():
            for key, value in values.items():
                assert view.get_sync(key).to_bytes() == value

    def test_threads_share_a_group(self, store, views, zarr_format):
        root = zarr.open_group(store, mode="a", zarr_format=zarr_format)

        def create(number: int) -> None:
            root.create_array(f"g/{number}", data=numbers(5) * number, chunks=(2,))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(create, range(24)))
        for view in views():
            group = zarr.open_group(view, path="g", mode="r")
            assert sorted(group, key=int) == [str(number) for number in range(24)]
            for number in range(24):
                assert_array_equal(group[str(number)][:], numbers(5) * number)

    def test_threads_read_a_snapshot(self, repo, store):
        data = _RNG.random((40, 40))
        zarr.create_array(store, name="a", data=data, chunks=(5, 5))
        store.session.commit("data")
        array = read(repo.store("main"))
        with ThreadPoolExecutor(8) as pool:
            rows = list(pool.map(operator.itemgetter(slice(None)), [array] * 8))
            rows += list(pool.map(array.__getitem__, range(40)))
        for found in rows[:8]:
            assert_array_equal(found, data)
        assert_array_equal(np.stack(rows[8:]), data)


@pytest.mark.skipif(find_spec("dask") is None, reason="needs dask")
def test_dask_writes_and_reads(repo, store, views):
    import dask.array as da

    data = _RNG.random((60, 60))
    target = zarr.create_array(store, name="a", shape=data.shape, chunks=(10, 10), dtype="f8")
    da.from_array(data, chunks=(20, 20)).store(target, lock=False, scheduler="threads")
    for view in views():
        lazy = da.from_zarr(read(view))
        assert_array_equal(lazy[5:50, 3].compute(scheduler="threads"), data[5:50, 3])
        assert np.isclose(lazy.mean().compute(scheduler="threads"), data.mean())
