import math
import os
import random
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from processes import Script
from small_task import make_task
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from autocompress.errors import AutocompressError, InvalidInputError, TrainingDivergedError
from autocompress.task import Task, load_task
from autocompress.training.batches import TensorBatches, autocast, forward, split_batch, to_device
from autocompress.training.checkpoint import Callback, load_checkpoint, save_checkpoint
from autocompress.training.evaluation import evaluate
from autocompress.training.layer_statistics import refit_batch_norm
from autocompress.training.losses import Distillation, TeacherOutputs, classification_loss, correct_predictions
from autocompress.training.recipe import Recipe
from autocompress.training.reference import reference_network
from autocompress.training.trainer import Trainer

pytestmark = pytest.mark.any_file

RECIPE = Recipe("sgd", 0.05, batch_size=16, reference_epochs=2)


def dataset(count: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 4
    return torch.randn(count, 8, generator=generator) + 2 * F.one_hot(labels, 8), labels


def batches(count: int = 64) -> TensorBatches:
    return TensorBatches(*dataset(count), batch_size=16, shuffle=True)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4))


def trainer(model: nn.Module, train=None, **options) -> Trainer:
    settings = {"recipe": RECIPE, "epochs": 3, "device": "cpu", "precision": "fp32"} | options
    return Trainer(model, batches() if train is None else train, **settings)


def assert_equal_states(first: nn.Module, second: nn.Module) -> None:
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


# --- the loop


def test_training_learns_and_says_what_it_did() -> None:
    model = network()
    run = trainer(model, epochs=10)
    log = run.fit()
    assert log.gradient_steps == run.step == run.total_steps == 40
    assert len(log.losses) == 10
    assert log.losses[-1] < 0.5 * log.losses[0]
    assert log.wall_seconds > 0
    assert evaluate(model, batches(), device="cpu").metric > 0.8


def test_two_steps_by_hand() -> None:
    model = nn.Linear(8, 4)
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    inputs, labels = dataset(16)
    recipe = Recipe("sgd", 0.05, momentum=0.9, weight_decay=0.1, warmup_fraction=0.5)
    trainer(model, [(inputs, labels)], recipe=recipe, epochs=2).fit()
    velocity_w, velocity_b = torch.zeros_like(weight), torch.zeros_like(bias)
    for rate in (0.05, 0.05):  # one step of warm-up, at the peak already, and one at the top of the cosine
        slope = (F.softmax(inputs @ weight.T + bias, 1) - F.one_hot(labels, 4)) / 16
        gradient_w, gradient_b = slope.T @ inputs, slope.sum(0)
        norm = torch.sqrt(gradient_w.square().sum() + gradient_b.square().sum())
        scale = torch.clamp(1.0 / (norm + 1e-6), max=1.0)
        velocity_w = 0.9 * velocity_w + scale * gradient_w + 0.1 * weight
        velocity_b = 0.9 * velocity_b + scale * gradient_b
        weight, bias = weight - rate * velocity_w, bias - rate * velocity_b
    assert torch.allclose(model.weight, weight, atol=1e-6)
    assert torch.allclose(model.bias, bias, atol=1e-6)


def test_callbacks_see_gradients_and_the_rate_of_the_step() -> None:
    class Watch(Callback):
        def __init__(self) -> None:
            self.rates, self.epochs = [], []

        def on_step(self, trainer: Trainer) -> None:
            assert all(parameter.grad is not None for parameter in trainer.model.parameters())
            self.rates.append(trainer.optimizer.param_groups[0]["lr"])
            assert trainer.step == len(self.rates)

        def on_epoch_end(self, trainer: Trainer) -> None:
            self.epochs.append((trainer.epoch, trainer.step))

    watch = Watch()
    run = trainer(network())
    run.callbacks.append(watch)
    run.fit()
    assert watch.epochs == [(1, 4), (2, 8), (3, 12)]
    assert watch.rates[:2] == pytest.approx([0.05, 0.05])
    assert watch.rates[-1] < watch.rates[3]


