"""Run timm's train.py, unmodified, on weighted subsets that are chosen anew every few epochs.

    python -m adaptive_subset.integrations.timm_patch path/to/train.py ARGS --subset-fraction 0.3

The script is loaded as a module, names in *its* globals are replaced (see `patch`), and its
``main()`` is called. timm itself is not touched, and importing this module changes nothing. Without
one of the ``--subset-…`` flags the script runs as it is. See docs/timm.md.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import inspect
import logging
import sys
from collections.abc import Callable, Container, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: the checkout around it need not be installed
    _checkout = str(Path(__file__).resolve().parent.parent)
    sys.path.insert(0, _checkout)
    __import__("adaptive_subset").__path__.append(_checkout)

from adaptive_subset.integrations.timm_flags import (
    Refusal,
    add_flags,
    check_config,
    in_flags,
    strategy_of,
    subset_flags,
)
from adaptive_subset.integrations.timm_resume import has_subset, plan, plan_of
from torch.utils.data import DataLoader, IterableDataset

from adaptive_subset import AdaptiveSubsetSampler, Strategy

if TYPE_CHECKING:
    from adaptive_subset.integrations.timm_subset import TimmSubset

TESTED = "0.9.16, 1.0.3, 1.0.15, 1.0.22, 1.0.25, 1.0.28 and 1.0.31"
_NEEDED = ("parser", "main", "create_loader", "train_one_epoch")


def load(path: str | Path) -> ModuleType:
    """The script as a module, not yet run; its folder comes first on ``sys.path``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a module of the script's name is loaded already.
    """
    script = Path(path).resolve()
    if not script.is_file():
        raise FileNotFoundError(f"`path` must be timm's train.py, got {path}: no such file.")
    if script.stem in sys.modules:
        raise ValueError(f"`path` must not be called like the loaded module {script.stem!r}.")
    sys.path.insert(0, str(script.parent))
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[script.stem] = module  # workers that are not forked look its functions up there
    spec.loader.exec_module(module)
    return module


def patch(module: ModuleType) -> SubsetTraining:
    """Give timm's train.py, or a copy of it, the ``--subset-…`` flags. Call its ``main()`` then.

    Replaced are `create_dataset`, `create_loader` and `train_one_epoch` in the module's globals and
    `parse_args` of its parser.

    Raises:
        ValueError: the module lacks a name that is needed, or is patched already.
    """
    missing = [name for name in _NEEDED if not hasattr(module, name)]
    if missing:
        raise ValueError(
            f"`module` must have timm's train.py's {', '.join(_NEEDED)}, got {module.__name__} "
            f"without {', '.join(missing)}. Tested are the scripts of timm {TESTED}."
        )
    if hasattr(module.train_one_epoch, "subset_training"):
        raise ValueError(f"`module` must be patched once, got {module.__name__} a second time.")
    return SubsetTraining(module)


class SubsetTraining:
    """The hooks in one run of the script."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._args = argparse.Namespace()
        self._strategy: Strategy | None = None
        self._planned: dict[str, Any] = {}
        self._subset: TimmSubset | None = None
        self._loader: Any = None
        self._create: Any = None  # the script's create_dataset
        self._create_loader_of_script: Any = None
        self._dataset: dict[str, Any] = {}  # arguments of the script's training dataset
        self._evaluation: dict[str, Any] = {}  # … and of its evaluation loader
        self._has_begun = False
        self._add_flags(module.parser)
        for name in ("create_dataset", "create_loader", "train_one_epoch"):
            if (original := getattr(module, name, None)) is not None:
                hook: Any = functools.partial(getattr(self, "_" + name), original)
                setattr(module, name, functools.wraps(original)(hook))
        module.train_one_epoch.subset_training = self

    @property
    def sampler(self) -> AdaptiveSubsetSampler | None:
        """Chooses and delivers the subset; None before the training loader is made and in runs
        without a ``--subset-…`` flag.
        """
        return None if self._subset is None else self._subset.sampler

    def _add_flags(self, parser: argparse.ArgumentParser) -> None:
        add_flags(parser)
        parse = parser.parse_args

        def parse_args(args: Any = None, namespace: Any = None) -> Any:
            self._args = parse(args, namespace)
            flags = [f"subset_{name}" for name in subset_flags(self._args)]
            # A --config file sets defaults. What stays as it is here was not on the command line.
            unset: Any = object()
            there = parse(args, argparse.Namespace(**dict.fromkeys(flags, unset)))
            typed = {name for name, value in subset_flags(there).items() if value is not unset}
            config = {name: parser.get_default(f"subset_{name}") for name in subset_flags(there)}
            with self._refusals():
                self._understand(typed, config)
            return self._args

        parser.parse_args = parse_args  # type: ignore[method-assign]

    def _understand(self, typed: Container[str], config: Mapping[str, Any]) -> None:
        args = self._args
        check_config(args)
        if all(value is None for value in subset_flags(args).values()):
            return
        is_new = getattr(args, "start_epoch", None) == 0
        planned = plan_of("" if is_new else getattr(args, "resume", ""))
        self._strategy = strategy_of(args, typed, config, planned)
        self._planned = plan(args, planned)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """What cannot be run ends the script as a wrong flag does: in one line, which names it."""
        try:
            yield
        except (ValueError, TypeError, RuntimeError) as error:
            message = str(error)
            if not isinstance(error, Refusal):
                if not message.startswith("`"):
                    raise
                message = in_flags(message)
                if not message.startswith("--"):
                    message = f"--subset-strategy {self._args.subset_strategy}: {message}"
            parser: argparse.ArgumentParser = self._module.parser
            parser.exit(2, f"{parser.prog}: error: {message}\n")

    def _create_dataset(self, create: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around the script's `create_dataset`, which is asked for a split to match as well."""
        call = _bind(create, args, kwargs)
        if call.arguments.get("is_training"):
            self._dataset = {**call.arguments, **call.arguments.get("kwargs", {})}
            self._dataset.pop("kwargs", None)
            self._create = create
        return create(*args, **kwargs)

    def _validation(self) -> Any:
        """The dataset of the split to match, if there is one."""
        split = self._args.subset_validation
        if split is None:
            return None
        if not self._dataset:
            raise Refusal("--subset-validation needs a script that calls create_dataset.")
        if split == getattr(self._args, "val_split", None):
            raise Refusal(
                f"--subset-validation must be a split of its own, got {split}, which the script "
                "evaluates on (--val-split). Set a part of the training images aside."
            )
        changed = {"split": split, "is_training": False, "repeats": 0, "num_samples": None}
        return self._create(**{**self._dataset, **changed})

    def _create_loader(self, create: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In place of the script's `create_loader`: the training loader reads the subset."""
        if self._strategy is None:
            return create(*args, **kwargs)
        call = _bind(create, args, kwargs)
        if not call.arguments["is_training"]:
            self._evaluation = dict(call.arguments)
            return create(*args, **kwargs)
        training = dict(call.arguments)
        dataset = training["dataset"]
        with self._refusals():
            if isinstance(dataset, IterableDataset):
                raise Refusal(
                    "a subset needs a dataset with access by index, got a stream "
                    f"({type(dataset).__name__}). Use an image folder or hfds/ instead of wds/, "
                    "tfds/ or hfids/."
                )
            if training.get("num_aug_repeats") and not training.get("distributed"):
                raise Refusal(
                    "--aug-repeats needs several processes, as without a subset: run torchrun."
                )
        if training.get("use_multi_epochs_loader"):
            # It repeats its first sampler for ever. What it is for, workers that stay, the plain
            # loader has as well.
            call.arguments["use_multi_epochs_loader"] = False
        loader = create(*call.args, **call.kwargs)
        from adaptive_subset.integrations.timm_subset import TimmSubset

        with self._refusals():
            self._subset = TimmSubset(
                self._args, self._strategy, self._planned, training, self._logger
            )
            if isinstance(loader, DataLoader):
                loader = self._subset.attach(loader, self._validation())
            else:  # a prefetcher around one
                loader.loader = self._subset.attach(loader.loader, self._validation())
        self._create_loader_of_script = create
        self._loader = loader
        return loader

    def _train_one_epoch(self, train: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In place of the script's `train_one_epoch`: selects before it, weights its loss."""
        is_first, self._has_begun = not self._has_begun, True
        if self._strategy is None:
            if is_first:
                self._warn_if_forgotten()
            return train(*args, **kwargs)
        call = _bind(train, args, kwargs)
        subset = self._subset
        if subset is None or call.arguments["loader"] is not self._loader:
            raise ValueError(
                "`loader` must be what `create_loader(..., is_training=True)` of the script made, "
                f"got another {type(call.arguments['loader']).__name__}. Tested are the scripts of "
                f"timm {TESTED}."
            )
        with self._refusals():
            if is_first:
                create = self._create_loader_of_script
                subset.begin(call.arguments, create, self._evaluation)
            else:
                subset.weigh(call.arguments)
            subset.select(call.arguments)
        metrics = train(*call.args, **call.kwargs)
        subset.save(call.arguments)
        if isinstance(metrics, MutableMapping):
            metrics.update(subset.figures())  # to summary.csv, and to wandb
        return metrics

    def _warn_if_forgotten(self) -> None:
        resume = getattr(self._args, "resume", "")
        if resume and getattr(self._args, "rank", 0) == 0 and has_subset(resume):
            self._logger.warning(
                f"Subset: {resume} was trained on a subset, and no --subset flag is given: going "
                "on with all the data"
            )

    @property
    def _logger(self) -> Any:
        return getattr(self._module, "_logger", None) or logging.getLogger("train")


def _bind(function: Callable[..., Any], args: Any, kwargs: Any) -> inspect.BoundArguments:
    """The arguments by name: their order and number differ between versions."""
    call = inspect.signature(function).bind(*args, **kwargs)
    call.apply_defaults()
    return call


def main() -> None:
    """Run the script that the first argument names with the arguments behind it."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        raise SystemExit(len(sys.argv) < 2)
    del sys.argv[0]
    script = load(sys.argv[0])
    patch(script)
    script.main()


if __name__ == "__main__":
    main()
