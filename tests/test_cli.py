"""The command line: what it writes, what it prints where, and its exit status."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from processes import Script
from torch import nn

from autocompress.cli import compress_command, file_commands, main
from autocompress.cli.console import _terminated_as_interrupted, interrupts_held_back
from autocompress.cli.parser import build_parser
from autocompress.errors import InfeasibleTargetError, InvalidInputError
from autocompress.training.recipe import Recipe

pytestmark = pytest.mark.any_file

NETS = """
import torch
from torch import nn

def make_net():
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))

def make_other():
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))

def make_nothing():
    return nn.Flatten()

def split(count, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    centres = torch.eye(4).repeat(1, 4)
    return centres[labels] + 0.3 * torch.randn(count, 16, generator=generator), labels

def loaders():
    parts = [split(count, seed) for seed, count in enumerate((512, 128, 128))]
    return [list(zip(x.split(64), y.split(64))) for x, y in parts]

def without_test():
    return loaders()[:2]

def empty():
    return [], []
"""
JSON_KEYS = {
    "target",
    "file_bytes",
    "entropy_bytes",
    "weight_data_bytes",
    "original_bytes",
    "reference_accuracy",
    "validation_accuracy",
    "test_accuracy",
    "gradient_steps",
    "wall_seconds",
    "device",
    "seed",
    "layers",
}
UNDISTURBED = ["--weights", "dense.pt", "--epochs", "12", "--device", "cpu"]
MODEL = ["--model", "clinets:make_net"]
DATA = ["--data", "clinets:loaders"]


def compress_arguments(out, *more, model="clinets:make_net", data="clinets:loaders", target="500B"):
    return ["compress", model, "--data", data, "--target", target, "--out", str(out), "--no-progress", *more]


@pytest.fixture(scope="session")
def workshop(tmp_path_factory):
    """A folder with the module `clinets` and dense weights of its network, `dense.pt`."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "clinets.py").write_text(NETS, encoding="utf-8")
    sys.path.insert(0, str(folder))
    import clinets

    torch.manual_seed(0)
    model = clinets.make_net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(5):
        for x, y in clinets.loaders()[0]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    torch.save(model.state_dict(), folder / "dense.pt")
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(autouse=True)
def here(workshop, monkeypatch):
    """Every test starts in that folder, with a recipe that takes a second and data folders of its own."""
    monkeypatch.chdir(workshop)
    monkeypatch.setenv("AUTOCOMPRESS_DATA", str(workshop / "data"))
    short = Recipe("sgd", 0.05, batch_size=64, reference_epochs=3, compress_epochs=10)
    monkeypatch.setattr("autocompress.task.recipe_for", lambda *_: short)
    return workshop


@pytest.fixture(scope="session")
def written(workshop):
    """A compressed file and the JSON object that its making printed, in a process of its own."""
    path = workshop / "small.safetensors"
    arguments = compress_arguments(path, *UNDISTURBED, "--json")
    outcome = subprocess.run(
        [sys.executable, "-m", "autocompress", *arguments],
        cwd=workshop,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert outcome.returncode == 0, outcome.stderr
    return path, json.loads(outcome.stdout)


def damaged(path, folder):
    """Returns a copy of a file with its last byte changed."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    copy = folder / "damaged.safetensors"
    copy.write_bytes(data)
    return copy


# What the commands do


def test_compress_writes_a_file_within_the_target_and_one_json_object(written):
    path, answer = written
    assert path.stat().st_size == answer["file_bytes"] <= 500
    assert set(answer) >= JSON_KEYS
    assert answer["target"] == "500B"
    assert answer["test_accuracy"] > 0.9
    assert {"name", "shape", "kept", "codebook", "bits", "bytes"} <= set(answer["layers"][0])


def test_compress_prints_the_report_and_the_accuracies(tmp_path, capsys):
    out = tmp_path / "net.safetensors"
    assert main(compress_arguments(out, "--weights", "dense.pt", "--epochs", "3")) == 0
    printed = capsys.readouterr().out
    for text in (", reference ", "validation accuracy", "test accuracy", "0.weight", "bytes"):
        assert text in printed
    assert printed.endswith(f"net.safetensors: {out.stat().st_size} bytes\n")
    assert os.listdir(tmp_path) == ["net.safetensors"]


def test_compress_trains_a_reference_where_no_weights_are_given(tmp_path, capsys):
    assert main(compress_arguments(tmp_path / "net.safetensors", "--json", data="clinets:without_test")) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["reference_accuracy"] is not None
    assert answer["test_accuracy"] is None


def test_evaluate_agrees_with_compress(written, capsys):
    path, answer = written
    assert main(["evaluate", str(path), *MODEL, *DATA, "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["test_accuracy"] == answer["test_accuracy"]
    assert main(["evaluate", str(path), *MODEL, *DATA, "--device", "cpu", "--json", "--split", "validation"]) == 0
    assert json.loads(capsys.readouterr().out)["validation_accuracy"] == answer["validation_accuracy"]
    assert main(["evaluate", str(path), *MODEL, *DATA]) == 0
    assert capsys.readouterr().out.startswith(f"test accuracy  {100 * answer['test_accuracy']:.2f} %  (128 examples)")


def test_inspect(written, capsys):
    path, answer = written
    assert main(["inspect", str(path), *MODEL]) == 0
    assert "0.weight" in capsys.readouterr().out
    assert main(["inspect", str(path), *MODEL, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for key in ("file_bytes", "entropy_bytes", "weight_data_bytes", "original_bytes", "layers"):
        assert found[key] == answer[key]


def test_export_pt_is_a_plain_state_dict(written, tmp_path, capsys):
    import clinets

    out = tmp_path / "net.pt"
    assert main(["export", str(written[0]), *MODEL, "--to", "pt", "--out", str(out)]) == 0
    model = clinets.make_net()
    model.load_state_dict(torch.load(out, weights_only=True))
    x, y = clinets.split(128, 2)
    assert (model(x).argmax(1) == y).float().mean().item() == pytest.approx(written[1]["test_accuracy"])


@pytest.mark.parametrize("shape", [["--input-shape", "16"], DATA])
def test_export_onnx(written, tmp_path, capsys, shape):
    out = tmp_path / "net.onnx"
    assert main(["export", str(written[0]), *MODEL, "--to", "onnx", "--out", str(out), "--json", *shape]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["bytes"] == out.stat().st_size
    assert answer["difference"] < 1e-5


# Exit status and messages


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "0KB"}, "'0KB': the number must be above zero"),
        ({"target": "drop:100"}, "in points, at least 0 and below 100"),
        ({"model": "lenet55"}, "lenet5"),
        ({"model": "clinets:make_nett"}, "make_net"),
        ({"model": "clinets:make_nothing"}, ""),
        ({"data": "digit"}, "digits"),
        ({"data": "clinets:empty"}, "no batch"),
    ],
)
def test_bad_input(tmp_path, capsys, change, message):
    assert main(compress_arguments(tmp_path / "net.safetensors", **change)) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--target", "weights:9x"], "not supported together"),
        (["--weights", "none.pt"], "none.pt"),
        (["--weights", "clinets.py"], "clinets.py"),
        (["--device", "abacus"], "abacus"),
        (["--weights", "dense.pt", "--ignore", "head.*"], "head.*"),
        (["--weights", "dense.pt", "--epochs", "1", "--ignore", "*"], ""),
    ],
)
def test_bad_options(tmp_path, capsys, more, message):
    assert main(compress_arguments(tmp_path / "net.safetensors", *more)) == 2
    assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_the_meta_device_computes_nothing(tmp_path, capsys):
    arguments = compress_arguments(tmp_path / "net.safetensors", "--weights", "dense.pt", "--device", "meta")
    assert main(arguments) == 2
    assert "device 'meta' cannot be used here (it computes nothing); try 'cpu'" in capsys.readouterr().err


def test_a_wrong_input_shape_is_bad_input(written, tmp_path, capsys):
    out = tmp_path / "net.onnx"
    arguments = ["export", str(written[0]), *MODEL, "--to", "onnx", "--out", str(out), "--input-shape", "3,5"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "the network does not take the example given" in error
    assert len(error.splitlines()) == 1
    assert not out.exists()


def test_weights_of_another_network(tmp_path, capsys):
    arguments = compress_arguments(tmp_path / "net.safetensors", "--weights", "dense.pt", model="clinets:make_other")
    assert main(arguments) == 2
    assert "do not fit" in capsys.readouterr().err


def test_the_smallest_size_named_is_reachable(tmp_path, capsys):
    out = tmp_path / "net.safetensors"
    assert main(compress_arguments(out, "--weights", "dense.pt", "--epochs", "1", target="1B")) == 2
    assert "smallest" in capsys.readouterr().err
    options = build_parser().parse_args(compress_arguments(out, "--weights", "dense.pt", "--epochs", "1", target="1B"))
    with pytest.raises(InfeasibleTargetError) as caught:
        compress_command.compress_command(options)
    smallest = caught.value.smallest
    for target, status in ((smallest - 1, 2), (smallest, 0)):
        arguments = compress_arguments(out, "--weights", "dense.pt", "--epochs", "1", target=f"{target}B")
        assert main(arguments) == status
    assert out.stat().st_size <= smallest


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("net.pt", "must end in .safetensors"),
        ("none/net.safetensors", "no folder"),
        ("folder.safetensors", "is a folder"),
        ("dense.safetensors", "is read, too"),
    ],
)
def test_the_output_is_checked_before_anything_is_trained(tmp_path, capsys, monkeypatch, out, message):
    def too_late(*_, **__):
        raise AssertionError("work began")

    monkeypatch.setattr(compress_command, "load_task", too_late)
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "dense.safetensors").touch()
    weights = ["--weights", str(tmp_path / "dense.safetensors")]
    assert main(compress_arguments(tmp_path / out, *weights)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("error", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_folder_that_takes_no_file(tmp_path, capsys, monkeypatch, error):
    def refuse(**_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert main(compress_arguments(tmp_path / "net.safetensors")) == 2
    assert os.strerror(error) in capsys.readouterr().err


@pytest.mark.parametrize("command", ["inspect", "evaluate", "export"])
def test_damaged_and_missing_files(written, tmp_path, capsys, command):
    more = {"inspect": [], "evaluate": DATA, "export": ["--to", "pt", "--out", str(tmp_path / "net.pt")]}[command]
    assert main([command, str(damaged(written[0], tmp_path)), *MODEL, *more]) == 3
    assert main([command, str(tmp_path / "none.safetensors"), *MODEL, *more]) == 2
    assert "none.safetensors" in capsys.readouterr().err
    assert main([command, str(written[0]), "--model", "clinets:make_other", *more]) == 2
    assert not (tmp_path / "net.pt").exists()


def test_no_test_split(written, capsys):
    assert main(["evaluate", str(written[0]), *MODEL, "--data", "clinets:without_test"]) == 2
    assert "no test split" in capsys.readouterr().err


def test_inputs_of_an_unknown_shape(written, tmp_path, capsys):
    assert main(["export", str(written[0]), *MODEL, "--to", "onnx", "--out", str(tmp_path / "net.onnx")]) == 2
    assert "--input-shape" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["squeeze"],
        ["compress", "lenet5"],
        compress_arguments("net.safetensors", "--epochs", "-1"),
        compress_arguments("net.safetensors", "--seed", "-1"),
        ["export", "net.safetensors", *MODEL, "--to", "onnx", "--out", "o.onnx", "--input-shape", "3,x"],
    ],
)
def test_mistyped_commands(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: autocompress" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["compress"], ["inspect"], ["evaluate"], ["export"]])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    assert "autocompress" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("more", "epochs", "message"),
    [
        ([], 1, "--resume DIR"),
        (["--resume", "checkpoints"], 0, "before the first checkpoint: checkpoints holds none"),
        (["--resume", "checkpoints"], 1, "goes on from checkpoints"),
    ],
)
def test_interrupted(tmp_path, capsys, monkeypatch, more, epochs, message, number):
    (tmp_path / "dense.pt").write_bytes(Path("dense.pt").read_bytes())
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)

    def interrupt(*_, **options):
        if epochs and options["resume"]:
            (options["resume"] / "compress.checkpoint").touch()
        os.kill(os.getpid(), number)

    monkeypatch.setattr(compress_command, "compress", interrupt)
    assert main(compress_arguments(tmp_path / "net.safetensors", "--weights", "dense.pt", *more)) == 130
    assert signal.getsignal(signal.SIGTERM) is before
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_folder_that_is_gone_at_the_end_loses_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "out").mkdir()
    do = compress_command.compress

    def compress_and_lose(*arguments, **options):
        result = do(*arguments, **options)
        shutil.rmtree(tmp_path / "out")
        return result

    monkeypatch.setattr(compress_command, "compress", compress_and_lose)
    arguments = compress_arguments(tmp_path / "out" / "net.safetensors", "--weights", "dense.pt", "--epochs", "1")
    assert main(arguments) == 1
    error = capsys.readouterr().err
    (kept,) = tmp_path.glob("autocompress-*/net.safetensors")
    assert f"there is no folder {tmp_path / 'out'}; the result is kept as {kept}" in error
    assert main(["inspect", str(kept), *MODEL]) == 0


def test_a_name_as_long_as_the_file_system_allows(tmp_path, capsys):
    path = tmp_path / ("n" * 240 + ".safetensors")
    assert main(compress_arguments(path, "--weights", "dense.pt", "--epochs", "1", "--resume", "r" * 255)) == 0
    assert path.stat().st_size <= 500
    assert main(compress_arguments(tmp_path / ("n" * 250 + ".safetensors"), "--weights", "dense.pt")) == 2
    assert "cannot be a file: File name too long" in capsys.readouterr().err


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    (tmp_path / "run").mkdir()
    left = [tmp_path / ".net.safetensors.ab.part", tmp_path / "run" / ".compress.checkpoint.cd.part"]
    others = [tmp_path / ".other.safetensors.ab.part", tmp_path / "run" / "notes.tmp"]
    for file in left + others:
        file.touch()
    arguments = ["--weights", "dense.pt", "--epochs", "1", "--resume", str(tmp_path / "run")]
    assert main(compress_arguments(tmp_path / "net.safetensors", *arguments)) == 0
    assert [file.exists() for file in left] == [False] * 2
    assert all(file.exists() for file in others)


@pytest.mark.parametrize("kind", [ImportError, SystemError, InvalidInputError])
def test_ctrl_c_within_an_import_is_ctrl_c(tmp_path, capsys, monkeypatch, kind):
    def importing(*_, **__):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt as interrupt:
            raise kind("initialization failed") from interrupt

    monkeypatch.setattr(compress_command, "compress", importing)
    assert main(compress_arguments(tmp_path / "net.safetensors", "--weights", "dense.pt")) == 130
    assert "interrupted, nothing was written" in capsys.readouterr().err


HALF_IMPORTED = """
import sys

sys.modules["torch"] = None  # what Ctrl-C leaves of it cannot be imported any more

import autocompress.cli

def importing(options):
    raise KeyboardInterrupt

autocompress.cli._run = importing
sys.exit(autocompress.cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("more", "told"),
    [([], "nothing was written; with --resume"), (["--resume", "run"], "before the first checkpoint: run holds none")],
)
def test_ctrl_c_within_the_import_of_torch_is_told_without_it(tmp_path, more, told):
    arguments = compress_arguments(tmp_path / "net.safetensors", "--weights", "dense.pt", *more)
    done = subprocess.run([sys.executable, "-c", HALF_IMPORTED, *arguments], capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_within_an_import_comes_after_it(number):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    done = []

    def imported() -> None:
        with interrupts_held_back():
            os.kill(os.getpid(), number)
            done.append("imported")

    with _terminated_as_interrupted(), pytest.raises(KeyboardInterrupt):
        imported()
    assert done == ["imported"]
    with interrupts_held_back():
        pass
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_bug_shows_its_traceback(monkeypatch, capsys, tmp_path):
    def stumble(*_, **__):
        raise KeyError("lost")

    monkeypatch.setattr(compress_command, "compress", stumble)
    assert main(compress_arguments(tmp_path / "net.safetensors", "--weights", "dense.pt")) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "unexpected KeyError" in error


def test_what_others_print_does_not_reach_stdout(monkeypatch, capsys, written):
    def chatter(*arguments, **named):
        print("downloading ...")
        return read_compressed(*arguments, **named)

    read_compressed = file_commands.read_compressed
    monkeypatch.setattr(file_commands, "read_compressed", chatter)
    assert main(["inspect", str(written[0]), *MODEL, "--json"]) == 0
    captured = capsys.readouterr()
    json.loads(captured.out)
    assert "downloading" in captured.err


def test_a_folder_of_checkpoints_belongs_to_one_command(tmp_path, capsys):
    weights = ["--weights", "dense.pt", "--epochs", "2", "--resume", str(tmp_path / "checkpoints" / "new")]
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    assert main(compress_arguments(first, *weights)) == 0
    assert main(compress_arguments(second, *weights)) == 0
    assert first.read_bytes() == second.read_bytes()
    assert main(compress_arguments(second, *weights, "--seed", "5", target="600B")) == 2
    assert "another command (target, seed differ)" in capsys.readouterr().err


STAYS = """
import sys, time
from autocompress.cli import main

class Stays:
    def __init__(self, stream, words):
        self.stream, self.words, self.line = stream, words, ""
    def write(self, text):
        line = self.line + text
        self.line = line.rpartition("\\n")[2]  # before the other side knows, and kills
        self.stream.write(text)
        self.stream.flush()
        while self.words in line and "\\n" in text:
            time.sleep(1)
    def __getattr__(self, name):
        return getattr(self.stream, name)

sys.stderr = Stays(sys.stderr, sys.argv[1])
sys.exit(main(sys.argv[2:]))
"""


def run_in_a_process(arguments, folder, stays_at="never"):
    """Starts a command in a process of its own and returns it.

    A command that has written `stays_at` waits to be killed: however slow the machine, the kill finds it there.
    """
    return Script(STAYS, stays_at, *(each for each in arguments if each != "--no-progress"), cwd=folder)


def test_stopped_and_killed_and_resumed_gives_the_same_bytes(written, workshop, tmp_path):
    resumed = tmp_path / "resumed.safetensors"
    arguments = compress_arguments(resumed, *UNDISTURBED, "--resume", str(tmp_path / "checkpoints"))
    # among the projections, and while finishing
    for last_epoch, number, status in [("3/12", signal.SIGTERM, 130), ("11/12", signal.SIGKILL, -signal.SIGKILL)]:
        process = run_in_a_process(arguments, workshop, f"epoch {last_epoch}")
        while f"epoch {last_epoch}" not in process.stderr.read_text():
            assert process.poll() is None, process.stderr.read_text()
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait() == status
        assert not resumed.exists()
        if number != signal.SIGKILL:
            assert not [path for path in tmp_path.rglob("*") if path.suffix in (".part", ".tmp")]
    process = run_in_a_process(arguments, workshop)
    _, messages = process.communicate()
    assert process.returncode == 0
    assert "epoch 10/12" not in messages
    assert resumed.read_bytes() == written[0].read_bytes()
