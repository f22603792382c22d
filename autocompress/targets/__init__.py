"""What is asked of the compressor, and the grammar in which it is said.

    50KB  50KiB  1.5MB  4000B     the file, everything in it (1 KB = 1000 bytes, 1 KiB = 1024 bytes)
    1%  100x                      the file, as a part of the original float32 tensors
    weights:836x  weights:6498bits    weight data, the literature's count: bits times nonzeros, nothing else
    weights-in-place:836x             the same by the published algorithm, to compare with
    energy:40%                        the energy of a forward pass, as a part of the dense network's: weights are zeroed
    energy-channels:40%               the same by removing whole channels
    50KB and energy:40%               both hold; also as two targets

The same strings serve in Python and on the command line; upper and lower case mean the same.
"""

from autocompress.targets.energy import Energy, FileSizeAndEnergy
from autocompress.targets.file_size import BYTES_PER_UNIT, FileSize
from autocompress.targets.grammar import Target, only_target, parse_target
from autocompress.targets.weight_bits import WeightBits

__all__ = [
    "BYTES_PER_UNIT",
    "Energy",
    "FileSize",
    "FileSizeAndEnergy",
    "Target",
    "WeightBits",
    "only_target",
    "parse_target",
]
