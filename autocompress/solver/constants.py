"""Every constant of the method, in one place: none of them is set by a user, a study varies them as fields."""

from __future__ import annotations

from dataclasses import dataclass, fields

from autocompress.errors import InvalidInputError

LAZY, ADMM = "lazy", "admm"
BOTH, SCALAR, KERNEL = "both", "scalar", "kernel"
CHOICES = {"iteration": (LAZY, ADMM), "codebooks": (BOTH, SCALAR, KERNEL)}


@dataclass(frozen=True)
class SolverConstants:
    """The constants of a compression run; `docs/decisions.md` has the figures that each was chosen by.

    Attributes:
        iteration: "lazy" (lazy projection) or "admm" (Yang et al. 2020, with the path of budgets).
        updates: projections of a run, in which tables and multiplier are estimated anew, whatever its length.
        min_steps_per_update: ... but not more often than once in so many optimizer steps.
        pruned_rate: the part of the optimizer's move that reaches a weight which is zero in V ...
        memory_steps: ... and the steps in which it forgets all but 1/e of them: without effect on the loss it walks at
            random, and farther with every step that it remembers.
        idle_decay: what is left, after each update, of a weight whose gradient was exactly zero since the last.
        path_start: the budget begins at so many times the target ...
        path_fraction: ... and falls to it, geometrically, over this part of the steps before fine-tuning.
        path_ceiling: no budget on the path is above this part of the original float32 weights.
        fine_tuning_fraction: the last part of a run: assignments are fixed, codebook values and vectors are trained.
        fine_tuning_step: its peak step as a part of the root mean square of a layer's codebook.
        distillation_weight: in `compress`, where the loss is the default: the part of the loss that is the distance to
            the outputs of the network as it was given, in [0, 1].
        distillation_temperature: of that distance.
        codebooks: what a layer may have under a `codes:` target, codebooks of scalars, of kernels or either, whichever
            errs less; "both" together never err by more than one alone.
        admm_contraction: of "admm", the share of the distance from W to V - U that is taken back between two updates.
    """

    iteration: str = LAZY
    updates: int = 30
    min_steps_per_update: int = 3
    pruned_rate: float = 0.4
    memory_steps: float = 1000.0
    idle_decay: float = 0.5
    path_start: float = 8.0
    path_fraction: float = 0.5
    path_ceiling: float = 0.08
    fine_tuning_fraction: float = 0.1
    fine_tuning_step: float = 0.002
    distillation_weight: float = 0.5
    distillation_temperature: float = 2.0
    admm_contraction: float = 0.5
    codebooks: str = BOTH

    def __post_init__(self) -> None:
        for field in fields(self):
            value, known = getattr(self, field.name), CHOICES.get(field.name)
            if known and value not in known:
                raise InvalidInputError(f"{field.name} is {value!r}; it may be {' or '.join(map(repr, known))}")
            if not known and not value >= 0:
                raise InvalidInputError(f"{field.name} is {value!r}; it must be a number of at least 0")


DEFAULTS = SolverConstants()
