"""A Lightning training on digits, killed where it is told to: `lightning_digits.py FOLDER STEP [CHECKPOINT]`."""

import os
import signal
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from autocompress.integrations.lightning import AutoCompress

EPOCHS, BATCH = 3, 64


class Digits(pl.LightningModule):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = make_net(width)

    def training_step(self, batch, index):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index):
        logits = self.net(batch[0])
        self.log("val_loss", F.cross_entropy(logits, batch[1]))
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        steps = self.trainer.estimated_stepping_batches
        return [optimizer], [
            {"scheduler": torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, steps), "interval": "step"}
        ]


def make_net(width: int = 8) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(16 * width, 10),
    )


def loaders() -> tuple[DataLoader, DataLoader]:
    images, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)
    train, val = TensorDataset(inputs[:320], targets[:320]), TensorDataset(inputs[1400:], targets[1400:])
    return DataLoader(train, BATCH, shuffle=True), DataLoader(val, 256)


class Killed(pl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def fit(
    folder: Path,
    callback: AutoCompress,
    *others: pl.Callback,
    resume=None,
    module: pl.LightningModule | None = None,
    **trainer,
) -> pl.LightningModule:
    """Returns the module of a training with the callback."""
    pl.seed_everything(0)
    module = module or Digits()
    settings = {"max_epochs": EPOCHS, "accelerator": "cpu", "enable_progress_bar": False, "logger": False}
    pl.Trainer(
        callbacks=[callback, *others], default_root_dir=folder, enable_model_summary=False, **(settings | trainer)
    ).fit(module, *loaders(), ckpt_path=resume)
    return module


def checkpoints(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, monitor="val_loss")


if __name__ == "__main__":
    folder, step, *resume = Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
    compress = AutoCompress("2KB", folder / "net.safetensors")
    devices = int(os.environ.get("DEVICES", "1"))
    several = {"devices": devices, "strategy": "ddp"} if devices > 1 else {}
    fit(folder, compress, checkpoints(folder), Killed(step), resume=resume[0] if resume else None, **several)
    (folder / f"rank{os.environ.get('LOCAL_RANK', '0')}").write_bytes(compress.result.data)
