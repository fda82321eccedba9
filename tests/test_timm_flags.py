"""The flags of timm's train.py: what they reach, and the line that ends a run that cannot be."""

from __future__ import annotations

import argparse
import dataclasses
import re
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import pytest
import timm.task
import torch
import yaml
from adaptive_subset.integrations import timm_flags, timm_patch
from timm.data import create_dataset, create_loader
from torch.utils.data import DataLoader

from adaptive_subset import (
    CRAIGPB,
    GLISTER,
    STRATEGIES,
    GradMatch,
    LossSampling,
    OrderDP,
    Strategy,
)
from tests.timm_run import observed_run, refusal
from tests.timm_scripts import OWN, SUBSET, call, options_of, run, scripts


def parsed(options, tmp_path=None, config=None, **defaults):
    """The strategy that a command line asks for, as the patch reads it."""
    module = ModuleType("script")
    parser = module.parser = argparse.ArgumentParser("train.py")
    for flag, default in (("--batch-size", 8), ("--epochs", 3), ("--seed", 0)):
        parser.add_argument(flag, type=int, default=default)
    parser.add_argument("--resume", default="")
    for flag in ("--mixup", "--cutmix"):
        parser.add_argument(flag, type=float, default=0.0)
    parser.add_argument("--sched-on-updates", action="store_true")
    vars(module).update(main=None, create_loader=create_loader, train_one_epoch=lambda loader: None)
    training = timm_patch.patch(module)
    parser.set_defaults(**defaults, **(config or {}))
    args = parser.parse_args(options.split())
    return training._strategy, args


def refused(capsys, options, config=None, **defaults):
    with pytest.raises(SystemExit) as caught:
        parsed(options, config=config, **defaults)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: error: ")
    assert error.count("\n") == 1
    return error


@dataclass(frozen=True)
class Newest(Strategy):
    heat: float = 0.5
    steps: int | None = None
    is_hot: bool = False
    kind: Literal["one", "two"] = "one"
    parts: object = None

    def select(self, candidates, budget, *, seed, epoch):
        raise NotImplementedError


def test_a_new_strategy_has_its_flags(monkeypatch):
    monkeypatch.setitem(STRATEGIES, "newest", Newest)
    options = "--subset-heat 0.25 --subset-steps 3 --subset-is-hot --subset-kind two"
    strategy, _ = parsed(f"--subset-budget 9 --subset-strategy newest {options}")
    assert strategy == Newest(0.25, 3, True, "two")
    strategy, _ = parsed("--subset-budget 9 --subset-strategy newest --no-subset-is-hot")
    assert strategy == Newest()
    assert "parts" not in timm_flags.strategy_flags()


def test_every_argument_of_every_strategy_is_a_flag():
    flags = timm_flags.strategy_flags()
    for name in timm_flags.strategy_names():
        kind = STRATEGIES[name]
        missing = {field.name for field in dataclasses.fields(kind)} - flags.keys()
        assert not missing, name
    assert not flags.keys() & timm_flags._RUN.keys()
    assert "infobatch" not in timm_flags.strategy_names()


def test_flags_reach_the_strategy():
    size = "--subset-fraction 0.5 --subset-strategy "
    assert parsed(size + "loss-sampling --subset-unbiased")[0] == LossSampling(unbiased=True)
    lam = "--subset-lam 0.1 --subset-scope global --subset-shares equal --no-subset-nonnegative"
    expected = GradMatch(0.1, scope="global", shares="equal", nonnegative=False)
    assert parsed(size + "gradmatch " + lam)[0] == expected
    assert parsed(size + "glister --subset-lr 2 --subset-refreshes 5")[0] == GLISTER(2.0, 5)
    assert parsed(size + "craig-pb")[0] == CRAIGPB(8)  # the batch of training
    assert parsed(size + "craig-pb --subset-batch-size 4")[0] == CRAIGPB(4)


def test_the_default_makes_no_pass_over_the_data():
    strategy, args = parsed("--subset-fraction 0.5")
    assert strategy == OrderDP()
    assert not strategy.needs_gradients
    assert args.subset_strategy == "order-dp"  # for args.yaml
    assert parsed("")[0] is None


WRONG = {
    "--subset-every 5": "exactly one of --subset-fraction, --subset-budget, --subset-tolerance",
    "--subset-fraction 0.5 --subset-budget 8": "got --subset-fraction and --subset-budget",
    "--subset-fraction 0.5 --subset-strategy best": "must be one of .*gradmatch-pb.* got best",
    "--subset-fraction 0.5 --subset-strategy infobatch": "got infobatch, whose epochs differ",
    "--subset-fraction 0.5 --subset-strategy random --subset-lam 1": "no meaning for random",
    "--subset-fraction 0.5 --subset-lam 1": "no meaning for order-dp, which takes --subset-share",
    "--subset-fraction 0.5 --subset-share 2": "--subset-share must be in",
    "--subset-fraction 0.5 --subset-strategy gradmatch --subset-lam nan": "--subset-lam must be",
    "--subset-fraction 0.5 --subset-strategy glister --subset-scope per-gradient": "--subset-scope",
    "--subset-fraction 0.5 --mixup 0.2": "cannot go with mixup or cutmix: .*Choose fresh-random",
    "--subset-fraction 0.5 --cutmix 1": "order-dp cannot go with mixup or cutmix",
    "--subset-tolerance 0.1 --subset-strategy gradmatch --sched-on-updates": "--sched-on-updates",
}


