"""Code in the documentation: every block runs, or is parsed by what it would run.

Doctests are run by pytest itself; the recipes of docs/frameworks.md and its diff by
test_frameworks and test_reference_script, the tutorial and the contributors' strategy by test_docs.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import adaptive_subset
from adaptive_subset import AdaptiveSubsetSampler, OrderDP, Random, Selector
from adaptive_subset.gradients.source import Reading
from tests.test_reference import ADAPTERS, arguments, public

ROOT = Path(__file__).parents[1]
FENCED = re.MULTILINE | re.DOTALL
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md")))
}
TRIED = {  # what this file and the tests named above try; a new block has to come here
    ("README.md", "diff"), ("README.md", "python"), ("README.md", "sh"),
    ("CONTRIBUTING.md", "python"), ("CONTRIBUTING.md", "sh"),
    ("docs/index.md", "python"), ("docs/index.md", "sh"),
    ("docs/recipes.md", "python"), ("docs/tutorial.md", "python"), ("docs/tutorial.md", "text"),
    ("docs/frameworks.md", "python"), ("docs/frameworks.md", "diff"),
    ("docs/timm.md", "python"), ("docs/timm.md", "sh"), ("docs/timm.md", "text"),
    ("docs/distributed.md", "python"), ("docs/architecture.md", "text"),
    ("docs/from-cords.md", "diff"), ("docs/from-infobatch.md", "diff"),
    ("docs/comparison.md", "sh"), ("docs/costs.md", "sh"), ("docs/paper.md", "sh"),
}  # fmt: skip


def blocks(page: str, language: str) -> list[tuple[int, str]]:
    """(line, code) of each block in a language on a page; no doctests."""
    text = PAGES[page]
    return [
        (text[: match.start()].count("\n") + 2, match[1])
        for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, FENCED)
        if ">>>" not in match[1]
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


def run(page: str, line: int, code: str, **given: Any) -> dict[str, Any]:
    """The names that a block leaves behind; errors tell its line on the page."""
    names = {"__name__": "snippet"} | surroundings() | given
    exec(compile("\n" * (line - 1) + code, page, "exec"), names)
    return names


def test_every_block_is_tried() -> None:
    found = set()
    for page, text in PAGES.items():
        for language, code in re.findall(r"^```([^\n]*)\n(.*?)^```$", text, FENCED):
            if ">>>" not in code:
                found.add((page, language))
    assert found == TRIED


# ---- Python


@pytest.mark.parametrize("page", ["docs/index.md", "docs/recipes.md"])
def test_recipes_run(page: str) -> None:
    found = blocks(page, "python")
    assert found
    start: dict[str, Any] = {}
    if page == "docs/recipes.md":
        exec(found[0][1], start)
    for line, code in found:
        names = run(page, line, code, **start)
        if "maybe_reselect" in code:
            assert len(names["sampler"].history) >= 1


def test_the_plain_loop_resumes() -> None:
    page = {code: line for line, code in blocks("docs/recipes.md", "python")}
    start = next(iter(page))
    loop = next(code for code in page if "checkpoint" in code)
    whole, parts = surroundings(), surroundings()
    exec(start + loop, whole)
    for epochs in (1, 2):
        again = surroundings() | {"epochs": epochs, "checkpoint": parts["checkpoint"]}
        exec(start + loop, again)
        parts = again
    assert torch.equal(whole["model"].weight, parts["model"].weight)


def test_the_line_for_several_processes() -> None:
    ((line, code),) = blocks("docs/distributed.md", "python")
    dist = SimpleNamespace(get_world_size=lambda: 2, get_rank=lambda: 1)
    given = {"AdaptiveSubsetSampler": AdaptiveSubsetSampler, "dist": dist}
    selector = Selector(surroundings()["train_set"], Random(), fraction=0.1)
    names = run("docs/distributed.md", line, code, selector=selector, **given)
    names["sampler"].maybe_reselect(names["model"], 0)
    assert len(names["sampler"]) == 10


def test_a_script_of_timms_that_calls_the_patch_itself() -> None:
    from tests.timm_scripts import OWN

    ((line, code),) = blocks("docs/timm.md", "python")
    script = ModuleType("script")
    exec(compile(OWN.read_text(), str(OWN), "exec"), vars(script))
    called = []
    given = {"sys": SimpleNamespace(modules={"__main__": script}), "main": lambda: called.append(1)}
    run("docs/timm.md", line, code, __name__="__main__", **given)
    assert "--subset-fraction" in script.parser.format_help()
    assert called


def test_the_plot_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = [c for c in blocks("docs/frameworks.md", "python") if "plot(" in c[1]]
    images = torch.rand(200, 8, 8)
    train_set = TensorDataset(images, torch.arange(200) % 3)
    train_set.targets = train_set.tensors[1]  # type: ignore[attr-defined]
    sampler = AdaptiveSubsetSampler(Selector(train_set, Random(), fraction=0.1))
    sampler.maybe_reselect(nn.Linear(8, 3), 0)
    monkeypatch.chdir(tmp_path)
    given: Any = {"subset": SimpleNamespace(sampler=sampler), "train_set": train_set}
    run("docs/frameworks.md", *code, **given)
    assert (tmp_path / "run.png").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:::lightning")
@pytest.mark.parametrize("page", ["README.md", "docs/frameworks.md"])
def test_the_lines_for_frameworks(page: str, tmp_path: Path) -> None:
    import accelerate
    import lightning
    import transformers
    from adaptive_subset.integrations.accelerate_loader import SubsetLoader
    from adaptive_subset.integrations.lightning_callback import SubsetCallback
    from adaptive_subset.integrations.transformers_trainer import SubsetTrainer

    given = surroundings() | vars(adaptive_subset)
    given["loader"] = DataLoader(given["train_set"], batch_size=16)
    given["accelerator"] = accelerate.Accelerator(cpu=True)
    given["criterion"] = nn.CrossEntropyLoss()
    given["arguments"] = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    given |= {"L": lightning, "SubsetCallback": SubsetCallback, "SubsetTrainer": SubsetTrainer}
    given["SubsetLoader"] = SubsetLoader
    if page == "README.md":
        ((_, code),) = blocks(page, "python")
        lines = code.splitlines()
    else:  # the table
        lines = [code for code in re.findall(r"\| `([^`]+\))` \|", PAGES[page]) if "Subset" in code]
    assert len(lines) == 3
    for line in lines:
        line = line.replace("(…", "(model, arguments, train_dataset=train_set")
        assert eval(line.replace("criterion=…", "criterion=criterion"), given)


# ---- diffs


def side(diff: str, sign: str) -> str:
    """The code before ("-") or after ("+") the change."""
    lines = [line for line in diff.splitlines() if line[:1] in (sign, " ", "")]
    return "\n".join(line[2:] for line in lines) + "\n"


STEP = """optimizer.zero_grad()
          loss.backward()
          optimizer.step()"""


def test_the_change_of_the_readme_on_a_plain_loop() -> None:
    ((line, diff),) = blocks("README.md", "diff")
    assert "          ...\n" in diff
    diff = diff.replace("...", STEP).replace("\n          ", "\n            ")
    diff = re.sub(r"^ {12}", " " * 10, diff, flags=re.MULTILINE).replace("range(200)", "range(2)")
    before, after = (run("README.md", line, side(diff, sign)) for sign in "-+")
    assert not any(name in before for name in adaptive_subset.__all__)
    assert len(before["loader"].sampler) == 200
    assert len(after["loader"].sampler) == 20
    assert len(after["sampler"].history) == 2
    assert not torch.equal(after["model"].weight, surroundings()["model"].weight)


@pytest.mark.parametrize("page", ["docs/from-cords.md", "docs/from-infobatch.md"])
def test_what_a_move_leads_to(page: str) -> None:
    ((line, diff),) = blocks(page, "diff")
    given = vars(adaptive_subset) | {"num_epochs": 2, "trainset": surroundings()["train_set"]}
    given["train_data"] = given["trainset"]
    names = run(page, line, side(diff, "+"), **given)
    assert len(names["sampler"].history) >= 1
    assert names["loss"].isfinite()


# ---- calls within the text


def inline(page: str) -> list[str]:
    """The pieces of code in the text of a page and in its tables."""
    text = re.sub(r"^```.*?^```$", "", PAGES[page], flags=FENCED)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]


def calls(page: str) -> Iterator[ast.Call]:
    for code in inline(page):
        try:
            tree = ast.parse(code.replace("…", "..."), mode="eval")
        except SyntaxError:
            continue
        yield from (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def options() -> set[str]:
    """What stands for ``**`` in the signatures: how a pool is read, and the words of adapters."""
    words = arguments(Selector) | arguments(AdaptiveSubsetSampler)
    return words | set(inspect.get_annotations(Reading))


@pytest.mark.parametrize("page", PAGES)
def test_calls_in_the_text_have_these_arguments(page: str) -> None:
    known = {name.rpartition(".")[2]: value for name, value in public().items() if callable(value)}
    adapters = {name for names in ADAPTERS.values() for name in names}
    for call in calls(page):
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        keywords = {keyword.arg for keyword in call.keywords if keyword.arg}
        if name in adapters - {"plot"}:
            assert keywords <= options() | {"criterion", "strategy", "model"}, ast.unparse(call)
        if name not in known or page == "docs/from-infobatch.md":  # which names their class too
            continue
        parameters = inspect.signature(known[name]).parameters.values()
        names = {p.name for p in parameters}
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            names |= options()
        assert keywords <= names, ast.unparse(call)
        if not any(isinstance(a, ast.Constant) and a.value is ... for a in call.args):
            places = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
            assert len(call.args) <= len(places), ast.unparse(call)


@pytest.mark.parametrize("page", PAGES)
def test_attributes_in_the_text_are_there(page: str) -> None:
    selector = Selector(surroundings()["train_set"], OrderDP(), fraction=0.1)
    known = {"selector": selector, "sampler": AdaptiveSubsetSampler(selector)}
    kinds = ("Selection", "WeightedTarget", "GradientSource", "Candidates", "Strategy")
    known |= {name.rpartition(".")[2]: value for name, value in public().items()
              if name.rpartition(".")[2] in kinds}  # fmt: skip
    for code in inline(page):
        for owner, name in re.findall(rf"(?<![\w./])({'|'.join(known)})\.(\w+)", code):
            fields = getattr(known[owner], "__dataclass_fields__", {})
            assert hasattr(known[owner], name) or name in fields, code


# ---- commands


class Parsed(Exception):
    """The arguments are right: what follows would be the run itself."""


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Calls `main` with arguments as far as these are parsed; what is wrong exits."""

    def parse(module: ModuleType, words: list[str]) -> None:
        source = inspect.getsource(module)
        (way,) = (w for w in ("parse_args", "parse_known_args") if f".{w}(" in source)
        really = getattr(argparse.ArgumentParser, way)

        def only(parser: Any, given: Any = None, namespace: Any = None) -> Any:
            really(parser, given, namespace)
            raise Parsed

        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, way, only)
            patch.setattr(sys, "argv", ["command", *words])
            with pytest.raises(Parsed):
                module.main()

    monkeypatch.syspath_prepend(ROOT / "examples")
    return parse


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """(program, words) of each command in lines of the shell."""
    text = re.sub(r" *#.*", "", text.replace("\\\n", " ")).replace("$i", "0")
    pattern = r"\b(python|torchrun|make|pip)(?: ([^&;|\n]*))?(?=[&;|\n]|$)"
    for program, words in re.findall(pattern, text):
        yield program, [word for word in shlex.split(words) if word not in ("…", "ARGS", "[path…]")]


