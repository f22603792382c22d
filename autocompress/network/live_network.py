"""A user's network in memory: copied, its modes put back, its tensors under plain names, each storage once."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from autocompress.errors import InvalidInputError

# How torch names what `get_extra_state` of a module returns.
EXTRA_STATE = "_extra_state"


def unwrap(model: nn.Module) -> nn.Module:
    """Returns the network inside `torch.compile`, DataParallel and DistributedDataParallel wrappers."""
    while (attribute := _inner_attribute(model)) is not None:
        model = getattr(model, attribute)
    return model


def dense_gradients(parameters: Iterable[Tensor]) -> None:
    """Makes the sparse gradients of `EmbeddingBag(sparse=True)` and its like plain tensors."""
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.to_dense()


@contextlib.contextmanager
def modes_put_back(model: nn.Module) -> Iterator[None]:
    """Leaves every module in the mode, of training or evaluation, in which it was."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def tensors_in(value: Any) -> list[Tensor]:
    """Returns all tensors of a network's output in their order, out of tuples, dicts and dataclasses of any depth."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        parts: Iterable[Any] = value.values()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = (getattr(value, field.name) for field in dataclasses.fields(value))
    else:
        parts = value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


def accepted_arguments(model: nn.Module, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of the fields that the network's `forward` takes; all where it takes any."""
    parameters = inspect.signature(unwrap(model).forward).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return dict(fields)
    names = {p.name for p in parameters if p.kind is not inspect.Parameter.POSITIONAL_ONLY}
    return {name: value for name, value in fields.items() if name in names}


def _inner_attribute(module: nn.Module) -> str | None:
    """Returns under which name a wrapper holds its network, None for a module that is no wrapper."""
    if isinstance(getattr(module, "_orig_mod", None), nn.Module):  # torch.compile
        return "_orig_mod"
    return "module" if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel) else None


def copy_network(
    model: nn.Module, *, device: torch.device | str | None = None, keep_wrappers: bool = False
) -> nn.Module:
    """Returns a copy of a network in any state: one that keeps activations, old weight norm, tied weights of any kind.

    A tensor with a history, which `copy.deepcopy` refuses, is copied without it. Two parameters over one storage stay
    tied, on another device as well.

    Args:
        model: the network, wrapped or not.
        device: where the copy lies; default: where the network does.
        keep_wrappers: else the copy is free of them at every level.

    Raises:
        InvalidInputError: a module holds what cannot be copied, a tensor has no shape yet, or there is TorchScript;
            module and attribute are named.
    """
    refuse_unfinished(model)
    memo: dict[int, Any] = {}
    for group in _shared(_own_tensors(model)):
        _copy_tied(group, memo)
    try:
        copied = _deepcopy(model, memo, keep_wrappers)
    except Exception as error:  # whatever the objects that a module holds raise
        raise InvalidInputError(_what_cannot_be_copied(model, error)) from error
    if device is not None:
        copied = _moved(copied, torch.device(device))
    return copied


def check_copyable(model: nn.Module) -> None:
    """Checks that `copy_network` can copy a network; costs no memory, because its tensors are not copied.

    Raises:
        InvalidInputError: as `copy_network`.
    """
    refuse_unfinished(model)
    memo: dict[int, Any] = {id(tensor): tensor for tensor in _own_tensors(model)}
    try:
        _deepcopy(model, memo, keep_wrappers=False)
    except Exception as error:
        raise InvalidInputError(_what_cannot_be_copied(model, error)) from error


