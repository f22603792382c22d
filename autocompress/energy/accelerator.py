"""The energy of one layer on a spatial accelerator: an analytic model that needs no device.

Weights and inputs come from memory by way of caches and registers to an array of 12 x 14 multipliers (constants in the
style of the Eyeriss chip; Yang et al. 2019, "Energy-constrained compression by model projection and input masking",
section 3). Energy is in units of one register access. A convolution with k weights that are not zero, P output
positions, d outputs and g groups takes

    weights   ceil(P / 12) k cache + P k register + (min(k, 4096) + ceil(P / 12) max(0, k - 4096)) memory + P k multiply
    inputs    |unfolded X| (ceil(d / 14 g) cache + ceil(d / g) register) + (|X| + fetched again + P d) memory

What does not fit into the cache of weights is fetched once for each of the array's passes; inputs are counted dense,
zeros in them save nothing. A linear layer over P positions is the same with a 1 x 1 kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

MULTIPLY, MEMORY, CACHE, REGISTER = 3.0, 200.0, 6.0, 1.0
INPUT_CACHE_WORDS, WEIGHT_CACHE_WORDS = 51_200, 4_096
ARRAY_ROWS, ARRAY_COLUMNS = 12, 14


@dataclass(frozen=True)
class WeightEnergy:
    """What the nonzero weights of a tensor cost: a convex function of their number.

    Attributes:
        each: energy of a weight that is not zero.
        overflow: what each one beyond the `WEIGHT_CACHE_WORDS` largest costs more.
    """

    each: float
    overflow: float

    def of(self, nonzeros: float) -> float:
        return self.each * nonzeros + self.overflow * max(0.0, nonzeros - WEIGHT_CACHE_WORDS)

    def __add__(self, other: WeightEnergy) -> WeightEnergy:
        """Returns what a tensor costs that is used in two places."""
        return WeightEnergy(self.each + other.each, self.overflow + other.overflow)


@dataclass(frozen=True)
class EnergyBudget:
    """What the nonzeros of some tensors may cost together.

    Attributes:
        costs: of each tensor.
        limit: most energy of all.
    """

    costs: tuple[WeightEnergy, ...]
    limit: float

    def used(self, nonzeros: Sequence[int]) -> float:
        return sum(cost.of(count) for cost, count in zip(self.costs, nonzeros, strict=True))

    def holds(self, nonzeros: Sequence[int]) -> bool:
        return self.used(nonzeros) <= self.limit

    def at(self, limit: float) -> EnergyBudget:
        return replace(self, limit=limit)


@dataclass(frozen=True)
class LayerShape:
    """One use of a convolution or a linear layer, for one example.

    Attributes:
        inputs, outputs: channels or features.
        positions: outputs per channel; 1 for a linear layer on a vector.
        kernel: taps per input channel, 1 for a linear layer.
        groups: of a convolution, else 1.
        input_size: positions of the input along each axis; () for a linear layer.
        overlap: rows that two bands of the input share: kernel less stride along the first axis, or 0.
    """

    inputs: int
    outputs: int
    positions: int
    kernel: int = 1
    groups: int = 1
    input_size: tuple[int, ...] = ()
    overlap: int = 0

    @property
    def weights(self) -> int:
        return self.outputs * (self.inputs // self.groups) * self.kernel

    def narrowed(self, inputs: int, outputs: int) -> LayerShape:
        """Returns the layer with other numbers of channels; a depthwise convolution stays one."""
        depthwise = self.groups == self.inputs > 1
        return replace(self, inputs=inputs, outputs=outputs, groups=inputs if depthwise else self.groups)

    def weight_energy(self) -> WeightEnergy:
        passes = math.ceil(self.positions / ARRAY_ROWS)
        each = MEMORY + passes * CACHE + self.positions * (REGISTER + MULTIPLY)
        return WeightEnergy(each, (passes - 1) * MEMORY)

    def activation_energy(self) -> float:
        """Returns what its inputs and outputs cost, however many weights are zero."""
        per_group = self.outputs / self.groups
        passes = math.ceil(per_group / ARRAY_COLUMNS)
        reads = self.inputs * self.kernel * self.positions * (passes * CACHE + math.ceil(per_group) * REGISTER)
        return reads + MEMORY * (self._fetched_inputs(passes) + self.outputs * self.positions)

    def energy(self) -> float:
        return self.weight_energy().of(self.weights) + self.activation_energy()

    def _fetched_inputs(self, passes: int) -> int:
        """Returns how many input words are fetched from memory, those that come twice counted twice."""
        if not self.input_size:
            beyond = max(0, self.inputs - INPUT_CACHE_WORDS)
            return self.positions * (min(self.inputs, INPUT_CACHE_WORDS) + passes * beyond)
        row = self.inputs * math.prod(self.input_size[1:])
        rows = self.input_size[0]
        held = max(INPUT_CACHE_WORDS // row, self.overlap + 1)  # rows that the cache holds at a time
        bands = math.ceil(max(1, rows - self.overlap) / (held - self.overlap))
        return row * (rows + (bands - 1) * self.overlap)
