"""Codebooks of kernels: their count, their k-means, and the allocation that chooses kind and size."""

import io
import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import autocompress as ac
from autocompress.codec.file import decode_state, encode_state, unpack
from autocompress.codec.state_coder import Entry, code_length, decode_stream, encode_stream, entries_of
from autocompress.constraints import code_bits as code_choices_module
from autocompress.constraints.code_bits import KERNELS, SCALARS, allocate_choices, code_choices, project_code_bits
from autocompress.constraints.constraint import Network
from autocompress.errors import CorruptArtifactError, InfeasibleTargetError, InvalidInputError
from autocompress.network.compressed_tensors import (
    CompressedState,
    QuantizedTensor,
    code_bits,
    position_bits,
    quantized_tensor,
    scalar_code_bits,
    scalar_tensors,
    to_grid,
)
from autocompress.network.kernel_tensor import KernelTensor, kernel_levels, kernel_tensor, vector_lengths
from autocompress.network.selection import select
from autocompress.numerics.vector_kmeans import encode_kernels, fit_kernels, nearest
from autocompress.solver.constants import DEFAULTS
from autocompress.solver.fine_tuning import FineTuning
from autocompress.targets import parse_target
from baselines.fitting import make_budget
from baselines.plan import Plan

GOLDEN = Path(__file__).parent / "golden"
SHAPES = [(8, 4, 3, 3), (6, 16), (5, 7), (12, 8, 1, 1), (6, 3, 5)]


def draw(seed: int, shapes=SHAPES) -> list[torch.Tensor]:
    """Returns weights of which some kernels resemble each other, as those of trained layers do."""
    generator = torch.Generator().manual_seed(seed)
    weights = []
    for shape in shapes:
        smooth = torch.randn(shape[:2] + (1,) * len(shape[2:]), generator=generator)
        weights.append(0.8 * smooth + 0.5 * torch.randn(shape, generator=generator))
    return weights


def dense_bits(weights: list[torch.Tensor]) -> int:
    return sum(weight.numel() for weight in weights)


def test_the_count_of_a_kernel_codebook_is_the_published_formula():
    codes = torch.arange(5).repeat(13)[:64]
    tensor = kernel_tensor(codes, torch.randn(5, 9, generator=torch.Generator().manual_seed(0)), (16, 4, 3, 3))
    assert (tensor.codewords, tensor.length, tensor.bits) == (5, 9, 3)
    assert tensor.weight_data_bits == code_bits([tensor]) == 64 * 3 + 6 * 5 * 9


def test_one_codeword_needs_no_index():
    tensor = kernel_tensor(torch.zeros(4, dtype=torch.int64), torch.ones(1, 4), (2, 8))
    assert tensor.weight_data_bits == 6 * 4


@pytest.mark.parametrize(("elements", "nonzeros"), [(1, 1), (7, 0), (7, 7), (8, 4), (100, 3), (500, 250)])
def test_positions_cost_the_logarithm_of_the_number_of_masks(elements, nonzeros):
    assert position_bits(elements, nonzeros) == math.ceil(math.log2(math.comb(elements, nonzeros)))


def test_the_count_of_a_scalar_codebook():
    tensor = quantized_tensor(torch.tensor([[0, 1, 2, 3], [0, 0, 1, 0]]), torch.tensor([-1.0, 0.5, 2.0]))
    assert code_bits([tensor]) == math.ceil(math.log2(math.comb(8, 4))) + 4 * 2 + 8 * 3
    assert scalar_code_bits(1000, 1000, 200) == 1000 * 8 + 16 * 200


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_rounding_twice_is_rounding_once_and_entries_have_six_bits(seed, codewords, length):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(codewords, length, generator=generator) * 10 ** float(torch.randn((), generator=generator))
    codes = torch.randint(codewords, (60,), generator=generator)
    tensor = kernel_tensor(codes, values, (60, length))
    assert int(tensor.levels.abs().max()) <= 31
    assert tensor.step == float(torch.tensor(tensor.step).bfloat16())
    again = kernel_tensor(tensor.codes, tensor.values, (60, length))
    assert torch.equal(again.dense(), tensor.dense())
    assert (tensor.dense() - values[codes]).abs().max() <= 0.52 * tensor.step
    assert torch.bincount(tensor.codes.long(), minlength=tensor.codewords).min() > 0
    assert tensor.nonzeros == int(torch.count_nonzero(tensor.dense()))


