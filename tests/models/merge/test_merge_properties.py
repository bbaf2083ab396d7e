"""What holds for merge methods whatever the tensors are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.merge.methods import METHODS, find_method, search_space
from models.merge.task_arithmetic import drop, trim

TASK_VECTOR_METHODS = sorted(name for name, method in METHODS.items() if method.needs_base)
shapes = st.sampled_from([(1,), (7,), (5, 3), (2, 3, 4), (16, 16)])
weights = st.floats(-1.5, 1.5, width=32)
densities = st.floats(0.0, 1.0)


def tensors(seed, count, shape):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def merge(name, base, experts, seeds, **arguments):
    method = find_method(name)
    defaults = {one.argument: one.default for one in method.parameters if one.scope == "shared"}
    defaults |= {"density": [1.0] * len(experts)}
    if method.random:
        defaults["generators"] = [torch.Generator().manual_seed(seed) for seed in seeds]
    return method.merge(base, experts, **(defaults | arguments))


@pytest.mark.parametrize("name", TASK_VECTOR_METHODS)
@settings(deadline=None, max_examples=40)
@given(data=st.data(), seed=st.integers(0, 2**16), shape=shapes, count=st.integers(1, 4), normalize=st.booleans())
def test_permuting_experts_with_their_weights_changes_nothing(name, data, seed, shape, count, normalize):
    base, *experts = tensors(seed, count + 1, shape)
    weight = data.draw(st.lists(weights, min_size=count, max_size=count))
    density = data.draw(st.lists(densities, min_size=count, max_size=count))
    order = data.draw(st.permutations(range(count)))
    # in float64, so that the order of a sum decides no election
    base, experts = base.double(), [expert.double() for expert in experts]
    one = merge(name, base, experts, range(count), weight=weight, density=density, normalize=normalize)
    permuted = {"weight": [weight[k] for k in order], "density": [density[k] for k in order], "normalize": normalize}
    other = merge(name, base, [experts[k] for k in order], order, **permuted)
    assert torch.allclose(one, other, rtol=1e-6, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), seed=st.integers(0, 2**16), shape=shapes, count=st.integers(1, 4))
def test_permuting_models_with_their_weights_changes_no_average(data, seed, shape, count):
    models = tensors(seed, count, shape)
    weight = data.draw(st.lists(st.floats(0.1, 2), min_size=count, max_size=count))
    order = data.draw(st.permutations(range(count)))
    linear = METHODS["linear"].merge
    one = linear(models, weight=weight, normalize=True)
    other = linear([models[k] for k in order], weight=[weight[k] for k in order], normalize=True)
    assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("name", TASK_VECTOR_METHODS)
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**16), shape=shapes, count=st.integers(1, 4), density=densities, normalize=st.booleans())
def test_zero_weights_give_the_base(name, seed, shape, count, density, normalize):
    base, *experts = tensors(seed, count + 1, shape)
    parameters = {"weight": [0.0] * count, "density": [density] * count, "normalize": normalize}
    assert torch.equal(merge(name, base, experts, range(count), **parameters), base)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**16), shape=shapes, rescale=st.booleans())
def test_density_one_keeps_every_entry(seed, shape, rescale):
    (delta,) = tensors(seed, 1, shape)
    assert torch.equal(trim(delta, 1.0, rescale), delta)
    assert torch.equal(drop(delta, 1.0, rescale, torch.Generator()), delta)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**16), shape=shapes, density=st.floats(0.001, 0.999), levels=st.integers(2, 1000))
def test_trimming_keeps_the_largest_and_as_many_as_density_says(seed, shape, density, levels):
    (delta,) = tensors(seed, 1, shape)
    delta = (delta * levels).round() / levels + torch.sign(delta)  # few levels: many equal magnitudes, none zero
    kept = trim(delta, density, rescale=False)
    assert int((kept != 0).sum()) == max(1, int(density * delta.numel()))
    assert torch.equal(kept[kept != 0], delta[kept != 0])
    assert not (delta[kept == 0].abs() > kept[kept != 0].abs().min()).any()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**16), shape=shapes, density=st.floats(0.2, 0.9))
def test_rescaling_keeps_the_l1_norm(seed, shape, density):
    (delta,) = tensors(seed, 1, shape)
    for thinned in (trim(delta, density, True), drop(delta, density, True, torch.Generator().manual_seed(seed))):
        assert torch.isclose(thinned.abs().sum(), delta.abs().sum(), rtol=1e-5) or not thinned.any()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**16), shape=shapes)
def test_one_expert_of_weight_one_is_that_expert(seed, shape):
    base, expert = tensors(seed, 2, shape)
    for name in TASK_VECTOR_METHODS:
        assert torch.allclose(merge(name, base, [expert], [seed], weight=[1.0]), expert, atol=1e-6)


def test_a_dropped_task_vector_is_the_whole_one_in_expectation():
    (delta,) = tensors(0, 1, (2000,))
    generator = torch.Generator().manual_seed(0)
    mean = torch.stack([drop(delta, 0.3, True, generator) for _ in range(1000)]).mean(0)
    standard_error = delta.abs() * (0.7 / 0.3 / 1000) ** 0.5
    assert ((mean - delta).abs() <= 5 * standard_error).all()
    assert abs(float(mean.abs().sum() / delta.abs().sum()) - 1) < 0.02


def test_search_spaces_name_parameters_of_their_method_and_stay_in_range():
    for name, method in METHODS.items():
        for one in search_space(name):
            parameter = method.parameter(one.name)
            assert parameter.low <= one.low <= one.default <= one.high <= parameter.high
            assert not (one.per_model and parameter.scope == "shared")
