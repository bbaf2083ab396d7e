"""What holds for merge methods whatever the tensors are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.merge.methods import METHODS, find_method, search_space
from models.merge.thinning import drop, drop_by_magnitude, largest, trim, trim_outliers

BASED = {name: method for name, method in METHODS.items() if method.base == "required"}
WEIGHTED = sorted(name for name, method in BASED.items() if method.parameter("weight"))
ADDED = sorted(set(WEIGHTED) - {"tsv_m", "iso_c", "wudi"})  # entry by entry, so exact whatever the tensors are
SYMMETRIC = sorted(name for name, method in METHODS.items() if method.takes_families)
shapes = st.sampled_from([(1,), (7,), (5, 3), (2, 3, 4), (16, 16)])
weights = st.floats(-1.5, 1.5, width=32)
densities = st.floats(0.0, 1.0)
families = settings(deadline=None, max_examples=40)


def tensors(seed, count, shape):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def merge(name, base, experts, seeds=(), **arguments):
    """The method's result with its defaults where nothing else is said; a base counts as a model where it may."""
    method = find_method(name)
    models = experts if method.base != "ignored" else [base, *experts]
    values = {}
    for one in method.parameters:
        value = arguments.get(one.argument, 1.0 if one.name == "weight" else one.default)
        many = one.scope != "shared" and not isinstance(value, list)
        values[one.argument] = [value] * len(models) if many else value
    if method.random:
        values["generators"] = [torch.Generator().manual_seed(seed) for seed in seeds]
    if method.by_matrix:
        values["linear_layer"] = base.dim() == 2
    return method.merge(*((base, experts) if method.base != "ignored" else (models,)), **values)


def own(name, data, count):
    """Parameters of each expert, as many as the method has."""
    ranges = {"weight": weights, "density": densities, "gamma": st.floats(0.0, 0.3), "mask_lambda": st.floats(0.1, 0.9)}
    if find_method(name).parameter("epsilon"):
        ranges |= {"density": st.floats(0.2, 0.8), "epsilon": st.floats(0.0, 0.15)}
    return {
        one.name: data.draw(st.lists(ranges[one.name], min_size=count, max_size=count))
        for one in find_method(name).parameters
        if one.scope == "expert"
    }


@pytest.mark.parametrize("name", [name for name in SYMMETRIC if METHODS[name].base == "required"])
@families
@given(data=st.data(), seed=st.integers(0, 2**16), shape=shapes, count=st.integers(2, 4), switch=st.booleans())
def test_permuting_experts_with_their_parameters_changes_nothing(name, data, seed, shape, count, switch):
    # in float64, so that the order of a sum decides no election
    base, *experts = [one.double() for one in tensors(seed, count + 1, shape)]
    parameters = own(name, data, count)
    if METHODS[name].parameter("normalize"):
        parameters["normalize"] = switch
    if METHODS[name].parameter("filter_wise"):
        parameters["filter_wise"] = switch
    order = data.draw(st.permutations(range(count)))
    one = merge(name, base, experts, range(count), **parameters)
    permuted = {
        key: [value[k] for k in order] if isinstance(value, list) else value for key, value in parameters.items()
    }
    other = merge(name, base, [experts[k] for k in order], order, **permuted)
    assert torch.allclose(one, other, rtol=1e-6, atol=1e-8 if METHODS[name].by_matrix else 1e-9)


@families
@given(data=st.data(), seed=st.integers(0, 2**16), shape=shapes, count=st.integers(1, 4))
def test_permuting_models_changes_no_average(data, seed, shape, count):
    models = [one.double() for one in tensors(seed, count, shape)]
    weight = data.draw(st.lists(st.floats(0.1, 2), min_size=count, max_size=count))
    order = data.draw(st.permutations(range(count)))
    swapped = [models[k] for k in order]
    linear, karcher = METHODS["linear"].merge, METHODS["karcher"].merge
    one = linear(models, weight=weight, normalize=True)
    other = linear(swapped, weight=[weight[k] for k in order], normalize=True)
    assert torch.allclose(one, other, atol=1e-9)
    # its steps end where they are shorter than the tolerance, from whichever side they come
    if models[0].numel() > 1:
        one, other = (karcher(some, max_iter=200, tol=1e-7) for some in (models, swapped))
        assert torch.allclose(one, other, atol=1e-4)


