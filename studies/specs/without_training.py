"""The compressor without any training: pruned and quantized at once, calibrated on the training data."""

from studies.design.spec import Smoke, StudySpec, TaskSpec, Variant
from studies.records.record import COMPRESSOR
from studies.specs.sizes import SEEDS, TASKS

SPEC = StudySpec(
    name="without-training",
    description="The compressor without training: LeNet-5, ResNet-20 and ResNet-56 pruned and quantized at once",
    tasks=[*TASKS, TaskSpec("resnet56", "cifar10", weights="resnet56_cifar10.safetensors")],
    methods=[
        Variant(
            "without training",
            COMPRESSOR,
            final_epochs=0,
            where={
                "lenet5-digits": ("10KB",),
                "lenet5-mnist": ("10KB", "20KB"),
                "resnet20-cifar10": ("10x", "20x", "40x"),
                "resnet56-cifar10": ("20x",),
            },
            seeds={**SEEDS, "resnet56-cifar10": 1},
        )
    ],
    targets=["10KB", "20KB", "10x", "20x", "40x"],
    seeds=range(5),
    final_epochs=1,
    trial_epochs=1,
    smoke=Smoke(targets=("10KB",), final_epochs=1),
)
