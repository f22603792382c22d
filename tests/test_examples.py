"""Every program of examples/ runs, and what it writes is what it says."""

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
FILE = ["--out", "net.safetensors"]
PROGRAMS = {
    "own_loop": [*FILE, "--epochs", "8"],
    "without_training": [*FILE, "--epochs", "4"],
    "lightning_digits": [*FILE, "--epochs", "4"],
    "huggingface_counting": ["--out", "small", "--epochs", "4", "--examples", "320"],
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program(name, tmp_path, monkeypatch, capsys):
    program = EXAMPLES / f"{name}.py"
    for package in re.findall(r"^(?:import|from) (lightning|transformers)", program.read_text(), re.M):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *PROGRAMS[name]])
    runpy.run_path(str(program), run_name="__main__")
    said = capsys.readouterr().out.splitlines()[-1]
    path = tmp_path / ("small/compressed.safetensors" if name.startswith("huggingface") else "net.safetensors")
    size, score = re.search(r": (\d+) bytes, .*?(\d\.\d{3})(?: after| on| of)", said).groups()
    assert path.stat().st_size == int(size)
    assert float(score) > (0.2 if name.startswith("huggingface") else 0.6)


def test_every_program_is_run():
    tested = {*PROGRAMS, "distributed", "ray_train", "any_network"}  # these three by tests of what they show
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested
