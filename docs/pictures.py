"""Draws how-batch.svg and how-selection.svg beside this file: `python docs/pictures.py`.

Colours that can be read on light and on dark pages alike, since a picture does not know its page.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

WIDTH, HEIGHT, GAP = 420, 62, 26
BATCH = (
    ("AdaptiveSubsetSampler", "draws an index, with its weight: a TaggedIndex"),
    ("sampler.dataset", "reads the sample; its target becomes a WeightedTarget"),
    ("DataLoader, mixup, .to(device)", "collate and move it; the weights come along"),
    ("your model", "sees plain tensors, untouched"),
    ("WeightedLoss", "L = Σ wᵢℓᵢ / Z, or raises where weights were lost"),
    ("the record of losses", "what strategies such as OrderDP choose by"),
)
SELECTION = (
    ("sampler.maybe_reselect(model, epoch)", "on all ranks: is a selection due?"),
    ("pool", "the data without augmentation, or a part of them"),
    ("one inference pass", "the model is left as it was found"),
    ("last-layer gradients", "gᵢ = δᵢ ⊗ hᵢ of each sample, held as factors"),
    ("strategy", "k positions and weights with Σ wᵢgᵢ ≈ b"),
    ("Selection", "checked; tells its error, sizes and seconds"),
)


def flow(steps: tuple[tuple[str, str], ...]) -> str:
    """Boxes from top to bottom, with arrows between them."""
    tall = len(steps) * (HEIGHT + GAP) - GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {tall}" width="{WIDTH}" '
        'font-family="system-ui, DejaVu Sans, sans-serif" text-anchor="middle">',
        f"<title>{escape(' → '.join(title for title, _ in steps))}</title>",
    ]
    for number, (title, words) in enumerate(steps):
        top, middle = number * (HEIGHT + GAP), WIDTH // 2
        own = "your" in title or "DataLoader" in title
        fill = "#5b6577" if own else "#3f51b5"
        parts += [
            f'<rect y="{top}" width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{fill}"/>',
            f'<text x="{middle}" y="{top + 26}" font-size="16" font-weight="600" fill="#fff">'
            f"{escape(title)}</text>",
            f'<text x="{middle}" y="{top + 47}" font-size="13.5" fill="#fff">'
            f"{escape(words)}</text>",
        ]
        if number + 1 < len(steps):
            start, end = top + HEIGHT + 3, top + HEIGHT + GAP - 3
            parts.append(
                f'<path d="M{middle} {start}V{end - 7}M{middle - 6} {end - 8}l6 8 6 -8" '
                'fill="none" stroke="#7a869a" stroke-width="2.5"/>'
            )
    return "\n".join([*parts, "</svg>", ""])


def pictures() -> dict[str, str]:
    """The text of each file by its name."""
    return {"how-batch.svg": flow(BATCH), "how-selection.svg": flow(SELECTION)}


if __name__ == "__main__":
    for name, text in pictures().items():
        Path(__file__).with_name(name).write_text(text)
