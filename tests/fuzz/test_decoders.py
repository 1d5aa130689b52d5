"""Every decoder, given anything: a value that is spelled so, or a typed error, and soon."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
import time
import warnings

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.decoders import DECODERS, UnsoundError, judge
from tests.fuzz.mutation import mutate
from vzarr.errors import CorruptError
from vzarr.format import decode_commit, decode_journal, seal, unseal
from vzarr.node import decode_node

TORTURE = os.environ.get("VZARR_TORTURE") == "1"
_SECONDS = 20 if TORTURE else 0
few = settings(max_examples=500 if TORTURE else 60)

_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=40),
    st.binary(max_size=40),
    st.sampled_from([bytes(32), bytes(36), bytes(16), bytes(48)]),
    st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20)),
)
_structured = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=16),
        st.dictionaries(st.one_of(st.text(max_size=5), st.binary(max_size=5)), inner, max_size=4),
    ),
    max_leaves=30,
)


@pytest.mark.parametrize("name", DECODERS)
@given(data=st.binary(max_size=400))
@few
def test_any_bytes(name: str, data: bytes) -> None:
    judge(name, data)


@pytest.mark.parametrize("name", DECODERS)
@given(value=_structured)
@few
def test_records_of_the_wrong_types(name: str, value: object) -> None:
    judge(name, msgpack.packb(value))


@pytest.mark.parametrize("name", DECODERS)
@given(seed=st.integers(0, 2**32 - 1))
@few
def test_records_that_were_tampered_with(name: str, seed: int) -> None:
    chance = random.Random(seed)
    seeds = DECODERS[name].seeds
    judge(name, mutate(chance.choice(seeds), seeds, chance))


@pytest.mark.parametrize("name", DECODERS)
def test_what_the_fuzzers_begin_with_is_sound(name: str) -> None:
    for data in DECODERS[name].seeds:
        assert judge(name, data)


def test_what_a_decoder_must_not_do_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge itself is no rubber stamp."""

    def raises(data: bytes) -> None:
        raise KeyError(data)

    for decode, encode in ((raises, None), (bytes.upper, bytes)):
        decoder = DECODERS["head"]._replace(decode=decode, encode=encode)
        monkeypatch.setitem(DECODERS, "head", decoder)
        with pytest.raises(UnsoundError):
            judge("head", b"abc")


@pytest.mark.parametrize("decode", [decode_commit, decode_journal, decode_node])
def test_lists_that_claim_to_be_long_take_no_memory(decode) -> None:
    """Four hundred lists, one in the other, of a million items each: 3 GB of pointers."""
    claim = b"\xdd" + (10**6).to_bytes(4, "big")
    for data in (
        claim * 400 + b"\xc0" * 10**6,
        claim * 400,
        b"\x91" * 10**6,
        b"\xc6" + b"\xff" * 8,
    ):
        begun = time.thread_time()
        with pytest.raises(CorruptError):
            decode(data)
        assert time.thread_time() - begun < 1


def test_a_seal_is_of_the_place_too() -> None:
    sealed = seal("tags", b"v1", b"record")
    assert unseal("tags", b"v1", sealed) == b"record"
    for database, key in (("tags", b"v2"), ("branches", b"v1"), ("tags", b"v")):
        with pytest.raises(CorruptError, match="its checksum is wrong"):
            unseal(database, key, sealed)
    for position in range(8 * len(sealed)):
        flipped = bytearray(sealed)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(CorruptError, match="'v1' in tags"):
            unseal("tags", b"v1", bytes(flipped))


# ── longer ───────────────────────────────────────────────────────────────────────────────────────


def _run(*arguments: str, seconds: float) -> str:
    call = [sys.executable, "-m", "tests.fuzz.run", *arguments]
    ended = subprocess.run(call, capture_output=True, text=True, timeout=seconds, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    return ended.stdout


def test_the_runner_with_little_memory() -> None:
    """All decoders in 2 GiB of address space: for a moment, or in the long run 20 s each."""
    each = _SECONDS or 0.2
    counts = _run(f"--seconds={each}", seconds=120 + 2 * each * len(DECODERS))
    for name in DECODERS:
        assert f"\n{name}: " in counts
    if TORTURE:
        print(counts)


def test_the_runner_tells_what_it_does_not_know() -> None:
    call = [sys.executable, "-m", "tests.fuzz.run", "nothing"]
    ended = subprocess.run(call, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "there is no decoder nothing" in ended.stderr


@pytest.mark.skipif(not TORTURE, reason="VZARR_TORTURE=1 fuzzes with atheris, too")
def test_guided_by_coverage() -> None:
    if importlib.util.find_spec("atheris") is None:
        message = "NOT FUZZED BY COVERAGE: there is no atheris here; pip install atheris"
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    _run("--atheris", f"--seconds={_SECONDS * 6}", seconds=_SECONDS * 6 + 120)
