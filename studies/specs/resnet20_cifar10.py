"""ResNet-20 on CIFAR-10, a network with batch norm: very short runs, what two cores can do."""

from studies.design.spec import Smoke, StudySpec, TaskSpec
from studies.records.record import COMPRESSOR
from studies.specs.lenet5_mnist import SEARCHES

SPEC = StudySpec(
    name="resnet20-cifar10",
    description="ResNet-20 on CIFAR-10: the same methods, 20 times smaller, 2 epochs from a reference of 6, one seed; "
    "a search may spend as many steps on trials as the compressor takes",
    # Published weights have seen the validation split, by which every search chooses: the reference is trained here.
    tasks=[TaskSpec("resnet20", "cifar10", reference_epochs=6)],
    methods=[COMPRESSOR, *SEARCHES],
    targets=["20x"],
    seeds=range(1),
    final_epochs=2,
    trial_epochs=1,
    budget=1,
    smoke=Smoke(reference_epochs=1, final_epochs=1, trial_epochs=1, budget=1.0),
)
