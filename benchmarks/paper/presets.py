"""What the paper's figures train: tasks, variants and budgets, and twins that fit two cores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from adaptive_subset import CRAIG, CRAIGPB, GLISTER, FreshRandom, GradMatch, GradMatchPB, OrderDP
from benchmarks.arena import data, networks
from benchmarks.arena.data import Data
from benchmarks.arena.methods import Method
from benchmarks.arena.race import ALL
from benchmarks.arena.results import Cell
from benchmarks.arena.tasks import Task, crop_and_flip

RATE = 0.01
KAPPA = 0.5
PERIODS = {"mnist": 10, "imagenet": 17}  # T / R with R = 20 epochs; 15 where T is 300


@dataclass(frozen=True)
class Heat:
    """Methods that train on a task with a budget; all data at full length belong to each task.

    Args:
        about: what this heat varies.
        beside: the task whose training on all data it is compared with, where that is another.
    """

    task: str
    fraction: float
    methods: tuple[str, ...]
    about: str = ""
    beside: str = ""

    @property
    def full(self) -> str:
        """The task whose training on all data it is compared with."""
        return self.beside or self.task


@dataclass(frozen=True)
class Preset:
    """One command's experiments.

    Args:
        figure: of the paper.
        tasks, methods: all that the heats name.
        heats: what is run, beside training on all data of each task.
        note: of a small twin, how it differs; else what the paper leaves open.
    """

    figure: str
    tasks: Mapping[str, Task]
    methods: Mapping[str, Method]
    heats: Sequence[Heat]
    note: str


def with_bf16(preset: Preset) -> Preset:
    """The same under autocast, other cells than those in float32."""
    tasks = {name: replace(task, precision="bfloat16") for name, task in preset.tasks.items()}
    return replace(preset, tasks=tasks)


def variants(periods: int, kappa: float = KAPPA, reference: bool = False) -> dict[str, Method]:
    """The paper's, each from the start and warm, then what this library would do.

    Args:
        periods: selections of a run that is not warm, T / R.
        reference: gradients are matched to those of the validation set, where a method can. GLISTER
            always does: it is what it is.
    """
    cold = {
        "random": Method(lambda plan: FreshRandom(), selections=1),
        "gradmatch": Method(lambda plan: GradMatch(), periods, reference=reference),
        "gradmatch-pb": Method(
            lambda plan: GradMatchPB(batch_size=plan.batch_size), periods, reference=reference
        ),
        "craig": Method(lambda plan: CRAIG(), periods),
        "craig-pb": Method(lambda plan: CRAIGPB(batch_size=plan.batch_size), periods),
        "glister": Method(lambda plan: GLISTER(), periods, reference=True),
    }
    warm = {f"{name}-warm": replace(method, warm_start=kappa) for name, method in cold.items()}
    return {ALL: Method(None), "order-dp": Method(lambda plan: OrderDP()), **cold, **warm}


def ablations(periods: int) -> dict[str, dict[str, Method]]:
    """By parameter, all values of it; the defaults go by their usual names."""
    usual = variants(periods)
    chosen = ("gradmatch", "gradmatch-pb", "craig", "craig-pb", "glister")
    found: dict[str, dict[str, Method]] = {"R": {name: usual[name] for name in chosen}}
    for share in (2, 4):  # R = 10 and 5 where it is 20
        found["R"] |= {
            f"{name}, R / {share}": replace(usual[name], selections=share * periods)
            for name in chosen
        }
    both = ("gradmatch", "gradmatch-pb")
    found["κ"] = {name: usual[name] for name in (*both, *(f"{name}-warm" for name in both))}
    for kappa in (0.25, 0.75):
        found["κ"] |= {
            f"{name}-warm, κ {kappa:g}": replace(usual[name], warm_start=kappa) for name in both
        }
    found["λ"] = {name: usual[name] for name in both}
    for lam in (0.0, 0.1, 1.0, 10.0):
        found["λ"] |= _matching(usual, f"λ {lam:g}", lam=lam)
    found["ε"] = {name: usual[name] for name in both}
    for epsilon in (1e-4, 1e-2, 1e-1):
        found["ε"] |= _matching(usual, f"ε {epsilon:g}", epsilon=epsilon)
    return found


def _matching(usual: Mapping[str, Method], label: str, **changed: Any) -> dict[str, Method]:
    def batches(plan):
        return GradMatchPB(batch_size=plan.batch_size, **changed)

    return {
        f"gradmatch, {label}": replace(usual["gradmatch"], strategy=lambda _: GradMatch(**changed)),
        f"gradmatch-pb, {label}": replace(usual["gradmatch-pb"], strategy=batches),
    }


_MNIST = Task(
    partial(data.with_tenth, "mnist"),
    networks.lenet,
    about="MNIST, LeNet, 54,000 images",
    epochs=200,
    rates=(RATE,),
    schedule="cosine",
    reference=True,
    points=10,
    points_full=200,
)
_CIFAR10 = replace(
    _MNIST,
    load=partial(data.with_tenth, "cifar10"),
    network=partial(networks.resnet18, 10),
    about="CIFAR-10, ResNet-18, crop and flip, 45,000 images",
    epochs=300,
    augment=crop_and_flip,
    points_full=300,
)
TASKS = {
    "mnist": _MNIST,
    "cifar10": _CIFAR10,
    "cifar100": replace(
        _CIFAR10,
        load=partial(data.with_tenth, "cifar100"),
        network=partial(networks.resnet18, 100),
        about="CIFAR-100, ResNet-18, crop and flip, 45,000 images",
    ),
    "svhn": replace(
        _CIFAR10,
        load=partial(data.with_tenth, "svhn"),
        about="SVHN, ResNet-18, 65,932 images",
        augment=None,
    ),
    "imagenet": replace(
        _CIFAR10,
        load=partial(data.with_tenth, "imagenet"),
        network=partial(networks.resnet18, 1000),
        about="ImageNet in a small size, ResNet-18, crop and flip",
        epochs=350,
        points_full=350,
    ),
    "mnist-small": replace(
        _MNIST,
        load=partial(data.with_tenth, "mnist", few=10_000),
        about="MNIST, LeNet, 9,000 images",
        epochs=20,
        batch_size=32,
        points=2,
        points_full=40,
    ),
    "cifar10-small": replace(
        _CIFAR10,
        load=partial(data.with_tenth, "cifar10", few=5_000),
        network=networks.small_resnet,
        about="CIFAR-10, residual network of width 16, crop and flip, 4,500 images",
        epochs=20,
        batch_size=32,
        points=2,
        points_full=40,
    ),
}
TASKS["mnist-batches-of-20"] = replace(
    _MNIST, about="MNIST, LeNet, 54,000 images, batches of 20", batch_size=20
)
TASKS["cifar10-brief"] = replace(_CIFAR10, epochs=20, points=2, points_full=20)
for _name in ("mnist", "cifar10", "mnist-small", "cifar10-small"):
    for _percent in (30, 60, 90):

        def _cut(
            source: Path, cache: Path, task: Task = TASKS[_name], share: float = _percent / 100
        ) -> Data:
            return data.map_train(partial(data.cut_classes, share), task.load(source, cache))

        TASKS[f"{_name}-imbalance-{_percent}"] = replace(
            TASKS[_name],
            load=_cut,
            about=f"{TASKS[_name].about}, of which {_percent} % of the classes keep a tenth",
        )
SMALLER = {
    "cifar10": {
        "MobileNet": partial(networks.mobilenet_v1, 10),
        "MobileNetV2": partial(networks.mobilenet_v2, 10),
    },
    "cifar10-small": {
        "width 8": partial(networks.small_resnet, 8),
        "width 4": partial(networks.small_resnet, 4),
    },
}
for _name, _networks in SMALLER.items():
    for _words, _network in _networks.items():
        TASKS[f"{_name}, {_words}"] = replace(
            TASKS[_name], network=_network, about=f"{TASKS[_name].about}; here {_words}"
        )
for _name in ("cifar100", "mnist-small"):
    _more = round(TASKS[_name].epochs / 6)  # 50 of 300
    TASKS[f"{_name}-extended"] = replace(TASKS[_name], epochs=TASKS[_name].epochs + _more)

_OPEN = "Batches are of 128, and the paper's text names no augmentation."
_SMALL = {
    "mnist": "10,000 images for 60,000, 20 epochs for 200 and R = 4 for 20 (5 selections a run for "
    "10), batches of 32 for 128.",
    "cifar10": "5,000 images for 50,000, 20 epochs for 300 and R = 4 for 20 (5 selections a run "
    "for 15), batches of 32 for 128, a network of width 16 for ResNet-18; 10 and 30 % only.",
}


def _tradeoff(figure: str, task: str, fractions: Sequence[float], note: str) -> Preset:
    methods = variants(_periods(task))
    heats = [Heat(task, fraction, tuple(methods)) for fraction in fractions]
    return Preset(figure, {task: TASKS[task]}, methods, heats, note)


def _periods(task: str) -> int:
    name = task.partition("-")[0]
    return 5 if task.endswith(("-small", "-brief")) else PERIODS.get(name, 15)


def _imbalance(task: str, figure: str, fractions: Sequence[float], note: str) -> Preset:
    methods = variants(_periods(task), reference=True)
    tasks = {name: TASKS[name] for name in (f"{task}-imbalance-{p}" for p in (30, 60, 90))}
    heats = [Heat(name, fraction, tuple(methods)) for name in tasks for fraction in fractions]
    return Preset(figure, tasks, methods, heats, note)


def _ablation(task: str, note: str) -> Preset:
    found = ablations(_periods(task))
    budgets = {"R": 0.05, "κ": 0.1, "λ": 0.1, "ε": 0.1}
    heats = [Heat(task, budgets[name], tuple(m), f"By {name}") for name, m in found.items()]
    usual = tuple(name for name in found["R"] if "," not in name)
    heats.insert(1, Heat(task, 0.1, usual, "With the usual R"))
    every = {name: method for methods in found.values() for name, method in methods.items()}
    return Preset("4a–4g", {task: TASKS[task]}, {ALL: Method(None), **every}, heats, note)


def _extended(task: str, note: str) -> Preset:
    methods = variants(_periods(task))
    longer = f"{task}-extended"
    # All data at full length are those of the shorter task.
    ours, epochs = ("gradmatch-pb-warm",), f"{TASKS[longer].epochs} epochs"
    heats = [Heat(task, 0.3, ours), Heat(longer, 0.3, ours, epochs, beside=task)]
    return Preset("3k", {task: TASKS[task], longer: TASKS[longer]}, methods, heats, note)


def _smaller(task: str, fractions: Sequence[float], note: str) -> Preset:
    methods, ours = variants(_periods(task)), ("gradmatch-pb-warm", "order-dp")
    heats = [Heat(task, fraction, ours) for fraction in fractions]
    heats += [Heat(f"{task}, {words}", 1.0, (ALL,), words, task) for words in SMALLER[task]]
    tasks = {name: TASKS[name] for name in (task, *(heat.task for heat in heats))}
    return Preset("3l", tasks, methods, heats, note)


PRESETS = {
    "mnist": _tradeoff(
        "3b", "mnist", (0.01, 0.03, 0.05, 0.1),
        f"{_OPEN} That leaves four steps an epoch at 1 %, and four mini-batches to choose; by "
        "batches of 20, below, less is lost there.",
    ),
    "mnist-batches-of-20": _tradeoff(
        "3b", "mnist-batches-of-20", (0.01, 0.1),
        "Batches of 20, which the authors' own CORDS takes with the paper's settings on CIFAR-10: "
        "six times as many steps as with 128, and as many mini-batches to choose from.",
    ),
    "cifar10": _tradeoff("3c, 3h", "cifar10", (0.05, 0.1, 0.2, 0.3), _OPEN),
    "cifar10-brief": _tradeoff(
        "3c, 3h", "cifar10-brief", (0.1, 0.2, 0.3),
        "20 epochs for 300 and R = 4 for 20 (5 selections a run for 15): minutes of a GPU.",
    ),
    "cifar100": _tradeoff("3a, 3i, 3j, 4d", "cifar100", (0.05, 0.1, 0.2, 0.3), _OPEN),
    "svhn": _tradeoff("3d", "svhn", (0.05, 0.1, 0.2, 0.3), _OPEN),
    "imagenet": _tradeoff(
        "3e", "imagenet", (0.05, 0.1, 0.3),
        "Only with a folder of yours, whose images have all one small size and fit into memory.",
    ),
    "mnist-imbalance": _imbalance("mnist", "3g", (0.1, 0.3), _OPEN),
    "cifar10-imbalance": _imbalance("cifar10", "3f, 4e", (0.1, 0.3), _OPEN),
    "ablations": _ablation("cifar100", f"{_OPEN} λ on CIFAR-100 and not on CIFAR-10."),
    "extended": _extended("cifar100", _OPEN),
    "smaller": _smaller("cifar10", (0.1, 0.2, 0.3), _OPEN),
}  # fmt: skip
SMALL = {
    "mnist": _tradeoff(
        "3b",
        "mnist-small",
        (0.03, 0.05, 0.1),
        f"{_SMALL['mnist']} Not 1 %: three steps an epoch train nothing at this rate.",
    ),
    "cifar10": _tradeoff("3c", "cifar10-small", (0.1, 0.3), _SMALL["cifar10"]),
    "mnist-imbalance": _imbalance("mnist-small", "3g", (0.3,), _SMALL["mnist"]),
    "cifar10-imbalance": _imbalance("cifar10-small", "3f, 4e", (0.3,), _SMALL["cifar10"]),
    "ablations": _ablation("mnist-small", f"MNIST for CIFAR-100; {_SMALL['mnist']}"),
    "extended": _extended("mnist-small", f"MNIST for CIFAR-100; {_SMALL['mnist']}"),
    "smaller": _smaller(
        "cifar10-small",
        (0.1, 0.3),
        f"Networks of width 8 and 4 for MobileNet and MobileNetV2; {_SMALL['cifar10']}",
    ),
}


def chosen(name: str, small: bool, bf16: bool) -> Preset:
    """A preset, or its small twin."""
    preset = (SMALL if small else PRESETS)[name]
    return with_bf16(preset) if bf16 else preset


def of_cell(name: str, small: bool, bf16: bool, cell: Cell) -> tuple[Task, Method]:
    """The recipe of a cell of `chosen`."""
    preset = chosen(name, small, bf16)
    return preset.tasks[cell.task], preset.methods[cell.method]
