"""Train on an adaptive tenth of scikit-learn's digits with Hugging Face's Trainer, on a CPU.

    python examples/with_transformers.py

A small vision transformer that starts from nothing. `criterion` and what follows it is all that
differs from training on all the data.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import data
import torch
from adaptive_subset.integrations.transformers_trainer import SubsetTrainer
from equal_cost import check_least
from torch import nn
from torch.utils.data import Dataset
from transformers import TrainingArguments, ViTConfig, ViTForImageClassification

from adaptive_subset import GradMatch


class Fields(Dataset[Any]):
    """Images and labels under the names that Hugging Face's models have for them."""

    def __init__(self, images: data.Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.images[index]
        return {"pixel_values": image, "labels": label}


def main(epochs: int = 40) -> float:
    """Train; the accuracy on the test set."""
    torch.manual_seed(0)
    images = data.load("digits")
    size: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    size |= {"num_attention_heads": 4, "image_size": 8, "patch_size": 2, "num_channels": 1}
    config = ViTConfig(**size | {"num_labels": images.classes})
    with tempfile.TemporaryDirectory() as folder:
        trainer = SubsetTrainer(
            ViTForImageClassification(config),
            TrainingArguments(
                folder,
                num_train_epochs=epochs,
                per_device_train_batch_size=16,
                per_device_eval_batch_size=512,
                learning_rate=3e-3,
                use_cpu=True,
                report_to="none",
                save_strategy="no",
            ),
            train_dataset=Fields(images.train),
            eval_dataset=Fields(images.test),
            compute_metrics=lambda seen: {
                "accuracy": float((seen.predictions.argmax(1) == seen.label_ids).mean())
            },
            criterion=nn.CrossEntropyLoss(),
            strategy=GradMatch(),
            fraction=0.1,
            every=5,
            warm_start=0.5,
        )
        trainer.train()
        return float(trainer.evaluate()["eval_accuracy"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args()
    check_least(parser, options, epochs=1)
    print(f"test accuracy {main(options.epochs):.1%}")
