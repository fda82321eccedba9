"""timm's train.py on adaptive subsets, see `tests.timm_scripts` for the scripts."""

from __future__ import annotations

import argparse
import copy
import functools
import pickle
import shutil
import subprocess
import sys
import tarfile
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from adaptive_subset.integrations import timm_data, timm_flags, timm_model, timm_patch
from timm.data import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    AugMixDataset,
    create_dataset,
    create_loader,
)
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import DataLoader

from adaptive_subset import GradMatchPB, Selector
from tests.timm_run import CLASSES, observed_run
from tests.timm_scripts import (
    BATCH,
    OWN,
    PER_CLASS,
    SUBSET,
    WORKER,
    options_of,
    rows,
    run,
    run_distributed,
    scripts,
)

MODES = {
    "plain": "-j 1",
    "no prefetcher": "--no-prefetcher",
    "mixup batch": "--mixup 0.5 --cutmix 1 --smoothing 0 -j 1",
    "mixup pair": "--mixup 0.5 --cutmix 1 --smoothing 0 --mixup-mode pair --mixup-off-epoch 3",
    "mixup elem": "--mixup 0.5 --cutmix 1 --smoothing 0 --mixup-mode elem --bce-loss",
    "mixup half": "--mixup 0.5 --cutmix 1 --smoothing 0 --mixup-mode half",
    "mixup batch, no prefetcher": "--mixup 0.5 --cutmix 1 --smoothing 0 --no-prefetcher",
    "mixup pair, no prefetcher": "--mixup 0.5 --smoothing 0 --no-prefetcher --mixup-mode pair "
    "--mixup-off-epoch 3",
    "mixup elem, no prefetcher": "--cutmix 1 --smoothing 0 --no-prefetcher --mixup-mode elem",
    "bce": "--bce-loss --bce-target-thresh 0.2",
    "bce sum": "--bce-loss --bce-sum",
    "cross-entropy": "--smoothing 0",
    "jsd": "--aug-splits 3 --jsd-loss -j 1",
    "jsd, no smoothing": "--aug-splits 2 --jsd-loss --smoothing 0",
    "aug splits": "--aug-splits 2",
    "amp": "--amp --amp-dtype bfloat16 --channels-last",
    "ema, accumulation, clipping": "--model-ema --grad-accum-steps 2 --clip-grad 1.0",
    "bfloat16": "--model-dtype bfloat16",
    "compile": "--torchcompile aot_eager",
    "head by name": "--subset-head fc",
    "two heads": "--model deit_tiny_distilled_patch16_224 --model-kwargs img_size=32 depth=2",
    "multi-epochs loader": "--use-multi-epochs-loader -j 1",
    "validation": "--subset-validation clean",
    "part of the pool": "--subset-pool-fraction 0.75 -j 1",
    "stored in 16 bits": "--subset-storage-dtype float16",
    "stored in a file": "--subset-storage-dir .",
    "feature teacher": "--task --kd-model-name resnet18 --kd-distill-type feature",
    "teacher": "--task --kd-model-name resnet10t --mixup 0.5 --smoothing 0",
    "token teacher": "--task --kd-model-name resnet10t --kd-distill-type token "
    "--model deit_tiny_distilled_patch16_224 --model-kwargs img_size=32 depth=2",
}


