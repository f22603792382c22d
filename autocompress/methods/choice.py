"""Which method meets which target."""

from __future__ import annotations

from autocompress.methods.base import Method, Network
from autocompress.methods.code_bits import CodeBitsMethod
from autocompress.methods.file_size import FileSizeMethod
from autocompress.methods.weight_bits import InPlaceWeightBitsMethod, WeightBitsMethod
from autocompress.targets import CodeBits, FileSize, Target


def make_method(target: Target, network: Network, original_bytes: int) -> Method:
    """Returns the method of a target.

    Raises:
        InfeasibleTargetError: naming the smallest target that can be met.
    """
    budget = target.resolve(original_bytes, network.selection.compressible)
    if isinstance(target, FileSize):
        return FileSizeMethod(network, budget, original_bytes)
    if isinstance(target, CodeBits):
        return CodeBitsMethod(network, budget)
    method = InPlaceWeightBitsMethod if target.in_place else WeightBitsMethod
    return method(network, budget)
