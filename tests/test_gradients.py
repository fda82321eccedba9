"""Every kind of gradients under the same laws, against the matrix that it stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adaptive_subset.gradients import (
    BatchGradients,
    DenseGradients,
    FactoredGradients,
    Gradients,
)
from tests.test_last_layer import dense

Draw = Callable[..., Tensor]
Shapes = list[tuple[int, int]]
Made = tuple[Gradients, Tensor]


def drawing(seed: int, stored: torch.dtype = torch.float64, scale: float = 1.0) -> Draw:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return scale * torch.randn(*shape, dtype=torch.float64, generator=generator).to(stored)

    return draw


def random_gradients(n: int, shapes: Shapes, seed: int) -> FactoredGradients:
    draw = drawing(seed)
    return FactoredGradients([(draw(n, c), draw(n, p)) for c, p in shapes])


def factored(n: int, shapes: Shapes, draw: Draw) -> Made:
    blocks = [(draw(n, c), draw(n, p)) for c, p in shapes]
    parts = [torch.einsum("nc,np->ncp", d.double(), h.double()).flatten(1) for d, h in blocks]
    return FactoredGradients(blocks), torch.cat(parts, 1)


def one_row(n: int, shapes: Shapes, draw: Draw) -> Made:
    gradients, matrix = factored(n, [(1, c * p) for c, p in shapes], draw)
    return gradients.compact(), matrix


def from_matrix(n: int, shapes: Shapes, draw: Draw) -> Made:
    matrix = draw(n, sum(c * p for c, p in shapes))
    return DenseGradients(matrix), matrix.double()


def mini_batches(of: Callable[[int, Shapes, Draw], Made], size: int) -> Callable[..., Made]:
    def make(n: int, shapes: Shapes, draw: Draw) -> Made:
        gradients, matrix = of(n * size + 1, shapes, draw)
        members = 1 + torch.arange(n * size).flip(0).view(n, size)
        return BatchGradients(gradients, members), matrix[members].mean(1)

    return make


#: Every kind of gradients: makes n of them, and the matrix (n, d) that they stand for.
KINDS: dict[str, Callable[[int, Shapes, Draw], Made]] = {
    "factored": factored,
    "one row, compact": one_row,
    "dense": from_matrix,
    "mini-batches": mini_batches(factored, 3),
    "mini-batches of dense": mini_batches(from_matrix, 2),
    "mini-batches of mini-batches": mini_batches(mini_batches(factored, 2), 2),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def assert_laws(gradients: Gradients, matrix: Tensor, seed: int) -> None:
    """All that the protocol asks, against the matrix in float64."""
    n, d = matrix.shape
    generator = torch.Generator().manual_seed(seed)
    rounding = 64 * torch.finfo(gradients.dtype).eps
    scale = float(matrix.abs().amax()) ** 2 * d + 1 if n else 1.0

    def close(found: Tensor, expected: Tensor, size: float = scale) -> None:
        assert found.dtype in (gradients.dtype, torch.float64)
        assert found.device == gradients.device
        torch.testing.assert_close(
            found.double(), expected, rtol=rounding, atol=rounding * size * max(n, 1)
        )

    index = torch.randint(max(n, 1), (5 if n else 0,), generator=generator)  # also twice
    weights = torch.rand(max(n, 5), dtype=torch.float64, generator=generator)
    vector = torch.randn(d, dtype=torch.float64, generator=generator)
    own = vector.to(gradients.dtype)
    gram, some = matrix @ matrix.T, slice(1, 4)

    assert (len(gradients), gradients.dim) == (n, d)
    for same in (gradients, gradients.compact(), gradients.take(slice(None))):
        assert (len(same), same.dim, same.dtype) == (n, d, gradients.dtype)
        for j in range(n):
            close(same.dense(j), matrix[j])
            close(same.gram_column(j), gram[j])
        close(same.squared_norms(), gram.diagonal())
        close(same.sum(), matrix.sum(0))
        close(same.sum(weights[:n]), weights[:n] @ matrix)
        close(same.sum(index=index), matrix[index].sum(0))
        close(same.sum(weights[: len(index)], index), weights[: len(index)] @ matrix[index])
        close(same.correlate(own), matrix @ vector, d * scale)
        close(same.correlate(own, 2), matrix[:2] @ vector, d * scale)
        if same.gram is not None:
            close(same.gram, gram)
        for rows in (some, index):
            close(same.take(rows).sum(), matrix[rows].sum(0))
            for columns in (slice(None), index.flip(0)):
                tile = same.pairwise(same, rows, columns)
                close(tile, gram[rows][:, columns])
                tile.fill_(torch.nan)  # it is the caller's own
        close(same.squared_norms(), gram.diagonal())
        members = torch.randint(max(n, 1), (3 if n else 0, 2), generator=generator)
        close(torch.cat(list(same.means(members)), 1), matrix[members].mean(1))
        assert same.is_finite()


@pytest.fixture(scope="module", autouse=True)
def small_slices() -> Iterator[None]:
    """So that few numbers are many slices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adaptive_subset.gradients.factored._NUMBERS", 30)
        patch.setattr("adaptive_subset.gradients.factored.BLOCK", 30)
        patch.setattr("adaptive_subset.gradients.dense.BLOCK", 30)
        patch.setattr("adaptive_subset.gradients.mini_batches._TILE", 2)
        yield


