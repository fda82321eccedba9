"""Train on an adaptive tenth of scikit-learn's digits with Accelerate; a few seconds on a CPU.

    python examples/with_accelerate.py
    accelerate launch --cpu --num_processes 2 examples/with_accelerate.py

It saves its state after each epoch and, started again with the same `--out`, goes on there. At the
end it plots what was selected into that folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import data
import models
import torch
from accelerate import Accelerator
from adaptive_subset.integrations.accelerate_loader import SubsetLoader
from adaptive_subset.integrations.plot import plot
from equal_cost import check_least
from torch import nn
from torch.utils.data import DataLoader

from adaptive_subset import GradMatch


def main(epochs: int, out: Path | None) -> float:
    """Train; the accuracy on the test set."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    images = data.load("digits")
    model = models.build("cnn", images.shape, images.classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model, optimizer = accelerator.prepare(model, optimizer)
    subset = SubsetLoader(
        accelerator,
        DataLoader(images.train, batch_size=32, shuffle=True),
        nn.CrossEntropyLoss(),
        GradMatch(),
        fraction=0.1,
        every=10,
        epochs=epochs,
        warm_start=0.5,
    )
    if out is not None and (out / "state").exists():
        accelerator.load_state(out / "state")
    for epoch in range(subset.epoch, epochs):
        for x, y in subset.batches(model, epoch):
            loss = subset.criterion(model(x), y)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
        if out is not None:
            accelerator.save_state(out / "state")
    if out is not None and accelerator.is_main_process:
        figure = plot(subset.sampler, images.train.labels, lambda index: images.train[index][0])
        figure.savefig(out / "selections.png", dpi=100)
    model.eval()
    with torch.no_grad():
        predicted = model(images.test.images.to(accelerator.device)).argmax(1).cpu()
    return float((predicted == torch.tensor(images.test.labels)).float().mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", type=Path, help="folder for the state and the plot")
    options = parser.parse_args()
    check_least(parser, options, epochs=1)
    print(f"test accuracy {main(options.epochs, options.out):.1%}")
