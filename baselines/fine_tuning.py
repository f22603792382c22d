"""Training under a plan: which weights are kept and how many values each layer has is fixed, everything else learns.

The network holds what the file would hold: each kept weight is the codebook value nearest to a latent of its own. The
optimizer's step on the value is applied to the latent (straight-through), and the codebooks are fitted to the latents
anew as often as the compressor projects in a run. The last part of the run is the compressor's own finishing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from autocompress.constraints.constraint import Network
from autocompress.errors import TrainingDivergedError
from autocompress.numerics.kmeans import encode, fit_codebook, sort_values
from autocompress.solver.fine_tuning import Finishing, finishing_steps, start_finishing
from autocompress.training.checkpoint import Callback
from autocompress.training.trainer import Trainer
from baselines.fitting import Fitted
from baselines.interface import Values

# As often as the compressor updates V in a run.
REFITS_PER_RUN = 60


class PlanTuning(Callback):
    """Keeps a network under a plan while a trainer trains it.

    Attributes:
        fitted: the plan, its masks and its writer.
        finishing: the last phase once it has begun, else None.
    """

    def __init__(self, fit: Callable[[], Fitted], values: Values, network: Network, total_steps: int) -> None:
        """Projects the network onto the plan.

        Args:
            fit: returns the plan fitted to the network's present weights.
            values: what was proposed: tells whether a state that is loaded was trained under the same plan.
            network: what is compressed; its parameters are overwritten.
            total_steps: optimizer steps of the whole run.
        """
        self.fit, self.values, self.network, self.total_steps = fit, dict(values), network, total_steps
        self.tuning_steps = total_steps - finishing_steps(total_steps)
        self.steps_per_refit = max(1, self.tuning_steps // REFITS_PER_RUN)
        self.steps = 0
        self.finishing: Finishing | None = None
        self.latents = [weight.detach().float().clone() for weight in network.weights]
        self._take(fit())

    def _take(self, fitted: Fitted) -> None:
        self.fitted = fitted
        self.masks = [c.codes.to(w.device) != 0 for c, w in zip(fitted.coded, self.latents, strict=True)]
        sizes = [layer.codebook for layer in fitted.plan.layers.values()]
        self.sizes = [max(size, 1) for size in sizes]
        self.codebooks = [c.values.to(w.device) for c, w in zip(fitted.coded, self.latents, strict=True)]
        self._write()

    @torch.no_grad()
    def _write(self) -> None:
        """Puts the values nearest to the latents into the network."""
        self.written: list[Tensor] = []
        for weight, latent, mask, values in zip(
            self.network.weights, self.latents, self.masks, self.codebooks, strict=True
        ):
            dense = torch.zeros_like(latent)
            if values.numel():
                nearest = torch.bucketize(latent[mask], (values[:-1] + values[1:]) / 2)
                dense[mask] = values[nearest]
            weight.copy_(dense)
            self.written.append(dense)

    @torch.no_grad()
    def _refit(self) -> None:
        """Fits the codebooks to the latents, from where they are."""
        for number, (latent, mask, size) in enumerate(zip(self.latents, self.masks, self.sizes, strict=True)):
            kept = latent[mask]
            if not bool(torch.isfinite(kept).all()):
                name = self.network.selection.weights[number][0]
                raise TrainingDivergedError(f"{name} became NaN or infinite: the training diverged")
            if kept.numel() and self.codebooks[number].numel():
                centroids = fit_codebook(sort_values(kept), size, self.codebooks[number]).centroids
                self.codebooks[number] = encode(latent, mask, centroids).values

    @torch.no_grad()
    def on_step(self, trainer: Trainer) -> None:
        """Follows the optimizer's step: moves the latents, and puts their nearest values back."""
        self.steps += 1
        if self.finishing is None and self.steps > self.tuning_steps:
            self._start_finishing()
        if self.finishing is not None:
            self.finishing.step()
            return
        for weight, latent, mask, written in zip(
            self.network.weights, self.latents, self.masks, self.written, strict=True
        ):
            latent += (weight.detach() - written) * mask
        if self.steps % self.steps_per_refit == 0:
            self._refit()
        self._write()
        if self.steps == self.tuning_steps:
            self._start_finishing()

    def _start_finishing(self) -> None:
        self._refit()
        coded = [
            encode(latent, mask, values) if values.numel() else kept
            for latent, mask, values, kept in zip(
                self.latents, self.masks, self.codebooks, self.fitted.coded, strict=True
            )
        ]
        steps = max(1, self.total_steps - self.steps)
        self.finishing = start_finishing(self.network, coded, self.fitted.writer, steps)

    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        """Returns the latents of all weights, also of those that are not kept, and where the run is."""
        latents = self.latents
        if self.finishing is not None:
            current = [weight.detach().float() for weight in self.network.weights]
            latents = [torch.where(m, w, v) for m, w, v in zip(self.masks, current, latents, strict=True)]
        return {
            "values": self.values,
            "steps": self.steps,
            "latents": [latent.clone(memory_format=torch.contiguous_format) for latent in latents],
            "masks": self.masks,
            "codebooks": self.codebooks,
            "finishing": None if self.finishing is None else self.finishing.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state, under the plan of this run: where it is another, the latents are projected anew."""
        self.steps = state["steps"]
        self.latents = [s.clone().to(w.device) for s, w in zip(state["latents"], self.latents, strict=True)]
        if state["values"] != self.values:
            for weight, latent in zip(self.network.weights, self.latents, strict=True):
                weight.copy_(latent)
            self._take(self.fit())
            return
        self.masks = [mask.to(w.device) for mask, w in zip(state["masks"], self.latents, strict=True)]
        self.codebooks = [values.to(w.device) for values, w in zip(state["codebooks"], self.latents, strict=True)]
        self._write()
        if state["finishing"] is not None:
            self.finishing = Finishing.from_state_dict(self.network.weights, self.network.sides, state["finishing"])
