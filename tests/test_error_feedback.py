"""Projection on the error of layers' outputs, and the moments of inputs that it goes by."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import autocompress as ac
from autocompress.constraints.rate_distortion import error_feedback
from autocompress.constraints.rate_distortion.assignment import LayerTables
from autocompress.constraints.rate_distortion.error_feedback import Feedback, project_with_feedback
from autocompress.constraints.rate_distortion.projection import project_to_bits
from autocompress.constraints.rate_distortion.rates import CodeLengths
from autocompress.errors import InvalidInputError
from autocompress.training import layer_statistics
from autocompress.training.layer_statistics import input_moments, row_weights


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(n: int, groups: int = 1, seed: int = 0) -> Tensor:
    """Returns second moments of inputs of which each says much about the next."""
    x = random(groups, 4 * n, n, seed=seed).cumsum(2)
    return x.mT @ x / (4 * n)


def output_error(v: Tensor, x: Tensor, second: Tensor) -> float:
    second = second / second.diagonal(dim1=1, dim2=2).mean()
    off = (v - x).reshape(second.shape[0], -1, second.shape[-1])
    return float(torch.einsum("gri,gij,grj->", off, second, off))


# --- moments of inputs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(6, 4),
        nn.Conv2d(6, 8, 3, padding=1, bias=False),
        nn.Conv2d(6, 8, (3, 2), stride=(2, 1), padding="valid", dilation=(1, 2), groups=2),
        nn.Conv2d(6, 6, 3, padding="same", groups=6),
        nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular"),
        nn.Conv1d(6, 4, 3, padding=2, dilation=2),
    ],
    ids=str,
)
def test_moments_give_the_mean_square_of_outputs(layer: nn.Linear | nn.Conv2d | nn.Conv1d) -> None:
    """E ||W x||^2 = tr W E[x x^T] W^T and E[W x] = W E[x], whatever the layer does to get x."""
    shape = {nn.Linear: (32, 6), nn.Conv2d: (8, 6, 9, 7), nn.Conv1d: (8, 6, 20)}[type(layer)]
    x = random(*shape) + 0.5
    with torch.no_grad():
        if layer.bias is not None:
            layer.bias.zero_()
        out = layer(x)
    ((place, found),) = input_moments(layer, [layer.weight], [(x, torch.zeros(len(x)))], torch.device("cpu"))
    assert place == 0
    assert found.bias is layer.bias
    groups, n = found.mean.shape
    rows = layer.weight.detach().reshape(groups, -1, n)
    outputs = out.movedim(1, -1).reshape(-1, layer.weight.shape[0])
    square = torch.einsum("gri,gij,grj->gr", rows, found.second, rows).flatten()
    torch.testing.assert_close(square, outputs.square().mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((rows @ found.mean[:, :, None]).flatten(), outputs.mean(0), rtol=1e-4, atol=1e-5)


def test_moments_of_some_inputs_are_close_to_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nn.Conv2d(3, 4, 3, padding=1), random(16, 3, 24, 24).cumsum(3) / 5
    batches = [(x, torch.zeros(16))]
    ((_, whole),) = input_moments(layer, [layer.weight], batches, torch.device("cpu"))
    monkeypatch.setattr(layer_statistics, "INPUTS_PER_BATCH", 2000)
    ((_, part),) = input_moments(layer, [layer.weight], batches, torch.device("cpu"))
    assert not torch.equal(whole.second, part.second)
    assert float((whole.second - part.second).norm() / whole.second.norm()) < 0.1


def test_layers_are_looked_at_in_turn_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(
        nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)
    ).train()
    weights, batches = [p for p in net.parameters() if p.dim() > 1], [random(64, 5)]
    together = dict(input_moments(net, weights, batches, torch.device("cpu")))
    monkeypatch.setattr(layer_statistics, "NUMBERS_AT_ONCE", 1)
    apart = dict(input_moments(net, weights, batches, torch.device("cpu")))
    assert list(together) == list(apart) == [0, 1, 2]
    assert all(torch.equal(together[n].second, apart[n].second) for n in together)
    assert net.training
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_what_no_layer_applies_has_no_moments() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.gru, self.unused = nn.Embedding(9, 4), nn.GRU(4, 6, batch_first=True), nn.Linear(6, 6)
            self.head = nn.Linear(6, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.gru(self.embedding(tokens))[0])

    net = Net()
    names, weights = zip(*((n, p) for n, p in net.named_parameters() if p.dim() > 1), strict=True)
    found = dict(input_moments(net, weights, [torch.randint(9, (16, 5))], torch.device("cpu")))
    assert [names[place] for place in found] == ["embedding.weight", "head.weight"]


def test_tokens_of_an_embedding_weigh_as_often_as_they_come() -> None:
    net = nn.Embedding(5, 4)
    ((_, found),) = input_moments(net, [net.weight], [torch.tensor([[0, 0, 0], [1, 1, 3]])], torch.device("cpu"))
    counts = torch.tensor([3, 2, 0, 1, 0]) + layer_statistics.UNSEEN_TOKENS
    torch.testing.assert_close(found.mean, (counts / counts.sum())[None])
    assert found.second is None


def test_one_input_of_several_layers_is_multiplied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.other = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.q(x) + self.k(x) + self.other(x.neg_())

    net, made = Net(), []
    original = layer_statistics.layer_inputs
    monkeypatch.setattr(layer_statistics, "layer_inputs", lambda *given: made.append(1) or original(*given))
    weights = [net.q.weight, net.k.weight, net.other.weight]
    x = random(32, 6) + 1
    found = dict(input_moments(net, weights, [x], torch.device("cpu")))
    assert len(made) == 2  # what is changed in place is looked at again
    assert torch.equal(found[0].mean, found[1].mean)
    torch.testing.assert_close(found[2].mean, -found[0].mean)


def test_row_weights_say_how_far_the_outputs_move() -> None:
    """E sum (d u^T f / d y_r)^2 over random directions u is the sum of the squares of column r of the last layer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 400)).requires_grad_(False)
    weights = [net[0].weight, net[1].weight]
    found = row_weights(net, weights, [random(1024, 6)] * 2, torch.device("cpu"))
    torch.testing.assert_close(found[0] / 1024, net[1].weight.square().sum(0), rtol=0.2, atol=0.0)
    assert float(found[1].std() / found[1].mean()) < 0.2
    assert not any(weight.requires_grad for weight in weights)
    assert not any(module._forward_hooks for module in net.modules())


