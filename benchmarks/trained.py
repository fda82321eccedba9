"""Data and a briefly trained network: gradients of an untrained one are not typical."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader

from adaptive_subset.pool import last_layer_gradients, pool_loader
from adaptive_subset.strategies import Candidates
from examples import data, models


def network(name: str) -> tuple[data.Data, nn.Module]:
    """The data of that name, and the network that suits them after one epoch."""
    images = data.load(name)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = models.build(models.default(images.shape), images.shape, images.classes).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    criterion = nn.CrossEntropyLoss()
    for x, y in DataLoader(images.plain, 128, shuffle=True):
        optimizer.zero_grad()
        criterion(model(x.to(device)), y.to(device)).backward()
        optimizer.step()
    return images, model.eval()


def candidates(name: str) -> Candidates:
    """The last-layer gradients of that network on all its training data."""
    images, model = network(name)
    pool = pool_loader(images.plain, batch_size=256, num_workers=0)
    gradients, targets, _ = last_layer_gradients(
        model, pool, nn.CrossEntropyLoss(), size=len(images.plain)
    )
    return Candidates(len(images.plain), gradients, targets)
