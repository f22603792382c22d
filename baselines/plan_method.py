"""A proposal as the compressor's own solver meets it: a projection like that of any target.

So a search and the compressor train by the same iteration, with the same path of the budget, the same fine-tuning and
the same choice between candidates; they differ in who decides how much of each layer is kept, and in nothing else.
Masks and codebooks are those of the weights at each projection, as in gradual pruning, not of the network as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from autocompress.constraints.constraint import FileWriter, Method, Network, Projection, Rule, relative_error
from autocompress.constraints.weight_bits import squared_error
from autocompress.network.compressed_tensors import (
    CompressedState,
    QuantizedTensor,
    VectorGrid,
    WeightTensor,
    quantized_tensor,
    scalar_tensors,
)
from autocompress.network.selection import original_bytes
from autocompress.solver.constants import SolverConstants, budget_on_path
from baselines.fitting import Budget, Fitted
from baselines.gradual import cubic_schedule
from baselines.interface import Values
from baselines.plan import LayerPlan, Plan
from baselines.repair import to_border
from baselines.space import GradualSpace, MultiplierSpace, PathSpace, PlanSpace

HEADROOM = 1.05
# The part of the steps before fine-tuning in which gradual pruning comes to its sparsity.
PRUNED_BY = 0.5


class PlanMethod:
    """Keep fractions and codebook sizes; a method of the compressor's.

    Attributes:
        fitted: the proposal at the border of the budget, for the weights that it was last repaired on.
    """

    def __init__(
        self, network: Network, budget: Budget, space: PathSpace, values: Values, constants: SolverConstants
    ) -> None:
        """Takes a proposal; it is repaired at its first projection and at its last."""
        self.network, self.budget, self.space, self.values, self.constants = network, budget, space, values, constants
        self.names = [name for name, _ in network.selection.weights]
        # In units of the target: no budget on the path is above it.
        weights = sum(weight.numel() for weight in network.weights)
        whole = original_bytes(network.model) if budget.unit == "bytes" else 32 * weights
        self.ceiling = max(1.0, constants.path_ceiling * whole / max(budget.limit, 1))
        self.fitted: Fitted | None = None
        self.codebooks: list[Tensor] | None = None
        self.writer: FileWriter | None = None

    def project(self, weights: Sequence[Tensor], points: Sequence[Tensor], fraction: float) -> Projection:
        """Returns the weights under the plan of this moment: looser at first, by the path of the budget."""
        if self.fitted is None:
            self._repair(points, exact=False)
        assert self.fitted is not None
        plan = self.space.path(self.values, self._named(points), self.budget)(self.fitted.place)
        loose = Plan({name: self._loosened(layer, fraction) for name, layer in plan.layers.items()})
        return self._projected(loose.apply(self._named(points), self.codebooks), points)

    def _loosened(self, layer: LayerPlan, fraction: float) -> LayerPlan:
        """Returns the plan of a layer at a moment of the run."""
        looser = budget_on_path(1.0, self.ceiling, fraction, self.constants)
        return replace(layer, keep_fraction=min(1.0, layer.keep_fraction * looser))

    def rules(self) -> Sequence[Rule] | None:
        """Returns None: between two projections V follows by magnitude."""
        return None

    def project_last(self, weights: Sequence[Tensor], points: Sequence[Tensor]) -> Projection:
        return self._projected(self._repair(points).quantized, points)

    def fit(self, quantized: Sequence[WeightTensor], vectors: Mapping[str, Tensor]) -> tuple[CompressedState, bytes]:
        return self._writer.fit(quantized, vectors)

    def vector_grids(self, vectors: Mapping[str, Tensor]) -> dict[str, VectorGrid]:
        return self._writer.vector_grids(vectors)

    @property
    def _writer(self) -> FileWriter:
        assert self.writer is not None
        return self.writer

    def _named(self, points: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
        return list(zip(self.names, points, strict=True))

    def _repair(self, points: Sequence[Tensor], exact: bool = True) -> Fitted:
        named = self._named(points)
        place = 0.0 if self.fitted is None else self.fitted.place
        plan_at = self.space.path(self.values, named, self.budget)
        self.fitted = to_border(plan_at, named, self.budget, place, self.codebooks, exact)
        self.writer = self.fitted.writer
        return self.fitted

    def _projected(self, quantized: list[QuantizedTensor], points: Sequence[Tensor]) -> Projection:
        self.codebooks = [tensor.values for tensor in quantized]
        error = squared_error(quantized, points)
        return Projection(quantized, None, error, relative_error(error, points), 0.0)

    def state_dict(self) -> dict[str, Any]:
        fitted = self.fitted
        return {
            "values": dict(self.values),
            "place": None if fitted is None else fitted.place,
            "plan": None if fitted is None else fitted.plan.to_json(),
            "size": 0 if fitted is None else fitted.size,
            "codebooks": self.codebooks,
            "writer": None if self.writer is None else self.budget.writer_state(self.writer),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned; of another proposal, from whose weights a run goes on, nothing."""
        if state["values"] != dict(self.values) or state["place"] is None:
            return
        self.codebooks, self.writer = (
            state["codebooks"],
            (None if state["writer"] is None else self.budget.writer_of(state["writer"])),
        )
        self.fitted = Fitted([], Plan.from_json(state["plan"]), state["size"], self.writer, state["place"])


