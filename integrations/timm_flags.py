"""The ``--subset-…`` flags that `timm_patch` adds to train.py's parser, and what they ask for.

One table for what a run is given (`_RUN`), and one that is read off the strategies: each argument
of a strategy that train.py can run is a flag.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Container, Mapping
from dataclasses import fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from adaptive_subset import STRATEGIES, Strategy

DEFAULT = "order-dp"
# By argument of Selector and AdaptiveSubsetSampler. All default to None, "not given".
_RUN: dict[str, dict[str, Any]] = {
    "fraction": {"type": float, "metavar": "F", "help": "share of the training set to train on"},
    "budget": {"type": int, "metavar": "K", "help": "the same as a number of samples"},
    "tolerance": {
        "type": float,
        "metavar": "E",
        "help": "take the smallest subset whose gradient has a relative error of E",
    },
    "strategy": {"metavar": "NAME", "help": "one of {names} (default: {default})"},
    "every": {
        "type": int,
        "metavar": "R",
        "help": "epochs from one selection to the next (default: the strategy's own)",
    },
    "warm_start": {
        "type": float,
        "metavar": "SHARE",
        "help": "share of --epochs before the first selection, in which epochs of the same length "
        "walk through all data (default: 0)",
    },
    "head": {
        "nargs": "+",
        "metavar": "LAYER",
        "help": "the model's last layer or layers, where they are not found by themselves",
    },
    "pool_fraction": {
        "type": float,
        "metavar": "SHARE",
        "help": "share of the training set that a pass over it looks at, drawn afresh (default: 1)",
    },
    "validation": {
        "metavar": "SPLIT",
        "help": "match the gradient of this clean split, which is neither --val-split nor a test "
        "set, in place of that of the training set",
    },
    "weights": {
        "choices": ("mean-one", "matched"),
        "help": "weights of mean one, or of the length that was matched (default: mean-one)",
    },
    "storage_dtype": {
        "choices": ("float32", "float16", "bfloat16"),
        "help": "what gradients are kept in (default: float32)",
    },
    "storage_dir": {
        "metavar": "FOLDER",
        "help": "keep gradients in a file there, where memory does not hold them",
    },
}

# Options of train.py that no subset can go with, and why.
REFUSED = {
    "naflex_loader": "it fills batches by tokens and takes no sampler. Train at a fixed size.",
    "train_img_sizes": "it fixes the batches in advance. Train at one image size.",
    "torchscript": "the last layer's gradients of a scripted model cannot be read. Use "
    "--torchcompile instead.",
}


class Refusal(ValueError):
    """What cannot be run, in the words of the command line."""


def strategy_names() -> list[str]:
    """Those that train.py can run: it fixes its schedule by epochs of one length."""
    strategies = {name: kind() for name, kind in STRATEGIES.items()}
    return [n for n, s in strategies.items() if not (s.sizes_itself or s.size_varies)]


def strategy_flags() -> dict[str, dict[str, Any]]:
    """What argparse takes for each argument of a strategy, by its name.

    Arguments of the same name are one flag. The number of epochs is known, and what is no number,
    word or switch stays as it is.
    """
    flags: dict[str, dict[str, Any]] = {}
    for kind in (STRATEGIES[name] for name in strategy_names()):
        hints = get_type_hints(kind)
        for field in fields(kind):  # type: ignore[arg-type]  # a dataclass
            options = _options(hints[field.name])
            if field.name == "epochs" or options is None:
                continue
            flag = flags.setdefault(field.name, {**options, "help": []})
            if "choices" in options:
                flag["choices"] = tuple(dict.fromkeys(flag["choices"] + options["choices"]))
            flag["help"].append(f"{kind.__name__} ({field.default})")
    for name, flag in flags.items():
        flag["help"] = f"argument `{name}` of {', '.join(flag['help'])}"
    if "batch_size" in flags:
        flags["batch_size"]["help"] += ", by default that of training"
    return flags


def _options(hint: Any) -> dict[str, Any] | None:
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    if len(kinds) == 1:  # X | None
        return _options(kinds[0])
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    return {"type": hint, "metavar": hint.__name__.upper()} if hint in (int, float) else None


def flag_of(name: str) -> str:
    """The flag of an argument."""
    return f"--subset-{name.replace('_', '-')}"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags in a group of their own."""
    group = parser.add_argument_group(
        "Adaptive subset", "Train on a weighted subset that is chosen anew every R epochs."
    )
    words = {"names": ", ".join(strategy_names()), "default": DEFAULT}
    for name, options in {**_RUN, **strategy_flags()}.items():
        text = options["help"].format(**words)
        group.add_argument(flag_of(name), **{**options, "help": text, "default": None})


def subset_flags(args: argparse.Namespace) -> dict[str, Any]:
    """All of the flags in `args`, by argument."""
    prefix = "subset_"
    return {k.removeprefix(prefix): v for k, v in vars(args).items() if k.startswith(prefix)}


