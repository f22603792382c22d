"""The pictures of one run: rows that add up to the file, frames, scalars, and a page that a browser shows whole."""

import csv
import json
import math
import re
import sys
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import pytest
import small_task
import torch
from torch import nn

import autocompress as ac
from autocompress.cli import main
from autocompress.errors import AutocompressError
from autocompress.integrations.page import Line, lines, number, size
from autocompress.integrations.run_page import layer_rows
from autocompress.integrations.scalars import LogScalars, TensorBoard
from autocompress.solver import compression
from autocompress.targets import combined
from autocompress.training.trainer import Trainer
from tests.chromium import CHROMIUM, Browser

pytestmark = pytest.mark.any_file


def run(**changes):
    """Returns what came of a short run."""
    task = small_task.make_task()
    settings = {"train": task.train, "val": task.validation, "test": task.test, "recipe": task.recipe}
    return ac.compress(reference(), **(settings | {"target": "500B", "epochs": 4, "progress": False} | changes))


@cache
def reference():
    """Returns the network of two layers, trained; the same object every time."""
    task = small_task.make_task()
    model = small_task.make_shallow_model()
    Trainer(model, task.train, recipe=task.recipe, epochs=8, progress=False).fit()
    return model


class Look(ac.Callback):
    """Keeps what the network was after each epoch."""

    def __init__(self):
        self.seen = []

    def on_epoch_end(self, trainer):
        self.seen.append({name: value.clone() for name, value in trainer.model.state_dict().items()})


class Watched:
    """A run, and what its callbacks were told."""

    def __init__(self, folder):
        self.told, self.look, self.folder = {}, Look(), folder
        log = LogScalars(lambda figures, step: self.told.update({step: figures}), every_steps=7)
        self.result = run(callbacks=[self.look, log, TensorBoard(folder)])


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    return Watched(tmp_path_factory.mktemp("events"))


@pytest.fixture(scope="module")
def result(watched):
    return watched.result


