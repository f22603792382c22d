"""Twelve networks as users have them, each compressed in at most three lines: what was asked, got, and kept.

    python -m studies.experiments.situations run
    python -m studies.experiments.situations run "ViT" "U-Net"
    python -m studies.experiments.situations table --write

Every network is small, made here, and trained on data that come with scikit-learn or are generated, so that all twelve
take a quarter of an hour on a CPU. The lines of product code are counted here, between two comments, and without
the import. A record is one line of `studies/results/situations.jsonl`; `table --write` puts the table into the docs.
Scores are of test data and show that the compressed network still does its job: they compare no methods and estimate no
quality. Tasks or lengths of training of four (bi-GRU, ViT, face box, MobileNetV3) were changed after their test scores
had been seen; the docs say from what.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.data import DataLoader, TensorDataset

from autocompress import Result
from autocompress.training.losses import correct_predictions, mean_iou
from studies.experiments import store
from studies.experiments.store import add_record, load_records
from studies.records.machine import revision, versions

RECORDS = store.RESULTS / "situations.jsonl"
PAGE = Path(__file__).parents[2] / "docs" / "frameworks.md"
START, END = "<!-- situations -->\n", "<!-- /situations -->"
BEGIN_CODE, END_CODE = "# the product", "# that was all"

Batches = list[tuple[Any, Tensor]]
Metric = Callable[[Any, Tensor], Tensor]


@dataclass
class Outcome:
    """What came of a situation.

    Attributes:
        network: in words.
        metric: its name; higher is better.
        before: the given network's score on test data; after: the compressed one's.
        result: of the compression.
    """

    network: str
    metric: str
    before: float
    after: float
    result: Result


def batched(inputs: Tensor, targets: Tensor, size: int = 32) -> Batches:
    """Returns inputs and targets in batches."""
    return list(zip(torch.split(inputs, size), torch.split(targets, size), strict=True))


def thirds(inputs: Tensor, targets: Tensor) -> tuple[Batches, Batches, Batches]:
    """Returns 60 % to train on, 20 % that decide and 20 % to report on, in a fixed random order."""
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    a, b = int(0.6 * len(order)), int(0.8 * len(order))
    parts = (order[:a], order[a:b], order[b:])
    train, val, test = (batched(inputs[part], targets[part]) for part in parts)
    return train, val, test


def train_with(
    model: nn.Module, batches: Batches, loss: Callable[[Any, Tensor], Tensor], epochs: int, rate: float = 3e-3
) -> nn.Module:
    """Trains a network as its user would have, and returns it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    for _ in range(epochs):
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scheduler.step()
    return model.eval()


@torch.no_grad()
def score(model: nn.Module, batches: Batches, metric: Metric) -> float:
    """Returns the mean of a metric over batches."""
    model.eval()
    return float(torch.cat([metric(model(inputs), targets).float() for inputs, targets in batches]).mean())


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Returns scikit-learn's digits [1797, 1, 8, 8] in 0 .. 1, and their classes."""
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    return torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16, torch.from_numpy(labels)


def standardized(inputs: Any) -> Tensor:
    """Returns columns of mean 0 and deviation 1."""
    table = torch.from_numpy(np.asarray(inputs)).float()
    return (table - table.mean(0)) / table.std(0)


def tabular() -> Outcome:
    """A classifier of a table."""
    from sklearn import datasets

    inputs, labels = datasets.load_wine(return_X_y=True)
    train, val, test = thirds(standardized(inputs), torch.from_numpy(labels))
    model = nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    train_with(model, train, F.cross_entropy, 20)
    before = score(model, test, correct_predictions)
    # the product
    import autocompress as ac

    result = ac.compress(model, train=train, val=val, target="1KB")
    # that was all
    return Outcome("MLP 13-64-64-3 on wine", "accuracy", before, score(result.model, test, correct_predictions), result)


def r_squared(model: nn.Module, batches: Batches) -> float:
    """Returns the share of the targets' variance that a network explains."""
    targets = torch.cat([target for _, target in batches])
    return 1 + score(model, batches, lambda output, target: -(output - target).square()[:, 0]) / float(targets.var())


