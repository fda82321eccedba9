"""Data and a briefly trained network: gradients of an untrained one are not typical."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import torch
from torch import nn
from torch.utils.data import DataLoader

from adaptive_subset.gradients import GradientSource
from adaptive_subset.strategies import Candidates
from examples import data, models
from examples.data import Images


def images(source: str, limit: int | None = None) -> data.Data:
    """The data of examples/data.py, or only its first `limit` training images."""
    given = data.load(source)
    if limit is None:
        return given

    def first(part: Images) -> Images:
        return Images(part.images[:limit], torch.tensor(part.labels[:limit]), part.augment)

    return replace(given, train=first(given.train), plain=first(given.plain))


def network(given: data.Data, name: str | None = None, steps: int | None = None) -> nn.Module:
    """A network (by default the one that suits the images) after one epoch, or `steps` steps."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    name = name or models.default(given.shape)
    model = models.build(name, given.shape, given.classes).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    criterion = nn.CrossEntropyLoss()
    for x, y in islice(DataLoader(given.plain, 128, shuffle=True), steps):
        optimizer.zero_grad()
        criterion(model(x.to(device)), y.to(device)).backward()
        optimizer.step()
    return model.eval()


def candidates(source: str) -> Candidates:
    """The last-layer gradients of such a network on all its training data."""
    given = images(source)
    n = len(given.plain)
    pool = GradientSource(given.plain).read(network(given), nn.CrossEntropyLoss(), size=n)
    return Candidates(n, pool.gradients, pool.classes)
