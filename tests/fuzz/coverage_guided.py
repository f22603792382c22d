"""Coverage-guided fuzzing of the loader, with atheris: python -m tests.fuzz.coverage_guided -max_total_time=600 FOLDER.

Everything after the module's name goes to libFuzzer; new inputs are kept in FOLDER, the committed seeds are read as
well. Ends with status 0 where every file ended in an error of ours or a sound state.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["autocompress.codec", "autocompress.network"]):
    from tests.fuzz.loader import LAYOUT, SEEDS, check, seal


def one(data: bytes) -> None:
    """Reads one input, with a checksum that belongs to it."""
    check(seal(data), LAYOUT)


def main() -> None:
    """Runs until libFuzzer's limits."""
    atheris.Setup([*sys.argv, str(SEEDS)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
