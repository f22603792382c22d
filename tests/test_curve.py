"""`autocompress curve`, options from a file, and the options of a recipe."""

import csv
import json
import tomllib

import pytest
import torch
from torch import nn

import autocompress as ac
from autocompress.cli import curve_command, main
from autocompress.cli.parser import build_parser
from autocompress.solver.compression import CompressorCallback

pytestmark = pytest.mark.any_file

NETS = """
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 3))

def data():
    x = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)
    parts = [(x[:128], y[:128]), (x[128:192], y[128:192]), (x[192:], y[192:])]
    return [[(a, b) for a, b in zip(x.split(32), y.split(32))] for x, y in parts]
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "curve_nets.py").write_text(NETS)
    torch.manual_seed(0)
    torch.save(nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 3)).state_dict(), "net.pt")
    return tmp_path


TASK = ["curve_nets:make", "--data", "curve_nets:data", "--weights", "net.pt"]


def curve(*targets, more=()):
    asked = [word for target in targets for word in ("--target", target)]
    return main(["curve", *TASK, *asked, "--out", "points", "--epochs", "2", "--no-progress", *more])


def test_a_curve_of_two_points_and_one_more(here, capsys, monkeypatch):
    assert curve("500B", "20%", more=["--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [point["target"] for point in answer["points"]] == ["500B", "20%"]
    names = {path.name for path in (here / "points").iterdir()}
    files = {f"{name}.{kind}" for name in ("500B", "20percent") for kind in ("safetensors", "json", "html")}
    assert names == files | {"curve.csv", "curve.svg", "page.html", "command.json"}
    for point in answer["points"]:
        size = (here / "points" / f"{'500B' if point['target'] == '500B' else '20percent'}.safetensors").stat().st_size
        assert size == point["file_bytes"]
    ac.load(here / "points" / "500B.safetensors", into=nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 3)))
    before = {path.name: path.read_bytes() for path in (here / "points").glob("*.safetensors")}
    compressed = []
    real = curve_command.compute_point
    monkeypatch.setattr(curve_command, "compute_point", lambda o, t, m: (compressed.append(str(t)), real(o, t, m))[1])
    assert curve("500B", "20%", "300B") == 0
    assert compressed == ["300B"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["target", "bytes", "smaller", "by", "accuracy", "before"]
    assert [line.split()[0] for line in lines[1:4]] == ["500B", "20%", "300B"]
    for name, data in before.items():
        assert (here / "points" / name).read_bytes() == data
    with (here / "points" / "curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["target"] for row in rows] == ["500B", "20%", "300B"]
    page = (here / "points" / "page.html").read_text()
    assert 'href="20percent.html"' in page
    assert page.count("<circle") == 3 + 2  # and both ends of the line of the given network
    assert (here / "points" / "curve.svg").read_text().startswith("<svg")


def test_what_cannot_be_met_is_found_before_anything_is_trained(here, capsys):
    assert curve("500B", "3B") == 2
    assert "the smallest file" in capsys.readouterr().err
    assert not (here / "points").exists()


def test_a_folder_belongs_to_one_network(here, capsys):
    assert curve("500B") == 0
    assert curve("500B", more=["--seed", "1"]) == 2
    assert "--out 'points' holds the checkpoints of another command (seed differ)" in capsys.readouterr().err
    assert curve("500B", more=["--learning-rate", "0.01"]) == 2
    (here / "points" / "500B.json").write_text('{"target": "500B"}')  # no record of a point: it is made again
    assert curve("500B") == 0
    assert json.loads((here / "points" / "500B.json").read_text())["file_bytes"] <= 500
    note = here / "points" / "command.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"learning_rate": 0.01}))
    capsys.readouterr()
    assert curve("500B") == 2
    assert "(learning_rate differ)" in capsys.readouterr().err


def test_a_folder_of_something_else_stays_as_it_is(here, capsys):
    (here / "points").mkdir()
    (here / "points" / "500B.safetensors").write_text("mine")
    assert curve("500B") == 2
    assert "--out 'points' holds other files" in capsys.readouterr().err
    assert [path.name for path in (here / "points").iterdir()] == ["500B.safetensors"]


def test_a_run_that_was_broken_off_goes_on_from_its_checkpoint(here, monkeypatch):
    assert curve("500B") == 0
    whole = (here / "points" / "500B.safetensors").read_bytes()
    (here / "points" / "500B.json").unlink()  # the record comes last: without it the point is not done
    epochs, real = [], CompressorCallback.on_epoch_end

    def broken_off(self, trainer):
        epochs.append(trainer.epoch)
        if epochs == [1, 2]:
            raise KeyboardInterrupt
        real(self, trainer)

    monkeypatch.setattr(CompressorCallback, "on_epoch_end", broken_off)
    assert curve("500B") == 130
    assert (here / "points" / "500B.checkpoints" / "compress.checkpoint").exists()
    assert curve("500B") == 0
    assert epochs == [1, 2, 2]
    assert (here / "points" / "500B.safetensors").read_bytes() == whole
    assert not (here / "points" / "500B.checkpoints").exists()


def test_a_record_gives_the_command_back(here, capsys):
    command = ["compress", *TASK, "--target", "500B", "--epochs", "2", "--learning-rate", "0.01", "--no-progress"]
    assert main([*command, "--ignore", "2.bias", "--out", "a.safetensors", "--report", "pictures", "--json"]) == 0
    (here / "record.json").write_text(capsys.readouterr().out)
    kept = tomllib.loads((here / "pictures" / "run.toml").read_text())
    assert kept == {
        "model": "curve_nets:make", "data": "curve_nets:data", "target": ["500B"], "weights": "net.pt", "epochs": 2,
        "learning_rate": 0.01, "seed": 0, "ignore": ["2.bias"],
    }  # fmt: skip
    data = (here / "a.safetensors").read_bytes()
    for file in ("record.json", "pictures/run.toml"):
        assert main(["compress", "--config", file, "--out", "b.safetensors", "--no-progress"]) == 0
        assert (here / "b.safetensors").read_bytes() == data
        (here / "b.safetensors").unlink()


def options(*words):
    return vars(build_parser().parse_args(["compress", *words]))


def test_options_beside_a_file_stand(here):
    (here / "run.toml").write_text(
        'model = "lenet5"\ndata = "digits"\ntarget = ["50KB", "drop:1"]\nepochs = 3\nlearning-rate = 0.1\n'
        "no_progress = true\njson = false\nout = 'x.safetensors'\n"
    )
    found = options("--config", "run.toml")
    assert (found["model"], found["target"], found["epochs"]) == ("lenet5", ["50KB", "drop:1"], 3)
    assert (found["learning_rate"], found["no_progress"], found["json"]) == (0.1, True, False)
    found = options("resnet20", "--config=run.toml", "--target", "4KB", "--epochs=5")
    assert (found["model"], found["target"], found["epochs"], found["data"]) == ("resnet20", ["4KB"], 5, "digits")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("targets = '4KB'\n", "has 'targets'; it may have batch_size, data, "),
        ("target = \n", "is neither TOML nor a JSON record"),
        ("epochs = 'many'\n", "'many' is not a whole number"),
        (None, "cannot be read"),
    ],
)
def test_bad_files(here, capsys, text, message):
    if text is not None:
        (here / "run.toml").write_text(text)
    with pytest.raises(SystemExit) as left:
        options("lenet5", "--data", "digits", "--target", "4KB", "--out", "x.safetensors", "--config", "run.toml")
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert "usage" not in said


def test_batches_of_a_function_have_their_own_size(here, capsys):
    command = ["compress", *TASK, "--target", "500B", "--out", "a.safetensors", "--batch-size", "8"]
    assert main(command) == 2
    assert "--batch-size is 8, but 'curve_nets:data' makes its batches itself" in capsys.readouterr().err


def test_named_data_in_batches_of_any_size(here):
    from autocompress.cli.compress_command import task_of, training_data

    asked = build_parser().parse_args(
        ["compress", "lenet5", "--data", "digits", "--target", "4KB", "--out", "x.safetensors", "--batch-size", "100"]
    )
    task = task_of(asked)
    train = training_data(asked, task)
    assert len(next(iter(train))[0]) == 100
    assert task.train.batch_size == 64  # the reference is trained as always
