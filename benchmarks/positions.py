"""The pass over a language model's sequences: time in bare inference passes, and memory.

    OMP_NUM_THREADS=1 python -m benchmarks.positions --width 768 --layers 12 --sequences 40
    OMP_NUM_THREADS=1 python -m benchmarks.positions --width 256 --layers 4 --sequences 10000

A GPT-2 of random weights. Each batch is run bare and for its gradients in turn, so that whatever
else the machine does slows both alike; seconds are those of the process on its processors.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from adaptive_subset import TokenLoss
from adaptive_subset.gradients.collect import last_layer_gradients
from adaptive_subset.gradients.sketch import Sketch
from benchmarks.measure import markdown, peak, resident


class InTurn:
    """Batches of tokens; each is run by a bare model before it is handed out, both are timed."""

    def __init__(self, model: Any, tokens: Tensor, size: int) -> None:
        self._model, self._batches = model, tokens.split(size)
        self.bare: list[float] = []
        self.ours: list[float] = []

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in self._batches:
            start = time.process_time()
            with torch.inference_mode():
                self._model(input_ids=batch)
            end = time.process_time()
            yield {"input_ids": batch, "labels": batch}
            self.bare.append(end - start)
            self.ours.append(time.process_time() - end)


def measured(width: int, layers: int, sequences: int, options: argparse.Namespace) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=options.words,
        n_positions=options.length,
        n_embd=width,
        n_layer=layers,
        n_head=max(1, width // 64),
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    model = GPT2LMHeadModel(config).eval()
    shared = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    tokens = torch.randint(options.words, (sequences, options.length))
    batches, before = InTurn(shared, tokens, options.batch_size), resident()
    gradients = last_layer_gradients(
        model,
        batches,
        TokenLoss(shift=True),
        sketch=Sketch(options.sketch, 0),
        size=sequences,
    )[0]
    assert gradients.is_estimate
    rest = slice(1, None)  # the first batch finds the head as well
    return {
        "width": width,
        "layers": layers,
        "sequences": sequences,
        "bare (s)": sum(batches.bare),
        "ours (s)": sum(batches.ours),
        "ratio": sum(batches.ours) / sum(batches.bare),
        "ratio without the first batch": sum(batches.ours[rest]) / sum(batches.bare[rest]),
        "GiB above the model": peak() - before,
        "of it sketches": 4 * sequences * options.sketch / 2**30,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    whole = {"width": 256, "layers": 4, "sequences": 40, "words": 32_000, "length": 256}
    for name, default in (whole | {"batch-size": 4, "sketch": 8192}).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(arguments)
    print(f"{options.words} words, sequences of {options.length}, {options.batch_size} a batch")
    print(markdown([measured(options.width, options.layers, options.sequences, options)]))


if __name__ == "__main__":
    main()
