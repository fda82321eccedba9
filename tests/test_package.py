"""The package as it is built, installed and imported."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

# The builds are shared: they happen once, where tests run on several cores.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("package")]

ROOT = Path(__file__).parents[1]


def python(code: str, *, cwd: Path, first: Path) -> str:
    """What `code` prints in a fresh interpreter that sees the packages in the folder `first`.

    The packages of this environment come behind it, as plain folders: an editable install among
    them is not active.
    """
    others = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    start = f"import site, sys; site.addsitedir({str(first)!r}); sys.path += {others!r}\n"
    command = [sys.executable, "-I", "-S", "-c", start + code]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packaged, so that building leaves nothing in the checkout."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("adaptive_subset", "integrations"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def build(kind: str, source: Path, out: Path) -> Path:
    """Build with the backend itself, in this environment: no network and no isolation."""
    code = f"import setuptools.build_meta as b; print(b.build_{kind}({str(out)!r}))"
    return out / python(code, cwd=source, first=out).splitlines()[-1]


@pytest.fixture(scope="module", params=["wheel", "sdist", "editable"])
def installed(request: pytest.FixtureRequest, source: Path, tmp_path_factory) -> tuple[Path, Path]:
    """(the folder it is installed in, the folder its modules must come from)."""
    out = tmp_path_factory.mktemp(request.param)
    if request.param == "sdist":
        shutil.unpack_archive(build("sdist", source, out), out)
        (unpacked,) = (path for path in out.iterdir() if path.is_dir())
        wheel = build("wheel", unpacked, out)
    else:
        wheel = build(request.param, source, out)
    site = out / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site, source if request.param == "editable" else site


def test_installed_package_is_whole(installed: tuple[Path, Path], tmp_path: Path) -> None:
    site, home = installed
    code = """
import importlib.resources, pathlib
import adaptive_subset, adaptive_subset.strategies, adaptive_subset.integrations
print(adaptive_subset.__file__)
print(adaptive_subset.strategies.__file__)
print(adaptive_subset.integrations.__file__)
print((pathlib.Path(adaptive_subset.__file__).parent / "py.typed").is_file())
"""
    *files, typed = python(code, cwd=tmp_path, first=site).splitlines()
    assert all(Path(file).resolve().is_relative_to(home.resolve()) for file in files)
    assert typed == "True"


def test_every_module_is_packaged(installed: tuple[Path, Path], tmp_path: Path) -> None:
    """No sub-package is missing in the list of packages."""
    site, home = installed
    if home != site:
        pytest.skip("an editable install has the checkout itself")
    expected = {p.relative_to(ROOT) for p in (ROOT / "adaptive_subset").rglob("*.py")}
    expected |= {
        "adaptive_subset" / p.relative_to(ROOT) for p in (ROOT / "integrations").rglob("*.py")
    }
    packaged = {p.relative_to(site) for p in (site / "adaptive_subset").rglob("*.py")}
    assert packaged == expected


def test_version_is_that_of_the_metadata(installed: tuple[Path, Path]) -> None:
    site, _ = installed
    code = "import importlib.metadata as m, adaptive_subset as a; " \
        "print(a.__version__, m.version('adaptive-subset'))"  # fmt: skip
    own, metadata = python(code, cwd=site, first=site).split()
    assert own == metadata


def test_import_needs_no_extra(tmp_path: Path) -> None:
    code = """
import sys
import torch  # what torch brings along is not ours
before = set(sys.modules)
import adaptive_subset
print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))
"""
    loaded = set(python(code, cwd=tmp_path, first=ROOT).split())
    assert "adaptive_subset" in loaded
    extras = {"timm", "torchvision", "matplotlib", "sklearn", "scipy", "tqdm", "rich", "pyJoules"}
    assert not loaded & extras


def test_import_leaves_the_global_state_alone(tmp_path: Path) -> None:
    code = """
import logging, random, warnings
import numpy, torch

def state():
    return (
        random.getstate(),
        numpy.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        list(logging.root.handlers),
        logging.root.level,
        list(warnings.filters),
        torch.utils.data.DataLoader.__init__,
        torch.utils.data._utils.collate.default_collate_fn_map.copy(),
    )

before = state()
import adaptive_subset
assert state() == before
assert logging.getLogger("adaptive_subset").level == logging.NOTSET
"""
    python(code, cwd=tmp_path, first=ROOT)