def refuse_unfinished(model: nn.Module) -> None:
    """Checks that all of a network is there, as Python modules with tensors.

    Raises:
        InvalidInputError: it is no module, a tensor has no shape yet or is sparse, or a module is TorchScript, whose
            copies cannot be trained, or out of torch.export, which has no modes.
    """
    if not isinstance(model, nn.Module):
        kind = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        if isinstance(model, torch.export.ExportedProgram):
            raise InvalidInputError(
                f"the model is {kind}, a graph that cannot be trained; give the torch.nn.Module that it was "
                "exported from: its weights are exported.state_dict"
            )
        raise InvalidInputError(f"the model is {kind}; give a network, an object of a class of torch.nn.Module")
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if is_lazy(tensor):
            raise InvalidInputError(f"{name} has no shape yet; pass a batch through the network first")
        if tensor.layout != torch.strided or tensor.is_nested:
            raise InvalidInputError(
                f"{name} is a {'nested' if tensor.is_nested else 'sparse'} tensor, which no file holds; make it dense, "
                "or keep it in a plain attribute of the module"
            )
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            where = f"the module {name!r}" if name else "the network"
            raise InvalidInputError(f"{where} is TorchScript; give the torch.nn.Module that it was made from")
    if "eval" in vars(model):  # torch.export puts a method there that raises
        training = model.training
        try:
            model.eval()
            model.train(training)
        except NotImplementedError as error:
            raise InvalidInputError(
                f"the network cannot be put into evaluation mode ({error}); give the torch.nn.Module that it was "
                "exported from"
            ) from error


class _WithoutHistory(TorchFunctionMode):
    """Copies tensors that are no leaves, or of inference mode, as plain ones: deepcopy refuses the first."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and (not args[0].is_leaf or args[0].is_inference()):
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def _deepcopy(model: nn.Module, memo: dict[int, Any], keep_wrappers: bool) -> nn.Module:
    with torch.inference_mode(False), _WithoutHistory():
        if not keep_wrappers:
            # Innermost first. A wrapper's copy is the copy of what it wraps.
            for wrapper in reversed([m for m in model.modules() if _inner_attribute(m) is not None]):
                memo[id(wrapper)] = copy.deepcopy(unwrap(wrapper), memo)
        return copy.deepcopy(model, memo)


def _what_cannot_be_copied(model: nn.Module, error: Exception) -> str:
    """Returns a message that names the first attribute which cannot be copied."""
    tensors = {id(tensor): tensor for tensor in _own_tensors(model)}
    for name, module in model.named_modules():
        modules = {id(child): child for child in model.modules()}
        for key, value in vars(module).items():
            try:
                with _WithoutHistory():
                    copy.deepcopy(value, dict(tensors | modules))
            except Exception:
                where = f"its module {name!r} holds" if name else "it holds"
                return (
                    f"{type(model).__name__} cannot be copied: {where} a {type(value).__name__} as {key!r} ({error}); "
                    "take it out before, or give the module a __deepcopy__"
                )
    return f"{type(model).__name__} cannot be copied: {error}"


def _own_tensors(model: nn.Module) -> list[Tensor]:
    """Returns the parameters and buffers of a network, each object once."""
    return [*model.parameters(), *model.buffers()]


def _shared(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Returns groups of different tensor objects over one storage."""
    groups: dict[tuple[torch.device, int], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        if tensor.numel() and _has_storage(tensor):
            groups[tensor.device, tensor.untyped_storage().data_ptr()].append(tensor)
    return [group for group in groups.values() if len(group) > 1]


def _copy_tied(group: list[Tensor], memo: dict[int, Any]) -> None:
    """Notes copies of tensors over one storage that lie over one storage again."""
    storage = group[0].untyped_storage().clone()  # type: ignore[no-untyped-call]
    for tensor in group:
        view = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        view = view.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())
        memo[id(tensor)] = nn.Parameter(view, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else view


@torch.no_grad()
def _moved(model: nn.Module, device: torch.device) -> nn.Module:
    """Returns the network on a device; `Module.to` alone moves every parameter for itself and unties them."""
    tied: dict[tuple[object, ...], list[nn.Parameter]] = defaultdict(list)
    for parameter in model.parameters():
        tied[storage_key(parameter)].append(parameter)
    model = model.to(device)
    for first, *others in tied.values():
        for other in others:
            other.data = first.data
    return model


def _has_storage(tensor: Tensor) -> bool:
    """Tells whether a tensor has an address: not on the meta device, and no wrapper such as a DTensor."""
    try:
        return tensor.device.type != "meta" and tensor.data_ptr() != 0
    except RuntimeError:
        return False


def storage_key(tensor: Tensor) -> tuple[object, ...]:
    """Returns what two names of one tensor have in common; an empty one, or one without an address, is only itself."""
    if not tensor.numel() or not _has_storage(tensor):
        return (id(tensor),)
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())


