"""Every method gives mergekit's tensors."""

import pytest
import torch
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import MISSING, ParameterScope, TensorGroup

from models.merge.methods import METHODS, find_method

SHAPES = ((40, 16), (24, 7), (33,), (1, 5))
DTYPES = {torch.float32: 1e-6, torch.bfloat16: 0.0, torch.float16: 0.0, torch.float64: 1e-12}
SCOPES = {ParameterScope.SHARED: "shared", ParameterScope.INPUT: "model", ParameterScope.NON_BASE: "expert"}


def tensors(count, shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    return [(base + 0.1 * k * torch.randn(shape, generator=generator)).to(dtype) for k in range(count)]


def theirs(name, models, **parameters):
    """mergekit's result; the first model is the base where there is one."""
    based = find_method(name).needs_base
    (result,) = registry.get(name)(
        [TensorGroup.from_tensors(models, base_index=0 if based else None)], parameters=parameters
    )
    return result


def ours(name, models, generators=None, **parameters):
    method = find_method(name)
    defaults = {one.argument: one.default for one in method.parameters if one.scope == "shared"}
    if method.parameter("density"):
        defaults["density"] = [1.0] * (len(models) - 1)
    arguments = defaults | {"lambda_" if key == "lambda" else key: value for key, value in parameters.items()}
    arguments |= {"generators": generators} if method.random else {}
    return method.merge(*((models[0], models[1:]) if method.needs_base else (models,)), **arguments)


def assert_equal(one, other, dtype):
    assert one.dtype == other.dtype == dtype
    assert (one.double() - other.double()).abs().max() <= DTYPES[dtype]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_parameters_and_defaults_are_mergekits(name):
    spec = registry.get(name).spec
    expected = {
        one.name: (SCOPES[one.scope], None if one.default is MISSING else one.default, one.required)
        for one in spec.parameters
    }
    assert {one.name: (one.scope, one.default, one.required) for one in METHODS[name].parameters} == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("experts", [1, 2, 3, 5])
@pytest.mark.parametrize("normalize", [False, True])
def test_linear(experts, shape, dtype, normalize):
    models = tensors(experts, shape, dtype)
    weight = [0.7, 0.4, 1.3, 0.1, 0.25][:experts]
    assert_equal(
        ours("linear", models, weight=weight, normalize=normalize),
        theirs("linear", models, weight=weight, normalize=normalize),
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("experts", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["task_arithmetic", "ties"])
@pytest.mark.parametrize(
    "shared",
    [{}, {"normalize": False}, {"normalize": True, "lambda": 1.7}, {"rescale": True}, {"int8_mask": True}],
    ids=str,
)
def test_methods_on_task_vectors(name, experts, shape, dtype, shared):
    models = tensors(experts + 1, shape, dtype)
    parameters = {"weight": [0.7, -0.4, 1.3, 0.1, 0.25][:experts], "density": [0.5, 0.31, 0.9, 1.0, 0.01][:experts]}
    assert_equal(ours(name, models, **parameters, **shared), theirs(name, models, **parameters, **shared), dtype)


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


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("experts", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("shared", [{}, {"rescale": False}, {"normalize": True, "lambda": 0.6}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_random_methods_with_the_same_mask(name, experts, shape, dtype, shared):
    """mergekit draws from torch's global generator, model after model: one generator for all models does the same."""
    models = tensors(experts + 1, shape, dtype)
    parameters = {"weight": [0.7, -0.4, 1.3, 0.1, 0.25][:experts], "density": [0.5, 0.31, 0.9, 1.0, 0.05][:experts]}
    torch.manual_seed(7)
    expected = theirs(name, models, **parameters, **shared)
    generator = torch.Generator().manual_seed(7)
    assert_equal(ours(name, models, [generator] * experts, **parameters, **shared), expected, dtype)


@pytest.mark.parametrize("scale", [None, 0.5])
def test_passthrough(scale):
    (model,) = tensors(1, (4, 3), torch.float32)
    assert torch.equal(ours("passthrough", [model], scale=[scale]), theirs("passthrough", [model], scale=[scale]))
