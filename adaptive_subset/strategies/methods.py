"""The table of named methods: each is one combination of score, draw and size."""

from __future__ import annotations

from dataclasses import dataclass, field

from adaptive_subset.strategies.draws import (
    BelowMeanDropped,
    LargestOfPool,
    LowestHidden,
    Proportional,
    Window,
)
from adaptive_subset.strategies.per_epoch import Combination, PerEpoch
from adaptive_subset.strategies.scores import (
    BatchLoss,
    Equal,
    LastLayerNorm,
    LastLoss,
    Score,
    ThresholdCloseness,
)
from adaptive_subset.strategies.sizes import Constant, Falling, FullAtEnd


@dataclass(frozen=True)
class LossSampling(Combination):
    """A fresh random subset in which a sample is the more likely the larger its last loss was.

    The losses are those that training computes anyway, each as old as the last time its sample was
    trained on, so a selection makes no pass over the data (Loshchilov and Hutter 2016, "Online
    Batch Selection for Faster Training of Neural Networks", §3, draws by the latest known loss as
    well). Chances are ``qᵢ = (1 − u)ℓᵢ / Σℓⱼ + u/n``, see `Proportional`.

    Weights are equal by default: training then minimises a loss that leans towards what is not
    learned yet (Katharopoulos and Fleuret 2017, "Biased Importance Sampling for Deep Neural Network
    Training"). Samples with wrong labels lean that way too: use another strategy, or
    ``unbiased=True``, where there are many.

    Args:
        uniform: u in (0, 1], the share that is drawn uniformly: on average, every sample comes at
            least once in n/(u·k) epochs.
        unbiased: weights 1/πᵢ, with which the subset's gradient is that of all data on average.
    """

    uniform: float = 0.5
    unbiased: bool = False

    def parts(self) -> PerEpoch:
        return PerEpoch(LastLoss(), Proportional(self.uniform, self.unbiased), Constant())


@dataclass(frozen=True)
class GradientNorm(Combination):
    """A random subset in which a sample is the more likely the larger its last-layer gradient is.

    Importance sampling of the gradient sum (Katharopoulos and Fleuret, ICML 2018, "Not All Samples
    Are Created Equal", §3; the last layer's norm bounds that of the whole). Chances are
    ``qᵢ = (1 − u)‖gᵢ‖ / Σ‖gⱼ‖ + u/n``, see `Proportional`; with weights ``1/πᵢ`` the weighted sum
    of the gradients is that of all on average, exactly. Each selection is a fresh draw; gradients
    are as fresh as the selection, so ``every=1`` makes a pass over the data in each epoch
    (``pool_fraction`` makes it shorter).

    Args:
        uniform: u in (0, 1], the share that is drawn uniformly; it bounds the weights by n/(u·k).
        unbiased: weights 1/πᵢ; False gives equal weights, which favour what is hard.
    """

    uniform: float = 0.1
    unbiased: bool = True

    every = 20

    def parts(self) -> PerEpoch:
        return PerEpoch(LastLayerNorm(), Proportional(self.uniform, self.unbiased), Constant())


@dataclass(frozen=True)
class OrderDP(Combination):
    """Of a fresh uniform pool the samples with the largest last losses, with equal weights.

    OrderDP (Jin et al., ICLR 2026, "OrderDP: A Theoretically Guaranteed Lossless Dynamic Data
    Pruning Framework"): each epoch draws ``s = k / share`` samples uniformly and trains on the k of
    them with the largest last losses. That is unbiased training on a surrogate loss, the mean of
    the k largest of s.

    Deviations: samples that were not trained on yet count as the largest; the paper gives them a
    loss of 3. `trim` is not in the paper.

    Args:
        share: k / s in (0, 1]; the paper's is 0.6, with a pool of half of the data.
        trim: in [0, 1 − share], the share of the pool with the largest losses that is left out:
            about the share of wrong labels. In imbalanced data these are the rare classes, so
            leave it at 0 there.
    """

    share: float = 0.6
    trim: float = 0.0

    def parts(self) -> PerEpoch:
        return PerEpoch(LastLoss(), LargestOfPool(self.share, self.trim), Constant())


@dataclass(frozen=True)
class Borderline(Combination):
    """Of a fresh uniform pool the samples that are neither learned nor look wrong, equal weights.

    The draw of `OrderDP` with the score of Active Bias (Chang et al., NeurIPS 2017): each epoch
    draws ``s = k / share`` samples uniformly and trains on the k of them whose ``p(1 − p)`` is
    largest, with p the probability that their label had when they were last trained on, see
    `ThresholdCloseness`. Samples that were not trained on yet come first. Where `OrderDP` goes for
    wrong labels, this leaves them out, without being told how many there are.

    p comes from the loss, as ``exp(−loss)``: the score is meant for cross-entropies. Any other loss
    is taken too, but that is no probability then.

    Args:
        share: k / s in (0, 1].
    """

    share: float = 0.6

    def parts(self) -> PerEpoch:
        return PerEpoch(ThresholdCloseness(), LargestOfPool(self.share), Constant())


@dataclass(frozen=True)
class Balanced(Combination):
    """As many samples of each group, drawn afresh in every epoch: classes, where labels are given.

    Class-balanced sampling (Kang et al., ICLR 2020, "Decoupling Representation and Classifier for
    Long-Tailed Recognition", §3), without repetition in an epoch: a group that has fewer samples
    than its share gives all of them, and the others share the rest. ``Selector(…, groups=labels)``
    says what the groups are. Weights are equal, so that rare groups count as much as frequent ones.
    """

    def parts(self) -> PerEpoch:
        return PerEpoch(Equal(), Proportional(), Constant(), shares="equal")