def module_of(words: list[str]) -> ModuleType:
    """The module that ``python -m name`` runs."""
    name = words[words.index("-m") + 1]
    found = importlib.import_module(name)
    return importlib.import_module(f"{name}.__main__") if hasattr(found, "__path__") else found


def try_command(program: str, words: list[str], parse: Any) -> None:
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words if "=" not in word} <= {*targets}
    elif program == "pip":
        extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        (_, wanted) = words[0], words[1]
        assert wanted == "." or re.match(r"\.\[(\w+)\]$", wanted)[1] in extras  # type: ignore[index]
    elif "adaptive_subset.integrations.timm_patch" in words or "timm_patch.py" in " ".join(words):
        from adaptive_subset.integrations import timm_flags

        parser = argparse.ArgumentParser(allow_abbrev=False)
        timm_flags.add_flags(parser)
        _, others = parser.parse_known_args(words)
        assert not [word for word in others if word.startswith("--subset")]
    elif "pytest" in words:
        assert all((ROOT / word).is_file() for word in words[2:])
    elif "-m" in words:
        parse(module_of(words), words[words.index("-m") + 2 :])
    elif not words[0].startswith("path/to"):
        assert (ROOT / words[0]).is_file()
        if words[1:]:
            parse(importlib.import_module(Path(words[0]).stem), words[1:])


@pytest.mark.parametrize("page", sorted({page for page, language in TRIED if language == "sh"}))
def test_commands_are_parsed(page: str, parse: Any) -> None:
    for _, code in blocks(page, "sh"):
        whole = code.replace("\\\n", " ").splitlines()
        rest = {"", ". .venv/bin/activate", "done; wait"}
        left = [line for line in whole if line not in rest and not [*commands(line)]]
        assert [line for line in left if not re.match(r"for i in [\d ]+; do", line)] == []
        for program, words in commands(code):
            try_command(program, words, parse)


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_are_parsed(page: str, parse: Any) -> None:
    for code in inline(page):
        if code.startswith(("python ", "make ", "torchrun ")):
            for program, words in commands(code):
                try_command(program, words, parse)
