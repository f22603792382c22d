"""The plug-in in its user's loop: bad input, any optimizer and wrapper, a run that is stopped and resumed."""

from __future__ import annotations

import copy
import io
from collections import OrderedDict

import pytest
import small_task
import torch
from torch import nn

import autocompress as ac
from autocompress.errors import InfeasibleTargetError, InvalidInputError, TrainingDivergedError
from autocompress.network.selection import select
from autocompress.solver.phases import FineTuningPhase
from autocompress.training.checkpoint import Callback
from autocompress.training.recipe import Recipe
from autocompress.training.trainer import Trainer

pytestmark = pytest.mark.any_file

TARGET = "400B"


class Net(nn.Module):
    """A network with a batch norm, biases and a tied pair of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 16)
        self.norm = nn.BatchNorm1d(16)
        self.second = nn.Linear(16, 16)
        self.third = nn.Linear(16, 16)
        self.third.weight = self.second.weight
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.head(torch.relu(self.third(torch.relu(self.second(x)))))


def make() -> Net:
    torch.manual_seed(0)
    return Net()


def batch(number: int, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(size, 6, generator=generator)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


BATCHES = [batch(number) for number in range(4)]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def compressor_of(model: nn.Module, optimizer=None, **kwargs) -> ac.Compressor:
    kwargs = {"target": TARGET, "total_steps": 10} | kwargs
    return ac.Compressor(model, optimizer or sgd(model), **kwargs)


def train(model: nn.Module, compressor: ac.Compressor, steps: range) -> None:
    model.train()
    for number in steps:
        x, y = batch(number)
        nn.functional.cross_entropy(model(x), y).backward()
        compressor.optimizer.step()
        compressor.step()
        compressor.optimizer.zero_grad()


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ignore": ["frist.*"]}, r"frist.*close to it: first"),
        ({"ignore": ["first", "second", "head"]}, "nothing to compress"),
        ({"total_steps": -3}, "total_steps is -3; it must be at least 0"),
        ({"target": "0KB"}, "0KB"),
        ({"target": "fifty"}, "fifty"),
        ({"target": []}, "a target is needed"),
        ({"target": ["1KB", "weights:10x"]}, "not supported together"),
    ],
)
def test_bad_settings_are_named(settings, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        compressor_of(make(), **settings)


def test_a_model_without_weights_has_nothing_to_compress() -> None:
    with pytest.raises(InvalidInputError, match="nothing to compress"):
        compressor_of(nn.BatchNorm1d(3))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["second.weight", "head.bias"])
def test_weights_that_are_not_finite_are_named(name: str, value: float) -> None:
    model = make()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[1] = value
    with pytest.raises(InvalidInputError, match=f"{name} holds NaN or infinite"):
        compressor_of(model)


@pytest.mark.parametrize("target", ["20B", "weights:2bits"])
def test_an_infeasible_target_names_the_smallest(target: str) -> None:
    model = make()
    with pytest.raises(InfeasibleTargetError) as caught:
        compressor_of(model, target=target)
    assert str(caught.value.smallest) in str(caught.value)
    unit = "B" if target.endswith("B") else "bits"
    prefix = target.partition(":")[0] + ":" if ":" in target else ""
    compressor_of(model, target=f"{prefix}{caught.value.smallest}{unit}")
    with pytest.raises(InfeasibleTargetError):
        compressor_of(model, target=f"{prefix}{caught.value.smallest - 1}{unit}")


def test_step_more_often_than_said() -> None:
    model = make()
    compressor = compressor_of(model, total_steps=2)
    train(model, compressor, range(2))
    with pytest.raises(InvalidInputError, match="more often than total_steps=2"):
        compressor.step()


def test_step_after_zero_grad() -> None:
    model = make()
    compressor = compressor_of(model)
    model(batch(0)[0]).sum().backward()
    compressor.optimizer.zero_grad()
    with pytest.raises(InvalidInputError, match=r"before optimizer\.zero_grad"):
        compressor.step()


@pytest.mark.parametrize("total_steps", [1, 10])
def test_weights_that_become_nan_are_named(total_steps: int) -> None:
    model = make()
    compressor = compressor_of(model, total_steps=total_steps)
    train(model, compressor, range(total_steps - 1))
    model(batch(0)[0]).sum().backward()
    with torch.no_grad():
        model.second.weight[0, 0] = float("nan")
        model.head.bias[0] = float("inf")
    if total_steps == 1:
        with pytest.raises(TrainingDivergedError, match=r"second\.weight became NaN or infinite, or above 1e18"):
            compressor.step()
    else:  # in the last phase the parameters are written anew
        compressor.step()
        assert compressor.finish().file_bytes <= 400


def run_state(model: nn.Module, compressor: ac.Compressor) -> bytes:
    buffer = io.BytesIO()
    states = {"model": model, "optimizer": compressor.optimizer, "compressor": compressor}
    torch.save({name: part.state_dict() for name, part in states.items()}, buffer)
    return buffer.getvalue()


def resumed(data: bytes, **kwargs) -> tuple[nn.Module, ac.Compressor]:
    saved = torch.load(io.BytesIO(data), weights_only=True)
    torch.manual_seed(99)
    model = Net()
    compressor = compressor_of(model, **kwargs)
    model.load_state_dict(saved["model"])
    compressor.optimizer.load_state_dict(saved["optimizer"])
    compressor.load_state_dict(saved["compressor"])
    return model, compressor


@pytest.mark.parametrize("steps", [2, 10])
def test_the_state_of_another_run_is_refused(steps: int) -> None:
    model = make()
    compressor = compressor_of(model)
    train(model, compressor, range(steps))
    state = run_state(model, compressor)
    for settings, message in [
        ({"target": "401B"}, "target '400B'"),
        ({"total_steps": 11}, "total_steps 10"),
        ({"ignore": ["head"]}, "network"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            resumed(state, **settings)


# --- stopped and resumed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [TARGET, "weights:40x"])
@pytest.mark.parametrize("total_steps", [20])
def test_a_run_resumed_at_any_step_gives_the_same_bytes(target: str, total_steps: int) -> None:
    model = make()
    settings = {"target": target, "total_steps": total_steps}
    compressor = compressor_of(model, **settings)
    states = [run_state(model, compressor)]
    for number in range(total_steps):
        train(model, compressor, range(number, number + 1))
        states.append(run_state(model, compressor))
    expected = compressor.finish(train=BATCHES)
    # the start, early, just before, at and after the border of the last phase, and the end
    for stopped in (0, 17, 18, 19, 20):
        model, compressor = resumed(states[stopped], **settings)
        assert compressor.steps == stopped
        assert (compressor.run.fine_tuning is not None) == (stopped >= 18)
        train(model, compressor, range(stopped, total_steps))
        result = compressor.finish(train=BATCHES)
        assert result.data == expected.data, stopped
        assert result.history == expected.history


class Stop(Callback):
    """Ends a run after an epoch, as a kill would, once its checkpoint is written."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def __call__(self, trainer: Trainer, bar) -> None:
        if trainer.epoch == self.epoch:
            raise KeyboardInterrupt
        self.original(trainer, bar)


