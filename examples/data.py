"""Image data held in memory: scikit-learn's digits, torchvision's sets, or a folder of yours."""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

NAMES = ("digits", "digits-noisy", "mnist", "fashion-mnist", "cifar10", "cifar100", "svhn")
SMALL = ("digits", "digits-noisy")
EXTRA = "install the extra: pip install 'adaptive-subset[examples]'"

Split = tuple[Tensor, Tensor]  # uint8 images (n, channels, height, width), int64 labels (n,)


class DataError(Exception):
    """What is wrong with the data that were asked for, in one line."""


class Images(Dataset[tuple[Tensor, int]]):
    """Images (n, channels, height, width) and labels; shifted and mirrored if `augment` is set."""

    def __init__(self, images: Tensor, labels: Tensor, augment: bool = False) -> None:
        self.images, self.labels, self.augment = images, labels.tolist(), augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        if self.augment:
            height, width = image.shape[1:]
            top, left, mirror = (int(torch.randint(m, ())) for m in (9, 9, 2))
            image = F.pad(image, (4, 4, 4, 4))[:, top : top + height, left : left + width]
            image = image.flip(-1) if mirror else image
        return image, self.labels[index]


@dataclass(frozen=True)
class Data:
    """A training set, the same images without augmentation, and a test set."""

    train: Images
    plain: Images
    test: Images
    classes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        channels, height, width = self.plain.images.shape[1:]
        return channels, height, width


def load(source: str) -> Data:
    """Load one of `NAMES`, or a folder of IDX files, or of ``train/CLASS/*`` and ``test/CLASS/*``.

    Colour images are augmented for training (shifts by up to 4 pixels, mirroring); all images are
    scaled to mean 0 and standard deviation 1 of the training images, channel by channel.

    Raises:
        DataError: the data are missing or do not fit together.
    """
    train, test = _read(source)
    for part, (images, labels) in (("training", train), ("test", test)):
        if len(images) != len(labels):
            raise DataError(f"{source}: {len(images)} {part} images but {len(labels)} labels")
        if not len(images):
            raise DataError(f"{source}: there are no {part} images")
    if train[0].shape[1:] != test[0].shape[1:]:
        sizes = [tuple(images.shape[1:]) for images, _ in (train, test)]
        raise DataError(f"{source}: training images are {sizes[0]}, test images are {sizes[1]}")
    classes = int(train[1].max()) + 1
    if test[1].max() >= classes:
        raise DataError(f"{source}: test label {int(test[1].max())} is not in the training set")

    pixels = train[0].float()
    mean, std = pixels.mean((0, 2, 3), keepdim=True), pixels.std((0, 2, 3), keepdim=True)
    inputs = pixels.sub_(mean).div_(std.clamp_min(1e-6))
    test_inputs = test[0].float().sub_(mean).div_(std.clamp_min(1e-6))
    plain = Images(inputs, train[1])
    augmented = Images(inputs, train[1], augment=True)
    colour = inputs.shape[1] == 3
    return Data(augmented if colour else plain, plain, Images(test_inputs, test[1]), classes)


def _read(source: str) -> tuple[Split, Split]:
    if source == "digits":
        return _digits()
    if source == "digits-noisy":
        return _with_wrong_labels(*_digits(), share=0.2)
    if source in NAMES:
        return _torchvision(source)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise DataError(f"{source} is no folder and none of {', '.join(NAMES)}")
    if (folder / "train").is_dir():
        return _image_folder(folder)
    return _idx_split(folder, "train"), _idx_split(folder, "t10k")


