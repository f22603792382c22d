"""What a compressed network takes to run, and the table of all systems of a study."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from autocompress.training.aggregated import AggregatedModel
from studies.records.record import Record
from studies.records.resources import resources_of
from studies.report.tables import NOTHING, systems_table
from studies.report.write import report_command
from tests.study_records import framed, make_record

pytest.importorskip("torch_pruning")

HALF = {"energy": 0.5, "macs": 0.25, "latency": 0.8, "smaller": 1.0}


def make_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 64, 4)
    )


def test_resources_of_the_network_itself():
    network, example = make_network(), torch.randn(1, 1, 8, 8)
    found = resources_of(copy.deepcopy(network), network, example)
    assert (found["energy"], found["macs"], found["smaller"]) == (1, 1, 1)
    assert 0.3 < found["latency"] < 3


def test_channels_that_nothing_reads_are_not_paid_for():
    network, example = make_network(), torch.randn(1, 1, 8, 8)
    pruned = copy.deepcopy(network)
    with torch.no_grad():
        pruned[2].weight[:, 2:] = 0  # of the first layer's outputs two are read
    before = copy.deepcopy(pruned.state_dict())
    found = resources_of(pruned, network, example)
    dense, smaller = 64 * (8 * 9 + 8 * 8 * 9) + 512 * 4, 64 * (2 * 9 + 2 * 8 * 9) + 512 * 4
    assert found["macs"] == pytest.approx(smaller / dense)
    assert found["energy"] < 1
    assert all(torch.equal(before[name], value) for name, value in pruned.state_dict().items())


def test_a_network_whose_channels_cannot_be_followed_runs_as_it_is():
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 4), nn.Linear(2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x).sort(1).values[:, ::2])

    found = resources_of(Strange(), Strange(), torch.randn(1, 6))
    assert (found["macs"], found["smaller"]) == (1, 0)


def test_an_aggregated_network_serves_two_inputs_in_a_pass():
    network, example = make_network(), torch.randn(1, 1, 8, 8)
    found = resources_of(AggregatedModel(network, 2), network, example)
    dense = 64 * (8 * 9 + 8 * 8 * 9) + 512 * 4
    joint = 64 * (2 * 8 * 9 + 8 * 8 * 9) + 512 * 8
    assert found["macs"] == pytest.approx(joint / dense / 2)


def study(**more: object) -> list[Record]:
    return [
        replace(make_record(method, seed, target), **more)
        for target, methods in (("4KB", ("compressor", "uniform")), ("2KB", ("compressor",)))
        for method in methods
        for seed in (0, 1)
    ]


def test_rows_by_hand():
    records = study(resources=HALF, entropy_bytes=900.0, weight_data_bytes=800.0, gradient_steps=50)
    records[1] = replace(records[1], resources=HALF | {"energy": 0.7})
    rows = systems_table(framed(records)[1], "lenet5-digits").text.to_dict("records")
    assert [(row["method"], row["asked for"]) for row in rows] == [
        ("compressor", "4 KB"),
        ("uniform", "4 KB"),
        ("compressor", "2 KB"),
    ]
    cells = rows[0]
    assert cells["energy, %"] == "60 ± 14"
    assert (cells["MACs, %"], cells["latency, %"]) == ("25", "80")
    assert (cells["entropy bytes"], cells["weight data bytes"], cells["steps"]) == ("900", "800", "50")
    assert rows[1]["steps"] == "7,250"


def test_the_report_has_one_table_of_all_and_compares_only_where_there_are_several(tmp_path):
    records = study(resources=HALF)
    text = report_command("small", records, [record.key for record in records], tmp_path)
    assert text.count("\n## ") == 3  # what it says, all systems, 4 KB; nothing of 2 KB alone
    assert "## LeNet-5 on digits, all systems" in text
    assert "## LeNet-5 on digits, 2 KB" not in text
    assert (tmp_path / "table.tex").read_text(encoding="utf-8").count(r"\begin{table*}") == 2
    assert "all systems" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_without_measurements_there_is_no_such_table(tmp_path):
    records = study()
    text = report_command("small", records, [record.key for record in records], tmp_path)
    assert "all systems" not in text
    assert "## LeNet-5 on digits, 2 KB" in text


def test_missing_cells_and_missing_measurements_are_marked():
    records = study()[1:2] + [replace(record, resources=HALF) for record in study()[2:4]]
    keys = [record.key for record in study()]
    table = systems_table(framed(records, keys, partial=True)[1], "lenet5-digits")
    rows = {(row["method"], row["asked for"]): list(row.values()) for row in table.text.to_dict("records")}
    assert rows["compressor", "4 KB"][8:11] == [NOTHING] * 3
    assert rows["compressor", "2 KB"][3:] == [NOTHING] * (len(table.text.columns) - 3)
    assert rows["uniform", "4 KB"][8:11] == ["50", "25", "80"]


def test_records_of_the_first_schema_are_read():
    record = make_record()
    old = {name: value for name, value in record.to_json().items() if name != "resources"} | {"schema": 1}
    assert Record.from_json(old) == record
