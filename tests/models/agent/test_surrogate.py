"""The surrogate is scikit-learn's Gaussian process, where that is given the same kernel, noise and data."""

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern

from models.agent.description import Describer
from models.agent.surrogate import JITTER, LIMIT, Surrogate
from models.candidate import Candidate
from models.search.environment import PathSpace
from tests.models.lab import EXPERTS, FormulaLab, recipe_space

GROUPS = np.array([0, 0, 0, 1, 2, 2])


def examples(count=40, seed=0):
    """Descriptions whose last group says nothing, scores of two tasks, and items."""
    rng = np.random.default_rng(seed)
    x = rng.normal(3, 2, (count, 6))
    y = np.stack([np.sin(x[:, :3].sum(1)) + 0.3 * x[:, 3], 5 - x[:, 3] ** 2], axis=1)
    items = rng.choice([8, 32, 128], count)
    return x, y + 0.2 * rng.standard_normal(y.shape) * np.sqrt(128 / items)[:, None], items


def oracle(surrogate, x, y, items):
    """scikit-learn's process, fitted; what standardises inputs; and what takes its outputs back."""
    centre, spread = x.mean(axis=0), x.std(axis=0)
    amplitude, noise = (np.exp(float(one)) for one in (surrogate.hyper.amplitude, surrogate.hyper.noise))
    lengths = np.sqrt(np.bincount(GROUPS)[GROUPS]) * np.exp(-surrogate.hyper.scales.numpy()[GROUPS] / 2)
    kernel = ConstantKernel(amplitude) * Matern(lengths, nu=1.5)
    process = GaussianProcessRegressor(kernel, alpha=noise * items.max() / items + JITTER, optimizer=None)
    process.fit(np.clip((x - centre) / spread, -LIMIT, LIMIT), (y - y.mean(axis=0)) / y.std(axis=0))
    return process, lambda new: np.clip((new - centre) / spread, -LIMIT, LIMIT), y.mean(axis=0), y.std(axis=0)


@pytest.fixture(scope="module")
def fitted():
    x, y, items = examples()
    surrogate = Surrogate(GROUPS)
    surrogate.fit(x, y, items, 40, np.random.default_rng(0))
    return surrogate, x, y, items


@pytest.mark.parametrize("steps", [0, 15])
def test_predictions_are_those_of_scikit_learn(steps):
    x, y, items = examples()
    surrogate = Surrogate(GROUPS)
    surrogate.fit(x, y, items, steps, np.random.default_rng(0))
    process, standard, offset, unit = oracle(surrogate, x, y, items)
    fresh = examples(25, seed=1)[0]
    fresh[0] *= 50  # beyond the limit
    mean, deviation = process.predict(standard(fresh), return_std=True)
    found = surrogate.predict(fresh)
    np.testing.assert_allclose(found[0], mean * unit + offset, atol=1e-4)
    np.testing.assert_allclose(found[1], deviation * unit, atol=1e-4)


def test_what_it_maximises_is_the_marginal_likelihood():
    x, y, items = examples()
    surrogate = Surrogate(GROUPS)
    process, *_ = oracle(surrogate, x, y, items)
    value = surrogate.fit(x, y, items, 1, np.random.default_rng(0))  # taken before the one step
    assert value == pytest.approx(-process.log_marginal_likelihood() / y.size, abs=1e-5)
    again = surrogate.fit(x, y, items, 60, np.random.default_rng(0))
    assert again < value - 0.1
    assert np.isnan(surrogate.fit(x, y, items, 0, np.random.default_rng(0)))


def test_draws_have_the_mean_and_covariance_of_the_posterior(fitted):
    surrogate, x, y, items = fitted
    process, standard, offset, unit = oracle(surrogate, x, y, items)
    fresh = np.concatenate([examples(4, seed=1)[0], x[:1]])
    mean, covariance = process.predict(standard(fresh), return_cov=True)
    drawn = (surrogate.draw(fresh, 20_000, np.random.default_rng(0)) - offset) / unit
    assert drawn.shape == (20_000, 5, 2)
    for k in range(2):
        deviation = np.sqrt(np.diag(covariance[..., k]))
        np.testing.assert_allclose(drawn[..., k].mean(axis=0), mean[:, k], atol=0.04 * deviation.max())
        found = np.cov(drawn[..., k].T)
        np.testing.assert_allclose(found, covariance[..., k], atol=0.04 * deviation.max() ** 2 + 1e-3)
    across = np.corrcoef(drawn[:, 0].T)[0, 1]
    assert abs(across) < 0.03  # tasks are drawn apart


