"""A training script with the structure of timm's train.py, which is in no package.

It is what the tests patch: same names, same flags as far as they go, same order of events.
"""

import argparse
import logging
from collections import OrderedDict
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
import yaml
from timm.data import AugMixDataset, FastCollateMixup, Mixup, create_dataset, create_loader
from timm.loss import (
    BinaryCrossEntropy,
    JsdCrossEntropy,
    LabelSmoothingCrossEntropy,
    SoftTargetCrossEntropy,
)
from timm.models import create_model
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import (
    ParseKwargs,
    init_distributed_device,
    random_seed,
    update_summary,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel

try:
    import wandb  # noqa: F401  (the patch uses it)

    has_wandb = True
except ImportError:
    has_wandb = False

_logger = logging.getLogger("train")

config_parser = argparse.ArgumentParser(add_help=False)
config_parser.add_argument("-c", "--config", default="")

parser = argparse.ArgumentParser()
parser.add_argument("--data-dir")
parser.add_argument("--dataset", default="")
parser.add_argument("--model", default="resnet10t")
parser.add_argument("--model-kwargs", nargs="*", default={}, action=ParseKwargs)
parser.add_argument("--num-classes", type=int, default=4)
parser.add_argument("--img-size", type=int, default=32)
parser.add_argument("-b", "--batch-size", type=int, default=8)
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--warmup-epochs", type=int, default=0)
parser.add_argument("--lr", type=float, default=0.01)
parser.add_argument("--device", default="cpu")
parser.add_argument("-j", "--workers", type=int, default=0)
parser.add_argument("--no-prefetcher", action="store_true")
parser.add_argument("--mixup", type=float, default=0.0)
parser.add_argument("--cutmix", type=float, default=0.0)
parser.add_argument("--mixup-mode", default="batch")
parser.add_argument("--mixup-off-epoch", type=int, default=0)
parser.add_argument("--smoothing", type=float, default=0.1)
parser.add_argument("--bce-loss", action="store_true")
parser.add_argument("--bce-sum", action="store_true")
parser.add_argument("--bce-target-thresh", type=float)
parser.add_argument("--jsd-loss", action="store_true")
parser.add_argument("--aug-splits", type=int, default=0)
parser.add_argument("--aug-repeats", type=float, default=0)
parser.add_argument("--use-multi-epochs-loader", action="store_true")
parser.add_argument("--no-aug", action="store_true")
parser.add_argument("--aa")
parser.add_argument("--reprob", type=float, default=0.0)
parser.add_argument("--remode", default="pixel")
parser.add_argument("--resplit", action="store_true")
parser.add_argument("--opt", default="momentum")
parser.add_argument("--weight-decay", type=float, default=2e-5)
parser.add_argument("--drop", type=float, default=0.0)
parser.add_argument("--drop-path", type=float)
parser.add_argument("--val-split", default="validation")
parser.add_argument("--val-interval", type=int, default=1)
parser.add_argument("--sched-on-updates", action="store_true")
parser.add_argument("--kd-model-name")
parser.add_argument("--kd-distill-type", default="logit")
parser.add_argument("--kd-token-distill-type", default="soft")
parser.add_argument("--kd-temperature", type=float, default=4.0)
parser.add_argument("--amp", action="store_true")
parser.add_argument("--amp-dtype", default="float16")
parser.add_argument("--channels-last", action="store_true")
parser.add_argument("--log-wandb", action="store_true")
parser.add_argument("--log-interval", type=int, default=50)
parser.add_argument("--seed", type=int, default=42)
parser.add_argument("--output", default="runs")
parser.add_argument("--experiment", default="run")
parser.add_argument("--resume", default="")
parser.add_argument("--task", action="store_true", help="for train_one_epoch_of_task")
parser.add_argument("--start-epoch", type=int)


def _parse_args():
    config, rest = config_parser.parse_known_args()
    if config.config:
        parser.set_defaults(**yaml.safe_load(Path(config.config).read_text()))
    args = parser.parse_args(rest)
    return args, yaml.safe_dump(vars(args))


def main():
    args, args_text = _parse_args()
    args.prefetcher = not args.no_prefetcher
    device = init_distributed_device(args)
    random_seed(args.seed, args.rank)
    drops = {"drop_rate": args.drop, "drop_path_rate": args.drop_path}
    options = {"num_classes": args.num_classes, **drops, **args.model_kwargs}
    model = create_model(args.model, **options).to(device)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, opt=args.opt, lr=args.lr, weight_decay=args.weight_decay)
    start = 0
    if args.resume:
        checkpoint = torch.load(args.resume, weights_only=False)
        model.load_state_dict(checkpoint["state_dict"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        start = checkpoint["epoch"] + 1
    start = start if args.start_epoch is None else args.start_epoch

    dataset = create_dataset(args.dataset, root=args.data_dir, split="train", is_training=True)
    held_out = create_dataset("", root=args.data_dir, split=args.val_split, is_training=False)
    mixing = args.mixup > 0 or args.cutmix > 0
    collate_fn = mixup_fn = None
    if mixing:
        make = FastCollateMixup if args.prefetcher else Mixup
        mix = make(
            mixup_alpha=args.mixup,
            cutmix_alpha=args.cutmix,
            mode=args.mixup_mode,
            label_smoothing=args.smoothing,
            num_classes=args.num_classes,
        )
        collate_fn, mixup_fn = (mix, None) if args.prefetcher else (None, mix)
    if args.aug_splits:
        dataset = AugMixDataset(dataset, num_splits=args.aug_splits)
    common = {
        "input_size": (3, args.img_size, args.img_size),
        "batch_size": args.batch_size,
        "num_workers": args.workers,
        "persistent_workers": args.workers > 0,
        "distributed": args.distributed,
        "device": device,
        "use_prefetcher": args.prefetcher,
    }
    loader = create_loader(
        dataset,
        is_training=True,
        collate_fn=collate_fn,
        num_aug_splits=args.aug_splits,
        num_aug_repeats=args.aug_repeats,
        no_aug=args.no_aug,
        auto_augment=args.aa,
        re_prob=args.reprob,
        re_mode=args.remode,
        re_split=args.resplit,
        interpolation="random",
        use_multi_epochs_loader=args.use_multi_epochs_loader,
        **common,
    )
    eval_loader = create_loader(
        held_out, is_training=False, interpolation="bicubic", crop_pct=0.9, **common
    )
    if args.jsd_loss:
        loss_fn = JsdCrossEntropy(num_splits=args.aug_splits, smoothing=args.smoothing)
    elif args.bce_loss:
        bce = partial(BinaryCrossEntropy, sum_classes=args.bce_sum)
        smoothing = {} if mixing else {"smoothing": args.smoothing}
        loss_fn = bce(target_threshold=args.bce_target_thresh, **smoothing)
    elif mixing:
        loss_fn = SoftTargetCrossEntropy()
    elif args.smoothing:
        loss_fn = LabelSmoothingCrossEntropy(args.smoothing)
    else:
        loss_fn = nn.CrossEntropyLoss()

    task = None
    if args.task:
        task = make_task(args, model, loss_fn, device)
        model = task.get_trainable_module()
    if args.distributed:
        model = DistributedDataParallel(model)
        if task is not None:
            task.trainable_module = model
    eval_model = model if task is None else task.get_eval_model()
    autocast = suppress
    if args.amp:
        autocast = partial(torch.autocast, device.type, getattr(torch, args.amp_dtype))
    folder = None
    if args.rank == 0:
        folder = Path(args.output) / args.experiment
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "args.yaml").write_text(args_text)
    scheduler, epochs = create_scheduler_v2(
        optimizer, num_epochs=args.epochs, updates_per_epoch=len(loader)
    )
    if start:
        scheduler.step(start)
    for epoch in range(start, epochs):
        if args.distributed and hasattr(loader.sampler, "set_epoch"):
            loader.sampler.set_epoch(epoch)
        train = partial(
            train_one_epoch,
            device=device,
            output_dir=folder,
            amp_autocast=autocast,
            mixup_fn=mixup_fn,
        )
        if args.task:
            metrics = train(epoch, model, loader, optimizer, args, task=task)
        else:
            metrics = train(epoch, model, loader, optimizer, loss_fn, args)
        if (epoch + 1) % args.val_interval and epoch + 1 != epochs:
            scheduler.step(epoch + 1)
            continue
        accuracy = validate(eval_model, eval_loader, device)
        scheduler.step(epoch + 1)
        if folder is not None:
            update_summary(
                epoch,
                metrics,
                {"top1": accuracy},
                filename=folder / "summary.csv",
                write_header=not (folder / "summary.csv").exists(),
                log_wandb=args.log_wandb and has_wandb,
            )
            state = {"state_dict": getattr(model, "module", model).state_dict()}
            state |= {"optimizer": optimizer.state_dict(), "epoch": epoch, "args": args}
            torch.save(state, folder / f"checkpoint-{epoch}.pth.tar")
            torch.save(state, folder / "last.pth.tar")
    if args.distributed:
        torch.distributed.destroy_process_group()


def make_task(args, model, loss_fn, device):
    from timm import task

    if args.kd_model_name is None:
        return task.ClassificationTask(model, loss_fn, device=device, verbose=False)
    kind = args.kd_distill_type.capitalize()
    options = {"device": device, "verbose": False}
    if kind != "Feature":
        options["temperature"] = args.kd_temperature
    if kind == "Token":
        options["distill_type"] = args.kd_token_distill_type
    make = getattr(task, f"{kind}DistillationTask")
    return make(model, args.kd_model_name, loss_fn, **options)


def train_one_epoch(
    epoch,
    model,
    loader,
    optimizer,
    loss_fn,
    args,
    device=None,
    output_dir=None,
    amp_autocast=suppress,
    mixup_fn=None,
):
    return _loop(
        epoch, model, loader, optimizer, lambda x, y: loss_fn(model(x), y), args,
        device, amp_autocast, mixup_fn,
    )  # fmt: skip


def train_one_epoch_of_task(
    epoch,
    model,
    loader,
    optimizer,
    args,
    task=None,
    device=None,
    output_dir=None,
    amp_autocast=suppress,
    mixup_fn=None,
):
    """Put in place of `train_one_epoch` by the tests: the structure of timm 1.0.23 and later."""
    return _loop(
        epoch, model, loader, optimizer, lambda x, y: task(x, y)["loss"], args,
        device, amp_autocast, mixup_fn,
    )  # fmt: skip


def _loop(epoch, model, loader, optimizer, objective, args, device, amp_autocast, mixup_fn):
    if args.mixup_off_epoch and epoch >= args.mixup_off_epoch:
        if args.prefetcher and loader.mixup_enabled:
            loader.mixup_enabled = False
        elif mixup_fn is not None:
            mixup_fn.mixup_enabled = False
    model.train()
    total = 0.0
    for x, y in loader:
        if not args.prefetcher:
            x, y = x.to(device), y.to(device)
            if mixup_fn is not None:
                x, y = mixup_fn(x, y)
        if args.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with amp_autocast():
            loss = objective(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() / len(loader)
    _logger.info(f"Train: {epoch} [{len(loader)} batches]  Loss: {total:#.3g}")
    return OrderedDict(loss=total)


@torch.no_grad()
def validate(model, loader, device):
    model.eval()
    right = seen = 0
    for x, y in loader:
        output = model(x.to(device))
        output = output[0] if isinstance(output, tuple) else output
        right += int((output.argmax(1) == y.to(device)).sum())
        seen += len(y)
    return 100.0 * right / seen


if __name__ == "__main__":
    main()
