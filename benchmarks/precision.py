"""What a selection loses where its pass, or what is kept of it, is in half precision.

    python -m benchmarks.precision --data mnist

A network after an epoch of training. `pass`: what the model runs in, by autocast; `kept`: the dtype
of the factors of the gradients. Of 10 % of the samples, `same`: the share of the picks that are
those of float32 throughout, too, and `error`: ‖Σ wᵢgᵢ − b‖ / ‖b‖ over the whole last layer, of the
gradients in float32. The last row of each strategy is float32 again, one step of training later.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader

from adaptive_subset import Candidates, GradMatch, GradMatchPB
from adaptive_subset.gradients import GradientSource
from benchmarks import measure, trained

CASES = (
    (torch.float32, torch.float32),
    (torch.float32, torch.float16),
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
)


def main() -> None:
    parser = measure.parser(__doc__, "precision.json")
    parser.add_argument("--limit", type=int, default=10_000, help="samples (10,000)")
    options = parser.parse_args()
    images = trained.images(options.data, options.limit)
    model, criterion = trained.network(images), nn.CrossEntropyLoss()
    place = next(model.parameters()).device

    def read(runs_in: torch.dtype, kept: torch.dtype) -> Candidates:
        source = GradientSource(images.plain, storage_dtype=kept)
        with torch.autocast(place.type, runs_in, enabled=runs_in != torch.float32):
            found = source.read(model, criterion, size=len(images.plain))
        return Candidates(len(images.plain), found.gradients, found.classes)

    cases = {(name(a), name(b)): read(a, b) for a, b in CASES}
    exact = cases["float32", "float32"]
    x, y = next(iter(DataLoader(images.plain, 128)))
    optimizer = torch.optim.SGD(model.train().parameters(), 0.01)
    criterion(model(x.to(place)), y.to(place)).backward()
    optimizer.step()
    model.eval()
    cases["float32, a step later", "float32"] = read(torch.float32, torch.float32)

    size = len(images.plain) // 10 // 128 * 128
    rows: list[measure.Row] = []
    for strategy in (GradMatch(), GradMatchPB()):
        found = {
            case: strategy.choose(given, size, seed=0, epoch=0) for case, given in cases.items()
        }
        known = set(found["float32", "float32"].positions.tolist())
        for (runs_in, kept), choice in found.items():
            row: measure.Row = {
                "strategy": type(strategy).__name__,
                "pass": runs_in,
                "kept": kept,
                "same": len(known & set(choice.positions.tolist())) / size,
                "error": exact.relative_error(choice),
            }
            rows.append(row)
    measure.report(options.out, rows)


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    main()
