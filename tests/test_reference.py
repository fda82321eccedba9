"""The API reference: every public name is in it and documented, and it names nothing else."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from adaptive_subset.integrations.subset import OPTIONS

import adaptive_subset
from adaptive_subset import loss_record

ROOT = Path(__file__).parents[1]
PARTS = ("scores", "draws", "sizes")
ADAPTERS = {
    "lightning_callback": ["SubsetCallback"],
    "transformers_trainer": ["SubsetMixin", "SubsetTrainer"],
    "accelerate_loader": ["SubsetLoader"],
    "plot": ["plot"],
}
REFERENCE = "\n".join(
    path.read_text() for path in sorted((ROOT / "docs" / "reference").glob("*.md"))
)


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
    found["adaptive_subset.loss_record.Memory"] = loss_record  # of a score of one's own
    return {name: getattr(module, name.rpartition(".")[2]) for name, module in found.items()}


def members(owner: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties of a class, but those of other packages, as functions."""
    seen = set()
    for cls in owner.__mro__:
        if cls.__module__.partition(".")[0] != owner.__module__.partition(".")[0]:
            continue
        for name, value in vars(cls).items():
            plain = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if inspect.isfunction(plain) and not name.startswith("_") and name not in seen:
                yield name, plain
            seen.add(name)


def documentation(owner: type, member: str) -> str:
    """That of a method or property, or of the one that it replaces."""
    found = (dict(members(cls)).get(member) for cls in owner.__mro__)
    return next((function.__doc__ for function in found if function and function.__doc__), "")


def attributes(owner: type) -> set[str]:
    """Public attributes that a class defines itself, for the class or for its instances."""
    names = {*inspect.get_annotations(owner)}
    for name, value in vars(owner).items():
        if not (inspect.isroutine(value) or isinstance(value, property) or inspect.isclass(value)):
            names.add(name)
    for node in ast.walk(source_of(owner)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            owned = isinstance(node.value, ast.Name) and node.value.id == "self"
            names |= {node.attr} if owned else set()
    return {name for name in names if not name.startswith("_")}


def source_of(value: Any) -> ast.Module:
    return ast.parse(textwrap.dedent(inspect.getsource(value)))


def undocumented(function: Any, text: str) -> list[str]:
    """What the documentation of a function leaves out."""
    if not text:
        return ["everything"]
    nodes = ast.walk(source_of(function))
    raises = any(isinstance(node, ast.Raise) and node.exc is not None for node in nodes)
    return (
        [] if not raises or re.search(r"Raises:|\braises?\b", text, re.IGNORECASE) else ["Raises"]
    )


def arguments(value: Any) -> set[str]:
    """Of a function or class; none where a class has no arguments of its own."""
    if inspect.isabstract(value) or (inspect.isclass(value) and "__init__" not in vars(value)):
        return set()
    return {name for name in inspect.signature(value).parameters if name != "self"}


def gaps(name: str, value: Any) -> dict[str, list[str]]:
    """What is public about an object and not documented, by the name of what lacks it."""
    named = {*arguments(value), *(attributes(value) if inspect.isclass(value) else ())}
    text = " ".join(inspect.getdoc(cls) or "" for cls in getattr(value, "__mro__", (value,))[:2])
    found = {name: sorted(n for n in named if not re.search(rf"\b{n}\b", text))}
    if inspect.isfunction(value):
        found[name] += undocumented(value, text)
    else:
        found[name] += [] if value.__doc__ else ["everything"]
        bases = " ".join(base.__doc__ or "" for base in value.__mro__[1:])  # with their attributes
        for member, function in members(value):
            own = documentation(value, member)
            if own or not re.search(rf"\b{member}\b", bases):
                found[f"{name}.{member}"] = undocumented(function, own)
    return {name: missing for name, missing in found.items() if missing}


@pytest.mark.parametrize("name", public())
def test_every_public_name_is_in_the_reference(name: str) -> None:
    assert re.search(rf"^::: {re.escape(name)}$", REFERENCE, re.MULTILINE)


@pytest.mark.parametrize("name", public())
def test_every_public_name_is_documented(name: str) -> None:
    value = public()[name]
    assert not callable(value) or gaps(name, value) == {}  # the table of strategies is no callable


def texts(value: Any) -> list[str]:
    """The docstrings of a public object and of its public members."""
    own = [value.__doc__ or ""] if callable(value) else []
    of = members(value) if inspect.isclass(value) else ()
    return [*own, *(function.__doc__ or "" for _, function in of)]


def defined() -> set[str]:
    """The functions and classes of the package, by name."""
    paths = (ROOT / "adaptive_subset").rglob("*.py")
    nodes = (node for path in paths for node in ast.parse(path.read_text()).body)
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name for node in nodes if isinstance(node, kinds)}


