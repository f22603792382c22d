"""Two and three processes, each with its own data: one network, one file."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

import autocompress as ac
from autocompress.errors import InvalidInputError
from autocompress.solver.compressor import Compressor
from autocompress.training.ranks import Ranks, ranks_of
from tests.processes import forks, search_little
from tests.small_task import batches, make_model, make_norm_model, make_task, train_reference

STEPS = 40


def _run(rank: int, ranks: int, folder: str, work: str, settings: dict[str, Any]) -> None:
    """Does some work as one of several ranks and writes what it returned."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    search_little()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    try:
        outcome = globals()[work](rank, Path(folder), **settings)
    finally:
        gc.collect()  # what an exception's frames still hold of a group must go before the group does
        dist.destroy_process_group()
    Path(folder, f"{rank}.json").write_text(json.dumps(outcome))


def on_ranks(ranks: int, folder: Path, work: str, **settings: Any) -> list[Any]:
    """Returns what each rank's work returned; the ranks are forks of one process that has imported PyTorch."""
    forks()
    arguments = (ranks, str(folder), work, settings)
    torch.multiprocessing.start_processes(_run, arguments, nprocs=ranks, start_method="forkserver")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


def digest(value: Any) -> str:
    """Returns a hash of tensors, numbers and containers of them."""
    found = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            found.update(part.detach().cpu().contiguous().numpy().tobytes())
        elif isinstance(part, dict):
            for key in part:
                add(key)
                add(part[key])
        elif isinstance(part, list | tuple):
            for each in part:
                add(each)
        else:
            found.update(repr(part).encode())

    add(value)
    return found.hexdigest()


def compress_in_a_loop(rank: int, folder: Path, *, target: str, norm: bool) -> dict[str, Any]:
    """Trains and compresses; returns hashes after every update, and of the candidates and the file."""
    torch.manual_seed(rank)
    model = nn.parallel.DistributedDataParallel((make_norm_model if norm else make_model)())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    mine, held = list(batches(320, 10 + rank, shuffle=True)), batches(200 + 10 * rank, 20 + rank)

    def score(network: nn.Module) -> float:
        inputs, labels = next(iter(held))
        return float((network(inputs).argmax(1) == labels).float().mean())

    def refit(network: nn.Module) -> None:
        from autocompress.training.layer_statistics import refit_batch_norm

        refit_batch_norm(network, mine[:4], device="cpu")

    compressor = Compressor(model, optimizer, target=target, total_steps=STEPS, evaluate=score, refit=refit)
    seen: list[str] = []
    for step in range(STEPS):
        inputs, labels = mine[step % len(mine)]
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        before = len(compressor.history)
        compressor.step()
        optimizer.zero_grad()
        if len(compressor.history) > before or compressor.run.fine_tuning is not None:
            statistics = [] if compressor.run.fine_tuning is not None else list(compressor.network.model.buffers())
            state = {key: value for key, value in compressor.state_dict().items() if key != "given"}
            seen.append(digest([list(model.parameters()), statistics, state]))
    result = compressor.finish(train=mine)
    assert result.outcome is not None
    result.save(folder / f"{rank}.safetensors")
    return {
        "updates": seen,
        "history": compressor.history,
        "scores": result.outcome.scores,
        "promise": result.promise,
        "file": hashlib.sha256(result.data).hexdigest(),
        "model": digest(list(result.model.state_dict().values())),
    }


@pytest.mark.parametrize(
    ("ranks", "target", "norm"),
    [(3, "1KB", True), (2, "drop:3", True), (2, "weights:20x", False)],
)
def test_everything_is_the_same_on_all_ranks_at_every_update(
    ranks: int, target: str, norm: bool, tmp_path: Path
) -> None:
    first, *others = on_ranks(ranks, tmp_path, "compress_in_a_loop", target=target, norm=norm)
    assert len(first["updates"]) > 15
    assert len(set(first["updates"])) == len(first["updates"])
    for other in others:
        assert [a == b for a, b in zip(other["updates"], first["updates"], strict=True)] == [True] * len(
            first["updates"]
        )
        assert other == first
    loaded = ac.load(tmp_path / "0.safetensors", into=make_norm_model() if norm else make_model())
    assert digest(list(loaded.state_dict().values())) == first["model"]


