"""One batch of every split goes through network, loss and metric before any training."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from small_task import batches, make_shallow_model, make_task, train_reference
from torch import Tensor, nn

import autocompress as ac
from autocompress.cli.console import accuracy_lines
from autocompress.network.live_network import copy_network
from autocompress.task import load_task
from autocompress.training.checks import at_chance, check_finite, check_task
from autocompress.training.losses import MinusLoss, carried_loss, classification_loss, correct_predictions
from autocompress.training.recipe import Recipe
from autocompress.training.trainer import Trainer

pytestmark = pytest.mark.any_file

RECIPE = Recipe("sgd", 0.05)
X = torch.linspace(-1, 1, 160).view(8, 20)
CLASSES = (X, torch.arange(8) % 3)
NUMBERS = (X, torch.linspace(0, 1, 8).view(8, 1))


def regressor() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 1))


def segmenter() -> nn.Module:
    return nn.Conv2d(1, 4, 3, padding=1)


IMAGES = (torch.rand(2, 1, 5, 5), torch.randint(4, (2, 5, 5)))
SQUARE = (torch.rand(2, 1, 4, 4), torch.randint(4, (2, 4, 4)))  # as many columns as classes


def check(model: nn.Module, train, **settings):
    return check_task(model, {"the training data": [train]}, device="cpu", **settings)


@pytest.mark.parametrize(
    ("model", "batch", "settings", "message"),
    [
        (
            make_shallow_model(),
            (X[:, :5], CLASSES[1]),
            {},
            r"not take the inputs of the training data: RuntimeError: .*8x5",
        ),
        (regressor(), NUMBERS, {}, r"the target is float32 \[8, 1\], not whole numbers.* give loss="),
        (
            segmenter(),
            (IMAGES[0], IMAGES[1][:, :, 1:]),
            {},
            r"float32 \[2, 4, 5, 5\], .* int64 \[2, 5, 4\]\..* give loss=",
        ),
        (make_shallow_model(), (X, CLASSES[1] + 1), {}, r"the target has classes 1 to 3, the output 3"),
        (
            make_shallow_model(),
            CLASSES,
            {"loss": F.mse_loss},
            r"loss cannot be computed on the training data: .* int64 \[8\]",
        ),
        (
            make_shallow_model(),
            CLASSES,
            {"loss": lambda o, t: F.cross_entropy(o, t, reduction="none")},
            r"float32 \[8\]; it must",
        ),
        (make_shallow_model(), CLASSES, {"loss": lambda o, t: 3.0}, r"is a float; it must be a tensor with one number"),
        (make_shallow_model(), CLASSES, {"loss": lambda o, t: o.detach().mean()}, r"has no gradient"),
        (
            make_shallow_model(),
            CLASSES,
            {"metric": lambda o, t: 0.5},
            r"metric of the training data is a float; it must",
        ),
        (
            make_shallow_model(),
            CLASSES,
            {"metric": lambda o, t: o.mean()},
            r"is float32 \[\]; it .* one score per example",
        ),
        (make_shallow_model(), CLASSES, {"metric": F.mse_loss}, r"the metric cannot be computed on the training data"),
    ],
)
def test_what_does_not_fit_is_named_with_its_shape(model, batch, settings, message: str) -> None:
    with pytest.raises(ac.InvalidInputError, match=message):
        check(model, batch, **settings)


class OneNumber(nn.Linear):
    """Gives outputs [n]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, 0]


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize(
    "loss", [F.mse_loss, F.l1_loss, lambda o, t: (o - t).square().mean(), lambda o, t: F.softplus(-o * t).mean()]
)
def test_targets_of_all_examples_against_each_output_are_refused(loss, monkeypatch) -> None:
    monkeypatch.setattr(Trainer, "fit", lambda self: pytest.fail("trained"))
    x, column = NUMBERS
    data = {"train": [(x, column[:, 0])], "val": [(x, column)]}
    with pytest.raises(ac.InvalidInputError, match=r"the validation data .* which target .* \[8\], .* \[8, 1\]"):
        ac.compress(OneNumber(20, 1), **data, target="300B", loss=loss, progress=False)


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize(
    ("batch", "loss"),
    [
        (NUMBERS, lambda o, t: F.mse_loss(o, t[:, 0])),
        (NUMBERS, lambda o, t: F.mse_loss(o.view(-1), t.view(-1))),
        (NUMBERS, lambda o, t: o.square().mean()),  # takes no target
        (NUMBERS, lambda o, t: (o[:, None] - t).square().mean()),
        ((X, torch.ones(8, 1)), F.mse_loss),  # all the same
        ((X[:1], torch.ones(1, 1)), F.mse_loss),
    ],
)
def test_shapes_that_the_loss_brings_together_are_taken(batch, loss) -> None:
    assert check(OneNumber(20, 1), batch, loss=loss)[0] is loss


