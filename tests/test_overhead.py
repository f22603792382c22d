"""What compressing costs beside training: the experiment runs, keeps its record and prints its table."""

import json
import sys

from studies.design.spec import TaskSpec
from studies.experiments import overhead


def test_a_case_is_measured_and_added_to_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AUTOCOMPRESS_DATA", str(tmp_path))
    records = tmp_path / "records.jsonl"
    records.write_bytes(overhead.RECORDS.read_bytes())
    monkeypatch.setattr(overhead, "TaskSpec", lambda *words: TaskSpec(*words, reference_epochs=1))
    words = ["run", "small_task:make_shallow_model", "small_task:loaders", "350B", "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", ["overhead", *words, "--records", str(records)])
    overhead.main()
    *old, new = [json.loads(line) for line in records.read_text().splitlines()]
    assert [json.dumps(record) for record in old] == overhead.RECORDS.read_text().splitlines()
    assert set(new["seconds"]) == {"training", "learning from the network", "compress"}
    assert new["over_training"] > 0 < new["over_learning"]
    assert new["revision"]
    table = capsys.readouterr().out.splitlines()[1:]
    assert len(table) == 2 + len(old) + 1
    assert table[-1].startswith("| small_task:make_shallow_model-small_task:loaders, `350B`")
