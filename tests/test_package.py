"""What is distributed: sdist and wheel, their contents and metadata, types for the user's checker, how to cite it."""

import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
# What a user writes, of every part that is public.
SNIPPET = """
from collections.abc import Iterable

import torch
from torch import Tensor, nn

import autocompress as ac


def score(network: nn.Module) -> float:
    return 1.0


def use(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compressor = ac.Compressor(model, optimizer, target=["50KB", ac.AccuracyDrop(0.5)], total_steps=1, evaluate=score)
    compressor.step()
    first: ac.Result = compressor.finish(evaluate=score)
    recipe = ac.Recipe("sgd", learning_rate=0.1)
    result = ac.compress(model, train=loader, val=loader, target=ac.FileSize("1%"), loss="mse", recipe=recipe)
    size: int = min(first.file_bytes, result.file_bytes)
    accuracy: float | None = result.test_accuracy
    result.save("net.safetensors", names=True, metadata={"size": str(size), "accuracy": str(accuracy)})
    state: dict[str, Tensor] = ac.read_state("net.safetensors")
    difference: float = ac.export_onnx(model, next(iter(state.values())), "net.onnx")
    print(difference, result.outcome, result.promise)
    return ac.load("net.safetensors", into=model, prefix="net")


try:
    target: ac.Target = ac.parse_target("50KB")
except ac.InfeasibleTargetError as error:
    smallest: float = error.smallest
"""


def run(*command: str, cwd: Path) -> str:
    outcome = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The sdist of this checkout, and the wheel that is built from it alone."""
    folder = tmp_path_factory.mktemp("dist")
    source = folder / "checkout"
    files = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    for name in files:
        if (name.startswith("autocompress/") or "/" not in name) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    sdist = folder / run(sys.executable, "-c", BUILD, "build_sdist", str(folder), cwd=source).split()[-1]
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    wheel = folder / run(sys.executable, "-c", BUILD, "build_wheel", str(folder), cwd=unpacked).split()[-1]
    return sdist, wheel


def test_sdist_and_wheel_hold_the_package_and_nothing_else(distributions):
    sdist, wheel = distributions
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "autocompress").rglob("*")
        if path.is_file() and path.suffix in (".py", ".typed", ".html")
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(archive.read(name).decode() for name in names if name.endswith("METADATA"))
        scripts = next(archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    assert {name for name in names if ".dist-info/" not in name} == package
    assert any(name.endswith("licenses/LICENSE") for name in names)
    with tarfile.open(sdist) as archive:
        inside = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert package | {"LICENSE", "README.md", "pyproject.toml"} <= inside
    assert "autocompress = autocompress.cli:main" in scripts
    for extra in ("data", "onnx", "lightning", "transformers", "timm", "report"):
        assert f"Provides-Extra: {extra}" in metadata


def test_how_to_cite_it():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    for key in ("version", "license"):
        assert citation[key] == project[key]
    assert (citation["title"], citation["abstract"]) == (project["name"], project["description"])


@pytest.fixture(scope="module")
def installed(distributions, tmp_path_factory):
    """Python of an environment with the wheel, and beside it what this one has."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, symlinks=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(site)]
    run(*pip, str(distributions[1]), cwd=folder)
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder / "bin" / "python"


def test_the_wheel_is_installed(installed, tmp_path):
    code = "import autocompress as ac, sys; print(ac.__file__); assert all(hasattr(ac, name) for name in ac.__all__)"
    assert run(str(installed), "-I", "-c", code, cwd=tmp_path).startswith(str(installed.parent.parent))
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert run(str(installed), "-I", "-m", "autocompress", "--version", cwd=tmp_path) == f"autocompress {version}\n"


@pytest.mark.slow
def test_what_a_user_writes_is_checked_by_the_types_of_the_wheel(installed, tmp_path):
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--python-executable={installed}"]
    (tmp_path / "snippet.py").write_text(SNIPPET, encoding="utf-8")
    assert "Success" in run(*command, "snippet.py", cwd=tmp_path)
    (tmp_path / "snippet.py").write_text(SNIPPET.replace("total_steps=1", "total_steps='1'"), encoding="utf-8")
    outcome = subprocess.run([*command, "snippet.py"], cwd=tmp_path, capture_output=True, text=True)
    assert 'Argument "total_steps" to "Compressor" has incompatible type "str"' in outcome.stdout