@pytest.mark.slow
@scripts
@pytest.mark.parametrize("mode", MODES)
def test_weights_reach_the_loss_with_their_samples(script, mode, flags, tmp_path):
    options = MODES[mode].split()
    options = options_of(script, options)
    report = run(script, [*flags, *SUBSET, "--subset-warm-start", "0.25", *options])
    n, k = CLASSES * PER_CLASS, CLASSES * PER_CLASS // 2
    assert [len(set(epoch)) for epoch in report["seen"]] == [k] * 4
    assert set(report["lengths"]) == {k // BATCH}
    assert report["seen"][0] != report["seen"][1]
    assert set(report["seen"][1]) == set(report["seen"][2]) != set(report["seen"][3])
    assert set(report["seen"][3]) == set(report["selection"])
    weighted = [-size for size in report["calls"] if size < 0]
    assert len(report["calls"]) == 4 * k // BATCH
    assert len(weighted) >= 2 * k // BATCH
    assert set(weighted) == {BATCH if "half" not in mode else BATCH // 2} or "splits" in mode
    lines = [line for line in report["log"] if line.startswith("Subset:")]
    assert [line.split()[1] for line in lines] == ["1", "3"]
    assert f"[  {k}/{n} ( 50%)]" in lines[0]
    assert [row["epoch"] for row in rows(tmp_path)] == ["0", "1", "2", "3"]


@pytest.mark.slow
@scripts
def test_without_flags_the_run_is_that_of_the_script(script, flags, tmp_path):
    flags += [*WORKER, "--epochs", "2"]
    command = [sys.executable, str(script), *flags, "--experiment", "script"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "-m", "adaptive_subset.integrations.timm_patch", str(script)]
    done = subprocess.run([*command, *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = (tmp_path / "script" / "summary.csv").read_bytes()
    assert len(expected.splitlines()) == 3
    assert (tmp_path / "run" / "summary.csv").read_bytes() == expected


@pytest.mark.slow
@scripts
def test_two_processes_share_one_subset(script, flags, tmp_path):
    first, second = run_distributed(script, [*flags, *SUBSET, "-b", "4"], tmp_path, 2)
    k = CLASSES * PER_CLASS // 2
    assert first["selection"] == second["selection"]
    for own, other in zip(first["seen"], second["seen"], strict=True):
        assert len(own) == len(other) == k // 2
        assert not set(own) & set(other)
    assert first["seen"][2] != first["seen"][0]
    assert set(first["seen"][3] + second["seen"][3]) == set(first["selection"])
    assert len([line for line in first["log"] if "Subset" in line]) == 2
    assert not [line for line in second["log"] if "Subset" in line]


@pytest.mark.slow
@scripts
def test_help_shows_the_flags(script):
    file = timm_patch.__file__  # a file, too, can be run
    done = subprocess.run([sys.executable, file, script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--subset-fraction F" in done.stdout
    assert "--batch-size" in done.stdout


def test_a_task_holds_the_weighted_criterion(flags):
    report = observed_run(OWN, [*flags, *SUBSET, "--task"])
    assert any(size < 0 for size in report["calls"])


# What can only be seen close up.


@pytest.mark.parametrize(("splits", "mode"), [(0, "RGB"), (3, "RGB"), (0, "L")])
def test_the_pool_is_the_training_set_as_evaluation_sees_it(images, splits, mode):
    root, size = str(images / "train"), (len(mode), 24, 24)
    options = {"input_size": size, "num_workers": 1, "device": torch.device("cpu")}
    options.update(batch_size=5, persistent_workers=False)
    options.update(mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD)  # whatever the channels
    dataset = create_dataset("", root, input_img_mode=mode)
    if splits:
        dataset = AugMixDataset(dataset, splits)
    training = create_loader(dataset, is_training=True, num_aug_splits=splits, **options)
    transform = copy.copy(dataset.transform)
    arguments = {"dataset": dataset, "interpolation": "random", **options}
    pool = timm_data.EvaluationImages(dataset)
    pool.dataset.transform = timm_data.evaluation_transform(create_loader, arguments, {})
    seen = [
        torch.stack([torch.as_tensor(part) for part in parts]) for parts in zip(*pool, strict=True)
    ]
    plain = create_loader(create_dataset("", root, input_img_mode=mode), **options)
    expected = [torch.cat(parts) for parts in zip(*plain, strict=True)]
    torch.testing.assert_close(seen[0], expected[0], rtol=0, atol=1e-5)  # normalised on the device
    assert torch.equal(seen[1], expected[1])
    assert dataset.transform.transforms == transform.transforms
    assert len(next(iter(training))[0]) == max(1, splits) * 5


def a_tar_file(folder):
    path = folder.with_suffix(".tar")
    with tarfile.open(path, "w") as file:
        file.add(folder, arcname=".")
    return create_dataset("", str(path))


def test_workers_share_no_tar_file_with_the_process_that_forks_them(images):
    images = images / "train"
    dataset = a_tar_file(images)
    pool = timm_data.EvaluationImages(dataset, transform=np.array)
    plain = create_dataset("", str(images), transform=np.array)
    assert np.array_equal(pool[1][0], plain[1][0])
    assert dataset.reader.tar_state.tf is None
    assert len(pickle.loads(pickle.dumps(pool))) == len(plain)  # for workers that are spawned
    pool._reader.tar_state.tf.close()  # as timm's readers do not
    read = list(DataLoader(pool, batch_size=None, num_workers=2))
    assert dataset.reader.tar_state.tf is None
    for (image, label), (expected, of) in zip(read, plain, strict=True):
        assert label == of
        assert np.array_equal(image, expected)


def test_a_split_to_match_may_be_a_tar_file(images, tmp_path):
    folder = shutil.copytree(images, tmp_path / "images")
    splits = {name: a_tar_file(folder / name) for name in ("train", "validation", "clean")}
    shutil.rmtree(folder / "clean" / "class1")
    splits["lacking"] = a_tar_file(folder / "clean")
    clean, training = (timm_data.EvaluationImages(splits[name]) for name in ("clean", "train"))
    timm_data.check_validation(clean, splits["validation"], training, "clean.tar")
    lacking = timm_data.EvaluationImages(splits["lacking"])
    with pytest.raises(timm_flags.Refusal, match=r"got clean\.tar with 3 and 4 there"):
        timm_data.check_validation(lacking, splits["validation"], training, "clean.tar")
    with pytest.raises(timm_flags.Refusal, match="which holds 48 images that the script trains on"):
        timm_data.check_validation(training, splits["validation"], training, "train.tar")
    with pytest.raises(timm_flags.Refusal, match="got 3 and labels up to 3"):
        timm_data.check_labels(training, 3)
    training._reader.tar_state.tf.close()


def are_told_apart(split, of_its_own, evaluated, count):
    """A split of its own may be matched; what is evaluated or trained on, `count` images, not."""
    training, held_out = split("train"), split(evaluated).dataset
    timm_data.check_validation(split(of_its_own), held_out, training, of_its_own)
    for same, use in ((evaluated, "evaluates on"), ("train", "trains on")):
        message = f"got {same}, which holds {count} images that the script {use}"
        with pytest.raises(timm_flags.Refusal, match=message):
            timm_data.check_validation(split(same), held_out, training, same)


def test_splits_of_torchvision_are_told_apart(images):
    def split(name):
        dataset = create_dataset("torch/image_folder", str(images), split=name)
        return timm_data.EvaluationImages(dataset)

    are_told_apart(split, of_its_own="clean", evaluated="validation", count=r"\d+")
    training, held_out = split("train"), split("validation").dataset
    # Without such a folder, timm takes the splits for classes.
    with pytest.raises(timm_flags.Refusal, match="got dev with 3 and 4 there"):
        timm_data.check_validation(split("dev"), held_out, training, "dev")
    with pytest.raises(timm_flags.Refusal, match="got 3 and labels up to 3"):
        timm_data.check_labels(training, 3, count=1)


def test_splits_of_hugging_face_are_told_apart_without_reading_them(images):
    class Table:  # as timm's ReaderHfds: the name of an image is a part of its row, if anything
        def __init__(self, split):
            self.root, self.split = None, split

        def filenames(self, basename=False, absolute=False):
            raise AssertionError("this reads all images")

        def __len__(self):
            return 9

    def split(name):
        dataset = create_dataset("", str(images / "train"))
        dataset.reader = Table(name)
        return timm_data.EvaluationImages(dataset)

    are_told_apart(split, of_its_own="validation", evaluated="test", count=9)


def test_labels_are_known_without_reading_an_image(images):
    dataset = create_dataset("", str(images / "train"))
    expected = [label for _, label in dataset]
    assert timm_data.EvaluationImages(dataset).labels() == expected
    dataset.reader = SimpleNamespace(iter_targets=lambda: iter(expected))  # of Hugging Face
    assert timm_data.EvaluationImages(dataset).labels() == expected
    # Of tar files; where a class is left out, targets are not its folders.
    dataset.reader = SimpleNamespace(samples=[("name", "file", None)], targets=[1])
    assert timm_data.EvaluationImages(dataset).labels() == [1]
    of_torchvision = SimpleNamespace(targets=[2, 0, 1])
    assert timm_data.EvaluationImages(of_torchvision).labels() == [2, 0, 1]
    for silent in (SimpleNamespace(), SimpleNamespace(reader=SimpleNamespace())):
        with pytest.raises(timm_flags.Refusal, match="must know the labels of all images"):
            timm_data.EvaluationImages(silent).labels()


@scripts
def test_classes_come_in_equal_numbers(script, flags, images, tmp_path):
    folder = shutil.copytree(images, tmp_path / "images")
    for rare in sorted((folder / "train").iterdir())[1:]:
        for image in sorted(rare.iterdir())[4:]:
            image.unlink()
    subset = ["--subset-budget", str(4 * CLASSES), "--subset-strategy", "balanced"]
    report = run(script, [*flags, "--data-dir", str(folder), *subset])
    labels = [c for c, n in enumerate([PER_CLASS] + [4] * (CLASSES - 1)) for _ in range(n)]
    counts = [torch.bincount(torch.tensor(labels)[epoch]).tolist() for epoch in report["seen"]]
    assert counts == [[4] * CLASSES] * len(counts)
    assert report["seen"][0] != report["seen"][1]


def test_the_selection_runs_as_training_does():
    seen = []

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(3, 2)

        def forward(self, images):
            enabled = torch.is_autocast_enabled("cpu")
            seen.append((enabled, images.is_contiguous(memory_format=torch.channels_last)))
            return self.fc(images.mean((2, 3)))

    model, images = Model(), torch.randn(4, 3, 5, 5)
    compiled = torch.compile(torch.nn.parallel.DataParallel(model), backend="eager")
    autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16)
    twin = timm_model.as_trained(compiled, autocast, torch.channels_last)
    assert twin(images).dtype == torch.bfloat16
    assert seen == [(True, True)]
    assert dict(twin.named_parameters()).keys() == dict(model.named_parameters()).keys()
    assert all(p is q for p, q in zip(twin.parameters(), model.parameters(), strict=True))
    assert type(model) is Model
    assert model(images).dtype == torch.float32


def test_repeats_go_to_different_processes():
    n, k, repeats = 24, 12, 3
    seen = []
    for rank in range(3):
        selector = Selector(
            list(zip(torch.randn(n, 2), range(n), strict=True)), "fresh-random", budget=k
        )
        sampler = timm_data.EpochSampler(selector, repeats=repeats, shares=(3, rank), every=1)
        sampler.maybe_reselect(torch.nn.Linear(2, 2), 0)
        epoch = [int(index) for index in sampler]
        assert len(epoch) == len(sampler) == k // 3
        assert all(index.weight == 1 for index in sampler)
        seen.append(epoch)
    assert seen[0] == seen[1] == seen[2]  # with as many repeats as processes each sees all of them
    assert len(set(seen[0])) == k // 3
    assert set(seen[0]) <= set(selector.selection.indices.tolist())


@pytest.mark.parametrize(("repeats", "processes"), [(3, 2), (2.5, 2), (2, 4), (1, 2), (0, 2)])
def test_repeats_are_those_of_timm(repeats, processes):
    n, order = 24, None
    for rank in range(processes):
        selector = Selector(list(zip(torch.randn(n, 2), range(n), strict=True)), "random", budget=n)
        sampler = timm_data.EpochSampler(selector, repeats=repeats, shares=(processes, rank))
        sampler.maybe_reselect(torch.nn.Linear(2, 2), 0)
        if order is None:  # of a run of one process
            alone = Selector(selector.dataset, "random", budget=n)
            alone = timm_data.EpochSampler(alone, repeats=0, shares=(1, 0))
            alone.maybe_reselect(torch.nn.Linear(2, 2), 0)
            order = [int(index) for index in alone]
        theirs = RepeatAugSampler(
            order, processes, rank, shuffle=False, num_repeats=max(1, repeats), selected_round=0
        )
        assert [int(index) for index in sampler] == [order[i] for i in theirs]


def test_mini_batches_are_repeated_as_a_whole():
    data = [(torch.randn(2), i % 2) for i in range(24)]
    for rank in range(2):
        strategy = GradMatchPB(batch_size=4)
        selector = Selector(data, strategy, budget=16, criterion=torch.nn.CrossEntropyLoss())
        sampler = timm_data.EpochSampler(selector, repeats=2, shares=(2, rank))
        selection = sampler.maybe_reselect(torch.nn.Linear(2, 2), 0)
        batches = torch.tensor([int(index) for index in sampler]).view(-1, 4).tolist()
        chosen = selection.indices.view(-1, 4).tolist()
        assert len(batches) == 2
        assert all(batch in chosen for batch in batches)


def a_script(**names):
    module = ModuleType("script")
    parser = argparse.ArgumentParser()
    for flag, default in (("--batch-size", 8), ("--epochs", 3), ("--seed", 0)):
        parser.add_argument(flag, type=int, default=default)
    vars(module).update({"parser": parser, "main": None, "train_one_epoch": lambda loader: None})
    vars(module).update(names)
    return module


@pytest.mark.parametrize("name", ["parser", "main", "create_loader", "train_one_epoch"])
def test_a_script_that_lacks_a_name(name):
    module = a_script(create_loader=create_loader)
    delattr(module, name)
    with pytest.raises(ValueError, match=rf"got script without {name}\. Tested are .* 1\.0\.28"):
        timm_patch.patch(module)


def test_patching_twice():
    module = a_script(create_loader=create_loader)
    timm_patch.patch(module)
    with pytest.raises(ValueError, match="patched once, got script a second time"):
        timm_patch.patch(module)


def test_another_loader_is_refused():
    module = a_script(create_loader=create_loader)
    timm_patch.patch(module)
    module.parser.parse_args(["--subset-fraction", "0.5"])
    with pytest.raises(ValueError, match=r"got another list\. Tested are the scripts of timm"):
        module.train_one_epoch([])


def test_a_missing_file():
    with pytest.raises(FileNotFoundError, match=r"got nowhere/train\.py: no such file"):
        timm_patch.load("nowhere/train.py")


@scripts
def test_figures_go_to_the_summary_and_to_wandb(script, flags, tmp_path):
    report = run(script, [*flags, *SUBSET, "--subset-warm-start", "0.25", "--log-wandb"])
    table = rows(tmp_path)
    assert [row["train_subset_epoch"] for row in table] == ["", "1", "1", "3"]
    assert table[1]["train_subset_size"] == str(CLASSES * PER_CLASS // 2)
    assert float(table[1]["train_subset_relative_error"]) > 0
    logged = [figures for figures, _ in report["wandb"] if "train_subset_size" in figures]
    assert [figures["train_subset_epoch"] for figures in logged] == [None, 1, 1, 3]


@pytest.mark.slow
def test_importing_the_patch_imports_no_timm():
    code = "import sys, adaptive_subset.integrations.timm_patch; assert 'timm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
