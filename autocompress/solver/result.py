"""What a compression run may return, what it returns, and what can be said of both."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.codec.file import decode_state, encode_state, save_artifact, unpack, with_metadata
from autocompress.codec.layout import layout_of
from autocompress.codec.size_report import size_report
from autocompress.energy.network_energy import EnergyUse
from autocompress.errors import InvalidInputError
from autocompress.integrations.page import accuracy_lines
from autocompress.integrations.run_page import as_frame, history_rows, layer_rows, run_page, save_report
from autocompress.network.compressed_tensors import CompressedState
from autocompress.network.network_state import filled_copy
from autocompress.network.selection import Selection, original_bytes
from autocompress.targets import FileSize, Targets

# Where a file's network comes from, in the order in which equals are preferred: the end of the run, the beginning of
# its fine-tuning, or the network as it was given, pruned and quantized at once.
TRAINED, BEFORE_FINE_TUNING, ONE_SHOT = "trained", "before fine-tuning", "one-shot"
ORIGINS = (TRAINED, BEFORE_FINE_TUNING, ONE_SHOT)

Key = tuple[float, ...]


@dataclass(frozen=True)
class Candidate:
    """A file within the target, and what it scored.

    Attributes:
        state: what the file holds.
        data: the file, uint8 [bytes].
        score: as `evaluate` returned it; NaN where nothing decides.
    """

    state: CompressedState
    data: Tensor
    score: float

    @property
    def file_bytes(self) -> int:
        return len(self.data)


def by_score(candidate: Candidate) -> Key:
    """Returns what is compared where every candidate meets the target: the score; one that is no number is the last."""
    return (candidate.score if math.isfinite(candidate.score) else -math.inf,)


class Candidates:
    """The best file of each origin.

    Attributes:
        best: by origin.
        tried: (bytes, score) of every file.
    """

    def __init__(
        self,
        model: nn.Module,
        evaluate: Callable[[nn.Module], float] | None,
        key: Callable[[Candidate], Key] = by_score,
    ) -> None:
        """Holds nothing yet.

        Args:
            model: whose tensors the files hold.
            evaluate: score of a network on held-out data, if there is any.
            key: of the better of two candidates, the larger.
        """
        self.model, self.evaluate, self.key = model, evaluate, key
        self.best: dict[str, Candidate] = {}
        self.tried: list[tuple[int, float]] = []

    def add(self, origin: str, state: CompressedState, data: bytes) -> Candidate:
        """Returns a file with its score, and keeps it if it is the best so far of its origin."""
        score = math.nan if self.evaluate is None else float(self.evaluate(filled_copy(self.model, state)))
        self.tried.append((len(data), score))
        candidate = Candidate(state, torch.frombuffer(bytearray(data), dtype=torch.uint8), score)
        if origin not in self.best or self.key(candidate) > self.key(self.best[origin]):
            self.best[origin] = candidate
        return candidate

    @property
    def origin(self) -> str:
        """Where the best of all comes from."""
        return max((o for o in ORIGINS if o in self.best), key=lambda origin: self.key(self.best[origin]))

    @property
    def chosen(self) -> Candidate:
        return self.best[self.origin]

    @property
    def scores(self) -> dict[str, float]:
        """The best score of each origin; empty where nothing decides."""
        return {} if self.evaluate is None else {origin: each.score for origin, each in self.best.items()}

    def state_dict(self) -> dict[str, Any]:
        """Returns the files that may yet be chosen, and what was tried."""
        return {"best": {o: [each.data, each.score] for o, each in self.best.items()}, "tried": list(self.tried)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        layout = layout_of(self.model)
        self.best = {
            origin: Candidate(decode_state(data.numpy().tobytes(), layout), data, score)
            for origin, (data, score) in state["best"].items()
        }
        self.tried = [(size, score) for size, score in state["tried"]]


# Names listed in one sentence.
ZERO_LAYERS_SHOWN = 5


@dataclass(frozen=True)
class Outcome:
    """Which candidate was selected and by what, and everything unusual about the run.

    Attributes:
        chosen: the network that was taken: "trained", "before fine-tuning" or "one-shot" (as it was given, pruned and
            quantized at once).
        judged_by: what decided: a phrase such as "the loss on the validation data", or "" where nothing did.
        scores: of each network by that measure, higher is better.
        zero_layers: compressed tensors of which every weight is zero.
        layers: number of compressed tensors.
        skipped_steps: steps of fine-tuning whose gradients were not finite.
        greedy: whether a knapsack was solved by the greedy rule where an exact answer was looked for.
        promise_kept: whether a promise was kept; None where there is none.
        steps: optimizer steps that were taken ...
        total_steps: ... of so many announced.
        constant: whether the network gave the same output for every example of a batch, where the given one did not.
    """

    chosen: str
    judged_by: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    zero_layers: tuple[str, ...] = ()
    layers: int = 0
    skipped_steps: int = 0
    greedy: bool = False
    promise_kept: bool | None = None
    steps: int = 0
    total_steps: int = 0
    constant: bool = False

    @property
    def notes(self) -> list[str]:
        """What has to be said in so many words; empty where all went as it should."""
        found = []
        if self.layers and len(self.zero_layers) == self.layers:
            found.append("every compressed weight is zero: the network no longer depends on its input")
        elif self.zero_layers:
            more = len(self.zero_layers) - ZERO_LAYERS_SHOWN
            names = ", ".join(self.zero_layers[:ZERO_LAYERS_SHOWN]) + (f" and {more} more" if more > 0 else "")
            found.append(f"every weight is zero in {names}")
        if self.constant and (not self.layers or len(self.zero_layers) < self.layers):
            found.append("the network gives the same output for every example of a batch: try a larger target")
        if self.promise_kept is False:
            found.append("the promise was not kept by any network that was seen")
        if self.steps < self.total_steps:
            found.append(
                f"finish() came after {self.steps} of {self.total_steps} steps: the network was projected as it was; "
                "call step() after each optimizer.step()"
            )
        if self.chosen == ONE_SHOT and self.promise_kept and self.steps:
            found.append(
                "training led to no smaller file that keeps the promise: this is the network as it was given, pruned "
                "and quantized at once; train for longer, or at a lower learning rate"
            )
        if self.scores and not any(map(math.isfinite, self.scores.values())):
            found.append(f"no score by {self.judged_by} is a finite number: nothing decided between the networks")
        elif self.chosen == ONE_SHOT and len(self.scores) > 1:
            found.append(
                "training did not help: the network as it was given, pruned and quantized at once, is better by "
                f"{self.judged_by}; train for longer, or at another learning rate"
            )
        if self.chosen == TRAINED and not self.judged_by:
            found.append(
                "no data decided between this network and others: give val= (in Lightning monitor=) or evaluate="
            )
        if self.skipped_steps:
            found.append(f"{self.skipped_steps} steps of fine-tuning were skipped: their gradients were not finite")
        if self.greedy:
            found.append("bits were shared out by the greedy rule; an exact answer would have taken too long")
        return found

    def to_json(self) -> dict[str, Any]:
        """Returns an object of JSON; scores that are no numbers are None."""
        return {
            "chosen": self.chosen,
            "judged_by": self.judged_by,
            "scores": {name: _in_json(score) for name, score in self.scores.items()},
            "zero_layers": list(self.zero_layers),
            "skipped_steps": self.skipped_steps,
            "greedy": self.greedy,
            "notes": self.notes,
        }


def _in_json(score: float | None) -> float | None:
    """Returns a score; one that is no number, which JSON does not know, is None."""
    return score if score is not None and math.isfinite(score) else None


def zero_layers(state: CompressedState) -> tuple[str, ...]:
    """Returns the names of the compressed tensors of which every weight is zero."""
    return tuple(name for name, tensor in state.quantized.items() if not tensor.nonzeros)


logger = logging.getLogger(__name__)

# A fall of the metric that is worth a warning, as a fraction of 1.
WARNING_DROP = 0.05
# Names listed of the tensors that are not compressed for one reason.
NAMES_SHOWN = 8


@dataclass(repr=False)
class Result:
    """A compressed network.

    Attributes:
        model: a plain module in evaluation mode that holds exactly what the file holds.
        state: its tensors as codes and grids.
        data: the file, byte for byte.
        target: what was asked.
        selection: what was compressed, rounded and kept.
        gradient_steps: optimizer steps of the run.
        history: one entry per projection of the run.
        energy: of a forward pass before and after, where the target speaks of it.
        curve: (gradient steps, mean training loss) after each epoch, where the training was ours.
        validation_curve: (gradient steps, loss, metric) on the validation data, or on what was kept from training for
            that, of the network that would have been written then, after at most 20 epochs of the run.
        validation_reference: the metric of the given network on the same.
        reference_accuracy, validation_accuracy, test_accuracy: scores by the metric, where they were measured; of the
            default metric fractions of 1.
        metric: its name: "accuracy", "minus the loss", "minus l1", or that of the function that was given.
        reference_split: what the reference was scored on, "test" or "validation".
        wall_seconds, device, seed: of the run.
        promise: where one was asked for: `kept`, true or false, the `reference`'s score, the `limit` it allows, what
            was `measured` of this network, and (bytes, score) of all files `tried`.
        outcome: which network this is of those that the run chose between, and what is odd about it.
    """

    model: nn.Module
    state: CompressedState
    data: bytes
    target: Targets
    selection: Selection
    gradient_steps: int
    history: list[dict[str, float]]
    energy: EnergyUse | None = None
    curve: list[tuple[int, float]] = field(default_factory=list)
    validation_curve: list[tuple[int, float, float]] = field(default_factory=list)
    validation_reference: float | None = None
    reference_accuracy: float | None = None
    validation_accuracy: float | None = None
    test_accuracy: float | None = None
    metric: str = "accuracy"
    reference_split: str | None = None
    wall_seconds: float | None = None
    device: str | None = None
    seed: int | None = None
    promise: dict[str, Any] | None = None
    outcome: Outcome | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def file_bytes(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        """Returns one line, not the tensors."""
        return f"Result(target={str(self.target)!r}, file_bytes={self.file_bytes}, test_accuracy={self.test_accuracy})"

    def save(
        self,
        path: str | Path,
        *,
        names: bool = False,
        metadata: Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> None:
        """Writes the file: to a temporary name first, so that nothing half-written is ever found under `path`.

        Args:
            path: a name that ends in `.safetensors`.
            names: whether the tensors' names have to stand in the file, for `read_state(path)`.
            metadata: texts for the file's header, such as its source, scores and revision (`read_metadata(path)`).
            limit: bytes that the file may take with names and metadata; default: the file size that was asked for. A
                target that much smaller leaves room for them.

        Raises:
            InvalidInputError: the place cannot be written, or there is no room for names and metadata.
        """
        data = self.data
        names = names and unpack(data).table is None
        if names:
            data = encode_state(self.state, names=True)
        if metadata:
            data = with_metadata(data, metadata)
        if len(data) > len(self.data):
            sizes = {"original_bytes": original_bytes(self.model), "compressible_weights": self.selection.compressible}
            asked = min((target.resolve(**sizes) for target in self.target.of_kind(FileSize)), default=len(data))
            room = asked if limit is None else limit
            if len(data) > room:
                added = " and ".join(["the names"] * names + ["the metadata"] * bool(metadata))
                smaller = room - (len(data) - len(self.data))
                again = (
                    f"compress to a target of {smaller} bytes and save with limit={room}, or " if smaller > 0 else ""
                )
                raise InvalidInputError(
                    f"the file has {len(self.data)} bytes, and {len(data)} with {added}; the "
                    f"{'target' if limit is None else 'limit'} is {room}: {again}save without {added}"
                )
        save_artifact(path, data)

    def report(self) -> str:
        """Returns the size report as text: per layer and in total, what was not compressed, and the scores."""
        lines = [str(size_report(self.state, self.data, self.model))]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.selection.raw.items():
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            lines.append(f"not compressed, {reason}: {', '.join(names[:NAMES_SHOWN])}{more}")
        if self.selection.extra:
            lines.append(f"not in the file, no tensors: {', '.join(self.selection.extra)}")
        if self.energy is not None:
            lines.insert(1, str(self.energy))
        if self.validation_accuracy is not None or self.test_accuracy is not None:
            lines += ["", *accuracy_lines(self.scores())]
        if self.outcome is not None:
            lines += [f"note: {note}" for note in self.outcome.notes]
        return "\n".join(lines)

    def scores(self) -> dict[str, Any]:
        """Returns the scores by the names that all records use; one that was not measured, or is no number, is None."""
        return {
            "reference_accuracy": _in_json(self.reference_accuracy),
            "validation_accuracy": _in_json(self.validation_accuracy),
            "test_accuracy": _in_json(self.test_accuracy),
            "metric": self.metric,
            "reference_split": self.reference_split,
        }

    def frame(self) -> Any:
        """Returns a pandas DataFrame of the file: one row per tensor, its bytes by part, what was kept of it.

        Raises:
            AutocompressError: pandas is not installed.
        """
        return as_frame(layer_rows(self), "name")

    def history_frame(self) -> Any:
        """Returns a pandas DataFrame of the run: one row per optimizer step at which something was measured.

        Raises:
            AutocompressError: pandas is not installed.
        """
        return as_frame(history_rows(self), "step")

    def to_html(self, title: str = "Compressed network") -> str:
        """Returns one HTML page of the run that needs nothing else: where the bytes are, and what was given up."""
        return run_page(self, title)

    def save_report(self, folder: str | Path, title: str = "Compressed network") -> None:
        """Writes `page.html`, `layers.csv`, `history.csv` and `run.json` into a folder, which is made.

        Raises:
            InvalidInputError: the folder cannot be made or written.
        """
        save_report(self, folder, title)

    def to_json(self) -> dict[str, Any]:
        """Returns the record of the run, by the names that all records use."""
        report = size_report(self.state, self.data, self.model).to_json()
        return {
            "target": str(self.target),
            **report,
            **({} if self.energy is None else self.energy.to_json()),
            **self.scores(),
            "gradient_steps": self.gradient_steps,
            "wall_seconds": self.wall_seconds,
            "device": self.device,
            "seed": self.seed,
            **({} if self.promise is None else {"promise": self.promise}),
            **({} if self.outcome is None else {"outcome": self.outcome.to_json()}),
            **({} if not self.selection.extra else {"not_in_file": list(self.selection.extra)}),
            **self.extra,
        }


def warn_of_loss(before: float, after: float, metric: str = "accuracy") -> None:
    """Says so where a target was met at the cost of what the network is for; of another metric no scale is known."""
    if metric == "accuracy" and after < before - WARNING_DROP:
        logger.warning(
            "the metric fell from %.4f to %.4f: try a larger target, or more epochs for the network to adapt",
            before,
            after,
        )
