"""What the documentation says: names, links, snippets, messages and figures."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import adaptive_subset

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / ".github").rglob("*.md")])
PARTS = ("scores", "draws", "sizes")
ADAPTERS = {
    "lightning_callback": ["SubsetCallback"],
    "transformers_trainer": ["SubsetMixin", "SubsetTrainer"],
    "accelerate_loader": ["SubsetLoader"],
    "plot": ["plot"],
}


# ---- the reference


def public() -> dict[str, Any]:
    """Every public object by the name that the reference has for it."""
    found = {f"adaptive_subset.{name}": adaptive_subset for name in adaptive_subset.__all__}
    gradients = importlib.import_module("adaptive_subset.gradients")
    found |= {f"adaptive_subset.gradients.{name}": gradients for name in gradients.__all__}
    own = [f"adaptive_subset.strategies.{part}" for part in PARTS]
    for module in map(importlib.import_module, [*own, "adaptive_subset.energy"]):
        for name, value in vars(module).items():
            is_own = inspect.isclass(value) and value.__module__ == module.__name__
            if is_own and not name.startswith("_"):
                found[f"{module.__name__}.{name}"] = module
    return {name: getattr(module, name.rpartition(".")[2]) for name, module in found.items()}


def members(owner: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that a class defines itself, as functions."""
    for name, value in vars(owner).items():
        plain = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if inspect.isfunction(plain) and not name.startswith("_"):
            yield name, plain


def undocumented(function: Any, text: str) -> list[str]:
    """What the documentation of a function leaves out."""
    if not text:
        return ["everything"]
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    raises = any(isinstance(node, ast.Raise) and node.exc is not None for node in ast.walk(tree))
    return (
        [] if not raises or re.search(r"Raises:|\braises?\b", text, re.IGNORECASE) else ["Raises"]
    )


def unnamed(value: Any, text: str) -> list[str]:
    """The arguments that a documentation does not name."""
    if inspect.isabstract(value) or (inspect.isclass(value) and "__init__" not in vars(value)):
        return []  # no arguments of its own
    names = [name for name in inspect.signature(value).parameters if name != "self"]
    return [name for name in names if not re.search(rf"\b{name}\b", text)]


@pytest.mark.parametrize("name", public())
def test_every_public_name_is_in_the_reference(name: str) -> None:
    pages = "\n".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    assert re.search(rf"^::: {re.escape(name)}$", pages, re.MULTILINE)


@pytest.mark.parametrize("module", ADAPTERS)
def test_every_adapter_is_in_the_reference(module: str) -> None:
    page = (DOCS / "reference" / "integrations.md").read_text()
    tree = ast.parse((ROOT / "integrations" / f"{module}.py").read_text())
    documented = {
        node.name
        for node in tree.body
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node)
    }
    for name in ADAPTERS[module]:
        assert f"::: {module}.{name}" in page
        assert name in documented


def test_the_reference_names_nothing_else() -> None:
    pages = "\n".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    known = {*public(), *(f"{module}.{name}" for module in ADAPTERS for name in ADAPTERS[module])}
    assert set(re.findall(r"^::: (\S+)$", pages, re.MULTILINE)) == known


@pytest.mark.parametrize("name", public())
def test_every_public_name_is_documented(name: str) -> None:
    value = public()[name]
    if not callable(value):  # the table of strategies
        return
    text = " ".join(inspect.getdoc(cls) or "" for cls in getattr(value, "__mro__", (value,))[:2])
    found = {name: unnamed(value, text)}
    if inspect.isfunction(value):
        found[name] += undocumented(value, text)
    else:
        assert value.__doc__
        for member, function in members(value):
            own = inspect.getdoc(getattr(value, member)) or ""
            found[f"{name}.{member}"] = undocumented(function, own)
    assert {name: missing for name, missing in found.items() if missing} == {}


# ---- links


