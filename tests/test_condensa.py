"""Condensa's parts: schemes by exact counts and inverses, the solver against ADMM, the schedule, the goal."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch
from small_task import make_task, train_reference
from torch import nn

from autocompress.constraints.constraint import Network
from autocompress.energy.channel_graph import shrink
from autocompress.errors import InfeasibleTargetError, InvalidInputError
from autocompress.network.compressed_tensors import QuantizedTensor
from autocompress.network.selection import select
from autocompress.solver.admm import Admm, proximal_strength
from autocompress.targets import AccuracyDrop, FileSize
from autocompress.training.batches import autocast
from baselines.condensa.configurations import CONFIGURATIONS
from baselines.condensa.goal import FitSize, KeepAccuracy, KeptOutcome, parse_asked
from baselines.condensa.learn_compress import LearnCompress
from baselines.condensa.objective import CondensaObjective
from baselines.condensa.pruning import FilterPrune, Prune, StructurePrune
from baselines.condensa.run import CondensaRun
from baselines.condensa.schedule import ALEXNET_CIFAR10_SCHEDULE, LENET5_MNIST_SCHEDULE, Schedule
from baselines.condensa.schemes import Codebook, Compose, Quantize
from baselines.condensa.solver import Solver, batches_from
from baselines.interface import Trial
from studies.experiments import condensa_published as benchmark

pytestmark = pytest.mark.any_file


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv1": (8, 1, 3, 3), "conv2": (6, 8, 3, 3), "fc": (10, 54)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def nonzeros(tensors):
    return sum(int(torch.count_nonzero(t)) for t in tensors.values())


@pytest.mark.parametrize("density", [0.001, 0.02, 0.37, 1.0])
def test_prune_keeps_exactly_the_largest_over_all_layers(density):
    w = weights()
    theta = Prune(density).compress(w)
    every = torch.cat([t.flatten().abs() for t in w.values()])
    count = max(1, math.floor(density * every.numel()))
    assert nonzeros(theta) == count
    threshold = every.sort(descending=True).values[count - 1]
    for name, tensor in theta.items():
        assert torch.equal(tensor, torch.where(w[name].abs() >= threshold, w[name], 0))


def test_ties_are_broken_by_order():
    theta = Prune(0.5).compress({"a": torch.ones(2, 3), "b": -torch.ones(2, 2)})
    assert theta["a"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert not theta["b"].any()


@pytest.mark.parametrize(
    ("scheme", "layers", "kept"),
    [
        (FilterPrune(0.5), {"conv1", "conv2"}, 7),
        (StructurePrune(0.25), {"conv1", "conv2", "fc"}, 6),
    ],
)
def test_whole_outputs_are_pruned_by_one_threshold_and_other_layers_stay(scheme, layers, kept):
    w = weights()
    theta = scheme.compress(w)
    norms = {(name, row): float(w[name][row].norm()) for name in layers for row in range(len(w[name]))}
    largest = set(sorted(norms, key=norms.get, reverse=True)[:kept])
    for name, tensor in theta.items():
        for row in range(len(tensor)):
            stays = name not in layers or (name, row) in largest
            assert torch.equal(tensor[row], w[name][row] if stays else torch.zeros_like(tensor[row]))


def test_float16_is_torchs_rounding_and_comes_back_without_a_change():
    w = weights()
    theta = Quantize().compress(w)
    back = Quantize().decompress(theta)
    for name in w:
        assert theta[name].dtype == torch.float16
        assert back[name].dtype == torch.float32
        assert torch.equal(back[name], w[name].half().float())


@pytest.mark.parametrize("bits", [1, 3])
def test_a_codebook_has_so_many_values_and_leaves_zero(bits):
    pruned = Prune(0.4).compress(weights())
    theta = Codebook(bits).compress(pruned)
    for name, tensor in theta.items():
        assert torch.equal(tensor == 0, pruned[name] == 0)
        values = tensor[tensor != 0].unique()
        assert values.numel() == 2**bits
        nearest = (pruned[name][..., None] - values).abs().min(-1)
        assert torch.equal(tensor[tensor != 0], values[nearest.indices][tensor != 0])


SCHEMES = [
    Prune(0.1),
    FilterPrune(0.5),
    StructurePrune(0.5),
    Quantize(),
    Quantize(torch.bfloat16),
    Codebook(2),
    Compose((Prune(0.1), Quantize())),
    Compose((StructurePrune(0.5), Prune(0.2), Codebook(3))),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_compressing_is_a_projection(scheme):
    """pi(delta(theta)) = theta: what is decompressed is compressed to what it was, and nothing given is changed."""
    w = weights()
    before = {name: tensor.clone() for name, tensor in w.items()}
    theta = scheme.compress(w)
    again = scheme.compress(scheme.decompress(theta))
    for name in w:
        assert torch.equal(w[name], before[name])
        assert again[name].dtype == theta[name].dtype
        torch.testing.assert_close(again[name], theta[name], rtol=1e-6, atol=0)


class Affine:
    """Not a projection, but invertible: shows the order."""

    def __init__(self, factor, shift):
        self.factor, self.shift = factor, shift

    def compress(self, weights):
        return {name: w * self.factor + self.shift for name, w in weights.items()}

    def decompress(self, theta):
        return {name: (t - self.shift) / self.factor for name, t in theta.items()}


def test_a_composition_is_undone_in_reverse():
    first, second = Affine(2.0, 1.0), Affine(4.0, -8.0)
    both = Compose((first, second))
    theta = both.compress({"w": torch.tensor([[3.0]])})
    assert theta["w"].item() == 20.0  # (3 * 2 + 1) * 4 - 8
    assert both.decompress(theta)["w"].item() == 3.0
    assert Compose((second, first)).decompress(theta)["w"].item() != 3.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Prune(0.0), "density is 0.0"),
        (lambda: FilterPrune(1.5), "density is 1.5"),
        (lambda: Codebook(9), "from 1 to 8"),
        (lambda: FilterPrune(0.5).compress({"fc": torch.ones(2, 2)}), "finds nothing to prune in fc"),
    ],
)
def test_bad_schemes(make, message):
    with pytest.raises(InvalidInputError, match=message):
        make()


def coded(dense):
    values = dense[dense != 0].unique()
    codes = torch.zeros(dense.shape, dtype=torch.int16)
    codes[dense != 0] = (torch.searchsorted(values, dense[dense != 0]) + 1).to(torch.int16)
    return QuantizedTensor(codes, values)


def test_lc_is_admm_on_a_quadratic_when_the_penalty_is_constant():
    """loss = sum a/2 (w - c)^2. Both sides take the same outer steps, lambda = -mu U, to the last of twelve.

    ADMM's inner steps are gradient steps each followed by our implicit pull, L-C's are steps on the penalized gradient:
    other ways to the same point, which both reach before the next outer step.
    """
    generator = torch.Generator().manual_seed(3)
    a, c = (torch.rand(5, 6, generator=generator, dtype=torch.float64) + offset for offset in (0.5, -0.5))
    rate, scheme = 0.2, Prune(0.2)
    w, x = c.float().double().clone(), nn.Parameter(c.float().double().clone())
    admm = Admm([w], 4, 0.5)
    mu = proximal_strength(4, 0.5, 1.0) / rate
    lc = LearnCompress({"w": x}, scheme, mu, factor=1.0)
    v = scheme.compress({"w": w})["w"]
    admm.centers[0].copy_(v)  # L-C begins at theta = pi(w), lambda = 0; ADMM at V = W
    for _ in range(12):
        for _ in range(400):
            w -= rate * a * (w - c)
            admm.after_step(1.0)
            x.grad = a * (x.detach() - c)
            lc.penalize()
            with torch.no_grad():
                x -= rate / (1 + mu * rate) * x.grad
        torch.testing.assert_close(x.detach(), w, rtol=0, atol=1e-9)
        target = admm.points()[0]
        v = scheme.compress({"w": target})["w"]
        torch.testing.assert_close(target, (x - lc.multipliers["w"] / mu).detach(), rtol=0, atol=1e-9)
        twin = coded(v)
        admm.update([twin])
        lc.compress()
        torch.testing.assert_close(lc.decompressed["w"], v, rtol=0, atol=1e-9)
        torch.testing.assert_close(lc.multipliers["w"], -mu * admm.duals[0], rtol=0, atol=1e-6)
        assert lc.mu == mu
    assert float((x.detach() - v).abs().max()) < 0.2 * float((c - v).abs().max())


def test_two_c_steps_by_hand():
    w = nn.Parameter(torch.tensor([[1.0, 0.4]]))
    lc = LearnCompress({"w": w}, Prune(0.5), mu=0.5, factor=2.0)
    assert lc.decompressed["w"].tolist() == [[1.0, 0.0]]
    w.grad = torch.tensor([[0.1, 0.1]])
    lc.penalize()
    torch.testing.assert_close(w.grad, torch.tensor([[0.1, 0.3]]))  # + 0.5 * 0.4
    lc.compress()
    torch.testing.assert_close(lc.multipliers["w"], torch.tensor([[0.0, -0.2]]))
    assert lc.mu == 1.0
    with torch.no_grad():
        w.copy_(torch.tensor([[0.5, 0.4]]))
    lc.compress()  # w - lambda / mu = [0.5, 0.6]: the other one is kept now
    torch.testing.assert_close(lc.decompressed["w"], torch.tensor([[0.0, 0.6]]))
    torch.testing.assert_close(lc.multipliers["w"], torch.tensor([[-0.5, 0.0]]))


@pytest.mark.parametrize("schedule", [ALEXNET_CIFAR10_SCHEDULE, LENET5_MNIST_SCHEDULE])
@pytest.mark.parametrize("steps", [1, 7, 61, 918, 20_000])
def test_a_shorter_schedule_has_all_steps_and_the_published_pull(schedule, steps):
    short, lengths = schedule.within(steps)
    assert sum(lengths) == steps
    assert len(lengths) == short.l_steps <= schedule.l_steps
    assert min(lengths) >= 1
    long = schedule.first_steps / schedule.steps_per_l
    per_l = steps / (short.l_steps - 1 + long)
    assert short.mu * per_l == pytest.approx(schedule.mu * schedule.steps_per_l)
    if short.l_steps > 1:
        assert lengths[0] == pytest.approx(long * per_l, abs=1)
        last = short.mu * short.mu_factor ** (short.l_steps - 1) * per_l
        assert last == pytest.approx(schedule.mu * schedule.mu_factor ** (schedule.l_steps - 1) * schedule.steps_per_l)


def test_the_published_length_is_the_published_schedule():
    assert ALEXNET_CIFAR10_SCHEDULE.within(30_000 + 33 * 3_000) == (
        ALEXNET_CIFAR10_SCHEDULE,
        [30_000] + [3_000] * 33,
    )
    rates = ALEXNET_CIFAR10_SCHEDULE.rates(5, 3)
    assert rates == pytest.approx([1e-2, 1e-3, 1e-4])
    assert LENET5_MNIST_SCHEDULE.rates(2, 2) == pytest.approx([0.02 * 0.98**2] * 2)
    assert {name: setting.density for name, setting in CONFIGURATIONS.items()} == {
        "alexnet-cifar10-memory": 0.02,
        "alexnet-cifar10-flops": 0.5,
        "lenet5-mnist-memory": 0.007,
        "lenet5-mnist-latency": 0.3,
    }
    with pytest.raises(InvalidInputError, match="needs at least 1"):
        LENET5_MNIST_SCHEDULE.within(0)


def test_the_bias_of_a_neuron_goes_with_it():
    weights = {
        "a.weight": torch.tensor([[3.0, 0.0], [0.1, 0.2]]),
        "a.bias": torch.tensor([0.5, 0.5]),
        "norm.bias": torch.ones(2),
    }
    theta = StructurePrune(0.5).compress(weights)
    assert theta["a.weight"].tolist() == [[3.0, 0.0], [0.0, 0.0]]
    assert theta["a.bias"].tolist() == [0.5, 0.0]
    assert theta["norm.bias"].tolist() == [1.0, 1.0]


SHORT = Schedule(l_steps=2, first_steps=3, steps_per_l=2, mu=0.1, mu_factor=2.0, learning_rate=0.05, momentum=0.5)


def make_solver(validation_loss, scheme=None, steps=5):
    task = make_task()
    model = task.make_model()
    solver = Solver(
        Network(model, select(model)),
        scheme or Prune(0.3),
        SHORT,
        steps,
        train=task.train,
        loss=task.loss,
        validation_loss=validation_loss,
        device=torch.device("cpu"),
        seed=0,
    )
    return solver, task


def test_the_solvers_steps_by_hand():
    """Nesterov's momentum from rest in each L step, the penalty in the gradient, the batches of the trainer."""
    solver, task = make_solver(lambda network: 0.0)
    model = task.make_model()
    names = [name for name, _ in select(model).weights]
    own = LearnCompress({n: p for n, p in model.named_parameters() if n in names}, Prune(0.3), 0.1, 2.0)
    batches = batches_from(make_task().train, 0, 10)
    for length in (3, 2):
        velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for _ in range(length):
            inputs, targets = next(batches)
            model.zero_grad()
            with autocast(solver.bfloat16, torch.device("cpu")):  # as the trainer does where the processor is for it
                output = model(inputs)
            task.loss(output, targets).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            own.penalize()
            with torch.no_grad():
                for name, p in model.named_parameters():
                    velocity[name] = 0.5 * velocity[name] - 0.05 * p.grad
                    p += 0.5 * velocity[name] - 0.05 * p.grad
        own.compress()
    solver.fit()
    assert solver.steps == 5
    for name in names:
        torch.testing.assert_close(solver.state.multipliers[name], own.multipliers[name])