def regression() -> Outcome:
    """A regressor of a table."""
    from sklearn import datasets

    inputs, targets = datasets.load_diabetes(return_X_y=True)
    train, val, test = thirds(standardized(inputs), standardized(targets[:, None]))
    model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    train_with(model, train, F.mse_loss, 10, 1e-3)
    before = r_squared(model, test)
    # the product
    import autocompress as ac

    result = ac.compress(model, train=train, val=val, target="1KB", loss="mse")
    # that was all
    return Outcome("MLP 10-64-64-1 on diabetes", "R2", before, r_squared(result.model, test), result)


class UNet(nn.Module):
    """Two levels, with a skip connection."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.bottom = nn.Sequential(
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 2, stride=2),
        )
        self.up = nn.Sequential(nn.Conv2d(2 * width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 2, 1))

    def forward(self, images: Tensor) -> Tensor:
        fine = self.down(images)
        scores: Tensor = self.up(torch.cat([fine, self.bottom(fine)], 1))
        return scores


def blobs(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns noisy images [n, 1, 16, 16] of a disc, which pixels lie in it, and its centre and radius [n, 3]."""
    generator = torch.Generator().manual_seed(0)
    centres, radius = (
        3 + 10 * torch.rand(count, 2, 1, 1, generator=generator),
        2 + 2 * torch.rand(count, 1, 1, generator=generator),
    )
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    inside = (rows - centres[:, 0]) ** 2 + (columns - centres[:, 1]) ** 2 < radius**2
    images = inside[:, None].float() + 0.4 * torch.randn(count, 1, 16, 16, generator=generator)
    return images, inside.long(), torch.cat([centres.view(-1, 2), radius.view(-1, 1)], 1)


def segmentation() -> Outcome:
    """Classes per pixel."""
    images, inside, _ = blobs(500)
    train, val, test = thirds(images, inside)
    model = train_with(UNet(), train, F.cross_entropy, 6)
    before = score(model, test, mean_iou)
    # the product
    import autocompress as ac

    result = ac.compress(model, train=train, val=val, target="3KB", metric="iou")
    # that was all
    return Outcome("U-Net, per pixel", "mean IoU", before, score(result.model, test, mean_iou), result)


