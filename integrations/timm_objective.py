"""What train.py minimises, with weights: its losses, and the objectives of its distillation tasks.

Imports timm, like `timm_weights`.
"""

from __future__ import annotations

import copy
from typing import Any

from adaptive_subset.integrations.timm_flags import Refusal
from adaptive_subset.integrations.timm_weights import smoothed
from timm.loss.binary_cross_entropy import BinaryCrossEntropy
from timm.loss.jsd import JsdCrossEntropy
from torch import Tensor, nn

from adaptive_subset import Selector, WeightedLoss, WeightedTarget

DISTILLATION = ("LogitDistillationTask", "FeatureDistillationTask", "TokenDistillationTask")


class SoftTargets(nn.Module):
    """A loss of soft targets that takes labels as well: it softens them as mixup would."""

    def __init__(self, loss: nn.Module, smoothing: float) -> None:
        super().__init__()
        self.loss = loss
        self.smoothing = smoothing

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        if target.shape != output.shape:
            target = smoothed(target, output.shape[-1], self.smoothing).to(output.dtype)
        loss: Tensor = self.loss(output, target)
        return loss


class _JsdOfSamples(nn.Module):
    """timm's JSD loss with a sample's views in one row: output (n, splits, C), target (n,)."""

    def __init__(self, loss: JsdCrossEntropy) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = self.loss(output.transpose(0, 1).flatten(0, 1), target)
        return loss


class _WeightedViews(nn.Module):
    """The weighted loss of a batch in which one view of all samples comes after the other."""

    def __init__(self, loss: WeightedLoss, splits: int) -> None:
        super().__init__()
        self.loss = loss
        self.splits = splits

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        views = output.reshape(self.splits, -1, output.shape[-1]).transpose(0, 1)
        loss: Tensor = self.loss(views, target[: len(views)])
        return loss


def weighted(loss: nn.Module, selector: Selector | None = None) -> nn.Module:
    """The weighted form of one of train.py's losses; `selector` is told what it is trained with."""
    if isinstance(loss, JsdCrossEntropy):
        return _WeightedViews(WeightedLoss(_JsdOfSamples(loss), selector), loss.num_splits)
    return WeightedLoss(_of_labels(loss), selector)


def _of_labels(loss: nn.Module) -> nn.Module:
    """A loss like `loss` that takes one label as well as many."""
    return SoftTargets(loss, loss.smoothing) if isinstance(loss, BinaryCrossEntropy) else loss


def selection_loss(loss: nn.Module, mixup: Any) -> nn.Module:
    """What `loss` is for a single view and its label, as the selection sees them.

    The JSD of equal views is zero and flat, what is left is their cross-entropy.
    """
    if isinstance(loss, JsdCrossEntropy):
        inner: nn.Module = loss.cross_entropy_loss
        return inner
    if mixup is not None:
        return SoftTargets(loss, mixup.label_smoothing)
    return _of_labels(loss)


class WeightedDistillation:
    """One of timm's distillation tasks, with the weights of the samples in all of its objective.

    The outputs of student and teacher are those of the task's own pass; its own arithmetic on them
    (temperature, hard labels, features, both parts) is then weighted sample by sample. All other
    attributes are those of the task.

    Raises:
        Refusal: several views a sample, whose rows a teacher would see one by one.
    """

    def __init__(self, task: Any, selector: Selector | None = None) -> None:
        if isinstance(task.criterion, JsdCrossEntropy):
            raise Refusal("--jsd-loss cannot go with --kd-model-name: there is a row for each view")
        self._task = task
        self._loss = WeightedLoss(_Distillation(task), selector)

    def __call__(self, images: Tensor, target: WeightedTarget) -> dict[str, Any]:
        inner = getattr(self._task, _student_of(self._task))
        student, teacher = _Recorded(inner), _Recorded(self._task.teacher)
        plain = _with(self._task, student, teacher, nn.Module())
        plain.criterion = _Zero()
        result: dict[str, Any] = plain(images, target.plain())
        result["loss"] = self._loss((student.output, teacher.output), target)
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


class _Distillation(nn.Module):
    """The loss of a distillation task, of the outputs of student and teacher, and the target."""

    def __init__(self, task: Any) -> None:
        super().__init__()
        self.task = _with(task, nn.Identity(), nn.Identity(), _of_labels(task.criterion))

    def forward(self, outputs: tuple[Any, Tensor], target: Tensor) -> Tensor:
        student, teacher = (_Replayed(output) for output in outputs)
        task = _with(self.task, student, teacher, self.task.criterion)
        loss: Tensor = task(outputs[1], target)["loss"]
        return loss


def _with(task: Any, student: nn.Module, teacher: nn.Module, criterion: Any) -> Any:
    """A task like `task` with other parts; nothing of it is changed."""
    twin = copy.copy(task)
    parts = {_student_of(task): student, "teacher": teacher, "criterion": criterion}
    twin.__dict__["_modules"] = parts
    twin.__dict__.pop("criterion", None)
    return twin


def _student_of(task: Any) -> str:
    """What the task calls the part that is trained; the tasks of 1.0.25 differ in this."""
    return "trainable_module" if hasattr(task, "trainable_module") else "student"


class _Recorded(nn.Module):
    """A student or teacher, and what it gave."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.output: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.output = self.inner(*args, **kwargs)
        return self.output

    def normalize_input(self, *args: Any) -> Any:
        return self.inner.normalize_input(*args)  # type: ignore[operator]


class _Replayed(nn.Module):
    """A student or teacher that gives what it gave before."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.output

    def normalize_input(self, images: Tensor, *_: Any) -> Tensor:
        return images


class _Zero(nn.Module):
    """In place of a criterion whose value nobody reads."""

    def forward(self, output: Tensor, _: Tensor) -> Tensor:
        return output.new_zeros(())