def test_kernels_lie_together_in_the_parameter():
    weight = torch.arange(2 * 3 * 4, dtype=torch.float32).reshape(2, 3, 2, 2)
    tensor = encode_kernels(weight, weight.reshape(6, 4))
    assert torch.equal(tensor.values[tensor.codes.long()].reshape(2, 3, 2, 2), tensor.dense())
    torch.testing.assert_close(tensor.dense(), weight, rtol=0, atol=tensor.step)


@pytest.mark.parametrize(
    ("shape", "lengths"),
    [((8, 4, 3, 3), (9,)), ((8, 4, 5), (5,)), ((6, 16), (4, 8)), ((6, 12), (4,)), ((5, 7), ()), ((12, 8, 1, 1), (4, 8)),
     ((4, 2, 20, 20), ()), ((9,), ())],
)  # fmt: skip
def test_what_is_cut_into_vectors(shape, lengths):
    assert vector_lengths(shape) == lengths


def test_nearest_is_the_nearest():
    generator = torch.Generator().manual_seed(0)
    vectors, values = torch.randn(200, 9, generator=generator), torch.randn(17, 9, generator=generator)
    codes, distances = nearest(vectors, values)
    every = (vectors[:, None] - values).double().square().sum(2)
    torch.testing.assert_close(distances, every.min(1).values)
    torch.testing.assert_close(every.gather(1, codes[:, None])[:, 0], distances)


@pytest.mark.parametrize("seed", range(3))
def test_codebooks_err_as_they_say_and_larger_ones_never_more(seed):
    vectors = draw(seed, [(16, 24, 3, 3)])[0].reshape(-1, 9)
    sizes = [2, 4, 8, 16, 32, 64, 128]
    books = fit_kernels(vectors, sizes)
    for size, book in zip(sizes, books, strict=True):
        assert len(book.values) <= size
        assert book.cost_bits == 384 * (len(book.values) - 1).bit_length() + 54 * len(book.values)
        assert book.squared_error == pytest.approx(float(nearest(vectors, book.values)[1].sum()))
        levels, step = kernel_levels(book.values)
        assert torch.equal(levels * step, book.values)
    assert all(b.squared_error <= a.squared_error for a, b in itertools.pairwise(books))
    assert books[-1].squared_error < 0.35 * books[0].squared_error
    warm = fit_kernels(vectors, sizes, {size: book.centroids for size, book in zip(sizes, books, strict=True)})
    assert all(w.squared_error <= 1.01 * b.squared_error for w, b in zip(warm, books, strict=True))


def test_two_codewords_against_every_partition():
    vectors = draw(5, [(10, 1, 2, 2)])[0].reshape(-1, 4)
    best = math.inf
    for members in itertools.product([False, True], repeat=9):
        inside = torch.tensor([True, *members])
        parts = [part for part in (vectors[inside], vectors[~inside]) if len(part)]
        best = min(best, sum(float((part - part.mean(0)).square().sum()) for part in parts))
    found = fit_kernels(vectors, [2])[0].squared_error
    assert 0.99 * best <= found <= 1.1 * best  # rounded to 6 bits, and a local optimum


def test_vectors_that_are_all_alike():
    book = fit_kernels(torch.ones(12, 4), [2, 4])[-1]
    assert len(book.values) == 1
    assert book.squared_error <= 48 * 2.0**-16  # what rounding the step to bfloat16 leaves
    assert fit_kernels(torch.zeros(12, 4), [2])[0].squared_error == 0.0


