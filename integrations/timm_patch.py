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
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

if not __package__:  # run as a file: the checkout around it need not be installed
    _checkout = str(Path(__file__).resolve().parent.parent)
    sys.path.insert(0, _checkout)
    __import__("adaptive_subset").__path__.append(_checkout)

import torch
from adaptive_subset.integrations.timm_flags import add_flags, strategy_of
from adaptive_subset.integrations.timm_resume import load_before, save
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, RandomSampler

from adaptive_subset import AdaptiveSubsetSampler, Selection, Selector, Strategy
from adaptive_subset.gradients.model_state import unwrap

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

    Replaced are `create_loader` and `train_one_epoch` in the module's globals and `parse_args` of
    its parser.

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
    """What one run of the script knows about its subset.

    Attributes:
        sampler: chooses and delivers the subset; None before the training loader is made and in
            runs without a ``--subset-…`` flag.
    """

    def __init__(self, module: ModuleType) -> None:
        self.sampler: AdaptiveSubsetSampler | None = None
        self._module = module
        self._args = argparse.Namespace()
        self._strategy: Strategy | None = None
        self._loader: Any = None
        self._evaluation: dict[str, Any] = {}  # arguments of the script's evaluation loader
        self._mixup: Any = None
        self._loss: Any = None
        self._add_flags(module.parser)
        for name in ("create_loader", "train_one_epoch"):
            original = getattr(module, name)
            hook: Any = functools.partial(getattr(self, "_" + name), original)
            setattr(module, name, functools.wraps(original)(hook))
        module.train_one_epoch.subset_training = self

    def _add_flags(self, parser: argparse.ArgumentParser) -> None:
        add_flags(parser)
        parse = parser.parse_args

        def parse_args(*args: Any, **kwargs: Any) -> Any:
            self._args = parse(*args, **kwargs)
            try:
                self._strategy = strategy_of(self._args)
            except ValueError as error:
                parser.error(str(error))
            return self._args

        parser.parse_args = parse_args  # type: ignore[method-assign]

    def _create_loader(self, create: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In place of the script's `create_loader`: the training loader reads the subset."""
        if self._strategy is None:
            return create(*args, **kwargs)
        arguments = _bind(create, args, kwargs).arguments
        if not arguments["is_training"]:
            self._evaluation = arguments
            return create(*args, **kwargs)
        if isinstance(arguments["dataset"], IterableDataset):
            raise ValueError(
                "a subset needs a dataset with access by index, got a stream "
                f"({type(arguments['dataset']).__name__}). Use an image folder or hfds/ instead of "
                "wds/, tfds/ or hfids/."
            )
        loader = create(*args, **kwargs)
        if isinstance(loader, DataLoader):
            loader = self._attach(loader, create, arguments)
        else:  # a prefetcher around one
            loader.loader = self._attach(loader.loader, create, arguments)
        self._loader = loader
        return loader

    def _attach(
        self, loader: DataLoader[Any], create: Callable[..., Any], training: dict[str, Any]
    ) -> DataLoader[Any]:
        from adaptive_subset.integrations import timm_weights

        if type(loader.sampler) not in (RandomSampler, DistributedSampler):
            raise ValueError(
                "a subset takes the place of a sampler that shuffles, got "
                f"{type(loader.sampler).__name__}. Leave out the option that brings it in."
            )
        args = self._args
        assert self._strategy is not None
        selector = Selector(
            loader.dataset,
            self._strategy,
            fraction=args.subset_fraction,
            budget=args.subset_budget,
            pool=timm_weights.EvaluationPool(
                loader.dataset,
                lambda twin: create(
                    **timm_weights.pool_arguments(training, self._evaluation, twin)
                ),
            ),
            head=f"model.{args.subset_head}" if args.subset_head else None,
            target=1,
            seed=args.seed,
        )
        self.sampler = AdaptiveSubsetSampler(
            selector,
            every=args.subset_every,
            epochs=args.epochs,
            warm_start=args.subset_warm_start,
            seed=args.seed,
            num_replicas=args.world_size,
            rank=args.rank,
        )
        attached = self.sampler.attach(loader)
        attached.collate_fn = timm_weights.weighted_collate(loader.collate_fn)
        self._mixup = getattr(attached.collate_fn, "mixup", None)
        if len(attached) == 0:
            raise ValueError(
                f"the subset must fill at least one batch of {loader.batch_size} on each process, "
                f"got {len(self.sampler)} samples. Choose a larger subset or a smaller batch."
            )
        return attached

    def _train_one_epoch(self, train: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In place of the script's `train_one_epoch`: selects before it, weights its loss."""
        if self._strategy is None:
            return train(*args, **kwargs)
        call = _bind(train, args, kwargs)
        if self.sampler is None or call.arguments["loader"] is not self._loader:
            raise ValueError(
                "`loader` must be what `create_loader(..., is_training=True)` of the script made, "
                f"got another {type(call.arguments['loader']).__name__}. Tested are the scripts of "
                f"timm {TESTED}."
            )
        if self._loss is None:
            self._resume(self.sampler, call.arguments)
        self._weigh(self.sampler, call.arguments)
        self._select(self.sampler, call.arguments)
        return train(*call.args, **call.kwargs)

    def _weigh(self, sampler: AdaptiveSubsetSampler, arguments: dict[str, Any]) -> None:
        """Put the weighted loss, and mixup that mixes weights too, in place of the script's."""
        from adaptive_subset.integrations import timm_weights

        if arguments.get("mixup_fn") is not None:
            self._mixup = self._mixup or timm_weights.WeightedMixup(arguments["mixup_fn"])
            arguments["mixup_fn"] = self._mixup
        task = arguments.get("task")
        task = getattr(task, "_orig_mod", task)  # compiled, in some versions
        if task is None and "loss_fn" not in arguments:
            raise ValueError(
                "`train_one_epoch` must take `loss_fn` or `task`, got neither. Tested are the "
                f"scripts of timm {TESTED}."
            )
        if task is not None and type(task).__name__ != "ClassificationTask":
            raise ValueError(
                f"`task` must be timm's ClassificationTask, got {type(task).__name__}: losses "
                "outside the criterion would not be weighted."
            )
        loss = arguments["loss_fn"] if task is None else task.criterion
        if self._loss is None:
            self._loss = timm_weights.weighted(loss)
            sampler.selector.bind_criterion(timm_weights.selection_loss(loss, self._mixup))
        if task is None:
            arguments["loss_fn"] = self._loss
        else:
            task.criterion = self._loss

    def _select(self, sampler: AdaptiveSubsetSampler, arguments: dict[str, Any]) -> None:
        from adaptive_subset.integrations.timm_weights import AsTrained

        channels_last = getattr(self._args, "channels_last", False)
        model = AsTrained(
            unwrap(arguments["model"]),
            arguments.get("amp_autocast", suppress),
            torch.channels_last if channels_last else torch.contiguous_format,
        )
        # Its line for each selection is told in timm's style instead.
        logging.getLogger("adaptive_subset").setLevel(logging.WARNING)
        selection = sampler.maybe_reselect(model, arguments["epoch"])
        if selection is not None and getattr(self._args, "rank", 0) == 0:
            self._report(selection)
            save(sampler, arguments.get("output_dir"))

    def _report(self, selection: Selection) -> None:
        assert self.sampler is not None
        size, total = len(selection), len(self.sampler.dataset)
        error = selection.relative_error
        self._logger.info(
            f"Subset: {selection.epoch} [{size:>4d}/{total} ({100.0 * size / total:>3.0f}%)]  "
            f"Error: {'unknown' if error is None else format(error, '#.3g')}  "
            f"Effective: {selection.effective_size:.0f}  Filled: {selection.filled}  Time: "
            f"{selection.forward_seconds:.3f}s forward, {selection.solver_seconds:.3f}s solver"
        )
        if getattr(self._args, "log_wandb", False) and getattr(self._module, "has_wandb", False):
            figures = {f"subset_{k}": v for k, v in selection.summary().items() if v is not None}
            self._module.wandb.log(figures, commit=False)  # with the epoch's own figures

    @property
    def _logger(self) -> Any:
        return getattr(self._module, "_logger", None) or logging.getLogger("train")

    def _resume(self, sampler: AdaptiveSubsetSampler, arguments: dict[str, Any]) -> None:
        """Go on with the last selection before this epoch that lies beside the checkpoint."""
        checkpoint, epoch = getattr(self._args, "resume", ""), arguments["epoch"]
        if not checkpoint or epoch == 0:
            return
        if load_before(epoch, sampler, Path(checkpoint).parent):
            save(sampler, arguments.get("output_dir"))
        elif epoch > sampler.warm_epochs:
            self._logger.warning(
                f"Subset: no subset-*.pth of an earlier epoch beside {checkpoint}, selecting anew"
            )


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
