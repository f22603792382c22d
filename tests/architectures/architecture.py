"""What is known of an architecture, and how it is tried."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.network.live_network import tensors_in
from autocompress.network.selection import original_bytes
from autocompress.solver.compression import compress
from autocompress.solver.result import Result
from autocompress.targets import FileSize
from autocompress.training.batches import forward
from autocompress.training.recipe import Recipe

ROOT = Path(__file__).parent.parent.parent
STEPS = 4
# The values do not matter here: one rate, so that none is looked for.
RECIPE = Recipe("adamw", 1e-3)


@dataclass(frozen=True)
class Architecture:
    """A small network and batches for it.

    Attributes:
        name: of the architecture.
        family: of such networks.
        make: returns the network.
        batch: returns a batch, drawn from torch's generator.
        about: what is unusual in it.
        target: of the compression.
        loss: of the compression; None: the default.
    """

    name: str
    family: str
    make: Callable[[], nn.Module]
    batch: Callable[[], Any]
    about: str = ""
    target: str = "20%"
    loss: Callable[[Any, Any], Tensor] | None = None

    def network(self, seed: int = 0) -> nn.Module:
        """Returns the network, the same at every call with the seed."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.make()

    @property
    def target_bytes(self) -> int:
        return FileSize(self.target).resolve(original_bytes(self.network()), 0)

    def batches(self, count: int, seed: int = 0) -> list[Any]:
        """Returns batches, the same at every call with the seed."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return [self.batch() for _ in range(count)]

    def compressed(self) -> Result:
        """Returns the network after a few steps of compression."""
        return compress(
            self.network(),
            train=self.batches(STEPS),
            val=self.batches(1, seed=1),
            target=self.target,
            loss=self.loss,
            epochs=1,
            recipe=RECIPE,
            device="cpu",
            progress=False,
        )

    def outputs(self, network: nn.Module) -> list[Tensor]:
        """Returns what a network gives for a batch, every tensor of it."""
        (batch,) = self.batches(1, seed=2)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(3)  # a network may draw
            output, _ = forward(network.eval(), batch)
        return [tensor.detach().clone() for tensor in tensors_in(output)]


ALL: dict[str, Architecture] = {}


def architecture(
    name: str, family: str, batch: Callable[[], Any], about: str = "", **more: Any
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Returns a decorator that adds the network which a function or class makes."""

    def add(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        assert name not in ALL
        ALL[name] = Architecture(name, family, make, batch, about, **more)
        return make

    return add


# A process that has seen nothing of the compression: network, file, outputs.
FRESH = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from architectures import ALL
from autocompress.codec.file import load
for name, file in zip(sys.argv[1::2], sys.argv[2::2]):
    network = load(file, into=ALL[name].network(seed=7))
    torch.save(ALL[name].outputs(network), f"{file}.outputs")
"""


def loaded_elsewhere(files: dict[str, Path]) -> Iterator[tuple[str, list[Tensor]]]:
    """Yields (name, outputs) of files that a fresh process has read into networks of its own, by architecture."""
    words = [str(word) for pair in files.items() for word in pair]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    outcome = subprocess.run([sys.executable, "-c", FRESH, *words], capture_output=True, text=True, env=environment)
    assert outcome.returncode == 0, outcome.stderr
    for name, file in files.items():
        yield name, torch.load(f"{file}.outputs")