def anchors(path: Path) -> set[str]:
    """The anchors of the headings of a page, as GitHub and mkdocs make them."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


# ---- snippets


def snippets(path: Path) -> list[Any]:
    """(line, code) of each block of Python on a page that is no doctest."""
    text = path.read_text()
    return [
        (text[: match.start()].count("\n") + 2, match[1])
        for match in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        if ">>>" not in match[1] and "(…" not in match[1]
    ]


def surroundings() -> dict[str, Any]:
    """What the recipes take as given."""
    torch.manual_seed(0)
    x, labels = torch.randn(200, 5), torch.arange(200) % 3
    model = nn.Linear(5, 3)
    return {
        "torch": torch,
        "nn": nn,
        "DataLoader": DataLoader,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "train_set": TensorDataset(x, labels),
        "val_set": TensorDataset(x[:30] + 0.1, labels[:30]),
        "labels": labels,
        "epochs": 2,
        "checkpoint": None,
    }


@pytest.mark.parametrize("name", ["index.md", "recipes.md"])
def test_recipes_run(name: str) -> None:
    first: dict[str, Any] = {}
    blocks = snippets(DOCS / name)
    assert blocks
    if name == "recipes.md":
        exec(blocks[0][1], first)
    for line, code in blocks:
        with_line = compile("\n" * (line - 1) + code, name, "exec")
        given = {"__name__": "recipe"} | first | surroundings()
        exec(with_line, given)
        if "maybe_reselect" in code:
            assert len(given["sampler"].history) >= 1


def test_the_plain_loop_resumes() -> None:
    page = {code: line for line, code in snippets(DOCS / "recipes.md")}
    start = next(iter(page))
    loop = next(code for code in page if "checkpoint" in code)
    whole, parts = surroundings(), surroundings()
    exec(start + loop, whole)
    for epochs in (1, 2):
        again = surroundings() | {"epochs": epochs, "checkpoint": parts["checkpoint"]}
        exec(start + loop, again)
        parts = again
    assert torch.equal(whole["model"].weight, parts["model"].weight)


# ---- figures

COLUMNS = ("fashion-mnist", "cifar10", "cifar10-noisy", "fashion-mnist-long-tail")
ROWS = ("full-short", "fresh-random", "order-dp", "borderline", "balanced")


def test_the_first_table_of_the_readme_is_that_of_the_runs() -> None:
    from benchmarks.arena import report
    from benchmarks.arena.figures import entries
    from benchmarks.arena.methods import METHODS
    from benchmarks.arena.race import Race
    from benchmarks.arena.results import Results
    from benchmarks.arena.tasks import TASKS

    results = Results(ROOT / "benchmarks" / "results" / "arena.jsonl")
    race = Race(TASKS, METHODS, results.fractions(), results.seeds(), 5, results)
    readme = (ROOT / "README.md").read_text()
    lines = readme[readme.index("| a tenth") :].split("\n\n")[0].splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert len(table) == len(ROWS)
    for row, method in zip(table, ROWS, strict=True):
        for cell, task in zip(row[1:], COLUMNS, strict=True):
            found = {e.method: e for e in entries(race, task) if e.fraction == 0.1}
            if cell:
                seeds = " (1 seed)" if len(found[method].accuracy) == 1 else ""
                assert cell.strip("*") == report.reached(found[method]) + seeds


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


# ---- pictures and messages


def load(name: str) -> Any:
    """A script that lies beside the pages."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_the_pictures_are_those_of_the_script() -> None:
    for name, text in load("pictures").pictures().items():
        assert (DOCS / name).read_text() == text


def message(node: ast.AST) -> str:
    """The text of a message, with what is filled in left as {}."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(message, node.values))
    if isinstance(node, ast.BinOp):
        return message(node.left) + message(node.right)
    return "{}"


def subjects() -> dict[str, str]:
    """What each message is about, the name or flag that it starts with, by place in the source."""
    found = {}
    for folder in ("adaptive_subset", "integrations"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                    text = " ".join(map(message, node.exc.args))
                    named = re.match(r"`([\w.]+)|(--[\w-]+)|\{\}|", text)
                    subject = named and (named[1] or named[2])
                    if subject:
                        found[f"{path.relative_to(ROOT)}:{node.lineno}"] = subject
    return found


def test_every_message_is_on_the_page_of_troubles() -> None:
    page = (DOCS / "troubleshooting.md").read_text()
    entries = {
        name
        for row in re.findall(r"^\| (`[^|]+?) \|", page, re.MULTILINE)
        for name in re.findall(r"`([^`]+)`", row)
    }
    found = subjects()
    assert len(found) > 150
    assert {place: name for place, name in found.items() if name not in entries} == {}
    assert entries <= {*found.values(), *re.findall(r"`([^`]+)`", page)}


# ---- the tutorial and what a contributor is told


def test_the_tutorial_runs_and_its_page_is_that_of_the_script(tmp_path: Path) -> None:
    script = load("render_tutorial")
    fresh, page = script.render(tmp_path), (DOCS / "tutorial.md").read_text()

    def told(text: str) -> str:
        return re.sub(r"```text\n.*?```", "", text, flags=re.DOTALL)

    assert told(fresh) == told(page)
    assert len(list(tmp_path.glob("*.png"))) == len(list(DOCS.glob("tutorial-*.png")))
    errors = re.search(r"([\d.]+) % after one epoch, ([\d.]+) % at the end", fresh)
    assert errors is not None
    assert float(errors[2]) < 10 < float(errors[1])


def test_the_strategy_of_the_contributors_keeps_the_laws() -> None:
    ((_, code),) = snippets(ROOT / "CONTRIBUTING.md")
    given: dict[str, Any] = {"__name__": "contributed"}
    exec(code, given)
    strategy, (data, model) = (
        given["Smallest"](),
        (surroundings()[k] for k in ("train_set", "model")),
    )
    chosen = [
        adaptive_subset.Selector(
            data, strategy, budget=20, criterion=nn.CrossEntropyLoss(), seed=0
        ).select(model, epoch=0)
        for _ in range(2)
    ]
    assert len(chosen[0].indices.unique()) == 20
    assert torch.equal(chosen[0].indices, chosen[1].indices)
    source = adaptive_subset.gradients.GradientSource(data)
    losses = source.losses(model, nn.CrossEntropyLoss())
    assert losses[chosen[0].indices].mean() < losses.mean()


def test_the_version_is_the_same_everywhere() -> None:
    version = adaptive_subset.__version__
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text()
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
