"""The order of imports: every module of autocompress imports only what lies below it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "autocompress"
# From the bottom up. A module may import modules of its own room and of rooms before it.
ROOMS = [
    "errors live_network plain_numbers whole_file targets meters",
    "kernel_codebooks",
    "codebooks",
    "coding",
    "costs",
    "projection",
    "channels",
    "plan",
    "selection",
    "assemble",
    "solver",
    "finishing",
    "artifact",
    "methods",
    "outcome",
    "result relative_rate budget_control candidates",
    "steering",
    "compressor",
    "compress",
    "console",
    "cli __main__",
]
# Beside them: the task's side knows nothing of compression, the rooms above "compressor" may use it.
TASK_SIDE = {"importing", "task", "models", "data", "training", "aggregated"}
ABOVE_TASK_SIDE = {"compressor", "compress", "console", "cli", "__main__"}
# A room that needs optional packages; anyone may import it, inside a function only.
LAZY = "integrations"
BELOW_EVERYTHING = {"errors", "live_network", "plain_numbers", "whole_file"}
FORBIDDEN = {"optuna", "ray", "pandas", "baselines", "studies"}

RANK = {name: rank for rank, names in enumerate(ROOMS) for name in names.split()}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(module: str) -> str:
    """Returns the room, `autocompress.training.trainer` -> `training`; the package itself is `autocompress`."""
    return [*module.split("."), ""][1] or "autocompress"


def imports_of(path: Path) -> list[tuple[str, bool]]:
    """Returns (imported module, at the top level of the file) for every import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside_functions = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        at_top = id(node) not in inside_functions
        if isinstance(node, ast.Import):
            found += [(alias.name, at_top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(name if node.module == "autocompress" else str(node.module), at_top) for name in names]
    return found


def may_import(importer: str, imported: str) -> bool:
    """Says whether the room `importer` lies above the room `imported`, or is it."""
    if importer in (imported, "autocompress") or imported in BELOW_EVERYTHING:
        return True
    if imported in TASK_SIDE:
        return importer in TASK_SIDE | ABOVE_TASK_SIDE
    if importer in TASK_SIDE or importer == LAZY:
        return False
    return RANK[imported] <= RANK[importer]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_from_below(path):
    module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for imported, at_top in imports_of(path):
        if imported.split(".")[0] in FORBIDDEN:
            pytest.fail(f"{module} imports {imported}")
        if imported.split(".")[0] != "autocompress":
            continue
        if room_of(imported) == LAZY and room_of(module) != LAZY:
            assert not at_top, f"{module} imports {imported} at the top level"
        else:
            assert may_import(room_of(module), room_of(imported)), f"{module} imports {imported}"


@pytest.mark.parametrize("path", sorted((PACKAGE.parent / "baselines").rglob("*.py")), ids=lambda path: path.stem)
def test_baselines_reach_compression_only_through_a_plan(path):
    for imported, _ in imports_of(path):
        assert imported.split(".")[0] != "studies", f"{path.stem} imports {imported}"
        if imported.split(".")[0] == "autocompress":
            assert room_of(imported) not in {"compressor", "compress", "cli", "solver"}, (
                f"{path.stem} imports {imported}"
            )


def test_every_room_has_a_place_in_the_order():
    known = set(RANK) | TASK_SIDE | {LAZY, "__init__"}
    assert {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES} <= known


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("cli", "training", True),
        ("compressor", "training", True),
        ("artifact", "coding", True),
        ("coding", "artifact", False),
        ("training", "compressor", False),
        ("training", "codebooks", False),
        ("solver", "training", False),
        ("costs", "projection", False),
    ],
)
def test_the_order_itself(importer, imported, allowed):
    assert may_import(importer, imported) is allowed


def test_importing_the_package_brings_no_search_library():
    script = (
        "import pkgutil, importlib, sys, autocompress\n"
        "for found in pkgutil.walk_packages(autocompress.__path__, 'autocompress.'):\n"
        "    if not found.name.endswith('__main__'):\n"
        "        importlib.import_module(found.name)\n"
        "print(' '.join({name.split('.')[0] for name in sys.modules}))\n"
    )
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(outcome.stdout.split())
    assert "torch" in loaded
    assert not loaded & {"optuna", "ray", "pandas", "onnx", "onnxscript", "onnxruntime", "lightning", "transformers"}
