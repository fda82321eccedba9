"""A small GPT on the sources of Python's standard library, with Hugging Face's Trainer, on a CPU.

    python examples/language_model.py --seeds 0 1 2

It reads bytes. The gradient of a sequence, summed over its positions, has 256 · 64 numbers and is
held as a sketch of 8,192.
"""

from __future__ import annotations

import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from adaptive_subset.integrations.transformers_trainer import SubsetTrainer
from equal_cost import METHODS, Experiment, Plan, Run, Train
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from adaptive_subset import TokenLoss

LENGTH = 64  # bytes in a sequence


def text(sequences: int) -> Tensor:
    """(n, LENGTH) bytes, so many of each module that there are enough, from its beginning on."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    content = b"".join(path.read_bytes()[:8192] for path in paths)
    found = torch.frombuffer(bytearray(content), dtype=torch.uint8).long()
    found = found[: len(found) // LENGTH * LENGTH].view(-1, LENGTH)
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    return found[order[:sequences]]


def items(ids: Tensor) -> list[dict[str, Tensor]]:
    return [{"input_ids": row, "labels": row} for row in ids]


def prepare(samples: int, plan: Plan) -> Train:
    held_out = max(16, samples // 4)
    ids = text(samples + 2 * held_out)
    train_ids, validation, test = ids[:samples], ids[samples:-held_out], ids[-held_out:]

    def train(method: str, rate: float, seed: int) -> Run:
        set_seed(seed)
        size: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": LENGTH}
        size |= {"vocab_size": 256, "bos_token_id": 0, "eos_token_id": 0, "use_cache": False}
        model, strategy = GPT2LMHeadModel(GPT2Config(**size)), METHODS[method]
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder,
                num_train_epochs=plan.epochs,
                max_steps=-1 if strategy else plan.updates(method, samples),
                per_device_train_batch_size=plan.batch_size,
                learning_rate=rate,
                seed=seed,
                use_cpu=True,
                disable_tqdm=True,
                logging_strategy="no",
                report_to="none",
                save_strategy="no",
            )
            common: dict[str, Any] = {"train_dataset": items(train_ids)}
            start = time.perf_counter()
            if strategy is None:
                trainer = Trainer(model, arguments, **common)
            else:
                trainer = SubsetTrainer(
                    *(model, arguments),
                    **common,
                    criterion=TokenLoss(shift=True),
                    strategy=strategy,
                    fraction=plan.fraction,
                    seed=seed,
                    **plan.options(strategy),
                )
            trainer.train()
            seconds = time.perf_counter() - start
        return Run(method, rate, seed, -bits(model, validation), -bits(model, test), seconds)

    return train


@torch.inference_mode()
def bits(model: Any, ids: Tensor) -> float:
    """The bits that a byte takes with this model."""
    loss: Tensor = model.eval()(input_ids=ids, labels=ids).loss
    return float(loss) / float(torch.tensor(2.0).log())


EXPERIMENT = Experiment(
    prepare,
    samples=800,
    plan=Plan(epochs=10, fraction=0.2, batch_size=16, every=5),
    rates=(3e-3, 1e-2, 3e-2),
    figure="minus bits a byte",
)

if __name__ == "__main__":
    EXPERIMENT.main(__doc__)
