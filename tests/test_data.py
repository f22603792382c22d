import struct

import numpy as np
import pytest
import torch
from PIL import Image

from autocompress.errors import InvalidInputError
from autocompress.task import load_task
from autocompress.task.arrays import hold_out, stratified
from autocompress.task.named_data import load_data
from autocompress.training.batches import CropAndFlip, Normalize, TensorBatches


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOCOMPRESS_DATA", str(tmp_path))
    return tmp_path


def write_npz(path, count=40, side=28, channels=0, **changes):
    random = np.random.RandomState(0)
    shape = (side, side, channels) if channels else (side, side)
    arrays = {
        "x_train": random.randint(0, 256, (count, *shape)).astype(np.uint8),
        "y_train": np.arange(count).astype(np.uint8) % 10,
        "x_test": random.randint(0, 256, (20, *shape)).astype(np.uint8),
        "y_test": np.arange(20).astype(np.uint8) % 10,
    }
    np.savez(path, **(arrays | changes))
    return arrays


def write_idx(path, array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.tobytes())


def test_digits_splits_are_disjoint_complete_stratified_and_fixed() -> None:
    first, second = (load_data("digits", batch_size=64, seed=seed) for seed in (0, 1))
    sizes = [len(split.targets) for split in (first.train, first.validation, first.test)]
    assert sum(sizes) == 1797
    assert sizes == pytest.approx([0.6 * 1797, 0.2 * 1797, 0.2 * 1797], abs=10)
    for split in ("train", "validation", "test"):
        assert torch.equal(getattr(first, split).inputs, getattr(second, split).inputs)
    assert torch.bincount(first.test.targets).tolist() == pytest.approx([36] * 10, abs=2)
    # the sum over a weighted image stands for the image: no training image is among the others
    codes = [
        (split.inputs.double().flatten(1) @ torch.arange(784).double()).tolist()
        for split in vars(first).values()
        if isinstance(split, TensorBatches)
    ]
    assert len(set(codes[0]) & set(codes[1])) == len(set(codes[0]) & set(codes[2])) == 0


def test_splits_never_change() -> None:
    kept, held = hold_out(20)
    assert held.tolist() == [5, 9]
    assert sorted(kept.tolist() + held.tolist()) == list(range(20))
    parts = stratified(torch.tensor([0, 1] * 10), (0.6, 0.2, 0.2))
    assert [len(part) for part in parts] == [12, 4, 4]
    assert sorted(torch.cat(parts).tolist()) == list(range(20))
    assert parts[1].tolist() == [0, 9, 14, 19]


def test_arrays_of_a_machine_without_network(root) -> None:
    arrays = write_npz(root / "mnist.npz")
    splits = load_data("mnist", batch_size=8)
    assert (len(splits.train.targets), len(splits.validation.targets), len(splits.test.targets)) == (36, 4, 20)
    images, labels = next(iter(splits.test))
    expected = (torch.from_numpy(arrays["x_test"]).float()[:, None] / 255 - 0.1307) / 0.3081
    assert torch.allclose(images, expected, atol=1e-5)
    assert labels.tolist() == arrays["y_test"].tolist()
    assert splits.num_classes == 10


def test_torchvision_files(root) -> None:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    images = np.random.RandomState(0).randint(0, 256, (20, 28, 28)).astype(np.uint8)
    for name in ("train", "t10k"):
        write_idx(folder / f"{name}-images-idx3-ubyte", images)
        write_idx(folder / f"{name}-labels-idx1-ubyte", np.arange(20).astype(np.uint8) % 10)
    splits = load_data("mnist", batch_size=8)
    assert torch.equal(splits.test.inputs[:, 0], torch.from_numpy(images))


def test_cifar_is_augmented_in_training_only(root) -> None:
    write_npz(root / "cifar10.npz", side=32, channels=3)
    splits = load_data("cifar10", batch_size=8)
    assert splits.train.augment is not None
    assert splits.validation.augment is None
    assert splits.test.augment is None
    assert next(iter(splits.train))[0].shape == (8, 3, 32, 32)


