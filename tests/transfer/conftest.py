"""What the tests of imports and exports share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.transfer.sources import make_v3


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory of Zarr's, of format 3."""
    return make_v3(tmp_path / "sea.zarr")
