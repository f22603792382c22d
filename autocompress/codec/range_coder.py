"""One range-coded stream: an encoder, a decoder, and a meter that only counts bits, with one interface.

The model code of this package is written once for both directions. It walks an array in an order that both sides
know, and calls `coder.flags(probabilities, values)`: the encoder writes `values` and returns them; the decoder looks
at nothing of `values` but its length and returns what it reads; the meter adds up `-log2 p` and returns them. So
`array[selection] = coder.flags(p, array[selection])` is a correct encoder and a correct decoder.

Why another machine decodes the same bits: every probability is an integer multiple of 2**-20, or an integer weight.
They are computed from integer counts by integer arithmetic and by single float64 additions, multiplications and
divisions, element by element, which IEEE 754 rounds in exactly one way. Nothing is summed in floating point (the order
of a sum is a library's choice), and there is no exp, log or power in a probability. `constriction` turns these numbers
into its 24-bit fixed-point models one symbol at a time, in scalar code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import constriction
import numpy as np
from numpy.typing import NDArray

from autocompress.errors import CorruptArtifactError

if TYPE_CHECKING:
    from autocompress.codec.compiled_coder import CompiledCoder

# Integers of any width.
Array = NDArray[np.signedinteger[Any]]
Floats = NDArray[np.float64]
Codes = NDArray[np.int16]
Flags = NDArray[np.int8]
# Probabilities of flags are integers in units of 1 / ONE, never 0 and never ONE.
ONE = 1 << 20

_queue = constriction.stream.queue
_model = constriction.stream.model
_BERNOULLI = _model.Bernoulli(perfect=False)


class Coder(Protocol):
    """What model code may do with a stream."""

    @property
    def chooses(self) -> bool:
        """Whether `values` are known, so that the best of several models can be chosen."""

    @property
    def compiled(self) -> CompiledCoder | None:
        """Itself where its state is that of compiled code."""

    def meter(self) -> BitMeter:
        """Returns a new meter, to try models with."""

    def part(self, part: str, name: str) -> None:
        """Books what follows under `part` of tensor `name` (the meter only)."""

    def flags(self, probabilities: Array, values: Array) -> Array:
        """Codes 0/1 `values` [n], each being 1 with probability `probabilities / ONE` [n]."""

    def symbols(self, weights: Array, values: Array) -> Array:
        """Codes `values` [n] in 0..K-1, each with the probabilities `weights / sum(weights)` [K], all positive."""

    def bits(self, count: int, values: Array) -> Array:
        """Codes `values` [n] in 0..2**count-1, all equally likely; count <= 16."""


class BitMeter(Coder, Protocol):
    """A coder that counts bits."""

    @property
    def booked(self) -> dict[tuple[str, str], float]:
        """Bits by (part, tensor name)."""

    @property
    def total_bits(self) -> float:
        """Their sum."""


class Encoder:
    """Writes a stream."""

    chooses = True
    compiled = None

    def __init__(self) -> None:
        self._encoder = _queue.RangeEncoder()

    def meter(self) -> Meter:
        return Meter()

    def part(self, part: str, name: str) -> None:
        pass

    def flags(self, probabilities: Array, values: Array) -> Array:
        if len(values):
            self._encoder.encode(values.astype(np.int32), _BERNOULLI, probabilities / ONE)
        return values

    def symbols(self, weights: Array, values: Array) -> Array:
        if len(values) and len(weights) > 1:
            model = _model.Categorical(weights.astype(np.float64), perfect=False)
            self._encoder.encode(values.astype(np.int32), model)
        return values

    def bits(self, count: int, values: Array) -> Array:
        if len(values) and count:
            self._encoder.encode(values.astype(np.int32), _model.Uniform(1 << count))
        return values

    def finish(self) -> bytes:
        """Returns the stream: as few bytes as decode to what was written when zeros follow."""
        written, (lower, width) = self._encoder.pos()
        words = self._encoder.get_compressed().astype(">u4").tobytes()
        # The stream is a number; the words are one that decodes rightly, and `lower` and `width` end the interval
        # [start, start + width) of all such numbers.
        length = 4 * written + 8
        sealed = int.from_bytes(words.ljust(length, b"\0"), "big")
        start = (sealed >> 64 << 64) + lower
        if not start <= sealed < start + width:
            start -= 1 << 64  # a carry had been pending
        return roundest(start, width, length)


def roundest(start: int, width: int, length: int) -> bytes:
    """Returns the number in [start, start + width) with the most zero bytes at the end, without these.

    Args:
        start, width: of an interval of numbers of `length` bytes.
        length: before the zeros are dropped.
    """
    for zeros in range(64, -1, -8):
        number = -(-start >> zeros) << zeros
        if number < start + width:
            break
    return bytes(number.to_bytes(length, "big").rstrip(b"\0"))


def words_of(data: bytes) -> NDArray[np.uint32]:
    """Returns a stream as words, the last one filled up with zeros."""
    return np.frombuffer(data + bytes(-len(data) % 4), dtype=">u4").astype(np.uint32)


class Decoder:
    """Reads a stream."""

    chooses = False
    compiled = None

    def __init__(self, data: bytes) -> None:
        self._decoder = _queue.RangeDecoder(words_of(data))

    def meter(self) -> Meter:
        return Meter()

    def part(self, part: str, name: str) -> None:
        pass

    def _decode(self, model: object, argument: object) -> Array:
        try:
            return np.asarray(self._decoder.decode(model, argument)).astype(np.int64)
        except AssertionError as error:  # how constriction reports a stream that no encoder wrote
            raise CorruptArtifactError("the compressed stream is damaged") from error

    def flags(self, probabilities: Array, values: Array) -> Array:
        return self._decode(_BERNOULLI, probabilities / ONE) if len(values) else values

    def symbols(self, weights: Array, values: Array) -> Array:
        if len(weights) < 2 or not len(values):
            return np.zeros(len(values), np.int64)
        return self._decode(_model.Categorical(weights.astype(np.float64), perfect=False), len(values))

    def bits(self, count: int, values: Array) -> Array:
        if not count or not len(values):
            return np.zeros(len(values), np.int64)
        return self._decode(_model.Uniform(1 << count), len(values))


class Meter:
    """Counts what an encoder would write, in bits.

    Attributes:
        booked: bits by (part, tensor name).
    """

    chooses = True
    compiled = None

    def __init__(self) -> None:
        self.booked: dict[tuple[str, str], float] = {}
        self._key = ("header", "")

    def meter(self) -> Meter:
        return Meter()

    @property
    def total_bits(self) -> float:
        return sum(self.booked.values())

    def part(self, part: str, name: str) -> None:
        self._key = (part, name)

    def _book(self, bits: float) -> None:
        self.booked[self._key] = self.booked.get(self._key, 0.0) + bits

    def flags(self, probabilities: Array, values: Array) -> Array:
        likely = np.where(values != 0, probabilities, ONE - probabilities)
        self._book(float(20 * len(values) - np.log2(likely).sum()))
        return values

    def symbols(self, weights: Array, values: Array) -> Array:
        if len(values):
            self._book(float(len(values) * np.log2(weights.sum()) - np.log2(weights[values]).sum()))
        return values

    def bits(self, count: int, values: Array) -> Array:
        self._book(float(count * len(values)))
        return values
