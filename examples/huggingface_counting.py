"""A tiny GPT-2 that learns to count, compressed while Hugging Face's Trainer trains it.

python examples/huggingface_counting.py --out small
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, default_data_collator, set_seed

from autocompress.integrations.huggingface import AutoCompress, load_pretrained


def sequences(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Returns sequences of twelve numbers that rise by 1 to 3 at a time, modulo 12."""
    generator = torch.Generator().manual_seed(seed)
    first, step = (torch.randint(low, high, (count, 1), generator=generator) for low, high in ((0, 12), (1, 4)))
    return [{"input_ids": row, "labels": row} for row in (first + step * torch.arange(12)) % 12]


def main() -> None:
    """Trains from scratch for half of the epochs, compresses in the other half."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="a folder")
    parser.add_argument("--target", default="10KB")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--examples", type=int, default=640)
    asked = parser.parse_args()
    set_seed(0)
    sizes = {"vocab_size": 12, "n_positions": 12, "n_embd": 32, "n_layer": 1, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    compress = AutoCompress(asked.target, asked.out)
    for callbacks in ([], [compress]):
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder, num_train_epochs=asked.epochs / 2, learning_rate=3e-3, report_to=[], save_strategy="no"
            )
            data = sequences(asked.examples, 1)
            trainer = Trainer(
                model, arguments, train_dataset=data, data_collator=default_data_collator, callbacks=callbacks
            )
            trainer.train()

    network = load_pretrained(asked.out)
    rows = torch.stack([each["input_ids"] for each in sequences(64, 2)])
    right = network(rows).logits[:, 1:-1].argmax(-1) == rows[:, 2:]
    print(
        f"{asked.out}: {compress.result.file_bytes} bytes, {float(right.float().mean()):.3f} of the next numbers right"
    )


if __name__ == "__main__":
    main()
