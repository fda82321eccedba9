"""GLISTER against its definition: a real layer, moved, and its real validation loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from adaptive_subset import GLISTER, Candidates, Selector

N, M, FEATURES = 36, 20, 6


def sets(classes: int | None) -> tuple[TensorDataset, TensorDataset]:
    """Training and validation data, with labels or with real targets."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for n in (N, M):
        x = torch.randn(n, FEATURES, generator=generator, dtype=torch.float64)
        real = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        made.append(TensorDataset(x, torch.arange(n) % classes if classes else real))
    return made[0], made[1]


def net(outputs: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


def written_out(
    model: nn.Sequential,
    criterion: nn.Module,
    train: TensorDataset,
    validation: TensorDataset,
    budget: int,
    lr: float,
    picks: int,
) -> list[int]:
    """One pick at a time, by autograd on a copy of the last layer that really moves."""
    head, body = model[-1], model[:-1]
    assert isinstance(head, nn.Linear)

    def gradient(data: TensorDataset, index: Any, weight: Tensor, bias: Tensor) -> Tensor:
        x, y = data[index]
        w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        loss = criterion(body(x).detach() @ w.T + b, y)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, (w, b))])

    start = torch.cat([head.weight.detach().flatten(), head.bias.detach()])
    size = head.weight.numel()

    def at(theta: Tensor) -> tuple[Tensor, Tensor]:
        return theta[:size].view_as(head.weight), theta[size:]

    own = [gradient(train, slice(i, i + 1), *at(start)) for i in range(len(train))]
    chosen: list[int] = []
    toward = torch.zeros(0)
    for pick in range(budget):
        if pick % picks == 0:
            theta = start.clone()
            if chosen:
                theta -= lr * torch.stack([own[j] for j in chosen]).mean(0)
            toward = gradient(validation, slice(None), *at(theta))
        gains = [-float("inf") if i in chosen else float(g @ toward) for i, g in enumerate(own)]
        chosen.append(gains.index(max(gains)))
    return chosen


@pytest.mark.parametrize(("refreshes", "picks"), [(12, 1), (4, 3), (1, 12)])
@pytest.mark.parametrize("lr", [0.05, 5.0])
@pytest.mark.parametrize("task", ["labels", "regression"])
@pytest.mark.parametrize("validated", [True, False])
def test_picks_are_those_of_the_definition(
    refreshes: int, picks: int, lr: float, task: str, validated: bool
) -> None:
    train, validation = sets(3 if task == "labels" else None)
    model, criterion = (
        (net(3), nn.CrossEntropyLoss()) if task == "labels" else (net(2), nn.MSELoss())
    )
    selector = Selector(
        train,
        GLISTER(lr=lr, refreshes=refreshes, scope="global"),
        budget=12,
        criterion=criterion,
        validation=validation if validated else None,
    )
    selection = selector.select(model, 0)
    if task == "regression":
        lr *= 2  # MSELoss is a mean over outputs too, the loss of a sample is their sum
    target = validation if validated else train
    expected = written_out(model, criterion, train, target, 12, lr, picks)
    assert selection.indices.tolist() == expected
    assert torch.equal(selection.weights, torch.full((12,), N / 12))


