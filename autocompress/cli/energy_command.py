"""`autocompress energy fit`: a bilinear model of a network's energy over its channels, fitted to measurements."""

from __future__ import annotations

from argparse import Namespace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.cli.console import check_output, percent, to_json
from autocompress.cli.file_commands import network_and_example, random_input
from autocompress.energy.channel_graph import ANALYTIC_SAMPLES, ChannelGraph
from autocompress.energy.channel_model import ChannelEnergy, fit_channel_energy, random_widths
from autocompress.energy.energy_meters import Meter, joules_per_call, make_meter
from autocompress.energy.network_energy import run_example
from autocompress.errors import InvalidInputError

MEASURED_SAMPLES = 60
# Fewer say nothing of the error on those held out.
FEWEST_SAMPLES = 10


def fit_command(options: Namespace) -> str:
    """Fits the model, writes `options.out` where it is given, and returns what was found.

    Raises:
        InvalidInputError: there is no such meter here, or the network's channels cannot be followed.
    """
    if options.out is not None:
        check_output(options.out, (".json",))
    samples = options.samples or (ANALYTIC_SAMPLES if options.meter == "analytic" else MEASURED_SAMPLES)
    if samples < FEWEST_SAMPLES:
        raise InvalidInputError(f"--samples is {samples}; it must be at least {FEWEST_SAMPLES}")
    meter = None if options.meter == "analytic" else make_meter(options.meter)
    model, example = network_and_example(options)
    if options.input_shape is not None:
        example = random_input(options.input_shape)
    if example is None:
        raise InvalidInputError(
            f"the inputs of {options.model!r} are not known; give --data, or their shape such as --input-shape 3,32,32"
        )
    if meter is None:
        fitted = ChannelGraph(model, example).fitted_energy(options.seed, samples)
    else:
        fitted = measured_energy(model.to(meter.device), example, meter, samples, options.batch, options.seed)
    if options.out is not None:
        fitted.save(options.out)
    if options.json:
        return to_json({"model": options.model, "meter": options.meter, "samples": samples, **vars(fitted)})
    groups = ", ".join(f"{name} ({count})" for name, count in zip(fitted.groups, fitted.channels, strict=True))
    where = f"written to {options.out}" if options.out is not None else "not kept: --out FILE writes it"
    return (
        f"groups of channels: {groups}\ndense energy: {fitted.dense:.6g} {fitted.unit}\n"
        f"held-out mean relative error: {percent(fitted.held_out_error)} of {samples} measurements\n{where}"
    )


def measured_energy(
    model: nn.Module, example: Tensor, meter: Meter, samples: int, batch: int, seed: int
) -> ChannelEnergy:
    """Returns the model fitted to joules per input, measured on physically smaller networks of random widths."""
    graph = ChannelGraph(model, example)
    channels = [group.channels for group in graph.groups]
    widths = random_widths(channels, samples, seed)
    inputs = torch.cat([example] * batch).to(meter.device)
    energies = []
    for row in widths.tolist():
        keep = [torch.arange(count) < width for count, width in zip(channels, row, strict=True)]
        smaller = graph.without(model, keep)
        energies.append(joules_per_call(meter, partial(run_example, smaller, inputs)) / batch)
    if min(energies) <= 0:
        raise InvalidInputError("the meter counted no energy at all: it is too coarse for this network; try --batch")
    names = [group.root for group in graph.groups]
    return fit_channel_energy(names, channels, graph.terms(), widths, np.array(energies), "J")
