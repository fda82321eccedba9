"""The ``--subset-…`` flags that `timm_patch` adds to train.py's parser."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from adaptive_subset import STRATEGIES, Strategy

# name: type, metavar, help. None stands for "not given" until `strategy_of`.
_FLAGS: dict[str, tuple[Any, str, str]] = {
    "fraction": (float, "F", "size of the subset, as a share of the training set"),
    "budget": (int, "K", "size of the subset in samples, instead of --subset-fraction"),
    "strategy": (str, "NAME", "one of {names} (default: gradmatch-pb)"),
    "every": (
        int,
        "R",
        "epochs from one selection to the next (default: the strategy's own)",
    ),
    "warm_start": (
        float,
        "SHARE",
        "share of --epochs before the first selection, in which epochs of the same length walk "
        "through all data (default: 0)",
    ),
    "lam": (float, "LAMBDA", "ridge of gradient matching (default: that of the strategy)"),
    "head": (str, "LAYER", "the model's last layer, where it is not found by itself"),
}

# Options of train.py that no subset can go with, and why.
REFUSED = {
    "naflex_loader": "it fills batches by tokens and takes no sampler. Train at a fixed size.",
    "train_img_sizes": "it fixes the batches in advance. Train at one image size.",
    "use_multi_epochs_loader": "it repeats its first sampler for ever. Leave it out.",
    "aug_repeats": "its sampler decides by itself what is repeated. Leave it out.",
    "kd_model_name": "the distillation loss is computed outside the criterion, so that only a "
    "part of the objective would be weighted. Train without a teacher.",
    "torchscript": "the last layer's gradients of a scripted model cannot be read. Use "
    "--torchcompile instead.",
}


def strategy_names() -> list[str]:
    """Those that train.py can run: it fixes its schedule by epochs of one length, and the losses
    that it computes may be of mixed images, which are no sample's own.
    """
    strategies = {name: kind() for name, kind in STRATEGIES.items()}
    return [
        name
        for name, strategy in strategies.items()
        if not (strategy.sizes_itself or strategy.size_varies or strategy.needs_losses)
    ]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags in a group of their own; all default to None."""
    group = parser.add_argument_group(
        "Adaptive subset", "Train on a weighted subset that is chosen anew every R epochs."
    )
    for name, (kind, metavar, text) in _FLAGS.items():
        flag = "--subset-" + name.replace("_", "-")
        text = text.format(names=", ".join(strategy_names()))
        group.add_argument(flag, type=kind, metavar=metavar, help=text)


def strategy_of(args: argparse.Namespace) -> Strategy | None:
    """The strategy that the flags ask for, None if none was given; the others are filled in.

    Raises:
        ValueError: flags that contradict each other or cannot go with an option of the script.
    """
    if all(getattr(args, f"subset_{name}") is None for name in _FLAGS):
        return None
    if (args.subset_fraction is None) == (args.subset_budget is None):
        raise ValueError(
            "exactly one of --subset-fraction and --subset-budget must be given, got "
            f"{args.subset_fraction} and {args.subset_budget}"
        )
    for option, reason in REFUSED.items():
        if getattr(args, option, None):
            flag = option.replace("_", "-")
            raise ValueError(f"--{flag} cannot go with a subset: {reason}")
    args.subset_strategy = args.subset_strategy or "gradmatch-pb"
    if args.subset_strategy not in strategy_names():
        raise ValueError(
            f"--subset-strategy must be one of {', '.join(strategy_names())}, got "
            f"{args.subset_strategy}"
        )
    args.subset_warm_start = args.subset_warm_start or 0.0
    kind: Any = STRATEGIES[args.subset_strategy]
    known = {field.name for field in fields(kind)}
    options = {"batch_size": args.batch_size} if "batch_size" in known else {}
    if args.subset_lam is not None:
        if "lam" not in known:
            raise ValueError(f"--subset-lam has no meaning for {args.subset_strategy}")
        options["lam"] = args.subset_lam
    strategy: Strategy = kind(**options)
    return strategy
