"""Weights through timm's collate functions, mixup, losses and distillation tasks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from adaptive_subset.integrations import timm_objective, timm_weights
from timm import task
from timm.data import FastCollateMixup, Mixup
from timm.data.loader import fast_collate
from timm.loss import (
    BinaryCrossEntropy,
    JsdCrossEntropy,
    LabelSmoothingCrossEntropy,
    SoftTargetCrossEntropy,
)
from torch import nn

from adaptive_subset import Selector, WeightedTarget


@pytest.mark.parametrize("mode", ["batch", "pair", "elem", "half"])
@pytest.mark.parametrize("prefetcher", [True, False])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_weights(mode, prefetcher, kind):
    n, c = 8, 10
    options = {f"{kind}_alpha": 1.0, "mode": mode, "num_classes": c, "label_smoothing": 0.1}
    options.setdefault("mixup_alpha", 0.0)
    images = torch.randint(0, 256, (n, 3, 12, 12), dtype=torch.uint8)
    labels = torch.randperm(c)[:n]
    weights = torch.rand(n) + 0.1
    if prefetcher:
        plain = FastCollateMixup(**options)
        ours = timm_weights.weighted_collate(plain)
        batch = [(image.numpy(), int(label)) for image, label in zip(images, labels, strict=True)]
        tagged = [
            (image, WeightedTarget(torch.tensor(label), float(weight)))
            for (image, label), weight in zip(copy.deepcopy(batch), weights, strict=True)
        ]
        calls = [lambda: plain(batch), lambda: ours(tagged)]
    else:
        plain = Mixup(**options)
        ours = timm_weights.WeightedMixup(plain)
        x, y = images.float(), WeightedTarget(labels, weights)
        calls = [lambda: plain(x.clone(), labels), lambda: ours(x.clone(), y)]
    np.random.seed(0)
    expected, soft = calls[0]()
    np.random.seed(0)
    mixed, target = calls[1]()
    assert torch.equal(mixed, expected)
    torch.testing.assert_close(target.plain(), soft)
    # All labels differ, so the share of a sample can be read off its own class.
    m = len(soft)
    share = (soft[range(m), labels[:m]] - 0.1 / c).float() / 0.9
    torch.testing.assert_close(
        target.weights, share * weights[:m] + (1 - share) * weights.flip(0)[:m]
    )
    ours.mixup_enabled = False
    _, target = calls[1]()
    torch.testing.assert_close(target.weights, weights[:m])


LOSSES = {
    "label smoothing": (LabelSmoothingCrossEntropy(0.1), "labels"),
    "cross-entropy": (nn.CrossEntropyLoss(), "labels"),
    "soft targets": (SoftTargetCrossEntropy(), "soft"),
    "bce": (BinaryCrossEntropy(0.1), "labels"),
    "bce soft": (BinaryCrossEntropy(), "soft"),
    "bce sum": (BinaryCrossEntropy(0.1, sum_classes=True), "labels"),
    "bce sum soft": (BinaryCrossEntropy(sum_classes=True), "soft"),
    "bce threshold": (BinaryCrossEntropy(target_threshold=0.2, pos_weight=2.0), "soft"),
    "jsd": (JsdCrossEntropy(3, smoothing=0.1), "splits"),
    "jsd, no smoothing": (JsdCrossEntropy(2, smoothing=0.0), "splits"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_weighted_losses_have_the_weighted_gradient(name):
    loss, kind = LOSSES[name]
    n, c = 6, 5
    splits = loss.num_splits if kind == "splits" else 1
    output = torch.randn(splits * n, c, dtype=torch.float64, requires_grad=True)
    labels, weights = torch.randint(0, c, (n,)), torch.rand(n)
    target = torch.rand(n, c, dtype=torch.float64) if kind == "soft" else labels.repeat(splits)
    value = timm_objective.weighted(loss)(output, WeightedTarget(target, weights.repeat(splits)))
    rows = [list(range(i, splits * n, n)) for i in range(n)]  # the views of a sample
    expected = sum(w * loss(output[r], target[r]) for w, r in zip(weights, rows, strict=True)) / n
    torch.testing.assert_close(value, expected)
    gradients = [torch.autograd.grad(v, output)[0] for v in (value, expected)]
    torch.testing.assert_close(*gradients)
    ones = WeightedTarget(target, torch.ones(splits * n))
    torch.testing.assert_close(timm_objective.weighted(loss)(output, ones), loss(output, target))


def test_augmentation_splits_share_the_weight_of_their_sample():
    batch = [((np.zeros((3, 2, 2), np.uint8),) * 3, 2), ((np.ones((3, 2, 2), np.uint8),) * 3, 1)]
    tagged = [(x, WeightedTarget(torch.tensor(y), 0.5 * y, 10 * y)) for x, y in batch]
    x, target = timm_weights.weighted_collate(fast_collate)(tagged)
    assert torch.equal(x, fast_collate(batch)[0])
    assert target.tolist() == [2, 1] * 3
    assert target.weights.tolist() == [1.0, 0.5] * 3
    assert target.sample_indices.tolist() == [20, 10] * 3


def test_matching_uses_the_loss_of_unmixed_labels():
    output, labels = torch.randn(6, 4), torch.randint(0, 4, (6,))
    mixup = Mixup(num_classes=4, label_smoothing=0.1)
    loss = timm_objective.selection_loss(SoftTargetCrossEntropy(), mixup)
    torch.testing.assert_close(
        loss(output, labels), LabelSmoothingCrossEntropy(0.1)(output, labels)
    )
    jsd = timm_objective.selection_loss(JsdCrossEntropy(3, smoothing=0.0), None)
    torch.testing.assert_close(jsd(output, labels), nn.CrossEntropyLoss()(output, labels))


class Student(nn.Module):
    """What timm's tasks ask of a model, with two heads for a token task."""

    num_classes, in_chans, num_features = 5, 3, 6

    def __init__(self):
        super().__init__()
        self.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
        self.body, self.head, self.token = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(6, 5)
        self.distilled = False

    def set_distilled_training(self, enable):
        self.distilled = enable

    def forward_features(self, x):
        return self.body(x.mean((2, 3))).tanh()

    def forward_head(self, x, pre_logits=False):
        return x if pre_logits else self.head(x)

    def forward(self, x):
        features = self.forward_features(x)
        return (
            (self.head(features), self.token(features)) if self.distilled else self.head(features)
        )


