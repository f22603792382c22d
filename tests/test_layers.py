"""Who may import whom in `autocompress`: one order of its parts, no circle, few files, each with a name of its own."""

import ast
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "autocompress"

# From the bottom up; a part, by the longest name that fits, imports from its own level and from those above it here.
LEVELS = [
    ["autocompress.errors"],
    ["autocompress.targets", "autocompress.codec.atomic_write", "autocompress.integrations.page"],
    ["autocompress.network"],
    ["autocompress.codec", "autocompress.numerics"],
    ["autocompress.energy"],
    ["autocompress.solver.constants"],
    ["autocompress.constraints"],
    ["autocompress.training"],
    ["autocompress.integrations.run_page", "autocompress.integrations.ray_train"],
    ["autocompress.solver"],
    ["autocompress.task"],
    ["autocompress.training.reference", "autocompress.training.aggregated"],
    ["autocompress.integrations"],
    ["autocompress"],
    ["autocompress.cli"],
    ["autocompress.__main__"],
]
# The training knows nothing of compression.
OF_THE_TASK = ("autocompress.task", "autocompress.training")
THEIRS = (*OF_THE_TASK, "autocompress.errors", "autocompress.network.live_network", "autocompress.codec.atomic_write")
FORBIDDEN = {"optuna", "ray", "pandas", "baselines", "studies"}
# Packages of the extras: imported inside a function, where they are needed.
FRAMEWORKS = {"lightning", "transformers"}
EXTRAS = {"torchvision", "sklearn", "onnx", "onnxscript", "onnxruntime", "torch_pruning", "pynvml", "scipy", "timm"}
# Files that are imported where their package is needed: it is that package's class that they derive from.
GUESTS = {"autocompress.task.folders", "autocompress.integrations.lightning", "autocompress.integrations.huggingface"}
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}


def modules() -> dict[str, Path]:
    """Returns the files of the package by module name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path, known: set[str]) -> set[str]:
    """Returns the modules of `autocompress` that a file imports anywhere, but not for the eyes of mypy alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "autocompress":
            found |= {
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in known else node.module for a in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.split(".")[0] == "autocompress"}
    return found


def level_of(module: str) -> int:
    """Returns the level of the longest name that a module begins with."""
    parts = module.split(".")
    return next(LEVEL_OF[name] for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in LEVEL_OF)


def test_nothing_imports_upwards():
    known = modules()
    upwards = [
        f"{module} imports {other}"
        for module, path in known.items()
        for other in imports_of(path, set(known))
        if level_of(other) > level_of(module)
    ]
    assert upwards == []


def test_there_is_no_circle():
    known = modules()
    graph = {module: imports_of(path, set(known)) - {module} for module, path in known.items()}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(known)  # a circle raises


def test_few_files_each_with_a_name_of_its_own():
    files = list(PACKAGE.rglob("*.py"))
    assert len(files) <= 100
    names = Counter(path.name for path in files if path.name != "__init__.py")
    assert [name for name, count in names.items() if count > 1] == []
    top = [path for path in PACKAGE.iterdir() if not path.name.startswith("__") and path.name != "py.typed"]
    assert len(top) <= 12, sorted(path.name for path in top)


def top_names(path: Path, *, at_top: bool = False) -> set[str]:
    """Returns the first words of what a file imports: anywhere, or at the top of the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if at_top else list(ast.walk(tree))
    names = {a.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for a in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(str(node.module).split(".")[0])
    return names


@pytest.mark.parametrize(("module", "path"), modules().items(), ids=modules())
def test_what_comes_from_outside(module, path):
    guests = {"ray"} if module.startswith("autocompress.integrations.") else set()  # inside functions alone
    assert not top_names(path) & (FORBIDDEN - guests)
    assert not top_names(path, at_top=True) & FORBIDDEN
    if module not in GUESTS:
        assert not top_names(path, at_top=True) & (EXTRAS | FRAMEWORKS)


def test_the_training_knows_nothing_of_compression():
    known = modules()
    for module, path in known.items():
        if module.startswith(OF_THE_TASK):
            for other in imports_of(path, set(known)):
                assert other.startswith(THEIRS), f"{module} imports {other}"


@pytest.mark.parametrize("path", sorted((ROOT / "baselines").rglob("*.py")), ids=lambda path: path.stem)
def test_baselines_know_neither_studies_nor_the_command_line(path):
    assert "studies" not in top_names(path)
    for other in imports_of(path, set(modules())):
        assert not other.startswith("autocompress.cli") or other == "autocompress.cli.console", other


def test_importing_the_package_brings_no_search_library():
    script = (
        "import pkgutil, importlib, sys, autocompress\n"
        "for found in pkgutil.walk_packages(autocompress.__path__, 'autocompress.'):\n"
        f"    if not found.name.endswith('__main__') and found.name not in {GUESTS!r}:\n"
        "        importlib.import_module(found.name)\n"
        "print(' '.join({name.split('.')[0] for name in sys.modules}))\n"
    )
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(outcome.stdout.split())
    assert "torch" in loaded
    assert not loaded & {"optuna", "ray", "pandas", "onnx", "onnxscript", "onnxruntime", "lightning", "transformers"}
