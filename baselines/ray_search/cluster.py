"""Starting a Ray on this machine, or connecting to a running one; both within seconds or not at all."""

from __future__ import annotations

import logging
import math
import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from autocompress.errors import InvalidInputError
from baselines.interface import SearchSettings

logger = logging.getLogger(__name__)
# Run in a process of its own: Ray waits for minutes for what listens but is no cluster, and cannot be told to stop.
PROBE = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"
PROBE_SECONDS = 3.0  # at least: Python has to start and to import Ray
CHECKOUT = Path(__file__).parents[2]
OBJECT_STORE_BYTES = 500_000_000  # a larger objective spills to disk, it does not fail
LOGGERS = ("ray", "ray.tune", "ray.train", "optuna")
# What keeps Ray and Ray Tune from writing to the terminal, from changing the folder that a trial runs in, and from
# handling Ctrl-C; and the time that a stopped trial has to leave its training loop.
ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Ray in this process and in those it starts, and puts everything back at the end."""
    environment = {name: os.environ.get(name) for name in ENVIRONMENT}
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    os.environ.update(ENVIRONMENT)
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Ray tells of a lost node on stdout, whatever `log_to_driver` says.
    worker, printed = ray._private.worker, ray._private.worker.print_to_stdstream
    worker.print_to_stdstream = _log_lines
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        worker.print_to_stdstream = printed
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _log_lines(data: dict[str, Any], *_: Any, **__: Any) -> None:
    logger.info("%s: %s", data.get("pid"), "\n".join(data.get("lines", ())))


@contextmanager
def connected(settings: SearchSettings, modules: Sequence[str] = ()) -> Iterator[None]:
    """Holds a Ray for the time of a search.

    A Ray that this process uses already is used as it is and left running. Otherwise one is started, or connected
    to, and let go of at the end.

    Args:
        settings: name the cluster, whose address has been checked, or None for one on this machine.
        modules: folders of packages that travel to the cluster beside `autocompress` and `baselines`.

    Raises:
        InvalidInputError: the cluster cannot be reached, or none of its nodes can hold a trial.
    """
    if ray.is_initialized():
        _check_room(settings)
        yield
        return
    try:
        if settings.ray_address is None:
            _start(settings)
        else:
            _connect(settings.ray_address, modules)
        _check_room(settings)
        yield
    finally:
        ray.shutdown()


def _start(settings: SearchSettings) -> None:
    logger.info("starting Ray on this machine, which takes some seconds")
    ray.init(
        address="local",  # without it Ray would connect to any that it finds on this machine
        num_cpus=max(1, math.ceil(settings.workers * settings.cpus_per_trial)),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
        object_store_memory=OBJECT_STORE_BYTES,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(_search_path())}},
    )


def _search_path() -> list[str]:
    """Returns the folders in which this process finds modules, those of the interpreter left out."""
    folders = [str(CHECKOUT), *(os.path.abspath(folder) for folder in sys.path)]
    own = [folder for folder in dict.fromkeys(folders) if os.path.isdir(folder)]
    return [folder for folder in own if not folder.startswith((sys.prefix, sys.base_prefix))]


def _connect(address: str, modules: Sequence[str]) -> None:
    packages = [str(CHECKOUT / "autocompress"), str(CHECKOUT / "baselines"), *modules]
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            runtime_env={"py_modules": packages, "env_vars": {"RAY_CHDIR_TO_TRIAL_DIR": "0"}},
        )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise InvalidInputError(f"no Ray cluster at ray_address {address!r}: {error}") from error


def check_address(address: str, seconds: float) -> None:
    """Finds out whether a cluster answers at an address.

    Raises:
        InvalidInputError: none does within `seconds`, or the address cannot be used.
    """
    if address == "auto":
        from ray._private.services import find_gcs_addresses

        running = find_gcs_addresses()  # type: ignore[no-untyped-call]
        if not running and not os.environ.get("RAY_ADDRESS"):
            raise InvalidInputError("ray_address is 'auto', but no Ray runs on this machine")
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        # With ray://, Ray Tune would run its loop on the cluster, and the records would be written there.
        raise InvalidInputError(f"ray_address {address!r} must be 'auto' or HOST:PORT of the head (port 6379)")
    deadline = time.monotonic() + seconds
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
        left = max(deadline - time.monotonic(), PROBE_SECONDS)
        subprocess.run([sys.executable, "-c", PROBE, address], timeout=left, check=True, capture_output=True)
    except (OSError, OverflowError, subprocess.SubprocessError) as error:
        reason = error if isinstance(error, OSError) else "what listens there does not answer as one"
        raise InvalidInputError(
            f"no Ray cluster at ray_address {address!r} within {seconds:g} seconds: {reason}"
        ) from error


def machines() -> int:
    """Returns how many machines the cluster has."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return len({node["NodeManagerAddress"] for node in nodes if node["Alive"]})


def _check_room(settings: SearchSettings) -> None:
    """Raises InvalidInputError if no node could ever hold a trial: Ray would wait for one for ever."""
    wanted = {"CPU": settings.cpus_per_trial, "GPU": settings.gpus_per_trial}
    known: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = [node["Resources"] for node in known if node["Alive"]]
    if not any(all(node.get(kind, 0.0) >= amount for kind, amount in wanted.items()) for node in nodes):
        has = ", ".join(f"{node.get('CPU', 0):g} CPU and {node.get('GPU', 0):g} GPU" for node in nodes)
        raise InvalidInputError(
            f"no node has the {wanted['CPU']:g} CPU and {wanted['GPU']:g} GPU that a trial asks for "
            f"(cpus_per_trial, gpus_per_trial); the nodes have: {has}"
        )