def test_same_seed_same_weights_and_the_callers_generators_are_left_alone() -> None:
    first, second, other = network(), network(), network()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    before = (torch.rand(1), random.random(), np.random.rand())
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    trainer(first).fit()
    assert (torch.rand(1), random.random(), np.random.rand()) == before
    trainer(second).fit()
    trainer(other, seed=1).fit()
    assert_equal_states(first, second)
    assert not torch.equal(first[0].weight, other[0].weight)


def test_nan_loss_names_step_and_rate() -> None:
    inputs, labels = dataset(64)
    inputs[40:] = math.nan
    train = DataLoader(TensorDataset(inputs, labels), batch_size=16)
    with pytest.raises(TrainingDivergedError, match=r"nan in step 3 of 12, at a peak learning rate of 0\.05"):
        trainer(nn.Linear(8, 4), train).fit()


@pytest.mark.parametrize("empty", [[], DataLoader(TensorDataset(torch.zeros(0, 8), torch.zeros(0)), batch_size=4)])
def test_empty_loader(empty) -> None:
    with pytest.raises(InvalidInputError, match="training data gives no batch"):
        trainer(network(), empty)
    with pytest.raises(InvalidInputError, match="no batch"):
        evaluate(network(), empty, device="cpu")


def test_bad_arguments() -> None:
    with pytest.raises(InvalidInputError, match="is an iterator"):
        trainer(network(), iter(batches()))
    with pytest.raises(InvalidInputError, match="epochs is 0"):
        trainer(network(), epochs=0)
    with pytest.raises(InvalidInputError, match="precision 'fp8' is unknown"):
        trainer(network(), precision="fp8")
    with pytest.raises(InvalidInputError, match="device 'gpu' cannot be used here"):
        trainer(network(), device="gpu")


def test_learning_rate_is_found_where_the_recipe_has_none() -> None:
    run = trainer(network(), recipe=Recipe())
    assert 1e-6 < run.learning_rate < 0.1
    assert run.optimizer.defaults["lr"] == run.learning_rate


def test_the_rate_is_found_on_the_same_order_whatever_was_trained_before(monkeypatch) -> None:
    orders = []

    def look(model, train, **_):
        orders.append(torch.cat([targets for _, targets in train]))
        return 0.01

    monkeypatch.setattr("autocompress.training.trainer.find_learning_rate", look)
    used = batches()
    trainer(network(), used).fit()
    for train in (used, batches()):
        trainer(network(), train, recipe=Recipe())
    assert torch.equal(*orders)


