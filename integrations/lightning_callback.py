"""Lightning: `SubsetCallback`, which puts sampler and weighted loss in their places."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from adaptive_subset.integrations.subset import Subset, check_names, extra_is_missing
from torch import nn
from torch.utils.data import DataLoader

from adaptive_subset import AdaptiveSubsetSampler, Strategy

try:
    import lightning.pytorch as pl
except ImportError as error:
    raise extra_is_missing(error, "lightning") from error

_NEW = {"is_new": True}  # Lightning leaves out states that are empty


class SubsetCallback(pl.Callback):
    """Trains a LightningModule on the adaptive subset of its training data.

        Trainer(callbacks=[SubsetCallback(OrderDP(), fraction=0.1)])

    The module's training loader, wherever it comes from, is made to read the subset, and its loss
    to weight it, while `fit` runs. A selection is made when the first batch of an epoch is asked
    for, with whatever number of workers. On several processes each gets its share, whatever
    `use_distributed_sampler` says. The state goes with Lightning's checkpoints, those in the middle
    of an epoch too; the figures of each selection go to the trainer's loggers, as ``subset/…``.

    Args:
        strategy: how to choose.
        criterion: name of the module's attribute that is its training loss.
        model: name of the attribute that maps inputs to outputs, where that is not the module
            itself (`forward`).
        options: see `adaptive_subset.integrations.subset.OPTIONS`; `epochs` is the trainer's
            `max_epochs` by default, and `num_workers` that of the loader.

    Raises:
        TypeError: an option that there is none of.

    Attributes:
        sampler: of the last `fit`, None before it.
    """

    def __init__(
        self,
        strategy: Strategy | str,
        *,
        criterion: str = "criterion",
        model: str | None = None,
        **options: Any,
    ) -> None:
        check_names(options)
        self.sampler: AdaptiveSubsetSampler | None = None
        self._strategy, self._options = strategy, options
        self._criterion, self._model = criterion, model
        self._subset: Subset | None = None
        self._loaded: Mapping[str, Any] | None = None
        self._undo: list[Callable[[], None]] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        few = getattr(trainer, "overfit_batches", 0)
        if few:
            raise ValueError(
                "`overfit_batches` must be 0 with a SubsetCallback, which orders the batches anew "
                f"in each epoch, got {few}. Use `budget` for a small subset."
            )
        self._subset = self._loaded = None
        source: Any = getattr(trainer.fit_loop, "_data_source", None)
        request = getattr(source, "dataloader", None)
        if request is None:
            raise RuntimeError(
                "`trainer` must have a `fit_loop` that requests its loader as Lightning 2 does, "
                "got another one. Tested is Lightning 2.6."
            )
        source.dataloader = lambda: self._loader(trainer, pl_module, request())
        self._undo.append(lambda: delattr(source, "dataloader"))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        while self._undo:
            self._undo.pop()()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self.teardown(trainer, pl_module, "fit")

    def _loader(self, trainer: pl.Trainer, module: pl.LightningModule, loader: Any) -> Any:
        """In place of the loader that the trainer has requested."""
        if not isinstance(loader, DataLoader):
            raise TypeError(
                "the training loader must be one DataLoader, got a "
                f"{type(loader).__name__}. Train on a ConcatDataset in place of several loaders."
            )
        if self._subset is None:
            self._build(trainer, module, loader)
        subset: Any = self._subset
        if loader.dataset is not subset.sampler.selector.dataset:
            raise ValueError(
                "`train_dataloader` must return loaders over one dataset, got another "
                f"{type(loader.dataset).__name__} than at first, of which no sample was chosen. "
                "Build the dataset once, in __init__ or setup()."
            )
        model = module if self._model is None else getattr(module, self._model)

        def start() -> int:
            # What Lightning tells its samplers. It asks for the first batch of a loader without a
            # length ahead, where it resumes before it has counted the epoch that is over.
            progress: Any = trainer.fit_loop.epoch_progress.current
            figures = subset.select(model, max(progress.processed, subset.epoch))
            if figures is not None:
                for logger in trainer.loggers:
                    logger.log_metrics(figures, step=trainer.global_step)
            done: int = subset.enter(len(attached))
            return done

        attached = subset.sampler.attach(loader)
        return _Sized(attached, start) if subset.size_is_fixed else _Batches(attached, start)

    def _build(
        self, trainer: pl.Trainer, module: pl.LightningModule, loader: DataLoader[Any]
    ) -> None:
        name = self._criterion
        if not callable(original := getattr(module, name, None)):
            raise ValueError(
                f"`criterion` must name the training loss of {type(module).__name__}, got "
                f"{name!r}, which is no loss of it. Set it in __init__, self.{name} = "
                f"nn.CrossEntropyLoss(), and call it as self.{name}(outputs, targets)."
            )
        options = {"num_workers": loader.num_workers, **self._options}
        if options.get("warm_start"):
            options.setdefault("epochs", trainer.max_epochs)
        subset = Subset(
            loader.dataset,
            original,
            self._strategy,
            num_replicas=trainer.world_size,
            rank=trainer.global_rank,
            **options,
        )
        if self._loaded is not None:
            subset.load_state_dict(self._loaded)
        _replace(module, name, subset.criterion)
        self._undo.append(lambda: _replace(module, name, original))
        if getattr(module, name) is not subset.criterion:
            raise ValueError(
                f"`criterion` must name an attribute of the module itself, got {name!r} of the "
                f"class {type(module).__name__}. Set self.{name} in __init__."
            )
        self._subset, self.sampler = subset, subset.sampler

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert self._subset is not None
        self._subset.check_used()
        self._subset.batches = batch_idx + 1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self._subset is not None
        self._subset.batches = self._subset.length

    def state_dict(self) -> dict[str, Any]:
        if self._subset is None:
            return dict(_NEW if self._loaded is None else self._loaded)
        state: dict[str, Any] = self._subset.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = None if state_dict == _NEW else state_dict  # the data are not known yet

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn == "fit" and not checkpoint.get("callbacks", {}).get(self.state_key):
            raise ValueError(
                "`ckpt_path` must be of a run with this SubsetCallback, got one without its state. "
                "To start from the weights alone, load them with load_from_checkpoint."
            )
        if self._subset is not None and self._undo:
            # A tuner has trained on it and goes back; with the next loader there is another one.
            self._undo.pop()()
            self._subset = None
            trainer.fit_loop._combined_loader = None


class _Batches(Iterable[Any]):
    """The batches of a loader, for which the epoch starts when the first is asked for.

    It is no DataLoader, so that Lightning leaves its sampler alone.

    Args:
        loader: reads the subset.
        start: starts the epoch; tells how many batches of it are done already.
    """

    def __init__(self, loader: DataLoader[Any], start: Callable[[], int]) -> None:
        self.loader, self._start = loader, start

    def __iter__(self) -> Iterator[Any]:
        done = self._start()
        yield from islice(self.loader, done, None)


class _Sized(_Batches):
    def __len__(self) -> int:
        return len(self.loader)


def _replace(module: nn.Module, name: str, value: Any) -> None:
    """Set an attribute; a module refuses what is none in the place of one."""
    if name in module._modules and not isinstance(value, nn.Module):
        delattr(module, name)
    setattr(module, name, value)
