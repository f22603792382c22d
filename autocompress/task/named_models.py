"""A network by its name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial

from torch import nn

from autocompress.errors import InvalidInputError
from autocompress.models.alexnet import AlexNet
from autocompress.models.lenet import LeNet5
from autocompress.task.networks import CifarResNet, ResNet50
from autocompress.task.user_code import import_function

# name -> (constructor, channels of the images it is meant for)
_MODELS: dict[str, tuple[Callable[..., nn.Module], int]] = {
    "lenet5": (LeNet5, 1),
    "alexnet": (AlexNet, 3),
    "resnet20": (partial(CifarResNet, 3), 3),
    "resnet32": (partial(CifarResNet, 5), 3),
    "resnet44": (partial(CifarResNet, 7), 3),
    "resnet56": (partial(CifarResNet, 9), 3),
    "resnet50": (ResNet50, 3),
}
MODEL_NAMES = tuple(_MODELS)
_TORCHVISION = "torchvision:"


def make_model(name: str, num_classes: int = 10, in_channels: int | None = None) -> nn.Module:
    """Returns a freshly initialized network.

    Args:
        name: one of `MODEL_NAMES`, `torchvision:NAME` (a classifier of torchvision.models), or
            `package.module:function` (called without arguments).
        num_classes: number of logits; ignored by a function of your own.
        in_channels: channels of the images; default: what the network is meant for.

    Raises:
        InvalidInputError: the name is not known (close ones are given), or it cannot take these images.
    """
    if name in _MODELS:
        constructor, usual_channels = _MODELS[name]
        return constructor(num_classes=num_classes, in_channels=in_channels or usual_channels)
    if name.startswith(_TORCHVISION):
        return _torchvision_model(name.removeprefix(_TORCHVISION), num_classes, in_channels)
    if ":" in name:
        model = import_function(name)()
        if not isinstance(model, nn.Module):
            raise InvalidInputError(f"{name!r} returned a {type(model).__name__}; it must return a torch.nn.Module")
        return model
    classifiers = _torchvision_classifiers()
    exact = f" did you mean {_TORCHVISION}{name}?" if name in classifiers else ""
    hint = exact or _suggest(name, (*_MODELS, *(_TORCHVISION + each for each in classifiers)))
    raise InvalidInputError(
        f"model {name!r} is unknown;{hint} the names are {', '.join(_MODELS)}, torchvision:NAME and "
        "package.module:function"
    )


def _torchvision_model(name: str, num_classes: int, in_channels: int | None) -> nn.Module:
    classifiers = _torchvision_classifiers()
    if name not in classifiers:
        hint = _suggest(name, tuple(classifiers))
        raise InvalidInputError(
            f"torchvision has no classifier {name!r};{hint} its classifiers are those of its manual"
        )
    if in_channels not in (None, 3):
        raise InvalidInputError(f"torchvision:{name} takes images of 3 channels; these have {in_channels}")
    from torchvision import models

    # GoogLeNet and Inception would also return the logits of their auxiliary classifiers.
    extra = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **extra)
    return model


def _torchvision_classifiers() -> list[str]:
    from torchvision import models  # here because it takes a second to import

    return list(models.list_models(module=models))


def _suggest(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f" did you mean {' or '.join(close)}?" if close else ""
