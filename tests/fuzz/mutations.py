"""Many mutated files: python -m tests.fuzz.mutations --count 100000 --seed 0."""

from __future__ import annotations

import argparse
import json
import random
import resource
from collections import Counter

from tests.fuzz.loader import LAYOUT, check, seal, seeds

KINDS = ("bits", "bytes", "cut", "insert", "repeat", "splice", "zeros")


def mutate(data: bytes, other: bytes, kind: str, chance: random.Random) -> bytes:
    """Returns a file with a few places changed."""
    mutated = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        if not mutated:
            break
        at = chance.randrange(len(mutated))
        end = min(len(mutated), at + chance.choice((1, 2, 4, 32)))
        if kind == "bits":
            mutated[at] ^= 1 << chance.randrange(8)
        elif kind == "bytes":
            mutated[at] = chance.choice((0, 1, 127, 128, 254, 255, chance.randrange(256)))
        elif kind == "cut":
            del mutated[at:end]
        elif kind == "insert":
            mutated[at:at] = chance.randbytes(end - at)
        elif kind == "repeat":
            mutated[at:at] = mutated[at:end]
        elif kind == "splice":
            mutated[at:] = other[chance.randrange(len(other)) :]
        else:
            mutated[at:end] = bytes(end - at)
    return bytes(mutated)


def run(count: int, seed: int) -> Counter[str]:
    """Returns how so many mutated files ended; those with a new checksum count as "sealed".

    Raises:
        AssertionError: a file without one was read although its bytes had changed, or as `check`.
    """
    chance, originals, outcomes = random.Random(seed), seeds(), Counter[str]()
    for _ in range(count):
        data = chance.choice(originals)
        kind, sealed = chance.choice(KINDS), chance.random() < 0.8
        mutated = mutate(data, chance.choice(originals), kind, chance)
        if sealed:
            mutated = seal(mutated)
        outcome = check(mutated, LAYOUT)
        assert sealed or outcome != "read" or mutated in originals, (kind, mutated.hex())
        outcomes[f"{'sealed' if sealed else 'plain'}, {outcome}"] += 1
    return outcomes


def main() -> None:
    """Prints the counts as JSON, with the peak of the memory in MB."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    outcomes = run(asked.count, asked.seed)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({"files": asked.count, "seed": asked.seed, "peak_mb": peak} | dict(sorted(outcomes.items()))))


if __name__ == "__main__":
    main()
