"""Every method gives mergekit's tensors.

A test goes over all shapes and dtypes, whose failing ones it names; what changes the formula has a test each.
"""

from itertools import product

import pytest
import torch
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import MISSING, ParameterScope, TensorGroup

from models.errors import BadInput
from models.merge.methods import METHODS, find_method

SHAPES = ((40, 16), (24, 7), (33,), (1, 5))
DTYPES = {torch.float32: 1e-6, torch.bfloat16: 0.0, torch.float16: 0.0, torch.float64: 1e-12}
HALVES = (torch.float32, torch.float16, torch.bfloat16)
WEIGHT = [0.7, -0.4, 1.3, 0.1, 0.25]
DENSITY = [0.5, 0.31, 0.9, 1.0, 0.01]
SCOPES = {ParameterScope.SHARED: "shared", ParameterScope.INPUT: "model", ParameterScope.NON_BASE: "expert"}


def tensors(count, shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    return [(base + 0.1 * k * torch.randn(shape, generator=generator)).to(dtype) for k in range(count)]


def theirs(name, models, based=None, **parameters):
    """mergekit's result; the first model is the base where there is one."""
    based = find_method(name).base == "required" if based is None else based
    (result,) = registry.get(name)(
        [TensorGroup.from_tensors(models, base_index=0 if based else None)], parameters=parameters
    )
    return result


def ours(name, models, generators=None, based=None, **parameters):
    method = find_method(name)
    based = method.base == "required" if based is None else based
    count = {"shared": None, "model": len(models), "expert": len(models) - based}
    arguments = {
        one.argument: one.default if count[one.scope] is None else [one.default] * count[one.scope]
        for one in method.parameters
    } | {"lambda_" if key == "lambda" else key: value for key, value in parameters.items()}
    arguments |= {"generators": generators} if method.random else {}
    base = () if method.base == "ignored" else (models[0] if based else None,)
    return method.merge(*base, models[1:] if based else models, **arguments)


def assert_equal(one, other, dtype, case=""):
    assert one.dtype == other.dtype == dtype, case
    differs = float((one.double() - other.double()).abs().max())
    assert differs <= DTYPES[dtype], f"{case} {dtype} {tuple(one.shape)}: differs by {differs:g}"


@pytest.mark.parametrize("name", sorted(name for name, method in METHODS.items() if method.in_mergekit))
def test_parameters_and_defaults_are_mergekits(name):
    """What we have beyond them is marked so, and has a default that changes nothing."""
    spec = registry.get(name).spec
    expected = {
        one.name: (one.value_type, SCOPES[one.scope], None if one.default is MISSING else one.default, one.required)
        for one in spec.parameters
    }
    parameters = METHODS[name].parameters
    assert expected == {
        one.name: (one.kind | None if one.optional else one.kind, one.scope, one.default, one.required)
        for one in parameters
        if one.in_mergekit
    }
    assert {one.name for one in parameters if not one.in_mergekit} <= {"elect_sign"}
    assert {one.name for one in parameters if one.choices} <= {"elect_sign", "rescale"}


@pytest.mark.parametrize("name", sorted(name for name, method in METHODS.items() if method.in_mergekit))
def test_numbers_of_models_are_mergekits(name):
    contract, method = registry.get(name).spec.contract, METHODS[name]
    assert method.base == contract.base.value
    beside = method.base == "required"
    least = contract.min_inputs - beside if contract.min_non_base is None else contract.min_non_base
    most = contract.max_inputs and contract.max_inputs - beside
    assert method.min_experts == max(1, least)  # where mergekit gives the base back, we refuse
    assert method.max_experts == (contract.max_non_base or most)


@pytest.mark.parametrize("normalize", [False, True])
def test_linear(normalize):
    for experts, shape, dtype in product((1, 2, 3, 5), SHAPES, DTYPES):
        models = tensors(experts, shape, dtype)
        parameters = {"weight": [0.7, 0.4, 1.3, 0.1, 0.25][:experts], "normalize": normalize}
        one, other = (get("linear", models, **parameters) for get in (ours, theirs))
        assert_equal(one, other, dtype, f"{experts} experts,")


@pytest.mark.parametrize("name", ["task_arithmetic", "ties"])
@pytest.mark.parametrize(
    "shared",
    [{}, {"normalize": False}, {"normalize": True, "lambda": 1.7}, {"rescale": True}, {"int8_mask": True}],
    ids=str,
)
def test_methods_on_task_vectors(name, shared):
    for experts, shape, dtype in product((1, 2, 3, 5), SHAPES, DTYPES):
        models = tensors(experts + 1, shape, dtype)
        parameters = {"weight": WEIGHT[:experts], "density": DENSITY[:experts], **shared}
        one, other = (get(name, models, **parameters) for get in (ours, theirs))
        assert_equal(one, other, dtype, f"{experts} experts,")


def test_ties_keeps_the_entries_that_mergekit_keeps_of_many_equal_magnitudes():
    base = torch.zeros(50, 20)
    generator = torch.Generator().manual_seed(3)
    experts = [torch.randint(-3, 4, (50, 20), generator=generator).float() for _ in range(3)]
    parameters = {"weight": [1.0, 0.7, 0.6], "density": [0.2, 0.55, 0.8]}
    assert_equal(
        ours("ties", [base, *experts], **parameters), theirs("ties", [base, *experts], **parameters), torch.float32
    )


def test_ties_without_density_or_experts_like_the_base_stays_the_base():
    base, expert = tensors(2, (6, 6), torch.float32)
    for models, density in (([base, expert], 0.0), ([base, base.clone()], 0.4)):
        parameters = {"weight": [1.0], "density": [density]}
        assert torch.equal(ours("ties", models, **parameters), base)
        assert torch.equal(theirs("ties", models, **parameters), base)


@pytest.mark.parametrize("name", ["breadcrumbs", "breadcrumbs_ties"])
@pytest.mark.parametrize("shared", [{}, {"normalize": True, "lambda": 1.7}, {"rescale": True}], ids=str)
def test_breadcrumbs(name, shared):
    for experts, shape, dtype in product((1, 2, 3, 5), SHAPES, DTYPES):
        models = tensors(experts + 1, shape, dtype)
        gamma = [0.1, 0.01, 0.3, 0.0, 0.9][:experts]
        parameters = {"weight": WEIGHT[:experts], "density": DENSITY[:experts], "gamma": gamma, **shared}
        one, other = (get(name, models, **parameters) for get in (ours, theirs))
        assert_equal(one, other, dtype, f"{experts} experts,")


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.7])
def test_breadcrumbs_keep_the_entries_that_mergekit_keeps_of_many_equal_magnitudes(gamma):
    base = torch.zeros(50, 20)
    generator = torch.Generator().manual_seed(3)
    experts = [torch.randint(-3, 4, (50, 20), generator=generator).float() for _ in range(3)]
    parameters = {"weight": [1.0, 0.7, 0.6], "density": [0.2, 0.55, 0.8], "gamma": [gamma] * 3}
    one, other = (get("breadcrumbs", [base, *experts], **parameters) for get in (ours, theirs))
    assert_equal(one, other, torch.float32)