def test_a_metric_that_takes_each_output_with_all_targets_is_refused() -> None:
    def distance(output: Tensor, target: Tensor) -> Tensor:
        return -(output - target).abs().mean(1)

    with pytest.raises(ac.InvalidInputError, match="the metric of the training data does not depend on which target"):
        check(OneNumber(20, 1), NUMBERS, loss=lambda o, t: F.mse_loss(o, t[:, 0]), metric=distance)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_split_is_tried_before_any_training(split: str, monkeypatch) -> None:
    monkeypatch.setattr(Trainer, "fit", lambda self: pytest.fail("trained"))
    data = {name: batches(32, 1) for name in ("train", "val", "test")}
    data[split] = [(X, CLASSES[1].float())]
    named = {"train": "training", "val": "validation", "test": "test"}[split]
    with pytest.raises(ac.InvalidInputError, match=rf"does not fit the {named} data|on the {named} data"):
        ac.compress(make_shallow_model(), **data, target="50%", epochs=1, recipe=RECIPE, progress=False, device="cpu")


WRONG_LATER = [*batches(64, 1), (X, CLASSES[1] + 7)]


def compress_briefly(**data):
    return ac.compress(
        make_shallow_model(), target="50%", epochs=1, recipe=RECIPE, progress=False, device="cpu", **data
    )


def test_a_later_batch_that_does_not_fit_is_named_in_training() -> None:
    with pytest.raises(
        ac.InvalidInputError, match=r"the batch of step \d+ does not go .*; it is \(float32 \[8, 20\], "
    ):
        compress_briefly(train=WRONG_LATER, val=batches(64, 2))


def test_all_validation_data_are_tried_before_any_training(monkeypatch) -> None:
    monkeypatch.setattr(Trainer, "fit", lambda self: pytest.fail("trained"))
    with pytest.raises(ac.InvalidInputError, match=r"batch 1 of the data to evaluate on does not go through"):
        compress_briefly(train=batches(64, 1), val=WRONG_LATER)


def test_a_later_batch_of_the_test_data_costs_no_network(caplog) -> None:
    result = compress_briefly(train=batches(64, 1), val=batches(64, 2), test=WRONG_LATER)
    assert result.file_bytes > 0
    assert result.test_accuracy is None
    assert result.reference_split == "validation"
    assert result.reference_accuracy is not None
    assert "the accuracy on the test data is not known: batch 1 of the data" in caplog.text


@pytest.mark.parametrize("score", [None, "0.9", torch.ones(3), True, [0.9]])
def test_a_score_that_is_no_number_is_named(score: object) -> None:
    model = make_shallow_model()
    settings = {"total_steps": 3, "evaluate": lambda network: score}
    with pytest.raises(ac.InvalidInputError, match=r"the score that evaluate= returns is .*; it must be a number"):
        ac.Compressor(model, torch.optim.SGD(model.parameters(), 0.1), target="drop:5", **settings)


@pytest.mark.parametrize(
    ("model", "kind"), [(nn.Linear, "the class Linear"), (make_shallow_model().state_dict(), "a OrderedDict")]
)
def test_what_is_no_network_is_named(model: object, kind: str) -> None:
    with pytest.raises(ac.InvalidInputError, match=f"the model is {kind}; give a network"):
        ac.compress(model, train=[CLASSES], target="50%")
    with pytest.raises(ac.InvalidInputError, match=f"the model is {kind}; give a network"):
        ac.Compressor(model, torch.optim.SGD([torch.ones(1)], 0.1), target="50%", total_steps=1)


def test_what_is_no_optimizer_is_named() -> None:
    with pytest.raises(ac.InvalidInputError, match=r"the optimizer is None; give the torch\.optim\.Optimizer"):
        ac.Compressor(make_shallow_model(), None, target="50%", total_steps=1)


