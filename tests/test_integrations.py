"""Callbacks of Lightning and Hugging Face in real trainings: what they write, refuse, and give when they go on."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import autocompress as ac
from autocompress.errors import AutocompressError, InvalidInputError

pl = pytest.importorskip("lightning.pytorch")
transformers = pytest.importorskip("transformers")

import huggingface_tokens as tokens  # noqa: E402
import lightning_digits as digits  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

from autocompress.integrations import huggingface, lightning  # noqa: E402

HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning"),
    pytest.mark.any_file,
]


class Stopped(Exception):
    pass


class StopLightning(pl.Callback):
    """Breaks a training off after a step, and notes the losses it saw."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise Stopped


# --- Lightning ----------------------------------------------------------------------------------------------------


def test_a_lightning_module_is_compressed_under_the_names_of_its_network(tmp_path):
    callback = lightning.AutoCompress("2KB", tmp_path / "small")
    module = digits.fit(tmp_path, callback, enable_checkpointing=False, max_epochs=6)
    result = callback.result
    file = tmp_path / "small" / "compressed.safetensors"
    assert file.stat().st_size == result.file_bytes <= 2000
    assert not any(name.startswith("net.") for name in result.state.quantized)
    net = ac.load(file, into=digits.make_net())
    images = digits.loaders()[1].dataset.tensors[0]
    assert torch.equal(net(images), module.net.eval()(images))
    assert (net(images).argmax(1) == digits.loaders()[1].dataset.tensors[1]).float().mean() > 0.7
    assert json.loads((tmp_path / "small" / "config.json").read_text()) == {"width": 8}
    assert json.loads((tmp_path / "small" / "report.json").read_text())["file_bytes"] == result.file_bytes


def test_a_lightning_training_that_was_broken_off_gives_the_same_bytes(tmp_path):
    whole = lightning.AutoCompress("2KB")
    digits.fit(tmp_path, whole, enable_checkpointing=False)
    for at_the_end in (False, True):  # Lightning begins the next epoch's loader at different moments
        folder = tmp_path / str(at_the_end)
        saving = {"filename": "{epoch}", "save_top_k": -1, "save_on_train_epoch_end": at_the_end}
        with pytest.raises(Stopped):
            digits.fit(tmp_path, lightning.AutoCompress("2KB"), ModelCheckpoint(folder, **saving), StopLightning(8))
        resumed = lightning.AutoCompress("2KB")
        digits.fit(tmp_path, resumed, ModelCheckpoint(folder, **saving), resume=folder / "epoch=0.ckpt")
        assert resumed.result.data == whole.result.data
        assert resumed.result.history == whole.result.history


@pytest.mark.slow
def test_what_a_module_logs_decides(tmp_path):
    callback = lightning.AutoCompress("2KB", monitor="val_acc", mode="max")
    module = digits.fit(tmp_path, callback, enable_checkpointing=False)
    outcome = callback.result.outcome
    assert set(outcome.scores) == {"trained", "before fine-tuning", "one-shot"}
    assert outcome.judged_by == "val_acc of the module's validation"
    images, labels = digits.loaders()[1].dataset.tensors
    accuracy = (module.net.eval()(images).argmax(1) == labels).float().mean()
    assert outcome.scores[outcome.chosen] == max(outcome.scores.values()) == pytest.approx(float(accuracy))


@pytest.mark.slow
def test_a_promise_is_kept_by_what_the_module_logs(tmp_path):
    module = digits.fit(tmp_path, lightning.AutoCompress("50KB"), enable_checkpointing=False)
    callback = lightning.AutoCompress("drop:10", monitor="val_acc", mode="max")
    digits.fit(tmp_path, callback, enable_checkpointing=False, module=module)
    promise = callback.result.promise
    assert promise["kept"]
    assert promise["measured"] >= promise["limit"] == pytest.approx(promise["reference"] - 0.1)