@pytest.mark.parametrize("case", ["apart", "close", "opposite", "zero"])
def test_slerp(case):
    for t, shape, dtype in product((-0.2, 0.0, 0.3, 1.0), SHAPES, DTYPES):
        base, other = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
        other = {"apart": other, "close": base + 1e-3 * other, "opposite": -base, "zero": 0 * base}[case]
        models = [base.to(dtype), other.to(dtype)]
        assert_equal(ours("slerp", models, t=t), theirs("slerp", models, t=t), dtype, f"t {t},")


@pytest.mark.parametrize("based", [True, False], ids=["base", "no base"])
@pytest.mark.parametrize("flatten", [True, False])
@pytest.mark.parametrize("row_wise", [True, False])
def test_nuslerp(row_wise, flatten, based):
    weights = ([0.7, 0.4], [1.0, 0.0], [0.5, -0.5], [0.9, -0.1])
    for weight, shape, dtype in product(weights, SHAPES, DTYPES):
        models = tensors(2 + based, shape, dtype)
        parameters = {"weight": weight, "nuslerp_row_wise": row_wise, "nuslerp_flatten": flatten}
        one, other = (get("nuslerp", models, based=based, **parameters) for get in (ours, theirs))
        assert_equal(one, other, dtype, f"weight {weight},")