@pytest.mark.parametrize(
    ("model", "batch", "loss", "expected"),
    [
        (make_shallow_model(), CLASSES, None, correct_predictions),
        (make_shallow_model(), CLASSES, lambda o, t: F.cross_entropy(o, t, label_smoothing=0.1), correct_predictions),
        (regressor(), NUMBERS, F.mse_loss, MinusLoss),
        (regressor(), (X, CLASSES[1]), lambda o, t: (o[:, 0] - t).square().mean(), MinusLoss),
        (segmenter(), IMAGES, F.cross_entropy, type(correct_predictions)),
        (segmenter(), SQUARE, lambda o, t: F.cross_entropy(o, t), MinusLoss),
    ],
)
def test_the_metric_is_accuracy_for_class_scores_and_minus_the_loss_else(model, batch, loss, expected) -> None:
    found, metric = check(model, batch, loss=loss)
    assert found is (loss or classification_loss)
    assert metric is expected or type(metric) is expected


def test_minus_the_loss_by_hand() -> None:
    output, target = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [0.0]])
    assert MinusLoss(F.mse_loss)(output, target).tolist() == [-5.0, -5.0]


def test_a_regressor_is_judged_by_its_loss() -> None:
    data = [NUMBERS]
    result = ac.compress(
        regressor(), train=data, val=data, target="90%", loss=F.mse_loss, epochs=3, recipe=RECIPE, progress=False
    )
    assert result.to_json()["metric"] == "minus the loss"
    assert result.to_json()["reference_split"] == "validation"
    assert accuracy_lines(result.to_json())[0].startswith(
        f"validation minus the loss  {result.validation_accuracy:.5g}, ref"
    )
    assert result.validation_accuracy == pytest.approx(-float(F.mse_loss(result.model(X), NUMBERS[1]).detach()))


def test_a_score_by_the_name_of_another_loss_has_its_name() -> None:
    settings = {"loss": "mse", "metric": "l1", "epochs": 0, "progress": False}
    result = ac.compress(regressor(), train=[NUMBERS], val=[NUMBERS], target="90%", **settings)
    assert result.metric == "minus l1"
    assert result.validation_accuracy == pytest.approx(-float(F.l1_loss(result.model(X), NUMBERS[1]).detach()))
    assert f"validation minus l1  {result.validation_accuracy:.5g}, ref" in result.report()
    assert "minus l1" in result.to_html()


def test_the_check_leaves_network_and_random_numbers_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*CLASSES), batch_size=4, shuffle=True)
    state = torch.get_rng_state()
    check_task(model, {"the training data": loader}, device="cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@dataclass
class Output:
    logits: Tensor
    loss: Tensor | None = None


class LanguageModel(nn.Module):
    """Predicts the next token, and shifts the labels itself."""

    def __init__(self, shift: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.last, self.shift = nn.Embedding(11, 16), nn.Linear(16, 11), shift

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Output:
        logits = self.last(self.embed(input_ids))
        if labels is None:
            return Output(logits)
        scores, wanted = logits[:, : logits.shape[1] - self.shift], labels[:, self.shift :]
        return Output(logits, F.cross_entropy(scores.flatten(0, 1), wanted.flatten()))


TOKENS = (torch.arange(12) % 11).repeat(16, 1)  # each is followed by the next
TEXT = {"input_ids": TOKENS, "labels": TOKENS}


def test_the_loss_that_the_output_carries_is_the_loss() -> None:
    loss, metric = check(LanguageModel(), TEXT)
    assert loss is carried_loss
    assert type(metric) is MinusLoss  # the tokens at the same place are not what it predicts
    assert check(LanguageModel(shift=0), TEXT) == (carried_loss, correct_predictions)
    given = check(LanguageModel(), TEXT, loss=lambda o, t: o.logits.square().mean(), metric=correct_predictions)
    assert given[1] is correct_predictions


def test_fields_that_the_network_never_sees_are_said(caplog) -> None:
    with caplog.at_level("INFO"):
        check(LanguageModel(), TEXT | {"index": torch.arange(16), "attention_masks": torch.ones(16)})
    assert "does not take these fields of a batch: attention_masks, index" in caplog.text


def test_a_causal_language_model_is_compressed_by_its_own_loss() -> None:
    model = LanguageModel()
    Trainer(
        model, [TEXT], recipe=Recipe("adamw", 0.1), epochs=60, loss=carried_loss, progress=False, device="cpu"
    ).fit()
    with torch.no_grad():
        own = float(model(**TEXT).loss)
    assert own < 0.1
    result = ac.compress(
        model, train=[TEXT], val=[TEXT], target="40%", epochs=20, recipe=Recipe("adamw", 0.01), progress=False
    )
    assert result.reference_accuracy == pytest.approx(-own, abs=1e-5)
    predicted = result.model(TOKENS).logits[:, :-1].argmax(-1)
    assert (predicted == TOKENS[:, 1:]).float().mean() == 1


def test_a_promise_about_a_network_at_chance_is_refused() -> None:
    untrained = nn.Sequential(nn.Linear(20, 3))
    nn.init.zeros_(untrained[0].weight)
    for target in ("drop:1", "loss:+2%"):
        with pytest.raises(ac.InvalidInputError, match=r"of 3 classes, no more than guessing: are these its weights"):
            ac.compress(
                untrained,
                train=batches(64, 1),
                val=batches(200, 2),
                target=target,
                epochs=1,
                recipe=RECIPE,
                progress=False,
            )


def test_a_network_with_outputs_that_are_not_finite_is_not_returned() -> None:
    model = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(8, 3)))
    broken = copy_network(model)
    with torch.no_grad():
        broken[2].parametrizations.weight.original1[1] = 0  # a row without a direction
    assert not check_finite(model, model, [CLASSES])
    check_finite(broken, broken, [CLASSES])  # as it was given
    with pytest.raises(ac.TrainingDivergedError, match=r"infinite outputs from layer '2\.?.*' on, where the given one"):
        check_finite(broken, model, [CLASSES])


