"""Methods and options that mergekit lacks give what their papers' formulas give, written out here the plain way."""

import math

import pytest
import torch

from models.merge.methods import METHODS
from models.merge.recipe import Recipe
from models.merge.source import MergedSource
from models.sources.checkpoint import open_checkpoint

SHAPES = [(12, 8), (7, 15), (9, 9)]
counts = pytest.mark.parametrize("count", [2, 3, 5])
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def tensors(count, shape, scale=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator, dtype=torch.float64)
    return base, [base + scale * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def weights(count):
    return [0.9, 1.2, 0.4, -0.3, 1.0][:count]


def ours(name, base, experts, linear_layer=True, **parameters):
    method = METHODS[name]
    arguments = {
        one.argument: [one.default] * len(experts) if one.scope == "expert" else one.default
        for one in method.parameters
    }
    arguments |= {"linear_layer": linear_layer} if method.by_matrix else {}
    return method.merge(base, experts, **arguments | parameters)


def score(deltas, k, n, low, high):
    """PCB's score of entry n of task vector k: exp of the intra-, times tanh of the inter-balance."""
    clamped = min(max(abs(deltas[k][n]), low), high)
    intra = ((clamped - low) / (high - low)) ** 2
    inter = math.tanh(deltas[k][n] * sum(delta[n] for delta in deltas))
    return math.exp(len(deltas) * intra) * inter


@counts
@pytest.mark.parametrize("shape", [(300,), (40, 60)], ids=str)
@pytest.mark.parametrize("density", [0.05, 0.1, 0.7, 1.0])
def test_pcb(density, shape, count):
    base, experts = tensors(count, shape)
    deltas = [(expert - base).flatten().tolist() for expert in experts]
    size = len(deltas[0])
    scales, clamped = [], []
    for k, delta in enumerate(deltas):
        ordered = sorted(map(abs, delta))
        low, high = ordered[int(size * 0.0001)], ordered[int(size * (1 - 0.0001) - 1)]
        scores = [score(deltas, k, n, low, high) for n in range(size)]
        cut, top = sorted(scores)[min(int(size * (1 - density)), size - 1)], max(scores)
        scales.append([(max(one, cut) - cut) / (top - cut) for one in scores])
        clamped.append([math.copysign(min(max(abs(one), low), high), one) for one in delta])
    merged = [
        sum(w * delta[n] * scale[n] for w, delta, scale in zip(weights(count), clamped, scales, strict=True))
        / max(sum(scale[n] for scale in scales), 1e-12)
        for n in range(size)
    ]
    expected = base + 1.4 * torch.tensor(merged, dtype=torch.float64).view(shape)
    result = ours("pcb", base, experts, weight=weights(count), density=density, lambda_=1.4)
    assert torch.allclose(result, expected, atol=1e-10)
    assert not torch.allclose(result, base, atol=1e-3)


def test_pcb_gives_no_share_to_an_expert_that_left_the_tensor_as_it_was():
    base, (expert,) = tensors(1, (40, 60))
    together = ours("pcb", base, [expert, base.clone()], density=0.2) - base
    moved = together != 0
    assert 0.1 < moved.double().mean() < 0.2
    middle = moved & ((expert - base).abs() < (expert - base).abs().max())
    assert torch.allclose(together[middle], (expert - base)[middle])


@counts
@shapes
@pytest.mark.parametrize("agree", [0, 1, 2, 9])
def test_consensus(agree, shape, count):
    base, experts = tensors(count, shape)
    bounds = [0.2, 0.6, 0.4, 0.3, 0.5][:count]
    result = ours("consensus", base, experts, mask_lambda=bounds, agree=agree, lambda_=0.5).flatten()
    for n, start in enumerate(base.flatten().tolist()):
        deltas = [float(expert.flatten()[n]) - start for expert in experts]
        together = sum(deltas)
        active = sum(abs(one) > bound * abs(together - one) for one, bound in zip(deltas, bounds, strict=True))
        expected = start + (0.5 * together if active >= min(agree, count) else 0)
        assert math.isclose(float(result[n]), expected, abs_tol=1e-12)


@counts
@shapes
def test_tsv_m(shape, count):
    """With polar factors from eigendecompositions: (U Uᵀ)^(−½) U is the orthogonal matrix nearest to U."""
    base, experts = tensors(count, shape)
    rank = min(shape) // count
    left, values, right = [], [], []
    for expert, weight in zip(experts, weights(count), strict=True):
        u, s, vt = torch.linalg.svd(weight * (expert - base))
        left.append(u[:, :rank])
        values += s[:rank].tolist()
        right.append(vt[:rank].T)

    def orthogonal(blocks):
        matrix = torch.cat(blocks, dim=1)
        eigenvalues, vectors = torch.linalg.eigh(matrix.T @ matrix)
        return matrix @ vectors @ torch.diag(eigenvalues**-0.5) @ vectors.T

    expected = base + 1.3 * orthogonal(left) @ torch.diag(torch.tensor(values).double()) @ orthogonal(right).T
    result = ours("tsv_m", base, experts, weight=weights(count), lambda_=1.3)
    assert torch.allclose(result, expected, atol=1e-6)
    columns = orthogonal(left)
    assert torch.allclose(columns.T @ columns, torch.eye(rank * count).double(), atol=1e-8)


@counts
@shapes
def test_iso_c(shape, count):
    base, experts = tensors(count, shape)
    merged = ours("iso_c", base, experts, weight=weights(count), lambda_=0.8) - base
    together = sum(weight * (expert - base) for expert, weight in zip(experts, weights(count), strict=True))
    lengths = torch.linalg.svdvals(together)
    assert torch.allclose(torch.linalg.svdvals(merged), torch.full_like(lengths, 0.8 * float(lengths.mean())))
    # of all such matrices, the one that is nearest to the sum: their product is symmetric and has the sum's spectrum
    product = merged.T @ together
    assert torch.allclose(product, product.T, atol=1e-9)
    expected = (0.8 * lengths.mean() * lengths).sum()
    assert torch.isclose(product.trace(), expected)


@counts
@shapes
@pytest.mark.parametrize("steps", [0, 1, 50])
def test_wudi(steps, shape, count):
    base, experts = tensors(count, shape)
    deltas = [expert - base for expert in experts]
    merged = torch.nn.Parameter(sum(w * delta for w, delta in zip(weights(count), deltas, strict=True)))
    optimiser = torch.optim.Adam([merged], lr=1e-3)
    for _ in range(steps):
        losses = [
            ((merged - w * delta) @ delta.T).square().sum() / delta.square().sum()
            for w, delta in zip(weights(count), deltas, strict=True)
        ]
        optimiser.zero_grad()
        sum(losses).backward()
        optimiser.step()
    result = ours("wudi", base, experts, weight=weights(count), steps=steps, lr=1e-3, lambda_=0.9)
    assert torch.allclose(result, base + 0.9 * merged.detach(), atol=1e-8)


def test_wudi_ends_with_less_interference_than_it_starts_with():
    base, experts = tensors(3, (20, 16), scale=0.01)
    deltas = [expert - base for expert in experts]

    def interference(tensor):
        return sum(((tensor - base - one) @ one.T).square().sum() / one.square().sum() for one in deltas)

    assert interference(ours("wudi", base, experts)) < 0.8 * interference(base + sum(deltas))


@pytest.mark.parametrize("name", ["tsv_m", "iso_c", "wudi"])
@pytest.mark.parametrize("shape", [(9,), (6, 8)], ids=str)
def test_tensors_that_are_no_linear_layers_get_the_mean_task_vector(name, shape):
    base, experts = tensors(3, shape)
    mean = sum(w * (expert - base) for w, expert in zip(weights(3), experts, strict=True)) / 3
    result = ours(name, base, experts, linear_layer=False, weight=weights(3), lambda_=1.2)
    assert torch.allclose(result, base + 1.2 * mean)


@pytest.mark.parametrize("name", ["tsv_m", "iso_c"])
def test_low_rank_experts_move_no_other_directions(name):
    """Rounding noise in the task vectors of merged adapters is no direction of theirs."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(24, 32, generator=generator)
    down = [torch.randn(2, 32, generator=generator) for _ in range(3)]
    up = [torch.randn(24, 2, generator=generator) for _ in range(3)]
    experts = [base + 0.1 * one @ other for one, other in zip(up, down, strict=True)]
    merged = (ours(name, base, experts) - base).double()
    assert int((torch.linalg.svdvals(merged) > 1e-3).sum()) == 6
    inputs = torch.cat(down).T.double()  # (32, 6)
    outside = merged.T - inputs @ torch.linalg.lstsq(inputs, merged.T).solution
    assert outside.abs().max() < 1e-4


@pytest.mark.parametrize("name", ["pcb", "consensus", "tsv_m", "iso_c", "wudi"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_half_precision_is_rounded_once(name, dtype):
    base, experts = tensors(3, (16, 10))
    base, experts = base.to(dtype), [expert.to(dtype) for expert in experts]
    result = ours(name, base, experts)
    exact = ours(name, base.double(), [expert.double() for expert in experts])
    assert result.dtype == dtype
    assert ((result.double() - exact).abs() <= torch.finfo(dtype).eps * exact.abs() + 2e-4).all()


def recipe(name, **parameters):
    document = {"merge_method": name, "base_model": "base", "models": [{"model": "a"}, {"model": "b"}]}
    return Recipe.model_validate(document | {"parameters": parameters})


@pytest.mark.parametrize("name", ["pcb", "consensus", "tsv_m", "iso_c", "wudi"])
def test_whole_recipes(name, make_family, tmp_path):
    """Matrices inside the blocks are linear layers; embedding, head and norms are not."""
    family = {key: open_checkpoint(folder) for key, folder in make_family(tmp_path, tied=False).items()}
    merged = MergedSource(recipe(name, **{"lambda": 0.7}), family.__getitem__)
    assert merged.names() == family["base"].names()
    assert len({merged.digest(group) for group in ("ends", "layer.0", "layer.1", "layer.2")}) == 4
    for tensor in merged.names():
        linear_layer = ".layers." in tensor and "norm" not in tensor
        base, experts = family["base"].tensor(tensor), [family[key].tensor(tensor) for key in "ab"]
        assert torch.equal(merged.tensor(tensor), ours(name, base, experts, linear_layer, lambda_=0.7))


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della_linear", "della"])
def test_inverse_density_divides_by_the_probability_of_being_kept(name):
    base, experts = tensors(2, (30, 20))
    method = METHODS[name]
    arguments = {one.argument: one.default for one in method.parameters if one.scope == "shared"}
    arguments |= {"weight": [0.6, 0.7], "density": [0.4, 0.5], "normalize": False}
    arguments |= {"epsilon": [0.0, 0.0]} if method.parameter("epsilon") else {}

    def merge(rescale):
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        return method.merge(base, experts, generators=generators, **arguments | {"rescale": rescale}) - base

    plain = [
        method.merge(
            base,
            [experts[k]],
            generators=[torch.Generator().manual_seed(k + 1)],
            **{
                key: [value[k]] if isinstance(value, list) else value
                for key, value in (arguments | {"rescale": False}).items()
            },
        )
        - base
        for k in (0, 1)
    ]
    if "linear" in name:
        assert torch.allclose(merge("inverse_density"), plain[0] / 0.4 + plain[1] / 0.5)
    scaled = merge("inverse_density")
    only_first = (plain[0] != 0) & (plain[1] == 0)
    assert only_first.any() and torch.allclose(scaled[only_first], plain[0][only_first] / 0.4)
    assert torch.equal(merge("l1"), merge(True))


def test_signs_can_be_elected_before_weighting():
    """By the paper the two that agree outvote the third, however it is weighed."""
    base = torch.zeros(1)
    experts = [torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([-2.5])]
    parameters = {"weight": [0.1, 0.1, 1.0], "density": [1.0] * 3, "rescale": False, "lambda_": 1.0, "int8_mask": False}
    ties = METHODS["ties"].merge
    weighted = ties(base, experts, normalize=True, elect_sign="weighted", **parameters)
    unweighted = ties(base, experts, normalize=True, elect_sign="unweighted", **parameters)
    assert torch.allclose(weighted, torch.tensor([-2.5]))
    assert torch.allclose(unweighted, torch.tensor([1.5]))
