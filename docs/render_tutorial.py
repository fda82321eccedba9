"""Runs examples/tutorial.py and writes it as a page, with what it prints and draws.

    python docs/render_tutorial.py

Writes tutorial.md and tutorial-*.png beside this file.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
SCRIPT = DOCS.parent / "examples" / "tutorial.py"


def cells() -> list[tuple[bool, str]]:
    """(is it text, content) of each cell of the script."""
    found = []
    for part in re.split(r"^# %%", SCRIPT.read_text(), flags=re.MULTILINE)[1:]:
        kind, _, content = part.partition("\n")
        is_text = "[markdown]" in kind
        if is_text:
            content = re.sub(r"^# ?", "", content, flags=re.MULTILINE)
        found.append((is_text, content.strip()))
    return found


def render(folder: Path) -> str:
    """The page; its figures are written to `folder`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    parts, drawn = [], 0
    names: dict[str, Any] = {}
    for is_text, content in cells():
        if is_text:
            parts.append(content)
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(content, str(SCRIPT), "exec"), names)
        parts.append(f"```python\n{content}\n```")
        if printed.getvalue():
            parts.append(f"```text\n{printed.getvalue().rstrip()}\n```")
        for number in plt.get_fignums():
            drawn += 1
            plt.figure(number).savefig(folder / f"tutorial-{drawn}.png", dpi=110)
            parts.append(f"![Figure {drawn}](tutorial-{drawn}.png)")
        plt.close("all")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    (DOCS / "tutorial.md").write_text(render(DOCS))