def test_the_best_theta_is_that_of_the_lowest_validation_loss():
    scores = iter([0.5, 0.2, 0.4])  # the direct compression, then one for each C step
    seen = []

    def validation_loss(network):
        seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return next(scores)

    solver, _ = make_solver(validation_loss)
    solver.fit()
    assert len(seen) == 3
    assert solver.best_loss == 0.2
    for name, tensor in solver.network.model.state_dict().items():
        assert torch.equal(tensor, seen[1][name])
    weights = dict(solver.network.selection.weights)
    assert nonzeros(weights) == math.floor(0.3 * sum(w.numel() for w in weights.values()))


def test_a_stopped_solver_goes_on_as_if_it_had_not_been(tmp_path):
    whole, _ = make_solver(lambda network: 0.0)
    whole.fit()

    class Killed(Exception):
        pass

    def kill():
        if (tmp_path / "c").exists():
            raise Killed

    stopped, _ = make_solver(lambda network: 0.0)
    with pytest.raises(Killed):
        stopped.fit(kill, tmp_path / "c")
    again, _ = make_solver(lambda network: 0.0)
    again.fit(checkpoint=tmp_path / "c")
    assert again.steps == whole.steps
    for name in whole.state.multipliers:
        assert torch.equal(again.state.multipliers[name], whole.state.multipliers[name])
    other, _ = make_solver(lambda network: 0.0, steps=9)
    with pytest.raises(InvalidInputError, match="the saved run has L steps"):
        other.fit(checkpoint=tmp_path / "c")