def test_outputs_without_gradients_have_no_row_weights() -> None:
    class Net(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).argmax(1)

    net = Net(6, 4)
    assert row_weights(net, [net.weight], [random(8, 6)], torch.device("cpu")) == {}


# --- the projection ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("bits_per_weight", [0.4, 1.5])
def test_the_error_of_the_outputs_is_less_than_the_plain_projection_s(groups: int, bits_per_weight: float) -> None:
    x, second = [random(24, 40, seed=1), random(12, 30, seed=2)], [correlated(40, groups), correlated(30)]
    budget = bits_per_weight * sum(each.numel() for each in x)
    plain, found = project_to_bits(x, budget), project_with_feedback(x, budget, [Feedback.of(each) for each in second])
    errors = [
        sum(output_error(q.dense(), each, of) for q, each, of in zip(p.quantized, x, second, strict=True))
        for p in (plain, found)
    ]
    assert plain.bits <= budget
    assert 0.9 * budget < found.bits <= budget
    assert found.error == pytest.approx(errors[1], rel=1e-4)
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize(("rows", "bits_per_weight"), [(256, 0.3), (64, 1.5)])
def test_budgets_are_filled_where_there_are_fewer_examples_than_inputs(rows: int, bits_per_weight: float) -> None:
    """Errors are made up for almost entirely then, and the bits move much from one set of tables to the next."""
    x, inputs = random(rows, 1024, seed=1), random(64, 1024, seed=2).cumsum(1)
    budget = bits_per_weight * x.numel()
    found = project_with_feedback([x], budget, [Feedback.of((inputs.mT @ inputs / 64)[None])])
    assert 0.995 * budget < found.bits <= budget


