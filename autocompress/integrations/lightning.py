"""A callback of Lightning: `Trainer(callbacks=[AutoCompress("50KB", "net.safetensors")])`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.distributed import ProcessGroup

from autocompress.errors import MAX_SEED, AutocompressError, InvalidInputError
from autocompress.integrations.guest import Guest, inner_network, save_folder, undisturbed, with_network
from autocompress.network.selection import Ignore
from autocompress.solver.result import Result
from autocompress.targets import LossIncrease, Target, Targets
from autocompress.training.random_state import random_states, restore_random_states, seed_all

try:
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
except ImportError as error:
    raise AutocompressError(
        f'the callback of Lightning needs the package lightning ({error}): pip install "autocompress[lightning]"'
    ) from error


class AutoCompress(Guest, Callback):
    """Compresses the network of a `LightningModule` while it is fitted.

    Lightning's checkpoints hold its state, too: `fit(ckpt_path=)` goes on with it. So that a training which was killed
    gives the bytes of one that was not, all random numbers are seeded at the beginning of each epoch but the first, by
    one number drawn from them: a checkpoint of the end of an epoch is enough, for loaders that shuffle as well.

    Attributes:
        result: after `fit`, the compressed network, its file and its report; its weights are in the module.
    """

    def __init__(
        self,
        target: str | Target | Targets | Sequence[str | Target],
        out: str | Path | None = None,
        *,
        monitor: str | None = None,
        mode: str = "min",
        network: str | None = None,
        ignore: Ignore = (),
        evaluate: Callable[[nn.Module], float] | None = None,
        total_steps: int | None = None,
    ) -> None:
        """Checks what can be known before there is a network.

        Args:
            target: what the file has to meet; several hold together.
            out: what is written at the end of the training: a file whose name ends in `.safetensors`, or a folder with
                the file, the hyperparameters that the module has saved and the report; None: nothing,
                `result.save(path)` does.
            monitor: what the module logs in its validation under this name decides between the trained network and
                others; for `drop:` an accuracy, a fraction of 1, for `loss:` the loss. Default: what the trainer's
                checkpoint callback monitors, if anything.
            mode: "min" or "max": which is better of what is monitored.
            network: the attribute of the module that holds the network, whose names the file has then; "" = the module
                itself. Default: the only one that has parameters, else the module itself.
            ignore: globs over parameter or module names, or module types, not to compress.
            evaluate: instead of `monitor`, a score of the network as `Compressor(evaluate=)` takes it.
            total_steps: optimizer steps of the whole training; default: as the trainer counts them.

        Raises:
            InvalidInputError: a target or mode that cannot be.
        """
        super().__init__(target, out, network=network, ignore=ignore, evaluate=evaluate, total_steps=total_steps)
        if mode not in ("min", "max"):
            raise InvalidInputError(f"mode is {mode!r}; it must be 'min' or 'max'")
        self.monitor, self.mode = monitor, mode
        self._hook: Any = None
        self._before, self._stepped = 0, False
        self._seed: int | None = None
        self._epoch = 0
        self._random: dict[str, Any] | None = None

    def _seed_epoch(self, epoch: int) -> None:
        """Makes what is drawn from here on a function of the run and of the epoch: the order of the data, dropout."""
        seed_all(((self._seed or 0) + epoch) % MAX_SEED)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the compressor; what is wrong with the target is raised here, before the first step."""
        strategy = trainer.strategy
        if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
            raise InvalidInputError(
                f"the strategy is {type(strategy).__name__}; a network is compressed on one device or under DDP, where "
                "its parameters are whole on each"
            )
        network = inner_network(pl_module, self.network)
        mine = {id(parameter) for parameter in network.parameters()}
        optimizers = [o for o in trainer.optimizers if any(id(p) in mine for g in o.param_groups for p in g["params"])]
        if len(optimizers) != 1:
            raise InvalidInputError(
                f"{len(optimizers)} optimizers hold parameters of the network; it must be one: give network=, the "
                "attribute of the module that holds what is to be compressed"
            )
        monitor, mode = self._monitored(trainer)
        score = None if monitor is None else partial(self._validated, trainer, pl_module, network, monitor)
        quality, self._sign = self.target.quality, -1.0 if mode == "min" else 1.0
        if quality is not None and score is None and self.own_score is None:
            raise InvalidInputError(
                f"the target {quality} is a promise about validation data: give monitor=, a name that validation_step "
                "logs, or evaluate="
            )
        wanted = None if quality is None else "min" if isinstance(quality, LossIncrease) else "max"
        if self.own_score is None and wanted not in (None, mode):
            raise InvalidInputError(
                f"the target {quality} is about {'a loss' if wanted == 'min' else 'an accuracy'}, but {monitor} is "
                f"monitored with mode={mode!r}"
            )
        self._score, self._judged_by = score, f"{monitor} of the module's validation"
        steps = self.total_steps or trainer.estimated_stepping_batches
        evaluate = self.own_score or score if quality is not None else None
        if score is not None and quality is None and self.saved is None:
            undisturbed(score)(network)  # a name that nothing is logged under ends the training here, not after it
        self.begin(network, optimizers[0], steps, trainer.global_step, evaluate=evaluate, group=_group(trainer))
        self._hook = optimizers[0].register_step_post_hook(self._after_step)
        if self._seed is None and self.compressor is not None:
            self._seed = self.compressor.ranks.from_first(lambda: int(torch.randint(MAX_SEED, ())))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seeds every epoch but the first, and the one that was seeded when its checkpoint was loaded."""
        self._epoch = trainer.current_epoch
        if self._epoch > 0 and not trainer.fit_loop.is_resuming:
            self._seed_epoch(self._epoch)

    def _after_step(self, *_: Any) -> None:
        """Follows the optimizer: the gradients are still there, and no scheduler has moved its rate."""
        if self.compressor is not None:
            self._stepped = True
            self.compressor.step()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._before, self._stepped = trainer.global_step, False
        random, self._random = self._random, None
        if random is not None and batch_idx > 0:  # within an epoch, of a loader that can go on there
            restore_random_states(random)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts a step that a gradient scaler has skipped as one of those that were announced."""
        announced = pl_module.automatic_optimization and trainer.global_step > self._before
        if announced and not self._stepped and self.compressor is not None:
            self.compressor.step()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file, and puts its weights into the module."""
        if self.compressor is None:
            return
        score, judged_by = self.own_score, "evaluate="
        if score is None and self._score is not None:
            measured, sign = self._score, self._sign
            score, judged_by = lambda network: sign * measured(network), self._judged_by
        self._hparams = dict(pl_module.hparams)
        mode = pl_module.training
        self.end(trainer.train_dataloader, score, judged_by)
        pl_module.train(mode)

    def save(self, result: Result, out: Path) -> None:
        """Writes the file alone where its name is given, else a folder with the module's hyperparameters."""
        if out.suffix == ".safetensors":
            result.save(out)
        else:
            save_folder(result, out, self._hparams)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook = self.compressor = self._score = None

    def state_dict(self) -> dict[str, Any]:
        """Returns what Lightning's checkpoints hold of the compressor, and the state of the random numbers."""
        if self.compressor is None:
            return {}
        own = {"seed": self._seed, "epoch": self._epoch, "random": random_states()}
        return {**self.compressor.state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.saved = state_dict or None
        if self.saved is not None:  # before any loader draws its order
            self._seed, self._random = self.saved["seed"], self.saved["random"]
            self._seed_epoch(self.saved["epoch"] + 1)

    def _monitored(self, trainer: Trainer) -> tuple[str | None, str]:
        """Returns what decides, and which is better of it: as given, else as the trainer's checkpoints are chosen."""
        if self.monitor is not None or self.own_score is not None:
            return self.monitor, self.mode
        checkpoint = trainer.checkpoint_callback
        monitor = getattr(checkpoint, "monitor", None)
        return (None, self.mode) if monitor is None else (monitor, getattr(checkpoint, "mode", "min"))

    def _validated(
        self, trainer: Trainer, pl_module: LightningModule, part: nn.Module, monitor: str, network: nn.Module
    ) -> float:
        """Returns what a copy of the module with this network logs as `monitor` in its validation.

        Raises:
            InvalidInputError: there is no validation data, or nothing is logged under that name.
        """
        if trainer.val_dataloaders is None:
            trainer.fit_loop.epoch_loop.val_loop.setup_data()
        if not trainer.val_dataloaders:
            raise InvalidInputError(f"monitor is {monitor!r}, but the training has no validation data")
        device = trainer.strategy.root_device
        log = logging.getLogger("lightning.pytorch")
        level = log.level
        try:
            log.setLevel(logging.ERROR)  # it would say once more, for each network, which devices there are
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                guest = Trainer(
                    accelerator=device.type,
                    devices=1 if device.index is None or device.type == "cpu" else [device.index],
                    precision=trainer.precision,
                    plugins=[LightningEnvironment()],
                    limit_val_batches=trainer.limit_val_batches,
                    logger=False,
                    enable_checkpointing=False,
                    enable_progress_bar=False,
                    enable_model_summary=False,
                )
                module = cast(LightningModule, with_network(pl_module, part, network))
                guest.validate(module, trainer.val_dataloaders, verbose=False)
        finally:
            log.setLevel(level)
        found: Mapping[str, torch.Tensor] = guest.callback_metrics
        if monitor not in found:
            logged = ", ".join(sorted(found)) or "nothing"
            raise InvalidInputError(f"monitor is {monitor!r}, but the module's validation logs {logged}")
        return float(found[monitor])


def _group(trainer: Trainer) -> ProcessGroup | None:
    """Returns the processes that a trainer's wrapper averages gradients over, None for one alone."""
    model = trainer.strategy.model
    return model.process_group if isinstance(model, nn.parallel.DistributedDataParallel) else None
