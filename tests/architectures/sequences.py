"""Networks of text, sound and other sequences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from architectures.architecture import architecture

WORDS, LENGTH, WIDTH = 50, 12, 32


def next_words() -> tuple[Tensor, Tensor]:
    text = torch.randint(WORDS, (4, LENGTH + 1))
    return text[:, :-1], text[:, 1:]


def texts() -> tuple[Tensor, Tensor]:
    return torch.randint(1, WORDS, (4, LENGTH)), torch.randint(3, (4,))


def series() -> tuple[Tensor, Tensor]:
    return torch.randn(4, LENGTH, 6), torch.randint(3, (4,))


def waves() -> tuple[Tensor, Tensor]:
    wave = torch.randn(2, 1, 64)
    return wave, wave.roll(1, -1)


def wave_loss(output: Tensor, target: Tensor) -> Tensor:
    return F.l1_loss(output, target)


def causal_mask(length: int = LENGTH) -> Tensor:
    return torch.full((length, length), -math.inf).triu(1)


language = partial(architecture, family="language model", batch=next_words)


class Decoder(nn.Module):
    """A decoder with learned positions and a causal mask as a buffer."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 64, dropout=0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.head.weight = self.words.weight
        self.register_buffer("mask", causal_mask())

    def forward(self, text: Tensor) -> Tensor:
        x = self.words(text) + self.places(torch.arange(text.shape[1]))
        return self.head(self.layers(x, mask=self.mask, is_causal=True))


@language("decoder, tied", about="embedding and head are one tensor; a mask with infinities as buffer")
def tied() -> nn.Module:
    return Decoder(tied=True)


@language("decoder, untied")
def untied() -> nn.Module:
    return Decoder(tied=False)


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


@language("decoder with rotary positions", about="grouped queries, gated units, RMS norm, tables that are not saved")
class Rotary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.norms = nn.ModuleList(RMSNorm(WIDTH) for _ in range(2))
        self.queries, self.keys = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, 8, bias=False)
        self.values, self.out = nn.Linear(WIDTH, 8, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.gate, self.up = nn.Linear(WIDTH, 64, bias=False), nn.Linear(WIDTH, 64, bias=False)
        self.down, self.head = nn.Linear(64, WIDTH, bias=False), nn.Linear(WIDTH, WORDS, bias=False)
        angles = torch.outer(torch.arange(LENGTH), 100.0 ** (-torch.arange(4) / 4))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def turned(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a * self.cos - b * self.sin, a * self.sin + b * self.cos], -1)

    def forward(self, text: Tensor) -> Tensor:
        x = self.words(text)
        y = self.norms[0](x)
        n, length, _ = y.shape
        q = self.turned(self.queries(y).view(n, length, 4, 8).transpose(1, 2))
        k = self.turned(self.keys(y).view(n, length, 1, 8).transpose(1, 2)).expand(-1, 4, -1, -1)
        v = self.values(y).view(n, length, 1, 8).transpose(1, 2).expand(-1, 4, -1, -1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        y = self.norms[1](x)
        return self.head(x + self.down(F.silu(self.gate(y)) * self.up(y)))


@language("decoder with relative positions", about="a table of biases by distance")
class Relative(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.bias = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, 2)
        self.mix = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, text: Tensor) -> Tensor:
        x, place = self.words(text), torch.arange(text.shape[1])
        bias = self.bias((place[:, None] - place).clamp(min=0)).permute(2, 0, 1).repeat(len(text), 1, 1)
        return self.head(x + self.mix(x, x, x, attn_mask=bias + causal_mask(text.shape[1]), need_weights=False)[0])


@dataclass
class Answer:
    """What such libraries return."""

    loss: Tensor | None
    logits: Tensor


def fields() -> dict[str, Tensor]:
    text = torch.randint(WORDS, (4, LENGTH))
    return {"input_ids": text, "attention_mask": torch.ones_like(text), "labels": text}


@architecture(
    "language model with its own loss", "language model", fields, "dict batches, an output that carries the loss"
)
class OwnLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = Decoder(tied=True)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Answer:
        logits = self.decoder(input_ids)
        if labels is None:
            return Answer(None, logits)
        return Answer(F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()), logits)


@language("state space", about="a gated linear recurrence; parameters of dynamics")
class StateSpace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.inside, self.steps = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, 1)
        self.decay = nn.Parameter(torch.log(torch.arange(1, 5).float()).repeat(WIDTH, 1))
        self.mix = nn.Conv1d(WIDTH, WIDTH, 3, groups=WIDTH)
        self.b, self.c = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 4)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, text: Tensor) -> Tensor:
        x, gate = self.inside(self.words(text)).chunk(2, -1)
        x = F.silu(self.mix(F.pad(x.mT, (2, 0))).mT)
        step, b, c = F.softplus(self.steps(x)), self.b(x), self.c(x)
        state, out = x.new_zeros(len(x), WIDTH, 4), []
        for t in range(x.shape[1]):
            kept = torch.exp(-self.decay.exp() * step[:, t, :, None])
            state = state * kept + (step[:, t] * x[:, t])[..., None] * b[:, t, None]
            out.append((state * c[:, t, None]).sum(-1))
        return self.head(torch.stack(out, 1) * F.silu(gate))