def test_compress_resumed_gives_the_same_bytes(tmp_path, monkeypatch) -> None:
    recipe = Recipe("sgd", 0.05)
    settings = {
        "train": BATCHES[:3],
        "val": BATCHES[:1],
        "target": TARGET,
        "epochs": 4,
        "recipe": recipe,
        "device": "cpu",
    }
    for stopped in (1, 3):  # one run, stopped twice
        stop = Stop(stopped)
        stop.original = Trainer._run_epoch
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_run_epoch", lambda trainer, bar, stop=stop: stop(trainer, bar))
            with pytest.raises(KeyboardInterrupt):
                ac.compress(make(), **settings, resume=tmp_path / "run")
    resumed_run = ac.compress(make(), **settings, resume=tmp_path / "run")
    assert resumed_run.data == ac.compress(make(), **settings).data


def test_compress_goes_on_with_the_same_call_alone(tmp_path, monkeypatch) -> None:
    batches = list(small_task.batches(64, 1))
    call = {"train": batches, "val": batches, "target": "8%", "epochs": 1, "recipe": Recipe("sgd", 0.05)}

    def trained(*_, **__) -> None:
        raise KeyboardInterrupt("trained")

    monkeypatch.setattr(ac.Compressor, "compressed", trained)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt, match="trained"):
            ac.compress(small_task.make_model(), **call, resume=tmp_path)
    other = small_task.make_model()
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1
    for change, message in [
        ({"seed": 1}, "of another run: seed not the same"),
        ({"recipe": Recipe("sgd", 0.04)}, "of another run: recipe not the same"),
        ({"ignore": ["0.bias"]}, "of another run: ignore not the same"),
        ({"model": other}, "of another run: the network's weights not the same"),
        ({"target": "7%"}, "the saved run has target"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            ac.compress(**{"model": small_task.make_model(), **call, **change}, resume=tmp_path)


def test_compress_leaves_its_model_alone_and_keeps_the_target() -> None:
    model = make().eval()
    before = copy.deepcopy(model.state_dict())
    result = ac.compress(model, train=BATCHES, val=BATCHES, target=TARGET, epochs=2, recipe=Recipe("sgd", 0.05))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert result.file_bytes <= 400
    assert result.validation_accuracy is not None
    assert result.reference_accuracy is not None


@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_compress_refuses_data_without_batches(name: str) -> None:
    with pytest.raises(InvalidInputError, match="batch"):
        ac.compress(make(), **({"train": BATCHES} | {name: []}), target=TARGET, epochs=1, recipe=Recipe("sgd", 0.05))


def test_compress_says_that_the_loss_became_nan() -> None:
    bad = [(x * float("nan"), y) for x, y in BATCHES]
    with pytest.raises(TrainingDivergedError, match="became nan in step 1"):
        ac.compress(make(), train=bad, target=TARGET, epochs=1, recipe=Recipe("sgd", 0.05))


# --- any loop -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda model: torch.optim.Adam(model.parameters(), lr=1e-2),
        lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2),
        lambda model: torch.optim.RMSprop(model.parameters(), lr=1e-3),
        lambda model: torch.optim.SGD(model.parameters(), lr=torch.tensor(0.05)),
        lambda model: torch.optim.SGD(
            [
                {"params": [p for p in model.parameters() if p.dim() > 1], "lr": 0.05, "weight_decay": 1e-3},
                {"params": [p for p in model.parameters() if p.dim() < 2], "lr": 0.01},
            ]
        ),
        lambda model: torch.optim.SGD([model.head.weight], lr=0.05),
        lambda model: torch.optim.SGD([model.head.bias], lr=0.05),
    ],
)
def test_any_optimizer(optimizer) -> None:
    model = make()
    compressor = compressor_of(model, optimizer(model))
    train(model, compressor, range(10))
    result = compressor.finish(train=BATCHES)
    assert result.file_bytes <= 400
    assert result.gradient_steps == 10
    assert any(c.nonzeros for c in result.state.quantized.values())


