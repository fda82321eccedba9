"""A training script in the form of torchvision's reference for classification.

Mixup and cutmix in the collate function, label smoothing, an averaged model, several processes.
It knows nothing of subsets: `test_reference_script` applies the diff of docs/frameworks.md to it.
"""

from __future__ import annotations

from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.utils.data
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data.dataloader import default_collate

CLASSES, SIDE = 4, 8

utils = SimpleNamespace(
    get_world_size=lambda: dist.get_world_size() if dist.is_initialized() else 1,
    get_rank=lambda: dist.get_rank() if dist.is_initialized() else 0,
)


class Images(torch.utils.data.Dataset[Any]):
    """Random images and labels."""

    def __init__(self, n: int, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(n)
        self.images = torch.randn(n, 3, SIDE, SIDE, generator=generator, dtype=dtype)
        self.classes = list(range(CLASSES))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.images[index], index * 7 % 11 % CLASSES


def mixup_or_cutmix(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """One of the two, with the batch rolled by one; targets become shares of classes, in place."""
    targets = nn.functional.one_hot(targets, CLASSES).to(images.dtype)
    partners, share = images.roll(1, 0), float(torch.rand(()))
    if torch.rand(()) < 0.5:
        images = images.mul(share).add_(partners, alpha=1 - share)
    else:
        columns = round(SIDE * share)
        share = columns / SIDE
        images = torch.cat([images[..., :columns], partners[..., columns:]], dim=-1)
    rolled = targets.roll(1, 0).mul_(1 - share)
    return images, targets.mul_(share).add_(rolled)


def load_data(args: Namespace) -> tuple[Any, ...]:
    dataset, dataset_test = Images(120, args.dtype), Images(10, args.dtype)
    if args.distributed:
        train_sampler: Any = torch.utils.data.distributed.DistributedSampler(dataset)
    else:
        train_sampler = torch.utils.data.RandomSampler(dataset)
    return dataset, dataset_test, train_sampler, torch.utils.data.SequentialSampler(dataset_test)


def train_one_epoch(
    model: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    data_loader: Any,
    model_ema: AveragedModel,
) -> None:
    model.train()
    correct = torch.zeros(())
    for image, target in data_loader:
        image, target = image.to("cpu"), target.to("cpu")
        output = model(image)
        loss = criterion(output, target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        model_ema.update_parameters(model)
        with torch.inference_mode():
            labels = target.max(dim=1)[1] if target.ndim == 2 else target
            correct += output.topk(2, 1)[1].t().eq(labels[None]).flatten().sum(dtype=torch.float32)


def evaluate(model: nn.Module, criterion: nn.Module, data_loader: Any) -> list[float]:
    model.eval()
    with torch.inference_mode():
        return [float(criterion(model(image), target)) for image, target in data_loader]


def main(args: Namespace) -> dict[str, Any]:
    dataset, dataset_test, train_sampler, test_sampler = load_data(args)

    collate_fn: Any = default_collate
    if args.mixing is not None:

        def collate_fn(batch: list[Any]) -> Any:
            return args.mixing(*default_collate(batch))

    data_loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=args.batch_size,
        sampler=train_sampler,
        num_workers=args.workers,
        collate_fn=collate_fn,
    )
    data_loader_test = torch.utils.data.DataLoader(dataset_test, 4, sampler=test_sampler)

    model = args.model()
    criterion = nn.CrossEntropyLoss(label_smoothing=args.label_smoothing)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=args.epochs)

    model_without_ddp = model
    if args.distributed:
        model = nn.parallel.DistributedDataParallel(model)
        model_without_ddp = model.module
    model_ema = AveragedModel(
        model_without_ddp,
        multi_avg_fn=get_ema_multi_avg_fn(0.9),
        use_buffers=True,
    )

    losses = []
    for epoch in range(args.start_epoch, args.epochs):
        if args.distributed:
            train_sampler.set_epoch(epoch)
        train_one_epoch(model, criterion, optimizer, data_loader, model_ema)
        lr_scheduler.step()
        losses += evaluate(model, criterion, data_loader_test)
        losses += evaluate(model_ema, criterion, data_loader_test)
    return {
        "model": model_without_ddp.state_dict(),
        "model_ema": model_ema.state_dict(),
        "losses": torch.tensor(losses),
    }