def test_bfloat16_and_channels_last_leave_a_plain_model() -> None:
    images = torch.randn(8, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    seen = []
    model[0].register_forward_hook(lambda module, args, output: seen.append((output.dtype, args[0].is_contiguous())))
    train = [(images, torch.arange(8) % 2)]
    trainer(model, train, precision="bf16", epochs=1).fit()
    assert seen == [(torch.bfloat16, False)]
    assert model[0].weight.is_contiguous()
    assert model[0].weight.dtype == torch.float32


class Turned(nn.Module):
    """Turns its features in pairs, as rotary positions do: no complex number is made of bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pairs = torch.complex(*self.first(x).chunk(2, -1))
        return self.last(torch.view_as_real(pairs * 1j).flatten(-2))


def binary(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy(output.sigmoid(), F.one_hot(target, 4).float())


@pytest.mark.parametrize(
    ("make", "loss", "taken"),
    [(network, classification_loss, True), (Turned, classification_loss, False), (network, binary, False)],
)
def test_bfloat16_only_where_network_and_loss_take_it(make, loss, taken: bool, monkeypatch, caplog) -> None:
    monkeypatch.setattr("autocompress.training.batches.cpu_has_bfloat16_tiles", lambda: True)
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    with caplog.at_level("INFO"):
        run = trainer(model, loss=loss, precision="auto", recipe=replace(RECIPE, learning_rate=None))
    assert run.bfloat16 is taken
    assert ("trained in float32: network or loss does not take bfloat16 (RuntimeError" in caplog.text) is not taken
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert math.isfinite(run.fit().losses[-1])


def test_attention_with_a_mask_is_evaluated_in_bfloat16() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    network, x = nn.TransformerEncoder(layer, 1).eval(), torch.randn(2, 5, 8)
    padding = torch.tensor([[False] * 5, [False, False, False, True, True]])
    with torch.no_grad():
        expected = network(x, src_key_padding_mask=padding)
        with autocast(True, torch.device("cpu")):
            found = network(x, src_key_padding_mask=padding)
    assert torch.backends.mha.get_fastpath_enabled()
    torch.testing.assert_close(found[~padding].float(), expected[~padding], rtol=0.05, atol=0.05)


# --- batches, losses, evaluation


@pytest.mark.parametrize("key", ["labels", "label", "target", "targets", "y"])
def test_dict_batches(key: str) -> None:
    args, kwargs, target = split_batch({"inputs": 1, key: 2})
    assert (args, kwargs, target) == ((), {"inputs": 1}, 2)


def test_tuple_batches() -> None:
    assert split_batch([1, 2, 3]) == ((1, 2), {}, 3)
    for bad in ((1,), torch.zeros(2), {"inputs": 1}):
        with pytest.raises(InvalidInputError, match="target"):
            split_batch(bad)


def test_dict_and_tuple_batches_train_alike() -> None:
    inputs, labels = dataset()
    first, second = network(), network()
    trainer(first, [(inputs, labels)]).fit()
    trainer(second, [{"labels": labels, "input": inputs}]).fit()
    assert_equal_states(first, second)


def test_to_device_goes_through_containers() -> None:
    moved = to_device({"a": [torch.zeros(1, 2, 3, 3), "text"]}, "cpu", torch.channels_last)
    assert moved["a"][0].is_contiguous(memory_format=torch.channels_last)
    assert moved["a"][1] == "text"


def test_sequences_are_scored_by_token_without_the_ignored() -> None:
    logits = F.one_hot(torch.tensor([[1, 2, 0], [1, 1, 1]]), 3).float()
    target = torch.tensor([[1, 0, -100], [1, 1, 1]])
    assert correct_predictions(logits, target).tolist() == [0.5, 1.0]
    flat = F.cross_entropy(logits.reshape(6, 3), target.reshape(6))
    assert classification_loss({"logits": logits}, target) == pytest.approx(float(flat))
    with pytest.raises(InvalidInputError, match="returned a tuple"):
        classification_loss((logits,), target)


def test_distillation_against_its_formula() -> None:
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    p, q = F.softmax(teacher / 2, 1), F.softmax(student / 2, 1)
    expected = 0.5 * 4 * (p * (p / q).log()).sum(1).mean() + 0.5 * 2.0
    distillation = Distillation(nn.Identity())
    assert float(distillation.loss(student, teacher, torch.tensor(2.0))) == pytest.approx(float(expected), rel=1e-5)
    assert float(distillation.loss(student, student, torch.tensor(0.0))) == pytest.approx(0, abs=1e-6)


def test_teacher_is_not_trained() -> None:
    teacher, student = network(1), network(2)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    trainer(student, distillation=Distillation(teacher)).fit()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


class Counted(nn.Module):
    """Counts the examples that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.seen = network(1).eval(), 0

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self.seen += len(input)
        return self.inner(input)


@pytest.mark.parametrize("form", ["tensors", "loader", "dicts"])
def test_a_teacher_is_asked_once_for_each_example(form: str) -> None:
    inputs, labels = dataset(50)
    train = {
        "tensors": TensorBatches(inputs, labels, batch_size=16, shuffle=True),
        "loader": DataLoader(TensorDataset(inputs, labels), batch_size=16, shuffle=True),
        "dicts": [{"input": inputs[:16], "labels": labels[:16]}, {"input": inputs[16:], "labels": labels[16:]}],
    }[form]
    teacher = Counted()
    run = trainer(network(2), train, epochs=5, distillation=Distillation(teacher))
    run.fit()
    assert teacher.seen == 50 + 8  # half of the first batch once more, to see that each example is on its own
    batch = {"input": inputs, "labels": labels} if form == "dicts" else (inputs, labels)
    torch.testing.assert_close(run.teacher_outputs(batch, again=True), teacher.inner(inputs).detach())
    assert teacher.seen == 58


def test_only_examples_that_are_new_are_computed() -> None:
    teacher, (inputs, labels) = Counted().requires_grad_(False), dataset(48)
    inputs[6] = inputs[1]
    taught = TeacherOutputs(lambda batch: teacher(batch[0]), torch.device("cpu"))
    for start in (0, 8, 32):  # 16 in all, 8 known of 24, none known of 16
        part = slice(start, start + (24 if start == 8 else 16))
        seen = teacher.seen
        torch.testing.assert_close(taught((inputs[part], labels[part]), again=False), teacher.inner(inputs[part]))
        assert teacher.seen - seen == {0: 16 + 8, 8: 16, 32: 16}[start]


def test_outputs_of_inputs_that_hardly_ever_come_back_are_not_remembered() -> None:
    teacher = Counted()
    run = trainer(network(), noisy_loader(), epochs=6, distillation=Distillation(teacher))
    run.fit()
    assert teacher.seen == 6 * 64 + 8
    assert not run.teacher_outputs.active
    assert run.teacher_outputs.state_dict()["keys"] is None


def test_outputs_that_depend_on_the_rest_of_the_batch_are_not_remembered() -> None:
    class Mixing(Counted):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input - input.mean(0))

    teacher = Mixing()
    run = trainer(network(), distillation=Distillation(teacher))
    run.fit()
    assert teacher.seen == 3 * 64 + 8
    assert not run.teacher_outputs.active