class Whole(HTMLParser):
    """Checks that what is opened is closed, and keeps the text."""

    EMPTY = ("meta", "link", "wbr")

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.tags = [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_rows_add_up_to_the_file(result):
    rows = layer_rows(result)
    assert [row["name"] for row in rows] == ["0.weight", "2.weight", "0.bias", "2.bias"]
    parts = [sum(row[name] for name in row if name.endswith("_bytes") and name != "original_bytes") for row in rows]
    assert parts == pytest.approx([row["bytes"] for row in rows])
    report = result.to_json()
    header = report["entropy_bytes"] - sum(row["bytes"] for row in rows)
    assert 0 <= header < 20
    assert sum(row["bytes"] for row in rows) + header + report["overhead_bytes"] == pytest.approx(
        result.file_bytes, abs=1
    )
    assert sum(row["original_bytes"] for row in rows) == report["original_bytes"]
    for row, layer in zip(rows, report["layers"], strict=False):
        weight = result.model.get_parameter(row["name"])
        assert (row["kept"], row["codebook"], row["bits"]) == (layer["kept"], layer["codebook"], layer["bits"])
        assert row["kept"] == int((weight != 0).sum())


def test_what_was_measured_along_the_run(result):
    frame = result.history_frame()
    assert frame.index.name == "step"
    assert frame.index.is_monotonic_increasing
    scored = frame["validation_score"].dropna()
    assert list(scored.index) == [10, 20, 30, 40]  # 320 examples in batches of 32, four epochs
    assert list(frame["training_loss"].dropna().index) == [10, 20, 30, 40]
    assert 0.9 < result.validation_reference <= 1
    sizes = frame["file_bytes"].dropna()
    assert sizes.iloc[0] > sizes.iloc[-1] > 0.9 * result.file_bytes
    assert (frame["nonzeros"].dropna() <= sum(row["elements"] for row in layer_rows(result))).all()


def test_scoring_and_callbacks_change_nothing(result, monkeypatch):
    monkeypatch.setattr(compression, "MAX_SCORES", 1)
    again = run()
    assert again.data == result.data
    assert again.validation_curve == result.validation_curve[-1:]


def test_the_last_score_is_that_of_the_network_in_training(watched):
    task, model = small_task.make_task(), small_task.make_shallow_model()
    model.load_state_dict(watched.look.seen[-1])
    inputs, labels = task.validation.inputs, task.validation.targets
    with torch.no_grad():
        outputs = model(inputs)
    _, loss, accuracy = watched.result.validation_curve[-1]
    assert loss == pytest.approx(float(nn.functional.cross_entropy(outputs, labels)), rel=1e-5)
    assert accuracy == pytest.approx(float((outputs.argmax(1) == labels).float().mean()))


def test_frames_need_pandas_and_nothing_else_does(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    for frame in (result.frame, result.history_frame):
        with pytest.raises(
            AutocompressError, match=re.escape('frames need pandas: pip install "autocompress[report]"')
        ):
            frame()
    assert "Bytes by layer" in result.to_html()


def test_a_frame_of_layers(result):
    frame = result.frame()
    assert frame.loc["0.weight", "shape"] == (32, 20)
    assert frame["kind"].tolist() == ["weights"] * 2 + ["vector"] * 2
    assert frame["codebook"].notna().tolist() == [True, True, False, False]


def test_statistics_of_batch_norm_are_constant_and_counters_have_no_factor():
    network = nn.Sequential(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3)).eval()
    rows = {row["name"]: row for row in layer_rows(ac.compress(network, target="50%"))}
    assert [rows[f"1.{name}"]["kind"] for name in ("running_mean", "running_var")] == ["constant"] * 2
    counter = rows["1.num_batches_tracked"]
    assert (counter["kind"], counter["factor"]) == ("kept as it is", None)


def test_the_page_is_whole_and_loads_nothing(result):
    page = Whole(result.to_html("A <net> & its file"))
    assert "A <net> & its file" in page.text
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("href", "src")]
    assert links == ["data:,"]
    assert f"{result.file_bytes:,} bytes" in page.text
    text = " ".join(page.text)
    for heading in ("Bytes by part", "Bytes by layer", "Validation accuracy along the run", "What was given up"):
        assert heading in text
    numbers = text[text.index("Bytes by part") : text.index("// ")]
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b|e[+-]\d\d", numbers)


def test_charts_without_data_are_left_out(result):
    model = nn.Sequential(nn.Linear(4, 3))
    at_once = ac.compress(model, target="200B", epochs=0).to_html()
    assert "along the run" not in at_once
    assert "<svg" not in at_once
    assert "Bytes by layer" in at_once
    tried = [(700, 0.95), (512, math.nan), (600, 0.93), (540, 0.90)]
    promise = {"promise": "drop:5", "kept": True, "limit": 0.92, "reference": 0.97, "measured": 0.93, "tried": tried}
    page = replace(result, target=combined("drop:5"), promise=promise).to_html()
    assert "Files that were tried for the quality constraint" in page
    assert "The quality constraint drop:5 is" in page


def test_a_network_of_many_layers_keeps_the_charts_short():
    deep = nn.Sequential(*(nn.Linear(3, 3) for _ in range(26)))
    page = Whole(ac.compress(deep, target="900B", epochs=0).to_html())
    assert sum(text.endswith(" more") for text in page.text) >= 2
    assert "25.weight" in page.text  # all of them are in the table


