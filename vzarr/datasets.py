"""HDF5, NetCDF and GRIB as sources of an import: read by xarray, and encoded to Zarr anew.

Values are taken as the file has them: packed, with fill values, times as numbers since a date. What
they mean is in the attributes, which are kept, so that xarray decodes a copy as it decodes the
original. Chunks keep their shape where the file has chunks.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, final

import numpy as np

from vzarr.archives import state_of
from vzarr.datafile import os_error
from vzarr.errors import InvalidInputError, VzarrError
from vzarr.format import Layout, encode_coordinates
from vzarr.intake import Piece, Survey, Values, changed, join, require_key
from vzarr.progress import Meter
from vzarr.system import cores

Kind = Literal["HDF5", "NetCDF 3", "GRIB"]
# What reads each, beside xarray.
_PACKAGES: dict[Kind, tuple[str, ...]] = {
    "HDF5": ("h5netcdf", "h5py"),
    "NetCDF 3": ("scipy",),
    "GRIB": ("cfgrib",),
}
# Decoding and encoding take processors; reading HDF5 is one thread's at a time.
_WORKERS = min(4, cores())
_PIECE_BYTES = 8 << 20
# One by one, because ``open_groups`` does not look at ``decode_cf``.
_AS_IT_IS: dict[str, Any] = {
    "mask_and_scale": False,
    "decode_times": False,
    "decode_timedelta": False,
    "concat_characters": False,
    "decode_coords": False,
    "cache": False,
}

# How zarr spells the chunk keys of the arrays that are made here: c/0/1.
_SLASHES = 0


@final
class DatasetSource:
    """Reads the variables of a file, region by region, and encodes them."""

    workers = _WORKERS

    def __init__(self, path: str, kind: Kind) -> None:
        """Open it. Raises ``InvalidInputError`` if it is damaged, or a package is missing."""
        _require_packages(path, kind)
        self.identity = os.path.realpath(path)
        self.label = path
        self.state = state_of(path)
        self._groups = _open(self.identity, path, kind)
        from zarr.storage import MemoryStore

        # Documents, and chunks from when they were encoded until they are taken.
        self._made: dict[str, Any] = {}
        self._store = MemoryStore(self._made)
        self._arrays: dict[str, tuple[Any, Any]] = {}

    def close(self) -> None:
        """Close the file."""
        for group in self._groups.values():
            group.close()

    def survey(self, meter: Meter) -> Survey:
        """Look at all variables, and make their documents."""
        meter.stage("look", 0)
        for path, group in self._groups.items():
            self._add_group(path.strip("/"), group)
            meter.step(len(group.variables))
        documents = {key: value.to_bytes() for key, value in self._made.items()}
        return Survey(documents, sum(1 for _ in self.pieces()), 0, 0)

    def _add_group(self, path: str, group: Any) -> None:
        import zarr

        # Filters of warnings are everybody's, and so not to be touched in threads.
        with warnings.catch_warnings(action="ignore"):
            with self._about(path or "the root group", "attributes"):
                zarr.create_group(self._store, path=path, attributes=_attributes(group.attrs))
            for name, variable in group.variables.items():
                place = require_key(join(path, str(name)), self.label)
                with self._about(place, "data type and attributes"):
                    array = _create(self._store, place, variable)
                self._arrays[place] = variable, array

    @contextmanager
    def _about(self, place: str, what: str) -> Iterator[None]:
        """Turn what zarr or JSON raise into words."""
        try:
            yield
        except VzarrError:
            raise
        except (TypeError, ValueError, KeyError, NotImplementedError) as error:
            raise InvalidInputError(
                f"{place} of {self.label}: its {what} cannot be written to Zarr ({error})"
            ) from error

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    def pieces(self) -> Iterator[Piece]:
        """Give regions of whole chunks, some megabytes each."""
        for place, (variable, array) in self._arrays.items():
            for block in _blocks(array.shape, array.chunks, max(1, variable.dtype.itemsize)):
                elements = math.prod(part.stop - part.start for part in block)
                yield Piece(
                    tuple(_keys(place, array.chunks, block)),
                    elements * variable.dtype.itemsize,
                    handle=(place, block),
                )

    def read(self, piece: Piece) -> Values:
        """Read a region and encode it; chunks that have only the fill value come to nothing."""
        place, block = piece.handle
        variable, array = self._arrays[place]
        values = self._values(place, variable, block)
        with self._about(place, "values"):
            # Threads write to one store, and each takes its own keys out of it.
            array[block] = values
        found = [(key, self._made.pop(key)) for key in piece.keys if key in self._made]
        return [(key, value.to_bytes()) for key, value in found]

    def _values(self, place: str, variable: Any, block: tuple[slice, ...]) -> Any:
        try:
            return np.asarray(variable[block].values)
        except Exception as error:
            # Whatever h5py, and the filters below it, may raise.
            where = ", ".join(f"{part.start}:{part.stop}" for part in block)
            if state_of(self.identity) != self.state:
                raise changed(self.label) from error
            if isinstance(error, OSError) and error.errno is not None:
                raise os_error(error, f"cannot read {self.label}") from error
            raise InvalidInputError(
                f"{place}[{where}] of {self.label} cannot be decoded ({error}): the file is "
                "damaged there, or a filter is not installed"
            ) from error

    def is_as_read(self, piece: Piece, since: int) -> bool:  # noqa: ARG002 - ``state`` tells
        """Say yes: an import of another state of the file is not gone on with."""
        return True

    def has(self, key: str) -> bool:  # noqa: ARG002 - as above
        """Say yes: what an earlier run made of the same state is the same."""
        return True

    def require_unchanged(self, meter: Meter) -> None:  # noqa: ARG002 - one file is quickly seen
        """Look at the file again."""
        if state_of(self.identity) != self.state:
            raise changed(self.label)


# ── opening ──────────────────────────────────────────────────────────────────────────────────────


def _require_packages(path: str, kind: Kind) -> None:
    missing = [
        name for name in ("xarray", *_PACKAGES[kind]) if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise InvalidInputError(
            f"{path} is a {kind} file, and to read it {' and '.join(missing)} must be installed: "
            f"pip install {' '.join(missing)}"
        )


def _open(path: str, label: str, kind: Kind) -> dict[str, Any]:
    """Open all groups, nothing of them decoded."""
    import xarray

    try:
        with warnings.catch_warnings(action="ignore"):
            match kind:
                case "HDF5":
                    groups: dict[str, Any] = xarray.open_groups(
                        path, engine="h5netcdf", phony_dims="access", **_AS_IT_IS
                    )
                    return groups
                case "NetCDF 3":
                    return {
                        "/": xarray.open_dataset(path, engine="scipy", decode_cf=False, cache=False)
                    }
                case "GRIB":
                    return _open_grib(path)
    except Exception as error:
        # Whatever the libraries below xarray raise for a file that is damaged.
        raise InvalidInputError(
            f"{label} cannot be read as {kind} ({error}): it may be half-written"
        ) from error


def _open_grib(path: str) -> dict[str, Any]:
    """Open messages on one grid as the root group, and those on several as a group each."""
    import cfgrib

    # An index beside the file would be one more file, and stale once that is replaced. By default,
    # messages that cannot be read are skipped. It tells grids apart by what is no coordinate.
    options = {"indexpath": "", "errors": "raise"}
    datasets = cfgrib.open_datasets(
        path, backend_kwargs=options, **(_AS_IT_IS | {"decode_coords": True})
    )
    if len(datasets) == 1:
        return {"/": datasets[0]}
    import xarray

    groups = {"/": xarray.Dataset(attrs=datasets[0].attrs)}
    for dataset in datasets:
        levels = {
            variable.attrs.get("GRIB_typeOfLevel", "messages")
            for variable in dataset.data_vars.values()
        }
        name = "_".join(sorted(levels)) or "messages"
        number = itertools.count(2)
        unique = f"/{name}"
        while unique in groups:
            unique = f"/{name}_{next(number)}"
        groups[unique] = dataset
    return groups


# ── making arrays ────────────────────────────────────────────────────────────────────────────────


def _create(store: Any, place: str, variable: Any) -> Any:
    """Make an array as xarray would have made it for the variable."""
    import zarr

    dtype = variable.dtype
    attributes = _attributes(variable.attrs)
    if "coordinates" in variable.encoding:
        attributes["coordinates"] = variable.encoding["coordinates"]
    options: dict[str, Any] = {}
    if "_FillValue" in attributes and dtype.kind in "biufcSU":
        from xarray.backends.zarr import FillValueCoder

        # What is missing is most of what many chunks have.
        fill = np.asarray(variable.attrs["_FillValue"]).reshape(-1)[0].astype(dtype)
        options["fill_value"] = fill
        attributes["_FillValue"] = FillValueCoder.encode(fill.item(), dtype)
    if not _is_compressed(variable.encoding):
        options["compressors"] = None
    return zarr.create_array(
        store,
        name=place,
        shape=variable.shape,
        dtype=str if dtype.kind == "O" else dtype,
        chunks=_chunks(variable),
        dimension_names=[str(name) for name in variable.dims],
        attributes=attributes,
        zarr_format=3,
        **options,
    )


def _chunks(variable: Any) -> tuple[int, ...] | Literal["auto"]:
    chunks = variable.encoding.get("chunksizes")
    if not chunks or len(chunks) != variable.ndim:
        return "auto" if all(variable.shape) else tuple(max(1, n) for n in variable.shape)
    return tuple(int(length) for length in chunks)


def _is_compressed(encoding: Mapping[str, Any]) -> bool:
    return any(encoding.get(name) for name in ("zlib", "szip", "compression", "zstd", "blosc"))


def _attributes(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): _plain(value) for name, value in attributes.items()}


def _plain(value: Any) -> Any:
    """Give an attribute in JSON's types."""
    match value:
        case np.ndarray():
            return [_plain(each) for each in value.tolist()]
        case np.generic():
            return _plain(value.item())
        case bytes():
            return value.decode()
        case list() | tuple():
            return [_plain(each) for each in value]
        case str() | int() | float() | None:
            return value
    raise TypeError(f"an attribute is {value!r}, which JSON cannot hold")


# ── regions ──────────────────────────────────────────────────────────────────────────────────────


def _blocks(
    shape: tuple[int, ...], chunks: tuple[int, ...], item_bytes: int
) -> Iterator[tuple[slice, ...]]:
    """Cut an array into regions of whole chunks, in the order of the chunks."""
    lengths = list(chunks)
    for axis in reversed(range(len(shape))):
        most = _PIECE_BYTES // max(1, math.prod(lengths) * item_bytes)
        lengths[axis] *= max(1, min(most, -(-shape[axis] // chunks[axis])))
    for starts in itertools.product(
        *(range(0, length, step) for length, step in zip(shape, lengths, strict=True))
    ):
        yield tuple(
            slice(start, min(start + step, length))
            for start, step, length in zip(starts, lengths, shape, strict=True)
        )


def _keys(place: str, chunks: tuple[int, ...], block: tuple[slice, ...]) -> Iterator[str]:
    layout = Layout(_SLASHES, len(chunks))
    ranges = [
        range(part.start // length, -(-part.stop // length))
        for part, length in zip(block, chunks, strict=True)
    ]
    for coordinates in itertools.product(*ranges):
        yield join(place, layout.spell(encode_coordinates(coordinates)))
