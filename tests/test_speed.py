"""How fast projection and codec are: the experiment runs, keeps its record and prints its table."""

import json
import math
import sys

import pytest

from studies.experiments import speed


def test_a_network_is_measured_and_added_to_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "shapes_of", lambda network: [(16, 3, 3, 3), (40, 16, 3, 3), (10, 40)])
    records = tmp_path / "records.jsonl"
    for _ in range(2):
        words = ["speed", "run", "tiny", "10", "--rounds", "1", "--records", str(records)]
        monkeypatch.setattr(sys, "argv", words)
        speed.main()
    first, second = [json.loads(line) for line in records.read_text().splitlines()]
    assert first["weights"] == 16 * 27 + 40 * 144 + 400
    assert first["bytes"] == pytest.approx(4 * first["weights"] / 10, rel=0.1)
    assert set(first["seconds"]) == {"sort", "torch.sort", "cold", "warm", "encode", "decode", "load", "torch.load"}
    assert 0 < first["error"] < 0.5
    assert 0 < first["kept"] < 1
    assert (second["bytes"], second["error"]) == (first["bytes"], first["error"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("| tiny, 0.0 million weights, 10x")


def test_the_shapes_are_those_of_the_networks():
    assert sum(map(math.prod, speed.shapes_of("gpt2"))) == 124_318_464  # without norms and biases
    assert len(speed.shapes_of("resnet50")) == 54
