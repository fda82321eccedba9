"""What the documentation says: links, pictures, messages, the tutorial and the version."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import adaptive_subset
from adaptive_subset import checks
from tests.test_snippets import blocks, surroundings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / ".github").rglob("*.md")])

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
        if "://" in link:
            assert re.fullmatch(r"https://[\w.-]+\.\w+(/[\w./#?=&%-]*)?", link), link
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


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


#: The rules that arguments share are given the name of one.
CHECKS = {
    name
    for name, check in inspect.getmembers(checks, inspect.isfunction)
    if next(iter(inspect.signature(check).parameters)) == "name"
}


def subjects() -> dict[str, str]:
    """What each message is about, the name or flag that it starts with, by place in the source."""
    found = {}
    for folder in ("adaptive_subset", "integrations"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, (ast.Raise, ast.Call)):
                    continue
                subject: str | None = None
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                    text = " ".join(map(message, node.exc.args))
                    named = re.match(r"`([\w.]+)|(--[\w-]+)|\{\}|", text)
                    subject = named and (named[1] or named[2])
                elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in CHECKS:
                    subject = message(node.args[0]).strip("{}")
                if subject:
                    found[f"{path.relative_to(ROOT)}:{node.lineno}:{node.col_offset}"] = subject
    return found


def test_every_message_is_on_the_page_of_troubles() -> None:
    page = (DOCS / "troubleshooting.md").read_text()
    entries = {
        name
        for row in re.findall(r"^\| (`[^|]+?) \|", page, re.MULTILINE)
        for name in re.findall(r"`([^`]+)`", row)
    }
    found = subjects()
    assert len(found) > 200
    assert {"seed", "uniform", "refreshes"} <= {*found.values()}  # of the rules that are shared
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
    ((_, code),) = blocks("CONTRIBUTING.md", "python")
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


def test_the_version_and_its_date_are_the_same_everywhere() -> None:
    version = adaptive_subset.__version__
    assert f'\nversion = "{version}"\n' in (ROOT / "pyproject.toml").read_text()
    heads = re.findall(r"^## \[(.+)\](?: - (.+))?$", CHANGELOG, re.MULTILINE)
    (newest, date), *_ = [head for head in heads if head[0] != "Unreleased"]
    assert newest == version
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", date)
    citation = (ROOT / "CITATION.cff").read_text()
    assert f'\nversion: {version}\ndate-released: "{date}"\n' in citation
