"""What is asked of the compressor, and the grammar in which it is said.

    50KB  50KiB  1.5MB  4000B     the file, everything in it (1 KB = 1000 bytes, 1 KiB = 1024 bytes)
    1%  100x                      the file, as a part of the original float32 tensors
    weights:836x  weights:6498bits    weight data, the literature's count: bits times nonzeros, nothing else
    weights-in-place:836x             the same by the published algorithm, to compare with
    codes:20x  codes:250000bits       positions, codes and codebooks of the weights, codebooks of kernels among them
    drop:0.5                          validation accuracy at most 0.5 points below that of the network given
    loss:+2%                          validation loss at most 2 % above that of the network given
    energy:40%                        the energy of a forward pass, as a part of the dense network's: weights are zeroed
    energy-channels:40%               the same by removing whole channels

Alone, a quality constraint (drop:, loss:) asks for the smallest file that satisfies it. Several targets, joined by
"and" or given one by one, must all be satisfied: `50KB and drop:0.5`, `50KB and energy:40%`.

The same strings serve in Python and on the command line; upper and lower case mean the same.
"""

from autocompress.targets.grammar import Targets, combined, parse_target
from autocompress.targets.kinds import BYTES_PER_UNIT, CodeBits, Energy, FileSize, Target, WeightBits
from autocompress.targets.quality import AccuracyDrop, LossIncrease, QualityTarget

__all__ = [
    "BYTES_PER_UNIT",
    "AccuracyDrop",
    "CodeBits",
    "Energy",
    "FileSize",
    "LossIncrease",
    "QualityTarget",
    "Target",
    "Targets",
    "WeightBits",
    "combined",
    "parse_target",
]