def test_the_reference_sends_nobody_to_what_is_not_in_it() -> None:
    objects = public()
    classes = [value for value in objects.values() if inspect.isclass(value)]
    known = {name.rpartition(".")[2] for name in objects}
    known |= {member for owner in classes for member, _ in members(owner)}
    known |= {name for owner in classes for name in attributes(owner)}
    known |= {name for value in objects.values() if callable(value) for name in arguments(value)}
    hidden = defined() - known
    found = {
        name: sorted(hidden & {part for ref in refs for part in ref.split(".")})
        for name, value in objects.items()
        for refs in [re.findall(r"(?<!`)`([\w.]+)`(?!`)", " ".join(texts(value)))]
    }
    assert {name: refs for name, refs in found.items() if refs} == {}


@pytest.mark.parametrize("name", public())
def test_every_docstring_is_markdown(name: str) -> None:
    for text in texts(public()[name]):
        assert ":math:" not in text
        assert not re.search(r"^ *(====|Example:)", text, re.MULTILINE)


@pytest.mark.parametrize("module", ADAPTERS)
def test_every_adapter_is_in_the_reference(module: str) -> None:
    tree = ast.parse((ROOT / "integrations" / f"{module}.py").read_text())
    found = {
        node.name: node for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))
    }
    for name in ADAPTERS[module]:
        assert f"::: {module}.{name}" in REFERENCE
        node = found[name]
        is_hooked = name == "SubsetMixin" or (isinstance(node, ast.ClassDef) and node.bases)
        methods = [m for m in node.body if isinstance(m, ast.FunctionDef) and not is_hooked]
        for part in (node, *(m for m in methods if not m.name.startswith("_"))):
            assert ast.get_docstring(part), f"{name}: {part.name}"


def test_the_options_of_the_adapters_are_those_that_they_take() -> None:
    page = (ROOT / "docs" / "reference" / "integrations.md").read_text()
    told = page.split("with these\nnames: ")[1].split(".\n")[0]
    assert tuple(re.findall(r"`(\w+)`", told)) == OPTIONS


def test_the_reference_names_nothing_else() -> None:
    known = {*public(), *(f"{module}.{name}" for module in ADAPTERS for name in ADAPTERS[module])}
    assert set(re.findall(r"^::: (\S+)$", REFERENCE, re.MULTILINE)) == known


class _Base:
    def inherited(self) -> None: ...


class Planted(_Base):
    """Documented, but for nearly all that it has.

    Args:
        told: an argument.
    """

    shared = 1
    annotated: int

    def __init__(self, told: int, untold: int) -> None:
        self.told, self.kept, self._own = told, untold, 0

    def silent(self) -> None: ...

    @property
    def quiet(self) -> int:
        return self._own

    @classmethod
    def made(cls) -> None: ...

    def loud(self) -> None:
        """Says nothing of what it throws."""
        raise ValueError(self.told)


def test_the_check_finds_what_is_not_documented() -> None:
    assert gaps("p", Planted) == {
        "p": ["annotated", "kept", "shared", "untold"],
        "p.silent": ["everything"],
        "p.quiet": ["everything"],
        "p.made": ["everything"],
        "p.loud": ["Raises"],
        "p.inherited": ["everything"],
    }
