"""Which method meets which target."""

from __future__ import annotations

from autocompress.methods.base import Method, Network
from autocompress.methods.code_bits import CodeBitsMethod
from autocompress.methods.file_fit import smallest_file
from autocompress.methods.file_size import FileSizeMethod
from autocompress.methods.path import budget_at_once
from autocompress.methods.weight_bits import InPlaceWeightBitsMethod, WeightBitsMethod
from autocompress.targets import CodeBits, FileSize, Targets, WeightBits


def make_method(targets: Targets, network: Network, original_bytes: int) -> Method:
    """Returns the method that meets targets together; of several of one kind the tightest rules.

    Raises:
        InfeasibleTargetError: naming the smallest target that can be met.
    """
    compressible = network.selection.compressible
    if targets.promise is not None:
        return promised_size(targets, network, original_bytes)
    if sizes := targets.of_kind(FileSize):
        budget_bytes = min(size.resolve(original_bytes, compressible) for size in sizes)
        return FileSizeMethod(network, budget_bytes, original_bytes)
    if counts := targets.of_kind(CodeBits):
        return CodeBitsMethod(network, min(count.resolve(original_bytes, compressible) for count in counts))
    bits = targets.of_kind(WeightBits)
    method = InPlaceWeightBitsMethod if bits[0].in_place else WeightBitsMethod
    return method(network, min(each.resolve(original_bytes, compressible) for each in bits))


def promised_size(targets: Targets, network: Network, original_bytes: int) -> FileSizeMethod:
    """Returns the method for a file whose size is to follow from a promise, at the largest size that is allowed.

    Raises:
        InfeasibleTargetError: the file size that was asked for, too, cannot be met.
    """
    sizes = [size.resolve(original_bytes, network.selection.compressible) for size in targets.of_kind(FileSize)]
    # Where nothing else is asked the file may become as large as the network was.
    largest = min(sizes) if sizes else original_bytes + smallest_file(network)
    return FileSizeMethod(network, largest, original_bytes, path=budget_at_once)