def compress_by_itself(rank: int, folder: Path, *, target: str, given_val: bool) -> dict[str, Any]:
    """Compresses by `compress()`, then again from a checkpoint of the middle of the run."""
    trained = train_reference(make_task(norm=True))
    model = nn.parallel.DistributedDataParallel(trained)
    settings: dict[str, Any] = {"target": target, "epochs": 3, "device": "cpu", "progress": False}
    settings |= {"train": batches(320, 10 + rank, shuffle=True), "test": batches(200, 30 + rank)}
    settings |= {"val": batches(200, 20 + rank)} if given_val else {}
    whole = ac.compress(model, **settings, resume=folder / "whole")

    from autocompress.training.trainer import Trainer

    epoch = Trainer._run_epoch

    def stop_in_the_third(trainer: Trainer, bar: Any) -> None:
        if trainer.epoch == 2:
            raise KeyboardInterrupt
        epoch(trainer, bar)

    Trainer._run_epoch = stop_in_the_third  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        ac.compress(model, **settings, resume=folder / "stopped")
    Trainer._run_epoch = epoch  # type: ignore[method-assign]
    dist.barrier()
    resumed = ac.compress(model, **settings, resume=folder / "stopped")
    return {
        "file": hashlib.sha256(whole.data).hexdigest(),
        "resumed": hashlib.sha256(resumed.data).hexdigest(),
        "scores": [whole.reference_accuracy, whole.validation_accuracy, whole.test_accuracy],
        "promise": whole.promise,
        "written": sorted(path.name for path in (folder / "stopped").iterdir()),
    }


@pytest.mark.parametrize(("target", "given_val"), [("1KB", False), ("drop:3", True)])
def test_compress_on_ranks(target: str, given_val: bool, tmp_path: Path) -> None:
    first, second = on_ranks(2, tmp_path, "compress_by_itself", target=target, given_val=given_val)
    assert first == second
    assert first["file"] == first["resumed"]
    assert first["written"] == ["compress.checkpoint"]


def agree(rank: int, folder: Path) -> dict[str, Any]:
    """Goes through what ranks agree on, one by one."""
    ranks = ranks_of(nn.parallel.DistributedDataParallel(make_norm_model()))
    model = make_norm_model()
    norm = model[1]
    norm.running_mean.fill_(float(rank))
    norm.running_var.fill_(1.0 + 2 * rank)
    norm.num_batches_tracked.fill_(5 + rank)
    ranks.synchronize_buffers(model)
    tensors = [torch.full((2, 3), float(rank)).t(), torch.tensor(7 + rank)]
    ranks.broadcast(tensors)

    def refuse() -> int:
        raise InvalidInputError(f"asked by {rank}")

    with pytest.raises(InvalidInputError) as told:
        ranks.from_first(refuse)
    with pytest.raises(InvalidInputError) as different:
        ranks.check_same({"total_steps": 10, "target": "1KB" if rank else "2KB"})
    optimizer_model = nn.parallel.DistributedDataParallel(make_model())
    with pytest.raises(InvalidInputError) as lengths:
        Compressor(
            optimizer_model, torch.optim.SGD(optimizer_model.parameters(), 0.1), target="1KB", total_steps=9 + rank
        )
    compressor = Compressor(
        optimizer_model, torch.optim.SGD(optimizer_model.parameters(), 0.1), target="1KB", total_steps=0
    )
    data = {"train": list(batches(64, 1)), "val": None if rank else list(batches(64, 2))}
    with pytest.raises(InvalidInputError) as unlike:
        compressor.finish(**data)
    with pytest.raises(InvalidInputError) as alone_with_val:
        ac.compress(optimizer_model, **data, target="1KB", epochs=1, device="cpu", progress=False)
    return {
        "first": ranks.is_first,
        "buffers": [float(norm.running_mean[0]), float(norm.running_var[-1]), int(norm.num_batches_tracked)],
        "shared": [tensor.tolist() for tensor in tensors],
        "decided": ranks.from_first(lambda: [rank, torch.arange(3) + rank])[1].tolist(),
        "errors": [str(each.value) for each in (told, different, lengths, unlike, alone_with_val)],
        "mean": ranks.mean(float(rank)),
        "averaged": ranks.averaged(lambda network: 2.0 * rank)(model),
    }