def _digits() -> tuple[Split, Split]:
    """1,797 handwritten digits of 8 × 8 pixels, one in five kept for the test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(f"digits needs scikit-learn; {EXTRA}") from error
    digits = load_digits()
    images = torch.tensor(digits.images * 15, dtype=torch.uint8).unsqueeze(1)
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order[: len(labels) // 5], order[len(labels) // 5 :]
    return (images[train], labels[train]), (images[test], labels[test])


def _with_wrong_labels(train: Split, test: Split, share: float) -> tuple[Split, Split]:
    """The same with a share of the training labels replaced by another class, always the same."""
    images, labels = train
    generator = torch.Generator().manual_seed(1)
    classes = int(labels.max()) + 1
    wrong = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    shift = torch.randint(1, classes, (len(wrong),), generator=generator)
    labels = labels.clone()
    labels[wrong] = (labels[wrong] + shift) % classes
    return (images, labels), test


def _torchvision(name: str) -> tuple[Split, Split]:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise DataError(f"{name} needs torchvision; {EXTRA}") from error
    kinds = {
        "mnist": datasets.MNIST,
        "fashion-mnist": datasets.FashionMNIST,
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
        "svhn": datasets.SVHN,
    }
    root = Path(torch.hub.get_dir()).parent / "datasets"
    splits = []
    for train in (True, False):
        try:
            which = {"split": "train" if train else "test"} if name == "svhn" else {"train": train}
            part = kinds[name](root, **which, download=True)
        except (OSError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            advice = (
                f"if you have the files, put them where torchvision looks, in {root}, or pass a "
                "folder of IDX files, or of train/CLASS/* and test/CLASS/*, as --data"
            )
            raise DataError(f"{name} could not be downloaded ({reason}); {advice}") from error
        images = torch.as_tensor(part.data)
        if name == "svhn":  # channels first, as no other
            splits.append((images, torch.as_tensor(part.labels)))
            continue
        images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
        splits.append((images, torch.as_tensor(part.targets)))
    return splits[0], splits[1]


def _idx_split(folder: Path, part: str) -> Split:
    images = _idx(folder, f"{part}-images", ndim=3)
    labels = _idx(folder, f"{part}-labels", ndim=1)
    return images.unsqueeze(1), labels.long()


def _idx(folder: Path, stem: str, ndim: int) -> Tensor:
    """The bytes of one IDX file: 0, 0, 8 (uint8), ndim; the sizes, big-endian; the data."""
    names = [f"{stem}{dash}idx{ndim}-ubyte{gz}" for dash in "-." for gz in ("", ".gz")]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise DataError(f"{folder} has neither train/ and test/ nor {names[0]} (or {names[1]})")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if raw[:4] != bytes((0, 0, 8, ndim)) or len(raw) < 4 + 4 * ndim:
        raise DataError(f"{path} is no IDX file of unsigned bytes in {ndim} dimension(s)")
    sizes = np.frombuffer(raw, dtype=">i4", count=ndim, offset=4).tolist()
    header = 4 + 4 * ndim
    if len(raw) - header != math.prod(sizes):
        raise DataError(f"{path} promises {math.prod(sizes)} bytes, has {len(raw) - header}")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)[header:].reshape(sizes)


def _image_folder(folder: Path) -> tuple[Split, Split]:
    try:
        from torchvision.datasets import ImageFolder
        from torchvision.transforms.functional import pil_to_tensor
    except ImportError as error:
        raise DataError(f"an image folder needs torchvision; {EXTRA}") from error
    splits, classes = [], []
    for part in ("train", "test"):
        try:
            files = ImageFolder(str(folder / part), transform=pil_to_tensor)
            images = [image for image, _ in files]
        except OSError as error:
            raise DataError(f"{folder / part}: {str(error).splitlines()[0]}") from error
        shapes = {tuple(image.shape) for image in images}
        if len(shapes) > 1:
            raise DataError(f"{folder / part}: images differ in size: {sorted(shapes)[:3]}")
        splits.append((torch.stack(images), torch.tensor(files.targets)))
        classes.append(files.classes)
    if classes[0] != classes[1]:
        raise DataError(f"{folder}: train/ and test/ do not hold the same classes")
    return splits[0], splits[1]
