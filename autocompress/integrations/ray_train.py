"""`compress()` by several workers of a Ray cluster, on Ray Train: one network, one file, a lost worker costs minutes.

Ray is imported where it is needed; its extra is `autocompress[ray]`.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autocompress.errors import AutocompressError, InvalidInputError, whole_number
from autocompress.training.checkpoint import CHECKPOINT_NAME, Callback
from autocompress.training.progress import logger as progress_log
from autocompress.training.progress import say, stages
from autocompress.training.ranks import Part

logger = logging.getLogger(__name__)

# Of a run: a worker that is lost, with its node or by a kill, is replaced so many times.
MAX_FAILURES = 8
RUN_NAME = "autocompress"
CONNECT_SECONDS = 10.0
LISTEN_SECONDS = 0.5
PACKAGE = Path(__file__).parents[1]


def ray_of() -> Any:
    """Returns the package ray.

    Raises:
        InvalidInputError: it, or the part that trains, is not installed.
    """
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
    try:
        import ray
        import ray.train.torch
    except ImportError as error:
        raise InvalidInputError(f'workers need Ray Train ({error}): pip install "autocompress[ray]"') from error
    return ray


@contextlib.contextmanager
def connected(address: str | None, cpus: int, modules: Iterable[str] = ()) -> Iterator[Any]:
    """Holds a Ray while something runs on it, and gives the package.

    A Ray that this process uses already is used as it is and left running.

    Args:
        address: of a cluster, HOST:PORT or "auto"; None = one on this machine, which is ended afterwards.
        cpus: of the one on this machine.
        modules: folders and files of packages that travel to the cluster beside `autocompress`.

    Raises:
        InvalidInputError: there is no Ray here, or no cluster at the address.
    """
    ray = ray_of()
    if address is not None:
        check_address(address)
    if ray.is_initialized():
        yield ray
        return
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        settings |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        settings["runtime_env"] = {"env_vars": {"PYTHONPATH": os.pathsep.join(search_path())}}
    else:
        settings |= {"address": address, "runtime_env": {"py_modules": [str(PACKAGE), *modules]}}
    try:
        ray.init(**settings)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidInputError(f"no Ray cluster at {address!r}: {reason}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def search_path(first: Path = PACKAGE.parent) -> list[str]:
    """Returns a folder and those in which this process finds modules, those of the interpreter left out."""
    folders = [str(first), *(os.path.abspath(folder) for folder in sys.path)]
    own = [folder for folder in dict.fromkeys(folders) if os.path.isdir(folder)]
    return [folder for folder in own if not folder.startswith((sys.prefix, sys.base_prefix))]


def check_address(address: str, seconds: float = CONNECT_SECONDS) -> None:
    """Checks that something listens where a cluster shall be: Ray itself would wait for it for minutes.

    Raises:
        InvalidInputError: nothing does within `seconds`, or this is no address of a cluster.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    if "://" in host or not host or not (port.isascii() and port.isdigit()):
        raise InvalidInputError(f"ray_address is {address!r}; it must be 'auto' or HOST:PORT of the head (port 6379)")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
    except (OSError, OverflowError) as error:
        raise InvalidInputError(
            f"no Ray cluster at ray_address {address!r} within {seconds:g} seconds: {error}"
        ) from error


