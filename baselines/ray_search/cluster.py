"""Starting a Ray on this machine, or connecting to a running one; both within seconds or not at all."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._raylet import Config  # type: ignore[attr-defined]
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from autocompress.errors import AutocompressError, InvalidInputError
from autocompress.integrations import ray_train
from baselines.interface import SearchSettings
from baselines.ray_search.head_watch import HeadWatch

logger = logging.getLogger(__name__)
# Run in a process of its own: Ray waits for minutes for what listens but is no cluster, and cannot be told to stop.
PROBE = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"
PROBE_SECONDS = 3.0  # at least: Python has to start and to import Ray
LOOK_SECONDS = 30.0  # for all nodes to say what they see of a folder
MODE = "RAY_AUTH_MODE"
NO_TOKEN = (
    f"it asks for a token, and none was given or another one than its own; set {MODE}=token, and RAY_AUTH_TOKEN or "
    "RAY_AUTH_TOKEN_PATH to the token of the head"
)
CHECKOUT = Path(__file__).parents[2]
OBJECT_STORE_BYTES = 500_000_000  # a larger objective spills to disk, it does not fail
LOGGERS = ("ray", "ray.tune", "ray.train", "optuna")
# What keeps Ray and Ray Tune from writing to the terminal, from changing the folder that a trial runs in, and from
# handling Ctrl-C, and from writing down all its trials every few seconds, which nothing reads; and the time that a
# stopped trial has to leave its training loop.
ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
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


class HeadLostError(AutocompressError):
    """The head of the cluster does not answer any more: nothing can be started or heard of."""


@contextmanager
def connected(
    settings: SearchSettings,
    modules: Sequence[str] = (),
    interrupt: Callable[[], None] = lambda: None,
    last_words: Callable[[], str] = str,
) -> Iterator[None]:
    """Holds a Ray for the time of a search.

    A Ray that this process uses already is used as it is and left running. Otherwise one is started, or connected
    to, and let go of at the end.

    Args:
        settings: name the cluster, whose address has been checked, or None for one on this machine.
        modules: folders of packages that travel to the cluster beside `autocompress` and `baselines`.
        interrupt, last_words: what is done and said once the head does not answer any more, see `HeadWatch`; what is
            raised inside afterwards leaves as `HeadLostError`.

    Raises:
        InvalidInputError: the cluster cannot be reached, or none of its nodes can hold a trial.
        HeadLostError: the head of the cluster has gone.
    """
    mine = not ray.is_initialized()
    watch: HeadWatch | None = None
    try:
        if mine and settings.ray_address is None:
            _start(settings)
        elif mine:
            _connect(str(settings.ray_address), modules)
        _check_room(settings)
        watch = HeadWatch(ray.get_runtime_context().gcs_address, interrupt, last_words)
        try:
            yield
        except BaseException as error:
            if not watch.lost:
                raise
            raise HeadLostError(str(watch)) from error
    finally:
        if watch is not None:
            watch.close()
        if mine:
            _let_go(wait=watch is None or not watch.lost)


def _let_go(wait: bool) -> None:
    """Disconnects; from a head that is gone this would never end."""
    if wait:
        ray.shutdown()
    else:
        threading.Thread(target=ray.shutdown, daemon=True).start()


def _start(settings: SearchSettings) -> None:
    logger.info("starting Ray on this machine, which takes some seconds")
    ray.init(
        address="local",  # without it Ray would connect to any that it finds on this machine
        num_cpus=max(1, math.ceil(settings.workers * settings.cpus_per_trial)),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
        object_store_memory=OBJECT_STORE_BYTES,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(ray_train.search_path(CHECKOUT))}},
    )


def _connect(address: str, modules: Sequence[str]) -> None:
    packages = [str(CHECKOUT / "autocompress"), str(CHECKOUT / "baselines"), *modules]
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            runtime_env={"py_modules": packages, "env_vars": {"RAY_CHDIR_TO_TRIAL_DIR": "0"}},
        )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, RayError) as error:
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
        address = os.environ.get("RAY_ADDRESS") or next(iter(running))
    deadline = time.monotonic() + seconds
    # With ray://, Ray Tune would run its loop on the cluster, and the records would be written there.
    ray_train.check_address(address, seconds)
    reason = _refusal(address, deadline, {})
    if reason == NO_TOKEN and MODE not in os.environ and _refusal(address, deadline, {MODE: "token"}) is None:
        # Ray itself only looks for a token where it starts a cluster, not where it joins one.
        os.environ[MODE] = "token"
        Config.initialize("")
        reason = None
    if reason is not None:
        raise InvalidInputError(f"no Ray cluster at ray_address {address!r} within {seconds:g} seconds: {reason}")


def _refusal(address: str, deadline: float, environment: dict[str, str]) -> str | None:
    """Returns why a cluster does not take a connection, or None: it does."""
    left = max(deadline - time.monotonic(), PROBE_SECONDS)
    try:
        subprocess.run(
            [sys.executable, "-c", PROBE, address],
            env=os.environ | environment,
            timeout=left,
            check=True,
            capture_output=True,
            text=True,
        )
    except subprocess.TimeoutExpired:
        return "what listens there does not answer as one"
    except subprocess.CalledProcessError as error:
        said = error.stderr or ""
        if "authentication token" in said.lower():
            return NO_TOKEN
        return (said.strip().splitlines() or ["what listens there does not answer as one"])[-1]
    return None


def all_see(folder: Path) -> bool:
    """Tells whether a folder of this machine is the same on every node of the cluster."""
    if machines() == 1:
        return True
    marker = folder / f".seen-{uuid.uuid4().hex}"
    marker.touch()
    try:
        look = ray.remote(num_cpus=0)(os.path.exists)
        known: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in known if node["Alive"]]
        looks = [look.options(scheduling_strategy=place).remote(str(marker)) for place in places]
        return all(ray.get(looks, timeout=LOOK_SECONDS))
    except RayError:  # a node that does not answer has not seen it
        return False
    finally:
        marker.unlink(missing_ok=True)


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
