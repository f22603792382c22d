"""A LightningModule for handwritten digits, compressed while Lightning fits it.

python examples/lightning_digits.py --out digits.safetensors
"""

from __future__ import annotations

import argparse

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from own_loop import loaders, make_network

import autocompress as ac
from autocompress.integrations.lightning import AutoCompress


class Digits(pl.LightningModule):
    """A network, its loss and what is said of it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make_network()

    def training_step(self, batch, index):
        """Returns the loss of a batch."""
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index):
        """Logs loss and accuracy."""
        scores = self.net(batch[0])
        self.log("val_loss", F.cross_entropy(scores, batch[1]))
        self.log("val_acc", (scores.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        """Returns the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main() -> None:
    """Trains, then fits once more with the callback; checkpoints would hold its state as well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--target", default="2KB")
    parser.add_argument("--epochs", type=int, default=10)
    asked = parser.parse_args()
    pl.seed_everything(0)
    module, settings = Digits(), {"max_epochs": asked.epochs, "logger": False, "enable_checkpointing": False}
    pl.Trainer(**settings).fit(module, *loaders())

    compress = AutoCompress(asked.target, asked.out, monitor="val_loss")
    trainer = pl.Trainer(callbacks=[compress], **settings)
    trainer.fit(module, *loaders())

    ac.load(asked.out, into=Digits(), prefix="net")  # into the network of a module
    network = ac.load(asked.out, into=make_network())  # or alone
    images, labels = loaders()[1].dataset.tensors
    accuracy = float((network(images).argmax(1) == labels).float().mean())
    print(f"{asked.out}: {compress.result.file_bytes} bytes, {accuracy:.3f} on the digits kept from training")


if __name__ == "__main__":
    main()