class _Told:
    """What the first worker logs, on its way to the process that asked for it. An actor of Ray."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, int, str]] = []

    def add(self, name: str, level: int, text: str) -> None:
        self.lines.append((name, level, text))

    def take(self) -> list[tuple[str, int, str]]:
        taken, self.lines = self.lines, []
        return taken


class _Forward(logging.Handler):
    """Hands a log on to the actor."""

    def __init__(self, told: Any) -> None:
        super().__init__(logging.INFO)
        self.told = told

    def emit(self, record: logging.LogRecord) -> None:
        self.told.add.remote(record.name, record.levelno, record.getMessage())


@contextlib.contextmanager
def _overheard(ray: Any, *, progress: bool) -> Iterator[Any]:
    """Gives an actor, and logs here what it is told, as if it had been said in this process."""
    told = ray.remote(num_cpus=0)(_Told).remote()
    ended = threading.Event()

    def pass_on() -> None:
        for name, level, text in ray.get(told.take.remote()):
            if level > logging.INFO or name not in (progress_log.name, stages.name):
                logging.getLogger(name).log(level, "%s", text)
            elif progress:
                say(text, logging.getLogger(name))

    def listen() -> None:
        with contextlib.suppress(ray.exceptions.RayError):
            while not ended.wait(LISTEN_SECONDS):
                pass_on()

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield told
    finally:
        ended.set()
        listener.join()
        with contextlib.suppress(ray.exceptions.RayError):
            pass_on()


def sources_of(*objects: Any) -> list[str]:
    """Returns the packages and files that the classes of some objects come from, installed ones left out.

    What stands in the script itself travels with the objects.
    """
    found: dict[str, None] = {}
    for each in objects:
        names = [type(part).__module__ for part in each.modules()] if isinstance(each, nn.Module) else []
        parts = (
            each,
            getattr(each, "dataset", None),
            getattr(each, "collate_fn", None),
            getattr(each, "sampler", None),
        )
        names += [getattr(part, "__module__", "") or "" for part in parts]
        names += [type(part).__module__ for part in parts]
        for name in dict.fromkeys(names):
            top = sys.modules.get(name.partition(".")[0])
            file = getattr(top, "__file__", None)
            if top is None or file is None or name.partition(".")[0] in ("__main__", "autocompress"):
                continue
            if not os.path.abspath(file).startswith((sys.prefix, sys.base_prefix)) and "site-packages" not in file:
                folders = list(getattr(top, "__path__", []))
                found[str(folders[0] if folders else file)] = None
    return list(found)


def compress_on_workers(
    compress: Callable[..., Any],
    model: nn.Module,
    arguments: Mapping[str, Any],
    *,
    workers: int,
    address: str | None,
    modules: Iterable[str] = (),
) -> Any:
    """Returns the result of `compress(model, **arguments)`, run by some workers that each take a part of every batch.

    The batches are those of one process, in its order, so that steps and learning rate mean the same. After each epoch,
    and every few minutes within one, a checkpoint goes to the storage of the run (`resume`, a folder that all nodes
    see, or an address such as s3://bucket/path), from which a group with a new worker goes on, or the same call.

    Args:
        compress: the function of one process.
        model: the trained network.
        arguments: of `compress`; `device` is the workers' own.
        workers: how many; each has a CPU, and a GPU where the cluster has as many.
        address: of the cluster; None = this machine.
        modules: what travels there beside `autocompress` and the modules that the arguments come from.

    Raises:
        InvalidInputError: no cluster, one too small, or what `compress` refuses.
        AutocompressError: workers were lost too often, or failed.
    """
    workers = whole_number("workers", workers, 1)
    storage = arguments.get("resume")
    given = {name: value for name, value in arguments.items() if name not in ("resume", "device")}
    loaders = (given.get("train"), given.get("val"), given.get("test"), given.get("calibration"))
    own = sources_of(model, *loaders, given.get("loss"), given.get("metric"), *given.get("callbacks", ()))
    with connected(address, workers, dict.fromkeys([*modules, *own])) as ray, contextlib.ExitStack() as stack:
        cluster = ray.cluster_resources()
        if cluster.get("CPU", 0) < workers:
            raise InvalidInputError(
                f"workers is {workers}, but the cluster has {cluster.get('CPU', 0):g} CPUs; each worker takes one"
            )
        if storage is None:
            storage = stack.enter_context(tempfile.TemporaryDirectory(prefix="autocompress-ray-"))
        elif "://" not in str(storage):
            storage = str(Path(storage).absolute())
        told = stack.enter_context(_overheard(ray, progress=bool(given.get("progress", True))))
        train = ray.train
        trainer = train.torch.TorchTrainer(
            _work,
            train_loop_config={
                "payload": [ray.put({"compress": compress, "model": model, "arguments": given})],
                "told": told,
            },
            scaling_config=train.ScalingConfig(num_workers=workers, use_gpu=cluster.get("GPU", 0) >= workers),
            run_config=train.RunConfig(
                name=RUN_NAME,
                storage_path=str(storage),
                failure_config=train.FailureConfig(max_failures=MAX_FAILURES),
                checkpoint_config=train.CheckpointConfig(num_to_keep=1),
                logging_config=train.LoggingConfig(log_level="ERROR"),
            ),
        )
        try:
            outcome = trainer.fit().return_value
        except train.TrainingFailedError as error:
            failures = getattr(error, "worker_failures", {}) or {"": error}
            said = str(next(iter(failures.values()))).strip().splitlines() or [type(error).__name__]
            raise AutocompressError(f"the workers failed: {said[-1]}") from error
        except ray.exceptions.RayError as error:  # a node that runs out of memory takes the controller with it
            raise AutocompressError(f"the run on Ray failed: {(str(error).splitlines() or [''])[0]}") from error
    if isinstance(outcome, AutocompressError):
        raise outcome
    return outcome


class _Reports(Callback):
    """Hands each checkpoint to Ray Train, and what was measured."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_checkpoint(self, trainer: Any) -> None:
        """Is called on all ranks at the same step."""
        from ray import train

        figures = {name: float(value) for name, value in trainer.scalars.items()} | {"epoch": trainer.epoch}
        first = trainer.ranks.is_first
        train.report(figures, checkpoint=train.Checkpoint.from_directory(str(self.folder)) if first else None)


def _work(config: dict[str, Any]) -> Any:
    """Is one worker: the same run of `compress` as all others, on its part of every batch.

    Returns:
        On the first rank the result, or the error of ours that ended it.
    """
    import ray
    from ray import train

    context = train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    payload = ray.get(config["payload"][0])
    arguments = dict(payload["arguments"])
    if rank == 0:
        log = logging.getLogger("autocompress")
        log.setLevel(logging.INFO)
        log.addHandler(_Forward(config["told"]))
    device = train.torch.get_device()
    model = copy.deepcopy(payload["model"]).to(device)
    if any(parameter.requires_grad for parameter in model.parameters()):
        ids = [device.index] if device.type == "cuda" else None
        model = nn.parallel.DistributedDataParallel(model, device_ids=ids)
    for name in ("train", "val"):
        if arguments.get(name) is not None and size > 1:
            arguments[name] = Part(arguments[name], rank, size)
    with tempfile.TemporaryDirectory(prefix="autocompress-rank-") as folder:
        last = train.get_checkpoint()
        if last is not None and rank == 0:
            with last.as_directory() as kept:
                shutil.copy(Path(kept) / CHECKPOINT_NAME, folder)
        arguments["callbacks"] = [*arguments.get("callbacks", ()), _Reports(Path(folder))]
        try:
            result = payload["compress"](model, **arguments, device=device, resume=folder)
        except AutocompressError as error:
            return error
    _check_same_file(result.data, size)
    result.model.to("cpu")
    return result if rank == 0 else None


def _check_same_file(data: bytes, size: int) -> None:
    """Checks that all ranks have one and the same file.

    Raises:
        AutocompressError: they have not.
    """
    if size == 1:
        return
    digests: list[Any] = [None] * size
    torch.distributed.all_gather_object(digests, hashlib.sha256(data).hexdigest())
    if len(set(digests)) > 1:
        raise AutocompressError(f"the ranks ended with different files: {', '.join(digests)}")
    logger.info("all %d ranks have the file %s", size, digests[0])