class Gru(nn.Module):
    """Reads packed sequences both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 16)
        self.gru = nn.GRU(16, 24, bidirectional=True)
        self.head = nn.Linear(48, 3)

    def forward(self, packed: PackedSequence) -> Tensor:
        _, last = self.gru(packed._replace(data=self.embedding(packed.data)))
        scores: Tensor = self.head(last.transpose(0, 1).flatten(1))
        return scores


def packed() -> Outcome:
    """Sequences of many lengths in one batch."""
    generator = torch.Generator().manual_seed(0)
    batches: Batches = []
    for _ in range(50):
        lengths = torch.randint(4, 13, (32,), generator=generator)
        symbols = torch.randint(12, (12, 32), generator=generator)
        ends = symbols.gather(0, (lengths - 1)[None])[0]
        batches.append((pack_padded_sequence(symbols, lengths, enforce_sorted=False), ends % 3))
    train, val, test = batches[:30], batches[30:40], batches[40:]
    model = train_with(Gru(), train, F.cross_entropy, 15, 1e-2)
    before = score(model, test, correct_predictions)
    # the product
    import autocompress as ac

    result = ac.compress(model, train=train, val=val, target="3KB")
    # that was all
    return Outcome(
        "bi-GRU, packed sequences", "accuracy", before, score(result.model, test, correct_predictions), result
    )


def counting(count: int, seed: int) -> Tensor:
    """Returns sequences [n, 12] that rise by 1 to 3 at a time, modulo 12."""
    generator = torch.Generator().manual_seed(seed)
    first, step = (torch.randint(low, high, (count, 1), generator=generator) for low, high in ((0, 12), (1, 4)))
    return (first + step * torch.arange(12)) % 12


def next_token(model: nn.Module, rows: Tensor) -> float:
    """Returns the share of tokens from the third on that are predicted: the first two say what follows."""
    with torch.no_grad():
        found = model.eval()(rows).logits[:, 1:-1].argmax(-1)
    return float((found == rows[:, 2:]).float().mean())


def gpt2() -> Outcome:
    """A language model, in the `Trainer` that trained it."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    sizes: dict[str, Any] = {"vocab_size": 12, "n_positions": 12, "n_embd": 32, "n_layer": 2, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    rows, test = [{"input_ids": row, "labels": row} for row in counting(640, 1)], counting(128, 3)

    def trained(callbacks: list[Any]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            quiet: dict[str, Any] = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
            arguments = TrainingArguments(folder, num_train_epochs=12, learning_rate=3e-3, **quiet)
            Trainer(model, arguments, train_dataset=rows, callbacks=callbacks).train()

    trained([])
    before = next_token(model, test)
    # the product
    from autocompress.integrations.huggingface import AutoCompress

    compress = AutoCompress("10KB")
    trained(callbacks=[compress])
    # that was all
    assert compress.result is not None
    after = next_token(compress.result.model, test)
    return Outcome("tiny GPT-2 by `Trainer`", "next token", before, after, compress.result)


def bert() -> Outcome:
    """A classifier of sequences, by dicts or tensors."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "num_labels": 3,
    }
    model = BertForSequenceClassification(BertConfig(vocab_size=12, max_position_embeddings=12, **sizes))
    rows = counting(640, 1)
    targets = (rows[:, 1] - rows[:, 0]) % 12 - 1
    train, val, test = thirds(rows, targets)
    train_with(model, train, lambda output, target: F.cross_entropy(output.logits, target), 20, 2e-3)
    before = score(model, test, correct_predictions)
    # the product
    import autocompress as ac

    result = ac.compress(model, train=train, val=val, target="10KB", loss="cross_entropy")
    # that was all
    return Outcome("BERT classifier", "accuracy", before, score(result.model, test, correct_predictions), result)


def small_cnn() -> nn.Module:
    """Returns a network for images of 8 x 8 pixels."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def lightning_cnn() -> Outcome:
    """A network of images, in the Lightning module that trained it."""
    import lightning.pytorch as pl

    class Digits(pl.LightningModule):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.net = network

        def training_step(self, batch: Any, index: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=2e-3)

    train, val, test = thirds(*digits())
    loader = DataLoader(TensorDataset(torch.cat([x for x, _ in train]), torch.cat([y for _, y in train])), 32, True)
    module = Digits(train_with(small_cnn(), train, F.cross_entropy, 10))
    before = score(module.net, test, correct_predictions)
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "accelerator": "cpu",
    }
    # the product
    from autocompress.integrations.lightning import AutoCompress

    compress = AutoCompress("3KB", monitor="val_loss")
    trainer = pl.Trainer(max_epochs=10, callbacks=[compress], **quiet)
    # that was all
    trainer.fit(module, loader, DataLoader(TensorDataset(*(torch.cat(part) for part in zip(*val, strict=True))), 256))
    assert compress.result is not None
    after = score(compress.result.model, test, correct_predictions)
    return Outcome("CNN by Lightning", "accuracy", before, after, compress.result)


def mobilenet() -> Outcome:
    """A network of torchvision, on images in folders."""
    from PIL import Image
    from torchvision.models import mobilenet_v3_small

    from autocompress.task.named_data import load_data

    images, labels = digits()
    with tempfile.TemporaryDirectory() as folder:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            place = Path(folder) / str(int(label))
            place.mkdir(exist_ok=True)
            pixels = (255 * image[0]).byte().numpy()
            Image.fromarray(pixels).resize((32, 32)).convert("RGB").save(place / f"{number}.png")
        data = load_data(f"folder:{folder}?augment=none&normalize=half", batch_size=64)
        train, val, test = list(data.train), list(data.validation), list(data.test or [])
    model = train_with(mobilenet_v3_small(num_classes=10, width_mult=0.35), train, F.cross_entropy, 50)
    before = score(model, test, correct_predictions)
    # the product
    import autocompress as ac

    result = ac.compress(model, train=train, val=val, target="40KB", epochs=9)
    # that was all
    after = score(result.model, test, correct_predictions)
    return Outcome("MobileNetV3-small x0.35, image folder", "accuracy", before, after, result)


