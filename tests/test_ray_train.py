"""Several workers on Ray Train: parts of batches that are the whole together, one file, and a worker that is lost."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import small_task
import torch
from torch.utils.data import DataLoader, TensorDataset

import autocompress as ac
from autocompress.cli import main
from autocompress.errors import InvalidInputError
from autocompress.integrations.ray_train import check_address, sources_of
from autocompress.training.batches import CropAndFlip, TensorBatches
from autocompress.training.evaluation import hold_out
from autocompress.training.random_state import seed_data_order
from autocompress.training.ranks import Part, part_of

ROOT = Path(__file__).parent.parent


def together(parts):
    """Returns the batches that the parts of several ranks make together, each in the order of its examples."""
    return [sorted(row for part in batch for row in part) for batch in zip(*parts, strict=True)]


def rows(batches):
    return [[tuple(x.flatten().tolist()) for x in inputs] for inputs, _ in batches]


@pytest.mark.parametrize("size", [2, 3])
def test_parts_of_tensors_are_the_batches_of_one_process(size):
    images = torch.randint(0, 255, (25, 1, 4, 4), dtype=torch.uint8)
    whole = TensorBatches(images, torch.arange(25), batch_size=8, shuffle=True, seed=3, augment=CropAndFlip(1))
    parts = [Part(whole, rank, size) for rank in range(size)]
    for epoch in (0, 1):
        for each in (whole, *parts):
            each.set_epoch(epoch)
        found = [rows(part) for part in parts]
        expected = rows(whole)
        assert len(parts[0]) == len(whole) == 4
        assert together(found)[:-1] == [sorted(batch) for batch in expected][:-1]
        assert all(part[-1] == expected[-1] for part in found)  # a batch of one example: every rank has it
        assert whole.part == (0, 1)


def test_parts_of_a_loader_read_their_own_examples_alone():
    read = []

    class Read(TensorDataset):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    data = Read(torch.arange(40.0)[:, None], torch.arange(40))
    parts = [Part(DataLoader(data, batch_size=8, shuffle=True), rank, 2) for rank in range(2)]
    epochs = []
    for rank, part in enumerate(parts):
        seed_data_order(part, 5)  # as the trainer does on every rank
        torch.manual_seed(rank)  # whatever else it has drawn
        epochs.append([rows(part), rows(part)])
        assert len(read) == 40 * (rank + 1)
    for first, second in zip(*epochs, strict=True):
        assert sorted(row for batch in together([first, second]) for row in batch) == [(float(n),) for n in range(40)]
    assert epochs[0][0] != epochs[0][1]  # another order in every epoch


def test_parts_of_any_batches():
    batch = {"ids": torch.arange(10).view(5, 2), "mask": None, "names": ["a", "b", "c", "d", "e"], "scale": 2.0}
    batch["nested"] = (torch.arange(5), torch.tensor(7))
    first, second = (part_of(batch | {"labels": torch.arange(5)}, rank, 2) for rank in range(2))
    assert first["ids"].tolist() == [[0, 1], [4, 5], [8, 9]]
    assert second["labels"].tolist() == [1, 3]
    assert first["nested"][0].tolist() == [0, 2, 4]
    assert (first["nested"][1], first["scale"], first["mask"]) == (torch.tensor(7), 2.0, None)
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(3, 1), torch.ones(2, 1)])
    with pytest.raises(InvalidInputError, match="a PackedSequence in a batch cannot be divided"):
        part_of((packed, torch.arange(2)), 0, 2)


def test_what_is_kept_from_training_is_the_same_on_all_ranks():
    whole = small_task.make_task().train
    kept = [hold_out(Part(whole, rank, 2), 0) for rank in range(2)]
    held = [rows(each.judge) for each in kept]
    assert together(held) == [sorted(batch) for batch in rows(hold_out(whole, 0).judge)]
    assert {each.words for each in kept} == {hold_out(whole, 0).words}


def test_what_travels_to_a_cluster():
    found = sources_of(small_task.make_model(), DataLoader(small_task.batches(8, 0)), small_task.make_task, None)
    assert found == [str(Path(small_task.__file__))]


def test_addresses_of_no_cluster():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    task = small_task.make_task()
    for wrong, message in (
        (address, "no Ray cluster at ray_address"),
        ("ray://here:10001", "must be 'auto' or HOST"),
        ("127.0.0.1:²", "must be 'auto'"),
        (5, "is 5; it must be 'auto'"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            check_address(wrong)
        with pytest.raises(InvalidInputError, match=message):
            ac.compress(task.make_model(), train=task.train, target="900B", workers=2, ray_address=wrong)
    with pytest.raises(InvalidInputError, match="workers is 0"):
        ac.compress(task.make_model(), train=task.train, target="900B", workers=0)


KILLS = """
import os, signal, sys
import small_task, autocompress as ac
from autocompress.training.ranks import Ranks