def test_nuslerp_of_parallel_rows_is_the_straight_line():
    (one,) = tensors(1, (4, 6), torch.float64)
    models = [one, torch.cat([2 * one[:2], one[2:].roll(1, 0)])]
    parameters = {"weight": [0.3, 0.7], "nuslerp_flatten": False, "nuslerp_row_wise": False}
    result = ours("nuslerp", models, based=False, **parameters)
    assert_equal(result, theirs("nuslerp", models, based=False, **parameters), torch.float64)
    assert torch.allclose(result[:2], 1.7 * one[:2])


@pytest.mark.parametrize("filter_wise", [True, False])
def test_model_stock(filter_wise):
    for experts, shape, dtype in product((2, 3, 5), SHAPES, DTYPES):
        generator = torch.Generator().manual_seed(4)
        base, common, *noise = (torch.randn(shape, generator=generator) for _ in range(experts + 2))
        models = [base.to(dtype), *((base + 0.1 * common + 0.05 * one).to(dtype) for one in noise)]
        one, other = (get("model_stock", models, filter_wise=filter_wise) for get in (ours, theirs))
        assert_equal(one, other, dtype, f"{experts} experts,")


def test_model_stock_keeps_the_base_between_opposite_experts():
    (base,) = tensors(1, (4, 4), torch.float64)
    models = [base, base + 1, base - 1]
    assert_equal(ours("model_stock", models), theirs("model_stock", models), torch.float64)
    assert torch.equal(ours("model_stock", models), base)


@pytest.mark.parametrize("select_topk", [0.0, 0.1, 0.5, 1.0])
def test_sce(select_topk):
    for experts, shape, dtype in product((1, 2, 3, 5), SHAPES, DTYPES):
        models = tensors(experts + 1, shape, dtype)
        one, other = (get("sce", models, select_topk=select_topk) for get in (ours, theirs))
        assert_equal(one, other, dtype, f"{experts} experts,")


def test_sce_of_tiny_task_vectors_weighs_them_alike():
    base, *_ = tensors(1, (30, 8), torch.float64)
    models = [base, *(base + 1e-4 * one for one in tensors(3, (30, 8), torch.float64, seed=1))]
    assert_equal(ours("sce", models, select_topk=0.3), theirs("sce", models, select_topk=0.3), torch.float64)


@pytest.mark.parametrize("max_iter", [0, 1, 10])
def test_karcher(max_iter):
    for count, shape, dtype in product((1, 2, 3, 5), SHAPES, DTYPES):
        models = [tensor * (1 + k) for k, tensor in enumerate(tensors(count, shape, dtype))]
        one, other = (get("karcher", models, max_iter=max_iter) for get in (ours, theirs))
        assert_equal(one, other, dtype, f"{count} models,")


@pytest.mark.parametrize("case", ["one zero", "all zero", "opposite"])
def test_karcher_of_what_has_no_direction(case):
    (one,) = tensors(1, (5, 4), torch.float32)
    models = {"one zero": [one, 0 * one, -2 * one.roll(1)], "all zero": [0 * one] * 2, "opposite": [one, -one]}[case]
    assert_equal(ours("karcher", models), theirs("karcher", models), torch.float32)


@pytest.mark.parametrize("based", [True, False], ids=["base", "no base"])
@pytest.mark.parametrize("normalize", [True, False])
def test_multislerp(based, normalize):
    for experts, shape, dtype in product((1, 2, 3, 5), SHAPES, DTYPES):
        models = tensors(experts + based, shape, dtype)
        parameters = {"weight": [0.7, 0.4, 1.3, 0.1, 0.25][:experts], "normalize_weights": normalize}
        one, other = (get("multislerp", models, based=based, **parameters) for get in (ours, theirs))
        assert_equal(one, other, dtype, f"{experts} experts,")