def test_a_sample_speaks_for_a_large_layer(monkeypatch):
    vectors = draw(1, [(64, 32, 3, 3)])[0].reshape(-1, 9)
    whole = fit_kernels(vectors, [2, 8, 32])
    monkeypatch.setattr("autocompress.numerics.vector_kmeans.SAMPLE", 512)
    for book, exact in zip(fit_kernels(vectors, [2, 8, 32]), whole, strict=True):
        assert book.squared_error == pytest.approx(exact.squared_error, rel=0.15)
        assert float(nearest(vectors, book.values)[1].sum()) <= 1.25 * exact.squared_error


@given(st.integers(0, 10**6), st.floats(0.4, 4.0))
@settings(max_examples=6, deadline=None)
def test_both_kinds_together_are_never_worse_than_either_alone(seed, rate):
    weights = draw(seed, [(12, 8, 3, 3), (10, 16), (5, 7)])
    budget = int(rate * dense_bits(weights))
    found = {kinds: project_code_bits(weights, budget, kinds=kinds) for kinds in (SCALARS, KERNELS, SCALARS | KERNELS)}
    assert all(result.allocation.exact for result in found.values())
    errors = {kinds: result.allocation.error for kinds, result in found.items()}
    assert errors[SCALARS | KERNELS] <= min(errors[SCALARS], errors[KERNELS]) * (1 + 1e-12)
    for result in found.values():
        assert result.used_bits == code_bits(result.quantized) <= result.allocation.cost <= budget
        assert result.squared_error == pytest.approx(result.allocation.error, rel=0.02)


def test_the_bits_used_are_those_of_the_formulas():
    weights = draw(2)
    result = project_code_bits(weights, int(1.3 * dense_bits(weights)))
    by_hand = 0
    for tensor in result.quantized:
        if isinstance(tensor, KernelTensor):
            used = len(torch.unique(tensor.codes))
            by_hand += len(tensor.codes) * math.ceil(math.log2(used)) + 6 * used * tensor.levels.shape[1]
        else:
            used, kept = len(torch.unique(tensor.codes[tensor.codes > 0])), int((tensor.codes > 0).sum())
            masks = math.comb(tensor.codes.numel(), kept)
            by_hand += math.ceil(math.log2(masks)) + kept * math.ceil(math.log2(used)) + 8 * used
    assert result.used_bits == by_hand
    assert {type(tensor) for tensor in result.quantized} == {QuantizedTensor, KernelTensor}


@pytest.mark.parametrize("seed", range(3))
def test_the_allocation_is_that_of_brute_force(seed):
    weights = draw(seed, [(6, 4, 3, 3), (4, 8), (3, 5)])
    budget = int(2.0 * dense_bits(weights))
    choices = [code_choices(weight, budget)[0] for weight in weights]
    best = min(
        sum(choice.squared_error for choice in chosen)
        for chosen in itertools.product(*choices)
        if sum(choice.cost_bits for choice in chosen) <= budget
    )
    assert allocate_choices(choices, budget).error == pytest.approx(best, rel=1e-12)


def test_choices_cost_and_err_as_they_say():
    weight = draw(3, [(12, 8, 3, 3)])[0]
    choices, _ = code_choices(weight, 10**6)
    for choice in choices:
        tensor = choice.encode(weight, last=False)
        assert code_bits([tensor]) <= choice.cost_bits
        error = float((tensor.dense() - weight).double().square().sum())
        assert error == pytest.approx(choice.squared_error, rel=0.02, abs=1e-3 * float(weight.square().sum()))
    assert all(a.cost_bits < b.cost_bits for a, b in itertools.pairwise(choices))
    assert all(a.squared_error > b.squared_error for a, b in itertools.pairwise(choices))


def test_both_kinds_are_the_default():
    assert code_choices_module.EITHER == SCALARS | KERNELS
    assert code_choices_module.KINDS[DEFAULTS.codebooks] == SCALARS | KERNELS


def test_a_warm_start_is_no_worse_and_pure():
    weights = draw(4)
    budget = int(1.5 * dense_bits(weights))
    first = project_code_bits(weights, budget)
    second = project_code_bits(weights, budget, first.starts)
    again = project_code_bits(weights, budget, first.starts)
    assert second.squared_error <= 1.02 * first.squared_error
    for a, b in zip(second.quantized, again.quantized, strict=True):
        assert torch.equal(a.dense(), b.dense())
    closed = project_code_bits(weights, budget, first.starts, last=True)
    assert closed.squared_error <= second.squared_error * (1 + 1e-6)
    assert closed.used_bits <= budget


