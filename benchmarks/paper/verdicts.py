"""What our runs say of the paper's claims, counted from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median

from benchmarks.paper.figures import STOPPED, Entry, compared

HERO = "gradmatch-pb-warm"
HERO_IMBALANCE = "gradmatch-warm"
FULL = "all data in full"

Runs = Mapping[str, Sequence[Entry]]  # by the label of their preset


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, and what each preset that was run says of it."""

    text: str
    seen: Callable[[Runs], Iterator[str]]


def against_all(runs: Runs) -> Iterator[str]:
    """Pairs that the recommended variant won."""
    rivals = ("random", "craig", "craig-pb", "glister", STOPPED)
    for label, found in runs.items():
        pairs = {pair.other: pair.differences for pair in compared(found, HERO)}
        counts = [f"{_won(pairs[other])} against {other}" for other in rivals if other in pairs]
        if len(counts) > 1 and "imbalance" not in label:
            yield f"`{label}`: `{HERO}` won {', '.join(counts)}"


def in_imbalance(runs: Runs) -> Iterator[str]:
    """Pairs won where classes were cut, and against all the data."""
    for label, found in runs.items():
        if "imbalance" in label and (pairs := compared(found, HERO_IMBALANCE)):
            others = [
                d for pair in pairs if pair.other not in (FULL, STOPPED) for d in pair.differences
            ]
            full = [d for pair in pairs if pair.other == FULL for d in pair.differences]
            yield (
                f"`{label}`: `{HERO_IMBALANCE}` won {_won(others)} against other methods, and "
                f"{_won(full)} against all data, with {mean(full):+.2f} points on average"
            )


def per_batch(runs: Runs) -> Iterator[str]:
    """Time of selections and points of mini-batches, against samples."""
    for label, found in runs.items():
        known = _by_cell(found)
        pairs = [
            (known[task, f"{method}-pb", fraction], entry)
            for (task, method, fraction), entry in known.items()
            if method in ("gradmatch", "craig") and (task, f"{method}-pb", fraction) in known
        ]
        if pairs:
            times = [a.selecting * a.seconds / (b.selecting * b.seconds) for a, b in pairs]
            points = mean(_difference(a, b) for a, b in pairs)
            yield (
                f"`{label}`: per batch selected in {median(times):.2f} × the time per sample, with "
                f"{points:+.2f} points on average"
            )


def warm(runs: Runs) -> Iterator[str]:
    """Points that the warm start adds, by budget."""
    for label, found in runs.items():
        known = _by_cell(found)
        gains: dict[float, list[float]] = {}
        for (task, method, fraction), entry in known.items():
            if other := known.get((task, f"{method}-warm", fraction)):
                gains.setdefault(fraction, []).append(_difference(other, entry))
        if gains and "ablations" not in label:
            told = (f"{mean(gains[f]):+.2f} at {100 * f:g} %" for f in sorted(gains))
            yield f"`{label}`: a warm start added, as a mean over methods, {', '.join(told)}"


def budget_or_frequency(runs: Runs) -> Iterator[str]:
    """Points and time of a larger subset chosen less often."""
    for label, found in runs.items():
        usual = _by_cell(found)
        told = []
        for (task, name, fraction), often in usual.items():
            method, _, value = name.partition(", ")
            larger = usual.get((task, method, 2 * fraction))
            if value == "R / 4" and larger is not None:
                took = larger.seconds / often.seconds
                told.append(
                    f"`{method}` {_difference(larger, often):+.2f} for {took:.1f} × the time"
                )
        if told:
            yield f"`{label}`: twice the subset with the usual R, against R / 4: {', '.join(told)}"


def smaller_models(runs: Runs) -> Iterator[str]:
    """What smaller networks lose and gain on all data, and the subset's on the larger one."""
    for label, found in runs.items():
        networks = [e for e in found if e.fraction == 1]
        subsets = [e for e in found if e.method == HERO]
        if networks and subsets:
            told = (
                f"{e.kind or f'`{e.method}` at {100 * e.fraction:g} %'} {e.told}"
                for e in (*networks, *subsets)
            )
            yield f"`{label}`: {'; '.join(told)}"


def ablated(runs: Runs) -> Iterator[str]:
    """Points and time of each other value of a parameter, against the usual one."""
    for label, found in runs.items():
        usual = _by_cell(found)
        changes: dict[str, list[str]] = {}
        for (task, name, fraction), entry in usual.items():
            method, _, value = name.partition(", ")
            if value and (before := usual.get((task, method, fraction))):
                told = f"`{method}` {_difference(entry, before):+.2f}"
                if value.startswith("R"):
                    told += f" for {entry.seconds / before.seconds:.1f} × the time"
                changes.setdefault(value, []).append(told)
        for value, each in changes.items():
            yield f"`{label}`: {value} in place of the usual, in points: {', '.join(each)}"


CLAIMS = (
    Claim(
        "§5: GRAD-MATCHPB-WARM outperforms random selection, all data stopped early, CRAIG, "
        "CRAIGPB and GLISTER (Wilcoxon signed-rank test, p = 0.01).",
        against_all,
    ),
    Claim(
        "§5, class imbalance: GRAD-MATCH-WARM outperforms all baselines, including all data on "
        "MNIST and, with 30 to 90 % of the classes cut, on CIFAR-10.",
        in_imbalance,
    ),
    Claim(
        "§5, ablations: per batch selects in half the time per sample with similar errors.",
        per_batch,
    ),
    Claim("§5, ablations: warm is better, most for small subsets.", warm),
    Claim(
        "§5, ablations: 10 % with R = 20 is as accurate as 5 % with R = 5, and more efficient.",
        budget_or_frequency,
    ),
    Claim(
        "§5, smaller models: GRAD-MATCHPB-WARM with ResNet-18 is more accurate than MobileNet and "
        "MobileNetV2 on all data, and faster.",
        smaller_models,
    ),
    Claim(
        "§5, ablations: R = 20 is more efficient than 5; κ = 1/2 and λ = 0.5 are best, λ = 0 is "
        "poor; a small ε (≤ 0.01) does not matter.",
        ablated,
    ),
)


def judged(runs: Runs) -> str:
    """The claims, what was seen of each below it."""
    lines = []
    for claim in CLAIMS:
        lines.append(f"- {claim.text}")
        lines += [f"    - {seen}." for seen in claim.seen(runs)] or ["    - Not run."]
    return "\n".join(lines)


def _by_cell(found: Sequence[Entry]) -> dict[tuple[str, str, float], Entry]:
    return {(e.task, e.method, e.fraction): e for e in found}


def _won(differences: Sequence[float]) -> str:
    return f"{sum(d > 0 for d in differences)} of {len(differences)}"


def _difference(entry: Entry, other: Entry) -> float:
    """Points, over the seeds that both have."""
    theirs = other.accuracy
    return mean(mine - theirs[seed] for seed, mine in entry.accuracy.items() if seed in theirs)