def test_gradient_accumulation_counts_optimizer_steps() -> None:
    model = make()
    compressor = compressor_of(model, total_steps=5)
    for number in range(20):
        x, y = batch(number)
        (nn.functional.cross_entropy(model(x), y) / 4).backward()
        if number % 4 == 3:
            compressor.optimizer.step()
            compressor.step()
            compressor.optimizer.zero_grad()
    assert compressor.steps == 5
    assert compressor.finish().file_bytes <= 400


def test_a_scaler_that_skips_steps_and_overflowing_gradients() -> None:
    model = make()
    compressor = compressor_of(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    for number in range(10):
        x, y = batch(number)
        scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
        if number in (0, 3, 9):  # the last is in the phase of finishing
            model.head.weight.grad[0, 0] = float("inf")
        scaler.unscale_(compressor.optimizer)
        scaler.step(compressor.optimizer)
        scaler.update()
        compressor.step()
        compressor.optimizer.zero_grad()
    assert compressor.run.fine_tuning is not None
    result = compressor.finish()
    assert result.file_bytes <= 400
    assert result.outcome.skipped_steps == 1
    assert all(torch.isfinite(tensor).all() for tensor in result.model.state_dict().values())


def train_with_broken_gradients(model: nn.Module, compressor: ac.Compressor, good: set[int]) -> int:
    """Trains to the end; returns the steps of fine-tuning, of which only these numbers, from 0, have good gradients."""
    count = 0
    for number in range(compressor.total_steps):
        x, y = batch(number)
        nn.functional.cross_entropy(model(x), y).backward()
        if isinstance(compressor.run.phase, FineTuningPhase):
            if count not in good:
                model.head.weight.grad.fill_(float("nan"))
            count += 1
        else:
            compressor.optimizer.step()
        compressor.step()
        compressor.optimizer.zero_grad()
    return count


@pytest.mark.parametrize(
    ("target", "total", "good"), [("400B", 100, set()), ("drop:50", 50, set()), ("drop:50", 50, {4, 9})]
)
def test_gradients_that_are_not_finite_are_counted_over_the_whole_of_fine_tuning(
    target: str, total: int, good: set[int]
) -> None:
    model = nn.Sequential(OrderedDict(body=nn.Linear(6, 16), act=nn.ReLU(), head=nn.Linear(16, 3)))
    compressor = compressor_of(model, target=target, total_steps=total, evaluate=lambda _: 0.9)
    steps = train_with_broken_gradients(model, compressor, good)
    assert steps >= 10
    if not good:
        with pytest.raises(TrainingDivergedError, match="no step of fine-tuning had a finite gradient"):
            compressor.finish()
    else:
        outcome = compressor.finish().outcome
        assert outcome.skipped_steps == steps - len(good & set(range(steps)))
        assert f"{outcome.skipped_steps} steps of fine-tuning were skipped" in " ".join(outcome.notes)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_wrapped_models_give_plain_names_and_modules(wrap) -> None:
    plain = make()
    model = wrap(plain)
    compressor = compressor_of(model, ignore=["head.weight"])
    train(plain, compressor, range(10))  # the wrapper's own forward is torch's affair
    result = compressor.finish()
    assert type(result.model) is Net
    assert list(result.state.quantized) == ["first.weight", "second.weight"]
    assert "head.weight" in result.state.raw


def test_tied_weights_count_once_and_stay_tied() -> None:
    model = make()
    compressor = compressor_of(model)
    assert compressor.network.selection.compressible == 6 * 16 + 16 * 16 + 16 * 3
    train(model, compressor, range(10))
    result = compressor.finish()
    assert result.state.aliases == {"third.weight": "second.weight"}
    assert result.model.third.weight is result.model.second.weight


@pytest.mark.parametrize("ignore", [["head*"], ["head"], ["head.weight"]])
def test_globs_name_modules_and_parameters(ignore) -> None:
    chosen = select(make(), ignore)
    assert "head.weight" not in dict(chosen.weights)
    assert "second.weight" in dict(chosen.weights)


def test_ignored_by_glob_is_kept_and_listed() -> None:
    model, ignore = make(), ["head.weight"]
    compressor = compressor_of(model, ignore=ignore, target="600B")
    train(model, compressor, range(10))
    trained = model.head.weight.detach().clone()
    result = compressor.finish()
    assert torch.equal(result.model.head.weight, trained)
    assert "ignored: head.weight" in result.report()
    assert result.file_bytes <= 600


def test_ignored_by_type_is_kept_and_listed() -> None:
    model = make()
    compressor = compressor_of(model, ignore=[nn.BatchNorm1d], target="800B")
    train(model, compressor, range(10))
    report = compressor.finish().report()
    assert "ignored: norm.weight" in report
    assert "buffer: norm.running_mean, norm.running_var" in report


def test_finish_puts_the_result_into_the_model() -> None:
    model = make()
    compressor = compressor_of(model)
    train(model, compressor, range(10))
    result = compressor.finish(train=BATCHES, val=BATCHES)
    for name, tensor in result.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert not result.model.training


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_finish_before_the_end_warns_and_keeps_the_target(steps: int, caplog) -> None:
    model = make()
    compressor = compressor_of(model)
    train(model, compressor, range(steps))
    assert compressor.finish().file_bytes <= 400
    assert f"finish() after {steps} of total_steps=10" in caplog.text


def test_evaluate_chooses_between_candidates() -> None:
    model, seen = make(), []

    def score(network: nn.Module) -> float:
        seen.append(network)
        return -float(len(seen))  # the first is the best

    compressor = compressor_of(model, total_steps=20)
    train(model, compressor, range(20))
    finished = copy.deepcopy(model.state_dict())
    result = compressor.finish(evaluate=score)
    assert len(seen) == 4  # the last is the network as it was given, for the report
    assert result.reference_accuracy == -4.0
    assert result.outcome.chosen == "trained"
    assert list(result.outcome.scores.values()) == [-1.0, -2.0, -3.0]
    assert torch.equal(result.model.second.weight, finished["second.weight"])


@pytest.mark.parametrize("how", ["assign", "weight norm", "prune"])
def test_a_parameter_that_is_replaced_is_named(how: str) -> None:
    model = small_task.make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    compressor = ac.Compressor(model, optimizer, target="50%", total_steps=5)
    x, y = next(iter(small_task.batches(64, 1)))
    nn.functional.cross_entropy(model(x), y).backward()
    compressor.step()
    if how == "assign":
        model.load_state_dict(small_task.make_model().state_dict(), assign=True)
    elif how == "weight norm":
        nn.utils.parametrizations.weight_norm(model[0])
    else:
        nn.utils.prune.l1_unstructured(model[0], "weight", 0.5)
    nn.functional.cross_entropy(model(x), y).backward()
    with pytest.raises(ac.InvalidInputError, match=r"^0\.weight is another tensor than when the Compressor was made"):
        compressor.step()


@pytest.mark.parametrize("state", [{}, small_task.make_model().state_dict(), None])
def test_what_is_no_state_of_a_compressor(state: object) -> None:
    model = small_task.make_model()
    compressor = ac.Compressor(model, torch.optim.SGD(model.parameters(), 0.1), target="50%", total_steps=5)
    with pytest.raises(ac.InvalidInputError, match="no state of a Compressor"):
        compressor.load_state_dict(state)
