"""The objective: what a proposal is worth, what it cost, and that the plan was kept."""

import pickle
from dataclasses import replace
from functools import cache

import pytest
import torch
from small_task import make_task, train_reference

import autocompress
from autocompress.codec.file import load
from autocompress.errors import InfeasibleTargetError, InvalidInputError
from autocompress.network.network_state import filled_copy
from baselines.final import train_best
from baselines.objective import PlanObjective, PlanRun

pytestmark = pytest.mark.any_file

STEPS_PER_EPOCH = 10


@cache
def reference(norm=False):
    return train_reference(make_task(norm=norm))


@cache  # calling one changes nothing in it
def make_objective(*, norm=False, **options):
    options = {"target": "600B", "space": "per-layer", "epochs": 4} | options
    return PlanObjective(make_task(norm=norm), reference(norm), **options)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("space", ["per-layer", "price", "uniform", "magnitude"])
def test_an_evaluation_is_within_the_target_and_counts_its_cost(space, norm):
    objective = make_objective(space=space, norm=norm, epochs=2)
    found = objective(objective.space.start)
    assert 0 < found.size <= 600
    assert found.accuracy > 0.5  # a third by chance
    assert found.gradient_steps == 2 * STEPS_PER_EPOCH
    assert [steps for steps, _ in found.curve] == [10, 20]
    assert found.device_seconds > 0
    assert not found.stopped


def test_weight_bits_are_counted_in_bits():
    objective = make_objective(target="weights:60x", epochs=1)
    found = objective(objective.space.start)
    assert 0 < found.size <= 32 * 1760 / 60


def test_codebook_sizes_are_kept_and_masks_move():
    objective = make_objective(epochs=6)
    run = PlanRun(objective, objective.space.start)
    seen = []

    class Look:
        def on_step(self, trainer):
            seen.append([weight.detach().clone() for weight in run.compressor.network.weights])

        def on_epoch_end(self, trainer):
            pass

    run.trainer.callbacks.append(Look())
    run.trainer.fit()
    assert run.compressor.steps == 60
    for weights in seen:  # the network that is trained is one that a file could hold
        for weight, name in zip(weights, ("0.weight", "2.weight", "4.weight"), strict=True):
            assert len(torch.unique(weight[weight != 0])) <= 2 ** objective.space.start[f"{name}.bits"]
    assert any(not torch.equal(a != 0, b != 0) for a, b in zip(seen[35], seen[45], strict=True))
    result = run.finish()
    assert 0.98 * 590 <= len(result.data) <= 600


def test_the_price_space_at_equal_multipliers_is_the_compressor():
    """One solver for both: with nothing bent a search trains what the compressor trains, to the byte."""
    task = make_task()
    objective = make_objective(space="price", epochs=6)
    run = PlanRun(objective, objective.space.start)
    run.trainer.fit()
    mine = run.finish(lambda network: -objective.scores(network).loss)
    theirs = autocompress.compress(
        reference(), train=task.train, val=task.validation, target="600B", epochs=6, recipe=task.recipe, progress=False
    )
    assert mine.data == theirs.data


def test_training_helps():
    objective = make_objective(epochs=12)
    values = {**objective.space.start, "0.weight.keep_fraction": 0.01}
    run = PlanRun(objective, values)
    at_once = objective.scores(filled_copy(run.compressor.network.model, run.finish().state))
    found = objective(values)
    assert found.loss < at_once.loss


def test_the_better_of_best_trial_and_final_training_is_kept():
    task, objective = make_task(), make_objective(epochs=2)
    good = objective(objective.space.start)
    bad = {p.name: (1 if p.integer else p.low) for p in objective.space.parameters}
    options = {"target": "600B", "space": "per-layer", "epochs": 1, "progress": False}
    kept = train_best(task, reference(), bad, trial_file=good.file, **options)
    assert kept.data == good.file
    assert kept.outcome.chosen == "best trial"
    assert kept.validation_accuracy == good.accuracy
    poor = make_objective(epochs=1)(bad)
    better = train_best(task, reference(), objective.space.start, trial_file=poor.file, **(options | {"epochs": 2}))
    assert better.data != poor.file
    assert better.outcome.chosen != "best trial"


def test_data_is_read_from_one_place():
    """What is sent to a node holds arrays beside the pickle: Ray keeps them once, and its actors read them there."""
    objective = make_objective(epochs=1)
    buffers = []
    payload = pickle.dumps(objective, protocol=5, buffer_callback=buffers.append)
    inputs = objective.train.inputs
    assert inputs.numel() * 4 in [buffer.raw().nbytes for buffer in buffers]
    assert len(payload) < inputs.numel() * 4 + 40_000
    frozen = [bytes(buffer.raw()) for buffer in buffers]  # as in shared memory, where nothing can be written
    copy = pickle.loads(payload, buffers=frozen)
    assert torch.equal(copy.train.inputs, inputs)
    assert replace(copy(copy.space.start), device_seconds=0) == replace(
        objective(objective.space.start), device_seconds=0
    )