def test_no_more_is_remembered_than_there_is_room_for(monkeypatch) -> None:
    monkeypatch.setattr("autocompress.training.losses.REMEMBERED_BYTES", 40 * (200 + 16))
    taught = TeacherOutputs(lambda batch: batch[0][:, :4], torch.device("cpu"))
    inputs, labels = dataset(48)
    for start, active in ((0, True), (16, True), (32, False)):
        part = slice(start, start + 16)
        assert torch.equal(taught((inputs[part], labels[part]), again=False), inputs[part, :4])
        assert taught.active is active


def test_what_cannot_be_told_apart_is_asked_for_again() -> None:
    taught = TeacherOutputs(lambda batch: "asked", torch.device("cpu"))
    for batch in (("text", 1), (torch.zeros(()), 1), (torch.zeros(0, 3), 1), (torch.zeros(2), torch.zeros(3), 1)):
        assert taught(batch, again=False) == "asked"
    with pytest.raises(InvalidInputError, match="target"):
        taught(torch.zeros(2), again=False)


def test_evaluation_by_hand_with_uneven_batches() -> None:
    model = network().train()
    model[3].eval()
    inputs, labels = dataset(20)
    scores = evaluate(model, TensorBatches(inputs, labels, batch_size=16), device="cpu")
    assert [module.training for module in model] == [True, True, True, False, True]
    model.eval()
    with torch.no_grad():
        logits = model(inputs)
    assert scores.loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
    assert scores.scores.tolist() == (logits.argmax(1) == labels).float().tolist()
    assert scores.metric == pytest.approx(scores.scores.mean().item())


def test_metric_must_give_one_score_per_example() -> None:
    with pytest.raises(InvalidInputError, match="one score per example"):
        evaluate(network(), batches(), metric=lambda output, target: output.mean(), device="cpu")