def test_download_without_network_says_where_to_put_what(root, monkeypatch) -> None:
    def no_network(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", no_network)
    with pytest.raises(InvalidInputError, match=r"no route to host.*mnist\.npz.*MNIST/raw.*AUTOCOMPRESS_DATA"):
        load_data("mnist", batch_size=8)


@pytest.mark.parametrize(
    "changes",
    [
        {"x_train": np.zeros((40, 28, 28), np.float32)},
        {"y_test": np.zeros(3, np.int64)},
        {"y_train": np.array([None] * 40)},
    ],
)
def test_arrays_of_another_kind(root, changes) -> None:
    write_npz(root / "mnist.npz", **changes)
    with pytest.raises(InvalidInputError, match=r"mnist\.npz.*must"):
        load_data("mnist", batch_size=8)


def test_damaged_arrays(root) -> None:
    (root / "mnist.npz").write_bytes(b"PK\x03\x04nothing")
    with pytest.raises(InvalidInputError, match="must hold the uint8 arrays"):
        load_data("mnist", batch_size=8)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnits", "did you mean mnist"),
        ("imagenet", "the names are digits"),
        ("folder:/nowhere", "no folder /nowhere"),
        ("builtins:list", "must return the loaders"),
    ],
)
def test_unknown_data(name: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        load_data(name, batch_size=8)


def write_images(folder, count, classes=("cat", "dog"), side=20):
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.random.RandomState(number).randint(0, 256, (side, side, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def test_folder_in_one_tree_is_cut_in_three(tmp_path) -> None:
    write_images(tmp_path, 10)
    first, second = (load_data(f"folder:{tmp_path}", batch_size=4, seed=seed) for seed in (0, 1))
    indices = [set(split.dataset.indices) for split in (first.train, first.validation, first.test)]
    assert [len(index) for index in indices] == [16, 2, 2]
    assert set.union(*indices) == set(range(20))
    assert second.test.dataset.indices == first.test.dataset.indices
    images, _ = next(iter(first.test))
    assert images.shape == (2, 3, 20, 20)
    assert first.num_classes == 2


@pytest.mark.parametrize(
    ("folders", "sizes"),
    [
        (("train", "val", "test"), (20, 20, 20)),
        (("train", "val"), (18, 2, 20)),
        (("train", "test"), (18, 2, 20)),
        (("train",), (16, 2, 2)),
    ],
)
def test_folder_layouts(tmp_path, folders, sizes) -> None:
    for folder in folders:
        write_images(tmp_path / folder, 10)
    splits = load_data(f"folder:{tmp_path}", batch_size=4)
    assert tuple(len(split.dataset) for split in (splits.train, splits.validation, splits.test)) == sizes


def test_folder_transforms_can_be_chosen(tmp_path, monkeypatch) -> None:
    write_images(tmp_path / "images", 20, side=20)
    name = f"folder:{tmp_path / 'images'}"
    plain = load_data(f"{name}?size=12&augment=none&normalize=none", batch_size=40)
    ((images, _),) = list(plain.train)
    assert images.shape[1:] == (3, 12, 12)
    assert 0 <= images.min() < images.max() <= 1
    ((again, _),) = list(load_data(f"{name}?size=12&augment=none&normalize=half", batch_size=40).train)
    torch.testing.assert_close(again, 2 * images - 1)  # the same order, and nothing drawn
    ((flipped, _),) = list(load_data(f"{name}?size=12&augment=flip&normalize=none", batch_size=40).train)
    rows = [torch.equal(a, b) or torch.equal(a, b.flip(-1)) for a, b in zip(images, flipped, strict=True)]
    assert all(rows)
    assert not torch.equal(images, flipped)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sides.py").write_text(
        "from torchvision import transforms as t\n"
        "def grey():\n"
        "    both = t.Compose([t.Grayscale(), t.Resize(8), t.ToTensor()])\n"
        "    return both, both\n"
        "def one():\n"
        "    return t.ToTensor()\n"
    )
    ((grey, _),) = list(load_data(f"{name}?transforms=sides:grey", batch_size=40).train)
    assert grey.shape[1:] == (1, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("side=12", "has no option 'side'; they are size, augment, normalize, transforms"),
        ("size=big", "size is 'big'; it must be a number of pixels"),
        ("augment=mixup", "augment is 'mixup'; it may be crop-flip, crop, flip, none"),
        ("transforms=collections:OrderedDict", "returned a OrderedDict; it must return two functions"),
    ],
)
def test_folder_options_that_cannot_be(tmp_path, options, message) -> None:
    write_images(tmp_path, 4)
    with pytest.raises(InvalidInputError, match=message):
        load_data(f"folder:{tmp_path}?{options}", batch_size=4)


def test_folder_with_other_classes_in_a_split(tmp_path) -> None:
    write_images(tmp_path / "train", 10)
    write_images(tmp_path / "test", 2, classes=("cat", "fox"))
    with pytest.raises(InvalidInputError, match="fox"):
        load_data(f"folder:{tmp_path}", batch_size=4)


def test_own_function(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_data.py").write_text(
        "import torch\ndef loaders():\n"
        "    batches = [(torch.zeros(2, 1, 28, 28), torch.tensor([0, 6]))]\n    return batches, batches\n"
    )
    monkeypatch.chdir(tmp_path)
    task = load_task("lenet5", "my_data:loaders", device="cpu")
    assert task.test is None
    assert task.make_model()(task.input_example).shape == (1, 7)


def test_network_that_does_not_take_the_data(root) -> None:
    write_npz(root / "cifar10.npz", side=32, channels=3)
    with pytest.raises(InvalidInputError, match=r"28 x 28.*\[1, 3, 32, 32\]"):
        load_task("lenet5", "cifar10", device="cpu")


def test_task_makes_the_same_network_every_time_and_leaves_the_generator() -> None:
    task = load_task("lenet5", "digits", device="cpu", seed=3)
    torch.manual_seed(5)
    first = task.make_model()
    drawn = torch.rand(1)
    second = task.make_model()
    assert torch.equal(first.features[0].weight, second.features[0].weight)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    assert task.name == "lenet5-digits"


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int | None = None, skip: int = 0) -> list[int]:
        batches = TensorBatches(torch.arange(50), torch.arange(50), batch_size=8, shuffle=True, seed=seed)
        for _ in range(skip):
            list(batches)
        if epoch is not None:
            batches.set_epoch(epoch)
        return torch.cat([inputs for inputs, _ in batches]).tolist()

    assert sorted(order(0)) == list(range(50))
    assert order(0, epoch=2) == order(0, skip=2)
    assert order(0, epoch=0) != order(0, epoch=1)
    assert order(0) != order(1)