def test_multislerp_of_what_cancels_out():
    (one,) = tensors(1, (5, 4), torch.float32)
    how = {"based": False, "weight": [0.5, 0.5]}
    assert_equal(ours("multislerp", [one, -one], **how), theirs("multislerp", [one, -one], **how), torch.float32)
    with pytest.raises(BadInput, match="cancel out"):
        ours("multislerp", [one, -one, 0 * one], based=False, weight=[1.0, 1.0, 1.0])


@pytest.mark.parametrize("t", [0.0, 1e-4, 0.05, 2.0])
def test_nearswap(t):
    for shape, dtype in product(SHAPES, DTYPES):
        models = tensors(2, shape, dtype)
        one, other = (get("nearswap", models, t=t) for get in (ours, theirs))
        assert torch.equal(one.isnan(), other.isnan())  # a number over a tensor overflows in half precision
        assert_equal(one.nan_to_num(), other.nan_to_num(), dtype)


def test_arcee_fusion():
    for shape, dtype in product(SHAPES, DTYPES):
        models = tensors(2, shape, dtype)
        one, other = ours("arcee_fusion", models, [None]), theirs("arcee_fusion", models)
        assert torch.equal(one.isnan(), other.isnan())
        assert one.dtype == other.dtype
        assert_equal(one.nan_to_num().to(dtype), other.nan_to_num().to(dtype), dtype)


def test_arcee_fusion_of_a_large_tensor_draws_as_mergekit_does(monkeypatch):
    for module in ("models.merge.entrywise.SAMPLE", "mergekit.merge_methods.arcee_fusion._QUANTILE_SAMPLE_SIZE"):
        monkeypatch.setattr(module, 100)
    models = tensors(2, (40, 16), torch.float32)
    torch.manual_seed(7)
    expected = theirs("arcee_fusion", models)
    result = ours("arcee_fusion", models, [torch.Generator().manual_seed(7)])
    assert_equal(result, expected, torch.float32)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("ram", {}), ("ram", {"epsilon": 0.05}), ("ramplus_tl", {}), ("ramplus_tl", {"r": 0.5, "alpha": 3.0})],
    ids=str,
)
def test_ram(name, parameters):
    for experts, shape, dtype in product((1, 2, 3, 5), SHAPES, DTYPES):
        base, *models = tensors(experts + 1, shape, dtype)
        for number, model in enumerate(models):  # each leaves a part as it was
            model.view(-1)[number :: experts + 1] = base.view(-1)[number :: experts + 1]
        one, other = (get(name, [base, *models], **parameters) for get in (ours, theirs))
        assert one.dtype == other.dtype
        assert_equal(one.to(dtype), other.to(dtype), dtype, f"{experts} experts,")


def assert_equal_with_the_same_mask(name, experts, shape, dtype, **parameters):
    """mergekit draws from torch's global generator, model after model: one generator for all models does the same."""
    models = tensors(experts + 1, shape, dtype)
    parameters = {key: one[:experts] if isinstance(one, list) else one for key, one in parameters.items()}
    torch.manual_seed(7)
    expected = theirs(name, models, **parameters)
    generator = torch.Generator().manual_seed(7)
    assert_equal(ours(name, models, [generator] * experts, **parameters), expected, dtype, f"{experts} experts,")


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("shared", [{}, {"rescale": False}, {"normalize": True, "lambda": 0.6}], ids=str)
def test_random_methods_with_the_same_mask(name, shared):
    parameters = {"weight": WEIGHT, "density": [0.5, 0.31, 0.9, 1.0, 0.05], **shared}
    for experts, shape, dtype in product((1, 2, 3, 5), SHAPES, HALVES):
        assert_equal_with_the_same_mask(name, experts, shape, dtype, **parameters)


