"""The compressor and every plan are treated alike: splits, steps, batches, trainer, file; no search sees test data."""

from __future__ import annotations

import gc
import hashlib
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch
from small_task import make_task, train_reference
from torch.optim.optimizer import register_optimizer_step_post_hook

import autocompress
from autocompress.codec.file import decode_state
from autocompress.codec.layout import layout_of
from autocompress.training.batches import TensorBatches
from autocompress.training.trainer import Trainer
from baselines.final import train_best
from baselines.interface import SearchOutcome, SearchSettings
from baselines.objective import PlanObjective
from baselines.optuna_search import OptunaSearcher

pytestmark = pytest.mark.any_file

EPOCHS = 3
METHODS = [("optuna-tpe", "per-layer"), ("random", "price"), ("uniform", "uniform"), ("magnitude", "magnitude")]


class Watched(TensorBatches):
    """Batches that write down what was read of them, and when."""

    def __init__(self, inner: TensorBatches, name: str, diary: list[str]) -> None:
        self.__dict__.update(inner.__dict__)
        self.name, self.diary = name, diary

    def __iter__(self):
        for inputs, targets in super().__iter__():
            digest = hashlib.sha256(inputs.numpy().tobytes() + targets.numpy().tobytes()).hexdigest()[:8]
            self.diary.append(f"{self.name} {digest}")
            yield inputs, targets


def watched_task(diary):
    task = make_task()
    return replace(
        task,
        train=Watched(task.train, "train", diary),
        validation=Watched(task.validation, "validation", diary),
        test=Watched(task.test, "test", diary),
    )


@pytest.fixture(scope="module")
def reference():
    return train_reference(make_task())


@contextmanager
def counted_steps():
    """Counts the steps of every SGD optimizer, which only the trainer makes: the count does not come from our code."""
    counted = []

    def count(optimizer, args, kwargs):
        if isinstance(optimizer, torch.optim.SGD):
            counted.append(1)

    handle = register_optimizer_step_post_hook(count)
    try:
        yield counted
    finally:
        handle.remove()


def search_and_train(method, space, task, reference):
    objective = PlanObjective(task, reference, target="600B", space=space, epochs=2)
    outcome = OptunaSearcher(method).search(objective, SearchSettings(trials=4, progress=False))
    searched = len(task.train.diary)
    best = outcome.best
    assert best is not None
    result = train_best(
        task, reference, best.values, target="600B", space=space, epochs=EPOCHS, progress=False, device="cpu"
    )
    return outcome, result, searched


def compress(task, reference):
    return autocompress.compress(
        reference,
        train=task.train,
        val=task.validation,
        test=task.test,
        target="600B",
        epochs=EPOCHS,
        recipe=task.recipe,
        progress=False,
    )


def read(diary, name):
    return [entry for entry in diary if entry.startswith(name)]


@dataclass
class Watch:
    """A search and its final run: what came out, what was read, and where in that the search ended."""

    outcome: SearchOutcome
    result: autocompress.Result
    diary: list[str]
    searched: int
    steps: int
    fits: list[tuple[float, object, int]]


@contextmanager
def noted_fits():
    """Notes learning rate, recipe and seed of every training by the shared trainer."""
    noted: list[tuple[float, object, int]] = []
    fit = Trainer.fit

    def note(self):
        noted.append((self.learning_rate, self.recipe, self.seed))
        return fit(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "fit", note)
        yield noted


@pytest.fixture(scope="module", params=METHODS, ids="-".join)
def watch(request, reference):
    task = watched_task([])
    with counted_steps() as steps, noted_fits() as fits:
        outcome, result, searched = search_and_train(*request.param, task, reference)
    return Watch(outcome, result, task.train.diary, searched, len(steps), fits)


@pytest.fixture(scope="module")
def compressed(reference):
    """The compressor's result, what it read, and its trainings."""
    diary: list[str] = []
    with noted_fits() as fits:
        return compress(watched_task(diary), reference), diary, fits


def test_steps_are_those_that_were_taken(watch):
    outcome, result = watch.outcome, watch.result
    assert watch.steps == outcome.gradient_steps + result.gradient_steps
    assert result.gradient_steps == EPOCHS * 10
    assert sum(trial.state == "stopped" for trial in outcome.trials) or outcome.gradient_steps == 4 * 2 * 10


def test_stopped_trials_count_what_they_took(reference):
    objective = PlanObjective(make_task(), reference, target="weights:60x", space="per-layer", epochs=4)
    with counted_steps() as steps:
        outcome = OptunaSearcher("random", "median").search(objective, SearchSettings(trials=8, progress=False))
    assert {trial.state for trial in outcome.trials} == {"complete", "stopped"}  # or nothing was tested here
    assert len(steps) == outcome.gradient_steps < 8 * 4 * 10


def test_the_final_run_reads_what_the_compressor_reads(watch, compressed):
    result, theirs, (compressed, ours, _) = watch.result, watch.diary, compressed
    assert result.gradient_steps == compressed.gradient_steps
    # the same training batches in the same order, and the same other examples; before, the trainer tries a batch and
    # the compressor another one, to try the loss
    assert read(theirs[watch.searched :], "train")[1 : EPOCHS * 10 + 1] == read(ours, "train")[2 : EPOCHS * 10 + 2]
    for split in ("validation", "test"):
        assert set(read(theirs, split)) == set(read(ours, split))
    assert result.reference_accuracy == compressed.reference_accuracy
    # one format: each file is read by the same code into the tensors that its result holds
    for each in (result, compressed):
        assert each.file_bytes <= 600
        state = decode_state(each.data, layout_of(make_task().make_model()))
        for name, tensor in each.model.state_dict().items():
            assert torch.equal(tensor, state.dense()[name])


def test_the_test_split_is_read_once_at_the_very_end(watch):
    diary = watch.diary
    first = next(number for number, entry in enumerate(diary) if entry.startswith("test"))
    assert all(entry.startswith("test") for entry in diary[first:])
    assert len(diary) - first == 2  # the compressed network and the reference, one batch each
    assert read(diary, "train")


def test_the_objective_holds_no_test_split(reference):
    task = make_task()
    objective = PlanObjective(task, reference, target="weights:60x", space="per-layer", epochs=1)
    objective(objective.space.start)
    assert not _reachable(objective, task.test.inputs)
    assert _reachable(objective, task.validation.inputs)  # or the search looks in vain


def _reachable(root, wanted) -> bool:
    """Says whether an object can be reached from another by references, modules and classes left out."""
    seen, todo = set(), [root]
    while todo:
        each = todo.pop()
        if each is wanted:
            return True
        if id(each) in seen or isinstance(each, type) or type(each).__name__ in ("module", "function", "frame"):
            continue
        seen.add(id(each))
        todo += gc.get_referents(each)
    return False


def test_trials_and_final_run_use_the_shared_trainer(watch, compressed):
    trials = sum(trial.gradient_steps > 0 for trial in watch.outcome.trials)
    made = watch.fits + compressed[2]
    assert len(made) == trials + 1 + 1
    assert len(set(made)) == 1
