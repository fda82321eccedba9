"""What the paper prints of its own runs (Killamsetty et al., GRAD-MATCH, ICML 2021).

Copied by hand from the main text, which gives these figures only; the points of its plots are not
read off, and the tables of its appendix C are not at hand.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Printed:
    """One result against training on all data.

    Args:
        where: in the paper.
        task: as in `benchmarks.paper.presets`.
        fraction: the budget; None where the text does not say.
        speedup: how many times faster.
        lost: points of test accuracy.
    """

    where: str
    task: str
    method: str
    fraction: float | None
    speedup: float
    lost: float


_PB = "gradmatch-pb-warm"
_SPEEDUPS = '§5, "Speedups and energy gains"'
PRINTED = (
    Printed("§1.1, the smallest subset", "mnist", _PB, 0.01, 27, 0.35),
    Printed("§1.1, the largest subset", "mnist", _PB, 0.1, 12, 0.05),
    Printed(_SPEEDUPS, "cifar10", _PB, 0.1, 7, 2.8),
    Printed(_SPEEDUPS, "cifar10", _PB, 0.2, 4.2, 1.5),
    Printed(_SPEEDUPS, "cifar10", _PB, 0.3, 3, 0.9),
    Printed(_SPEEDUPS, "cifar100", _PB, None, 4.8, 2.1),
    Printed(_SPEEDUPS, "cifar100", _PB, None, 3, 0.7),
    Printed(_SPEEDUPS, "imagenet", _PB, 0.3, 3, 1.3),
    Printed('§5, "Convergence", 50 epochs more', "cifar100-extended", _PB, 0.3, 2.5, 0),
    Printed("§5, smaller models", "cifar10, MobileNetV2", "full-short", 1, 2, 1),
)
