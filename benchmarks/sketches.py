"""Sketches of the gradients of a language model: error of inner products and of the match.

    python -m benchmarks.sketches

The text is that of the sources of torch.nn, so that figures follow torch's version.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor, nn

from adaptive_subset import TokenLoss
from adaptive_subset.gradients import DenseGradients
from adaptive_subset.gradients.collect import last_layer_gradients
from adaptive_subset.gradients.sketch import Sketch, TensorSketch
from adaptive_subset.strategies.solvers.atoms import atoms_of
from adaptive_subset.strategies.solvers.matching_pursuit import omp
from benchmarks import measure


class Reader(nn.Module):
    """A recurrent language model."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.body = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, words, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(x))[0])


def text(words: int, samples: int, length: int) -> Tensor:
    """(n, T) the words of torch's own sources and documentation strings, the rarest as one."""
    import re
    from collections import Counter
    from pathlib import Path

    root = Path(torch.__file__).parent
    raw = " ".join(p.read_text(errors="ignore") for p in sorted((root / "nn").rglob("*.py")))
    found = re.findall(r"\w+|[^\w\s]", raw)[: samples * length]
    common = {word: i for i, (word, _) in enumerate(Counter(found).most_common(words - 1), 1)}
    ids = torch.tensor([common.get(word, 0) for word in found])
    return ids[: len(ids) // length * length].view(-1, length)


def two_sided(delta: Tensor, h: Tensor, size: int, generator: torch.Generator) -> Tensor:
    side = int(size**0.5)
    left = torch.randn(delta.shape[2], side, generator=generator) / side**0.5
    right = torch.randn(h.shape[2], side, generator=generator) / side**0.5
    return ((delta @ left).mT @ (h @ right)).flatten(1)


def one_sided(delta: Tensor, h: Tensor, size: int, generator: torch.Generator) -> Tensor:
    side = max(1, size // h.shape[2])
    left = torch.randn(delta.shape[2], side, generator=generator) / side**0.5
    return ((delta @ left).mT @ h).flatten(1)


def count_sketch(delta: Tensor, h: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Of the matrix itself, which has to be made: what the others save."""
    matrix = (delta.mT @ h).flatten(1)
    places = torch.randint(size, (matrix.shape[1],), generator=generator)
    signs = torch.randint(2, (matrix.shape[1],), generator=generator) * 2.0 - 1
    return matrix.new_zeros(len(matrix), size).index_add_(1, places, matrix * signs)


def tensor_sketch(delta: Tensor, h: Tensor, size: int, generator: torch.Generator) -> Tensor:
    sketch = TensorSketch(delta.shape[2], h.shape[2], size, generator, delta)
    pairs = zip(delta[:, None], h[:, None], strict=True)
    return torch.cat([sketch._convolved(d, f) for d, f in pairs])


WAYS = {
    "Gaussian on both sides": two_sided,
    "Gaussian on the side of the classes": one_sided,
    "CountSketch of the whole matrix": count_sketch,
    "TensorSketch": tensor_sketch,
}


def main() -> None:
    parser = measure.command(__doc__, "benchmarks.sketches")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/sketches.json"))
    measure.report(parser.parse_args().out, compare())


def compare(
    words: int = 2000, width: int = 64, samples: int = 240, length: int = 32
) -> list[measure.Row]:
    """Each way at each size, and first the exact gradients: means over three draws."""
    torch.manual_seed(0)
    x, model, loss = text(words, samples, length), Reader(words, width), TokenLoss(shift=True)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        batch = x[torch.randperm(len(x))[:32]]
        optimizer.zero_grad()
        loss(model(batch), batch).backward()
        optimizer.step()
    with torch.no_grad():
        h = model.body(model.embedding(x))[0]
        probabilities = model.head(h)[:, :-1].softmax(-1)
    h = h[:, :-1]
    delta = probabilities - nn.functional.one_hot(x[:, 1:], words)
    exact = (delta.mT @ h).flatten(1)
    check = last_layer_gradients(model, [(x, x)], loss, sketch=Sketch(words * width, 0))[0]
    assert torch.allclose(check.sum(), exact.sum(0), rtol=1e-3, atol=1e-3)
    gram, norms = exact @ exact.T, exact.norm(dim=1)
    scale, target, k = norms[:, None] * norms, exact.sum(0), samples // 10
    ridge = 0.5 * float(norms.square().mean())

    def error(gradients: Tensor) -> float:
        b = gradients.sum(0).numpy()
        result = omp(atoms_of(DenseGradients(gradients)), b, k, ridge=ridge)
        weights = torch.from_numpy(result.weights).to(exact)
        return float((weights @ exact[result.support] - target).norm() / target.norm())

    rows: list[measure.Row] = [
        {"numbers": words * width, "way": "exact", "inner products": 0.0, "match": error(exact)}
    ]
    for size in (1024, 4096, 8192):
        for name, way in WAYS.items():
            errors, matches, seconds = [], [], []
            for seed in range(3):
                start = time.perf_counter()
                sketched = way(delta, h, size, torch.Generator().manual_seed(seed))
                seconds.append(time.perf_counter() - start)
                products = sketched @ sketched.T
                errors.append(float(((products - gram) / scale).square().mean().sqrt()))
                matches.append(error(sketched))
            rows.append(
                {
                    "numbers": size,
                    "way": name,
                    "inner products": sum(errors) / 3,
                    "match": sum(matches) / 3,
                    "seconds": min(seconds),
                }
            )
    return rows


if __name__ == "__main__":
    main()