def test_a_stopped_evaluation_says_what_it_cost():
    objective = make_objective()
    seen = []

    def stop_at_two(progress):
        seen.append((progress.epoch, progress.gradient_steps, progress.accuracy))
        return progress.epoch == 2

    found = objective(objective.space.start, stop_at_two)
    assert found.stopped
    assert found.gradient_steps == 2 * STEPS_PER_EPOCH
    assert found.size == 0
    assert [(steps, accuracy) for _, steps, accuracy in seen] == list(found.curve)
    assert found.accuracy == seen[-1][2]


def test_the_same_again_and_from_a_pickle():
    objective = make_objective(epochs=2)
    copy = pickle.loads(pickle.dumps(objective))
    first, again, other = (o(objective.space.start) for o in (objective, objective, copy))
    for found in (again, other):
        assert replace(found, device_seconds=0) == replace(first, device_seconds=0)
    assert copy.identity == objective.identity


def with_states(objective):
    """Returns an evaluation of the start and the states that it may be gone on with, by epoch."""
    states = {}

    def keep(progress):
        states[progress.epoch] = pickle.loads(pickle.dumps(progress.state()))
        return False

    return objective(objective.space.start, keep), states


@pytest.fixture(scope="module")
def whole_evaluation():
    objective = make_objective(epochs=6)
    return objective, *with_states(objective)


@pytest.mark.parametrize("epoch", [1, 3, 5])
def test_going_on_is_as_if_never_stopped(epoch, whole_evaluation):
    objective, whole, states = whole_evaluation
    rest = objective(objective.space.start, state=states[epoch])
    assert rest.accuracy == whole.accuracy
    assert rest.gradient_steps == (6 - epoch) * STEPS_PER_EPOCH
    assert [accuracy for _, accuracy in rest.curve] == [accuracy for _, accuracy in whole.curve][epoch:]


def test_going_on_under_another_plan():
    """As population based training does: the weights of one, the plan of another; pruned weights may come back."""
    objective = make_objective(epochs=6, target="250B")
    _, states = with_states(objective)
    values = {name: (1 if name.endswith("bits") else value) for name, value in objective.space.start.items()}
    for epoch in (2, 5):
        found = objective(values, state=states[epoch])
        assert all(layer["codebook"] == 2 for layer in found.plan.values())
        assert found.gradient_steps == (6 - epoch) * STEPS_PER_EPOCH
        assert 0 < found.size <= 250
        assert found.accuracy > 0.5


def test_identity_tells_searches_apart():
    changes = ({}, {"target": "weights:61x"}, {"space": "global"}, {"epochs": 5}, {"norm": True})
    identities = [make_objective(**{"target": "weights:60x"} | change).identity for change in changes]
    assert len({tuple(sorted(identity.items())) for identity in identities}) == 5


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"epochs": 0}, InvalidInputError, "epochs of a trial is 0"),
        ({"space": "grid"}, InvalidInputError, "the search space 'grid' is unknown"),
        ({"target": "10B"}, InfeasibleTargetError, "smallest file"),
        ({"target": "weights:1bits"}, InfeasibleTargetError, "smallest is 3"),
        ({"target": "many"}, InvalidInputError, "cannot use the target 'many'"),
        ({"ignore": ("nothing.*",)}, InvalidInputError, "matches no parameter"),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        make_objective(**change)


def test_the_best_is_trained_and_written(tmp_path):
    task = make_task(norm=True)
    values = make_objective(norm=True).space.start
    result = train_best(task, reference(norm=True), values, target="600B", space="per-layer", epochs=3, progress=False)
    result.save(tmp_path / "net.safetensors")
    assert (tmp_path / "net.safetensors").stat().st_size == result.file_bytes <= 600
    net = load(tmp_path / "net.safetensors", into=task.make_model())
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, result.model.state_dict()[name])
    assert result.gradient_steps == 30
    assert [steps for steps, _ in result.curve] == [10, 20, 30]
    assert result.test_accuracy is not None
    assert result.test_accuracy > 0.6
    assert make_objective(norm=True).scores(net).metric == result.validation_accuracy


def test_the_final_training_resumes(tmp_path):
    task, values = make_task(), make_objective().space.start
    options = {"target": "600B", "space": "per-layer", "epochs": 3, "progress": False}
    whole = train_best(task, reference(), values, **options)
    objective = make_objective(epochs=3)
    run = PlanRun(objective, values, checkpoint=tmp_path / "final.checkpoint")

    class Killed(Exception):
        pass

    class Kill:
        def on_step(self, trainer):
            if trainer.step == 13:
                raise Killed

        def on_epoch_end(self, trainer):
            pass

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    run.trainer.callbacks.append(Kill())
    with pytest.raises(Killed):
        run.trainer.fit()
    saved = torch.load(tmp_path / "final.checkpoint", weights_only=True)
    saved["callbacks"] = saved["callbacks"][:1]  # the killer's
    torch.save(saved, tmp_path / "final.checkpoint")
    resumed = train_best(task, reference(), values, checkpoint=tmp_path / "final.checkpoint", **options)
    assert resumed.data == whole.data
