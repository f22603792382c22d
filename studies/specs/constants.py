"""What the constants of the method do to it: each varied around its value, one at a time, in a short and a long run."""

from collections.abc import Mapping, Sequence

from studies.design.spec import StudySpec, TaskSpec, Variant
from studies.records.record import COMPRESSOR

# short name -> (field of SolverConstants, values around its default, which is the plain compressor)
VARIED: Mapping[str, tuple[str, Sequence[float]]] = {
    "pruned rate": ("pruned_rate", (0.0, 0.2, 0.6, 1.0)),
    "updates": ("updates", (10, 90)),
    "memory steps": ("memory_steps", (100.0, 2000.0)),
    "path fraction": ("path_fraction", (0.1, 0.2, 0.5, 0.75)),
    "path steps": ("path_steps", (0.0, 60.0)),
    "path start": ("path_start", (1.0, 3.0, 16.0)),
    "fine-tuning": ("fine_tuning_fraction", (0.02, 0.05, 0.2, 0.4)),
    "distillation": ("distillation_weight", (0.0, 0.25, 0.9)),
    "idle decay": ("idle_decay", (0.0, 1.0)),
    "temperature": ("distillation_temperature", (1.0, 4.0)),
}

SPEC = StudySpec(
    name="constants",
    description="The constants of the method, each varied around its value: LeNet-5 on scikit-learn's digits, 2KB",
    tasks=[TaskSpec("lenet5", "digits")],
    methods=[
        COMPRESSOR,
        *(
            Variant(f"{COMPRESSOR} {name}={value:g}", COMPRESSOR, {constant: value})
            for name, (constant, values) in VARIED.items()
            for value in values
        ),
    ],
    targets=["2KB"],
    seeds=range(5),
    final_epochs=20,
    trial_epochs=4,
)