@pytest.mark.parametrize(
    ("text", "asked"),
    [("drop:0.5", AccuracyDrop(0.5)), ("DROP:2", AccuracyDrop(2.0)), ("4KB", FileSize("4KB")), ("1%", FileSize("1%"))],
)
def test_what_may_be_asked(text, asked):
    assert parse_asked([text]) == asked
    assert parse_asked(str(asked)) == asked


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["drop:x"], "is given in points"),
        (["drop:-1"], "is given in points"),
        (["drop:nan"], "is given in points"),
        (["weights:100x"], "condensa cannot search for the target 'weights:100x'"),
        (["4KB", "drop:1"], "takes one target, not 2"),
        (["4 bananas"], "bananas"),
    ],
)
def test_what_may_not(texts, message):
    with pytest.raises(InvalidInputError, match=message):
        parse_asked(texts)


def trial(number, accuracy, size):
    return Trial(number, "complete", {"density": 0.1}, accuracy, size, 1, 0.0)


def test_the_best_is_the_best_of_those_that_keep_the_goal():
    trials = (trial(0, 0.99, 900), trial(1, 0.95, 400), trial(2, 0.96, 400), trial(3, 0.90, 100))
    assert KeptOutcome(trials, goal=KeepAccuracy(0.95)).best.number == 1
    assert KeptOutcome(trials, goal=KeepAccuracy(0.97)).best.number == 0
    assert KeptOutcome(trials, goal=FitSize(500)).best.number == 2
    nothing = KeptOutcome(trials, goal=KeepAccuracy(0.995))
    assert nothing.best.number == 0
    assert not nothing.keeps(nothing.best)
    assert KeptOutcome((), goal=FitSize(5)).best is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"epochs": 0}, InvalidInputError, "0 gradient steps"),
        ({"space": "global"}, InvalidInputError, "its own space"),
        ({"target": "10B"}, InfeasibleTargetError, "smallest file"),
        ({"ignore": ["nothing.*"]}, InvalidInputError, "matches no parameter"),
    ],
)
def test_a_bad_objective(change, error, message):
    task = make_task()
    with pytest.raises(error, match=message):
        CondensaObjective(task, task.make_model(), **{"target": "drop:1", **change})