@every_kind
@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 7),
    shapes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=2),
    seed=st.integers(0, 1000),
)
def test_every_kind_of_gradients_keeps_the_laws(
    kind: str, n: int, shapes: Shapes, seed: int
) -> None:
    gradients, matrix = KINDS[kind](n, shapes, drawing(seed))
    assert gradients.dtype == torch.float64
    assert_laws(gradients, matrix, seed)


@every_kind
@pytest.mark.parametrize("n", [0, 1, 12])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_stored_in_less_is_computed_with_in_single(
    kind: str, n: int, stored: torch.dtype
) -> None:
    """What is stored stands for itself: the only error is that of arithmetic in float32."""
    gradients, matrix = KINDS[kind](n, [(3, 4), (2, 2)], drawing(0, stored))
    assert gradients.dtype == torch.float32
    assert_laws(gradients, matrix, seed=0)


@pytest.mark.parametrize("other", KINDS)
@every_kind
def test_any_two_kinds_can_be_compared(kind: str, other: str) -> None:
    (left, a), (right, b) = (
        KINDS[name](n, [(3, 4)], drawing(n)) for name, n in ((kind, 5), (other, 4))
    )
    for rows, columns in ((slice(1, 3), slice(None)), (torch.tensor([4, 0]), torch.tensor([2]))):
        expected = (a @ b.T)[rows][:, columns]
        torch.testing.assert_close(left.pairwise(right, rows, columns), expected)
    assert left.pairwise(right, slice(0), slice(0)).shape == (0, 0)


def test_gradients_of_another_length_cannot_be_compared() -> None:
    left, right = DenseGradients(torch.ones(2, 3)), random_gradients(2, [(2, 2)], 0)
    with pytest.raises(ValueError, match=r"`other` must hold gradients of length 3, got 4\."):
        left.pairwise(right, slice(None), slice(None))


@every_kind
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_are_seen(kind: str, bad: float) -> None:
    def draw(*shape: int) -> Tensor:
        rows = drawing(0, torch.float32)(*shape)
        rows[len(rows) // 2] = bad
        return rows

    assert not KINDS[kind](4, [(3, 2)], draw)[0].is_finite()


@every_kind
def test_inner_products_that_overflow_are_no_gradients_that_do(kind: str) -> None:
    draw = drawing(0, torch.float32, scale=1e20 if "dense" in kind else 1e10)
    gradients, _ = KINDS[kind](4, [(3, 2)], draw)
    assert not gradients.squared_norms().isfinite().all()
    assert gradients.is_finite()


@pytest.mark.parametrize(
    ("shapes", "dense"),
    [([(1, 9)], True), ([(9, 1)], True), ([(1, 3), (1, 4)], True), ([(2, 9)], False)],
)
def test_factors_are_a_matrix_where_that_is_no_larger(shapes: Shapes, dense: bool) -> None:
    gradients = random_gradients(3, shapes, 0)
    assert isinstance(gradients.compact(), DenseGradients) == dense
    assert dense or gradients.compact() is gradients


def test_own_rows_are_the_rows_of_the_class() -> None:
    gradients = random_gradients(6, [(3, 4)], 0)
    classes = torch.tensor([0, 1, 2, 2, 1, 0])
    rows = dense(gradients).view(6, 3, 4)[torch.arange(6), classes]
    torch.testing.assert_close(dense(gradients.own_rows(classes)), rows)


def test_the_only_row_of_a_layer_is_that_of_every_class() -> None:
    gradients = random_gradients(4, [(1, 3)], 0)
    own = gradients.own_rows(torch.tensor([-1, 1, 1, -1]))
    torch.testing.assert_close(dense(own), dense(gradients))
    with pytest.raises(ValueError, match=r"`classes` must be in \[0, 0\]"):
        random_gradients(4, [(1, 2), (3, 2)], 0).own_rows(torch.arange(4))


def test_own_rows_need_a_row_for_every_class() -> None:
    with pytest.raises(ValueError, match=r"`classes` must be in \[0, 2\].*got 0 to 3"):
        random_gradients(4, [(3, 2)], 0).own_rows(torch.arange(4))


def test_own_rows_are_those_of_all_heads_or_none() -> None:
    """Of an adapter with a rank above the classes the rows of the inner layer were taken too."""
    classes = torch.arange(4) % 2
    assert random_gradients(4, [(2, 5), (2, 3)], 0).own_rows(classes).dim == 8
    with pytest.raises(ValueError, match=r"`classes` must name the same row .* heads of 8 and 2"):
        random_gradients(4, [(8, 5), (2, 8)], 0).own_rows(classes)


def test_factors_must_line_up() -> None:
    with pytest.raises(ValueError, match=r"pairs of shapes \(n, C\) and \(n, p\)"):
        FactoredGradients([(torch.zeros(3, 2), torch.zeros(4, 2))])


@pytest.mark.parametrize("kind", ["dense", "mini-batches"])
def test_where_rows_are_not_known_there_are_no_own_ones(kind: str) -> None:
    gradients, _ = KINDS[kind](4, [(3, 2)], drawing(0))
    with pytest.raises(ValueError, match=r"keep the rows of the last layer.*got \w+Gradients"):
        gradients.own_rows(torch.zeros(4, dtype=torch.int64))


def test_a_matrix_has_two_dimensions() -> None:
    with pytest.raises(ValueError, match=r"`matrix` must be of shape \(n, d\), got \(3,\)"):
        DenseGradients(torch.zeros(3))