def vit() -> Outcome:
    """A transformer of images."""
    import timm

    train, val, test = thirds(*digits())
    sizes: dict[str, Any] = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 48, "depth": 3, "num_heads": 3}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, **sizes)
    train_with(model, train, F.cross_entropy, 40, 2e-3)
    before = score(model, test, correct_predictions)
    # the product
    import autocompress as ac

    result = ac.compress(model, train=train, val=val, target="20KB")
    # that was all
    return Outcome("ViT of timm, 3 blocks", "accuracy", before, score(result.model, test, correct_predictions), result)


def centred(output: Tensor, target: Tensor) -> Tensor:
    """Returns, per image, whether the centre that is found lies within a pixel of the face's."""
    return ((output[:, :2] - target[:, :2]) * 8).square().sum(1).sqrt() < 1


def detector() -> Outcome:
    """Finds the box of a face; without a loss it learns its own outputs."""
    images, _, faces = blobs(700)
    generator = torch.Generator().manual_seed(1)
    for image, (row, column, radius) in zip(images, faces, strict=True):  # two eyes
        for side in (-1, 1):
            r, c = int(row - radius / 3), int(column + side * radius / 2)
            image[0, r, c] = -1 + 0.2 * torch.randn((), generator=generator)
    train, val, test = thirds(images, (faces - 8) / 8)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 3),
    )
    train_with(model, train, F.mse_loss, 80, 2e-3)
    before = score(model, test, centred)
    # the product
    import autocompress as ac

    result = ac.compress(model, train=train, val=val, target="6KB")
    # that was all
    return Outcome("face box, on its own outputs", "centres found", before, score(result.model, test, centred), result)


class Speakers(nn.Module):
    """An LSTM encoder of utterances: vectors of length one."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 32, num_layers=2, batch_first=True)
        self.head = nn.Linear(32, 16)

    def forward(self, frames: Tensor) -> Tensor:
        _, (last, _) = self.lstm(frames)
        return F.normalize(self.head(last[-1]), dim=1)


def utterances(speakers: int, each: int, seed: int) -> Tensor:
    """Returns frames [speakers, each, 20, 12]: a spectrum and a rhythm of the speaker's own, with noise."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.randn(speakers, 1, 1, 12, generator=generator)
    rhythm = 1 + 4 * torch.rand(speakers, 1, 1, 1, generator=generator)
    phase = 6.3 * torch.rand(speakers, each, 1, 1, generator=generator)
    time_steps = torch.arange(20.0).view(1, 1, -1, 1) / 20
    clean = spectrum * (1 + torch.sin(6.3 * rhythm * time_steps + phase))
    return clean + 1.2 * torch.randn(clean.shape, generator=generator)


def speaker_loss(vectors: Tensor) -> Tensor:
    """Returns the cross-entropy of each utterance [speakers, each, d] among the mean vectors of the speakers."""
    centres = F.normalize(vectors.mean(1), dim=1)
    scores = 10 * vectors.flatten(0, 1) @ centres.T
    return F.cross_entropy(scores, torch.arange(len(vectors)).repeat_interleave(vectors.shape[1]))


@torch.no_grad()
def identified(model: nn.Module, voices: Tensor) -> float:
    """Returns how often the mean of half of a new speaker's utterances is nearest to one of the other half."""
    vectors = model.eval()(voices.flatten(0, 1)).view(*voices.shape[:2], -1)
    half = voices.shape[1] // 2
    centres = F.normalize(vectors[:, :half].mean(1), dim=1)
    found = (vectors[:, half:] @ centres.T).argmax(-1)
    return float((found == torch.arange(len(voices))[:, None]).float().mean())


def speaker_encoder() -> Outcome:
    """Vectors for voices, in a loop with a loss over whole batches."""
    voices, held, test = utterances(64, 10, 1), utterances(20, 10, 2), utterances(20, 10, 3)
    model, steps = Speakers(), 150

    def trained(after_step: Callable[[], None], optimizer: torch.optim.Optimizer) -> None:
        generator = torch.Generator().manual_seed(0)
        model.train()
        for _ in range(steps):
            chosen = voices[torch.randperm(64, generator=generator)[:16]]
            optimizer.zero_grad()
            loss = speaker_loss(model(chosen.flatten(0, 1)).view(16, 10, -1))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            after_step()

    trained(lambda: None, torch.optim.AdamW(model.parameters(), lr=5e-3))
    before = identified(model, test)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    # the product
    from autocompress import Compressor

    compressor = Compressor(model, optimizer, target="6KB", total_steps=steps)
    trained(compressor.step, optimizer)
    result = compressor.finish(evaluate=lambda network: identified(network, held))
    # that was all
    return Outcome("LSTM speaker encoder, own loop", "identified", before, identified(result.model, test), result)