def test_batch_norm_is_refitted_to_the_plain_average() -> None:
    model = network()
    inputs, labels = dataset(64)
    refit_batch_norm(model, TensorBatches(inputs, labels, batch_size=32), device="cpu")
    hidden = model[0](inputs).detach()
    halves = [hidden[:32], hidden[32:]]
    assert torch.allclose(model[1].running_mean, hidden.mean(0), atol=1e-5)
    assert torch.allclose(model[1].running_var, torch.stack([half.var(0) for half in halves]).mean(0), atol=1e-5)
    assert model[1].momentum == 0.1
    assert model.training
    refit_batch_norm(nn.Linear(2, 2), [], device="cpu")  # nothing to refit: the data are not asked for


# --- checkpoints


def norm_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


def batches_of(*sizes: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(size, 5, generator=generator) * size, torch.zeros(size, dtype=torch.long)) for size in sizes]


def test_batch_norm_is_refitted_by_examples_not_by_batches(caplog) -> None:
    model, data = norm_model(), batches_of(40, 40, 2, 1)
    with caplog.at_level("INFO"):
        refit_batch_norm(model, data, device="cpu")
    hidden = [model[0](inputs).detach() for inputs, _ in data[:3]]
    torch.testing.assert_close(model[1].running_mean, torch.cat(hidden).mean(0))
    variance = sum(len(each) * each.var(0) for each in hidden) / 82
    torch.testing.assert_close(model[1].running_var, variance)
    assert "1 batches of one example were left out" in caplog.text
    assert model[1].momentum == 0.1


def test_batch_norm_keeps_its_statistics_where_every_batch_is_of_one(caplog) -> None:
    model = norm_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    refit_batch_norm(model, batches_of(1, 1), device="cpu")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "no batch of the data has more than one example" in caplog.text


def test_a_last_batch_of_one_trains_through_a_batch_norm() -> None:
    model, data = norm_model(), batches_of(40, 1)
    log = Trainer(model, data, recipe=Recipe("sgd"), epochs=2, device="cpu", progress=False).fit()
    assert log.gradient_steps == 4
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())
    assert model[1].training


class Interrupt(Callback):
    """Stops the run in the middle of an epoch, and remembers how many steps it has seen."""

    def __init__(self, at: int = 0) -> None:
        self.at, self.seen = at, 0

    def on_step(self, trainer: Trainer) -> None:
        self.seen += 1
        if trainer.step == self.at:
            raise KeyboardInterrupt

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state) -> None:
        self.seen = state["seen"]


def loader() -> DataLoader:
    return DataLoader(TensorDataset(*dataset()), batch_size=16, shuffle=True)


def loader_with_generator() -> DataLoader:
    return DataLoader(
        TensorDataset(*dataset()), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(4)
    )


