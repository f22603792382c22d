"""What the compressor's constants do to it: each varied around its value, one at a time."""

from collections.abc import Mapping, Sequence

from studies.record import COMPRESSOR
from studies.spec import StudySpec, TaskSpec, Variant

# short name -> (constant, values around its default, which is the plain compressor)
VARIED: Mapping[str, tuple[str, Sequence[float]]] = {
    "pull": ("autocompress.admm.PULL_PER_UPDATE", (0.05, 0.2, 0.35, 0.7, 0.9)),
    "steps per update": ("autocompress.compressor.LEAST_STEPS_FACTOR", (0.4, 0.7, 1.4, 2.5)),
    "finishing": ("autocompress.finishing.FINISHING_FRACTION", (0.02, 0.05, 0.2, 0.4)),
    "path fraction": ("autocompress.methods.path.PATH_FRACTION", (0.1, 0.25, 0.75, 0.95)),
    "path start": ("autocompress.methods.path.PATH_START", (1.0, 2.0, 4.0, 16.0, 32.0)),
}

SPEC = StudySpec(
    name="rho-sensitivity",
    description="The compressor's constants, each varied around its value: LeNet-5 on scikit-learn's digits, 4KB",
    tasks=[TaskSpec("lenet5", "digits")],
    methods=[
        COMPRESSOR,
        *(
            Variant(f"{COMPRESSOR} {name}={value:g}", COMPRESSOR, {constant: value})
            for name, (constant, values) in VARIED.items()
            for value in values
        ),
    ],
    targets=["4KB"],
    seeds=range(3),
    final_epochs=40,
    trial_epochs=8,
)
