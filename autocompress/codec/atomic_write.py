"""A file that is there whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows: what a killed process leaves stays there
    fcntl = None  # type: ignore[assignment]

# Of a long name only so many characters stand in the temporary one, which has to fit the file system as well.
NAME_CHARACTERS = 40
SUFFIX = ".part"


@contextlib.contextmanager
def replacing(path: Path, suffix: str = "") -> Iterator[Path]:
    """Gives a temporary file in the folder of `path`; what is written there takes its name where nothing is raised.

    What a killed process left of the same is removed.

    Args:
        path: the file to write.
        suffix: of the temporary name, where a library goes by it.

    Raises:
        OSError: it cannot be written; what was there before is untouched, and nothing is left behind.
    """
    remove_leftovers(path, suffix)
    descriptor, temporary = _locked_temporary(path, suffix or SUFFIX)
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
        os.close(descriptor)


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file to a temporary name in its folder, to the disk, and then under its own name.

    Raises:
        OSError: as `replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def remove_leftovers(path: Path, suffix: str = "") -> None:
    """Removes what killed processes left of writing `path`; what a living one is writing is locked, and stays."""
    for leftover in path.parent.glob(f"{glob.escape(_prefix(path))}*{suffix or SUFFIX}"):
        with contextlib.suppress(OSError):
            descriptor = os.open(leftover, os.O_RDWR)
            try:
                if _lock(descriptor):
                    leftover.unlink()
            finally:
                os.close(descriptor)


def _locked_temporary(path: Path, suffix: str) -> tuple[int, Path]:
    """Returns a new file, open and locked until it is closed."""
    while True:
        descriptor, name = tempfile.mkstemp(prefix=_prefix(path), suffix=suffix, dir=path.parent)
        # Between the two another process may have taken it for a leftover.
        if _lock(descriptor) is not False and os.fstat(descriptor).st_nlink:
            return descriptor, Path(name)
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Returns whether an open file is ours until it is closed; None where files cannot be locked."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def _prefix(path: Path) -> str:
    return f".{path.name[:NAME_CHARACTERS]}."