def test_a_layer_without_vectors_stays_scalar():
    result = project_code_bits(draw(0), 3 * dense_bits(draw(0)), kinds=KERNELS)
    kinds = [type(tensor) for tensor in result.quantized]
    assert kinds == [KernelTensor, KernelTensor, QuantizedTensor, KernelTensor, KernelTensor]


def test_bad_input_of_the_projection():
    weights = draw(0)
    smallest = sum(scalar_code_bits(weight.numel(), 1, 1) for weight in weights)
    assert project_code_bits(weights, smallest).used_bits <= smallest
    with pytest.raises(InfeasibleTargetError, match=f"the smallest is {smallest}: one weight in each of 5") as caught:
        project_code_bits(weights, smallest - 1)
    assert caught.value.smallest == smallest
    with pytest.raises(InvalidInputError, match=r"layer 1 .* not finite"):
        project_code_bits([weights[0], weights[1] * math.nan], 10**6)


def test_what_takes_scalar_codes_only_says_so():
    weights = draw(0)
    coded = project_code_bits(weights, 3 * dense_bits(weights), kinds=KERNELS).quantized
    with pytest.raises(InvalidInputError, match="are for codes: targets"):
        scalar_tensors(coded)
    scalar = project_code_bits(weights, 3 * dense_bits(weights), kinds=SCALARS).quantized
    assert scalar_tensors(scalar) == scalar


def test_a_target_of_codes():
    target = parse_target("codes:20x")
    assert (target, str(target)) == (ac.CodeBits(factor=20), "codes:20x")
    assert target != parse_target("weights:20x")
    assert target.resolve(0, 1000) == 1600
    assert parse_target("CODES:64bits") == ac.CodeBits(bits=64)
    with pytest.raises(InvalidInputError, match=r"code bits are given as a factor \(codes:836x\)"):
        parse_target("codes:20KB")
    with pytest.raises(InvalidInputError, match=r"CodeBits\(factor=836\)"):
        ac.CodeBits()


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(192, 5),
    )  # fmt: skip


INPUTS = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(3))
LABELS = torch.arange(40) % 5


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, compressor: ac.Compressor) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(INPUTS), LABELS).backward()
        optimizer.step()
        compressor.step()


def start(target="codes:20x", steps=20) -> tuple[nn.Module, torch.optim.Optimizer, ac.Compressor]:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return model, optimizer, ac.Compressor(model, optimizer, target=target, total_steps=steps)


@pytest.fixture
def kernels_only(monkeypatch):
    monkeypatch.setitem(code_choices_module.KINDS, "both", KERNELS)


@pytest.mark.parametrize(("codebooks", "kinds"), [("scalar", {QuantizedTensor}), ("kernel", {KernelTensor})])
def test_a_study_says_which_kinds_a_layer_may_have(codebooks, kinds):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    constants = replace(DEFAULTS, codebooks=codebooks)
    compressor = ac.Compressor(model, optimizer, target="codes:20x", total_steps=5, constants=constants)
    train(model, optimizer, 5, compressor)
    result = compressor.finish(train=[(INPUTS, LABELS)])
    assert {type(tensor) for tensor in result.state.quantized.values()} == kinds


def test_another_kind_is_refused():
    with pytest.raises(InvalidInputError, match="codebooks is 'vector'; it may be 'both' or 'scalar' or 'kernel'"):
        replace(DEFAULTS, codebooks="vector")


