"""What the callbacks of training frameworks have in common: a compressor that follows the training of another."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup

from autocompress.codec.atomic_write import write_whole
from autocompress.errors import AutocompressError, InvalidInputError, whole_number
from autocompress.network.live_network import copy_network
from autocompress.network.selection import Ignore
from autocompress.solver.compressor import Compressor
from autocompress.solver.phases import all_tensors, put_back
from autocompress.solver.result import Result
from autocompress.targets import Target, Targets, combined
from autocompress.training.batches import cause_of, run_on, to_device
from autocompress.training.random_state import data_order_state, restore_data_order, seed_data_order, seeded, set_epoch

logger = logging.getLogger(__name__)

# What a folder of `save_folder` holds.
FILE, CONFIG, REPORT, RECORD = "compressed.safetensors", "config.json", "report.txt", "report.json"


class Guest:
    """A compressor that follows the training of a framework; the callbacks of the frameworks derive from it.

    Attributes:
        result: what the training ended with, None before.
        compressor: of the training that is under way, else None.
    """

    def __init__(
        self,
        target: str | Target | Targets | Sequence[str | Target],
        out: str | Path | None = None,
        *,
        network: str | None = None,
        ignore: Ignore = (),
        evaluate: Callable[[nn.Module], float] | None = None,
        total_steps: int | None = None,
    ) -> None:
        """Checks what can be known before there is a network; see the callback of a framework for the arguments."""
        self.target, self.ignore, self.network, self.own_score = combined(target), ignore, network, evaluate
        if evaluate is not None and not callable(evaluate):
            raise InvalidInputError(f"evaluate is {evaluate!r}; it must be a function of a network")
        if out is not None and (not isinstance(out, str | os.PathLike) or str(out) == ""):
            raise InvalidInputError(f"out is {out!r}; it must be the path of a file *.safetensors or of a folder")
        self.out = None if out is None else Path(out)
        if self.out is not None:
            if self.out.is_file() != (self.out.suffix == ".safetensors") and self.out.exists():
                kind = "a file" if self.out.is_file() else "a folder"
                raise InvalidInputError(
                    f"out is {str(out)!r}, and that is {kind}; it must be a file *.safetensors or another folder"
                )
            try:  # now, and not at the end of the training
                self.out.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InvalidInputError(
                    f"out is {str(out)!r}: cannot make the folder {self.out.parent}: {error.strerror}"
                ) from error
        self.total_steps = None if total_steps is None else whole_number("total_steps", total_steps, 1)
        self.result: Result | None = None
        self.compressor: Compressor | None = None
        self.saved: dict[str, Any] | None = None  # of the checkpoint that the training goes on from

    def begin(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        total_steps: float,
        step: int,
        *,
        evaluate: Callable[[nn.Module], float] | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        """Makes the compressor of a training, from its checkpoint where there is one.

        Args:
            model: the network, with the weights of the checkpoint.
            optimizer: of the training.
            total_steps: as the framework counts them; infinite or negative where it knows no end.
            step: those that it has taken.
            evaluate: as in `Compressor`.
            group: the processes that train together.

        Raises:
            InvalidInputError, InfeasibleTargetError: as in `Compressor`.
        """
        taken_alone = step - (0 if self.saved is None else self.saved["steps"])
        steps = self.total_steps or total_steps - taken_alone
        if not 0 < steps < float("inf"):
            raise InvalidInputError(
                "the training says of no number of optimizer steps that it ends with: limit its epochs or steps, or "
                "give total_steps="
            )
        self.result = None
        tensors, given = all_tensors(model), None if self.saved is None else self.saved["given"]
        trained = [tensor.detach().clone() for tensor in tensors]
        if given is not None:  # what is known of a network before training is known of the one that it began with
            if [tuple(t.shape) for t in given] != [tuple(t.shape) for t in tensors]:
                raise InvalidInputError("the checkpoint is of the compression of another network")
            put_back(tensors, given)
        try:
            self.compressor = Compressor(
                model,
                optimizer,
                target=self.target,
                total_steps=int(steps),
                ignore=self.ignore,
                evaluate=None if evaluate is None else undisturbed(evaluate),
                group=group,
            )
        finally:
            if given is not None:
                put_back(tensors, trained)
        if self.saved is not None:
            self.compressor.load_state_dict(self.saved)
        self.saved = None

    def end(self, train: Iterable[Any] | None, evaluate: Callable[[nn.Module], float] | None, judged_by: str) -> Result:
        """Writes the file of a training that has ended, and returns the result; its weights are the network's now.

        Args:
            train: batches of the training; not used where the network does not take them as they are.
            evaluate: decides between candidates, higher is better.
            judged_by: what it measures, in words.
        """
        assert self.compressor is not None
        compressor, self.compressor = self.compressor, None
        with _from_the_start(train):
            batches = train if train is not None and _takes(compressor.network.model, train) else None
            score = None if evaluate is None else undisturbed(evaluate)
            self.result = compressor.finish(train=batches, evaluate=score, judged_by=judged_by)
        if compressor.ranks.is_first and self.out is not None:
            self.save(self.result, self.out)
            logger.info("%s: %d bytes", self.out, self.result.file_bytes)
        return self.result

    def save(self, result: Result, out: Path) -> None:
        """Writes the file alone where its name is given, else a folder."""
        if out.suffix == ".safetensors":
            result.save(out)
        else:
            save_folder(result, out)


def save_folder(result: Result, folder: str | Path, config: Mapping[str, Any] | None = None) -> None:
    """Writes a result into a folder: the file, its report as text and as JSON, and what its network is made from.

    Args:
        result: of a compression.
        folder: made where there is none; files of the same names are replaced.
        config: goes into `config.json`.

    Raises:
        AutocompressError: the folder cannot be made or written.
    """
    folder = Path(folder)
    parts = {REPORT: f"{result.report()}\n", RECORD: json.dumps(result.to_json(), indent=2) + "\n"}
    if config is not None:
        parts[CONFIG] = json.dumps(dict(config), indent=2, default=str) + "\n"
    try:
        folder.mkdir(exist_ok=True)
        for name, text in parts.items():
            write_whole(folder / name, text.encode())
    except OSError as error:
        raise AutocompressError(f"cannot write into the folder {folder}: {error.strerror or error}") from error
    result.save(folder / FILE)


def inner_network(module: nn.Module, name: str | None) -> nn.Module:
    """Returns the part of a module that is compressed.

    Args:
        module: of the framework, with a network in one of its attributes.
        name: of the attribute; "" = the module itself; None = the only one with parameters, else the module itself.

    Raises:
        InvalidInputError: there is no module of that name.
    """
    if name is not None:
        try:
            return module.get_submodule(name)
        except AttributeError as error:
            names = ", ".join(key for key, _ in module.named_children())
            raise InvalidInputError(
                f"network is {name!r}, but {type(module).__name__} has no module of that name; it has {names or 'none'}"
            ) from error
    own = any(True for _ in module.parameters(recurse=False))
    inner = [(key, child) for key, child in module.named_children() if any(True for _ in child.parameters())]
    if own or len(inner) != 1:
        return module
    logger.info("%s.%s is compressed, under the names that its tensors have there", type(module).__name__, inner[0][0])
    return inner[0][1]


def with_network(module: nn.Module, part: nn.Module, network: nn.Module) -> nn.Module:
    """Returns a copy of a module in which another network takes the place of a part of it; neither is changed."""
    return copy.deepcopy(module, {id(part): copy_network(network)})


def undisturbed(evaluate: Callable[[nn.Module], float]) -> Callable[[nn.Module], float]:
    """Returns a score that draws from no random numbers of the training: a resumed one measures less often."""

    def score(network: nn.Module) -> float:
        with seeded(0):
            return evaluate(network)

    return score


@contextlib.contextmanager
def _from_the_start(batches: Iterable[Any] | None) -> Iterator[None]:
    """Is a block in which a loader gives the batches of its first epoch, whatever was drawn from it before."""
    order = data_order_state(batches)
    with seeded(0):
        if batches is not None:
            seed_data_order(batches, 0)
            set_epoch(batches, 0)
        yield
    restore_data_order(batches, order)


def _takes(network: nn.Module, batches: Iterable[Any]) -> bool:
    """Tells whether a network takes the batches of a loader as they are; else says what is left undone."""
    try:
        batch = next(iter(batches), None)
        with torch.no_grad():
            run_on(copy_network(network).eval(), to_device(batch, next(network.parameters()).device))
    except Exception as error:  # whatever the network raises: a framework's own step may take a batch apart
        logger.warning(
            "the network does not take the training's batches as they are (%s): batch norms keep the statistics of the "
            "training, and the network is not calibrated without training",
            cause_of(error),
        )
        return False
    return True
