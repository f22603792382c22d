"""ResNet-20 on CIFAR-10: a whole reference, longer runs, searches of 10 times the compressor's steps; for a GPU."""

from dataclasses import replace

from studies.design.spec import TaskSpec
from studies.specs.resnet20_cifar10 import SPEC as SHORT

SPEC = replace(
    SHORT,
    name="resnet20-cifar10-10x",
    description="ResNet-20 on CIFAR-10: the same methods, 20 times smaller, three seeds; a search may spend 10 times "
    "the compressor's steps (for a GPU)",
    tasks=[TaskSpec("resnet20", "cifar10")],
    seeds=range(3),
    final_epochs=20,
    trial_epochs=4,
    budget=10,
)
