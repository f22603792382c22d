"""As `lenet5-mnist`, with a search that may spend 10 times the compressor's steps: for a GPU."""

from dataclasses import replace

from studies.specs.lenet5_mnist import SPEC as SHORT

# A study of its own and not a switch: what a study asks for must not depend on the machine that reads its records.
SPEC = replace(
    SHORT,
    name="lenet5-mnist-10x",
    description=SHORT.description.replace("3 times", "10 times") + " (for a GPU)",
    budget=10,
)