def test_a_whole_run_within_its_bits_and_back_from_its_file(kernels_only, tmp_path):
    model, optimizer, compressor = start()
    train(model, optimizer, 20, compressor)
    result = compressor.finish(train=[(INPUTS, LABELS)])
    assert [type(tensor) for tensor in result.state.quantized.values()] == [KernelTensor] * 3
    weights = sum(math.prod(tensor.shape) for tensor in result.state.quantized.values())
    assert code_bits(result.state.quantized.values()) <= 32 * weights / 20
    result.save(tmp_path / "net.safetensors")
    loaded = ac.load(tmp_path / "net.safetensors", into=make_model())
    with torch.no_grad():
        assert torch.equal(loaded(INPUTS), result.model(INPUTS))
    record = result.to_json()
    assert record["code_bytes"] == pytest.approx(code_bits(result.state.quantized.values()) / 8, abs=0.1)
    kernels = record["layers"][1]
    assert (kernels["kind"], kernels["length"]) == ("kernel", 9)
    assert kernels["codebook"] == result.state.quantized["3.weight"].codewords
    assert f"{kernels['codebook']} of 9" in result.report()
    assert "positions, codes and codebooks, fixed length" in result.report()


def test_a_run_that_was_resumed_is_the_run_that_was_not(kernels_only):
    for stop in (12, 19):  # among the projections, and in finishing
        model, optimizer, compressor = start()
        train(model, optimizer, stop, compressor)
        buffer = io.BytesIO()
        torch.save([model.state_dict(), compressor.state_dict()], buffer)
        train(model, optimizer, 20 - stop, compressor)
        buffer.seek(0)
        weights, state = torch.load(buffer, weights_only=True)
        again, optimizer, resumed = start()
        again.load_state_dict(weights)
        resumed.load_state_dict(state)
        train(again, optimizer, 20 - stop, resumed)
        assert resumed.finish().data == compressor.finish().data


def test_finishing_trains_whole_kernels_under_fixed_assignments():
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(6, 4, 3, 3, generator=generator))
    tensor = encode_kernels(weight, torch.randn(5, 9, generator=generator))
    phase = FineTuning([weight], [tensor], [], [], 10)
    assert torch.equal(weight.detach(), tensor.dense())
    slope = torch.randn(weight.shape, generator=generator)
    (weight * slope).sum().backward()
    phase.step()
    by_hand = torch.zeros(tensor.codewords, 9)
    for code, vector in zip(tensor.codes.tolist(), slope.reshape(-1, 9), strict=True):
        by_hand[code] += vector
    torch.testing.assert_close(phase.values[0].grad, by_hand)
    assert torch.equal(torch.sign(tensor.values - phase.values[0]), torch.sign(by_hand))  # Adam's first step
    for _ in range(5):
        weight.grad = slope.clone()
        phase.step()
    (after,) = phase.quantized
    assert torch.equal(weight.detach(), after.dense())
    same = tensor.codes[:, None] == tensor.codes
    vectors = after.dense().reshape(-1, 9)
    assert bool((vectors[:, None] == vectors).all(2)[same].all())
    assert not torch.equal(after.dense(), tensor.dense())
    phase.rewind()
    assert torch.equal(weight.detach(), tensor.dense())


def random_kernels(shape, length, codewords, seed=0) -> KernelTensor:
    generator = torch.Generator().manual_seed(seed)
    vectors = math.prod(shape) // length
    codes = torch.randint(codewords, (vectors,), generator=generator)
    return kernel_tensor(codes, torch.randn(codewords, length, generator=generator), shape)