DISTILLATIONS = {
    "logit": (task.LogitDistillationTask, {"temperature": 3.0, "task_loss_weight": 0.3}),
    "feature": (task.FeatureDistillationTask, {"distill_loss_weight": 5.0}),
    "token": (task.TokenDistillationTask, {"temperature": 2.0, "distill_loss_weight": 0.7}),
    "hard token": (task.TokenDistillationTask, {"distill_type": "hard"}),
}


@pytest.mark.parametrize("name", DISTILLATIONS)
@pytest.mark.parametrize("loss", [LabelSmoothingCrossEntropy(0.1), BinaryCrossEntropy(0.1)])
def test_weighted_distillation_has_the_weighted_gradient(name, loss):
    kind, options = DISTILLATIONS[name]
    student, teacher = Student(), Student()
    plain = kind(student, teacher, loss, verbose=False, **options)
    parts = dict(plain.named_modules())
    images, labels = torch.randn(6, 3, 4, 4), torch.randint(0, 5, (6,))
    weights = torch.rand(6)
    data = list(zip(images, labels.tolist(), strict=True))
    selector = Selector(data, "order-dp", budget=3)
    ours = timm_objective.WeightedDistillation(plain, selector)
    value = ours(images, WeightedTarget(labels, weights, torch.arange(6)))["loss"]
    losses = [plain(images[i : i + 1], labels[i : i + 1])["loss"] for i in range(6)]
    expected = sum(w * each for w, each in zip(weights, losses, strict=True)) / 6
    torch.testing.assert_close(value, expected)
    trained = [p for p in plain.trainable_module.parameters() if p.requires_grad]
    gradients = [
        torch.autograd.grad(v, trained, allow_unused=True, retain_graph=True)
        for v in (value, expected)
    ]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(selector.losses.values, torch.stack(losses).detach())
    assert ours.get_trainable_module() is plain.trainable_module
    assert dict(plain.named_modules()) == parts
    assert plain.criterion is loss


def test_views_with_a_teacher_are_refused():
    jsd = task.LogitDistillationTask(Student(), Student(), JsdCrossEntropy(3), verbose=False)
    with pytest.raises(ValueError, match="--jsd-loss cannot go with --kd-model-name"):
        timm_objective.WeightedDistillation(jsd)


@pytest.mark.parametrize("name", ["student", "trainable_module"])
def test_a_task_may_call_its_student_either_way(name):
    class Task(nn.Module):
        def __init__(self):
            super().__init__()
            setattr(self, name, nn.Linear(2, 3))
            self.teacher, self.criterion = nn.Linear(2, 3), nn.CrossEntropyLoss()

        def forward(self, images, target):
            output = getattr(self, name)(images)
            loss = self.criterion(output, target) + (output - self.teacher(images)).square().mean()
            return {"loss": loss, "output": output}

    own, images, labels = Task(), torch.randn(3, 2), torch.tensor([0, 1, 2])
    target = WeightedTarget(labels, torch.tensor([0.5, 1.0, 2.0]))
    each = [own(images[i : i + 1], labels[i : i + 1])["loss"] for i in range(3)]
    expected = (0.5 * each[0] + each[1] + 2.0 * each[2]) / 3
    torch.testing.assert_close(
        timm_objective.WeightedDistillation(own)(images, target)["loss"], expected
    )
