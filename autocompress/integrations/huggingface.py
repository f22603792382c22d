"""A callback of Hugging Face's `Trainer`: `Trainer(..., callbacks=[AutoCompress("1MB", "small")])`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

from autocompress.codec.file import load
from autocompress.errors import AutocompressError, InvalidInputError
from autocompress.integrations.guest import FILE, Guest, inner_network, save_folder
from autocompress.network.selection import Ignore
from autocompress.solver.result import Result
from autocompress.targets import LossIncrease, Target, Targets
from autocompress.task.named_models import transformers_model
from autocompress.training.checkpoint import load_checkpoint, save_checkpoint
from autocompress.training.checks import check_task, name_of
from autocompress.training.evaluation import evaluate as evaluate_batches

try:
    import transformers
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise AutocompressError(
        f'the callback of Hugging Face needs transformers ({error}): pip install "autocompress[transformers]"'
    ) from error

logger = logging.getLogger(__name__)

# In each of the trainer's checkpoints.
STATE = "autocompress.pt"


class AutoCompress(Guest, TrainerCallback):
    """Compresses a network while a `Trainer` trains it.

    The compressor's state lies in the trainer's own checkpoints: `train(resume_from_checkpoint=)` goes on with it, and
    a training that was killed gives the bytes of one that was not.

    Attributes:
        result: after `train`, the compressed network, its file and its report; its weights are in the model.
    """

    def __init__(
        self,
        target: str | Target | Targets | Sequence[str | Target],
        out: str | Path | None = None,
        *,
        val: Iterable[Any] | None = None,
        network: str = "",
        ignore: Ignore = (),
        evaluate: Callable[[nn.Module], float] | None = None,
        total_steps: int | None = None,
        resume_from: str | Path | None = None,
    ) -> None:
        """Checks what can be known before there is a network.

        Args:
            target: what the file has to meet; several hold together.
            out: what is written at the end of the training: a file whose name ends in `.safetensors`, or a folder with
                the file, the model's configuration and the report, which `load_pretrained` reads; None: nothing.
            val: batches (dicts with `labels`) that decide, by the model's own loss, between the trained network and
                others; a quality constraint (drop:, loss:) cannot do without. Default: the trainer's evaluation data,
                where it evaluates during the training.
            network: the attribute of the model that is compressed; "" = the model itself.
            ignore: globs over parameter or module names, or module types, not to compress.
            evaluate: instead of `val`, a score of the network as `Compressor(evaluate=)` takes it.
            total_steps: optimizer steps of the whole training; default: as the trainer counts them.
            resume_from: the checkpoint that the training goes on from, where it is not in the trainer's output folder.

        Raises:
            InvalidInputError: a target that cannot be.
        """
        super().__init__(target, out, network=network, ignore=ignore, evaluate=evaluate, total_steps=total_steps)
        self.val, self.resume_from = val, resume_from
        if self.target.quality is not None and val is None and evaluate is None:
            raise InvalidInputError(
                f"the target {self.target.quality} is a promise about validation data: give val= or evaluate="
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Makes the compressor; what is wrong with the target is raised here, before the first step."""
        if args.deepspeed or args.fsdp:
            raise InvalidInputError(
                "the parameters are sharded (deepspeed, fsdp); a network is compressed where they are whole on each "
                "device: on one, or data-parallel"
            )
        if args.load_best_model_at_end:
            logger.warning("load_best_model_at_end puts back weights that the file will not have: it holds the last")
        network = inner_network(kwargs["model"], self.network)
        if state.global_step:
            self.saved = self._state_of(args, state.global_step)
        evaluate = None
        if self.target.quality is not None:
            evaluate = self.own_score or self._score_on(network, self.val, promised=True)[0]
        group = dist.group.WORLD if args.world_size > 1 and dist.is_initialized() else None
        self.begin(network, kwargs["optimizer"], state.max_steps, state.global_step, evaluate=evaluate, group=group)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Follows the optimizer: the gradients are still there, and no scheduler has moved its rate."""
        if self.compressor is not None:
            self.compressor.step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._prepare(args, state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._prepare(args, state, control)

    def _prepare(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """Writes the state before the trainer writes its checkpoint, and removes older ones: one is always whole."""
        if control.should_save and self.compressor is not None and state.is_world_process_zero:
            save_checkpoint(self._waiting(args, state.global_step), self.compressor.state_dict())

    @staticmethod
    def _waiting(args: TrainingArguments, step: int) -> Path:
        """Returns where the state of a step lies until there is a checkpoint to hold it."""
        return Path(str(args.output_dir)) / f"autocompress-{step}.pt"

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Moves the state into the checkpoint that was written."""
        if self.compressor is None or not state.is_world_process_zero:
            return
        waiting = self._waiting(args, state.global_step)
        if not waiting.exists():
            save_checkpoint(waiting, self.compressor.state_dict())
        os.replace(waiting, _checkpoint(args, state.global_step) / STATE)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Writes the file, and puts its weights into the model."""
        if self.compressor is None:
            return
        score, judged_by = self.own_score, "evaluate="
        val = self.val if self.val is not None else kwargs.get("eval_dataloader")
        if score is None and val is not None:
            score, judged_by = self._score_on(self.compressor.network.model, val, promised=False)
        self.end(kwargs.get("train_dataloader"), score, judged_by)

    def save(self, result: Result, out: Path) -> None:
        """Writes the file alone where its name is given, else a folder that `load_pretrained` reads."""
        if out.suffix == ".safetensors":
            result.save(out)
        else:
            save_pretrained(result, out)

    def _score_on(
        self, model: nn.Module, batches: Iterable[Any] | None, *, promised: bool
    ) -> tuple[Callable[[nn.Module], float], str]:
        """Returns a score on batches, higher is better (as a promise wants it, where one is to be kept), and its name.

        Raises:
            InvalidInputError: network and batches do not fit.
        """
        assert batches is not None
        device = next(model.parameters()).device
        loss, metric = check_task(model, {"the validation data": batches}, device=device)
        quality = self.target.quality if promised else None

        def score(network: nn.Module) -> float:
            found = evaluate_batches(network, batches, loss=loss, metric=metric, device=device)
            if quality is None:
                return -found.loss
            return found.loss if isinstance(quality, LossIncrease) else found.metric

        return score, "the loss on the validation data" if quality is None else name_of(metric)

    def _state_of(self, args: TrainingArguments, step: int) -> dict[str, Any]:
        """Returns the state of the checkpoint that the trainer goes on from.

        Raises:
            InvalidInputError: it holds none.
        """
        asked = self.resume_from or args.resume_from_checkpoint
        folders = [Path(asked)] if isinstance(asked, str | Path) else []
        places = [folder / STATE for folder in [*folders, _checkpoint(args, step)]] + [self._waiting(args, step)]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise InvalidInputError(
                f"the training goes on from step {step}, but {' and '.join(map(str, places[:-1]))} is not there: give "
                "resume_from=, a checkpoint that was written with this callback, or begin anew"
            )
        if found == places[-1] and places[-2].parent.is_dir():  # a kill came between the checkpoint and its state
            os.replace(found, places[-2])
            found = places[-2]
        return load_checkpoint(found)


def _checkpoint(args: TrainingArguments, step: int) -> Path:
    return Path(str(args.output_dir)) / f"{transformers.trainer_utils.PREFIX_CHECKPOINT_DIR}-{step}"


def save_pretrained(result: Result, folder: str | Path) -> None:
    """Writes the file of a transformers model into a folder, with its configuration and the report.

    Raises:
        AutocompressError: the folder cannot be made or written.
    """
    config = getattr(result.model, "config", None)
    if config is None:
        save_folder(result, folder)
        return
    save_folder(result, folder, {**config.to_dict(), "architectures": [type(result.model).__name__]})


def load_pretrained(folder: str | Path, into: nn.Module | None = None) -> nn.Module:
    """Returns the network of a folder of `save_pretrained`, in evaluation mode; no code of the folder's is run.

    Args:
        folder: with the file and its configuration.
        into: a network to fill; default: made of the class of transformers that the configuration names.

    Raises:
        InvalidInputError: no such folder, or its configuration names no class of transformers.
        CorruptArtifactError: a damaged file.
    """
    folder = Path(folder)
    if not (folder / FILE).is_file():
        raise InvalidInputError(f"{folder} holds no {FILE}; give a folder that save_pretrained wrote")
    return load(folder / FILE, into=transformers_model(folder) if into is None else into)
