"""LeNet-5 on MNIST, at a size of the file and at the literature's count: what two cores can do."""

from studies.design.spec import Smoke, StudySpec, TaskSpec, Variant
from studies.records.record import COMPRESSOR

SEARCHES = ("uniform", "magnitude", "random", "optuna-tpe", "ray-asha")

SPEC = StudySpec(
    name="lenet5-mnist",
    description="LeNet-5 on MNIST: what people use, at a file size, and the compressor also at the literature's count; "
    "a search may spend 3 times the compressor's steps",
    tasks=[TaskSpec("lenet5", "mnist")],
    methods=[COMPRESSOR, *(Variant(name, name, targets=("5KB",)) for name in SEARCHES)],
    targets=["5KB", "weights:1975x"],
    seeds=range(3),
    final_epochs=10,
    trial_epochs=2,
    budget=3,
    smoke=Smoke(reference_epochs=1, final_epochs=1, trial_epochs=1, budget=2.0),
)
