"""The compressor alone, at the sizes and lengths of training of the first table of docs/results.md."""

from collections.abc import Mapping, Sequence

from studies.design.spec import Smoke, StudySpec, TaskSpec, Variant
from studies.records.record import COMPRESSOR

# epochs -> task -> targets
CASES: Mapping[int, Mapping[str, Sequence[str]]] = {
    1: {"resnet20-cifar10": ("20x",)},
    3: {"resnet20-cifar10": ("20x",)},
    4: {"lenet5-digits": ("4KB", "2KB"), "lenet5-mnist": ("2KB",)},
    10: {"lenet5-mnist": ("5KB",), "resnet20-cifar10": ("20x", "40x")},
    30: {"lenet5-mnist": ("weights:1975x", "weights:2120x", "weights-in-place:1975x")},
    40: {"lenet5-digits": ("4KB", "2KB"), "lenet5-mnist": ("5KB",)},
    60: {"lenet5-mnist": ("2KB", "1720B", "1150B")},
    120: {"lenet5-digits": ("4KB",)},
}

TASKS = (
    TaskSpec("lenet5", "digits"),
    TaskSpec("lenet5", "mnist"),
    TaskSpec("resnet20", "cifar10", weights="resnet20_cifar10.safetensors"),
)
SEEDS = {"lenet5-mnist": 3, "resnet20-cifar10": 1}

SPEC = StudySpec(
    name="sizes",
    description="The compressor alone: LeNet-5 and ResNet-20 at several sizes, after short and long training",
    tasks=TASKS,
    methods=[
        Variant(f"{COMPRESSOR}, {epochs} epochs", COMPRESSOR, final_epochs=epochs, where=where, seeds=SEEDS)
        for epochs, where in CASES.items()
    ],
    targets=list(dict.fromkeys(target for where in CASES.values() for some in where.values() for target in some)),
    seeds=range(5),
    final_epochs=40,
    trial_epochs=1,
    smoke=Smoke(targets=("4KB",), final_epochs=1),
)
