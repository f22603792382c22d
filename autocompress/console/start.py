"""The trained network that a command starts from."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from autocompress.models.weights import load_weights
from autocompress.task import Task
from autocompress.training.reference import reference_network


def starting_network(
    task: Task, weights: Path | None, *, seed: int, device: str | None = None, progress: bool = True
) -> nn.Module:
    """Returns the task's network with the weights of a file, or trained, or taken from where it was kept.

    Args:
        task: the network and its data.
        weights: a .safetensors or .pt state_dict; None = its reference network.
        seed: of the training of the reference.
        device: where it is trained; default: CUDA where there is one.
        progress: a bar on stderr, where that is a terminal.

    Raises:
        InvalidInputError: the file does not hold this network.
    """
    if weights is None:
        return reference_network(task, seed=seed, device=device, progress=progress)[0]
    model = task.make_model()
    load_weights(model, weights)
    return model
