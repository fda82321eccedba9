"""What docs/architecture.md promises of the structure: imports flow one way, files stay small."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "adaptive_subset"
# From the bottom up; what stands beside each other does not import one another across folders.
LAYERS = (
    ("calls", "checks", "default_device", "distributed", "energy"),
    ("randomness", "precision", "items", "selection", "loss_record"),
    ("gradients",),
    ("strategies",),
    ("sizing", "candidate_pool", "outcome"),
    ("selector", "in_batch"),
    ("delivery",),
    ("__init__",),
    ("integrations",),
)


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, the integrations where they are installed."""
    found = {}
    places = {"adaptive_subset": PACKAGE, "adaptive_subset.integrations": ROOT / "integrations"}
    for start, folder in places.items():
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(folder).with_suffix("").parts
            found[".".join((start, *inside)).removesuffix(".__init__")] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of the package that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for name in node.names:
                full = f"{node.module}.{name.name}"
                if (module := full if full in known else node.module) in known:
                    yield module


def layer(module: str) -> int:
    part = [*module.split("."), "__init__"][1]
    return next(rank for rank, parts in enumerate(LAYERS) if part in parts)


def test_imports_flow_one_way() -> None:
    known = modules()
    graph = {module: set(imports(path, known)) for module, path in known.items()}
    upwards = [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in others
        if layer(other) > layer(module)
        or (layer(other) == layer(module) and module.split(".")[1:2] != other.split(".")[1:2])
    ]
    assert not upwards
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_files_stay_small() -> None:
    lines = {str(path): len(path.read_text().splitlines()) for path in modules().values()}
    assert {path: n for path, n in lines.items() if n > 300} == {}


def test_the_page_names_files_that_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = {name.rstrip("/") for name in re.findall(r"`([\w-]+/[\w/.-]*|\w+\.py)`", page)}
    assert len(named) > 20
    assert [n for n in named if not ((ROOT / n).exists() or (PACKAGE / n).exists())] == []
    assert {path.parent.name for path in modules().values()} <= {Path(n).name for n in named}
