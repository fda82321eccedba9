"""timm's train.py, interrupted and resumed on the same subsets."""

from __future__ import annotations

import argparse

import pytest
import torch
from adaptive_subset.integrations import timm_flags, timm_resume

from adaptive_subset import AdaptiveSubsetSampler, Selector
from tests.timm_run import CLASSES, observed_run, refusal
from tests.timm_scripts import (
    OWN,
    PER_CLASS,
    SUBSET,
    rows,
    run,
    run_distributed,
    scripts,
)

LOSSES = ["--subset-fraction", "0.5", "--subset-strategy", "order-dp"]
# train.py draws augmentations anew when it resumes; all else goes on bit by bit.
SAME = ["--no-aug"]


def checkpoint(folder, name, epoch):
    return str(folder / name / f"checkpoint-{epoch}.pth.tar")


def files(folder, name):
    return {int(file.stem.removeprefix("subset-")) for file in (folder / name).glob("subset-*")}


def weights(path):
    return torch.load(path, weights_only=False)["state_dict"]


def equal(one, other):
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
@scripts
@pytest.mark.parametrize("options", [SUBSET, LOSSES], ids=["by-class", "order-dp"])
def test_a_resumed_run_goes_on_bit_by_bit(script, options, flags, tmp_path):
    flags = [*flags, *options, *SAME]  # by-class is chosen before the epochs 0 and 2
    whole = run(script, [*flags, "--experiment", "whole"])
    made = {0: ["2"], 2: []} if options is SUBSET else {0: ["1", "2", "3"], 2: ["3"]}
    for last in (0, 2):
        name = f"after-{last}"
        start = ["--resume", checkpoint(tmp_path, "whole", last), "--experiment", name]
        rest = run(script, [*flags, *start])
        assert rest["seen"] == whole["seen"][last + 1 :]
        assert rest["selection"] == whole["selection"]
        assert [line.split()[1] for line in rest["log"] if "Subset" in line] == made[last]
        assert equal(checkpoint(tmp_path, name, 3), checkpoint(tmp_path, "whole", 3))
        assert files(tmp_path, name) == set(range(last + 1, 4))
    assert files(tmp_path, "whole") == {0, 1, 2, 3}


@pytest.mark.slow
def test_resuming_without_a_saved_selection_is_told(flags, tmp_path):
    observed_run(OWN, flags, patched=False)
    start = ["--resume", checkpoint(tmp_path, "run", 1)]
    report = observed_run(OWN, [*flags, *SUBSET, *start])
    assert any("no subset-*.pth of an earlier epoch beside" in line for line in report["log"])


@pytest.fixture(scope="module")
def interrupted(images, tmp_path_factory):
    """A folder with a run of two epochs, in a warm start of one, by mini-batches."""
    from tests.timm_scripts import base_flags

    folder = tmp_path_factory.mktemp("interrupted")
    flags = [*base_flags(images, folder), "--epochs", "2", "--subset-warm-start", "0.5"]
    options = ["--subset-fraction", "0.5", "--subset-strategy", "gradmatch-pb"]
    observed_run(OWN, [*flags, *options])
    return folder, [*flags, *options]