@given(seed=st.integers(0, 2**16), shape=shapes, t=st.floats(0, 1))
@families
def test_interpolation_goes_both_ways(seed, shape, t):
    one, other = [model.double() for model in tensors(seed, 2, shape)]
    slerp, nuslerp = METHODS["slerp"].merge, METHODS["nuslerp"].merge
    assert torch.allclose(slerp(one, [other], t=t), slerp(other, [one], t=1 - t), atol=1e-9)
    switches = {"nuslerp_row_wise": False, "nuslerp_flatten": True}
    there = nuslerp(None, [one, other], weight=[1 - t, t], **switches)
    assert torch.allclose(there, nuslerp(None, [other, one], weight=[t, 1 - t], **switches), atol=1e-9)
    for share, end in ((0.0, one), (1.0, other)):
        assert torch.allclose(slerp(one, [other], t=share), end, atol=1e-9)


@given(seed=st.integers(0, 2**16), size=st.integers(3, 40), t=st.floats(0, 1))
@families
def test_on_the_sphere_unit_vectors_stay_unit_vectors(seed, size, t):
    models = [one / one.norm() for one in (model.double() for model in tensors(seed, 3, (size,)))]
    assert torch.isclose(METHODS["slerp"].merge(models[0], models[1:2], t=t).norm(), torch.tensor(1.0).double())
    assert torch.isclose(METHODS["karcher"].merge(models, max_iter=10, tol=1e-5).norm(), torch.tensor(1.0).double())


@pytest.mark.parametrize("name", WEIGHTED)
@settings(deadline=None, max_examples=20)
@given(data=st.data(), seed=st.integers(0, 2**16), shape=shapes, count=st.integers(1, 4))
def test_zero_weights_give_the_base(name, data, seed, shape, count):
    base, *experts = tensors(seed, count + 1, shape)
    parameters = own(name, data, count) | {"weight": [0.0] * count}
    assert torch.equal(merge(name, base, experts, range(count), **parameters), base)


@pytest.mark.parametrize("name", sorted(BASED))
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**16), shape=shapes)
def test_experts_like_the_base_give_the_base(name, seed, shape):
    (base,) = tensors(seed, 1, shape)
    experts = [base.clone() for _ in range(METHODS[name].max_experts or 3)]
    more = {"t": 0.4} if METHODS[name].parameter("t") else {}
    assert torch.allclose(merge(name, base, experts, range(3), **more), base, atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**16), shape=shapes, rescale=st.sampled_from([True, False, "inverse_density"]))
def test_density_one_keeps_every_entry(seed, shape, rescale):
    (delta,) = tensors(seed, 1, shape)
    generator = torch.Generator()
    for thinning in (
        trim(delta.abs(), 1.0, rescale),
        trim_outliers(delta.abs(), 1.0, 0.2, rescale),
        drop(delta.abs(), 1.0, generator, rescale),
        drop_by_magnitude(delta.abs(), 1.0, 0.1, generator, rescale),
    ):
        assert torch.equal(thinning(delta), delta)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**16), shape=shapes, density=st.floats(0.001, 0.999), levels=st.integers(2, 1000))
def test_trimming_keeps_the_largest_and_as_many_as_density_says(seed, shape, density, levels):
    (delta,) = tensors(seed, 1, shape)
    delta = (delta * levels).round() / levels + torch.sign(delta)  # few levels: many equal magnitudes, none zero
    kept = trim(delta.abs(), density, rescale=False)(delta)
    assert int((kept != 0).sum()) == max(1, int(density * delta.numel()))
    assert torch.equal(kept[kept != 0], delta[kept != 0])
    assert not (delta[kept == 0].abs() > kept[kept != 0].abs().min()).any()


@settings(deadline=None, max_examples=60)
@given(data=st.data(), seed=st.integers(0, 2**16), density=st.floats(0.05, 0.9), gamma=st.floats(0, 0.3))
def test_outliers_are_dropped_above_what_is_kept(data, seed, density, gamma):
    (delta,) = tensors(seed, 1, (data.draw(st.integers(1, 200)),))
    count = delta.numel()
    kept = trim_outliers(delta.abs(), density, gamma, rescale=False)(delta)
    assert int((kept != 0).sum()) == int(density * count)
    above = 0 if not kept.any() else int((delta.abs() > kept.abs().max()).sum())
    assert above == min(int(gamma * count), count - int(density * count)) or not kept.any()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**16), shape=shapes, density=st.floats(0.2, 0.8))
