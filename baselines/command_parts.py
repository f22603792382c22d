"""What the command lines of autocompress and of the baselines share, imported at one place."""

from __future__ import annotations

from argparse import Namespace

from torch import nn

from autocompress.console.options import DATA, MODEL
from autocompress.console.output import accuracy_lines, check_output, percent, to_json
from autocompress.console.start import starting_network
from autocompress.task import Task

__all__ = ["DATA", "MODEL", "accuracy_lines", "check_output", "percent", "reference", "to_json"]


def reference(task: Task, options: Namespace) -> nn.Module:
    """Returns the network that a search starts from."""
    progress = not options.no_progress
    return starting_network(task, options.weights, seed=options.seed, device=options.device, progress=progress)