@pytest.mark.parametrize("options", WRONG)
def test_wrong_flags(options, capsys):
    assert re.search(WRONG[options], refused(capsys, options))


@pytest.mark.parametrize("option", timm_flags.REFUSED)
def test_options_that_are_refused_say_why(option, capsys):
    error = refused(capsys, "--subset-fraction 0.5", **{option: 3})
    assert re.search(rf"--{option.replace('_', '-')} cannot go with a subset: .*\.", error)


def test_what_mixes_no_samples_takes_losses():
    for option in ("jsd_loss", "bce_loss", "aug_splits", "distributed"):
        assert parsed("--subset-fraction 0.5", **{option: 3})[0] == OrderDP()
    mixed = "--subset-fraction 0.5 --mixup 0.2 --subset-strategy fresh-random"
    assert not parsed(mixed)[0].needs_losses


def test_a_baseline_is_not_run_with_the_flags_of_another_strategy(capsys):
    config = {"subset_fraction": 0.5, "subset_strategy": "gradmatch", "subset_every": 20}
    config["subset_lam"] = 0.1
    error = refused(capsys, "--subset-strategy fresh-random", config=config)
    assert "--subset-every 20, --subset-lam 0.1 of the --config file" in error
    assert "was for gradmatch" in error
    del config["subset_lam"]
    strategy, args = parsed("--subset-strategy fresh-random --subset-every 3", config=config)
    assert (strategy, args.subset_every) == (STRATEGIES["fresh-random"](), 3)
    _, args = parsed("", config=config)  # the same strategy goes on
    assert args.subset_every == 20
    _, args = parsed("--subset-strategy gradmatch", config=config)
    assert args.subset_every == 20
    del config["subset_strategy"]  # of one's own, for all strategies
    _, args = parsed("--subset-strategy fresh-random", config=config)
    assert args.subset_every == 20


CONFIGS = {
    # Dashes would train on all the data without a word, a misspelt flag with its default.
    "subset-budget": (9, "got subset-budget, which is spelt subset_budget there"),
    "subset_evry": (5, "got subset_evry. Known are subset_fraction, subset_budget,"),
    "subset_storage_dtype": ("half", "--subset-storage-dtype must be one of float32, .* got half"),
    "subset_weights": ("mean", "--subset-weights must be one of mean-one, matched, got mean"),
}


@pytest.mark.parametrize("key", CONFIGS)
def test_a_config_file_is_held_to_the_flags(key, capsys):
    value, expected = CONFIGS[key]
    options = "" if "budget" in key else "--subset-budget 9 --subset-strategy gradmatch"
    assert re.search(expected, refused(capsys, options, config={key: value}))


def test_what_is_null_in_a_config_file_is_not_given():
    assert parsed("", config={"subset_of_another_version": None})[0] is None


def test_messages_of_the_library_name_flags():
    message = "`head` must be found. Pass head=<name>, or `pool_fraction=` and `seed`; not pools=1"
    expected = "--subset-head must be found. Pass --subset-head <name>, or --subset-pool-fraction "
    assert timm_flags.in_flags(message) == expected + "and --seed; not pools=1"


@scripts
def test_flags_from_a_config_file(script, flags, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"subset_budget": 16, "subset_share": 0.8}))
    report = run(script, [*flags, "--config", str(config)])
    assert [len(epoch) for epoch in report["seen"]] == [16] * 4
    saved = yaml.safe_load((tmp_path / "run" / "args.yaml").read_text())
    subset = {name: value for name, value in saved.items() if name.startswith("subset_")}
    assert {name: value for name, value in subset.items() if value is not None} == {
        "subset_budget": 16,
        "subset_strategy": "order-dp",
        "subset_share": 0.8,
    }


@pytest.mark.slow
@scripts
def test_losses_of_training_choose_the_subset(script, flags):
    report = run(script, [*flags, "--subset-fraction", "0.5", "--aug-splits", "2"])
    lines = [line for line in report["log"] if line.startswith("Subset:")]
    assert [line.split()[1] for line in lines] == ["0", "1", "2", "3"]
    assert all(bound >= 24 for bound in report["known_losses"])


@pytest.mark.slow
@scripts
def test_the_first_selection_sets_the_size(script, flags):
    options = "--subset-tolerance 0.05 --subset-strategy gradmatch --subset-every 2"
    report = run(script, [*flags, *options.split()])
    sizes = {len(epoch) for epoch in report["seen"]}
    assert len(sizes) == 1
    assert 8 <= sizes.pop() < 48


