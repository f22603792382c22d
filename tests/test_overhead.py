"""The experiment of what compressing costs: its ratios, its record, and the records of other cases."""

import json

import pytest

from studies.experiments import overhead


def test_ratios_are_medians_of_the_turns_and_other_cases_are_kept(tmp_path, monkeypatch, capsys) -> None:
    turns = {"training": [10.0, 20.0, 5.0], "distillation": [11.0, 30.0, 6.0], "compression": [12.0, 30.0, 9.0]}
    monkeypatch.setattr(overhead, "measure", lambda case, repeats: turns)
    path = tmp_path / "overhead.json"
    for case in ("lenet5-mnist", "lenet5-digits", "lenet5-mnist"):
        monkeypatch.setattr("sys.argv", ["overhead", "--cases", case, "--epochs", "4", "--out", str(path)])
        overhead.main()
    records = json.loads(path.read_text())
    assert [(each["case"], each["epochs"], each["seconds"]) for each in records] == [
        ("lenet5-mnist", 4, turns),
        ("lenet5-digits", 4, turns),
    ]
    for record in records:
        assert record["compression / training"] == 1.5  # of 1.2, 1.5 and 1.8
        assert record["compression / distillation"] == pytest.approx(12 / 11, abs=1e-3)
        assert record["distillation / training"] == 1.2
    last = capsys.readouterr().out.splitlines()
    assert "lenet5-digits, 2KB, 4 epochs" in last[-1]
    assert "1.50" in last[-1]
