"""An adapter on two processes: what one of them saves in mid-epoch holds the losses of both."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from adaptive_subset import OrderDP
from adaptive_subset.integrations.accelerate_loader import SubsetLoader

def run(stop=None, resume=False):
    torch.manual_seed(0)
    accelerator, model = Accelerator(cpu=True), nn.Linear(4, 3)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1))
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(3, (200,), generator=generator)
    data = TensorDataset(torch.randn(200, 4, generator=generator), labels)
    loader, criterion = DataLoader(data, batch_size=8, shuffle=True), nn.CrossEntropyLoss()
    subset = SubsetLoader(accelerator, loader, criterion, OrderDP(), fraction=0.5)
    if resume:
        accelerator.load_state(sys.argv[1])
    step = 0
    for epoch in range(subset.epoch, 4):
        for x, y in subset.batches(model, epoch):
            accelerator.backward(subset.criterion(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step == stop:
                accelerator.save_state(sys.argv[1])
                return None
    return accelerator.unwrap_model(model).weight.detach().clone()

whole = run()
run(stop=10)
assert torch.equal(run(resume=True), whole)
print("equal")
"""


@pytest.mark.slow
def test_losses_of_all_processes_are_saved_in_mid_epoch(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, str(script), str(tmp_path / "state")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.count("equal") == 2, done.stderr