class Kill(ac.Callback):
    '''Ends one worker in the middle of an epoch, once.'''

    def __init__(self, marker):
        self.marker = marker

    def on_step(self, trainer):
        if trainer.step == 25 and not trainer.ranks.is_first and not os.path.exists(self.marker):
            open(self.marker, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)

address, workers, folder, marker = sys.argv[1:]
task = small_task.make_task(norm=True)
model = small_task.train_reference(task)
result = ac.compress(
    model, train=task.train, val=task.validation, test=task.test, recipe=task.recipe, target="900B", epochs=4,
    workers=int(workers), ray_address=address, resume=folder, callbacks=[Kill(marker)],
)
result.save(folder + "/net.safetensors")
print(result.gradient_steps, result.validation_accuracy, result.test_accuracy, len(result.curve))
"""


@pytest.fixture(scope="module")
def cluster():
    """A cluster on the loopback address: a head and a node with two CPUs each."""
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    started.add_node(num_cpus=2)
    yield started
    started.shutdown()


def on_cluster(cluster, workers, folder, marker):
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", KILLS, cluster.address, str(workers), str(folder), str(marker)],
        capture_output=True, text=True, cwd=Path(__file__).parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    steps, validation, test, epochs = done.stdout.splitlines()[-1].split()  # Ray tells of a lost worker on stdout
    digest = hashlib.sha256((folder / "net.safetensors").read_bytes()).hexdigest()
    return {"steps": int(steps), "scores": (float(validation), float(test)), "epochs": int(epochs), "file": digest,
            "said": done.stderr}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_one_file_from_all_workers_although_one_is_killed(cluster, tmp_path, workers):
    never = tmp_path / "never"
    never.touch()
    undisturbed = on_cluster(cluster, workers, tmp_path / "whole", never)
    marker = tmp_path / "killed"
    killed = on_cluster(cluster, workers, tmp_path / "resumed", marker)
    assert marker.exists()
    assert killed["file"] == undisturbed["file"]
    assert killed["scores"] == undisturbed["scores"]
    # 320 examples in batches of 32, four epochs: as many steps as one process takes
    assert (killed["steps"], killed["epochs"]) == (undisturbed["steps"], undisturbed["epochs"]) == (40, 4)
    assert undisturbed["scores"][1] > 0.93


@pytest.mark.slow
def test_the_commands_on_a_cluster(cluster, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "nets_for_ray.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def make():\n    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 3))\n"
        "def data():\n    x = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))\n"
        "    y = x[:, :3].argmax(1)\n    return [list(zip(a.split(32), b.split(32))) for a, b in"
        " ((x[:192], y[:192]), (x[192:], y[192:]))]\n"
    )
    torch.manual_seed(0)
    torch.save(
        torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.ReLU(), torch.nn.Linear(24, 3)).state_dict(), "net.pt"
    )
    task = ["nets_for_ray:make", "--data", "nets_for_ray:data", "--weights", "net.pt", "--epochs", "2", "--json"]
    there = ["--ray-address", cluster.address]
    command = ["compress", *task, "--target", "500B", "--out", "a.safetensors", "--resume", "checkpoints"]
    assert main([*command, *there, "--workers", "2"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["file_bytes"] == (tmp_path / "a.safetensors").stat().st_size <= 500
    data = (tmp_path / "a.safetensors").read_bytes()
    assert main([*command, *there, "--workers", "2"]) == 0  # from the last checkpoint
    assert (tmp_path / "a.safetensors").read_bytes() == data
    curve = ["curve", *task, "--target", "500B", "--target", "20%", "--out", "points"]
    assert main([*curve, *there]) == 0
    points = json.loads(capsys.readouterr().out.splitlines()[-1])["points"]
    assert [point["target"] for point in points] == ["500B", "20%"]
    assert main([*curve[:-1], "here"]) == 0
    for name in ("500B", "20percent"):
        assert (tmp_path / "points" / f"{name}.safetensors").read_bytes() == (
            tmp_path / "here" / f"{name}.safetensors"
        ).read_bytes()


@pytest.mark.slow
def test_the_example_runs_on_a_cluster(cluster, tmp_path):
    out = tmp_path / "digits.safetensors"
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "ray_train.py"), "--ray-address", cluster.address, "--workers", "2",
         "--epochs", "3", "--target", "2KB", "--out", str(out)],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert out.stat().st_size <= 2000
    assert f"{out}: {out.stat().st_size} bytes" in done.stdout
