"""Tables of other pages that show figures of benchmarks and examples, written from these."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from examples import equal_cost

Row = dict[str, Any]
Rows = Callable[[str], list[Row]]  # of a file of figures, by its name


@dataclass(frozen=True)
class Table:
    """One table.

    Args:
        page: in docs/.
        head: its first line, by which it is found.
        lines: the lines below, made of the rows of
        files: in benchmarks/results: those of benchmarks, .json, or of single runs, .jsonl.
    """

    page: str
    head: str
    lines: Callable[[Rows], Iterable[str]]
    files: tuple[str, ...]

    def is_measured(self, results: Path) -> bool:
        return all((results / name).exists() for name in self.files)

    def text(self, results: Path) -> str:
        read = {name: figures(results / name) for name in self.files}
        line = "|---" * (self.head.count("|") - 1) + "|"
        return "\n".join([self.head, line, *self.lines(read.__getitem__)])


def figures(path: Path) -> list[Row]:
    """The rows of a file."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    rows: list[Row] = json.loads(path.read_text())["rows"]
    return rows


def write(docs: Path, results: Path) -> None:
    """Put each table in the place of the one with its head."""
    for table in TABLES:
        if table.is_measured(results):
            page = docs / table.page
            before, _, rest = page.read_text().partition(table.head)
            page.write_text(before + table.text(results) + rest[rest.index("\n\n") :])


ERROR = "error of the whole layer, s"


def costs(rows: Rows) -> Iterable[str]:
    """What a selection costs on a CPU."""
    large = passes(rows("selection-resnet18.json"), 0.1)
    of_large = spelled(large) if max(large.values()) > 1 else "no measurable overhead"
    whole = {row["strategy"]: row for row in rows("scale.json") if row["samples"] == 1_281_167}
    solvers = (
        f"`{name}` {whole[key]['solver, s']:.0f} + {whole[key][ERROR]:.0f} s, "
        f"{whole[key]['peak, GiB']:.1f} GiB"
        for name, key in (("GradMatch", "gradmatch"), ("GradMatchPB", "gradmatch-pb"))
    )
    held = {row["kept in"]: row for row in rows("scale-file.json")}
    gradients = held["a file"]["of it gradients, GiB"]
    memory, file = (held[kind]["own memory, GiB"] for kind in ("memory", "a file"))
    imagenet = [
        f"{100 * row['fraction']:g} % {row['solver, s']:.0f} + {row[ERROR]:.0f} s"
        for row in rows("scale-wide.json")
    ]
    largest = max(rows("scale-wide.json"), key=lambda row: row["own memory, GiB"])
    finest = min(row["tolerance"] for row in rows("tolerance.json"))
    search = [row for row in rows("tolerance.json") if row["tolerance"] == finest]
    omp = [row["times faster"] for row in rows("omp.json") if row["solver"] == "signed, float64"]
    craig = {row["method"]: row["times CRAIG()"] for row in rows("craig.json")}
    apricot, submodlib = (craig[f"{peer}, matrix given"] for peer in ("apricot", "submodlib"))
    (small,), (wide,) = rows("step.json"), rows("step-resnet18.json")
    cells = {
        "a selection of 10 % of MNIST, LeNet, in bare inference passes": spelled(
            passes(rows("selection.json"), 0.1)
        ),
        "the same of 1 %": spelled(passes(rows("selection.json"), 0.01)),
        "a selection of 10 % of 5,000 CIFAR-10 images, ResNet-18, two threads": of_large,
        "the solvers on 1,281,167 samples of 1,000 classes, 30 %, two threads, + the whole layer's "
        "error": "; ".join(solvers),
        f"`GradMatch` on {gradients:.2f} GiB of gradients, two threads, memory of the process": (
            f"{memory:.1f} GiB; {file:.1f} GiB with `storage_dir`"
        ),
        f"the same on {largest['of it gradients, GiB']:.1f} GiB in a file, one thread (1,281,167 "
        "samples of 1,000 classes, 2,049 features), and seconds, + those of the whole layer's "
        "error": (f"{largest['own memory, GiB']:.2f} GiB; {', '.join(imagenet)}"),
        f"the search for `tolerance={finest:g}` on MNIST, in selections of the size found": (
            spelled({row["strategy"]: row["times one run"] for row in search}, digits=1)
        ),
        "GRAD-MATCH's solver against scikit-learn's `orthogonal_mp_gram`, same support, two "
        "threads": (f"{rounded(min(omp))} to {rounded(max(omp))} times faster"),
        "a whole `CRAIG()` against the lazy greedy alone of apricot and submodlib, two threads": (
            f"{apricot:.1f} and {submodlib:.1f} times faster"
        ),
        "an epoch of training against the plain loop on the same subset": (
            f"LeNet {small['ratio']:.2f}, ResNet-18 on two threads {wide['ratio']:.2f}"
        ),
    }
    return (f"| {what} | {measured} |" for what, measured in cells.items())


def passes(rows: list[Row], fraction: float) -> dict[str, float]:
    """What a selection takes in inference passes, by strategy."""
    return {
        row["strategy"]: row["ratio"]
        for row in rows
        if row["storage"] == "float32"
        and row["fraction"] == fraction
        and row["strategy"] != "First"
    }


