"""The example: its data loaders, its networks, and the whole comparison on a small scale."""

from __future__ import annotations

import gzip
import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

EXAMPLES = Path(__file__).parents[1] / "examples"
IDX_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte",
             "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")  # fmt: skip


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    import data

    return data


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    import train

    return train


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    import models

    return models


def idx(array: Tensor) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + bytes(
        array.flatten().int().tolist()
    )


def write_idx_folder(folder: Path, zipped: bool = False, **replaced: Tensor) -> dict[str, Tensor]:
    arrays = {
        "train_images": torch.randint(256, (12, 5, 6)),
        "train_labels": torch.arange(12) % 3,
        "t10k_images": torch.randint(256, (4, 5, 6)),
        "t10k_labels": torch.arange(4) % 3,
    } | replaced
    for name, array in zip(IDX_NAMES, arrays.values(), strict=True):
        content = idx(array)
        path = folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(content) if zipped else content)
    return arrays


def test_files_that_cannot_be_downloaded_go_where_is_said(
    data: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", offline)
    with pytest.raises(data.DataError, match=r"\(no network\); if you have the files") as said:
        data.load("mnist")
    place = re.search(r"where torchvision looks, in (\S+), or", str(said.value))
    assert place is not None
    (Path(place[1]) / "MNIST" / "raw").mkdir(parents=True, exist_ok=True)
    write_idx_folder(Path(place[1]) / "MNIST" / "raw")
    assert len(data.load("mnist").train) == 12


def write_image(path: Path, size: tuple[int, int] = (7, 5), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = torch.randint(256, (size[0] * size[1] * 3,)).tolist()
    Image.frombytes("RGB", size, bytes(noise)).convert(mode).save(path)


def write_image_folder(folder: Path, mode: str = "RGB") -> None:
    for part, count in (("train", 3), ("test", 2)):
        for name in ("cat", "dog"):
            for i in range(count):
                write_image(folder / part / name / f"{i}.png", mode=mode)


# ---- data


def test_digits_are_normalised_and_split(data: ModuleType) -> None:
    digits = data.load("digits")
    assert digits.shape == (1, 8, 8)
    assert digits.classes == 10
    assert (len(digits.train), len(digits.test)) == (1438, 359)
    assert digits.train is digits.plain
    assert digits.train.images.mean().abs() < 1e-4
    assert (digits.train.images.std() - 1).abs() < 1e-4
    image, label = digits.train[3]
    assert image.shape == (1, 8, 8)
    assert label == digits.train.labels[3]


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_folder(data: ModuleType, tmp_path: Path, zipped: bool) -> None:
    arrays = write_idx_folder(tmp_path, zipped)
    loaded = data.load(str(tmp_path))
    pixels = arrays["train_images"].double()
    mean, std = pixels.mean(), pixels.std()
    for part, name in ((loaded.train, "train"), (loaded.test, "t10k")):
        expected = (arrays[f"{name}_images"].double() - mean) / std
        torch.testing.assert_close(part.images.squeeze(1).double(), expected, atol=1e-5, rtol=1e-5)
        assert part.labels == arrays[f"{name}_labels"].tolist()
    assert loaded.shape == (1, 5, 6)
    assert loaded.classes == 3


def test_image_folder_is_augmented_in_training_only(data: ModuleType, tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    loaded = data.load(str(tmp_path))
    assert loaded.shape == (3, 5, 7)
    assert (loaded.classes, loaded.train.labels) == (2, [0, 0, 0, 1, 1, 1])
    assert (loaded.train.augment, loaded.plain.augment, loaded.test.augment) == (True, False, False)
    with Image.open(tmp_path / "train" / "dog" / "0.png") as first_dog:
        pixels = torch.tensor(list(first_dog.tobytes())).view(5, 7, 3).permute(2, 0, 1).float()
    standardised = loaded.plain[3][0]
    for channel in range(3):  # an affine map of the pixels: perfectly correlated with them
        pair = torch.stack([pixels[channel].flatten(), standardised[channel].flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.9999
    drawn = torch.stack([loaded.train[3][0] for _ in range(10)])
    assert drawn.shape == (10, 3, 5, 7)
    assert len(drawn.unique(dim=0)) > 1
    assert torch.equal(loaded.plain[3][0], standardised)


def test_grey_image_folder_has_three_equal_channels(data: ModuleType, tmp_path: Path) -> None:
    write_image_folder(tmp_path, mode="L")  # torchvision's loader turns every image into RGB
    assert data.load(str(tmp_path)).shape == (3, 5, 7)


def test_a_fifth_of_the_noisy_digits_has_a_wrong_label(data: ModuleType) -> None:
    digits, noisy = data.load("digits"), data.load("digits-noisy")
    assert torch.equal(noisy.train.images, digits.train.images)
    assert noisy.test.labels == digits.test.labels
    wrong = sum(a != b for a, b in zip(noisy.train.labels, digits.train.labels, strict=True))
    assert wrong == round(0.2 * len(digits.train))
    assert noisy.train.labels == data.load("digits-noisy").train.labels


def test_augmentation_shifts_by_at_most_four_pixels_and_mirrors(data: ModuleType) -> None:
    image = torch.arange(1.0, 37.0).view(1, 1, 6, 6)
    images = data.Images(image, torch.tensor([0]), augment=True)
    torch.manual_seed(0)
    seen = {tuple(images[0][0].flatten().tolist()) for _ in range(1500)}
    expected = set()
    for top in range(9):
        for left in range(9):
            shifted = torch.zeros(14, 14)
            shifted[4:10, 4:10] = image[0, 0]
            shifted = shifted[top : top + 6, left : left + 6]
            expected |= {tuple(s.flatten().tolist()) for s in (shifted, shifted.flip(-1))}
    assert seen <= expected
    assert len(seen) > len(expected) / 2


def assert_error(data: ModuleType, source: Path | str, *words: str) -> None:
    with pytest.raises(data.DataError) as caught:
        data.load(str(source))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_an_unknown_name_lists_the_names(data: ModuleType, tmp_path: Path) -> None:
    assert_error(data, "digitz", "digitz", "digits, digits-noisy, mnist, fashion-mnist, cifar10")
    assert_error(data, tmp_path, str(tmp_path), "train/", "train-images-idx3-ubyte")


def test_broken_idx_files_are_named(data: ModuleType, tmp_path: Path) -> None:
    write_idx_folder(tmp_path)
    images, labels = tmp_path / IDX_NAMES[0], tmp_path / IDX_NAMES[1]
    whole = images.read_bytes()

    images.write_bytes(whole[:-1])
    assert_error(data, tmp_path, IDX_NAMES[0], "promises 360 bytes, has 359")
    images.write_bytes(whole[:6])
    assert_error(data, tmp_path, IDX_NAMES[0], "is no IDX file")
    images.write_bytes(labels.read_bytes())
    assert_error(data, tmp_path, IDX_NAMES[0], "is no IDX file of unsigned bytes in 3")

    images.unlink()
    (tmp_path / f"{IDX_NAMES[0]}.gz").write_bytes(gzip.compress(whole)[:-9])
    assert_error(data, tmp_path, IDX_NAMES[0], "cannot be read")
    (tmp_path / f"{IDX_NAMES[0]}.gz").write_bytes(whole)
    assert_error(data, tmp_path, IDX_NAMES[0], "cannot be read")


def test_arrays_that_do_not_fit_together(data: ModuleType, tmp_path: Path) -> None:
    write_idx_folder(tmp_path, train_labels=torch.zeros(11))
    assert_error(data, tmp_path, "12 training images but 11 labels")
    write_idx_folder(tmp_path, t10k_images=torch.zeros(4, 5, 5))
    assert_error(data, tmp_path, "training images are (1, 5, 6), test images are (1, 5, 5)")
    write_idx_folder(tmp_path, t10k_labels=torch.tensor([0, 1, 2, 3]))
    assert_error(data, tmp_path, "test label 3 is not in the training set")
    write_idx_folder(tmp_path, train_images=torch.zeros(0, 5, 6), train_labels=torch.zeros(0))
    assert_error(data, tmp_path, "there are no training images")


def test_broken_image_folders_are_named(data: ModuleType, tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    odd = tmp_path / "train" / "dog" / "odd.png"
    write_image(odd, size=(9, 9))
    assert_error(data, tmp_path, "images differ in size", "(3, 9, 9)")
    odd.write_bytes(b"no image")
    assert_error(data, tmp_path, str(tmp_path / "train"), "cannot identify image file")
    odd.unlink()
    (tmp_path / "test" / "dog").rename(tmp_path / "test" / "fox")
    assert_error(data, tmp_path, "do not hold the same classes")
    (tmp_path / "test").rename(tmp_path / "tset")
    assert_error(data, tmp_path, str(tmp_path / "test"))


def test_a_failed_download_is_one_line(data: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host\nsecond line")

    monkeypatch.setattr(datasets, "FashionMNIST", offline)
    assert_error(data, "fashion-mnist", "no route to host", "--data")


@pytest.mark.parametrize(
    ("package", "source"),
    [("sklearn.datasets", "digits"), ("torchvision", "mnist"), ("torchvision.datasets", "images")],
)
def test_a_missing_extra_is_named(
    data: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str, source: str
) -> None:
    (tmp_path / "train").mkdir()
    monkeypatch.setitem(sys.modules, package, None)
    source = str(tmp_path) if source == "images" else source
    assert_error(data, source, "pip install 'adaptive-subset[examples]'")


# ---- networks


@pytest.mark.parametrize("name", ["lenet", "cnn", "mlp", "resnet18"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 30)])
def test_networks_fit_the_images(
    models: ModuleType, name: str, shape: tuple[int, int, int]
) -> None:
    model = models.build(name, shape, classes=7)
    assert model(torch.zeros(2, *shape)).shape == (2, 7)


def test_the_default_network_fits(models: ModuleType) -> None:
    for shape in [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 5, 7), (3, 28, 28)]:
        model = models.build(models.default(shape), shape, classes=3)
        assert model(torch.zeros(2, *shape)).shape == (2, 3)


def test_images_too_small_for_lenet(models: ModuleType) -> None:
    assert models.build("lenet", (1, 12, 12), 2)(torch.zeros(1, 1, 12, 12)).shape == (1, 2)
    with pytest.raises(models.ModelError, match="12×12 or more, these are 8×8"):
        models.build("lenet", (1, 8, 8), 2)


# ---- the comparison


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "train.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_comparison_end_to_end_and_resumed(
    train: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--epochs", 2, "--every", 1, "--seeds", 0, "--out", tmp_path, "--data", "digits"]
    methods = ["full", "random", "fresh-random", "gradmatch"]
    first = run(*arguments)
    assert first.returncode == 0, first.stderr
    for words in ("speed-up", *methods):
        assert words in first.stdout
    assert "done before" not in first.stdout
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")

    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["runs"]) == methods
    assert results["settings"]["fraction"] == 0.1
    assert results["environment"]["torch"] == torch.__version__
    for method in methods:
        (result,) = results["runs"][method]
        assert [point["epoch"] for point in result["curve"]] == [1, 2]
        assert result["curve"][-1]["accuracy"] == result["accuracy"]
        assert result["seconds"] == result["curve"][-1]["seconds"] > result["selection_seconds"]
    assert results["runs"]["full"][0]["accuracy"] > 0.5
    (result,) = results["runs"]["gradmatch"]
    assert [selection["epoch"] for selection in result["selections"]] == [0, 1]
    assert all(0 <= selection["relative_error"] < 1 for selection in result["selections"])
    assert result["selection_seconds"] > 0

    # A killed job, resumed: only the run that is missing is repeated.
    (missing,) = (tmp_path / "finished").glob("random-seed0-*")
    missing.unlink()
    train.main([*map(str, arguments), "--methods", *methods, "gradmatch-pb-warm"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "seed 0" in line]
    assert [line.split(",")[0] for line in lines if "done before" not in line] == [
        "random",
        "gradmatch-pb-warm",
    ]
    again = json.loads((tmp_path / "results.json").read_text())
    assert again["runs"]["full"] == results["runs"]["full"]
    # The missing run comes out as before.
    assert again["runs"]["random"][0]["accuracy"] == results["runs"]["random"][0]["accuracy"]

    # Other settings are other runs.
    train.main([*map(str, arguments), "--fraction", "0.2", "--methods", "random"])
    assert "done before" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "nowhere"], "nowhere is no folder"),
        (["--model", "lenet"], "12×12 or more"),
        (["--fraction", 0], "--fraction must be in (0, 1], got 0.0"),
        (["--epochs", 0], "--epochs must be at least 1, got 0"),
        (["--warm-start", 2], "--warm-start must be in [0, 1], got 2.0"),
        (["--device", "abacus"], "--device"),
        (["--lr", -0.1], "--lr must be at least 0, got -0.1"),
        (["--weight-decay", "nan"], "--weight-decay must be at least 0, got nan"),
        (["--seeds", 0, -1], "--seeds must be at least 0, got -1"),
        (["--workers", -1], "--workers must be at least 0, got -1"),
        (["--methods", "gradmatch-pb", "--batch-size", 512], "`budget` must"),
    ],
)
def test_a_wrong_command_line_is_one_clear_line(
    train: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[object],
    words: str,
) -> None:
    with pytest.raises(SystemExit) as caught:
        train.main([*map(str, arguments), "--out", str(tmp_path)])
    message = caught.value.code
    if message == 2:  # argparse has printed it below the usage
        message = capsys.readouterr().err.strip().splitlines()[-1]
    assert isinstance(message, str)
    assert words in message
    assert "\n" not in message
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_missing_extra_of_the_report(tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('gone', name='matplotlib')")
    code = f"import runpy, sys; sys.path[:0] = [{str(tmp_path)!r}, {str(EXAMPLES)!r}]; " \
        f"runpy.run_path({str(EXAMPLES / 'train.py')!r}, run_name='__main__')"  # fmt: skip
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("matplotlib is missing; install the extra")
