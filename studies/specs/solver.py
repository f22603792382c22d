"""What each part of the method is worth: iterations and one-shot projection, by length of training and by size."""

from collections.abc import Mapping

from studies.design.spec import StudySpec, TaskSpec, Variant
from studies.records.record import COMPRESSOR

EPOCHS = (4, 10, 40, 120)
# name in the tables -> what it changes of the method
PARTS: Mapping[str, Mapping[str, float | str]] = {
    "lazy projection": {},
    "no distillation": {"distillation_weight": 0.0},
    "ADMM": {"iteration": "admm"},
    "one-shot + fine-tuning": {"fine_tuning_fraction": 1.0},
}

SPEC = StudySpec(
    name="solver",
    description="The method and what is left of it without a part: LeNet-5 on scikit-learn's digits",
    tasks=[TaskSpec("lenet5", "digits")],
    methods=[
        Variant("one-shot", COMPRESSOR, final_epochs=0),
        # Its budget: each of six bit-widths once, for a tenth of the steps; then the best for as many as the others.
        *(
            Variant(
                f"gradual, {epochs} epochs",
                "gradual",
                final_epochs=epochs,
                trial_epochs=max(1, epochs // 10),
                budget=6 * max(1, epochs // 10) / epochs,
            )
            for epochs in EPOCHS
        ),
        *(
            Variant(f"{name}, {epochs} epochs", COMPRESSOR, constants, final_epochs=epochs)
            for name, constants in PARTS.items()
            for epochs in EPOCHS
        ),
    ],
    targets=["4KB", "2KB"],
    seeds=range(5),
    final_epochs=40,
    trial_epochs=8,
)
