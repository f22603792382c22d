"""LeNet-5 on MNIST with longer training and searches that may spend 10 times the compressor's steps: for a GPU."""

from dataclasses import replace

from studies.records.record import COMPRESSOR
from studies.specs.lenet5_mnist import SEARCHES
from studies.specs.lenet5_mnist import SPEC as SHORT

# A study of its own and not a switch: what a study asks for must not depend on the machine that reads its records.
SPEC = replace(
    SHORT,
    name="lenet5-mnist-10x",
    description="LeNet-5 on MNIST: what people use, at a file size and at the literature's count; a search may spend "
    "10 times the compressor's steps (for a GPU)",
    methods=[COMPRESSOR, *SEARCHES],
    final_epochs=40,
    trial_epochs=4,
    budget=10,
)