def distilled() -> dict[str, Distillation]:
    """A teacher whose outputs of an example differ in the last bits from batch to batch, as those of large ones do."""

    class Unsteady(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network(1).eval()

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.inner(inputs) * (1 + 1e-3 * inputs.sum().sin())

    return {"distillation": Distillation(Unsteady())}


@pytest.mark.parametrize("make", [batches, loader, loader_with_generator])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("options", [dict, distilled])
def test_resumed_is_undisturbed(tmp_path: Path, make, optimizer: str, options) -> None:
    recipe = replace(RECIPE, optimizer=optimizer, learning_rate=None)
    path = tmp_path / "run.checkpoint"
    whole, broken, resumed = network(), network(), network()
    log = trainer(whole, make(), recipe=recipe, callbacks=[Interrupt()], **options()).fit()
    with pytest.raises(KeyboardInterrupt):
        trainer(broken, make(), recipe=recipe, callbacks=[Interrupt(at=7)], checkpoint=path, **options()).fit()
    torch.rand(3)
    counter = Interrupt()
    again = trainer(resumed, make(), recipe=recipe, callbacks=[counter], checkpoint=path, **options()).fit()
    assert_equal_states(whole, resumed)
    assert again.losses == log.losses
    assert again.gradient_steps == counter.seen == 12


class Noisy(torch.utils.data.Dataset):
    """Draws noise for each example as it is asked for."""

    def __init__(self) -> None:
        self.inputs, self.labels = dataset()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.inputs[index] + 0.1 * torch.randn(8), self.labels[index]


def noisy_loader() -> DataLoader:
    return DataLoader(Noisy(), batch_size=16, shuffle=True)


@pytest.mark.parametrize("at", [2, 7, 8, 9])
@pytest.mark.parametrize("make", [batches, loader, loader_with_generator, noisy_loader])
@pytest.mark.parametrize("options", [dict, distilled])
def test_resumed_within_an_epoch_is_undisturbed(tmp_path: Path, monkeypatch, make, at: int, options) -> None:
    monkeypatch.setattr("autocompress.training.trainer.SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    path = tmp_path / "run.checkpoint"
    whole, broken, resumed = network(), network(), network()
    log = trainer(whole, make(), callbacks=[Interrupt()], **options()).fit()
    with pytest.raises(KeyboardInterrupt):
        trainer(broken, make(), callbacks=[Interrupt(at=at)], checkpoint=path, **options()).fit()
    assert load_checkpoint(path)["step"] == at - 1
    torch.rand(3)
    counter = Interrupt()
    again = trainer(resumed, make(), callbacks=[counter], checkpoint=path, **options()).fit()
    assert_equal_states(whole, resumed)
    assert again.losses == log.losses
    assert counter.seen == 12


def run_on_digits(checkpoint: Path | None, kill_at: int = 0) -> nn.Module:
    """Trains LeNet-5 on some digits; kills the process in step `kill_at`."""

    class Kill(Callback):
        def on_step(self, trainer: Trainer) -> None:
            if trainer.step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    task = load_task("lenet5", "digits", device="cpu")
    task.train.inputs, task.train.targets = task.train.inputs[:128], task.train.targets[:128]
    model = task.make_model()
    Trainer(
        model, task.train, recipe=task.recipe, epochs=3, device="cpu", callbacks=[Kill()], checkpoint=checkpoint
    ).fit()
    return model


def test_killed_process_resumes_to_the_same_bits(tmp_path: Path) -> None:
    path = tmp_path / "run.checkpoint"
    code = f"import pathlib, test_trainer; test_trainer.run_on_digits(pathlib.Path({str(path)!r}), kill_at=5)"
    assert Script(code).wait() == -signal.SIGKILL
    assert load_checkpoint(path)["step"] == 4
    assert_equal_states(run_on_digits(None), run_on_digits(path))


def test_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first, second = network(), network(1)
    trainer(first, checkpoint=tmp_path / "c").fit()
    log = trainer(second, checkpoint=tmp_path / "c").fit()
    assert_equal_states(first, second)
    assert log.gradient_steps == 12


def test_checkpoint_of_another_run(tmp_path: Path) -> None:
    trainer(network(), checkpoint=tmp_path / "c").fit()
    with pytest.raises(InvalidInputError, match="12 steps where this one has 20"):
        trainer(network(), checkpoint=tmp_path / "c", epochs=5).fit()
    with pytest.raises(InvalidInputError, match="of another network"):
        trainer(nn.Linear(8, 4), checkpoint=tmp_path / "c").fit()


def test_damaged_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "c"
    trainer(network(), checkpoint=path).fit()
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InvalidInputError, match="not a readable checkpoint"):
        trainer(network(), checkpoint=path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_no_file_of_bytes_is_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "c"
    for content in [b"", b"hello", b"epoch 3\n", *(bytes([code]) * 9 for code in range(256))]:
        path.write_bytes(content)
        with pytest.raises(InvalidInputError, match=r"not a readable checkpoint|is not a checkpoint"):
            load_checkpoint(path)


def test_a_checkpoint_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "c"
    torch.save({"state_dict": network().state_dict(), "epoch": 3, "step": 4}, path)
    with pytest.raises(InvalidInputError, match="c is not a checkpoint of a run; delete it"):
        trainer(network(), checkpoint=path).fit()


def test_checkpoint_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "c"
    save_checkpoint(path, {"a": 1})

    def full_disk(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(AutocompressError, match="No space left"):
        save_checkpoint(path, {"a": 2})
    assert load_checkpoint(path) == {"a": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["c"]


# --- the reference network


def small_task() -> Task:
    task = load_task("lenet5", "digits", device="cpu")
    for split in (task.train, task.validation):
        split.inputs, split.targets = split.inputs[:64], split.targets[:64]
    task.recipe = replace(task.recipe, reference_epochs=2)
    return task


def test_reference_is_trained_once(tmp_path: Path, monkeypatch) -> None:
    first, scores = reference_network(small_task(), cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(Trainer, "fit", lambda self: pytest.fail("trained again"))
    second, again = reference_network(small_task(), cache_dir=tmp_path)
    assert_equal_states(first, second)
    assert (again.loss, again.metric) == (scores.loss, scores.metric)


def test_reference_is_kept_apart_by_recipe_seed_and_data(tmp_path: Path) -> None:
    reference_network(small_task(), cache_dir=tmp_path)
    reference_network(small_task(), cache_dir=tmp_path, seed=1)
    task = small_task()
    task.recipe = replace(task.recipe, momentum=0.5)
    reference_network(task, cache_dir=tmp_path)
    task = small_task()
    task.validation.inputs = 255 - task.validation.inputs
    reference_network(task, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_damaged_reference_is_trained_anew(tmp_path: Path) -> None:
    first, _ = reference_network(small_task(), cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"damaged")
    second, _ = reference_network(small_task(), cache_dir=tmp_path)
    assert_equal_states(first, second)
    assert path.stat().st_size > 1_000_000


def test_output_of_forward_and_target() -> None:
    inputs, labels = dataset(4)
    output, target = forward(network().eval(), (inputs, labels))
    assert output.shape == (4, 4)
    assert torch.equal(target, labels)


def test_a_reference_is_kept_although_the_validation_data_are_shuffled(tmp_path: Path, monkeypatch) -> None:
    trained = []
    fit = Trainer.fit
    monkeypatch.setattr(Trainer, "fit", lambda self: (trained.append(1), fit(self))[1])
    inputs, labels = dataset()
    for data in (inputs, inputs, inputs + 1):
        task = Task(
            name="own",
            make_model=lambda: network(),
            train=batches(),
            validation=DataLoader(TensorDataset(data, labels), batch_size=8, shuffle=True),
            test=None,
            loss=classification_loss,
            metric=correct_predictions,
            recipe=RECIPE,
            input_example=torch.zeros(1, 8),
        )
        reference_network(task, cache_dir=tmp_path, device="cpu", progress=False)
    assert len(trained) == 2  # of the first data and of the other


def test_a_reference_has_the_statistics_of_its_own_weights(tmp_path: Path, caplog) -> None:
    task = make_task(norm=True, recipe=Recipe("sgd", 0.1, batch_size=32, reference_epochs=4))
    make = task.make_model

    def slow() -> nn.Module:
        model = make()
        model[1].momentum = 1e-4
        return model

    task.make_model = slow
    model, scores = reference_network(task, cache_dir=tmp_path, device="cpu", progress=False)
    assert scores.metric > 0.9
    assert not torch.allclose(model[1].running_mean, torch.zeros(32), atol=0.05)
    assert "guessing" not in caplog.text


def test_a_reference_that_only_guesses_is_said_so_also_from_the_cache(tmp_path: Path, caplog) -> None:
    task = make_task(recipe=Recipe("sgd", 1e-9, batch_size=32, reference_epochs=1))
    task.validation = [(torch.zeros(90, 20), torch.arange(90) % 3)]
    for _ in range(2):
        caplog.clear()
        reference_network(task, cache_dir=tmp_path, device="cpu", progress=False)
        assert "no more than guessing: are these its weights" in caplog.text