def test_what_comes_later_makes_up_for_an_error_as_least_squares_says() -> None:
    """Of a row whose first weight has become v, the others are moved to argmin (w - x) H (w - x)^T."""
    x, second, value = random(1, 6, seed=4), correlated(6, seed=3), 0.25
    layer = error_feedback._Layer.of(x, Feedback.of(second), compiled=False)
    lengths = CodeLengths(torch.zeros(1), torch.full((1,), 99.0), torch.tensor([-999.0] + [0.0] * 5))
    codes, made = error_feedback._assigned(layer, LayerTables(torch.tensor([value]), lengths), (1, 6), 1.0)
    assert codes.tolist() == [[1, 0, 0, 0, 0, 0]]  # all others are dear: they become zero, one after the other
    damped = layer.feedback.second[0] + error_feedback.DAMPING * torch.eye(6)
    fixed = torch.tensor([value, 0.0, 0.0, 0.0, 0.0])
    for column in range(1, 6):  # what the column was when its turn came, those before it being fixed
        rest = damped[column:, column:]
        off = fixed[:column] - x[0, :column]
        best = x[0, column:] - torch.linalg.solve(rest, damped[column:, :column] @ off)
        assert float(made[0, column]) == pytest.approx(float(best[0]), abs=1e-4)


@pytest.mark.parametrize("compiled", [False, True])
def test_rows_and_layers_that_count_more_err_less(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    monkeypatch.setattr(error_feedback, "compiles", lambda _: compiled)
    x, second = (
        [random(48, 40, seed=1), random(24, 30, seed=2), random(60, 8, seed=3)],
        [correlated(40), correlated(30)],
    )
    rows = [torch.exp2(2 * random(len(each), seed=n)) * 4.0**n for n, each in enumerate(x)]
    budget = 1.5 * sum(each.numel() for each in x)
    weighted, plain = (
        project_with_feedback(x, budget, [Feedback.of(h, r) for h, r in zip([*second, None], given, strict=True)])
        for given in (rows, [None] * 3)
    )
    layers = [
        error_feedback._Layer.of(each, Feedback.of(h, r), False)
        for each, h, r in zip(x, [*second, None], rows, strict=True)
    ]
    errors = [
        sum(layer.error(q.dense()) for layer, q in zip(layers, p.quantized, strict=True)) for p in (weighted, plain)
    ]
    assert 0.99 * budget < weighted.bits <= budget
    assert weighted.error == pytest.approx(errors[0], rel=1e-4)
    assert errors[0] < 0.7 * errors[1]


def test_without_moments_it_is_nearly_the_plain_projection() -> None:
    x = [random(20, 50, seed=1), random(10, 8, 3, 3, seed=2)]
    plain, found = project_to_bits(x, 1500), project_with_feedback(x, 1500, [None, None])
    assert found.error <= 1.03 * plain.error
    assert [q.shape for q in found.quantized] == [tuple(each.shape) for each in x]


@pytest.mark.parametrize("bits", [0.0, 60.0, 130.0, 400.0])
def test_tiny_budgets_hold(bits: float) -> None:
    x = [random(8, 9, seed=1), random(4, 6, seed=2)]
    found = project_with_feedback(x, bits, [Feedback.of(correlated(9)), Feedback.of(correlated(6))])
    assert found.bits <= max(bits, project_to_bits(x, bits).bits)
    assert all(bool(torch.isfinite(q.dense()).all()) for q in found.quantized)


def test_dead_inputs_and_zero_weights_do_no_harm() -> None:
    second = correlated(9)
    second[:, 3], second[:, :, 3] = 0, 0
    found = project_with_feedback([random(8, 9), torch.zeros(4, 9)], 200, [Feedback.of(second)] * 2)
    assert found.bits <= 200
    assert found.quantized[1].nonzeros == 0 or bool(found.quantized[1].dense().any())


INPUTS = torch.zeros(2, 24)

# --- compression without training -------------------------------------------------------------------------------------


Trained = tuple[nn.Module, list[tuple[Tensor, Tensor]]]


def trained() -> Trained:
    """Returns a network that gives the sums of its inputs' neighbours, and batches of inputs that are much alike."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1024, 24, generator=generator).cumsum(1) / 3
    y = (x[:, :12] + x[:, 12:]).argmax(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 12))
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        functional.cross_entropy(net(x[:768]), y[:768]).backward()
        optimizer.step()
    return net, list(zip(x.split(128), y.split(128), strict=True))


@pytest.fixture(scope="module")
def network() -> Trained:
    return trained()


def distance(net: nn.Module, result: ac.Result, batches: list[tuple[Tensor, Tensor]]) -> float:
    x = torch.cat([x for x, _ in batches])
    with torch.no_grad():
        return float((net(x) - result.model(x)).square().mean())


def test_calibrated_is_closer_to_the_network_than_plain(network: Trained, caplog: pytest.LogCaptureFixture) -> None:
    net, batches = network
    plain = ac.compress(net, target="500B", device="cpu", progress=False)
    inputs = [x for x, _ in batches[:6]]
    found = ac.compress(net, calibration=inputs, target="500B", device="cpu", progress=False)
    assert max(plain.file_bytes, found.file_bytes) <= 500
    assert min(plain.file_bytes, found.file_bytes) > 480
    assert distance(net, found, batches[6:]) < 0.6 * distance(net, plain, batches[6:])
    assert found.gradient_steps == 0
    again = ac.compress(net, calibration=[{"input": x} for x in inputs], target="500B", device="cpu", progress=False)
    assert again.data == found.data
    assert caplog.text == ""  # its outputs are looked at like those of any network


def test_validation_decides_between_plain_and_calibrated(
    network: Trained,
) -> None:
    net, batches = network
    wrong = [torch.randn(64, 24) * torch.linspace(0, 30, 24) for _ in range(2)]  # says little of the data
    settings = {"val": batches[6:], "target": "500B", "device": "cpu", "progress": False}
    plain, good, bad = (ac.compress(net, calibration=c, **settings) for c in (None, [x for x, _ in batches[:6]], wrong))
    losses = [-result.outcome.scores["one-shot"] for result in (plain, good, bad)]
    assert losses[1] < losses[0]
    assert losses[2] <= losses[0]


@pytest.mark.any_file
def test_the_smallest_file_that_keeps_the_loss_without_training(network: Trained) -> None:
    net, batches = network
    settings = {"val": batches[6:], "target": "loss:+20%", "device": "cpu", "progress": False}
    plain = ac.compress(net, **settings)
    found = ac.compress(net, calibration=[x for x, _ in batches[:6]], **settings)
    trained = ac.compress(net, train=batches[:6], epochs=1, **settings)
    for result in (plain, found, trained):
        assert result.promise["kept"]
        smaller = [loss for size, loss in result.promise["tried"] if size < result.file_bytes]
        assert all(loss > result.promise["limit"] for loss in smaller)
    assert found.file_bytes < 0.8 * plain.file_bytes
    assert trained.file_bytes <= 1.1 * found.file_bytes
    assert found.outcome.notes == []


def test_a_network_that_does_not_take_the_calibration_data_is_still_written(
    network: Trained, caplog: pytest.LogCaptureFixture
) -> None:
    net, _ = network
    result = ac.compress(net, calibration=[torch.zeros(4, 7)], target="500B", device="cpu", progress=False)
    assert result.file_bytes <= 500
    assert "is not made up for" in caplog.text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 3}, "epochs is 3, but there is no data to train on"),
        (
            {"train": [(torch.zeros(2, 24), torch.zeros(2).long())], "calibration": [torch.zeros(2, 24)]},
            "without train=",
        ),
        ({"calibration": []}, "the calibration data gives no batch at all"),
        ({"calibration": iter([INPUTS])}, "the calibration data is an iterator"),
        ({"target": "drop:1"}, "give val="),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, object], message: str) -> None:
    net = nn.Linear(24, 3)
    with pytest.raises(InvalidInputError, match=message):
        ac.compress(net, **{"target": "200B", "device": "cpu", **given})  # type: ignore[arg-type]
