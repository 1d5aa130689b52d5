"""The engines that do without zarr: HDF5, TensorStore, and the limits that the machine sets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bench.engines.base import Closing, Engine, Layout, Opened

MIB = 1 << 20

# ── HDF5 ─────────────────────────────────────────────────────────────────────────────────────────


class OpenHdf5(Closing):
    """A file of HDF5; a change ends with a flush."""

    def __init__(self, file: Any) -> None:
        self.file = file

    @property
    def array(self) -> Any:
        return self.file["a"]

    @contextmanager
    def change(self, message: str, name: str = "a") -> Iterator[Any]:  # noqa: ARG002
        yield Resizable(self.file[name])
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class Resizable:
    """A dataset of HDF5 whose ``resize`` takes a shape, like zarr's."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.dataset.shape)

    def resize(self, shape: tuple[int, ...]) -> None:
        self.dataset.resize(shape)

    def __getitem__(self, region: Any) -> Any:
        return self.dataset[region]

    def __setitem__(self, region: Any, values: Any) -> None:
        self.dataset[region] = values


@dataclass(frozen=True)
class H5py(Engine):
    packages: ClassVar[tuple[str, ...]] = ("h5py",)

    def create(self, path: Path, layout: Layout) -> Opened:
        import h5py

        # HDF5's default is 1 MiB, into which a chunk of 1 MiB and its neighbour do not fit.
        cache = max(MIB, 2 * layout.chunk_bytes)
        file = h5py.File(path, "w", libver="latest", rdcc_nbytes=cache)
        create_datasets(file, layout, maxshape=(None, *layout.shape[1:]))
        return OpenHdf5(file)

    def open(self, path: Path, *, write: bool = False) -> Opened:
        import h5py

        return OpenHdf5(h5py.File(path, "r+" if write else "r", libver="latest"))


def create_datasets(group: Any, layout: Layout, **more: Any) -> None:
    """Make the arrays in a group of a file. What HDF5 compresses with is gzip."""
    for name in layout.names:
        group.create_dataset(
            name,
            shape=layout.shape,
            chunks=layout.chunks,
            dtype=layout.dtype,
            compression="gzip" if layout.compressed else None,
            **more,
        )


class OpenVersioned(Closing):
    """A file of versioned-hdf5; a change is a version."""

    def __init__(self, file: Any) -> None:
        from versioned_hdf5 import VersionedHDF5File

        self.file = file
        self.versions = VersionedHDF5File(file)

    @property
    def array(self) -> Any:
        return self.versions[self.versions.current_version]["a"]

    @contextmanager
    def change(self, message: str, name: str = "a") -> Iterator[Any]:
        # Its versions need names, all different.
        number = len(self.versions._versions)  # noqa: SLF001
        with self.versions.stage_version(f"{number} {message}") as group:
            yield Resizable(group[name])
        self.file.flush()

    def close(self) -> None:
        self.file.close()


@dataclass(frozen=True)
class VersionedHdf5(Engine):
    packages: ClassVar[tuple[str, ...]] = ("versioned-hdf5", "h5py")
    modules: ClassVar[tuple[str, ...]] = ("versioned_hdf5", "h5py")

    def create(self, path: Path, layout: Layout) -> Opened:
        import h5py
        from versioned_hdf5 import VersionedHDF5File

        file = h5py.File(path, "w")
        with VersionedHDF5File(file).stage_version("create") as group:
            create_datasets(group, layout)
        return OpenVersioned(file)

    def open(self, path: Path, *, write: bool = False) -> Opened:
        import h5py

        return OpenVersioned(h5py.File(path, "r+" if write else "r"))


# ── TensorStore ──────────────────────────────────────────────────────────────────────────────────


class Tensor:
    """An array of TensorStore that looks like zarr's: its results are waited for."""

    def __init__(self, array: Any) -> None:
        self.array = array

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    def resize(self, shape: tuple[int, ...]) -> None:
        self.array = self.array.resize(exclusive_max=shape, expand_only=True).result()

    def __getitem__(self, region: Any) -> Any:
        return self.array[region].read().result()

    def __setitem__(self, region: Any, values: Any) -> None:
        self.array[region].write(values).result()


class OpenTensor(Closing):
    """Arrays of TensorStore; a change is a transaction where it has them for many chunks."""

    def __init__(self, tensors: dict[str, Tensor], *, transactions: bool) -> None:
        self.tensors = tensors
        self.transactions = transactions

    @property
    def array(self) -> Any:
        return self.tensors["a"]

    @contextmanager
    def change(self, message: str, name: str = "a") -> Iterator[Any]:  # noqa: ARG002
        tensor = self.tensors[name]
        if not self.transactions:
            yield tensor
            return
        import tensorstore

        with tensorstore.Transaction(atomic=True) as transaction:
            yield Tensor(tensor.array.with_transaction(transaction))
        # What the transaction resized is seen after a new look.
        tensor.array = tensor.array.resolve().result()