def test_what_ranks_agree_on(tmp_path: Path) -> None:
    first, second = on_ranks(2, tmp_path, "agree")
    assert (first.pop("first"), second.pop("first")) == (True, False)
    assert first == second
    assert first["buffers"] == [0.5, 2.0, 5]
    assert first["shared"] == [[[0.0, 0.0]] * 3, 7]
    assert first["decided"] == [0, 1, 2]
    assert (first["mean"], first["averaged"]) == (0.5, 1.0)
    told, different, lengths, *vals = first["errors"]
    assert all(each.startswith("val differs between the ranks: given, none") for each in vals)
    assert told == "asked by 0"
    assert different.startswith("target differs between the ranks: 2KB, 1KB")
    assert lengths.startswith("total_steps differs between the ranks: 9, 10")


def alone(rank: int, folder: Path) -> dict[str, Any]:
    """Makes a compressor of a network without a wrapper."""
    model = make_model()
    records: list[str] = []
    from autocompress.training import ranks

    ranks.logger.warning = lambda message, *values: records.append(message % values)  # type: ignore[method-assign]
    Compressor(model, torch.optim.SGD(model.parameters(), 0.1), target="1KB", total_steps=9 + rank)
    return {"size": ranks_of(model).size, "said": records}


def test_ranks_without_a_wrapper_are_told_that_they_are_alone(tmp_path: Path) -> None:
    for outcome in on_ranks(2, tmp_path, "alone"):
        assert outcome["size"] == 1
        assert "no DistributedDataParallel" in outcome["said"][0]


def test_one_process_agrees_with_itself() -> None:
    ranks = Ranks(None, torch.device("cpu"))
    tensor = torch.ones(2)
    ranks.broadcast([tensor])
    assert (ranks.is_first, ranks.mean(3.0), ranks.from_first(lambda: 4), tensor.tolist()) == (True, 3.0, 4, [1.0, 1.0])


EXAMPLE = Path(__file__).parent.parent / "examples" / "distributed.py"


def run_the_example(rank: int, folder: Path) -> str:
    """Runs it as a rank that is there already; returns what it prints."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(dist, "init_process_group", lambda backend: None)
        patch.setattr(dist, "destroy_process_group", lambda: None)
        patch.setattr(sys, "argv", ["", "--out", str(folder / "digits.safetensors"), "--epochs", "2"])
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    return printed.getvalue()


def check_the_example(printed: str, out: Path) -> None:
    assert printed.count("bytes") == 1  # one rank speaks, and writes
    assert out.stat().st_size <= 2000
    network = runpy.run_path(str(EXAMPLE))["make_network"]()
    assert ac.load(out, into=network) is network


def test_the_example_runs_on_two_ranks(tmp_path: Path) -> None:
    check_the_example("".join(on_ranks(2, tmp_path, "run_the_example")), tmp_path / "digits.safetensors")


@pytest.mark.slow
def test_the_example_runs_under_torchrun(tmp_path: Path) -> None:
    out = tmp_path / "digits.safetensors"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(EXAMPLE), "--out", str(out), "--epochs", "2"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    check_the_example(done.stdout, out)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
