"""A PostgreSQL server for the tests, where the machine has one installed."""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest


@contextmanager
def postgres_url() -> Iterator[str]:
    """Gives the URL of an empty database of a server that ends with the test; skips the test where none can be."""
    folder = _programs()
    if find_spec("psycopg") is None:
        pytest.skip("the Python driver psycopg is not installed")
    user = _user()
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as name:
        data = Path(name) / "data"
        shutil.chown(name, user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]

        def run(program: str, *arguments: str) -> None:
            command = [str(folder / program), "-D", str(data), *arguments]
            done = subprocess.run(command, user=user, cwd=name, stdin=subprocess.DEVNULL, capture_output=True)
            assert done.returncode == 0, (done.stdout, done.stderr)

        run("initdb", "-U", "tester", "-A", "trust", "--no-sync")
        options = f"-p {port} -k {name} -c listen_addresses=127.0.0.1 -c fsync=off"
        # What it inherits it would keep open: a pipe of the tests would never end.
        subprocess.run(
            [str(folder / "pg_ctl"), "-D", str(data), "-o", options, "-l", f"{name}/log", "-w", "start"],
            user=user,
            cwd=name,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        try:
            yield f"postgresql+psycopg://tester@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-m", "immediate", "-w", "stop")


def _programs() -> Path:
    """Returns the folder of PostgreSQL's programs."""
    installed = [*glob.glob("/usr/lib/postgresql/*/bin"), *os.environ.get("PATH", "").split(os.pathsep)]
    for folder in map(Path, installed):
        if all((folder / program).exists() for program in ("initdb", "pg_ctl", "postgres")):
            return folder
    pytest.skip("PostgreSQL (initdb, pg_ctl, postgres) is not installed")


def _user() -> str | None:
    """Returns as whom it runs, because it refuses to as root; None = as we do."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    pytest.skip("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")
