"""What the package needs: nothing heavy before it is used, and no more than its core dependencies to load a file."""

import re
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest
import small_task
import torch

import autocompress as ac

ROOT = Path(__file__).parent.parent
EXTRA = ("sklearn", "torchvision", "optuna", "ray", "pandas")


def run(*command: str, cwd: Path) -> str:
    """Runs a command and returns what it printed."""
    outcome = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout


def test_nothing_heavy_is_imported_before_it_is_needed(tmp_path):
    code = f"""
import sys, autocompress
from autocompress.cli import main
try:
    main(["compress", "--help"])
except SystemExit as end:
    assert end.code == 0
heavy = {{"torch", "numpy", "scipy", *{EXTRA!r}}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert set(autocompress.__all__) <= set(dir(autocompress))
assert not hasattr(autocompress, "compresss")
for name in autocompress.__all__:
    assert callable(getattr(autocompress, name)) or name == "Target", name
assert not set({EXTRA!r}) & set(sys.modules)
"""
    run(sys.executable, "-c", code, cwd=ROOT)


def test_what_the_extra_is_needed_for_says_so(monkeypatch):
    from autocompress.task.arrays import load_digits
    from autocompress.task.named_models import make_model

    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ac.InvalidInputError, match=r'digits needs scikit-learn: pip install "autocompress\[data\]"'):
        load_digits()
    with pytest.raises(
        ac.InvalidInputError, match=r'torchvision needs torchvision: pip install "autocompress\[data\]"'
    ):
        make_model("torchvision:resnet18", 10)
    with pytest.raises(ac.InvalidInputError, match="model 'lenet6' is unknown; did you mean lenet5"):
        make_model("lenet6", 10)


def distributions(requirements: list[str]) -> set[str]:
    """Returns the distributions that are needed for requirements without extras, all the way down."""
    found, waiting = set(), list(requirements)
    while waiting:
        requirement = waiting.pop()
        name = re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another platform
            continue
        if name not in found:
            found.add(name)
            waiting += [each for each in needs if "extra ==" not in each]
    return found


@pytest.mark.slow
def test_a_file_loads_with_the_core_dependencies_alone(tmp_path):
    task = small_task.make_task()
    model = task.make_model()
    result = ac.compress(model, train=task.train, val=task.validation, target="1KB", epochs=0, progress=False)
    result.save(tmp_path / "net.safetensors")
    source = tmp_path / "source"  # a build leaves folders behind
    shutil.copytree(ROOT / "autocompress", source / "autocompress", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    run(*pip, str(source), cwd=tmp_path)
    (wheel,) = tmp_path.glob("autocompress-*.whl")
    venv.create(tmp_path / "fresh", with_pip=True)
    python = str(tmp_path / "fresh" / "bin" / "python")
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel), cwd=tmp_path)
    # No network in tests: what the core dependencies consist of is linked from this environment, and nothing else.
    (site,) = (tmp_path / "fresh" / "lib").glob("python*/site-packages")
    (installed,) = metadata.distributions(name="autocompress", path=[str(site)])
    core = [each for each in installed.requires or [] if "extra ==" not in each]
    assert not {"scikit-learn", "torchvision", "optuna", "ray"} & distributions(core)
    for name in distributions(core):
        files = metadata.files(name) or []
        for top in {file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__", "bin")}:
            target = Path(str(metadata.distribution(name).locate_file(top)))
            link = site / top
            if link.is_dir() and not link.is_symlink():  # a namespace that several share, such as `nvidia`
                for part in target.iterdir():
                    if not (link / part.name).exists():
                        (link / part.name).symlink_to(part)
            elif not link.exists():
                link.symlink_to(target)
    script = (
        "import importlib.util, torch, autocompress as ac\n"
        "from torch import nn\n"
        f"assert not [name for name in {EXTRA!r} if importlib.util.find_spec(name)]\n"
        "net = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))\n"
        "net = ac.load('net.safetensors', into=net)\n"
        "print(ac.__file__)\n"
        "torch.save(net(torch.ones(1, 20)), 'out.pt')\n"
    )
    assert str(site) in run(python, "-c", script, cwd=tmp_path)
    assert torch.equal(torch.load(tmp_path / "out.pt"), result.model(torch.ones(1, 20)))