def patterned_kernels(shape, length, codewords) -> KernelTensor:
    """Returns kernels made of whole numbers alone, the same on every machine."""
    levels = torch.arange(codewords * length).reshape(codewords, length) * 37 % 63 - 31
    return kernel_tensor(torch.arange(math.prod(shape) // length) ** 2 % codewords, levels * 0.125, shape)


def mixed_state() -> CompressedState:
    codes = torch.arange(48).reshape(6, 8) % 4
    return CompressedState(
        quantized={
            "a.weight": patterned_kernels((16, 8, 3, 3), 9, 20),
            "b.weight": quantized_tensor(codes, torch.tensor([-0.5, 0.25, 1.0])),
            "c.weight": patterned_kernels((12, 16), 4, 7),
            "d.weight": patterned_kernels((4, 8, 1, 1), 8, 1),
            "e.weight": patterned_kernels((6, 3, 5), 5, 18),
        },
        grid={"a.bias": to_grid(torch.linspace(-1, 1, 16), 0.125)},
        raw={"n": torch.tensor(3)},
    )


def assert_same(a: CompressedState, b: CompressedState) -> None:
    assert list(a.quantized) == list(b.quantized)
    for mine, other in zip(a.quantized.values(), b.quantized.values(), strict=True):
        assert type(mine) is type(other)
        assert mine.shape == other.shape
        assert torch.equal(mine.codes, other.codes)
        assert torch.equal(mine.values, other.values)
    dense = b.dense()
    assert all(torch.equal(tensor, dense[name]) for name, tensor in a.dense().items())


def test_a_file_of_both_kinds_comes_back_exactly():
    state = mixed_state()
    assert_same(state, decode_state(encode_state(state, names=True)))
    booked = code_length(state)
    assert abs(len(encode_stream(state)) - sum(booked.values()) / 8) <= 4


@given(
    st.lists(
        st.tuples(
            st.sampled_from([((16, 8, 3, 3), 9), ((12, 16), 4), ((40, 8, 1, 1), 8), ((70, 3, 5), 5), ((9, 9), 1)]),
            st.integers(1, 60),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 1000),
)
@settings(max_examples=30, deadline=None)
def test_random_kernels_come_back_exactly(tensors, seed):
    coded = {f"l{i}": random_kernels(*shape, k, seed + i) for i, (shape, k) in enumerate(tensors)}
    state = CompressedState(quantized=coded)
    assert_same(state, decode_stream(encode_stream(state), entries_of(state), {}, kernels=True))


def test_the_stream_takes_little_more_than_the_count():
    tensor = random_kernels((64, 64, 3, 3), 9, 128)
    booked = code_length(CompressedState({"w": tensor}))
    assert booked["codes", "w"] <= 1.05 * 4096 * 7
    assert booked["codebook", "w"] <= 6 * 128 * 9 + 200


def test_a_file_without_kernels_is_of_version_1_still():
    state = mixed_state()
    assert unpack(encode_state(state)).version == 2
    scalar = CompressedState({"b.weight": state.quantized["b.weight"]}, state.grid, state.raw)
    assert unpack(encode_state(scalar)).version == 1


def test_the_golden_file_of_version_2_stays_readable():
    data = (GOLDEN / "version2.safetensors").read_bytes()
    assert_same(mixed_state(), decode_state(data))


def test_tensors_that_no_file_holds_are_refused():
    tensor = random_kernels((4, 8), 4, 3)
    bad = {
        r"codes must be in 0\.\.2": replace(tensor, codes=tensor.codes + 3),
        "entries must be within 31": replace(tensor, levels=tensor.levels + 60),
        "must be a positive bfloat16": replace(tensor, step=0.1),
        "are no tensor of": replace(tensor, shape=(4, 9)),
        "fit, and no more than vectors": replace(tensor, levels=torch.ones(9, 4, dtype=torch.int16)),
    }
    for message, wrong in bad.items():
        with pytest.raises(InvalidInputError, match=message):
            encode_stream(CompressedState({"w": wrong}))


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=60))
def test_any_bytes_decode_or_are_refused(data):
    entries = [Entry("a", (4, 3, 3, 3)), Entry("b", (5, 36)), Entry("c", (7,)), Entry("d", ()), Entry("e", (0, 3))]
    try:
        back = decode_stream(data, entries, {}, kernels=True)
    except CorruptArtifactError:
        return
    assert {name: tuple(tensor.shape) for name, tensor in back.dense().items()} == {e.name: e.shape for e in entries}


def test_searches_refuse_the_target_and_plans_the_tensors():
    model = make_model()
    network = Network(model, select(model))
    with pytest.raises(InvalidInputError, match="none that a search can fit plans to"):
        make_budget(network, parse_target("codes:20x"))
    with pytest.raises(InvalidInputError, match="are for codes: targets"):
        Plan.of({"w": random_kernels((4, 8), 4, 3)})
    with pytest.raises(InfeasibleTargetError, match="one weight in each of 3 tensors"):
        start(target="codes:3bits")
