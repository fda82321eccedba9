# %% [markdown]
# # Tutorial: look at what is chosen
#
# Handwritten digits of 8 × 8 pixels, a small network, and a tenth of the samples at a time. It
# takes some seconds on a CPU; `python examples/tutorial.py` runs it, and so do the tests.

# %%
from itertools import pairwise

import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from adaptive_subset import AdaptiveSubsetSampler, GradMatch, Selector, WeightedLoss

torch.manual_seed(0)
digits = load_digits()
order = torch.randperm(len(digits.target))
x = torch.tensor(digits.data, dtype=torch.float32)[order] / 16
y = torch.tensor(digits.target)[order]
train_set = TensorDataset(x[:1400], y[:1400])
test_x, test_y = x[1400:], y[1400:]

# %% [markdown]
# ## Train on a tenth
#
# `GradMatch()` chooses 140 samples and weights them so that their weighted gradient is that of all
# 1,400. Every five epochs it does so anew, for the network as it stands then.

# %%
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

selector = Selector(train_set, GradMatch(), fraction=0.1)
sampler = AdaptiveSubsetSampler(selector, every=5)
loader = DataLoader(sampler.dataset, batch_size=32, sampler=sampler)
criterion = WeightedLoss(nn.CrossEntropyLoss(), selector)

selections, errors = [], []
for epoch in range(30):
    selection = sampler.maybe_reselect(model, epoch)
    if selection is not None:
        selections.append(selection)
    for inputs, targets in loader:
        loss = criterion(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        wrong = model(test_x).argmax(1) != test_y
    errors.append(100 * wrong.float().mean().item())

print(f"{len(selections)} selections of {len(selections[0])} samples")
print(f"error on the test set: {errors[0]:.1f} % after one epoch, {errors[-1]:.1f} % at the end")

# %% [markdown]
# ## The error over the epochs
#
# Lines are where a new subset was chosen.

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(range(1, 31), errors, marker=".")
for selection in selections:
    axes.axvline(selection.epoch + 0.5, color="grey", lw=0.5)
axes.set(xlabel="epoch", ylabel="test error (%)", ylim=(0, None))

# %% [markdown]
# ## The images with the largest weights
#
# A weight says how many samples stand behind the chosen one. Of the first selection, when the
# network knows nothing, and of the last (label: weight):

# %%
figure, rows = plt.subplots(2, 8, figsize=(6, 2.2), layout="constrained")
for row, selection in zip(rows, (selections[0], selections[-1]), strict=True):
    largest = selection.weights.topk(8).indices
    for axes, position in zip(row, largest.tolist(), strict=True):
        index = int(selection.indices[position])
        axes.imshow(x[index].view(8, 8).numpy(), cmap="gray_r")
        axes.set_title(f"{y[index]}: {selection.weights[position]:.0f}", fontsize=8)
        axes.axis("off")

# %% [markdown]
# ## How the subset changes
#
# How many samples two selections share, where two random ones would share a tenth:

# %%
chosen = [set(selection.indices.tolist()) for selection in selections]
for before, after in pairwise(selections):
    kept = set(before.indices.tolist()) & set(after.indices.tolist())
    print(f"epoch {before.epoch:2} to {after.epoch:2}: {len(kept) / len(after):.0%} stay")
print(f"{len(set.union(*chosen))} of {len(train_set)} samples were chosen at least once")

# %% [markdown]
# ## How good a selection is
#
# Each one tells its relative gradient error, and the effective sample size of its weights. As the
# network learns, few samples still have a gradient, and weights become less equal.

# %%
for figures in sampler.history:
    error, size = figures["relative_error"], figures["effective_size"]
    print(f"epoch {figures['epoch']:2}: error {error:.3f}, effective size {size:.0f}")

# %% [markdown]
# `adaptive_subset.integrations.plot.plot` draws all this of a run of yours. Whether a subset was
# worth it is another question, which [the comparison](comparison.md) asks: train on random samples
# for as many steps, at the best learning rate of each, before you conclude anything.
