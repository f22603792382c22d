"""Batches of every kind: streams, containers that keep their type, dicts with more than the network takes."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from small_task import batches, make_model, make_norm_model, make_shallow_model
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, IterableDataset

import autocompress as ac
from autocompress.training.batches import batches_of_epoch, check_batches, forward, input_example, to_device
from autocompress.training.evaluation import evaluate
from autocompress.training.layer_statistics import refit_batch_norm
from autocompress.training.recipe import Recipe
from autocompress.training.trainer import Trainer

pytestmark = pytest.mark.any_file

RECIPE = Recipe("sgd", 0.05)
Pair = namedtuple("Pair", "inputs labels")


class Stream(IterableDataset):
    """Examples without a length, or with a wrong one."""

    def __init__(self, count: int = 96, announced: int | None = None) -> None:
        (self.inputs, self.labels), self.count = next(iter(batches(200, 1))), count
        self.passes = 0
        if announced is not None:
            self.announced = announced
            self.__class__ = StreamWithLength

    def __iter__(self):
        self.passes += 1
        return zip(self.inputs[: self.count], self.labels[: self.count], strict=True)


class StreamWithLength(Stream):
    def __len__(self) -> int:
        return self.announced


def run(train, val=None) -> ac.Result:
    return ac.compress(
        make_shallow_model(), train=train, val=val, target="50%", epochs=2, recipe=RECIPE, progress=False, device="cpu"
    )


def test_a_stream_without_a_length_is_counted_once() -> None:
    train, val = Stream(), Stream(40)
    result = run(DataLoader(train, batch_size=32), DataLoader(val, batch_size=32))
    assert result.gradient_steps == 6
    assert run(list(DataLoader(Stream(), batch_size=32)), DataLoader(val, batch_size=32)).data == result.data


@pytest.mark.filterwarnings("ignore:Length of IterableDataset:UserWarning")
@pytest.mark.parametrize("announced", [64, 160])
def test_a_stream_with_a_wrong_length_trains_for_the_announced_steps(announced: int, caplog) -> None:
    result = run(DataLoader(Stream(96, announced), batch_size=32))
    assert result.gradient_steps == 2 * announced // 32
    assert ("are gone through again" in caplog.text) == (announced > 96)


def test_an_epoch_has_as_many_batches_as_were_announced(caplog) -> None:
    assert list(batches_of_epoch([1, 2, 3], 2)) == [1, 2]
    assert list(batches_of_epoch([1, 2, 3], 3)) == [1, 2, 3]
    assert list(batches_of_epoch([1, 2, 3], 7)) == [1, 2, 3, 1, 2, 3, 1]
    assert [record.getMessage() for record in caplog.records] == [
        "the training data gave 3 batches where 7 were announced; they are gone through again"
    ]
    with pytest.raises(ac.InvalidInputError, match="gave no batch in this epoch"):
        list(batches_of_epoch([], 1))


def test_evaluation_goes_through_a_stream_once() -> None:
    stream = Stream()
    evaluate(make_shallow_model(), DataLoader(stream, batch_size=32), device="cpu")
    assert stream.passes == 1
    with pytest.raises(ac.InvalidInputError, match="gives no batch at all"):
        evaluate(make_shallow_model(), DataLoader(Stream(0), batch_size=32), device="cpu")


def test_a_loader_whose_dataset_has_no_length_is_counted() -> None:
    assert check_batches(DataLoader(Stream(96), batch_size=32), "the data") == 3


def test_containers_keep_their_type() -> None:
    packed = pack_sequence([torch.zeros(3, 2), torch.zeros(1, 2)])
    moved = to_device(Pair([packed, "text"], {"a": (torch.zeros(1),)}), "cpu")
    assert isinstance(moved, Pair)
    assert isinstance(moved.inputs, list)
    assert isinstance(moved.inputs[0], PackedSequence)
    assert isinstance(moved.labels["a"], tuple)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.last = nn.LSTM(4, 8), nn.Linear(8, 3)

    def forward(self, sequences: PackedSequence) -> Tensor:
        return self.last(self.cell(sequences)[1][0][-1])


def test_packed_sequences_train() -> None:
    sequences = pack_sequence([torch.rand(5, 4), torch.rand(2, 4)])
    data = [(sequences, torch.tensor([0, 2]))]
    log = Trainer(Recurrent(), data, recipe=RECIPE, epochs=2, device="cpu", progress=False).fit()
    assert log.gradient_steps == 2
    assert isinstance(input_example(data), PackedSequence)


class ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(20, 3)

    def forward(self, inputs: Tensor, scale: float = 1.0) -> Tensor:
        return scale * self.last(inputs)


class TakesAll(ByName):
    def forward(self, inputs: Tensor, **others: object) -> Tensor:
        assert sorted(others) == ["index", "text"]
        return self.last(inputs)


@pytest.mark.parametrize("network", [ByName, TakesAll])
@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel])
def test_of_a_dict_only_the_fields_that_forward_takes_are_given(network, wrap) -> None:
    inputs, labels = next(iter(batches(8, 1)))
    batch = {"inputs": inputs, "labels": labels, "index": torch.arange(8), "text": ["a"] * 8}
    model = network()
    output, target = forward(wrap(model), batch)
    assert torch.equal(output, model.last(inputs))
    assert target is labels


@dataclass
class Example:
    inputs: Tensor


def test_a_batch_that_is_neither_is_refused() -> None:
    with pytest.raises(ac.InvalidInputError, match="a batch is a Example; it must be a tuple"):
        forward(make_shallow_model(), Example(torch.zeros(1, 20)))


def test_a_loader_with_its_own_generator_gives_the_same_file_whatever_was_drawn_from_it() -> None:
    inputs, labels = next(iter(batches(96, 1)))
    data = torch.utils.data.TensorDataset(inputs, labels)
    loader = DataLoader(data, batch_size=32, shuffle=True, generator=torch.Generator().manual_seed(4))
    first = run(loader)
    list(loader)
    assert run(loader).data == first.data


EMPTY = (torch.zeros(0, 20), torch.zeros(0, dtype=torch.long))


def test_a_batch_without_examples_is_named_in_training_and_counts_nothing_elsewhere() -> None:
    some = list(batches(64, 1))
    with pytest.raises(ac.InvalidInputError, match=r"the batch of step 2 .*: it holds no example; .*\[0, 20\]"):
        Trainer(make_model(), [*some, EMPTY], recipe=RECIPE, epochs=1, device="cpu", progress=False).fit()
    whole, with_empty = (evaluate(make_model(), data, device="cpu") for data in (some, [*some, EMPTY]))
    assert (with_empty.loss, with_empty.metric) == (whole.loss, whole.metric)
    models = make_norm_model(), make_norm_model()
    for model, data in zip(models, (some, [EMPTY, *some, EMPTY]), strict=True):
        refit_batch_norm(model, data, device="cpu")
    assert torch.equal(models[0][1].running_var, models[1][1].running_var)
    assert models[1][1].running_var.isfinite().all()


@pytest.mark.parametrize(
    ("value", "named"), [(torch.nan, "loss nan"), (torch.inf, "loss nan")], ids=["not a number", "infinite"]
)
def test_validation_data_that_give_no_score_are_refused_before_training(value, named, monkeypatch) -> None:
    monkeypatch.setattr(Trainer, "fit", lambda self: pytest.fail("trained"))
    (x, y), *_ = batches(64, 1)
    with pytest.raises(ac.InvalidInputError, match=f"as it was given has the {named} on the validation data"):
        run([(x, y)], [(torch.full_like(x, value), y)])


def test_a_batch_that_batch_norm_cannot_be_refitted_on_is_named_and_changes_nothing() -> None:
    model = make_norm_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ac.InvalidInputError, match="batch 1 of the data to refit batch norm on does not go through"):
        refit_batch_norm(model, [*batches(64, 1), (torch.zeros(8, 3), torch.zeros(8))], device="cpu")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_test_data_that_give_no_score_are_said(caplog) -> None:
    (x, y), *_ = batches(64, 1)
    settings = {"train": [(x, y)], "val": [(x, y)], "test": [(x * torch.nan, y)], "target": "50%", "epochs": 0}
    result = ac.compress(make_model(), **settings, device="cpu", metric=lambda o, t: o[:, 0])
    assert "the loss on the test data is nan; its <lambda> means little" in caplog.text
    assert result.test_accuracy != result.test_accuracy
    assert result.to_json()["test_accuracy"] is None


def test_a_seed_that_no_generator_takes() -> None:
    for seed in (2**32, -1):
        with pytest.raises(ac.InvalidInputError, match=f"seed is {seed}; it must be at"):
            ac.compress(make_model(), train=list(batches(64, 1)), target="50%", seed=seed)


def test_a_batch_that_does_not_fit_is_named_while_the_learning_rate_is_sought() -> None:
    (x, y), *_ = batches(64, 1)
    with pytest.raises(ac.InvalidInputError, match=r"the batch of step 2 of the range test .* IndexError: Target"):
        ac.compress(make_model(), train=[(x, y), (x, y + 3)], target="50%", epochs=1, progress=False)


class OnceOnly:
    """Gives its batches in the first pass alone, or in the second, too."""

    def __init__(self, passes: int) -> None:
        self.passes, self.batches = passes, list(batches(64, 1))

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        self.passes -= 1
        return iter(self.batches if self.passes >= 0 else [])


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_data_that_begin_no_second_time_end_no_run_in_silence(passes: int) -> None:
    with pytest.raises(ac.InvalidInputError, match=r"gives no batch|gave no batch"):
        ac.compress(make_model(), train=OnceOnly(passes), target="50%", epochs=2, progress=False)


def test_a_stream_without_an_end_is_told_while_it_is_counted(caplog, monkeypatch) -> None:
    seconds = iter(range(0, 10_000, 6))
    monkeypatch.setattr("autocompress.training.batches.time.monotonic", lambda: float(next(seconds)))
    assert check_batches(DataLoader(Stream(96), batch_size=8), "the training data") == 12
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == (
        "the training data has no length and is counted: 3 batches so far; one that has no end needs a __len__"
    )
    assert 1 < len(told) < 12


def test_a_recipe_is_a_recipe() -> None:
    with pytest.raises(ac.InvalidInputError, match=r"recipe is 'sgd'; it must be a Recipe, such as"):
        ac.compress(make_model(), train=list(batches(64, 1)), target="50%", recipe="sgd")