@dataclass(frozen=True)
class InfoBatch(Combination):
    """Unbiased soft pruning (Qin et al., ICLR 2024, "InfoBatch: Lossless Training Speed Up by
    Unbiased Dynamic Data Pruning", §2).

    Of the samples whose last loss was below the mean a share r is left out, drawn anew in each
    epoch; the others stand for them with weight 1 / (1 − r), so that the sum of the weights is n.
    Samples above the mean, or not seen yet, are all kept with weight one, and nothing is left out
    in the last epochs. It takes no budget and makes no pass over the data: the size of an epoch
    follows from the losses, 1 − r times the share below the mean.

    Deviation: weights have mean one in training, as for every strategy; the paper's have mean n/k,
    which is the same as a learning rate larger by that factor.

    Args:
        ratio: r in [0, 1), the share of well-learned samples that is left out.
        epochs: T, epochs of the whole run; None where it is not known, and has no last ones.
        full: share of the epochs, at the end, in which nothing is left out (the paper's 1 − δ).
        score: what is compared with its mean.
    """

    ratio: float = 0.5
    epochs: int | None = None
    full: float = 0.125
    score: Score = field(default_factory=LastLoss)

    def parts(self) -> PerEpoch:
        return PerEpoch(self.score, BelowMeanDropped(self.ratio), FullAtEnd(self.epochs, self.full))


@dataclass(frozen=True)
class SeTa(Combination):
    """A window over groups of similar loss, which moves from easy to hard, and round again.

    SeTa (Zhou et al., CVPR 2025, "Scale Efficient Training for Large Datasets"): a random share r
    is left out, k-means puts the losses of the others into K groups, and a window of αK groups
    cycles over them, see `Window`; the last epochs take a uniform 1 − r of all. It takes no budget.
    The paper's settings are r = 0.1, K = 5, α = 0.9 on CIFAR and r = 0, α = 0.6 on ImageNet.

    Deviations: the paper takes ⌈αK⌉ groups, which on CIFAR are all five; here αK is rounded, half
    to even, which makes them four. Unknown losses count as the largest known one, not as 3. k-means
    starts at quantiles, not at random.

    Args:
        ratio: r in [0, 1), left out at random.
        groups: K, at least 1.
        window: α in (0, 1], the share of the groups that an epoch takes.
        epochs: T, epochs of the whole run; None where it is not known, and has no last ones.
        full: share of the epochs, at the end, without a window (the paper's 1 − 0.875).
        score: what is grouped.
    """

    ratio: float = 0.1
    groups: int = 5
    window: float = 0.9
    epochs: int | None = None
    full: float = 0.125
    score: Score = field(default_factory=LastLoss)

    def parts(self) -> PerEpoch:
        draw = Window(self.ratio, self.groups, self.window)
        return PerEpoch(self.score, draw, FullAtEnd(self.epochs, self.full, 1 - self.ratio))


@dataclass(frozen=True)
class InfoBatchByBatch(InfoBatch):
    """`InfoBatch` by batch-level loss scores: it needs no loss of a single sample.

    Batch-level loss scores (CVPR 2026): ``sᵢ ← 0.7 sᵢ + 0.3 ℓ̄`` with ℓ̄ the mean loss of the batch
    that i was trained in, see `BatchLoss`. Deviation: the first time a score is that mean itself.
    """

    score: Score = field(default_factory=BatchLoss)


@dataclass(frozen=True)
class SeTaByBatch(SeTa):
    """`SeTa` by batch-level loss scores (CVPR 2026), see `InfoBatchByBatch`."""

    score: Score = field(default_factory=BatchLoss)


@dataclass(frozen=True)
class Kakurenbo(Combination):
    """All but the samples with the lowest last losses, where the model is sure of them.

    After KAKURENBO (Thao Nguyen et al., NeurIPS 2023, "KAKURENBO: Adaptively Hiding Samples in Deep
    Neural Network Training"): of the ``F·n`` lowest losses those are hidden whose label is
    predicted with a probability of at least c; F falls over training, see `LowestHidden`. It takes
    no budget, and knows the probability as ``exp(−ℓ)``: for cross-entropies without label
    smoothing.

    Deviations: the paper runs the model over what is hidden after each epoch to renew its losses;
    here they stay as they are, and a sample comes back once others have become easier than it was.
    The paper's learning rate is larger by 1/(1 − F); that is left to the training loop, where
    ``n / len(sampler.selection)`` is the factor for what was hidden indeed. The paper asks whether
    the label is predicted, beside c: for c of at least ½ that follows. F falls at each quarter of
    the run; the paper chooses the epochs for each task.

    Args:
        share: F in [0, 1), the largest share that is hidden.
        confidence: c in (0, 1].
        epochs: T, epochs of the whole run; None where it is not known, then F does not fall.
    """

    share: float = 0.3
    confidence: float = 0.7
    epochs: int | None = None

    def parts(self) -> PerEpoch:
        return PerEpoch(LastLoss(), LowestHidden(self.share, self.confidence, self.epochs))


@dataclass(frozen=True)
class RandomSizes(Combination):
    """Uniform random subsets that shrink from all the data, with the budget as their mean size.

    The baseline that "progressive data dropout" (NeurIPS 2025) has to beat, and seldom does: in
    epoch t ``γᵗ·n`` samples whatever their losses, see `Falling`. Deviation: there γ is given; here
    it follows from the budget, so that comparisons are at the same number of samples, and no last
    epoch is full.

    Args:
        epochs: T, epochs of the whole run, at least n/k. A selection refuses None.
    """

    epochs: int | None = None

    def parts(self) -> PerEpoch:
        return PerEpoch(Equal(), Proportional(), Falling(self.epochs))
