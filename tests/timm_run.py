"""Runs a training script with timm's patch and tells what was seen from inside.

Imports no timm before the script does, so that a timm that lies beside the script is in use.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import multiprocessing
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from adaptive_subset.integrations import timm_patch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from adaptive_subset import STRATEGIES, Choice, Strategy, WeightedLoss

CLASSES = 4
# Older versions need it for --resume with torch 2.6 and later.
ENVIRONMENT = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1", "OMP_NUM_THREADS": "1"}


def set_environment():
    os.environ.update(ENVIRONMENT)
    # A spawned process would spawn its workers too, and each of them import torch anew.
    multiprocessing.set_start_method("fork", force=True)


# The weight of a sample is made a linear function of its class. Mixup mixes one-hot classes as it
# mixes images, so at the loss the weights must be the same function of the soft targets, whatever
# happened in between.


@dataclass(frozen=True)
class ByClass(Strategy):
    needs_gradients = True  # also goes through the pool and the head

    def select(self, candidates, budget, *, seed, epoch):
        generator = torch.Generator().manual_seed(seed + epoch)
        positions = torch.randperm(candidates.n, generator=generator)[:budget]
        return Choice(positions, 1.0 + candidates.classes.cpu()[positions])


class Spy:
    """Checks the weights in each call of the training loss."""

    def __init__(self, by_class):
        self.calls, self.forward, self.by_class = [], WeightedLoss.forward, by_class
        step, rank = os.environ.get("KILL", "-1 0").split()
        self.kill = int(step) if os.environ.get("RANK", "0") == rank else -1

    def __call__(self, loss, output, target):
        if len(self.calls) == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        y = target.plain()
        if not self.by_class:
            self.calls.append(len(y))
            return self.forward(loss, output, target)
        soft = nn.functional.one_hot(y, CLASSES).float() if y.ndim == 1 else y
        soft = soft - soft.min(1, keepdim=True).values  # undoes smoothing: two of four are mixed
        soft = soft / soft.sum(1, keepdim=True)
        function = soft.to(target.weights) @ torch.arange(1.0, CLASSES + 1, device=y.device)
        if bool((target.weights == target.weights[0]).all()):  # warm start, or one class only
            self.calls.append(len(y))
        else:
            ratio = target.weights / function
            assert torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=0.02), (function, ratio)
            self.calls.append(-len(y))
        return self.forward(loss, output, target)


class DDPOnCPU(DistributedDataParallel):
    """train.py passes device_ids=[cpu], which DDP refuses."""

    def __init__(self, module, device_ids=None, **kwargs):
        super().__init__(module, **kwargs)


def fake_wandb(logged):
    wandb = ModuleType("wandb")
    wandb.init = lambda **options: None
    wandb.log = lambda figures, commit=True: logged.append([dict(figures), commit])
    return wandb


def without_weights(create_model):
    """Teachers are created with pretrained weights, which tests do not download."""
    return lambda *args, **kwargs: create_model(*args, **{**kwargs, "pretrained": False})


def observed_run(path, flags, patched=True):
    """Run a script with patch and spy in this process and tell what was seen."""
    report = {"seen": [], "log": [], "lengths": [], "wandb": [], "known_losses": []}
    with pytest.MonkeyPatch.context() as patches:
        spy = Spy("by-class" in flags)
        patches.setattr(
            WeightedLoss, "forward", torch.compiler.disable(lambda *arguments: spy(*arguments))
        )
        patches.setitem(STRATEGIES, "by-class", ByClass)
        patches.setattr(torch.nn.parallel, "DistributedDataParallel", DDPOnCPU)
        patches.setitem(sys.modules, "wandb", fake_wandb(report["wandb"]))
        if "timm.utils.summary" in sys.modules:  # it has looked for wandb already
            patches.setattr("timm.utils.summary.wandb", sys.modules["wandb"], raising=False)
        patches.setattr(sys, "argv", [str(path), *flags])
        patches.setattr(sys, "path", sys.path[:])
        patches.setitem(sys.modules, path.stem, None)  # to be removed in the end
        del sys.modules[path.stem]
        handler = logging.Handler()
        handler.emit = lambda record: report["log"].append(record.getMessage())
        logging.getLogger("train").addHandler(handler)
        logging.getLogger("train").setLevel(logging.INFO)
        script = timm_patch.load(path)
        report["timm"] = sys.modules["timm"].__file__
        if "--task" in flags:
            script.train_one_epoch = script.train_one_epoch_of_task
        for name in ("timm.task.distillation", "timm.task.token_distillation"):
            with contextlib.suppress(ImportError):
                tasks = importlib.import_module(name)
                if hasattr(tasks, "create_model"):
                    create = without_weights(tasks.create_model)
                    patches.setattr(tasks, "create_model", create)
        if patched:
            training, train = timm_patch.patch(script), script.train_one_epoch

            def train_one_epoch(*args, **kwargs):
                kwargs.setdefault("device", torch.device("cpu"))  # 0.9.16 trains on CUDA only
                report["lengths"].append(len(args[2]))
                result = train(*args, **kwargs)
                report["lengths"].append(len(args[2]))
                report["seen"].append([int(index) for index in training.sampler or ()])
                if training.sampler is not None and training.sampler.selector.losses is not None:
                    known = training.sampler.selector.losses.values.isfinite()
                    report["known_losses"].append(int(known.sum()))
                return result

            script.train_one_epoch = train_one_epoch
        try:
            script.main()
        finally:
            logging.getLogger("train").removeHandler(handler)
            logging.getLogger("adaptive_subset").setLevel(logging.NOTSET)
    report["calls"] = spy.calls
    if patched and training.sampler is not None and training.sampler.selection is not None:
        report["selection"] = training.sampler.selection.indices.tolist()
    return report


def refusal(path, flags):
    """The message that ends a run before it trains."""
    trained = []
    handler = logging.Handler()
    handler.emit = lambda record: trained.append(record.getMessage())
    logging.getLogger("train").addHandler(handler)
    with (
        contextlib.redirect_stderr(io.StringIO()) as errors,
        pytest.raises(SystemExit) as caught,
    ):
        observed_run(path, flags)
    logging.getLogger("train").removeHandler(handler)
    assert caught.value.code == 2
    assert not [line for line in trained if line.startswith("Train: ")]
    lines = errors.getvalue().splitlines(keepends=True)
    return "".join(lines[-1:])


if __name__ == "__main__":
    result = observed_run(Path(sys.argv[1]), sys.argv[2:])
    Path(os.environ["REPORT"] + os.environ.get("RANK", "0")).write_text(json.dumps(result))