@pytest.mark.parametrize("name", ["della", "della_linear"])
@pytest.mark.parametrize("shared", [{}, {"rescale": False}, {"normalize": False, "lambda": 0.6}], ids=str)
def test_della_with_the_same_mask(name, shared):
    parameters = {"weight": WEIGHT, "density": [0.5, 0.31, 0.8, 1.0, 0.0]}
    parameters |= {"epsilon": [0.15, 0.3, 0.1, 0.15, 0.0], **shared}
    shapes = ((40, 16), (24, 7), (33,), (2, 5), (6, 3, 2))
    for experts, shape, dtype in product((1, 2, 3, 5), shapes, HALVES):
        assert_equal_with_the_same_mask(name, experts, shape, dtype, **parameters)


LARGE = (70, 110)
PIECES = {
    "thinning.PIECE": 2**10,
    "thinning.SORTED": 2**11,
    "competition.SORTED": 2**11,
    "spherical.SLERP_PIECE": 2**12,
    "spherical.PIECE": 2**12,
    "entrywise.PIECE": 2**12,
}
"""Entries that are merged or sorted at a time, lowered so that such a tensor is a large one."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name",
    [
        "task_arithmetic",
        "ties",
        "breadcrumbs_ties",
        "sce",
        "slerp",
        "nuslerp",
        "model_stock",
        "karcher",
        "dare_ties",
        "della",
        "multislerp",
        "nearswap",
        "arcee_fusion",
        "ram",
        "ramplus_tl",
    ],
)
def test_large_tensors(name, dtype, monkeypatch):
    for constant, size in PIECES.items():
        monkeypatch.setattr(f"models.merge.{constant}", size)
    method = METHODS[name]
    experts = method.max_experts or 3
    models = tensors(experts + 1, LARGE, dtype)
    models = models if method.base == "required" else models[1:]
    parameters = {"slerp": {"t": 0.3}, "nearswap": {"t": 0.1}, "sce": {"select_topk": 0.4}}.get(name, {})
    if method.parameter("weight"):
        parameters |= {"weight": WEIGHT[:experts]}
    if method.parameter("density"):
        # in bfloat16 a norm in another order may round to another factor, and a sum of about zero to another sign
        rescale = dtype == torch.float32 or method.random
        parameters |= {"density": DENSITY[:experts], "rescale": rescale}
    if name == "della":
        parameters |= {"density": [0.5, 0.3, 0.7], "epsilon": [0.2] * 3}
    torch.manual_seed(7)
    expected = theirs(name, models, **parameters)
    generators = [torch.Generator().manual_seed(7)] * experts
    result = ours(name, models, generators, **parameters)
    assert result.dtype == expected.dtype == (torch.float32 if name in ("arcee_fusion", "ramplus_tl") else dtype)
    # sums over a whole tensor are made in another order, so that a factor may differ by a step of the number format
    largest = torch.stack([tensor.abs().double() for tensor in models]).amax(0)
    steps = 3 * torch.finfo(dtype).eps * largest if dtype == torch.bfloat16 else 1e-6
    differs = (result.double() - expected.double()).abs() > steps
    assert not (differs & ~at_a_threshold(name, models, parameters)).any()


def at_a_threshold(name, models, parameters):
    """Entries of which mergekit's unstable sort, and in large tensors ours by place, keeps some among equal ones."""
    base, *experts = models
    free = torch.zeros(base.shape, dtype=torch.bool)
    count = base.numel()
    if name == "sce":
        variance = torch.var(torch.stack([expert - base for expert in experts]), dim=0, unbiased=False).float()
        kept = int(variance.count_nonzero() * parameters["select_topk"])
        return variance == variance.flatten().sort().values[count - kept]
    if name in ("ties", "breadcrumbs_ties"):
        for expert, density in zip(experts, parameters["density"], strict=True):
            magnitude, kept = (expert - base).abs().float(), int(density * count)
            top = int(0.01 * count) if name == "breadcrumbs_ties" else 0
            first = max(0, count - kept - top)
            for rank in (first, first + kept - 1):
                free |= magnitude == magnitude.flatten().sort().values[rank]
    return free


@pytest.mark.parametrize("scale", [None, 0.5])
def test_passthrough(scale):
    (model,) = tensors(1, (4, 3), torch.float32)
    assert torch.equal(ours("passthrough", [model], scale=[scale]), theirs("passthrough", [model], scale=[scale]))
