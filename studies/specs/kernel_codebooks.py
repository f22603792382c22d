"""Codebooks of scalars, of kernels, and whichever errs less in each layer, at the same code bits (Yu et al. 2020)."""

from collections.abc import Mapping, Sequence

from studies.design.spec import Smoke, StudySpec, TaskSpec, Variant
from studies.records.record import COMPRESSOR

KINDS = ("scalar", "kernel", "both")
# epochs -> task -> targets
WHERE: Mapping[int, Mapping[str, Sequence[str]]] = {
    40: {"lenet5-digits": ("codes:32x", "codes:64x", "codes:128x")},
    10: {"resnet20-cifar10": ("codes:20x", "codes:32x")},
}

SPEC = StudySpec(
    name="kernel-codebooks",
    description="Codebooks of scalars, of kernels and both, each layer its own, at the same code bits",
    tasks=[
        TaskSpec("lenet5", "digits"),
        TaskSpec("resnet20", "cifar10", weights="resnet20_cifar10.safetensors"),
    ],
    methods=[
        Variant(
            f"{kinds} codebooks, {epochs} epochs", COMPRESSOR, {"codebooks": kinds}, where=where, final_epochs=epochs
        )
        for epochs, where in WHERE.items()
        for kinds in KINDS
    ],
    targets=["codes:20x", "codes:32x", "codes:64x", "codes:128x"],
    seeds=range(3),
    final_epochs=40,
    trial_epochs=1,
    smoke=Smoke(targets=("codes:64x",), final_epochs=1),
)