class Accumulating(digits.Digits):
    """Steps its optimizer by itself, every second batch; a head that is not compressed learns beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization, self.scale = False, nn.Linear(10, 10)

    def training_step(self, batch, index):
        optimizer = self.optimizers()
        loss = nn.functional.cross_entropy(self.scale(self.net(batch[0])), batch[1])
        self.manual_backward(loss)
        if index % 2:
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def test_a_module_that_steps_by_itself(tmp_path):
    callback = lightning.AutoCompress("2KB", network="net", total_steps=10)
    digits.fit(tmp_path, callback, module=Accumulating(), max_epochs=5, enable_checkpointing=False)
    assert callback.result.gradient_steps == 10
    assert callback.result.file_bytes <= 2000
    with pytest.raises(InvalidInputError, match=r"network is 'body', but Accumulating has .* it has net, scale"):
        digits.fit(tmp_path, lightning.AutoCompress("2KB", network="body"), module=Accumulating())


@pytest.mark.parametrize(
    ("settings", "trainer", "message"),
    [
        ({"target": "drop:1"}, {"limit_val_batches": 0}, "a promise about validation data: give monitor="),
        (
            {"target": "drop:1", "monitor": "val_loss"},
            {},
            "about an accuracy, but val_loss is monitored",
        ),
        ({"target": "loss:+2%", "monitor": "loss"}, {}, "monitor is 'loss', but .* validation logs val_acc, val_loss"),
        ({"target": "1KB", "monitor": "valloss"}, {}, "monitor is 'valloss', but .* validation logs val_acc, val_loss"),
        ({"target": "1KB"}, {"max_epochs": -1}, "says of no number of optimizer steps"),
        ({"target": "30B"}, {}, "smallest"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_step(tmp_path, settings, trainer, message):
    module = digits.Digits()
    before = {name: tensor.clone() for name, tensor in module.net.named_parameters()}
    with pytest.raises(AutocompressError, match=message):
        digits.fit(tmp_path, lightning.AutoCompress(**settings), module=module, enable_checkpointing=False, **trainer)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.net.named_parameters())


def test_arguments_that_cannot_be(tmp_path):
    with pytest.raises(InvalidInputError, match="mode is 'best'; it must be 'min' or 'max'"):
        lightning.AutoCompress("1KB", mode="best")
    (tmp_path / "file").touch()
    (tmp_path / "folder.safetensors").mkdir()
    for settings, message in [
        ({"out": tmp_path / "file"}, "and that is a file; it must be"),
        ({"out": tmp_path / "folder.safetensors"}, "and that is a folder; it must be"),
        ({"out": ""}, "out is ''; it must be the path"),
        ({"out": 5}, "out is 5; it must be the path"),
        ({"evaluate": 5}, "evaluate is 5; it must be a function"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            lightning.AutoCompress("1KB", **settings)
    with pytest.raises(InvalidInputError, match=r"cannot make the folder .*file"):
        lightning.AutoCompress("1KB", tmp_path / "file" / "net.safetensors")
    with pytest.raises(InvalidInputError, match="give val= or evaluate="):
        huggingface.AutoCompress("drop:1")


# --- Hugging Face -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_transformer_is_compressed_into_a_folder_that_loads_back(tmp_path):
    callback = huggingface.AutoCompress("4KB", tmp_path / "small")
    model = tokens.train(tmp_path, callback, save_strategy="no", num_train_epochs=1)
    assert (tmp_path / "small" / "compressed.safetensors").stat().st_size == callback.result.file_bytes <= 4000
    inputs = torch.stack([each["input_ids"] for each in tokens.sequences(4, 3)])
    net = huggingface.load_pretrained(tmp_path / "small")
    assert isinstance(net, transformers.GPT2LMHeadModel)
    assert torch.equal(net(inputs).logits, model.eval()(inputs).logits)
    with pytest.raises(InvalidInputError, match=r"holds no compressed\.safetensors"):
        huggingface.load_pretrained(tmp_path)


@pytest.mark.slow
def test_a_classifier_of_transformers_keeps_its_accuracy(tmp_path):
    config = transformers.BertConfig(
        vocab_size=tokens.SYMBOLS,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
        max_position_embeddings=tokens.LENGTH,
    )
    rows = [each["input_ids"] for each in tokens.sequences(320, 1)]
    data = [{"input_ids": row, "labels": row[0] % 3} for row in rows]
    val = torch.utils.data.DataLoader(data[:64], 64, collate_fn=tokens.collate)
    callback = huggingface.AutoCompress("6KB", val=val)
    settings = {"data": data, "num_train_epochs": 8, "save_strategy": "no"}
    model = tokens.train(tmp_path, callback, model=transformers.BertForSequenceClassification(config), **settings)
    batch = next(iter(val))
    assert (model.eval()(batch["input_ids"]).logits.argmax(1) == batch["labels"]).float().mean() > 0.9
    assert callback.result.file_bytes <= 6000
    assert callback.result.outcome.judged_by == "the loss on the validation data"


class StopTrainer(transformers.TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            raise Stopped


def test_a_trainer_that_was_broken_off_gives_the_same_bytes(tmp_path):
    whole = huggingface.AutoCompress("4KB")
    settings = {"gradient_accumulation_steps": 2, "save_steps": 2}
    tokens.train(tmp_path / "whole", whole, **settings)
    run = tmp_path / "run"
    with pytest.raises(Stopped):
        tokens.train(run, huggingface.AutoCompress("4KB"), StopTrainer(3), **settings)
    # as if it had been killed after the trainer wrote its checkpoint, and before the compressor's state was in it
    (run / "checkpoint-2" / huggingface.STATE).rename(run / "autocompress-2.pt")
    resumed = huggingface.AutoCompress("4KB")
    tokens.train(run, resumed, resume=True, **settings)
    assert resumed.result.data == whole.result.data
    assert not list(run.glob("autocompress-*"))


def test_a_checkpoint_without_the_compressor_is_refused(tmp_path):
    tokens.train(tmp_path)
    with pytest.raises(InvalidInputError, match=r"goes on from step 10, but .*checkpoint-10.* is not there: give"):
        tokens.train(tmp_path, huggingface.AutoCompress("4KB"), resume=True)


# --- killed -------------------------------------------------------------------------------------------------------


def run(script: str, *arguments: str, killed: bool = False, launch: Sequence[str] = (), **environment: str) -> None:
    command = [sys.executable, *launch, HERE / script, *arguments]
    outcome = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert outcome.returncode == (-signal.SIGKILL if killed else 0), outcome.stderr


@pytest.mark.slow
def test_a_lightning_training_that_was_killed_gives_the_same_bytes(tmp_path):
    for name in ("whole", "run"):
        (tmp_path / name).mkdir()
    run("lightning_digits.py", f"{tmp_path}/whole", "0")
    run("lightning_digits.py", f"{tmp_path}/run", "8", killed=True)
    run("lightning_digits.py", f"{tmp_path}/run", "0", f"{tmp_path}/run/epoch=0.ckpt")
    files = [(tmp_path / name / "net.safetensors").read_bytes() for name in ("whole", "run")]
    assert files[0] == files[1]


@pytest.mark.slow
def test_a_trainer_that_was_killed_gives_the_same_bytes(tmp_path):
    run("huggingface_tokens.py", f"{tmp_path}/whole", "-1", "begin")
    run("huggingface_tokens.py", f"{tmp_path}/run", "8", "begin", killed=True)
    run("huggingface_tokens.py", f"{tmp_path}/run", "-1", "resume")
    files = [load_file(tmp_path / name / "small" / "compressed.safetensors") for name in ("whole", "run")]
    assert torch.equal(files[0]["w"], files[1]["w"])


@pytest.mark.slow
def test_ranks_agree_in_both_frameworks(tmp_path):
    run("lightning_digits.py", str(tmp_path), "0", DEVICES="2")
    files = [(tmp_path / name).read_bytes() for name in ("rank0", "rank1", "net.safetensors")]
    assert files[0] == files[1] == files[2]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run("huggingface_tokens.py", str(tmp_path), "-1", "begin", launch=torchrun)
    files = [(tmp_path / name).read_bytes() for name in ("rank0", "rank1", "small/compressed.safetensors")]
    assert files[0] == files[1] == files[2]