@architecture("encoder", "text", texts, "a mask of padding, a class token")
class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.token = nn.Embedding(WORDS, WIDTH, padding_idx=0), nn.Parameter(torch.randn(1, 1, WIDTH))
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 2, 64, batch_first=True), 1)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, text: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(text), -1, -1), self.words(text)], 1)
        padding = F.pad(text == 0, (1, 0))
        return self.head(self.layers(x, src_key_padding_mask=padding)[:, 0])


def pairs() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randint(WORDS, (4, 8)), torch.randint(WORDS, (4, 6)), torch.randint(WORDS, (4, 6))


@architecture("encoder and decoder", "text", pairs, "two inputs, one embedding for three places")
class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.Transformer(WIDTH, 2, 1, 1, 64, batch_first=True)
        self.head = nn.Linear(WIDTH, WORDS)
        self.head.weight = self.words.weight

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = causal_mask(target.shape[1])
        return self.head(self.layers(self.words(source), self.words(target), tgt_mask=mask))


def bags() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randint(WORDS, (20,)), torch.tensor([0, 4, 9, 15]), torch.randint(3, (4,))


@architecture("bag of words", "text", bags, "sparse gradients")
class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.EmbeddingBag(WORDS, WIDTH, sparse=True), nn.Linear(WIDTH, 3)

    def forward(self, words: Tensor, starts: Tensor) -> Tensor:
        return self.head(self.words(words, starts))


recurrent = partial(architecture, family="recurrent", batch=series)


class Last(nn.Module):
    """The last output of a recurrent network."""

    def __init__(self, layers: nn.Module, width: int) -> None:
        super().__init__()
        self.layers, self.head = layers, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)[0][:, -1])


@recurrent("LSTM", about="two layers, both directions")
def lstm() -> nn.Module:
    return Last(nn.LSTM(6, 16, 2, batch_first=True, bidirectional=True, dropout=0.1), 32)


@recurrent("LSTM with projections")
def projected_lstm() -> nn.Module:
    return Last(nn.LSTM(6, 24, batch_first=True, proj_size=8), 8)


@recurrent("GRU")
def gru() -> nn.Module:
    return Last(nn.GRU(6, 24, batch_first=True), 24)


@recurrent("RNN", about="no gates")
def rnn() -> nn.Module:
    return Last(nn.RNN(6, 24, batch_first=True), 24)


def packed() -> tuple[PackedSequence, Tensor]:
    return pack_sequence([torch.randn(n, 6) for n in (7, 5, 2)]), torch.randint(3, (3,))


@architecture("LSTM on packed sequences", "recurrent", packed, "PackedSequence as input")
class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.LSTM(6, 24), nn.Linear(24, 3)

    def forward(self, x: PackedSequence) -> Tensor:
        return self.head(self.layers(x)[1][0][0])


@language("GRU language model, tied")
class TiedGru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.layers = nn.Embedding(WORDS, WIDTH), nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, WORDS)
        self.head.weight = self.words.weight

    def forward(self, text: Tensor) -> Tensor:
        return self.head(self.layers(self.words(text))[0])


sound = partial(architecture, family="sound", batch=waves, loss=wave_loss)


@sound("WaveNet", about="dilated convolutions, old weight norm")
class WaveNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        norm: Any = nn.utils.weight_norm
        self.first = norm(nn.Conv1d(1, 16, 1))
        self.gates = nn.ModuleList(norm(nn.Conv1d(16, 32, 2, dilation=2**i)) for i in range(3))
        self.skips = nn.ModuleList(norm(nn.Conv1d(16, 16, 1)) for _ in range(3))
        self.last = norm(nn.Conv1d(16, 1, 1))

    def forward(self, wave: Tensor) -> Tensor:
        x = self.first(wave)
        for gates, skip in zip(self.gates, self.skips, strict=True):
            a, b = gates(F.pad(x, (gates.dilation[0], 0))).chunk(2, 1)
            x = x + skip(a.tanh() * b.sigmoid())
        return self.last(x)


@sound("vocoder", about="transposed convolutions, weight norm by parametrizations")
class Vocoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.down = norm(nn.Conv1d(1, 16, 4, stride=4))
        self.up = norm(nn.ConvTranspose1d(16, 8, 4, stride=4))
        self.last = norm(nn.Conv1d(8, 1, 7, padding=3))

    def forward(self, wave: Tensor) -> Tensor:
        return self.last(F.leaky_relu(self.up(F.leaky_relu(self.down(wave)))))


@architecture("Conformer", "sound", series, "attention, depthwise convolutions and gated units")
class Conformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside, self.norm = nn.Linear(6, WIDTH), nn.LayerNorm(WIDTH)
        self.mix = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.wide = nn.Conv1d(WIDTH, 2 * WIDTH, 1)
        self.deep = nn.Sequential(nn.Conv1d(WIDTH, WIDTH, 5, padding=2, groups=WIDTH), nn.BatchNorm1d(WIDTH), nn.SiLU())
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inside(x)
        y = self.norm(x)
        x = x + self.mix(y, y, y)[0]
        x = x + self.deep(F.glu(self.wide(x.mT), 1)).mT
        return self.head(x.mean(1))
