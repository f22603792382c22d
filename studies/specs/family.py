"""Every system of the family on one network, trained by one trainer: what each is asked for, and what it takes."""

from baselines.methods import CONDENSA
from studies.design.spec import Smoke, StudySpec, TaskSpec, Variant
from studies.records.record import COMPRESSOR

SIZE = "4KB"

SPEC = StudySpec(
    name="family",
    description="LeNet-5 on scikit-learn's digits: sizes, bits, energy, promises, kernel codebooks, Condensa and "
    "aggregated learning in one table",
    tasks=[TaskSpec("lenet5", "digits")],
    methods=[
        COMPRESSOR,
        Variant("aggregated, 2 inputs", COMPRESSOR, targets=(SIZE,), fold=2),
        Variant("magnitude", "magnitude", targets=(SIZE,)),
        Variant(CONDENSA, CONDENSA, targets=(SIZE, "drop:1")),
    ],
    targets=[
        SIZE,
        "drop:1",
        "loss:+50%",
        "weights:836x",
        "weights-in-place:836x",
        "codes:64x",
        "energy:40%",
        "energy:20%",
        "energy-channels:40%",
        f"{SIZE} and energy:40%",
    ],
    seeds=range(3),
    final_epochs=40,
    trial_epochs=8,
    resources=True,
    smoke=Smoke(
        targets=(SIZE, "drop:1", "codes:64x", "energy:40%", "energy-channels:40%"), final_epochs=1, trial_epochs=1
    ),
)