def test_batches_cover_everything_once() -> None:
    batches = TensorBatches(torch.arange(10), torch.arange(10), batch_size=4)
    assert [len(inputs) for inputs, _ in batches] == [4, 4, 2]
    assert len(batches) == 3


@pytest.mark.parametrize(("inputs", "targets", "batch_size"), [(0, 0, 4), (3, 2, 4), (3, 3, 0)])
def test_batches_of_nothing(inputs: int, targets: int, batch_size: int) -> None:
    with pytest.raises(InvalidInputError, match="must be"):
        TensorBatches(torch.zeros(inputs), torch.zeros(targets), batch_size=batch_size)


def test_crop_and_flip_against_a_loop() -> None:
    images = torch.randint(0, 256, (6, 3, 5, 5), dtype=torch.uint8)
    augment = CropAndFlip(padding=2)
    draws = augment.draw(6, torch.Generator().manual_seed(0))
    moved = augment(images, draws)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    for number, (row, column, mirrored) in enumerate(draws.tolist()):
        expected = padded[number, :, row : row + 5, column : column + 5]
        assert torch.equal(moved[number], expected.flip(-1) if mirrored else expected)
    assert 0 < draws[:, 2].sum() < 6
    assert not CropAndFlip(2, flip=False).draw(6, torch.Generator())[:, 2].any()


def test_normalize_by_channel() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(1, 2, 1, 1)
    normalized = Normalize((0.5, 0.25), (0.5, 0.25))(images)
    assert normalized.flatten().tolist() == pytest.approx([-1.0, 3.0])
