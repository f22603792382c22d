"""A file that is there whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Of a long name only so many characters stand in the temporary one, which has to fit the file system as well.
NAME_CHARACTERS = 40
SUFFIX = ".part"


@contextlib.contextmanager
def replacing(path: Path, suffix: str = "") -> Iterator[Path]:
    """Gives a temporary file in the folder of `path`; what is written there takes its name where nothing is raised.

    Args:
        path: the file to write.
        suffix: of the temporary name, where a library goes by it.

    Raises:
        OSError: it cannot be written; what was there before is untouched, and nothing is left behind.
    """
    descriptor, name = tempfile.mkstemp(prefix=_prefix(path), suffix=suffix or SUFFIX, dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file to a temporary name in its folder, to the disk, and then under its own name.

    Raises:
        OSError: as `replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def remove_leftovers(path: Path) -> None:
    """Removes what a killed process left of writing `path`; nobody else may be writing it."""
    for pattern in (f"{glob.escape(_prefix(path))}*{SUFFIX}", f"{glob.escape(path.name)}*.tmp"):
        for leftover in path.parent.glob(pattern):
            with contextlib.suppress(OSError):
                leftover.unlink()


def _prefix(path: Path) -> str:
    return f".{path.name[:NAME_CHARACTERS]}."