class GradualMethod(PlanMethod):
    """Keep fractions that fall from 1 by the cubic schedule; nothing is quantized before the last projection."""

    def _loosened(self, layer: LayerPlan, fraction: float) -> LayerPlan:
        share = min(1.0, fraction / PRUNED_BY)
        # One value: only the mask is used. What the estimate had too few of could not come back in the end.
        return LayerPlan(cubic_schedule(min(1.0, HEADROOM * layer.keep_fraction), share), 1)

    def _projected(self, quantized: list[QuantizedTensor], points: Sequence[Tensor]) -> Projection:
        found = super()._projected(quantized, points)
        self.codebooks = None
        return found


@dataclass(frozen=True)
class _ScaledTables:
    """The rule of a layer whose weights are scaled for its projection."""

    inner: Rule
    scale: float

    def assign(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        index, values = self.inner.assign(weights * self.scale)
        return index, values / self.scale


class MultiplierMethod:
    """The compressor's own method, each layer's error multiplied by scale^2."""

    def __init__(self, inner: Method, values: Values, scales: Sequence[float]) -> None:
        self.inner, self.values, self.scales = inner, values, list(scales)

    def project(self, weights: Sequence[Tensor], points: Sequence[Tensor], fraction: float) -> Projection:
        return self._unscaled(self.inner.project(weights, self._scaled(points), fraction), points)

    def rules(self) -> list[_ScaledTables] | None:
        rules = self.inner.rules()
        if rules is None:
            return None
        return [_ScaledTables(rule, scale) for rule, scale in zip(rules, self.scales, strict=True)]

    def project_last(self, weights: Sequence[Tensor], points: Sequence[Tensor]) -> Projection:
        return self._unscaled(self.inner.project_last(weights, self._scaled(points)), points)

    def fit(self, quantized: Sequence[WeightTensor], vectors: Mapping[str, Tensor]) -> tuple[CompressedState, bytes]:
        return self.inner.fit(quantized, vectors)

    def vector_grids(self, vectors: Mapping[str, Tensor]) -> dict[str, VectorGrid]:
        return self.inner.vector_grids(vectors)

    def _scaled(self, points: Sequence[Tensor]) -> list[Tensor]:
        return [target * scale for target, scale in zip(points, self.scales, strict=True)]

    def _unscaled(self, found: Projection, points: Sequence[Tensor]) -> Projection:
        quantized = [
            quantized_tensor(tensor.codes, tensor.values / scale)
            for tensor, scale in zip(scalar_tensors(found.quantized), self.scales, strict=True)
        ]
        error = squared_error(quantized, points)
        return Projection(quantized, None, error, relative_error(error, points), found.multiplier, found.greedy)

    def state_dict(self) -> dict[str, Any]:
        return {"values": dict(self.values), "inner": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the inner state, a warm start also where the multipliers are others."""
        self.inner.load_state_dict(state["inner"])


def make_plan_method(
    network: Network, budget: Budget, space: PlanSpace, values: Values, constants: SolverConstants
) -> Method:
    """Returns the method that meets a target under a proposal."""
    if isinstance(space, MultiplierSpace):
        return MultiplierMethod(budget.method(constants), values, space.scales(values))
    if isinstance(space, GradualSpace):
        return GradualMethod(network, budget, space, values, constants)
    return PlanMethod(network, budget, space, values, constants)
