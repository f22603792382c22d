"""`compress`: trains a network while projecting it onto its target, fine-tunes it and writes the best file."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.constraints.factory import needs_energy
from autocompress.energy.channel_model import ChannelEnergy
from autocompress.errors import MAX_SEED, InvalidInputError, whole_number
from autocompress.integrations.ray_train import compress_on_workers
from autocompress.network.live_network import copy_network, unwrap
from autocompress.network.selection import Ignore
from autocompress.solver.compressor import Compressor, check_target
from autocompress.solver.constants import DEFAULTS, SolverConstants
from autocompress.solver.result import Result, warn_of_loss
from autocompress.targets import LossIncrease, Target, Targets, combined
from autocompress.training.batches import TeacherTargets, check_batches, default_device, input_example
from autocompress.training.checkpoint import CHECKPOINT_NAME, Callback, TrainerCallback
from autocompress.training.checks import check_task, guesses, name_of
from autocompress.training.evaluation import Evaluation, evaluate, hold_out
from autocompress.training.layer_statistics import has_batch_norm, refit_batch_norm
from autocompress.training.losses import (
    classification_loss,
    correct_predictions,
    distillation_from,
    loss_of,
    metric_of,
    output_distance,
)
from autocompress.training.progress import stage
from autocompress.training.random_state import data_order_state, restore_data_order, seeded, set_epoch
from autocompress.training.ranks import presence, ranks_of
from autocompress.training.recipe import Recipe
from autocompress.training.trainer import Trainer

logger = logging.getLogger(__name__)

# Training batches that the batch norms of a network are fitted to before a promise is measured on it.
REFIT_BATCHES = 16


# A run is scored on the validation data after so many of its epochs at most.
MAX_SCORES = 20


class CompressorCallback(Callback):
    """Carries the compressor through the trainer's loop and its checkpoints, and has its network scored on the way.

    Attributes:
        curve: (step, loss, metric) of the network that would have been written then.
    """

    def __init__(
        self,
        compressor: Compressor,
        asked: Mapping[str, str] | None = None,
        scores: Callable[[nn.Module], tuple[float, float]] | None = None,
    ) -> None:
        """Follows a run of the compressor.

        Args:
            compressor: of the trainer's network.
            asked: what was asked for in words, beside network, target and length.
            scores: (loss, metric) of a network; random numbers are to be left as they are.
        """
        self.compressor, self.asked, self.scores = compressor, dict(asked or {}), scores
        self.curve: list[tuple[int, float, float]] = []

    def on_step(self, trainer: Trainer) -> None:
        """Follows the optimizer step."""
        before = len(self.compressor.history)
        self.compressor.step()
        for entry in self.compressor.history[before:]:
            trainer.scalars |= {("multiplier" if name == "price" else name): entry[name] for name in entry}

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Scores the network."""
        done, epochs = trainer.epoch, trainer.epochs
        if self.scores is None or done * MAX_SCORES // epochs == (done - 1) * MAX_SCORES // epochs:
            return
        loss, metric = self.scores(unwrap(trainer.model))
        self.curve.append((trainer.step, loss, metric))
        trainer.scalars |= {"validation_loss": loss, "validation_score": metric}

    def state_dict(self) -> dict[str, Any]:
        """Returns the compressor's state, what was asked for and what was scored."""
        return {**self.compressor.state_dict(), "asked": self.asked, "curve": self.curve}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the compressor's state.

        Raises:
            InvalidInputError: it is of a run of other weights, or of one that was asked for in other words.
        """
        before = state.get("asked", self.asked)  # not in what an earlier version wrote
        other = sorted(name for name in self.asked if before.get(name) != self.asked[name])
        own = self.compressor.run.given
        if not all(map(_same, own, state["given"])) or len(own) != len(state["given"]):
            other.insert(0, "the network's weights")
        if other:
            names = ", ".join(other)
            raise InvalidInputError(
                f"the checkpoint is of another run: {names} not the same; give another folder, or the same call"
            )
        self.compressor.load_state_dict(state)
        self.curve = [tuple(point) for point in state.get("curve", ())]


def compress(
    model: nn.Module,
    *,
    train: Iterable[Any] | None = None,
    val: Iterable[Any] | None = None,
    test: Iterable[Any] | None = None,
    target: str | Target | Targets | Sequence[str | Target],
    calibration: Iterable[Any] | None = None,
    loss: Callable[[Any, Tensor], Tensor] | str | None = None,
    metric: Callable[[Any, Tensor], Tensor] | str | None = None,
    epochs: int | None = None,
    seed: int = 0,
    ignore: Ignore = (),
    device: torch.device | str | None = None,
    resume: str | Path | None = None,
    recipe: Recipe | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    progress: bool = True,
    energy_model: ChannelEnergy | None = None,
    workers: int | None = None,
    ray_address: str | None = None,
    constants: SolverConstants = DEFAULTS,
) -> Result:
    """Returns the best network found that meets the target; the model that was given is left as it was.

    Args:
        model: a trained network.
        train: batches to train on, gone through once per epoch: (inputs, targets) or dicts with a target. None: the
            network is not trained, but pruned and quantized at once.
        val: batches that decide, by their loss, between the trained network and others; without them a twentieth of the
            training data is kept from training for that. A promise is measured on them and cannot do without.
        test: batches to report on, once, at the end.
        target: "50KB", "50KiB", "1%", "100x", "weights:836x", a promise ("drop:0.5", "loss:+2%"), a target object, or
            several that hold together.
        calibration: without `train`, batches of the network's inputs, with or without targets: a few hundred examples
            say which errors in the weights reach the layers' outputs, and set batch norm statistics.
        loss: (output, target) -> scalar, or a name: "cross_entropy", "mse", "l1", "bce_with_logits", "model"; default:
            the one that the network's output carries as `loss` when it is given the target, else cross-entropy, or
            where the outputs are numbers like the targets (regression) the distance to the outputs of the network as
            it was given. Cross-entropy is joined by distillation from that network.
        metric: (output, target) -> one score per example, higher is better, or a name: "accuracy", "binary_accuracy",
            "iou", or that of a loss for minus the loss; default: right or wrong where the outputs are class scores (or
            logits of a binary cross-entropy), else minus the loss.
        epochs: length of the run; default: the recipe's; 0 = no training: the network is pruned and quantized at once.
        seed: of all random numbers.
        ignore: globs over parameter or module names, or module types, not to compress.
        device: default: CUDA where there is one.
        resume: a folder for checkpoints; a run that was stopped goes on from there and ends with the same file.
        recipe: optimizer and schedule; default: AdamW with a learning rate found by itself.
        callbacks: follow the training, see `training.checkpoint.TrainerCallback`; their states are in the checkpoints.
        progress: a bar in a terminal or notebook, elsewhere a line now and then, to the log or stderr.
        energy_model: of `autocompress energy fit`, for `energy-channels`; default: fitted to the analytic model.
        workers: so many processes of a Ray cluster train the network together, each on its part of every batch.
        ray_address: of the cluster, HOST:PORT or "auto"; without it the workers run on this machine. `resume` is then
            a folder that all nodes see, or an address such as s3://bucket/path.
        constants: of the method, for studies.

    Raises:
        InvalidInputError: something that was given cannot be used.
        InfeasibleTargetError: naming the smallest target that can be met.
        TrainingDivergedError: the loss became NaN or infinite.
    """
    if workers is not None or ray_address is not None:
        given = {name: value for name, value in locals().items() if name not in ("model", "workers", "ray_address")}
        count = 1 if workers is None else workers
        shared: Result = compress_on_workers(compress, model, given, workers=count, address=ray_address)
        return shared
    started = time.perf_counter()
    seed = whole_number("seed", seed, 0, MAX_SEED)
    if recipe is not None and not hasattr(recipe, "for_compression"):
        raise InvalidInputError(f"recipe is {recipe!r}; it must be a Recipe, such as Recipe('sgd', learning_rate=0.1)")
    recipe = (recipe or Recipe()).for_compression()
    loss = loss_of(loss) if isinstance(loss, str) else loss
    metric = metric_of(metric) if isinstance(metric, str) else metric
    check_callbacks(callbacks)
    if train is None:
        if epochs:
            raise InvalidInputError(f"epochs is {epochs}, but there is no data to train on: give train=, or epochs=0")
        epochs, data = 0, calibration
    elif calibration is not None:
        raise InvalidInputError("calibration= is for compression without train=, whose batches serve for it as well")
    else:
        data = train
    if data is not None:
        check_batches(data, "the calibration data" if train is None else "the training data")
    if val is not None:
        check_batches(val, "the validation data")
    where = default_device(device)
    reference, model = model, copy_network(model, device=where, keep_wrappers=True)
    ranks, asked = ranks_of(model), combined(target)
    ranks.check_same({"val": presence(val), "test": presence(test), "seed": seed, "epochs": epochs})
    if asked.quality is not None and val is None:
        raise InvalidInputError(f"the target {asked.quality} is a promise about validation data: give val=")
    counted: dict[str, Any] = {"example": first_example(asked, data, seed), "energy_model": energy_model}
    check_target(model, asked, ignore, **counted)
    splits = {"the training data": train, "the validation data": val, "the test data": test}
    if all(split is None for split in splits.values()):
        loss, metric = loss or classification_loss, metric or correct_predictions  # neither will be asked
    else:
        loss, metric = check_task(model, splits, loss=loss, metric=metric, device=where, seed=seed, may_distil=True)
    # Without a loss the targets say nothing of what the network was trained for: it is measured by its own outputs.
    teacher = copy_network(reference, device=where).eval() if loss is output_distance else None
    if teacher is not None:
        val, test = (each if each is None else TeacherTargets(each, teacher, where) for each in (val, test))

    def scores(network: nn.Module, batches: Iterable[Any]) -> Evaluation:
        return evaluate(network, batches, loss=loss, metric=metric, device=where)

    def mean(found: Evaluation) -> tuple[float, float]:
        count = len(found.scores)
        return ranks.mean(found.loss, count), ranks.mean(found.metric, count)

    # Each batch of them decides in the end: what is wrong with one is found out here.
    shown = progress and ranks.is_first
    with seeded(seed), stage("scoring the network as it was given", shown=shown):
        before = None if val is None else scores(copy_network(reference), val)
    if before is not None:
        check_scores(name_of(metric), *mean(before))
    if asked.quality is not None and val is not None:
        judged: dict[str, Any] = {"loss": loss, "metric": metric, "device": where, "seed": seed}
        with stage("comparing the network with one that only guesses", shown=shown):
            guess = ranks.from_first(lambda: guesses(reference, val, **judged, scores=before))
        if guess is not None:  # nothing can be lost of it, so the smallest file would keep the promise
            raise InvalidInputError(f"the target {asked.quality} is a promise about a trained network, but {guess}")

    epochs = recipe.compress_epochs if epochs is None else whole_number("epochs", epochs, 0)
    judge, judged_by = val, "the loss on the validation data"
    if val is None and epochs and train is not None:
        parts = hold_out(train, seed)
        train, judged_by = parts.train, parts.words
        judge = parts.judge if teacher is None else TeacherTargets(parts.judge, teacher, where)

    def score(network: nn.Module) -> float:
        outcome = scores(network, [] if judge is None else judge)
        if asked.quality is None:
            return -outcome.loss  # the metric of a few hundred examples moves in steps: equal ones decide nothing
        return outcome.loss if isinstance(asked.quality, LossIncrease) else outcome.metric

    some = _some_batches(model, data, seed) if asked.quality is not None else []

    settings: dict[str, Any] = {
        "target": asked,
        "ignore": ignore,
        "evaluate": None if judge is None else score,
        "refit": lambda network: refit_batch_norm(network, some, device=where),
        "constants": constants,
        **counted,
    }
    curve: list[tuple[int, float]] = []
    watched, watch = val if val is not None else judge, None

    def scored(network: nn.Module) -> tuple[float, float]:
        assert watched is not None
        order = data_order_state(watched)
        with seeded(seed):
            found = scores(network, watched)
        restore_data_order(watched, order)
        return mean(found)

    if epochs and train is not None:
        trainer = Trainer(
            model,
            train,
            recipe=recipe,
            epochs=epochs,
            loss=loss,
            device=where,
            seed=seed,
            distillation=distillation_from(
                reference, loss, where, constants.distillation_weight, constants.distillation_temperature
            ),
            checkpoint=_checkpoint(resume),
            progress=progress,
        )
        compressor = Compressor(model, trainer.optimizer, total_steps=trainer.total_steps, **settings)
        words = {"seed": str(seed), "recipe": str(recipe), "ignore": str(ignore), "constants": str(constants)}
        watch = CompressorCallback(compressor, words, None if watched is None else scored)
        trainer.callbacks += [watch, *callbacks]
        curve = trainer.fit().curve
    else:
        untouched = torch.optim.SGD(model.parameters(), lr=0.0)  # takes no step
        compressor = Compressor(model, untouched, total_steps=0, **settings)
    how = "choosing between candidates and writing the file" if epochs else "pruning and quantizing at once"
    # Seeded: a loader that shuffles by torch's own generator gives the same batches in every run.
    with seeded(seed), stage(how, shown=shown):
        result = compressor.compressed(train=data if train is None else train, judged_by=judged_by)
    result.metric = name_of(metric)
    if val is not None and before is not None:
        result.validation_accuracy = mean(scores(result.model, val))[1]
        result.reference_accuracy, result.reference_split = mean(before)[1], "validation"
    if test is not None:
        try:
            with stage("scoring the compressed network on the test data", shown=shown):
                found = scores(result.model, test)
            result.test_accuracy = mean(found)[1]
            if not math.isfinite(found.loss):
                logger.warning("the loss on the test data is %s; its %s means little", found.loss, result.metric)
            result.reference_accuracy = mean(scores(copy_network(reference), test))[1]
            result.reference_split = "test"
        except InvalidInputError as error:  # the network is worth more than what is said of it
            logger.warning("the %s on the test data is not known: %s", result.metric, error)
    after = result.test_accuracy if result.reference_split == "test" else result.validation_accuracy
    if result.reference_accuracy is not None and after is not None:
        warn_of_loss(result.reference_accuracy, after, result.metric)
    result.curve = curve
    if watch is not None and watch.curve:
        result.validation_curve = watch.curve
        result.validation_reference = mean(before)[1] if before is not None else scored(copy_network(reference))[1]
    result.wall_seconds = time.perf_counter() - started
    result.device, result.seed = str(where), seed
    return result


def check_callbacks(callbacks: Sequence[TrainerCallback]) -> None:
    """Checks that the trainer can call them.

    Raises:
        InvalidInputError: one has not the methods of a callback.
    """
    methods = ("on_step", "on_epoch_end", "state_dict", "load_state_dict")
    for each in callbacks:
        missing = [name for name in methods if not callable(getattr(each, name, None))]
        if missing or isinstance(each, type):
            raise InvalidInputError(
                f"callbacks holds {each!r}; each must be an object of a class derived from Callback"
            )


def check_scores(metric: str, loss: float, score: float) -> None:
    """Checks that the network as it was given has scores on the validation data.

    Raises:
        InvalidInputError: one is NaN or infinite, so that nothing can be chosen by it.
    """
    for name, value in (("loss", loss), (metric, score)):
        if not math.isfinite(value):
            raise InvalidInputError(
                f"the network as it was given has the {name} {value} on the validation data: check its outputs there, "
                "the data for NaN, and the function for a division by zero"
            )


def _some_batches(model: nn.Module, train: Iterable[Any] | None, seed: int) -> list[Any]:
    """Returns training batches for the batch norms of a network; none where it has no such layer.

    They are kept, because a loader that is being gone through cannot be gone through from its start as well.
    """
    if train is None or not has_batch_norm(model):
        return []
    with seeded(seed):
        set_epoch(train, 0)
        return list(itertools.islice(train, REFIT_BATCHES))


def first_example(targets: Targets, train: Iterable[Any] | None, seed: int) -> Any:
    """Returns the first input to train on where a target needs one; a loader's random numbers are left as they were."""
    if train is None or not needs_energy(targets):
        return None
    order = data_order_state(train)
    with seeded(seed):
        example = input_example(train)
    restore_data_order(train, order)
    return example


def _same(tensor: Tensor, other: Tensor) -> bool:
    """Tells whether two tensors hold the same values; NaN is as NaN."""
    if tensor.dtype != other.dtype or tensor.shape != other.shape:
        return False
    return bool(((tensor == other) | (tensor != tensor) & (other != other)).all())


def _checkpoint(folder: str | Path | None) -> Path | None:
    """Returns the checkpoint's path in a folder that is there and can be written.

    Raises:
        InvalidInputError: it cannot be made.
    """
    if folder is None:
        return None
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"resume is {str(folder)!r}; this folder cannot be made: {error.strerror}") from error
    return Path(folder) / CHECKPOINT_NAME
