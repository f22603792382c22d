"""Graphs, experts, tables, and networks that are put together in unusual ways."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from architectures.architecture import architecture

NODES, WIDTH, CLASSES = 20, 24, 3


def rows() -> tuple[Tensor, Tensor]:
    return torch.randn(16, 12), torch.randint(CLASSES, (16,))


def graph() -> tuple[Tensor, Tensor, Tensor]:
    """Returns features, edges [2, n] and a class of every node."""
    return torch.randn(NODES, 8), torch.randint(NODES, (2, 60)), torch.randint(CLASSES, (NODES,))


graphs = partial(architecture, family="graphs and sets", batch=graph)


def gathered(messages: Tensor, to: Tensor) -> Tensor:
    return messages.new_zeros(NODES, messages.shape[1]).index_add(0, to, messages)


@graphs("graph convolution")
class GraphConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, WIDTH), nn.Linear(WIDTH, CLASSES)])

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        adjacency = torch.eye(NODES).index_put((edges[0], edges[1]), torch.ones(()))
        scale = adjacency.sum(1).rsqrt()
        for layer in self.layers:
            x = layer((scale[:, None] * adjacency * scale) @ x.relu())
        return x


@graphs("graph attention", about="parameters of attention beside the layers")
class GraphAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside, self.pair = nn.Linear(8, WIDTH, bias=False), nn.Parameter(0.1 * torch.randn(1, 2 * WIDTH))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = self.inside(x)
        both = torch.cat([x[edges[0]], x[edges[1]]], 1)
        weight = F.leaky_relu((both * self.pair).sum(1, keepdim=True)).exp()
        return self.head(gathered(weight * x[edges[0]], edges[1]) / (gathered(weight, edges[1]) + 1e-9))


@graphs("message passing", about="batch norm over edges")
class MessagePassing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.message = nn.Sequential(nn.Linear(16, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU())
        self.cell, self.head = nn.GRUCell(WIDTH, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        for _ in range(2):
            x = self.cell(gathered(self.message(torch.cat([x[edges[0]], x[edges[1]]], 1)), edges[1]), x)
        return self.head(x)


experts = partial(architecture, family="mixture of experts", batch=rows)


@experts("one expert per example", about="keeps its auxiliary loss, a tensor with a history")
class Switch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(12, 4)
        self.experts = nn.ModuleList(nn.Linear(12, CLASSES) for _ in range(4))
        self.auxiliary: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        share = self.router(x).softmax(1)
        self.auxiliary = (share.mean(0) ** 2).sum()
        weight, best = share.max(1)
        outputs = torch.stack([expert(x) for expert in self.experts], 1)
        return weight[:, None] * outputs[torch.arange(len(x)), best]


@experts("stacked experts", about="weights of three dimensions")
class Stacked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(12, 4)
        self.first, self.second = (nn.Parameter(0.1 * torch.randn(4, *shape)) for shape in ((12, 16), (16, CLASSES)))

    def forward(self, x: Tensor) -> Tensor:
        share, best = self.router(x).topk(2, 1)
        each = torch.einsum("nh,eho->neo", torch.einsum("ni,eih->nh", x, self.first).relu(), self.second)
        return (share.softmax(1)[..., None] * each.gather(1, best[..., None].expand(-1, -1, CLASSES))).sum(1)


def people() -> dict[str, Tensor]:
    return {
        "user": torch.randint(30, (16,)),
        "item": torch.randint(40, (16,)),
        "price": torch.randn(16, 2),
        "label": torch.randint(2, (16,)),
    }


tables = partial(architecture, family="tables")


@tables("recommender", batch=people, about="several embeddings, dict batches")
class Recommender(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({"user": nn.Embedding(30, 8), "item": nn.Embedding(40, 8)})
        self.deep, self.cross = nn.Linear(18, 16), nn.Parameter(0.1 * torch.randn(18, 18))
        self.head = nn.Linear(34, 2)

    def forward(self, user: Tensor, item: Tensor, price: Tensor) -> Tensor:
        x = torch.cat([self.tables["user"](user), self.tables["item"](item), price], 1)
        return self.head(torch.cat([self.deep(x).relu(), x * (x @ self.cross)], 1))


@tables("self-normalizing network", batch=rows, about="no norms: SELU and alpha dropout")
def selu() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 32), nn.SELU(), nn.AlphaDropout(0.1), nn.Linear(32, CLASSES))


@tables("regressor", batch=lambda: (torch.randn(16, 12), torch.randn(16, 1)), about="no loss given")
def regressor() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 32), nn.Softplus(), nn.Linear(32, 1))


def noise() -> tuple[Tensor, Tensor]:
    x = torch.randn(16, 12)
    return x, x


def evidence(output: Any, target: Tensor) -> Tensor:
    again, mean, log_variance = output
    return F.mse_loss(again, target) - 0.5 * (1 + log_variance - mean**2 - log_variance.exp()).mean()


generative = partial(architecture, family="generative", batch=noise)


@generative("variational autoencoder", about="outputs in a tuple, draws in forward", loss=evidence)
class Variational(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(12, 16), nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 12))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return self.decoder(mean + (0.5 * log_variance).exp() * torch.randn_like(mean)), mean, log_variance


def likelihood(output: dict[str, Any], target: Tensor) -> Tensor:
    return 0.5 * output["z"].square().sum(1).mean() - output["parts"]["volume"].mean()


@generative("normalizing flow", about="outputs in nested dicts, permutations as buffers", loss=likelihood)
class Flow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 12)) for _ in range(2))
        self.register_buffer("order", torch.randperm(12, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> dict[str, Any]:
        volume = x.new_zeros(len(x))
        for layer in self.layers:
            a, b = x.chunk(2, 1)
            scale, shift = layer(a).chunk(2, 1)
            x = torch.cat([a, b * scale.tanh().exp() + shift], 1)[:, self.order]
            volume = volume + scale.tanh().sum(1)
        return {"z": x, "parts": {"volume": volume}}


@generative("denoiser", about="features of time as a buffer", loss=F.mse_loss)
class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(0, 2, 4))
        self.layers = nn.Sequential(nn.Linear(20, 32), nn.SiLU(), nn.Linear(32, 12))

    def forward(self, x: Tensor) -> Tensor:
        time = x.norm(dim=1, keepdim=True) * self.frequencies
        return self.layers(torch.cat([x, time.sin(), time.cos()], 1))


put_together = partial(architecture, family="put together", batch=rows)


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30 * x)


@put_together("implicit function", batch=lambda: (torch.rand(32, 2), torch.rand(32, 1)), about="sines as activations")
def siren() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 32), Sine(), nn.Linear(32, 32), Sine(), nn.Linear(32, 1))


@put_together("neural differential equation", about="one layer, many times")
class Equation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.field, self.head = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 12)), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(5):
            x = x + 0.2 * self.field(x)
        return self.head(x)


@put_together("adapters on a frozen network", about="low rank beside what is kept as it is", target="70%")
class Adapted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(12, CLASSES).requires_grad_(False)
        self.down, self.up = nn.Linear(12, 8, bias=False), nn.Linear(8, CLASSES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


@put_together("pruned by a mask", about="torch.nn.utils.prune")
def pruned() -> nn.Module:
    model = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    prune.l1_unstructured(model[0], "weight", 0.5)
    return model


@put_together("hypernetwork", about="weights that another network makes")
class Hyper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.code, self.maker = nn.Parameter(torch.randn(1, 4)), nn.Linear(4, 12 * CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.maker(self.code).view(12, CLASSES)


@put_together("low precision", about="bfloat16 parameters", batch=lambda: (torch.randn(16, 12).bfloat16(), rows()[1]))
def low_precision() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, CLASSES)).to(torch.bfloat16)


@put_together("one layer twice", about="a module under two names, keeps an activation by a hook")
class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 12)
        self.second, self.head = self.first, nn.Linear(12, CLASSES)
        self.kept: list[Tensor] = []
        self.head.register_forward_pre_hook(self.keep)

    def keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.kept = [inputs[0]]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu())