def test_rescaling_keeps_the_l1_norm(seed, shape, density):
    (delta,) = tensors(seed, 1, shape)
    generator = torch.Generator().manual_seed(seed)
    for thinning in (
        trim(delta.abs(), density, True),
        trim_outliers(delta.abs(), density, 0.1, True),
        drop(delta.abs(), density, generator, "l1"),
        drop_by_magnitude(delta.abs(), density, 0.1, generator, "l1"),
    ):
        thinned = thinning(delta)
        assert torch.isclose(thinned.abs().sum(), delta.abs().sum(), rtol=1e-5) or not thinned.any()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**16), shape=shapes)
def test_one_expert_of_weight_one_is_that_expert(seed, shape):
    base, expert = tensors(seed, 2, shape)
    for name in sorted(set(ADDED) - {"pcb"}):  # which clamps the largest entries
        more = {"lambda_": 1.0, "mask_lambda": [0.0]} if name == "consensus" else {}
        assert torch.allclose(merge(name, base, [expert], [seed], weight=[1.0], **more), expert, atol=1e-6), name
    assert torch.allclose(merge("sce", base, [expert]), expert, atol=1e-6)
    assert torch.allclose(merge("tsv_m", base, [expert]), expert, atol=1e-4)
    assert torch.allclose(merge("wudi", base, [expert]), expert, atol=1e-4)


@pytest.mark.parametrize("rescale", [True, "inverse_density"])
def test_a_dropped_task_vector_is_the_whole_one_in_expectation(rescale):
    (delta,) = tensors(0, 1, (2000,))
    generator = torch.Generator().manual_seed(0)
    mean = torch.stack([drop(delta.abs(), 0.3, generator, rescale)(delta) for _ in range(1000)]).mean(0)
    standard_error = delta.abs() * (0.7 / 0.3 / 1000) ** 0.5
    assert ((mean - delta).abs() <= 5 * standard_error).all()
    assert abs(float(mean.abs().sum() / delta.abs().sum()) - 1) < 0.02


def test_dropping_by_magnitude_keeps_the_large_more_often_and_the_whole_in_expectation():
    (delta,) = tensors(0, 1, (2, 500))
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack(
        [drop_by_magnitude(delta.abs(), 0.5, 0.3, generator, "inverse_density")(delta) for _ in range(1500)]
    )
    rank = delta.abs().argsort(dim=1).argsort(dim=1) / 499
    probability = 0.2 + 0.6 * rank
    error = (probability * (1 - probability) / 1500).sqrt()
    assert (((draws != 0).float().mean(0) - probability).abs() <= 5 * error).all()
    assert ((draws.mean(0) - delta).abs() <= 5 * delta.abs() * error / probability + 1e-6).all()


def test_search_spaces_name_parameters_of_their_method_and_stay_in_range():
    for name, method in METHODS.items():
        assert not method.search or method.takes_families
        for one in search_space(name):
            parameter = method.parameter(one.name)
            assert parameter.kind is float
            assert parameter.low <= one.low <= one.default <= one.high <= parameter.high
            assert not (one.per_model and parameter.scope == "shared")
    for name in ("della", "della_linear"):  # any pair of values has to do
        density, epsilon = ({one.name: one for one in search_space(name)}[key] for key in ("density", "epsilon"))
        assert density.low > epsilon.high and density.high + epsilon.high < 1


@pytest.mark.parametrize("count", [1, 70_000, 199_999])
def test_in_a_large_tensor_the_first_of_equal_magnitudes_are_kept(count):
    values = torch.randint(0, 5, (200_000,), generator=torch.Generator().manual_seed(count)).float()
    expected = torch.zeros(len(values), dtype=torch.bool)
    expected[values.sort(descending=True, stable=True).indices[:count]] = True
    assert torch.equal(largest(values, count), expected)


def test_in_a_large_tensor_breadcrumbs_keeps_as_many_entries_between_its_bounds():
    delta = torch.randint(-50, 51, (300, 1000), generator=torch.Generator().manual_seed(0)).float()
    kept = trim_outliers(delta.abs(), 0.6, 0.07, False).keep.view_as(delta)
    assert int(kept.sum()) == 180_000
    magnitude, ordered = delta.abs(), delta.abs().flatten().sort().values
    assert magnitude[kept].min() == ordered[300_000 - 180_000 - 21_000]
    assert magnitude[kept].max() == ordered[300_000 - 21_000 - 1]
