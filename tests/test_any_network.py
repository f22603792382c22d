"""Any network from the command line: losses and metrics by name or of one's own, networks of timm and transformers."""

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import autocompress as ac
from autocompress.cli import main
from autocompress.errors import InvalidInputError
from autocompress.task import load_task
from autocompress.task.named_models import make_model
from autocompress.training.losses import (
    Distillation,
    binary_accuracy,
    classification_loss,
    correct_predictions,
    loss_of,
    mean_iou,
    metric_of,
)
from autocompress.training.recipe import Recipe

pytestmark = pytest.mark.any_file

EXAMPLES = Path(__file__).parent.parent / "examples"
QUICK = Recipe("adamw", 0.01, reference_epochs=10, compress_epochs=2)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("AUTOCOMPRESS_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("autocompress.task.recipe_for", lambda *_: QUICK)
    yield tmp_path
    sys.modules.pop("any_network", None)


def run(capsys, *arguments: str) -> dict:
    assert main([*arguments, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("model", "data", "scores", "name", "least"),
    [
        pytest.param("regressor", "houses", ["--loss", "mse"], "minus the loss", -0.35, marks=pytest.mark.slow),
        pytest.param("segmenter", "discs", ["--metric", "iou"], "iou", 0.7, marks=pytest.mark.slow),
        ("detector", "spam", ["--loss", "bce_with_logits"], "binary_accuracy", 0.85),
        ("tagger", "tags", ["--loss", "bce_with_logits", "--metric", "any_network:f1"], "f1", 0.7),
    ],
)
def test_the_examples_of_four_kinds(capsys, model, data, scores, name, least):
    task = [f"any_network:{model}", "--data", f"any_network:{data}"]
    made = run(capsys, "compress", *task, *scores, "--target", "10%", "--out", "net.safetensors", "--no-progress")
    assert made["metric"] == name
    assert made["file_bytes"] <= 0.1 * made["original_bytes"]
    assert made["test_accuracy"] > max(least, made["reference_accuracy"] - 0.15)
    again = run(capsys, "evaluate", "net.safetensors", "--model", task[0], *task[1:], *scores)
    assert again["metric"] == name
    assert again["test_accuracy"] == pytest.approx(made["test_accuracy"])


@pytest.mark.slow
def test_a_network_of_timm_with_one_output_for_numbers(capsys, here):
    pytest.importorskip("timm")
    (here / "measures.py").write_text(
        "import torch\n"
        "def data():\n"
        "    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))\n"
        "    return [(images, images.mean((1, 2, 3)))], [(images, images.mean((1, 2, 3)))]\n"
    )
    task = load_task("timm:test_resnet", "measures:data", loss="l1")
    torch.save(task.make_model().state_dict(), here / "net.pt")
    options = ["--data", "measures:data", "--loss", "l1", "--weights", "net.pt", "--epochs", "0"]
    made = run(capsys, "compress", "timm:test_resnet", *options, "--target", "weights:4x", "--out", "net.safetensors")
    assert made["weight_data_bytes"] <= made["original_bytes"] / 4
    onnx = ["export", "net.safetensors", "--model", "timm:test_resnet", "--data", "measures:data", "--loss", "l1"]
    assert run(capsys, *onnx, "--to", "pt", "--out", "dense.pt")["bytes"] > made["file_bytes"]
    with pytest.raises(InvalidInputError, match=r"timm has no network 'resnet18x'; did you mean .*resnet18"):
        make_model("timm:resnet18x")


def test_a_configuration_of_transformers_and_the_weights_beside_it(capsys, here):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=20, max_position_embeddings=8, num_labels=2, **sizes)
    network = transformers.BertForSequenceClassification(config)
    network.save_pretrained(here / "bert")
    (here / "words.py").write_text(
        "import torch\n"
        "def data():\n"
        "    ids = torch.randint(20, (16, 8), generator=torch.Generator().manual_seed(0))\n"
        "    batch = {'input_ids': ids, 'attention_mask': torch.ones_like(ids), 'labels': ids[:, 0] % 2}\n"
        "    return [batch], [batch]\n"
    )
    options = [
        "--data",
        "words:data",
        "--loss",
        "model",
        "--metric",
        "accuracy",
        "--epochs",
        "0",
        "--target",
        "weights:8x",
    ]
    made = run(capsys, "compress", "hf:bert", *options, "--target", "weights:8x", "--out", "net.safetensors")
    assert made["gradient_steps"] == 0
    batch = load_task("hf:bert", "words:data").validation[0]
    score = (network.eval()(batch["input_ids"]).logits.argmax(1) == batch["labels"]).float().mean()
    assert made["reference_accuracy"] == pytest.approx(float(score))  # not those of a network that was trained anew
    (here / "other.json").write_text('{"model_type": "bert"}')
    for source, message in [("nowhere", "no configuration"), ("other.json", r"has the architectures \[\]; it must")]:
        with pytest.raises(InvalidInputError, match=message):
            make_model(f"hf:{source}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "crossentropy"}, "loss 'crossentropy' is unknown; the names are cross_entropy, mse"),
        ({"metric": "f1"}, "metric 'f1' is unknown; the names are accuracy, binary_accuracy, iou, cross_entropy"),
        ({"loss": "any_network:regressor"}, r"cannot be called with \(output, target\)"),
        ({"loss": "any_network:f2"}, "has no function 'f2'"),
        ({"loss": "cross_entropy"}, "does not fit the training data: the target is float32"),
        ({}, r"give loss=, a function or a name such as 'mse'"),
        (
            {"loss": "mse", "metric": "accuracy"},
            "the metric accuracy does not fit the training data",
        ),
    ],
)
def test_what_does_not_fit_is_named_before_training(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        load_task("any_network:regressor", "any_network:houses", **settings)


def test_names_in_python():
    data = [(torch.randn(16, 4), torch.rand(16) > 0.5)]
    model = nn.Linear(4, 1)
    result = ac.compress(model, train=data, val=data, target="200B", loss="bce_with_logits", epochs=1, progress=False)
    assert result.metric == "binary_accuracy"
    with pytest.raises(InvalidInputError, match="loss 'bce' is unknown"):
        ac.compress(model, train=data, target="200B", loss="bce")


def test_class_scores_of_pixels_count_as_those_of_sequences():
    generator = torch.Generator().manual_seed(0)
    scores, classes = torch.randn(3, 5, 2, 4, generator=generator), torch.randint(5, (3, 2, 4), generator=generator)
    last = scores.movedim(1, -1)
    assert torch.equal(classification_loss(scores, classes), classification_loss(last, classes))
    torch.testing.assert_close(classification_loss(scores, classes), F.cross_entropy(scores, classes))
    assert torch.equal(correct_predictions(scores, classes), correct_predictions(last, classes))
    teacher, hard = torch.randn(3, 5, 2, 4, generator=generator), torch.tensor(1.0)
    distillation = Distillation(nn.Identity())
    expected = distillation.loss(last, teacher.movedim(1, -1), hard)
    torch.testing.assert_close(distillation.loss(scores, teacher, hard, classes), expected)


def test_metrics_by_hand():
    output = torch.tensor([[2.0, -1.0], [-3.0, 0.5]])
    assert binary_accuracy(output, torch.tensor([[1, 1], [0, 1]])).tolist() == [0.5, 1.0]
    assert binary_accuracy(output[:, :1], torch.tensor([True, True])).tolist() == [1.0, 0.0]
    scores = F.one_hot(torch.tensor([[0, 0, 1, 1], [2, 2, 2, 2]]), 3).float()
    wanted = torch.tensor([[0, 1, 1, -100], [2, 2, 2, 2]])
    # the first: class 0 one of two, class 1 one of two; class 2 occurs nowhere
    torch.testing.assert_close(mean_iou(scores, wanted), torch.tensor([0.5, 1.0]))
    assert metric_of("mse")(output, torch.zeros(2, 2)).tolist() == pytest.approx([-3.5625, -3.5625])
    assert loss_of("l1")(output, torch.zeros(4)) == pytest.approx(1.625)
