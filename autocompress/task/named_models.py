"""A network by its name."""

from __future__ import annotations

import contextlib
import difflib
import logging
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from autocompress.errors import InvalidInputError
from autocompress.network.live_network import EXTRA_STATE, named_tensors, state_names, storage_key
from autocompress.task.arrays import extra
from autocompress.task.networks import AlexNet, CifarResNet, LeNet5, ResNet50
from autocompress.task.user_code import call_function

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
_TORCHVISION, _TIMM, _TRANSFORMERS = "torchvision:", "timm:", "hf:"
LIBRARIES = (_TORCHVISION, _TIMM, _TRANSFORMERS)


def make_model(name: str, num_classes: int = 10, in_channels: int | None = None) -> nn.Module:
    """Returns a freshly initialized network.

    Args:
        name: one of `MODEL_NAMES`, `torchvision:NAME` (a classifier of torchvision.models), `timm:NAME` (of timm),
            `hf:PATH_OR_CONFIG` (a folder or file with the configuration of a network of transformers, or a name that
            it knows), or `package.module:function` (called without arguments).
        num_classes: number of logits; ignored by a function of your own, and by what has a configuration.
        in_channels: channels of the images; default: what the network is meant for; ignored likewise.

    Raises:
        InvalidInputError: the name is not known (close ones are given), or it cannot take these images.
    """
    if name in _MODELS:
        constructor, usual_channels = _MODELS[name]
        return constructor(num_classes=num_classes, in_channels=in_channels or usual_channels)
    if name.startswith(_TORCHVISION):
        return _torchvision_model(name.removeprefix(_TORCHVISION), num_classes, in_channels)
    if name.startswith(_TIMM):
        return _timm_model(name.removeprefix(_TIMM), num_classes, in_channels)
    if name.startswith(_TRANSFORMERS):
        return transformers_model(name.removeprefix(_TRANSFORMERS))
    if ":" in name:
        model = call_function(name)
        if not isinstance(model, nn.Module):
            raise InvalidInputError(f"{name!r} returned a {type(model).__name__}; it must return a torch.nn.Module")
        return model
    classifiers: list[str] = []
    with contextlib.suppress(InvalidInputError):  # torchvision is not installed: it has no names to suggest
        classifiers = _torchvision_classifiers()
    exact = f" did you mean {_TORCHVISION}{name}?" if name in classifiers else ""
    hint = exact or _suggest(name, (*_MODELS, *(_TORCHVISION + each for each in classifiers)))
    raise InvalidInputError(
        f"model {name!r} is unknown;{hint} the names are {', '.join(_MODELS)}, torchvision:NAME, timm:NAME, "
        "hf:PATH_OR_CONFIG and package.module:function"
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
    with extra("a network of torchvision"):
        from torchvision import models  # here because it takes a second to import

    return list(models.list_models(module=models))


def _timm_model(name: str, num_classes: int, in_channels: int | None) -> nn.Module:
    with extra("a network of timm"):
        import timm
    if name not in (known := timm.list_models()):
        hint = _suggest(name, tuple(known))
        raise InvalidInputError(f"timm has no network {name!r};{hint} timm.list_models() has all names")
    model: nn.Module = timm.create_model(name, num_classes=num_classes, in_chans=in_channels or 3)
    return model


def transformers_model(source: str | Path) -> nn.Module:
    """Returns a freshly initialized network of transformers.

    Args:
        source: a folder with a `config.json`, such a file, or a name that transformers knows.

    Raises:
        InvalidInputError: there is none, or it names no class of transformers.
    """
    with extra("a network of transformers"):
        import transformers
    try:
        config = transformers.AutoConfig.from_pretrained(str(source))
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InvalidInputError(f"{source} has no configuration of a network of transformers: {reason}") from error
    names = config.architectures or []
    kind = getattr(transformers, names[0], None) if names else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise InvalidInputError(
            f"the configuration {source} has the architectures {names}; it must name one class of transformers, such "
            'as ["BertForSequenceClassification"]'
        )
    network: nn.Module = kind(config)
    return network


def own_weights(name: str) -> Path | None:
    """Returns the file of weights that lies beside the configuration of an `hf:` folder, None where there is none."""
    path = Path(name.removeprefix(_TRANSFORMERS)) / "model.safetensors"
    return path if name.startswith(_TRANSFORMERS) and path.is_file() else None


def _suggest(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f" did you mean {' or '.join(close)}?" if close else ""


logger = logging.getLogger(__name__)

_LISTED = 8  # names told in an error message
# Where training checkpoints keep the state_dict, and what wrappers put before its names.
_CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model")
_WRAPPER_PREFIXES = ("module.", "model.")


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Loads a state_dict into the model, in place, and returns the model.

    Args:
        model: the network.
        path: `.safetensors`, or anything else as a file of `torch.save` that holds a state_dict, read without
            unpickling code. The names may be those of a wrapper, and the state_dict may lie in a training checkpoint.

    Raises:
        InvalidInputError: no such file, not a file of tensors, or names or shapes that are not the model's.
    """
    expected = named_tensors(model)
    state = _with_names_of(_read_state(Path(path)), set(expected))
    problems, given = [], {storage_key(expected[name]): name for name in state if name in expected}
    for name, tensor in expected.items():
        holder = given.get(storage_key(tensor))  # the name under which the file has this tensor, shared or not
        if holder is None and not _is_counter(name):
            problems.append(f"{name} is missing")
        elif holder and holder != name and name in state and not torch.equal(state[name], state[holder]):
            problems.append(f"{name} and {holder} are one tensor in the model and differ in the file")
    problems += [f"{name} is not in the model" for name in state if name not in expected]
    problems += [
        f"{name} is {list(state[name].shape)} where the model has {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise InvalidInputError(
            f"the weights in {path} do not fit the model {type(model).__name__}: {'; '.join(problems[:_LISTED])}{more}"
        )
    own = state_names(model)
    model.load_state_dict({own[name]: tensor for name, tensor in state.items()}, strict=False)
    return model


def _is_counter(name: str) -> bool:
    """Returns whether the entry is batch norm's count of batches, which older files lack and nothing needs."""
    return name.rpartition(".")[2] == "num_batches_tracked"


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InvalidInputError(f"there is no file {path} to take weights from")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load takes any bytes for a pickle, and ends in any error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds pickled objects; save model.state_dict() instead"
        raise InvalidInputError(f"{path} is not a readable file of weights ({reason})") from error
    for key in _CHECKPOINT_KEYS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    # What is no tensor, such as the extra state of a module, is none of the network's weights.
    tensors = {n: t for n, t in state.items() if isinstance(t, Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        raise InvalidInputError(f"{path} holds a {type(state).__name__}; it must be a state_dict: names and tensors")
    return {str(name): tensor for name, tensor in tensors.items() if not str(name).endswith(EXTRA_STATE)}


def _with_names_of(state: dict[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """Returns a state_dict under the names of a plain network: without those of wrappers, at every level.

    A name that a wrapper's owner gave it (Lightning's `model.`) goes only where it leads to a name that is expected;
    then what stands beside the network, such as the weights of a loss, is left out.
    """
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}
    found = state
    while found and not expected & set(found):
        common = next((p for p in _WRAPPER_PREFIXES if any(name.startswith(p) for name in found)), None)
        if common is None:
            return state
        found = {name.removeprefix(common): t for name, t in found.items() if name.startswith(common)}
    if len(found) < len(state):
        logger.info("%d tensors beside the network are left out of its weights", len(state) - len(found))
    inner = {name: name.replace(".module.", ".") for name in found if name not in expected}
    return {inner[name] if inner.get(name) in expected else name: tensor for name, tensor in found.items()}
