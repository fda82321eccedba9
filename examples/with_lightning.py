"""Train on an adaptive tenth of scikit-learn's digits with Lightning; a few seconds on a CPU.

    python examples/with_lightning.py

The callback is the one line; the module and its loader are as for training on all the data.
"""

from __future__ import annotations

import argparse
from typing import Any

import data
import lightning as L
import models
import torch
from adaptive_subset.integrations.lightning_callback import SubsetCallback
from equal_cost import check_least
from torch import Tensor, nn
from torch.utils.data import DataLoader

from adaptive_subset import OrderDP


class Task(L.LightningModule):
    """A small network for digits."""

    def __init__(self, images: data.Data) -> None:
        super().__init__()
        self.net = models.build("cnn", images.shape, images.classes)
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        x, y = batch
        return self.criterion(self(x), y)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("accuracy", (self(x).argmax(1) == y).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def main(epochs: int = 40) -> float:
    """Train; the accuracy on the test set."""
    L.seed_everything(0)
    images = data.load("digits")
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        check_val_every_n_epoch=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[SubsetCallback(OrderDP(), fraction=0.1)],
    )
    trainer.fit(
        Task(images),
        DataLoader(images.train, batch_size=32, shuffle=True),
        DataLoader(images.test, batch_size=512),
    )
    return float(trainer.callback_metrics["accuracy"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args()
    check_least(parser, options, epochs=1)
    print(f"test accuracy {main(options.epochs):.1%}")