@pytest.mark.parametrize("refreshes", [1, 2, 5, 20, 38, 39, 60])
@pytest.mark.parametrize("budget", [1, 2, 7, 36])
def test_the_gradient_is_computed_no_more_often_than_it_may_be(
    refreshes: int, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [0]
    moved = Candidates.target_after

    def counted(self: Candidates, step: Tensor) -> Tensor:
        steps[0] += 1
        return moved(self, step)

    monkeypatch.setattr(Candidates, "target_after", counted)
    strategy = GLISTER(refreshes=refreshes, scope="global")
    options: dict[str, Any] = {"budget": budget, "criterion": nn.CrossEntropyLoss()}
    Selector(sets(3)[0], strategy, **options).select(net(3), 0)
    computed = 1 + steps[0]  # the first is that of the model as it stands
    assert computed <= min(refreshes, budget)
    assert computed == -(-budget // -(-budget // refreshes))  # as often as equal steps allow


def test_the_step_changes_the_picks() -> None:
    """A validation gradient that is never computed anew would not see what is chosen already."""
    train, validation = sets(3)
    chosen = []
    for refreshes in (1, 12):
        strategy = GLISTER(lr=5.0, refreshes=refreshes, scope="global")
        options: dict[str, Any] = {"budget": 12, "criterion": nn.CrossEntropyLoss()}
        selector = Selector(train, strategy, validation=validation, **options)
        chosen.append(set(selector.select(net(3), 0).indices.tolist()))
    assert chosen[0] != chosen[1]


def test_each_class_is_chosen_for_by_itself() -> None:
    train, validation = sets(3)
    options: dict[str, Any] = {"budget": 12, "criterion": nn.CrossEntropyLoss()}
    selector = Selector(train, GLISTER(), validation=validation, **options)
    indices = selector.select(net(3), 0).indices.tolist()
    for label in range(3):
        own, held_out = (TensorDataset(*data[label::3]) for data in (train, validation))
        criterion = nn.CrossEntropyLoss()
        picks = written_out(net(3), criterion, own, held_out, 4, lr=5.0, picks=1)
        assert [i for i in indices if i % 3 == label] == [label + 3 * i for i in picks]


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = net(3)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.inner(x)


def test_a_model_that_goes_on_behind_its_last_layer_is_refused() -> None:
    train, _ = sets(3)
    selector = Selector(train, "glister", budget=12, criterion=nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match="`model` must return the output of its one last layer"):
        selector.select(Scaled(), 0)


class Clamp(nn.Module):
    """Changes what leaves its last layer where that is large."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(FEATURES, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).clamp(-2, 2)


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), lambda o, t: o.logsumexp(1).mean()])
@pytest.mark.parametrize("large", [None, 0, 4, N - 1])
def test_a_model_that_goes_on_for_some_samples_only_is_refused(
    criterion: Any, large: int | None
) -> None:
    x, y = sets(3)[0].tensors
    x = 0.1 * x
    if large is not None:
        x[large] *= 1e3
    data = TensorDataset(x, y)
    selector = Selector(data, "glister", budget=12, criterion=criterion, batch_size=4)
    if large is None:
        selector.select(Clamp(), 0)
        return
    with pytest.raises(ValueError, match="`model` must return the output of its one last layer"):
        selector.select(Clamp(), 0)


def test_what_gradients_are_stored_in_is_not_what_the_criterion_sees() -> None:
    train, _ = sets(3)
    data = TensorDataset(train.tensors[0].float(), train.tensors[1])
    weighed = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]))
    options: dict[str, Any] = {"budget": 12, "criterion": weighed}
    wide = Selector(data, "glister", storage_dtype=torch.float64, **options)
    expected = Selector(data, "glister", **options).select(net(3).float(), 0)
    assert torch.equal(wide.select(net(3).float(), 0).indices, expected.indices)


def test_a_step_after_which_the_loss_overflows_is_refused() -> None:
    x = 5 * torch.randn(40, FEATURES, generator=torch.Generator().manual_seed(0))
    counts = TensorDataset(x, torch.arange(40.0)[:, None] % 7)
    options: dict[str, Any] = {"budget": 12, "criterion": nn.PoissonNLLLoss()}
    with pytest.raises(ValueError, match=r"`lr` must be so small that .*, got 5\.0\."):
        Selector(counts, GLISTER(), **options).select(nn.Linear(FEATURES, 1), 0)
    for strategy in (GLISTER(lr=1e-6), GLISTER(refreshes=1)):
        Selector(counts, strategy, **options).select(nn.Linear(FEATURES, 1), 0)


def test_batches_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    train, _ = sets(3)
    options: dict[str, Any] = {"budget": 12, "criterion": nn.CrossEntropyLoss()}
    whole = Selector(train, "glister", **options).select(net(3), 0)
    monkeypatch.setattr("adaptive_subset.gradients.look_ahead._ROWS", 5)
    pool = DataLoader(train, batch_size=7)
    parts = Selector(train, "glister", pool=pool, **options).select(net(3), 0)
    assert torch.equal(whole.indices, parts.indices)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0.0}, r"`lr` must be above 0, got 0.0"),
        ({"refreshes": 0}, r"`refreshes` must be at least 1, got 0"),
        ({"scope": "per-gradient"}, r"`scope` must be \"per-class\" or \"global\""),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GLISTER(**arguments)
