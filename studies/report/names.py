"""Tasks, targets and methods as people write them; records and CSV keep the names that one types."""

from __future__ import annotations

import re

MODELS = {"lenet5": "LeNet-5", "alexnet": "AlexNet"}
DATA = {"digits": "digits", "mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
METHODS = {
    "random": "random search",
    "optuna-tpe": "Optuna TPE",
    "optuna-cmaes": "Optuna CMA-ES",
    "optuna-gp": "Optuna GP",
    "optuna-nsga2": "Optuna NSGA-II",
    "ray-optuna": "Ray + Optuna",
    "ray-asha": "Ray ASHA",
    "ray-pbt": "Ray PBT",
    "condensa": "Condensa",
}


def task_name(task: str) -> str:
    """Returns a task's name in tables and figures.

    >>> task_name("lenet5-digits"), task_name("resnet20-cifar10"), task_name("net:make-net:data")
    ('LeNet-5 on digits', 'ResNet-20 on CIFAR-10', 'net:make-net:data')
    """
    model, dash, data = task.partition("-")
    if not dash or not (model in MODELS or re.fullmatch(r"resnet\d+", model)):
        return task
    name = MODELS.get(model) or f"ResNet-{model.removeprefix('resnet')}"
    return f"{name} on {DATA.get(data, data)}"


def method_name(method: str) -> str:
    """Returns a method's name in tables and figures.

    >>> method_name("optuna-tpe"), method_name("optuna-tpe, 4 epochs"), method_name("mine")
    ('Optuna TPE', 'Optuna TPE, 4 epochs', 'mine')
    """
    base, comma, rest = method.partition(",")
    return METHODS.get(base, base) + comma + rest


def target_name(target: str) -> str:
    """Returns a target as it stands in headings.

    >>> target_name("4KB"), target_name("1720B"), target_name("20x"), target_name("weights:836x")
    ('4 KB', '1720 B', '20x', 'weights:836x')
    """
    return re.sub(r"\b([\d.]+)([KM]?i?B)\b", r"\1 \2", target)


def block_name(task: str, target: str) -> str:
    """Returns the heading of a task and target."""
    return f"{task_name(task)}, {target_name(target)}"