def test_chance() -> None:
    assert at_chance(0.118, 1000, 10) is not None  # the bound is 0.1 + 2 * sqrt(0.09 / 1000) = 0.119
    assert at_chance(0.12, 1000, 10) is None
    assert at_chance(0.2, 20, 10) is not None
    assert at_chance(0.0, 20, 1) is None


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (98.2, r"own score is 98\.2; .* in percent\? Give it divided by 100"),
        (-0.4, r"own score is -0\.4; .* loss:\+2%"),
    ],
)
def test_a_score_in_percent_or_a_loss_is_no_accuracy(score: float, message: str) -> None:
    model = train_reference(make_task())
    with pytest.raises(ac.InvalidInputError, match=message):
        ac.Compressor(
            model,
            torch.optim.SGD(model.parameters(), 0.1),
            target="drop:5",
            total_steps=3,
            evaluate=lambda network: score,
        )


def test_finish_with_validation_data_that_do_not_fit_loses_nothing() -> None:
    model = regressor()
    compressor = ac.Compressor(model, torch.optim.SGD(model.parameters(), 0.01), target="90%", total_steps=3)
    for _ in range(3):
        F.mse_loss(model(X), NUMBERS[1]).backward()
        compressor.step()
    with pytest.raises(
        ac.InvalidInputError,
        match=r"val= decides by the cross-entropy of class scores, and the target .* give evaluate=",
    ):
        compressor.finish(val=[NUMBERS])
    result = compressor.finish(evaluate=lambda network: -float(F.mse_loss(network(X), NUMBERS[1]).detach()))
    assert result.gradient_steps == 3


def test_an_evaluation_that_fails_in_finish_costs_no_training() -> None:
    def trained(**settings) -> ac.Result:
        model = copy_network(start)
        compressor = ac.Compressor(model, torch.optim.SGD(model.parameters(), 0.01), target="60%", total_steps=10)
        for _ in range(10):
            F.cross_entropy(model(X), CLASSES[1]).backward()
            compressor.optimizer.step()
            compressor.step()
            compressor.optimizer.zero_grad()
        if settings:
            with pytest.raises(ac.InvalidInputError, match="the score that evaluate= returns is None"):
                compressor.finish(**settings)
        return compressor.finish()

    start = make_shallow_model()
    assert trained(evaluate=lambda network: None).data == trained().data


def test_a_task_of_ones_own_takes_its_loss_from_the_networks_output() -> None:
    task = load_task("test_checks:LanguageModel", "test_checks:text_loaders", device="cpu")
    assert task.loss is carried_loss
    assert type(task.metric) is MinusLoss
    with pytest.raises(ac.InvalidInputError, match=r"the default loss, cross-entropy, does not fit the training data"):
        load_task("test_checks:regressor", "test_checks:number_loaders", device="cpu")


def text_loaders():
    return [TEXT], [TEXT]


def number_loaders():
    return [NUMBERS], [NUMBERS]
