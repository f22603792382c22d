from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from autocompress.cli.file_commands import INPUT_SHAPES
from autocompress.errors import InvalidInputError
from autocompress.task.named_models import MODEL_NAMES, load_weights, make_model


def weight_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.ndim >= 2)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("lenet5", 430_500),
        ("alexnet", 2_471_104),
        ("resnet20", 268_336),
        ("resnet56", 848_944),
        ("resnet50", 23_467_712),
    ],
)
def test_weights_are_as_many_as_published(name: str, weights: int) -> None:
    assert weight_count(make_model(name)) == weights


def test_lenet5_has_the_names_of_the_reference_weights() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in make_model("lenet5").state_dict().items()}
    assert shapes["features.0.weight"] == (20, 1, 5, 5)
    assert shapes["features.2.weight"] == (50, 20, 5, 5)
    assert shapes["classifier.0.weight"] == (500, 800)
    assert shapes["classifier.2.bias"] == (10,)
    assert len(shapes) == 8


def test_resnet20_has_no_parameters_in_its_shortcuts() -> None:
    names = list(make_model("resnet20").state_dict())
    assert not [name for name in names if "shortcut" in name]
    assert {"conv1.weight", "layer2.0.bn2.running_var", "linear.bias"} <= set(names)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_the_inputs_of_every_network_are_known_to_the_command_line(name: str) -> None:
    (shape,) = [shape for prefix, shape in INPUT_SHAPES.items() if name.startswith(prefix)]
    with torch.no_grad():
        assert make_model(name).eval()(torch.zeros(1, *shape)).shape == (1, 10)


@pytest.mark.parametrize(("name", "side"), [("lenet5", 28), ("alexnet", 32), ("resnet32", 32), ("resnet50", 32)])
def test_logits_have_one_column_per_class(name: str, side: int) -> None:
    model = make_model(name, num_classes=7, in_channels=2).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, 2, side, side)).shape == (2, 7)


def test_option_a_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides() -> None:
    block = make_model("resnet20").get_submodule("layer2.0.shortcut")
    images = torch.randn(1, 16, 4, 4)
    padded = block(images)
    assert padded.shape == (1, 32, 2, 2)
    assert torch.equal(padded[:, 8:24], images[:, :, ::2, ::2])
    assert not padded[:, :8].any()
    assert not padded[:, 24:].any()