ERRORS = {
    # train.py would drop the only batch and train on nothing.
    "--subset-budget 7": "at least one batch of 8 on each process, got 7 of 48 samples by "
    "--subset-budget 7. Choose at least 8",
    "--subset-fraction 0.02": "got 1 of 48 samples by --subset-fraction 0.02",
    "--subset-fraction nan": r"--subset-fraction must be in \(0, 1\], got nan",
    "--subset-budget 49": r"--subset-budget must be in \[1, 48\], got 49",
    "--subset-budget 24 --num-classes 3": "--num-classes must be above the largest label, got 3 "
    "and labels up to 3. Give --num-classes 4",
    "--subset-head model.fc": r"--subset-head must name a module of ResNet, got 'model.fc'. "
    r"Linear layers that the model uses: \[.*'fc'\]",
    "--subset-head conv1": "--subset-head 'conv1.6' must see one vector a sample",
    "--subset-strategy glister --model deit_tiny_distilled_patch16_224 --model-kwargs img_size=32 "
    "depth=2": "--subset-strategy glister: `model` must return the output of its one last layer",
    "--subset-pool-fraction 0.25": "--subset-pool-fraction must leave at least the budget",
    "--subset-budget 24 --subset-pool-fraction 0.9": "--subset-pool-fraction must be 1 for a strat",
    "--subset-validation validation": "split of its own, got validation, which the script eval",
    "--subset-validation val": "got val, which holds 8 images that the script evaluates on",
    "--subset-validation train": "which holds 48 images that the script trains on",
    "--aug-repeats 3": "--aug-repeats needs several processes",
    "--naflex-loader": "--naflex-loader cannot go with",
    "--train-img-sizes 32 48": "--train-img-sizes cannot go with",
    "--torchscript": "--torchscript cannot go with",
    "--jsd-loss --aug-splits 2 --task --kd-model-name resnet10t": "--jsd-loss cannot go with --kd",
}


@pytest.mark.slow
@scripts
@pytest.mark.parametrize("options", ERRORS)
def test_errors_come_in_one_line_before_the_first_epoch(script, options, flags):
    given = options_of(script, options.split())
    whole = [
        "--subset-fraction",
        "0.5",
        "--subset-strategy",
        "gradmatch",
        "--subset-warm-start",
        "0.5",
    ]
    if any(size in options for size in ("--subset-budget", "--subset-fraction")):
        whole = []
    error = call(refusal, script, [*flags, *whole, *given])
    assert re.search(ERRORS[options], error)
    assert error.count("\n") == 1


def test_glister_follows_a_convolution(flags):
    options = ["--subset-strategy", "glister", "--model", "resnetv2_18", "--epochs", "1"]
    report = observed_run(OWN, [*flags, "--subset-fraction", "0.5", *options])
    assert len(report["selection"]) == 24


def scripted(**names):
    module = ModuleType("script")
    parser = argparse.ArgumentParser("train.py")
    for flag, default in (("--batch-size", 8), ("--epochs", 3), ("--seed", 0)):
        parser.add_argument(flag, type=int, default=default)
    vars(module).update({"parser": parser, "main": None, "train_one_epoch": lambda loader: None})
    vars(module).update(names)
    timm_patch.patch(module)
    module.parser.parse_args(["--subset-fraction", "0.5"])
    return module


def test_a_stream_is_refused(capsys):
    class Stream(torch.utils.data.IterableDataset[int]):
        def __iter__(self):
            return iter(())

    module = scripted(create_loader=create_loader)
    with pytest.raises(SystemExit):
        module.create_loader(Stream(), 24, 4, is_training=True)
    assert "access by index, got a stream (Stream)" in capsys.readouterr().err


def test_a_sampler_that_would_be_lost_is_refused(images, capsys):
    def with_repeats(dataset, is_training=False):
        return DataLoader(dataset, sampler=[0, 0, 1])

    module = scripted(create_loader=with_repeats)
    with pytest.raises(SystemExit):
        module.create_loader(create_dataset("", str(images / "train")), is_training=True)
    assert "the place of a sampler that shuffles, got list" in capsys.readouterr().err


def test_another_task_is_refused(flags, monkeypatch):
    class MultiLabelTask(timm.task.ClassificationTask):
        pass

    monkeypatch.setattr(timm.task, "ClassificationTask", MultiLabelTask)
    error = refusal(OWN, [*flags, *SUBSET, "--task"])
    assert "a subset cannot go with timm's MultiLabelTask" in error


def test_other_errors_keep_their_traceback(flags, monkeypatch):
    def broken(*_, **__):
        raise ValueError("a bug")

    monkeypatch.setattr("adaptive_subset.integrations.timm_data.check_labels", broken)
    with pytest.raises(ValueError, match="a bug"):
        observed_run(OWN, [*flags, *SUBSET])
