"""L-C: the network w, its compressed form theta, the multipliers lambda, and the two kinds of step between them.

    minimise  loss(w)   subject to   w = delta(theta)                     (Carreira-Perpinan 2017; Joseph et al. 2020)

    L   w      <- argmin  loss(w) + mu/2 ||w - delta(theta)||^2 - <lambda, w - delta(theta)>       steps of SGD
    C   theta  <- pi(w - lambda / mu)
        lambda <- lambda - mu (w - delta(theta));   mu <- mu * factor

With lambda = -mu U and constant mu this is ADMM as `autocompress.solver.admm` has it. There the proximal step comes
after the optimizer's, here it is in the gradient; there U stays when rho changes, here lambda does.

| symbol | here | shape |
|---|---|---|
| w | `weights`, the parameters being trained | any, per layer |
| delta(theta) | `decompressed` | as w |
| lambda | `multipliers` | as w |
| mu | `mu`, 0 before the first C step, which compresses directly | |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from baselines.condensa.schemes import Scheme

MU_CAP = 1e4  # the published largest penalty


class LearnCompress:
    """The state of the splitting and its two moves; knows nothing of losses and schedules."""

    def __init__(self, weights: Mapping[str, Tensor], scheme: Scheme, mu: float, factor: float) -> None:
        """Compresses the weights directly: the C step at mu = 0.

        Args:
            weights: the parameters by name; not changed here.
            scheme: gives pi and delta.
            mu: penalty of the first L step.
            factor: growth of the penalty at each C step, 1 for none.
        """
        self.weights, self.scheme, self.factor = dict(weights), scheme, factor
        self.mu = mu
        self.multipliers = {name: torch.zeros_like(w) for name, w in self.weights.items()}
        self.decompressed = self._projected({name: w.detach() for name, w in self.weights.items()})

    @torch.no_grad()
    def penalize(self) -> None:
        for name, weight in self.weights.items():
            penalty = self.mu * (weight - self.decompressed[name]) - self.multipliers[name]
            weight.grad = penalty if weight.grad is None else weight.grad.add_(penalty)

    @torch.no_grad()
    def compress(self) -> None:
        """Takes a C step: theta, then lambda at the present mu, then mu."""
        self.decompressed = self._projected(
            {n: w.detach() - self.multipliers[n] / self.mu for n, w in self.weights.items()}
        )
        for name, weight in self.weights.items():
            self.multipliers[name] -= self.mu * (weight - self.decompressed[name])
        self.mu = min(self.mu * self.factor, MU_CAP)

    def _projected(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        decompressed = self.scheme.decompress(self.scheme.compress(weights))
        return {name: tensor.to(self.weights[name]) for name, tensor in decompressed.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"mu": self.mu, "decompressed": self.decompressed, "multipliers": self.multipliers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mu = state["mu"]
        for mine, saved in ((self.decompressed, state["decompressed"]), (self.multipliers, state["multipliers"])):
            for name, tensor in mine.items():
                mine[name] = saved[name].to(tensor)