def test_torchvision_model() -> None:
    model = make_model("torchvision:squeezenet1_1", num_classes=3).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lenet", "did you mean lenet5"),
        ("resnet", "did you mean resnet"),
        ("torchvision:resnet81", "did you mean resnet18"),
        ("resnet18", "torchvision:resnet18"),
        ("nowhere.nets:make", "cannot import 'nowhere.nets'"),
        ("torch.nn:Linea", "has no function 'Linea'"),
        ("builtins:dict", "must return a torch.nn.Module"),
        (":make", "names no function"),
    ],
)
def test_unknown_model_is_named_with_what_is_close(name: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make_model(name)


def test_function_in_the_current_folder(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_nets.py").write_text("import torch\ndef make():\n    return torch.nn.Linear(3, 2)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    assert isinstance(make_model("my_nets:make"), nn.Linear)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_weights_come_back_from_a_file(tmp_path, suffix: str) -> None:
    model, path = make_model("lenet5"), tmp_path / f"weights.{suffix}"
    save_file(model.state_dict(), path) if suffix == "safetensors" else torch.save(model.state_dict(), path)
    loaded = load_weights(make_model("lenet5"), path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_weights_without_counters_of_batches_fit(tmp_path) -> None:
    state = {name: value for name, value in make_model("resnet20").state_dict().items() if "num_batches" not in name}
    save_file(state, tmp_path / "old.safetensors")
    load_weights(make_model("resnet20"), tmp_path / "old.safetensors")
    assert len(state) < len(make_model("resnet20").state_dict())


def test_weights_that_do_not_fit_are_listed_and_nothing_is_loaded(tmp_path) -> None:
    model, path = make_model("lenet5"), tmp_path / "w.safetensors"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = make_model("lenet5", num_classes=3).state_dict()
    state["extra"] = state.pop("features.0.bias")
    save_file(state, path)
    with pytest.raises(InvalidInputError, match=r"features.0.bias is missing; extra is not in the model; .*\[3, 500\]"):
        load_weights(model, path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


@pytest.mark.parametrize("content", [b"", b"no weights", b"hello", "evil", "list"])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_files_that_hold_no_weights(tmp_path, capsys, content, suffix: str) -> None:
    path = tmp_path / f"w.{suffix}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(Evil() if content == "evil" else [torch.zeros(1)], path)
    with pytest.raises(InvalidInputError, match=r"not a readable file of weights|must be a state_dict"):
        load_weights(make_model("lenet5"), path)
    assert "unpickled" not in capsys.readouterr().out


def test_missing_file(tmp_path) -> None:
    with pytest.raises(InvalidInputError, match=r"no file .*none\.pt"):
        load_weights(make_model("lenet5"), tmp_path / "none.pt")


def wrapped(state: dict, prefix: str) -> dict:
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    "form",
    [
        lambda state: wrapped(state, "module."),
        lambda state: wrapped(state, "_orig_mod."),
        lambda state: wrapped(state, "module._orig_mod."),
        lambda state: wrapped(state, "_orig_mod.module."),
        lambda state: {name.replace("features.", "features._orig_mod."): value for name, value in state.items()},
        lambda state: {name.replace(".weight", ".module.weight"): value for name, value in state.items()},
        lambda state: {"state_dict": wrapped(state, "model.") | {"loss.weight": torch.ones(3)}, "epoch": 3},
        lambda state: {"model_state_dict": state, "optimizer": {}},
        lambda state: {"model": wrapped(state, "module."), "ema": {}},
        lambda state: state | {"features._extra_state": {"version": 2}},
    ],
)
def test_weights_under_the_names_of_wrappers_and_in_checkpoints(form, tmp_path: Path) -> None:
    state = make_model("lenet5").state_dict()
    torch.save(form(state), tmp_path / "net.pt")
    loaded = load_weights(make_model("lenet5"), tmp_path / "net.pt").state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())


def test_weights_of_another_network_are_named_as_in_the_file(tmp_path: Path) -> None:
    torch.save({"model.other.weight": torch.ones(3)}, tmp_path / "net.pt")
    with pytest.raises(InvalidInputError, match=r"model\.other\.weight is not in the model"):
        load_weights(nn.Sequential(nn.Linear(3, 3)), tmp_path / "net.pt")


def test_weights_go_into_a_network_with_a_compiled_block(tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    torch.save(plain.state_dict(), tmp_path / "net.pt")
    model = nn.Sequential(torch.compile(nn.Linear(3, 3)), nn.Linear(3, 3))
    load_weights(model, tmp_path / "net.pt")
    assert torch.equal(model[0]._orig_mod.weight, plain[0].weight)


def tied() -> nn.Module:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False))
    model[1].weight = model[0].weight
    return model


def test_a_tied_network_saved_by_safetensors_save_model(tmp_path: Path) -> None:
    from safetensors.torch import save_model

    model = tied()
    save_model(model, str(tmp_path / "net.safetensors"))  # holds one of the two names
    loaded = load_weights(tied(), tmp_path / "net.safetensors")
    assert torch.equal(loaded[0].weight, model[0].weight)
    assert loaded[1].weight is loaded[0].weight


def test_untied_weights_do_not_go_into_a_tied_network(tmp_path: Path) -> None:
    torch.save({"0.weight": torch.zeros(7, 4), "1.weight": torch.ones(7, 4)}, tmp_path / "net.pt")
    with pytest.raises(InvalidInputError, match=r"0\.weight and 1\.weight are one tensor in the model and differ"):
        load_weights(tied(), tmp_path / "net.pt")
