"""Which recipes run on subsets with which of timm's training scripts, as a table.

    python -m tests.timm_matrix path/to/train.py [path…] [--only RECIPE …] [--logs FOLDER]

Each script uses the timm in its folder. Every cell is a run of its own on a few images: it is
"yes" if it ended well, chose its subsets and handed every weight on to the loss (see `timm_run`).
One that fails is run again without the patch, which tells whose fault it is.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.timm_forked import prepare, run
from tests.timm_recipes import NAFLEX, RECIPES
from tests.timm_scripts import WORKER, base_flags, make_images, process_of

ROWS = {**RECIPES, "NaFlexViT": NAFLEX}
EPOCHS = 2
SHORT = ["--epochs", str(EPOCHS), "-b", "4", *WORKER]
SUBSET = ["--subset-budget", "16", "--subset-strategy", "by-class", "--subset-every", "1"]


def column(script: Path, recipes: list[str], images: Path, logs: Path) -> dict[str, str]:
    """The cells of one script; in a process that has not imported timm yet."""
    prepare(script)
    cells = {}
    for recipe in recipes:
        start = time.perf_counter()
        cells[recipe] = cell(script, recipe, images, logs)
        seconds = time.perf_counter() - start
        print(f"{script.parent.name}, {recipe}: {cells[recipe]} ({seconds:.0f} s)", flush=True)
    return cells


def cell(script: Path, recipe: str, images: Path, logs: Path) -> str:
    options = [option for option in ROWS[recipe].split() if option != "--task"]
    source = script.read_text().replace('"', "'")
    if lacking := [o for o in options if o.startswith("--") and f"'{o}'" not in source]:
        return f"has no `{lacking[0]}`"
    folder = logs / script.parent.name / recipe.replace(" ", "-")
    flags = [*base_flags(images, folder), *SHORT, *options]
    processes = 2 if "--aug-repeats" in options else 1
    codes, reports = run(script, [*flags, *SUBSET], processes, folder / "subset")
    if all(code == 0 for code in codes):
        return judge(reports, script)
    error = last_line(folder / "subset")
    if 2 in codes and "error: --" in error:
        return "refused: " + error.split("error: ")[1]
    codes, _ = run(script, flags, processes, folder / "plain")
    if all(code == 0 for code in codes):
        return f"FAILS: {error}"
    return f"fails without a subset too: {last_line(folder / 'plain')}"


def judge(reports: list[dict[str, Any]], script: Path) -> str:
    """Whether weights were seen at the loss; that they are right was checked there."""
    sizes = [size for report in reports for size in report["calls"]]
    told = [line for line in reports[0]["log"] if "  Error: " in line]
    if not Path(reports[0]["timm"]).is_relative_to(script.parent):
        return f"FAILS: another timm was used, {reports[0]['timm']}"
    if len(told) != EPOCHS or min(sizes, default=0) >= 0:
        return f"FAILS: {len(told)} selections in {EPOCHS} epochs, batches of {sizes}"
    return "yes"


def last_line(log: Path) -> str:
    """Of the first rank that says anything of an error."""
    for path in sorted(log.parent.glob(f"{log.name}-?")):
        lines = path.read_text().strip().splitlines()
        if lines and "rror" in lines[-1]:
            return lines[-1]
    return "no word"


def table(cells: dict[str, dict[str, str]]) -> str:
    """Recipes down, scripts across, with what is long below."""
    notes: list[str] = []

    def short(text: str) -> str:
        if len(text) < 30:
            return text
        if text not in notes:
            notes.append(text)
        return f"{text.split(':')[0]} [{notes.index(text) + 1}]"

    lines = [" | ".join(["", "recipe", *cells, ""]).strip(), "|---" * (len(cells) + 1) + "|"]
    for recipe in next(iter(cells.values())):
        row = [short(column_[recipe]) for column_ in cells.values()]
        lines.append(" | ".join(["", recipe, *row, ""]).strip())
    return "\n".join([*lines, "", *(f"{i}. {text}" for i, text in enumerate(notes, 1))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("scripts", nargs="+", type=lambda path: Path(path).resolve())
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="RECIPE")
    parser.add_argument("--logs", type=Path, help="keep what the runs say here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        logs = (args.logs or Path(scratch)).resolve()
        make_images(images := Path(scratch) / "images")
        cells = {}
        for script in args.scripts:
            job = process_of(script).submit(column, script, args.only, images, logs)
            cells[script.parent.name] = job.result()
    print(table(cells))


if __name__ == "__main__":
    main()