def binary() -> Outcome:
    """One logit."""
    from sklearn import datasets

    inputs, labels = datasets.load_breast_cancer(return_X_y=True)
    train, val, test = thirds(standardized(inputs), torch.from_numpy(labels))

    def right(output: Tensor, target: Tensor) -> Tensor:
        return (output[:, 0] > 0) == (target > 0)

    model = nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 1))
    loss = nn.BCEWithLogitsLoss()
    train_with(model, train, lambda output, target: loss(output[:, 0], target.float()), 20)
    before = score(model, test, right)
    # the product
    import autocompress as ac

    result = ac.compress(model, train=train, val=val, target="500B", loss="bce_with_logits")
    # that was all
    return Outcome("one logit, breast cancer", "accuracy", before, score(result.model, test, right), result)


SITUATIONS: dict[str, Callable[[], Outcome]] = {
    "tabular MLP": tabular,
    "regression MLP": regression,
    "U-Net": segmentation,
    "bi-GRU": packed,
    "GPT-2": gpt2,
    "BERT": bert,
    "Lightning CNN": lightning_cnn,
    "MobileNetV3": mobilenet,
    "ViT": vit,
    "face detection": detector,
    "speaker encoder": speaker_encoder,
    "one logit": binary,
}


def product_lines(situation: Callable[[], Outcome]) -> int:
    """Returns how many lines of a situation are of the product: those between the two comments, but for the import."""
    source = inspect.getsource(situation)
    between = source[source.index(BEGIN_CODE) + len(BEGIN_CODE) : source.index(END_CODE)]
    lines = [line.strip() for line in between.splitlines() if line.strip()]
    return sum(not line.startswith(("import ", "from ")) for line in lines)


def run(name: str) -> dict[str, Any]:
    """Returns the record of a situation."""
    started = time.perf_counter()
    torch.manual_seed(0)
    outcome = SITUATIONS[name]()
    return {
        "situation": name,
        "network": outcome.network,
        "lines": product_lines(SITUATIONS[name]),
        "parameters": sum(parameter.numel() for parameter in outcome.result.model.parameters()),
        "target": str(outcome.result.target),
        "file_bytes": outcome.result.file_bytes,
        "metric": outcome.metric,
        "before": outcome.before,
        "after": outcome.after,
        "seconds": time.perf_counter() - started,
        "revision": revision(),
        "versions": versions(),
    }


def table(records: Sequence[dict[str, Any]]) -> str:
    """Returns the table as Markdown, the last record of each situation."""
    last = {record["situation"]: record for record in records}
    rows = [
        "| network | parameters | lines | asked | got | metric | before | after |",
        "|---|--:|--:|--:|--:|---|--:|--:|",
    ]
    for record in (last[name] for name in SITUATIONS if name in last):
        scores = " | ".join(f"{record[key]:.3f}" for key in ("before", "after"))
        size = f"`{record['target']}` | {record['file_bytes']:,} B"
        rows.append(
            f"| {record['network']} | {record['parameters']:,} | {record['lines']} | {size} | {record['metric']} "
            f"| {scores} |"
        )
    return "\n".join(rows) + "\n"


def write(page: Path = PAGE) -> None:
    """Puts the table into a page."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    page.write_text(before + START + table(load_records(RECORDS)) + END + rest.partition(END)[2], encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs situations, or prints their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("names", nargs="*", choices=[*SITUATIONS, []], metavar="NAME")
    showing = commands.add_parser("table")
    showing.add_argument("--write", action="store_true", help=f"into {PAGE.name}")
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    if asked.command == "table":
        write() if asked.write else print(table(load_records(RECORDS)))
        return
    for name in asked.names or SITUATIONS:
        record = run(name)
        add_record(RECORDS, record)
        print(table([record]).splitlines()[-1], f"{record['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