def spelled(ratios: dict[str, float], digits: int = 2) -> str:
    return ", ".join(f"`{name}` {ratio:.{digits}f}" for name, ratio in ratios.items())


def rounded(value: float) -> str:
    """To two digits."""
    return f"{float(f'{value:.2g}'):g}"


def on_gpu(rows: Rows) -> Iterable[str]:
    """What a selection costs on a GPU, in inference passes."""
    found = {(row["task"], row["what"]): row.get("ratio", 0.0) for row in rows("device-cuda.json")}
    for name in ("GradMatchPB", "GLISTER", "GradMatch", "CRAIG"):
        cases = ((task, share) for task in ON_GPU for share in (10, 30))
        ratios = (found[task, f"{name}, {share} %"] for task, share in cases)
        yield f"| `{name}` | {' | '.join(f'{r:.2f}' for r in ratios)} |"


def in_half_precision(rows: Rows) -> Iterable[str]:
    """What a selection loses by rounding."""
    for row in rows("precision.json"):
        same = f"{100 * row['same']:.1f} %"
        cells = f"{row['pass']} | {row['kept']} | {same} | {row['error']:.3f}"
        yield f"| `{row['strategy']}()` | {cells} |"


def solvers_on_gpu(rows: Rows) -> Iterable[str]:
    """All classes in lockstep against one after the other."""
    names = {("GradMatch", "per-gradient"): "GradMatch()", ("CRAIG", "per-class"): "CRAIG()"}
    names["GradMatch", "per-class"] = 'GradMatch(scope="per-class")'
    for kind, name in names.items():
        some = [row for row in rows("device-solvers.json") if row["dtype"] == "float32"]
        each = [row for row in some if (row["strategy"], row["scope"]) == kind]
        cells = (f"{row['seconds']:.2f} | {rounded(row['one by one'])}" for row in each)
        yield f"| `{name}` | {' | '.join(cells)} |"


def on_ranks(rows: Rows) -> Iterable[str]:
    """What a selection takes on several processes."""
    for row in rows("ranks.json"):
        seconds = f"{row['selection, s']:.2f} | {row['processor, s']:.2f}"
        same = "yes" if row["same selection"] else "no"
        against = "| |" if row["ranks"] == 1 else f"{row['times one process']:.2f} | {same} |"
        yield f"| `{row['strategy']}()` | {row['ranks']} | {seconds} | {against}"


def sketches(rows: Rows) -> Iterable[str]:
    """What each way to sketch loses."""
    before = None
    for row in rows("sketches.json"):
        size, way = row["numbers"], row["way"]
        if way == "exact":
            continue
        side = int(size**0.5)
        shape = {
            "Gaussian on both sides": f", {side} × {side}",
            "Gaussian on the side of the classes": f", {size // 64} × 64",
        }.get(way, "")
        head = "|" if size == before else f"| {size:,}"
        yield f"{head} | {way}{shape} | {row['inner products']:.3f} | {row['match']:.3f} |"
        before = size


def of_runs(page: str, name: str, figure: str, digits: int = 3) -> Table:
    """That of an example which compares methods at equal cost."""
    head, *_ = equal_cost.table([], figure)
    return Table(page, head, partial(at_equal_cost, f"{name}.jsonl", digits), (f"{name}.jsonl",))


def at_equal_cost(file: str, digits: int, rows: Rows) -> Iterable[str]:
    """A row for each method."""
    return list(equal_cost.table([equal_cost.Run(**row) for row in rows(file)], "", digits))[2:]


ON_GPU = ("CIFAR-10, resnet18", "ImageNet, resnet50")
COSTS = (
    "selection",
    "selection-resnet18",
    "scale",
    "scale-file",
    "scale-wide",
    "tolerance",
    "omp",
    "craig",
    "step",
    "step-resnet18",
)
TABLES = (
    Table(
        "costs.md",
        "| | measured |",
        costs,
        tuple(f"{name}.json" for name in COSTS),
    ),
    Table(
        "costs.md",
        "| a selection, in bare inference passes | ResNet-18, 10 % | 30 % "
        "| ResNet-50, 10 % | 30 % |",
        on_gpu,
        ("device-cuda.json",),
    ),
    Table(
        "costs.md",
        "| whole selection, seconds | 5,000 | one class after the other | 15,000 "
        "| one class after the other |",
        solvers_on_gpu,
        ("device-solvers.json",),
    ),
    Table(
        "costs.md",
        "| strategy | the pass in | gradients kept in | same picks | relative error |",
        in_half_precision,
        ("precision.json",),
    ),
    Table(
        "distributed.md",
        "| strategy | ranks | seconds on the clock | of the processor | times one process "
        "| same selection |",
        on_ranks,
        ("ranks.json",),
    ),
    Table("tokens.md", "| numbers | way | inner products | match |", sketches, ("sketches.json",)),
    of_runs("timm.md", "timm-cifar10", "top-1, %", 2),
    of_runs("tokens.md", "language-model", "minus bits a byte"),
    of_runs("tokens.md", "text-classification", "accuracy"),
    of_runs("tokens.md", "segmentation", "mean intersection over union"),
)
