"""A Trainer on sequences that count, killed where it is told to: `huggingface_tokens.py FOLDER STEP begin|resume`."""

import os
import signal
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers import default_data_collator as collate

from autocompress.integrations.huggingface import AutoCompress

SYMBOLS, LENGTH = 12, 8


def sequences(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Returns sequences of numbers that rise by 1 to 3 at a time, modulo the number of symbols."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(SYMBOLS, (count, 1), generator=generator)
    step = torch.randint(1, 4, (count, 1), generator=generator)
    return [{"input_ids": row, "labels": row} for row in (first + step * torch.arange(LENGTH)) % SYMBOLS]


def validation() -> DataLoader:
    return DataLoader(sequences(64, 2), 64, collate_fn=collate)


def make_model() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=SYMBOLS, n_positions=LENGTH, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config)


class Killed(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder: Path, *callbacks: TrainerCallback, resume: bool = False, model=None, data=None, **arguments):
    """Returns the model of a training with these callbacks."""
    set_seed(0)
    model = model or make_model()
    settings = {"num_train_epochs": 1, "per_device_train_batch_size": 16, "learning_rate": 1e-2, "save_steps": 6}
    quiet = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "logging_steps": 1000}
    trainer = Trainer(
        model,
        TrainingArguments(str(folder), **(settings | quiet | arguments)),
        train_dataset=data or sequences(160, 1),
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=resume or None)
    return model


if __name__ == "__main__":
    folder, step, resume = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "resume"
    compress = AutoCompress("4KB", folder / "small", val=validation())
    train(folder, compress, Killed(step), resume=resume)
    (folder / f"rank{os.environ.get('LOCAL_RANK', '0')}").write_bytes(compress.result.data)