@dataclass(frozen=True)
class TensorStore(Engine):
    """TensorStore's driver of zarr's format 3, on files or on its key-value store OCDBT.

    ``tuned`` has nodes of 16 KiB instead of 8 MB, with which a small commit writes little, and
    memory for decoded nodes.
    """

    durable: bool | None = True
    ocdbt: bool = True
    tuned: bool = False
    packages: ClassVar[tuple[str, ...]] = ("tensorstore",)

    def create(self, path: Path, layout: Layout) -> Opened:
        path.mkdir()
        # Its own default is no codec; zstd at level 0 is what zarr takes.
        codecs = [{"name": "zstd", "configuration": {"level": 0}}] if layout.compressed else []
        grid = {"name": "regular", "configuration": {"chunk_shape": list(layout.chunks)}}
        metadata = {
            "shape": list(layout.shape),
            "data_type": np.dtype(layout.dtype).name,
            "chunk_grid": grid,
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, *codecs],
        }
        return self._open(path, layout.names, {"metadata": metadata}, create=True)

    def open(self, path: Path, *, write: bool = False) -> Opened:
        return self._open(path, ("a",), {}, read=True, write=write)

    def _open(
        self, path: Path, names: tuple[str, ...], spec: dict[str, Any], **how: bool
    ) -> OpenTensor:
        import tensorstore

        specs = {name: {**self._spec(path, name), **spec} for name in names}
        arrays = {name: tensorstore.open(specs[name], **how).result() for name in names}
        tensors = {name: Tensor(array) for name, array in arrays.items()}
        return OpenTensor(tensors, transactions=self.ocdbt)

    def _spec(self, path: Path, name: str) -> dict[str, Any]:
        spec: dict[str, Any] = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{path}/{name}/"},
        }
        if self.ocdbt:
            spec["kvstore"] = {"driver": "ocdbt", "base": f"file://{path}/", "path": f"{name}/"}
        if self.tuned:
            spec["kvstore"]["config"] = {"max_decoded_node_bytes": 16 << 10}
            spec["context"] = {"cache_pool": {"total_bytes_limit": 256 << 20}}
        return spec


# ── the limits ───────────────────────────────────────────────────────────────────────────────────


PIECE_BYTES = 8 << 20
"""What is written at once: Linux takes a whole GiB in one call more slowly than in pieces."""


class OpenRaw(Closing):
    """A file with nothing but the elements, written in big pieces and read in one go."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        self.path, self.shape, self.dtype = path, shape, dtype

    @property
    def array(self) -> Any:
        return self

    def __getitem__(self, region: Any) -> Any:
        """Read the whole array."""
        whole = np.empty(self.shape, self.dtype)
        with self.path.open("rb", buffering=0) as file:
            view, done = memoryview(whole).cast("B"), 0
            # The system reads 2 GiB at most at a time.
            while done < len(view):
                done += file.readinto(view[done:])
        return whole[region]

    def __setitem__(self, region: Any, values: np.ndarray) -> None:
        """Write the whole array and sync the file."""
        assert values.shape == self.shape
        with self.path.open("wb", buffering=0) as file:
            view, done = memoryview(np.ascontiguousarray(values)).cast("B"), 0
            while done < len(view):
                done += file.write(view[done : done + PIECE_BYTES])
            os.fsync(file.fileno())

    @contextmanager
    def change(self, message: str, name: str = "a") -> Iterator[Any]:  # noqa: ARG002
        yield self


@dataclass(frozen=True)
class Raw(Engine):
    """A plain file, which is written from begin to end and synced, and read in one go."""

    durable: bool | None = True

    def create(self, path: Path, layout: Layout) -> Opened:
        note = f"{layout.dtype} {' '.join(map(str, layout.shape))}"
        path.with_suffix(".shape").write_text(note)
        return OpenRaw(path, layout.shape, layout.dtype)

    def open(self, path: Path, *, write: bool = False) -> Opened:  # noqa: ARG002
        dtype, *shape = path.with_suffix(".shape").read_text().split()
        return OpenRaw(path, tuple(map(int, shape)), dtype)


class OpenCopy(Closing):
    """An array in memory. Writing copies into pages that are new, reading out of it does too."""

    def __init__(self, arrays: dict[Path, np.ndarray], path: Path) -> None:
        self.arrays, self.path = arrays, path

    @property
    def array(self) -> Any:
        return self

    def __getitem__(self, region: Any) -> Any:
        return self.arrays[self.path][region].copy()

    def __setitem__(self, region: Any, values: np.ndarray) -> None:
        self.arrays[self.path][region] = values

    @contextmanager
    def change(self, message: str, name: str = "a") -> Iterator[Any]:  # noqa: ARG002
        yield self


@dataclass(frozen=True)
class Memcpy(Engine):
    """One copy in memory."""

    durable: bool | None = None
    arrays: ClassVar[dict[Path, np.ndarray]] = {}

    def create(self, path: Path, layout: Layout) -> Opened:
        self.arrays[path] = np.empty(layout.shape, layout.dtype)
        return OpenCopy(self.arrays, path)

    def open(self, path: Path, *, write: bool = False) -> Opened:  # noqa: ARG002
        return OpenCopy(self.arrays, path)


H5PY = H5py("h5py")
VERSIONED_HDF5 = VersionedHdf5("versioned-hdf5")
TENSORSTORE = TensorStore("TensorStore, files", "tensorstore", ocdbt=False)
OCDBT = TensorStore("TensorStore, OCDBT", "tensorstore")
OCDBT_TUNED = TensorStore("TensorStore, OCDBT tuned", "tensorstore", tuned=True)
RAW = Raw("raw file", "raw")
MEMCPY = Memcpy("memcpy")
