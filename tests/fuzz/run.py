"""Fuzz the decoders for as long as you like.

``python -m tests.fuzz.run --seconds 60 [decoder ...]`` mutates valid records, and keeps a mutant
that was taken as another one to begin from. In a process with 2 GiB of address space, so that what
allocates by a number in the data fails. Prints one line of counts for each decoder, and ends with 1
and the offending bytes when one does what it must not. With ``--atheris`` libFuzzer looks for
inputs, guided by coverage; that needs the package atheris.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time

from tests.fuzz.decoders import DECODERS, UnsoundError, judge
from tests.fuzz.mutation import mutate

ADDRESS_SPACE_BYTES = 2 << 30
_MOST_SEEDS = 500


def fuzz(name: str, seconds: float, seed: int) -> tuple[int, int]:
    """Fuzz a decoder; give how many inputs it got, and how many it took."""
    chance = random.Random(seed)
    seeds = list(DECODERS[name].seeds)
    end = time.monotonic() + seconds
    tried = taken = 0
    while time.monotonic() < end:
        data = mutate(chance.choice(seeds), DECODERS[name].seeds, chance)
        tried += 1
        if judge(name, data):
            taken += 1
            if len(data) < 10_000:
                seeds.append(data)
                if len(seeds) > _MOST_SEEDS:
                    seeds[chance.randrange(len(seeds) - 1)] = seeds.pop()
    return tried, taken


def _with_atheris(names: list[str], seconds: float) -> None:
    import atheris

    def one(data: bytes) -> None:
        if data:
            judge(names[data[0] % len(names)], data[1:])

    atheris.instrument_all()
    atheris.Setup([sys.argv[0], f"-max_total_time={seconds:.0f}", "-max_len=4096"], one)
    atheris.Fuzz()


def main(arguments: list[str] | None = None) -> int:
    """Run; give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("decoders", nargs="*", metavar="decoder", help=", ".join(DECODERS))
    parser.add_argument("--seconds", type=float, default=10, help="for each decoder")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--atheris", action="store_true")
    given = parser.parse_args(arguments)
    if unknown := set(given.decoders) - DECODERS.keys():
        parser.error(f"there is no decoder {', '.join(sorted(unknown))}")
    names = given.decoders or list(DECODERS)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    if given.atheris:
        _with_atheris(names, given.seconds)
        return 0
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    for name in names:
        try:
            tried, taken = fuzz(name, given.seconds, seed)
        except UnsoundError as error:
            print(f"{name}: {error}")
            return 1
        print(f"{name}: {tried} inputs, {taken} taken", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
