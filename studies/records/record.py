"""The record of one cell of a study: what was run, what came of it, what it cost. Everything else is made from it.

A record stands alone: nothing that is said of a cell needs the study's specification, the code or the machine again.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import InvalidInputError

SCHEMA = 3
# What records of earlier schemas lack, and what it is taken for.
ADDED: Mapping[int, Mapping[str, Any]] = {
    2: {"resources": {}},
    3: {
        "cell": {},
        "constants": {},
        "hardware": {},
        "reference_hash": "",
        "reference_loss": None,
        "validation_loss": None,
        "code_bytes": None,
        "scores": {},
        "plan": {},
        "search": [],
        "former": {},
    },
}
COMPRESSOR = "compressor"
Key = tuple[str, str, str, int]


@dataclass(frozen=True)
class Record:
    """One cell in its final state. Accuracies are fractions of 1; what a failed cell has no value for is None or empty.

    Attributes:
        study, spec_hash: the study, and the digest of what it asks of this cell.
        task, method, target, seed: the cell; a task is "model-data".
        state: "finished" or "failed".
        error: traceback of a failed cell.
        revision: of the code, with "+changes" where it was not committed.
        versions: of python, torch, optuna, ray.
        device, threads: where it ran.
        started: ISO 8601, UTC.
        reference_accuracy, test_accuracy: on the test split.
        reference_validation_accuracy, validation_accuracy: on the validation split.
        reference_correct, correct: which test examples were right, see `pack`.
        examples: number of test examples.
        file_bytes, entropy_bytes, weight_data_bytes, original_bytes: the sizes.
        layers: per compressed tensor: name, shape, kept, codebook, bits, bytes.
        parts: ideal bytes of the file by part: positions, codes, codebook, grid, raw, header, overhead.
        gradient_steps: of the run that ends in the file.
        search_gradient_steps: of all trials before it, stopped ones included; 0 for the compressor.
        device_seconds: of both together.
        wall_seconds: from start to end.
        peak_memory_bytes: largest resident memory of the process, or device memory on a GPU.
        curve: (gradient steps, mean training loss) of each epoch of the run that ends in the file.
        anytime: (gradient steps of the search so far, best validation accuracy so far) after each trial.
        history: of the compressor: step, residual, error, price, nonzeros of each projection.
        trials: number of trials by state.
        resources: what the network takes to run, see `resources_of`; empty where the study does not ask.
        cell: all that was asked of the cell, as `Cell.to_json` says it; empty in records of earlier schemas whose
            study asks for something else by now, as are the fields below.
        constants: all `SolverConstants` of the compressor.
        hardware: make of the CPU and of the GPU, number of cores.
        reference_hash: digest of the uncompressed network's tensors.
        reference_loss, validation_loss: on the validation split.
        code_bytes: positions, codes and codebooks in codes of fixed length, what `codes:` targets count.
        scores: further accuracies on the test split, by name.
        plan: values of the search's best trial.
        former: what a record that had another form before says beyond all this.
        search: every trial, as `baselines.interface.Trial.to_json` says it.
    """

    study: str
    spec_hash: str
    task: str
    method: str
    target: str
    seed: int
    state: Literal["finished", "failed"]
    revision: str
    versions: dict[str, str]
    device: str
    threads: int
    started: str
    wall_seconds: float
    error: str | None = None
    reference_accuracy: float | None = None
    test_accuracy: float | None = None
    reference_validation_accuracy: float | None = None
    validation_accuracy: float | None = None
    reference_correct: str = ""
    correct: str = ""
    examples: int = 0
    file_bytes: int | None = None
    entropy_bytes: float | None = None
    weight_data_bytes: float | None = None
    original_bytes: int | None = None
    layers: list[dict[str, Any]] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)
    gradient_steps: int = 0
    search_gradient_steps: int = 0
    device_seconds: float = 0.0
    peak_memory_bytes: int = 0
    curve: list[list[float]] = field(default_factory=list)
    anytime: list[list[float]] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    trials: dict[str, int] = field(default_factory=dict)
    resources: dict[str, float] = field(default_factory=dict)
    cell: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    reference_hash: str = ""
    reference_loss: float | None = None
    validation_loss: float | None = None
    code_bytes: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    plan: dict[str, float] = field(default_factory=dict)
    search: list[dict[str, Any]] = field(default_factory=list)
    former: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def key(self) -> Key:
        return self.task, self.method, self.target, self.seed

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """Returns the record that `to_json` wrote; every field is checked, for a table is made from it without looking.

        Raises:
            InvalidInputError: a field is missing, unknown, of another type, or not finite; it is named.
        """
        if not isinstance(data, Mapping):
            raise InvalidInputError(f"a record is a JSON object, not {type(data).__name__}")
        schema = data.get("schema")
        if not isinstance(schema, int) or not 1 <= schema <= SCHEMA:
            raise InvalidInputError(f"the record is of schema {schema!r}; this release reads 1 to {SCHEMA}")
        added = {name: value for number in range(schema + 1, SCHEMA + 1) for name, value in ADDED[number].items()}
        data = added | dict(data) | {"schema": SCHEMA}
        known = {each.name: str(each.type) for each in fields(cls)}
        if set(data) != set(known):
            missing, unknown = sorted(set(known) - set(data)), sorted(set(data) - set(known))
            raise InvalidInputError(f"the record lacks {missing or 'nothing'} and has unknown {unknown or 'nothing'}")
        for name, kind in known.items():
            _check(name, data[name], kind)
        record = cls(**data)
        if record.state == "finished" and None in (record.test_accuracy, record.validation_accuracy, record.file_bytes):
            raise InvalidInputError("the record is of a finished cell, but has no accuracy or no size")
        return record


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "dict": (dict,),
    "list": (list,),
}


def _check(name: str, value: Any, kind: str) -> None:
    """Raises InvalidInputError for a value that is not of the annotated type."""
    if kind.startswith("Literal"):
        right = value in ("finished", "failed")
    elif value is None:
        right = "None" in kind
    else:
        allowed = _TYPES[kind.split("[")[0].split(" |")[0]]
        right = isinstance(value, allowed) and not isinstance(value, bool)
        right = right and not (isinstance(value, float) and not math.isfinite(value))
    if not right:
        raise InvalidInputError(f"the record's {name} is {value!r}; it must be {kind}")


def pack(correct: NDArray[np.bool_]) -> str:
    """Returns which examples were right, bool [n], as text: eight to a byte, base64."""
    return base64.b64encode(np.packbits(correct).tobytes()).decode()


def unpack(text: str, examples: int) -> NDArray[np.bool_]:
    """Returns what `pack` was given, bool [examples].

    Raises:
        InvalidInputError: the text is not of so many examples.
    """
    packed = np.frombuffer(base64.b64decode(text), dtype=np.uint8)
    if len(packed) != -(-examples // 8):
        raise InvalidInputError(f"{len(packed)} bytes do not hold {examples} examples")
    return np.unpackbits(packed, count=examples).astype(np.bool_)