def test_the_command_writes_a_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(
        "from torch import nn\nimport torch\n"
        "def make():\n    return nn.Linear(16, 3)\n"
        "def data():\n    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))\n"
        "    y = x[:, :3].argmax(1)\n    return [(x[:32], y[:32])], [(x[32:], y[32:])]\n"
    )
    torch.save(nn.Linear(16, 3).state_dict(), "net.pt")
    command = ["compress", "nets:make", "--data", "nets:data", "--target", "150B", "--epochs", "2"]
    command += ["--weights", "net.pt", "--out", "net.safetensors", "--no-progress"]
    assert main([*command, "--report", "net.pt"]) == 2
    assert "--report 'net.pt': cannot make this folder" in capsys.readouterr().err
    assert main([*command, "--report", "pictures/of it", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    folder = tmp_path / "pictures" / "of it"
    assert sorted(path.name for path in folder.iterdir()) == [
        "history.csv",
        "layers.csv",
        "page.html",
        "run.json",
        "run.toml",
    ]
    with (folder / "layers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["weight", "bias"]
    assert rows[0]["shape"] == "3x16"
    kept = json.loads((folder / "run.json").read_text())
    assert kept["file_bytes"] == answer["file_bytes"]
    assert "nets:make on nets:data, 150B" in Whole((folder / "page.html").read_text()).text


def test_figures_go_to_whoever_takes_them(watched):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert set(watched.told) == {7, 14, 21, 28, 35, 10, 20, 30, 40}
    assert {"loss", "learning_rate", "nonzeros", "multiplier", "residual", "file_bytes"} <= set(watched.told[7])
    assert watched.told[40]["validation_score"] == watched.result.validation_curve[-1][2]
    assert "validation_score" not in watched.told[35]
    events = EventAccumulator(str(watched.folder)).Reload()
    assert "autocompress/validation_score" in events.Tags()["scalars"]
    assert [event.step for event in events.Scalars("autocompress/epoch_loss")] == [10, 20, 30, 40]


def test_callbacks_that_are_none():
    for none in ("tensorboard", Look):
        with pytest.raises(AutocompressError, match="callbacks holds"):
            run(callbacks=[none])


@pytest.mark.parametrize(
    ("values", "text"), [([0.0, 0.0], "0"), ([5.0], "5"), ([1e-9, 1e9], "1e-05"), ([-3.0, 2.0], "-2")]
)
def test_axes_of_any_range(values, text):
    drawing = lines("t", "", [Line("a", list(range(len(values))), values)], "x")
    Whole(drawing)
    assert f">{text}<" in drawing
    assert "nan" not in drawing


def test_numbers_as_people_write_them():
    assert (number(123456.7), number(0.5), number(float("inf"))) == ("123,457", "0.5", "infinite")
    assert (size(999.4), size(999_999), size(1e9)) == ("999 bytes", "1000 KB", "1.00 GB")


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")
def test_the_page_in_a_browser(result, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(result.to_html("clusters, 900B"))
    charts = (
        "[...document.querySelectorAll('figure')].map(x => [x.getBoundingClientRect().left, "
        "x.getBoundingClientRect().right, x.getBoundingClientRect().height])"
    )
    with Browser() as browser:
        for width in (390, 1280):
            for dark in (False, True):
                browser.open(page, width, dark=dark)
                assert browser.ask("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
                found = browser.ask(charts)
                assert len(found) == 9
                assert all(left >= 0 and right <= width and height > 60 for left, right, height in found)
                fonts = "[...document.querySelectorAll('p, li, td, dd, .bars span, .bars b')]"
                sizes = browser.ask(f"{fonts}.map(x => parseFloat(getComputedStyle(x).fontSize))")
                assert min(sizes) >= 13
                labels = browser.ask(
                    "[...document.querySelectorAll('figure svg text')].map(x => x.getBoundingClientRect().height)"
                )
                assert min(labels) >= 10
                ink, paper = browser.ask(
                    "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
                )
                brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
                assert (brightness[0] > brightness[1]) == dark
                assert browser.complaints() == []
                assert browser.requests() == [page.resolve().as_uri()]
        browser.ask("[...document.querySelectorAll('th button')].find(x => x.textContent === 'bytes').click()")
        last = "[...[...document.querySelectorAll('table')].at(-1).tBodies[0].rows]"
        values = browser.ask(f"{last}.map(row => row.cells[10].dataset.value)")
        assert [float(value) for value in values] == sorted(float(value) for value in values)
