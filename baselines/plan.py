"""A plan: how much of each layer is kept and how many values it may take. What a searcher proposes and a table prints.

The compressor finds one by itself; `Plan.of` reads it off. A plan that is given is applied by `Plan.apply` with the
same pruning and the same codebooks as the compressor's weight-data projection, only with both numbers fixed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor

from autocompress.constraints.weight_bits import project_plan
from autocompress.errors import InvalidInputError
from autocompress.network.compressed_tensors import QuantizedTensor, WeightTensor, scalar_tensors


@dataclass(frozen=True)
class LayerPlan:
    """What is left of one weight tensor.

    Attributes:
        keep_fraction: of its weights, in [0, 1]; at least one weight is kept.
        codebook: number of nonzero values it may take, 1 to 256.
    """

    keep_fraction: float
    codebook: int

    @property
    def bits(self) -> int:
        """Index width of a nonzero: max(1, ceil(log2(codebook)))."""
        return max(1, math.ceil(math.log2(self.codebook))) if self.codebook else 1


@dataclass(frozen=True)
class Plan:
    """One `LayerPlan` for each compressed tensor of a network.

    Attributes:
        layers: by state_dict name, read-only, in the order of the network.
    """

    layers: Mapping[str, LayerPlan]

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", MappingProxyType(dict(self.layers)))

    @classmethod
    def of(cls, quantized: Mapping[str, WeightTensor]) -> Plan:
        """Returns the plan that compressed tensors follow, such as `result.state.quantized`.

        Raises:
            InvalidInputError: one has a codebook of kernels, which no plan speaks of.
        """
        scalar = zip(quantized, scalar_tensors(list(quantized.values())), strict=True)
        return cls({n: LayerPlan(c.nonzeros / max(c.codes.numel(), 1), len(c.values)) for n, c in scalar})

    def apply(
        self, weights: Iterable[tuple[str, Tensor]], starts: Sequence[Tensor] | None = None
    ) -> list[QuantizedTensor]:
        """Returns each tensor with its largest weights kept, as values fitted to them by k-means.

        Args:
            weights: (name, floating tensor of any shape with elements), exactly the layers of the plan.
            starts: values of each tensor that k-means begins from, where there are as many as it may take.

        Raises:
            InvalidInputError: a layer that is not in the plan, one of the plan that is not there, or numbers out of
                their ranges.
        """
        weights = list(weights)
        names = {name for name, _ in weights}
        if names != set(self.layers):
            missing, unknown = sorted(names - set(self.layers)), sorted(set(self.layers) - names)
            raise InvalidInputError(
                f"the plan is of another network: it lacks {missing or 'nothing'}, and names {unknown or 'nothing'} "
                "that the network does not have"
            )
        plans = [(tensor, self.layers[name]) for name, tensor in weights]
        begin: Sequence[Tensor | None] = starts or [None] * len(plans)
        return [
            project_plan(tensor, layer.keep_fraction, layer.codebook, start)
            for (tensor, layer), start in zip(plans, begin, strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        return {name: {"keep_fraction": p.keep_fraction, "codebook": p.codebook} for name, p in self.layers.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Mapping[str, Any]]) -> Plan:
        """Returns the plan that `to_json` wrote.

        Raises:
            InvalidInputError: it is not of that form.
        """
        try:
            return cls({str(n): LayerPlan(float(p["keep_fraction"]), int(p["codebook"])) for n, p in data.items()})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidInputError(
                f"not a plan ({error!r}); it is an object {{layer: {{keep_fraction, codebook}}}}"
            ) from error
