"""Run every benchmark; write docs/benchmarks.md, and tables elsewhere, from what was measured.

    python -m benchmarks --mnist mnist --cifar10 cifar10

About an hour on two cores. Each benchmark leaves its raw figures, with the machine and versions, in
benchmarks/results/; what is there is not measured again: delete a file to repeat it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import measure, tables

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"

Rows = list[measure.Row]


@dataclass(frozen=True)
class Goal:
    """A figure to reach.

    Args:
        words: what it is.
        figure: found in the rows.
        sign, limit: whether it must be at least or at most that.
        floor: found in the same rows, what doing nothing at all would cost.
    """

    words: str
    figure: Callable[[Rows], float]
    sign: str
    limit: float
    floor: Callable[[Rows], float] | None = None

    def row(self, rows: Rows) -> str:
        value = self.figure(rows)
        met = value >= self.limit if self.sign == "≥" else value <= self.limit
        verdict = "" if met else "missed"
        if self.floor is not None:
            verdict += f"{', ' if verdict else ''}floor {self.floor(rows):.3g}"
        return f"| {self.words} | {value:.3g} | {self.sign} {self.limit:g} | {verdict} |"


@dataclass(frozen=True)
class Benchmark:
    """One section of the page.

    Args:
        name: of the file in benchmarks/results.
        command: module and arguments; {mnist} and {cifar10} are filled in.
        title, text: of the section.
        goals: what it should reach.
        image: of the plot, in docs/.
        threads: of torch and BLAS; None for as many as there are.
    """

    name: str
    command: str
    title: str
    text: str
    goals: tuple[Goal, ...] = ()
    image: str | None = None
    threads: int | None = None


def pick(key: str, **where: Any) -> Callable[[Rows], float]:
    """The figure `key` of the first row that has the values of `where`."""

    def figure(rows: Rows) -> float:
        found = [r for r in rows if all(r.get(name) == value for name, value in where.items())]
        return float(found[0][key])

    return figure


SELECTION = tuple(
    Goal(
        f"MNIST, {100 * fraction:g} %, {name}: times an inference pass",
        pick("ratio", fraction=fraction, strategy=name, storage="float32"),
        "≤",
        limit,
        floor=pick("ratio", fraction=fraction, strategy="First"),
    )
    for fraction, limit in ((0.1, 1.25), (0.01, 1.1))
    for name in ("GradMatch", "GradMatchPB")
)
DEVICE = tuple(
    Goal(
        f"ResNet-18 on a GPU, {what}: times {peer}",
        pick("ratio", task="CIFAR-10, resnet18", what=what),
        "≤",
        limit,
    )
    for what, peer, limit in (
        *(
            (f"{name}, {share} %", "a bare inference pass", 1.1)
            for share in (10, 30)
            for name in ("GradMatchPB", "GLISTER", "GradMatch", "CRAIG")
        ),
        ("a weighted step", "a plain one", 1.02),
    )
)
STEP = (Goal("LeNet on MNIST: times the plain epoch", pick("ratio"), "≤", 1.1),)


def all_threads(goals: tuple[Goal, ...]) -> tuple[Goal, ...]:
    return tuple(replace(goal, words=f"{goal.words}, all threads") for goal in goals)


SIGNED, NONNEGATIVE = {"solver": "signed, float64"}, {"solver": "non-negative"}
BENCHMARKS = [
    Benchmark(
        "omp",
        "benchmarks.omp --data {mnist}",
        "Matching pursuit against scikit-learn",
        "Gradients of the class 3 of MNIST (LeNet after an epoch): 6,131 atoms of 85 numbers. The "
        "peer is `orthogonal_mp_gram` on G + λI, with the making of G; ours needs none. "
        "`of clipped` and `of NNLS`: the objective as a share of that of the signed solution with "
        "its negative weights set to zero, and of scipy's `nnls` on the same support.",
        (
            Goal("OMP, k = 62: times faster", pick("times faster", k=62, **SIGNED), "≥", 20),
            Goal("OMP, k = 614: times faster", pick("times faster", k=614, **SIGNED), "≥", 30),
            Goal("OMP, k = 1,840: times faster", pick("times faster", k=1840, **SIGNED), "≥", 60),
            *(
                Goal(
                    f"non-negative, k = {k:,}: times signed",
                    pick("times signed", k=k, **NONNEGATIVE),
                    "≤",
                    2,
                )
                for k in (62, 614, 1840)
            ),
        ),
    ),
    Benchmark(
        "selection",
        "benchmarks.selection --data {mnist} --repeats 9",
        "A whole selection against an inference pass, MNIST",
        "60,000 images, LeNet. Both sides read the same dataset through the same loader; the ratio "
        "is the median over rounds. For a network as small as this one, loss, ∂ℓ/∂z and "
        "bookkeeping by batches of 256 weigh in, beside the solver: the row of `First`, which "
        "looks at no gradient and takes what comes first, is the floor.",
        SELECTION,
        threads=1,
    ),
    Benchmark(
        "selection-threads",
        "benchmarks.selection --data {mnist} --repeats 9",
        "The same with all threads",
        "The inference pass gains from a second thread, the solver and the Python code around the "
        "pass do not, so that they weigh more.",
        all_threads(SELECTION),
    ),
    Benchmark(
        "stages",
        "benchmarks.stages --data {mnist}",
        "Where the time of that selection goes",
        "GradMatch under cProfile, callees included. Before the solver was rewritten in numpy with "
        "updates of rank one (commit 7bdf065), matching pursuit took 33.1 % of the selection of "
        "10 % and 5.1 % of that of 1 %.",
        threads=1,
    ),
    Benchmark(
        "selection-resnet18",
        "benchmarks.selection --data {cifar10} --model resnet18 --limit 5000 --steps 20 "
        "--fractions 0.1 --repeats 3",
        "A whole selection against an inference pass, CIFAR-10",
        "5,000 images, ResNet-18.",
        tuple(
            Goal(
                f"ResNet-18, 10 %, {name}: times an inference pass",
                pick("ratio", fraction=0.1, strategy=name, storage="float32"),
                "≤",
                1.1,
            )
            for name in ("GradMatch", "GradMatchPB")
        ),
    ),
    Benchmark(
        "ranks",
        "benchmarks.ranks --samples 4000 --ranks 2",
        "Ranks that select together against one process",
        "4,000 random images of 32 × 32, torchvision's ResNet-18, one thread a process; the best "
        "round of the slowest rank. `processor`: seconds of the processor instead of the clock.",
        tuple(
            Goal(
                f"2 ranks, {name}: times one process",
                pick("times one process", ranks=2, strategy=name),
                "≤",
                0.6,
            )
            for name in ("GradMatch", "GradMatchPB")
        ),
        threads=1,
    ),
    Benchmark(
        "precision",
        "benchmarks.precision --data {mnist}",
        "Selections in half precision",
        "10,000 images of MNIST, LeNet after an epoch, 10 %: the share of the picks that are those "
        "of float32 throughout, and the relative error of the match by the gradients in float32. "
        "Beside them what one more step of training changes.",
    ),
    Benchmark(
        "tolerance",
        "benchmarks.tolerance --data {mnist}",
        "The search for the smallest subset",
        "`tolerance=` on the gradients of MNIST, the pass not counted, against one selection of "
        "the size that it found; and against a search with a run for each budget that it tries.",
        threads=1,
    ),
    Benchmark(
        "sketches",
        "benchmarks.sketches",
        "Sketches of long gradients",
        "Of a small recurrent language model in training, on 240 pieces of 32 words each: the root "
        "mean square error of inner products relative to the lengths of both gradients, and the "
        "true relative error of the 24 samples and weights that OMP finds on the sketches. Means "
        "of three draws; seconds of the fastest.",
        threads=1,
    ),
    Benchmark(
        "scale",
        f"benchmarks.scale --plot {ROOT / 'docs' / 'scale.png'}",
        "Up to ImageNet's size",
        "Solvers alone, on gradients that are made with a seed and structured by class: 1,000 "
        "classes, 512 features and a bias, 30 % selected, factors kept in float16. GRAD-MATCH per "
        "class and gradient; GRAD-MATCHPB on the whole last layer with mini-batches of 256, exact. "
        "Peaks are those of the whole process, torch included.",
        (
            Goal(
                "1,281,167 samples, GradMatch: seconds",
                pick("solver, s", strategy="gradmatch", samples=1281167),
                "≤",
                120,
            ),
            Goal(
                "1,281,167 samples, GradMatch: GiB",
                pick("peak, GiB", strategy="gradmatch", samples=1281167),
                "≤",
                6,
            ),
            Goal(
                "1,281,167 samples, GradMatchPB: seconds",
                pick("solver, s", strategy="gradmatch-pb", samples=1281167),
                "≤",
                300,
            ),
            Goal(
                "1,281,167 samples, GradMatchPB: GiB",
                pick("peak, GiB", strategy="gradmatch-pb", samples=1281167),
                "≤",
                8,
            ),
        ),
        image="scale.png",
    ),
    Benchmark(
        "scale-file",
        "benchmarks.scale --strategies gradmatch --sizes 400000 --classes 300 --features 2048 "
        "--fractions 0.1 --kept-in memory file",
        "Gradients in a file",
        "The same of 300 classes, 2,048 features and a bias, 10 % selected, with the gradients in "
        "memory and in a file (`storage_dir`). The process's own memory is what it holds beside "
        "that.",
    ),
    Benchmark(
        "scale-wide",
        "benchmarks.scale --strategies gradmatch --sizes 1281167 --features 2048 "
        "--fractions 0.1 0.3 --kept-in file",
        "ImageNet's size with ResNet-50's features",
        "The same of 1,000 classes, 2,048 features and a bias, in a file.",
        tuple(
            Goal(
                f"1,281,167 samples of 2,049 numbers, {100 * fraction:g} %: GiB of its own",
                pick("own memory, GiB", fraction=fraction),
                "≤",
                8,
            )
            for fraction in (0.1, 0.3)
        ),
    ),
    Benchmark(
        "scale-few",
        "benchmarks.scale --strategies gradmatch --sizes 200000 2000000 --classes 10 --features 10 "
        "--fractions 0.1",
        "Many samples of few classes",
        "The same of 10 classes, 10 features and a bias, 10 % selected. The choice is that of a "
        "look at every gradient at each step, though most are not read.",
        (
            Goal(
                "2,000,000 samples of 10 classes, GradMatch: seconds",
                pick("solver, s", strategy="gradmatch", samples=2000000),
                "≤",
                60,
            ),
        ),
    ),
    Benchmark(
        "craig",
        "benchmarks.craig --data {mnist}",
        "CRAIG against apricot and submodlib",
        "The class 3 of MNIST, lazy greedy on both sides. The peers are given the finished matrix; "
        "the selection of ours includes the making of it. `cost`: the sum of distances left.",
        (
            Goal(
                "apricot: times CRAIG",
                pick("times CRAIG()", method="apricot, matrix given"),
                "≥",
                3,
            ),
            Goal(
                "submodlib: times CRAIG",
                pick("times CRAIG()", method="submodlib, matrix given"),
                "≥",
                3,
            ),
        ),
    ),
    Benchmark(
        "craig-one-class",
        "",
        "CRAIG on 60,000 samples of one class",
        "In a process of its own.",
        (Goal("60,000 of one class: GiB", pick("peak GiB"), "≤", 4),),
    ),
    Benchmark(
        "step",
        "benchmarks.step --data {mnist} --repeats 25",
        "An epoch of training against the plain loop, LeNet",
        "The plain loop trains on the same subset through `torch.utils.data.Subset`. What is added "
        "is most of all Python, which carries the weight of each sample through collation. In a "
        "step of a larger network it is lost, see ResNet-18.",
        STEP,
        threads=1,
    ),
    Benchmark(
        "step-threads",
        "benchmarks.step --data {mnist} --repeats 25",
        "The same with all threads",
        "Tags and weights are Python, and gain nothing from a second thread.",
        all_threads(STEP),
    ),
    Benchmark(
        "step-resnet18",
        "benchmarks.step --data {cifar10} --model resnet18 --limit 5000 --fraction 0.1",
        "An epoch of training against the plain loop, ResNet-18",
        "500 of 5,000 images of CIFAR-10, augmented.",
        (Goal("ResNet-18 on CIFAR-10: times the plain epoch", pick("ratio"), "≤", 1.02),),
    ),
    *(
        Benchmark(
            f"device-{device}",
            "",
            f"Selection and training step on {words}",
            "Random images with a pattern for each class, on the device, in ready-made batches. "
            "Per batch, step or atom: operations of torch, reads of values, which would wait for a "
            "GPU, and of a GPU launches, waits and copies to the host.",
            goals,
        )
        for device, words, goals in (
            ("cuda", "a GPU", DEVICE),
            ("cpu", "a CPU; no GPU seen", ()),
        )
    ),
]


def main() -> None:
    parser = measure.command(__doc__, "benchmarks")
    parser.add_argument("--mnist", default="mnist", help="as --data of examples/train.py")
    parser.add_argument("--cifar10", default="cifar10", help="as --data of examples/train.py")
    parser.add_argument("--only", nargs="+", choices=[b.name for b in BENCHMARKS if b.command])
    parser.add_argument("--table", action="store_true", help="write the pages, measure nothing")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="only benchmarks.device, there")
    parser.add_argument("--quick", action="store_true", help="with --device: in two minutes")
    options = parser.parse_args()
    if options.device:
        command = f"-m benchmarks.device --device {options.device}".split()
        out = ["--out", str(RESULTS / f"device-{options.device}.json")]
        quick = ["--quick"] if options.quick else []
        subprocess.run([sys.executable, *command, *out, *quick], check=True, cwd=ROOT)
    for benchmark in [] if options.device else BENCHMARKS:
        path = RESULTS / f"{benchmark.name}.json"
        wanted = options.only is None or benchmark.name in options.only
        if wanted and benchmark.command and not options.table and not path.exists():
            words = benchmark.command.format(mnist=options.mnist, cifar10=options.cifar10).split()
            command = [sys.executable, "-m", *words, "--out", str(path)]
            threads = {"OMP_NUM_THREADS": str(benchmark.threads)} if benchmark.threads else {}
            subprocess.run(command, check=True, cwd=ROOT, env=os.environ | threads)
    PAGE.write_text(page())
    tables.write(ROOT / "docs", RESULTS)


def page() -> str:
    """The page, of the benchmarks that have left figures."""
    goals = ["| | measured | goal | |", "|---|---|---|---|"]
    sections = []
    for benchmark in BENCHMARKS:
        path = RESULTS / f"{benchmark.name}.json"
        if not path.exists():
            continue
        saved = json.loads(path.read_text())
        goals += [goal.row(saved["rows"]) for goal in benchmark.goals]
        image = f"\n![{benchmark.title}]({benchmark.image})\n" if benchmark.image else ""
        sections.append(
            f"## {benchmark.title}\n\n{benchmark.text} {machine(saved['environment'])}\n\n"
            f"{measure.markdown(saved['rows'])}\n{image}"
        )
    head = (
        "# Benchmarks\n\nWritten by `python -m benchmarks`; raw figures are in "
        "benchmarks/results/. Peers run in the same process in turns with ours, and ratios are "
        "medians over rounds.\n"
    )
    return "\n".join([head, "\n".join(goals), "", *sections])


def machine(environment: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {v}" for name, v in environment["packages"].items())
    return (
        f"({environment['device']}, {environment['machine']}, {environment['threads']} of "
        f"{environment['cores']} cores, Python {environment['python']}, {versions}.)"
    )


if __name__ == "__main__":
    main()
