"""A constraint on the quality of the network: the size of the file is searched for, while it trains.

While W and V are trained, V is scored on held-out data after every update and a controller moves the budget. Then the
rest of the steps is spent in stages of fine-tuning: each takes the dense network up again, projects it onto a size,
trains the values of that assignment, writes the file and scores it; whether the constraint is satisfied decides over
the next size.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.constraints.constraint import Method, Network, Projection, Projector
from autocompress.constraints.file_size import FileBudget, FileSizeConstraint, FileState
from autocompress.errors import InvalidInputError
from autocompress.network.compressed_tensors import WeightTensor
from autocompress.network.live_network import copy_network
from autocompress.network.network_state import vector_tensors
from autocompress.solver.budget_controller import MEDIAN_OF, BudgetController, SizeSearch
from autocompress.solver.phases import FineTuningPhase, Phase, ProjectionPhase, Run
from autocompress.solver.result import ONE_SHOT, TRAINED, Candidate, Candidates, Key
from autocompress.targets import AccuracyDrop, QualityTarget

logger = logging.getLogger(__name__)

# The last part of a run, in which sizes are tried, and in how many stages.
SEARCH_FRACTION = 0.2
STAGES = 5
# How much more than the promise allows V may fall, as a part of it: what fine-tuning gives back. Twice as much while
# the learning rate is at its peak.
ALLOWANCE = 0.5
# The first budget is the smallest at which V, at once and untrained, falls by so many times what the promise allows...
START_VIOLATION = 5.0
# ... as this many halvings of the range find it.
FIRST_TRIES = 6
# A network without weights that scores better than the one that was given by more than this part says that the score is
# of the other direction; at chance the two score about the same.
DIRECTION_TOLERANCE = 0.25
# The range goes up to the ceiling of all paths, but at least to this many times the smallest file.
MIN_CEILING = 4.0
# Without training sizes are tried until two that differ by no more than this factor are on either side of the promise.
RESOLUTION = 1.05
# ... until one keeps it they grow by this factor.
STRIDE = 3.0


class QualitySearch:
    """Moves the budget of the file size to where the constraint on the quality is just satisfied.

    Attributes:
        reference: score of the network as it was given.
        files: all that were written and scored.
    """

    def __init__(
        self,
        target: QualityTarget,
        network: Network,
        method: Projector[FileState],
        original_bytes: int,
        evaluate: Callable[[nn.Module], float],
        refit: Callable[[nn.Module], None] | None = None,
    ) -> None:
        """Scores the reference.

        Args:
            target: the constraint on the quality.
            network: as it was given.
            method: of a `FileSizeConstraint`: its budget is moved from here on, and is at first the largest allowed.
            original_bytes: of the network.
            evaluate: score of a network on held-out data.
            refit: sets a network's batch norm statistics to its weights.

        Raises:
            InvalidInputError: the reference's score is one that nothing can be promised about.
        """
        self.target, self.network, self.method = target, network, method
        assert isinstance(method.constraint, FileSizeConstraint)
        self.constraint = method.constraint
        self.evaluate, self.refit = evaluate, refit or _no_refit
        self.reference = float(evaluate(copy_network(network.model).eval()))
        target.check_reference(self.reference)
        self._check_direction()
        lowest, highest = self.constraint.file.smallest, self.constraint.budget_bytes
        most = max(self.constraint.constants.path_ceiling * original_bytes, MIN_CEILING * lowest)
        self.controller = BudgetController(most, lowest, highest)
        self.search = SizeSearch(most, lowest, highest)
        self.files = Candidates(network.model, evaluate, self._key)
        self.margins: list[float] = []  # the last of V, with nothing allowed
        self.stage_keeps = False
        self.dense: list[Tensor] = []  # weights and vectors when fine-tuning begins
        self.state: FileState | None = None  # of the projection, at the same moment
        self.budget_bytes = int(self.controller.budget_bytes)
        method.budget_at = lambda fraction: self.constraint.budget(fraction, self.budget_bytes)

    @torch.no_grad()
    def _check_direction(self) -> None:
        """Checks that a network without weights scores no better than the one that was given.

        Raises:
            InvalidInputError: it does, so the score is of the other direction than the promise says.
        """
        destroyed = copy_network(self.network.model).eval()
        for name, _ in self.network.selection.weights:
            destroyed.get_parameter(name).zero_()
        try:
            score = float(self.evaluate(destroyed))
        except Exception as error:  # a score need not be defined for such a network
            logger.debug("the network without weights has no score: %s", error)
            return
        is_drop = isinstance(self.target, AccuracyDrop)
        better = score - self.reference if is_drop else self.reference - score
        if better > DIRECTION_TOLERANCE * self.reference:
            kind, right = ("an accuracy, of which more", "loss:+2%") if is_drop else ("a loss, of which less", "drop:1")
            raise InvalidInputError(
                f"evaluate= gives {self.reference:g} for the network and {score:g} for it with all weights at zero, "
                f"but {self.target} is a promise about {kind} is better: if the score is of the other kind, {right} "
                "is for that; else the network is no better than none"
            )

    @torch.no_grad()
    def find_start(self) -> None:
        """Sets the budget that the run begins with, as far down as pruning and quantizing at once still goes.

        Above it the run would learn nothing but lose steps. The smallest V that keeps the promise without any training
        is written and put aside: it is what is left where training itself breaks the promise, whatever the size.
        """
        start, _ = self._smallest(START_VIOLATION, self.controller.lowest_bytes, self.controller.budget_bytes)
        _, quantized = self._smallest(0.0, start, self.controller.highest_bytes)
        if quantized is not None:  # what is quantized costs more than its estimate, or less
            state = self.constraint.with_target(self.method.state, int(self.controller.highest_bytes))
            self.files.add(
                ONE_SHOT, *self.constraint.writer(state).fit(quantized, vector_tensors(self.network.selection))
            )
        self.controller.budget_bytes = start
        self.budget_bytes = int(start)
        logger.debug("the run begins with %.0f bytes", start)

    def _smallest(self, fall: float, low: float, high: float) -> tuple[float, Sequence[WeightTensor] | None]:
        """Returns the smallest size at which V, at once and untrained, falls by no more, and V; None if none does."""
        x = [weight.detach().clone() for weight in self.network.weights]
        sizes, found = [math.log(low), math.log(high)], None
        for _ in range(FIRST_TRIES):
            middle = sum(sizes) / 2
            budget = self.constraint.budget(0.0, int(math.exp(middle)))
            quantized = self.constraint.project(x, budget, self.method.state)[0].quantized
            if -self.margin(self._score_of(quantized)) <= fall:
                sizes[1], found = middle, quantized
            else:
                sizes[0] = middle
        return math.exp(sizes[1]), found

    @torch.no_grad()
    def watch(self, projection: Projection, relative_lr: float) -> None:
        """Scores V after an update and moves the budget.

        At a high learning rate V has not settled: more is allowed then. Where it keeps the promise all the same, now
        and mostly of late, it is written and scored like a finished network.
        """
        score = self._score_of(projection.quantized)
        margin = self.margin(score)
        self.margins = [*self.margins, margin][-MEDIAN_OF:]
        if min(margin, statistics.median(self.margins)) >= 0 and not self.network.selection.folded:
            self.consider(
                self.files.add(TRAINED, *self.method.fit(projection.quantized, vector_tensors(self.network.selection)))
            )
        measured = margin + ALLOWANCE * (1 + relative_lr)
        budget = self.controller.observe(measured)
        logger.debug("V scores %.4f, margin %.2f: next budget %.0f", score, measured, budget)
        self.budget_bytes = int(budget)

    @torch.no_grad()
    def compress_at_once(self, run: Run, batches: Iterable[Any] | None) -> None:
        """Looks for smaller files of the network as it was given, without training: no run returns a larger one.

        By bisection on the logarithm of the size. Where a file is known to keep the promise one that is hardly smaller
        has to as well, or nothing more is tried.

        Args:
            run: that is over, or has taken no step.
            batches: that calibrate, and that batch norms are refitted on.
        """
        low, high = self.controller.lowest_bytes, self.controller.highest_bytes
        known = bool(self.files.best) and self.keeps(self.files.chosen)
        if known:
            high = self.files.chosen.file_bytes / RESOLUTION
        at_once = Projector(self.constraint)
        method, moments = (at_once, {}) if batches is None else run.calibrated(at_once, batches)
        assert isinstance(method, Projector)
        size = high if known else math.sqrt(low * high)
        while size >= low:
            budget = replace(self.constraint.budget(1.0, int(size)), target_bytes=int(self.controller.highest_bytes))
            method.state, method.budget_at = self.constraint.start(), partial(_at_any_time, budget)
            file = self.files.add(ONE_SHOT, *run.one_shot(method, batches, moments, fill=False))
            kept = self.keeps(file)
            logger.info("without training, %d bytes: the promise is %s", file.file_bytes, "kept" if kept else "broken")
            if size >= high and not kept:
                return
            if kept:
                high, known = float(min(size, file.file_bytes)), True
            else:
                low = size
            if known and high < RESOLUTION * low:
                return
            size = math.sqrt(low * high) if known else min(STRIDE * low, high)  # large files take long

    def margin(self, score: float) -> float:
        """Returns how much of what the promise allows is left over at a score; -inf for one that is not a number."""
        margin = self.target.margin(score, self.reference)
        return margin if math.isfinite(margin) else -math.inf

    def keeps(self, candidate: Candidate) -> bool:
        """Tells whether a file keeps the promise."""
        return self.margin(candidate.score) >= 0

    def _key(self, candidate: Candidate) -> Key:
        """Returns what is compared: the promise, then the size of the file; of broken ones by how much."""
        margin = self.margin(candidate.score)
        return (1.0, -candidate.file_bytes, margin) if margin >= 0 else (0.0, margin)

    def _score_of(self, quantized: Sequence[WeightTensor]) -> float:
        """Returns the score of the network with these weights, once its batch norms belong to them."""
        scored = copy_network(self.network.model).eval()
        for (name, _), tensor in zip(self.network.selection.weights, quantized, strict=True):
            scored.get_parameter(name).copy_(tensor.dense())
        self.refit(scored)
        return float(self.evaluate(scored))

    def phases(self, run: Run, projected: int, left: int) -> list[Phase]:
        """Returns the phases of a run: projections, whose budget is moved, and the stages of fine-tuning.

        Args:
            run: that they are of.
            projected, left: steps of projections, and of all stages.
        """
        lengths: list[int] = []
        for stages in range(STAGES, 0, -1):
            lengths.append(math.ceil((left - sum(lengths)) / stages))
        first = [ProjectionUnderQuality(self, run, projected)] if projected else []
        return [*first, *(SizeTrial(self, run, length) for length in lengths if length)]

    @torch.no_grad()
    def begin_stage(self) -> list[Tensor]:
        """Takes up the dense network for the next size; returns X, its weights."""
        tensors = self._dense_tensors
        if not self.dense:
            self.dense = [tensor.detach().clone() for tensor in tensors]
            self.state = self.method.state
            self.search.start_bytes = self.controller.budget_bytes
            best, at_once = self.files.best.get(TRAINED), self.files.best.get(ONE_SHOT)
            if at_once is not None and self.keeps(at_once):
                self.search.highest_bytes = float(at_once.file_bytes)  # nothing larger is of use
            if best is not None and self.keeps(best):
                self.search.known_bytes = float(best.file_bytes)
        for tensor, dense in zip(tensors, self.dense, strict=True):
            tensor.copy_(dense)
        assert self.state is not None
        self.method.state, self.budget_bytes = self.state, int(self.search.next_bytes)
        self.stage_keeps = False
        return [weight.detach().clone() for weight in self.network.weights]

    def consider(self, candidate: Candidate) -> None:
        """Takes note of a file of the size that is tried."""
        self.stage_keeps |= self.keeps(candidate)

    def end_stage(self) -> None:
        """Takes note of what came of the size that was tried."""
        self.search.report(self.budget_bytes, keeps=self.stage_keeps)
        logger.info("tried %d bytes: the promise is %s", self.budget_bytes, "kept" if self.stage_keeps else "broken")

    def report(self, *, trained: bool) -> dict[str, Any]:
        """Returns what is said of the promise in the record of the run; warns where it is not kept."""
        chosen = self.files.chosen
        if not self.keeps(chosen):
            logger.warning(
                "no network that was seen keeps %s: on the validation data the reference scores %.4f, the best of %d "
                "files %.4f (%d bytes); train for longer, allow a larger file or promise less",
                self.target,
                self.reference,
                len(self.files.tried),
                chosen.score,
                chosen.file_bytes,
            )
        elif trained and self.files.origin == ONE_SHOT:
            logger.warning(
                "training led to no smaller file that keeps %s: this one is the network as it was given, pruned "
                "and quantized at once; train for longer, or at a lower learning rate",
                self.target,
            )
        return {
            "promise": str(self.target),
            "kept": self.keeps(chosen),
            "reference": self.reference,
            "limit": self.target.limit(self.reference),
            "measured": chosen.score,
            "tried": [list(each) for each in self.files.tried],
        }

    @property
    def _dense_tensors(self) -> list[nn.Parameter]:
        """All that training changes and a stage takes up again."""
        return [*self.network.weights, *self.network.vectors]

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a resumed run needs."""
        return {
            "reference": self.reference,
            "controller": self.controller.state_dict(),
            "search": asdict(self.search),
            "files": self.files.state_dict(),
            "margins": list(self.margins),
            "stage_keeps": self.stage_keeps,
            "dense": self.dense,
            "state": None if self.state is None else self.constraint.to_plain(self.state),
            "budget_bytes": self.budget_bytes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.reference, self.budget_bytes = state["reference"], state["budget_bytes"]
        self.state = None if state["state"] is None else self.constraint.from_plain(state["state"])
        self.stage_keeps = state["stage_keeps"]
        self.controller.load_state_dict(state["controller"])
        self.search = SizeSearch(**state["search"])
        self.files.load_state_dict(state["files"])
        self.margins = list(state["margins"])
        self.dense = [saved.to(tensor) for saved, tensor in zip(state["dense"], self._dense_tensors, strict=False)]


class ProjectionUnderQuality(ProjectionPhase):
    """Projections onto a size that the constraint on the quality moves."""

    def __init__(self, quality: QualitySearch, run: Run, steps: int) -> None:
        super().__init__(run, steps, quality.watch)
        self.quality = quality

    def begin(self) -> None:
        self.run.ranks.synchronize_buffers(self.run.network.model)
        self.quality.find_start()
        super().begin()


class SizeTrial(FineTuningPhase):
    """Fine-tuning at the size that the search asks for next; its file is scored before and after."""

    def __init__(self, quality: QualitySearch, run: Run, steps: int) -> None:
        super().__init__(run, steps)
        self.quality = quality

    @torch.no_grad()
    def begin(self) -> None:
        if not self.quality.dense:
            self.run.points()  # W is sound
            self.run.solver.restore_dense()
        self.values = self.run.assign(self.run.method, self.quality.begin_stage(), self.steps)
        self.consider()

    def step(self) -> None:
        super().step()
        if self.step_count == self.steps:
            self.consider()
            self.quality.end_stage()

    def end(self) -> None:
        self.consider()

    @torch.no_grad()
    def consider(self) -> None:
        """Writes and scores the file of the network as it is now."""
        assert self.values is not None
        self.quality.refit(self.run.network.model)
        self.quality.consider(self.quality.files.add(TRAINED, *self.run.file(self.values, self.run.method)))


def make_quality_search(
    target: QualityTarget | None,
    network: Network,
    method: Method,
    original_bytes: int,
    evaluate: Callable[[nn.Module], float] | None,
    refit: Callable[[nn.Module], None] | None,
) -> QualitySearch | None:
    """Returns what keeps a promise; None where none is made.

    Raises:
        InvalidInputError: there is no score to measure it by, or the reference's is none to promise about.
    """
    if target is None:
        return None
    if evaluate is None:
        raise InvalidInputError(
            f"the target {target} is a promise about a network's score: give evaluate=, a function that returns the "
            "score of a network on validation data (in `compress`: give val=)"
        )
    assert isinstance(method, Projector)
    return QualitySearch(target, network, method, original_bytes, evaluate, refit)


def _at_any_time(budget: FileBudget, fraction: float) -> FileBudget:
    """Returns the budget, whatever part of a run is over."""
    return budget


def _no_refit(model: nn.Module) -> None:
    """Does nothing: without data, the statistics stay."""
