"""torch-pruning (an optional package): which channels of a network belong together, and the network without some."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from autocompress.errors import InvalidInputError
from autocompress.network.live_network import copy_network, tensors_in

# (module, "in" or "out", index along that side of the module, channel of the group), one entry per slice.
Member = tuple[str, str, list[int], list[int]]


def channel_groups(model: nn.Module, example: Any) -> list[list[Member]]:
    """Returns for each group of channels that can only go together where they are; the first entry is its root.

    Args:
        model: the network, on the device of the example; left as it was.
        example: what it takes.

    Raises:
        InvalidInputError: torch-pruning is not installed, or cannot trace the network.
    """
    model = _traceable_copy(model)
    graph = _graph(model, example)
    names = {id(module): name for name, module in model.named_modules()}
    roots = [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear]
    found = []
    for group in graph.get_all_groups(ignored_layers=[], root_module_types=roots):
        members = []
        for item in group:
            name = names.get(id(item.dep.target.module))
            if name is not None:
                side = "in" if item.dep.handler.__name__ == "prune_in_channels" else "out"
                members.append((name, side, [int(i) for i in item.idxs], [int(i) for i in item.root_idxs]))
        found.append(members)
    return found


def without_channels(model: nn.Module, example: Any, drops: Mapping[str, list[int]]) -> nn.Module:
    """Returns a copy of the network, physically smaller.

    Args:
        model: the network.
        example: what it takes.
        drops: of groups, by the name of their root: the channels that go.

    Raises:
        InvalidInputError: see `channel_groups`.
    """
    smaller = _traceable_copy(model)
    graph = _graph(smaller, example)
    for name, channels in drops.items():
        root = smaller.get_submodule(name)
        if channels:
            graph.get_pruning_group(root, graph.get_pruner_of_module(root).prune_out_channels, channels).prune()
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in smaller.named_parameters():
        parameter.requires_grad_(trained[name])
    return smaller


def _traceable_copy(model: nn.Module) -> nn.Module:
    """Returns a copy in evaluation mode whose parameters are all trained: torch-pruning follows their gradients."""
    copied = copy_network(model).eval()
    for parameter in copied.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return copied


def _graph(model: nn.Module, example: Any) -> Any:
    try:
        library = importlib.import_module("torch_pruning")
    except ImportError as error:
        raise InvalidInputError(
            "removing channels needs the package torch-pruning: pip install torch-pruning"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return library.DependencyGraph().build_dependency(
                model, example_inputs=example, output_transform=tensors_in
            )
    except Exception as error:  # whatever a traced network may raise
        raise InvalidInputError(f"torch-pruning cannot follow the channels of this network: {error}") from error