@pytest.mark.slow
def test_a_run_of_more_epochs_or_of_another_batch_size_goes_on(interrupted):
    folder, flags = interrupted
    start = ["--resume", checkpoint(folder, "run", 1), "--experiment", "longer"]
    report = observed_run(OWN, [*flags, *start, "--epochs", "6", "-b", "4"])
    k = CLASSES * PER_CLASS // 2
    assert [len(set(epoch)) for epoch in report["seen"]] == [k] * 4  # the selection of epoch 1
    assert len({tuple(sorted(epoch)) for epoch in report["seen"]}) == 1
    assert set(report["lengths"]) == {k // 4}
    # And once more, from what that one saved.
    start = ["--resume", checkpoint(folder, "longer", 3), "--experiment", "again"]
    again = observed_run(OWN, [*flags, *start, "--epochs", "6", "-b", "4"])
    assert again["seen"] == report["seen"][2:]


@pytest.mark.slow
def test_other_flags_than_those_of_the_interrupted_run_are_refused(interrupted):
    folder, flags = interrupted
    start = ["--resume", checkpoint(folder, "run", 1), "--experiment", "other"]
    error = refusal(OWN, [*flags, *start, "--subset-every", "3", "--seed", "1"])
    assert "--resume must go on with the flags of the interrupted run" in error
    assert "--subset-every None there and 3 here" in error
    assert "--seed 42 there and 1 here" in error
    # A checkpoint to start from anew is another matter.
    anew = observed_run(
        OWN, [*flags, *start, "--subset-every", "3", "--start-epoch", "0", "--epochs", "2"]
    )
    assert len(anew["seen"]) == 2


def test_a_run_goes_on_with_another_folder_for_gradients():
    args = argparse.Namespace(epochs=3, batch_size=8, seed=0, subset_storage_dir="here")
    planned = timm_resume.plan(args, {})
    args.subset_storage_dir = "there"
    assert timm_resume.plan(args, planned) == planned
    # What an earlier version wrote.
    planned["flags"]["--subset-storage-dir"] = "here"
    timm_resume.plan(args, planned)


@pytest.mark.parametrize("content", [b"", b"damaged", b"PK\x03\x04"])
def test_a_damaged_file_is_told(content, tmp_path):
    (tmp_path / "subset-3.pth").write_bytes(content)
    with pytest.raises(timm_flags.Refusal, match=r"got another subset-3\.pth beside the check"):
        timm_resume.plan_of(str(tmp_path / "last.pth.tar"))


def test_a_link_to_a_checkpoint_leads_to_its_files(tmp_path):
    (tmp_path / "run").mkdir()
    planned = {"epochs": 3, "batch_size": 8, "flags": {}}
    torch.save({"plan": planned, "sampler": {}}, tmp_path / "run" / "subset-3.pth")
    (tmp_path / "run" / "last.pth.tar").touch()
    (tmp_path / "best.pth.tar").symlink_to(tmp_path / "run" / "last.pth.tar")
    assert timm_resume.plan_of(str(tmp_path / "best.pth.tar")) == planned
    assert timm_resume.has_subset(str(tmp_path / "best.pth.tar"))


def test_a_file_of_another_name_is_left_alone(tmp_path):
    (tmp_path / "subset-3 (copy).pth").touch()
    assert not timm_resume.has_subset(str(tmp_path / "last.pth.tar"))
    assert timm_resume.remove(tmp_path) == 0


@pytest.mark.slow
def test_forgotten_flags_are_told(interrupted):
    folder, flags = interrupted
    plain = flags[: flags.index("--subset-warm-start")]
    start = ["--resume", checkpoint(folder, "run", 1), "--experiment", "forgotten"]
    report = observed_run(OWN, [*plain, *start, "--epochs", "3"])
    assert any("was trained on a subset, and no --subset flag" in line for line in report["log"])


@pytest.mark.slow
def test_a_new_run_in_the_folder_of_another_one(flags, tmp_path):
    observed_run(OWN, [*flags, *SUBSET])
    flags = [*flags, "--subset-fraction", "0.25", "--subset-strategy", "fresh-random"]
    report = observed_run(OWN, [*flags, "--epochs", "2"])
    assert any("removed the subset-*.pth of an earlier run" in line for line in report["log"])
    assert files(tmp_path, "run") == {0, 1}
    rest = observed_run(OWN, [*flags, "--resume", checkpoint(tmp_path, "run", 1), "--epochs", "3"])
    assert len(rest["seen"]) == 1
    assert not [line for line in rest["log"] if "removed" in line]
    assert files(tmp_path, "run") == {0, 1, 2}


def test_files_go_with_their_checkpoints(tmp_path):
    data = [(torch.randn(2), i % 2) for i in range(8)]
    sampler = AdaptiveSubsetSampler(Selector(data, "fresh-random", budget=4))
    for epoch in range(8):
        sampler.maybe_reselect(torch.nn.Linear(2, 2), epoch)
        timm_resume.save(sampler, tmp_path, epoch, {}, keep=2)
        if epoch in (1, 4):
            (tmp_path / f"checkpoint-{epoch}.pth.tar").touch()
    assert {int(f.stem[7:]) for f in tmp_path.glob("subset-*")} == {1, 4, 5, 6, 7}
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.slow
@scripts
@pytest.mark.parametrize("options", [SUBSET, LOSSES], ids=["by-class", "order-dp"])
def test_a_killed_run_goes_on_bit_by_bit(script, options, flags, tmp_path):
    processes = 2 if options is SUBSET else 1
    flags = [*flags, *options, *SAME, "-b", "4"]
    run_distributed(script, [*flags, "--experiment", "whole"], tmp_path, processes)
    expected = str(tmp_path / "whole" / "last.pth.tar")
    steps = 24 // 4 // processes  # of an epoch
    for kill, rank in ((steps + 1, 0), (3 * steps - 1, processes - 1)):
        name = f"killed-{kill}"
        own = [*flags, "--experiment", name]
        run_distributed(script, own, tmp_path, processes, kill=(kill, rank))
        last = str(tmp_path / name / "last.pth.tar")
        assert torch.load(last, weights_only=False)["epoch"] == kill // steps - 1
        run_distributed(script, [*own, "--resume", last], tmp_path, processes)
        assert equal(last, expected)
        assert [row["epoch"] for row in rows(tmp_path, name) if row["epoch"] != "epoch"] == [
            *"0123"
        ]