def refuse_partial_overlap(tensors: Mapping[str, Tensor]) -> None:
    """Checks that no parameter shares memory with another tensor but as the very same view of it.

    Such a pair could be compressed neither as one tensor nor as two: what is written into one changes the other, and
    the tie is lost on another device.

    Raises:
        InvalidInputError: naming the pair.
    """
    names = {id(tensor): name for name, tensor in reversed(list(tensors.items()))}
    for group in _shared([tensor for tensor in tensors.values() if id(tensor) in names]):
        distinct = list({storage_key(tensor): tensor for tensor in group}.values())
        for first, second in itertools.combinations(distinct, 2):
            if any(isinstance(each, nn.Parameter) for each in (first, second)) and _overlap(first, second):
                a, b = names[id(first)], names[id(second)]
                raise InvalidInputError(
                    f"{a} {list(first.shape)} and {b} {list(second.shape)} share memory under different views; tie "
                    f"them as one parameter, or give {b} memory of its own (.clone())"
                )


def _overlap(first: Tensor, second: Tensor) -> bool:
    """Tells whether two views of one storage have a byte in common."""
    taken = torch.zeros(first.untyped_storage().nbytes(), dtype=torch.bool)
    for tensor in (first, second):
        size = tensor.element_size()
        strides = [stride * size for stride in tensor.stride()]
        view = taken.as_strided([*tensor.shape, size], [*strides, 1], tensor.storage_offset() * size)
        if bool(view.any()):
            return True
        view.fill_(True)
    return False


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns the tensors of a network's state_dict, live, under names without wrappers at any level.

    What `get_extra_state` returns is no tensor of the network and left out, as is all else that is no tensor; see
    `extra_entries`.
    """
    names = _PlainNames(model)
    state = model.state_dict(keep_vars=True)
    return {names(name): value for name, value in state.items() if _is_kept(name, value)}


def state_names(model: nn.Module) -> dict[str, str]:
    """Returns plain name -> name in the network's own state_dict, for the names of `named_tensors`."""
    names = _PlainNames(model)
    return {names(name): name for name, value in model.state_dict(keep_vars=True).items() if _is_kept(name, value)}


def extra_entries(model: nn.Module) -> list[str]:
    """Returns the plain names of the entries of a state_dict that are no tensors of the network."""
    names = _PlainNames(model)
    return [names(name) for name, value in model.state_dict(keep_vars=True).items() if not _is_kept(name, value)]


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yields (plain name, parameter), a shared one under each of its names."""
    names = _PlainNames(model)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield names(name), parameter


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields (plain name, module) of all modules that are no wrappers, a shared one under each of its names."""
    names = _PlainNames(model)
    for name, module in model.named_modules(remove_duplicate=False):
        if _inner_attribute(module) is None:
            yield names(f"{name}.").removesuffix("."), module


def _is_kept(name: str, value: object) -> bool:
    return isinstance(value, Tensor) and name.rpartition(".")[2] != EXTRA_STATE


class _PlainNames:
    """Takes wrappers out of the names of a network's tensors and modules."""

    def __init__(self, model: nn.Module) -> None:
        """Finds the wrappers, outermost first."""
        self.prefixes = [
            (f"{name}." if name else "", f"{attribute}.")
            for name, module in model.named_modules(remove_duplicate=False)
            if (attribute := _inner_attribute(module)) is not None
        ]

    def __call__(self, name: str) -> str:
        """Returns the plain name."""
        for before, inner in reversed(self.prefixes):  # the innermost first: what lies before it stays as it is
            if name.startswith(before + inner):
                name = before + name[len(before + inner) :]
        return name