def test_an_evaluation_counts_its_steps_and_measures_its_file():
    task = make_task()
    objective = CondensaObjective(task, train_reference(task), target="drop:2", epochs=3)
    reports = []
    found = objective({"density": 0.2}, lambda progress: bool(reports.append(progress)))
    assert found.gradient_steps == 30
    assert found.curve[-1] == (30, found.accuracy)
    assert [progress.epoch for progress in reports] == sorted({progress.epoch for progress in reports})
    assert sum(layer["keep_fraction"] * n for layer, n in zip(found.plan.values(), (640, 1024, 96), strict=True)) == (
        pytest.approx(math.floor(0.2 * 1760))
    )
    assert all(layer["codebook"] <= 16 for layer in found.plan.values())
    sparser = objective({"density": 0.02})
    assert sparser.size < found.size
    assert found.accuracy > 0.6
    with pytest.raises(InvalidInputError, match="cannot go on"):
        objective({"density": 0.2}, state={"epoch": 1})


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(20, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(self.second(self.first(x).relu()).relu())


def test_tied_weights_are_compressed_under_both_names():
    objective = CondensaObjective(replace(make_task(), make_model=Tied), Tied(), target="drop:50", epochs=1)
    run = CondensaRun(objective, {"density": 0.2}, 1, FileSize("2KB"))
    network = run.compressed()
    assert network.second.weight is network.first.weight
    assert torch.equal(network.first.weight, run.solver.state.decompressed["first.weight"])
    assert nonzeros({"first": network.first.weight, "head": network.head.weight}) == math.floor(0.2 * 460)


def condensa_record(method, seed=0, **changes):
    record = {
        "case": "lenet5-mnist-memory", "reference_epochs": 20, "steps": 66_000, "method": method, "seed": seed,
        "gradient_steps": 66_000, "batch_size": 128, "reference_accuracy": 0.99, "test_accuracy": 0.985,
        "weights": 1000, "nonzeros": 10, "weight_data_bits": 160, "position_bits": 80.0, "file_bytes": 70,
        "energy": 0.1, "macs": 0.5, "latency": 0.75,
    }  # fmt: skip
    return record | changes


def test_the_table_of_published_settings():
    records = [condensa_record("condensa"), condensa_record("compressor", gradient_steps=6_330, batch_size=256)]
    assert [re.sub(" +", " ", line) for line in benchmark.table(records).splitlines()[2:]] == [
        "| lenet5-mnist-memory | condensa | 1 | 66,000 x 128 | 99.00 % | 98.50 % | -0.50 | 1.00 % | 200x "
        "| at least 30 | 0.10x | 0.50x | 0.75x |",
        "| lenet5-mnist-memory | compressor | 1 | 6,330 x 256 | 99.00 % | 98.50 % | -0.50 | 1.00 % | 200x "
        "| 70 | 0.10x | 0.50x | 0.75x |",
    ]
    # a shorter run is a row of its own, the same run twice is a mistake
    assert len(benchmark.table([*records, condensa_record("condensa", steps=300)]).splitlines()) == 5
    with pytest.raises(ValueError, match="more than one record of a seed"):
        benchmark.table([*records, records[0]])


def test_what_no_filter_gives_is_not_read():
    """Three of four filters and their biases are zero: what reads them is zeroed, and they can be removed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        model[0].weight[1:] = 0
        model[0].bias[1:] = 0
    example = torch.randn(1, 1, 4, 4)
    before = model(example)
    benchmark.zero_unfed(model, example)
    torch.testing.assert_close(model(example), before)
    assert model[3].weight.count_nonzero() == 4 * 5
    assert shrink(model, example)[0].out_channels == 1


@pytest.mark.parametrize("n", [1, 7, 40])
def test_position_bits_are_the_logarithm_of_the_number_of_places(n):
    weight = torch.zeros(4000)
    bits = benchmark.position_bits(weight, 100 * n)
    exact = (math.lgamma(4001) - math.lgamma(100 * n + 1) - math.lgamma(4001 - 100 * n)) / math.log(2)
    assert exact <= bits <= exact + math.log2(4001)


def test_a_published_setting_in_a_few_steps(tmp_path, monkeypatch, capsys):
    """On the digits; the second time it finds its records."""
    monkeypatch.setitem(CONFIGURATIONS, "digits", replace(CONFIGURATIONS["lenet5-mnist-latency"], data="digits"))
    monkeypatch.setenv("AUTOCOMPRESS_DATA", str(tmp_path / "data"))
    records = tmp_path / "results" / "records.jsonl"
    records.parent.mkdir()
    command = ["x", "run", "digits", "--steps", "20", "--reference-epochs", "1", "--records", str(records)]
    monkeypatch.setattr("sys.argv", command)
    benchmark.main()
    benchmark.main()
    first, second = (json.loads(line) for line in records.read_text().splitlines())
    assert (first["method"], second["method"]) == ("condensa", "compressor")
    assert first["gradient_steps"] == 20
    assert 0.26 * first["weights"] > first["nonzeros"]
    assert first["macs"] < 1
    assert second["energy"] <= first["energy"] + 0.05
    assert "there is a record" in capsys.readouterr().out
    assert [path.name for path in records.parent.iterdir()] == ["records.jsonl"]  # and no checkpoint