def check_config(args: argparse.Namespace) -> None:
    """Raise a Refusal for what a --config file has set and no flag could be.

    It sets defaults, of which argparse looks at no name and at no choice.
    """
    flags = {f"subset_{key}": options for key, options in {**_RUN, **strategy_flags()}.items()}
    for key, value in vars(args).items():
        if value is None or not key.startswith(("subset_", "subset-")):
            continue
        spelt = key.replace("-", "_")
        if key not in flags:
            known = f", which is spelt {spelt} there" if spelt in flags else ""
            known = known or f". Known are {', '.join(flags)}"
            raise Refusal(f"--config must name flags that there are, got {key}{known}.")
        choices = flags[key].get("choices")
        if choices is not None and value not in choices:
            flag = flag_of(key.removeprefix("subset_"))
            raise Refusal(f"{flag} must be one of {', '.join(choices)}, got {value}.")


def strategy_of(
    args: argparse.Namespace,
    typed: Container[str],
    config: Mapping[str, Any],
    planned: Mapping[str, Any],
) -> Strategy:
    """The strategy that the flags, of which some are given, ask for; its name is filled in.

    Args:
        args: of the script.
        typed: the flags that were on the command line.
        config: what flags are set to in a --config file.
        planned: of the run that is resumed, see `timm_resume.plan_of`.

    Raises:
        Refusal: flags that contradict each other or cannot go with an option of the script.
    """
    given = {name: value for name, value in subset_flags(args).items() if value is not None}
    sizes = [flag_of(name) for name in ("fraction", "budget", "tolerance")]
    if sum(name in given for name in ("fraction", "budget", "tolerance")) != 1:
        got = [flag_of(name) for name in ("fraction", "budget", "tolerance") if name in given]
        raise Refusal(
            f"exactly one of {', '.join(sizes)} must be given, got {' and '.join(got) or 'none'}."
        )
    for option, reason in REFUSED.items():
        if getattr(args, option, None):
            flag = option.replace("_", "-")
            raise Refusal(f"--{flag} cannot go with a subset: {reason}")
    name = args.subset_strategy = args.subset_strategy or DEFAULT
    if name not in strategy_names():
        reason = ""
        if name in STRATEGIES:
            reason = ", whose epochs differ in length, which train.py's schedule does not allow"
        raise Refusal(
            f"--subset-strategy must be one of {', '.join(strategy_names())}, got {name}{reason}."
        )
    kind: Any = STRATEGIES[name]
    known, everywhere = {field.name for field in fields(kind)}, strategy_flags()
    if config.get("strategy") not in (None, name):
        own = [key for key in ("every", *everywhere) if key in given and key not in typed]
        if stale := sorted(own):
            values = ", ".join(f"{flag_of(key)} {given[key]}" for key in stale)
            raise Refusal(
                f"--subset-strategy {name} cannot go with {values} of the --config file, which "
                f"was for {config['strategy']}. Give it on the command line, or take it out of the "
                "file."
            )
    options = {key: value for key, value in given.items() if key in everywhere}
    if unknown := sorted(options.keys() - known):
        raise Refusal(
            f"{flag_of(unknown[0])} has no meaning for {name}, which takes "
            f"{', '.join(flag_of(key) for key in everywhere if key in known) or 'none of these'}."
        )
    if "batch_size" in known:
        options.setdefault("batch_size", planned.get("batch_size", args.batch_size))
    if "epochs" in known:
        options["epochs"] = planned.get("epochs", args.epochs)
    strategy: Strategy = kind(**options)
    if strategy.needs_losses and _mixes(args):
        raise Refusal(
            f"--subset-strategy {name} cannot go with mixup or cutmix: the loss of a mixed image "
            "is no sample's own. Choose fresh-random, which costs nothing either, or gradmatch-pb; "
            "or train with --mixup 0 --cutmix 0."
        )
    if args.subset_tolerance is not None and getattr(args, "sched_on_updates", False):
        raise Refusal(
            "--subset-tolerance cannot go with --sched-on-updates: the number of updates is known "
            "after the first selection only. Give --subset-fraction."
        )
    return strategy


def _mixes(args: argparse.Namespace) -> bool:
    shares = [getattr(args, name, None) for name in ("mixup", "cutmix", "cutmix_minmax")]
    return any(share not in (None, 0) for share in shares)


def in_flags(message: str) -> str:
    """A message of the library, which names arguments, in the words of the command line."""
    own = {name: flag_of(name) for name in (*_RUN, *strategy_flags())}
    names = {**own, "epochs": "--epochs", "seed": "--seed", "num_classes": "--num-classes"}
    pattern = "|".join(sorted(names, key=len, reverse=True))
    message = re.sub(rf"`({pattern})=?`", lambda found: names[found[1]], message)
    return re.sub(rf"\b({pattern})=(?=\S)", lambda found: names[found[1]] + " ", message)