def test_the_same_generator_draws_the_same(fitted):
    surrogate, x, *_ = fitted
    first, second = (surrogate.draw(x[:3], 4, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_saved_and_loaded_it_predicts_and_learns_the_same(fitted, tmp_path):
    surrogate, x, y, items = fitted
    save_file({name: one.contiguous() for name, one in surrogate.state().items()}, tmp_path / "s.safetensors")
    loaded = Surrogate.load(load_file(tmp_path / "s.safetensors"))
    fresh = examples(7, seed=1)[0]
    assert loaded.known
    for a, b in zip(surrogate.predict(fresh), loaded.predict(fresh), strict=True):
        np.testing.assert_array_equal(a, b)
    again = Surrogate.load(load_file(tmp_path / "s.safetensors"))
    for one in (loaded, again):
        one.fit(x, y, items, 3, np.random.default_rng(0))
    np.testing.assert_array_equal(loaded.predict(fresh)[0], again.predict(fresh)[0])


def test_a_group_that_says_nothing_comes_to_matter_least(fitted):
    surrogate, *_ = fitted
    assert int(surrogate.hyper.scales.argmin()) == 2


def test_a_feature_that_never_varied_changes_nothing():
    x, y, items = examples()
    constant, steps = np.insert(x, 6, 7.0, axis=1), 5
    groups = np.append(GROUPS, 3)
    with_it, without = Surrogate(groups), Surrogate(GROUPS)
    with_it.fit(constant, y, items, steps, np.random.default_rng(0))
    without.fit(x, y, items, steps, np.random.default_rng(0))
    fresh = examples(5, seed=1)[0]
    found = with_it.predict(np.insert(fresh, 6, -100.0, axis=1))[0]
    np.testing.assert_allclose(found, without.predict(fresh)[0])


def test_more_items_say_more():
    x, y, _ = examples(12)
    fresh = x[:1]
    deviations = []
    for own in (4, 128):
        surrogate = Surrogate(GROUPS)
        surrogate.fit(x, y, np.where(np.arange(12) == 0, own, 64), 0, np.random.default_rng(0))
        deviations.append(surrogate.predict(fresh)[1])
    assert (deviations[1] < deviations[0]).all()


def test_scores_that_are_all_equal_are_expected_again():
    x, _, items = examples(6)
    surrogate = Surrogate(GROUPS)
    surrogate.fit(x, np.full((6, 2), 0.25), items, 5, np.random.default_rng(0))
    np.testing.assert_allclose(surrogate.predict(examples(3, seed=1)[0])[0], 0.25, atol=1e-5)


def test_it_explains_recipes_and_paths_of_the_formula_far_better_than_the_mean():
    lab, space, rng = FormulaLab(uneven=True), recipe_space(), np.random.default_rng(0)
    describer, names = Describer(space, lab.layers), []
    for point in space.sample(20, rng):
        recipe = space.recipe(point)
        names.append(lab.add(recipe).host)
        describer.add(names[-1], recipe)
    paths = PathSpace((*EXPERTS, *names), lab.layers)
    candidates = [Candidate.identity(name, lab.layers) for name in names]
    candidates = list(dict.fromkeys(candidates + [path for one in candidates for path in paths.edits(one, rng, 12)]))
    order = rng.permutation(len(candidates))
    known, unseen = order[:150], order[150:]
    described, scores = describer(candidates), np.array([lab.scores(one) for one in candidates])
    surrogate = Surrogate(describer.groups)
    surrogate.fit(described[known], scores[known], np.full(len(known), 60), 80, rng)
    mean, deviation = surrogate.predict(described[unseen])
    left = ((mean - scores[unseen]) ** 2).mean(axis=0) / scores[unseen].var(axis=0)
    assert (left < 0.3).all()
    off = np.abs(mean - scores[unseen]) / deviation
    assert (off < 2).mean() > 0.5  # it knows how far it may be off
