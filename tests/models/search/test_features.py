import numpy as np
import torch

from models.search.features import FEATURES, layer_statistics, leading_singular_values


class Tensors:
    def __init__(self, tensors):
        self.tensors = tensors

    def names(self):
        return sorted(self.tensors)

    def tensor(self, name):
        return self.tensors[name]


def group(name):
    return f"layer.{name.split('.')[1]}" if name.startswith("layers.") else "ends"


def family(layers=3):
    generator = torch.Generator().manual_seed(0)
    shapes = {"q": (12, 8), "norm": (8,)}
    base = {
        f"layers.{n}.{name}": torch.randn(s, generator=generator) for n in range(layers) for name, s in shapes.items()
    }
    base["embed"] = torch.randn(20, 8, generator=generator)

    def moved(size):
        return Tensors({name: t + size * torch.randn(t.shape, generator=generator) for name, t in base.items()})

    return Tensors(base), {"a": moved(0.1), "b": moved(0.2), "still": Tensors(dict(base))}


def test_statistics_are_standardised_finite_and_ordered_by_the_size_of_the_task_vector():
    base, pool = family()
    found = layer_statistics(base, pool, ["a", "b"], 3, group)
    assert found.shape == (3, 3, FEATURES)
    np.testing.assert_allclose(found.mean(axis=(0, 1)), 0, atol=1e-9)
    np.testing.assert_allclose(found.std(axis=(0, 1)), 1)
    assert (found[1, :, 0] > found[0, :, 0]).all() and (found[0, :, 0] > found[2, :, 0]).all()
    assert (found[1, :, 1] < found[0, :, 1]).all() and (found[0, :, 1] < found[2, :, 1]).all()


def test_statistics_are_those_of_their_formulas():
    base, pool = family()

    def vector(model, layer):
        parts = (model.tensor(f"layers.{layer}.{name}") for name in ("q", "norm"))
        return torch.cat([part.flatten() for part in parts]).double()

    expected = np.zeros((3, 3, FEATURES))
    for m, model in enumerate(pool):
        for layer in range(3):
            theta = vector(base, layer)
            delta = {name: vector(one, layer) - theta for name, one in pool.items()}
            mine, after = delta[model], theta + delta[model]
            agree = [(mine.sign() == delta[other].sign())[mine != 0] for other in ("a", "b") if other != model]
            values = torch.linalg.svdvals(mine[:96].reshape(12, 8))
            expected[m, layer] = [
                mine.norm() / theta.norm(),
                after @ theta / after.norm() / theta.norm(),
                torch.cat(agree).double().mean() if len(torch.cat(agree)) else 0,
                *values[:3] / values.norm().clamp_min(1e-30),
            ]
    expected = (expected - expected.mean(axis=(0, 1))) / expected.std(axis=(0, 1))
    np.testing.assert_allclose(layer_statistics(base, pool, ["a", "b"], 3, group), expected, atol=1e-4)


def test_statistics_do_not_depend_on_the_order_of_the_experts():
    base, pool = family()
    np.testing.assert_array_equal(
        layer_statistics(base, pool, ["a", "b"], 3, group), layer_statistics(base, pool, ["b", "a"], 3, group)
    )


def test_every_tensor_of_a_layer_is_reported_once():
    base, pool = family()
    seen = []
    layer_statistics(base, pool, ["a", "b"], 3, group, lambda: seen.append(1))
    assert len(seen) == 6


def test_leading_singular_values_are_those_of_the_whole_decomposition():
    matrix = torch.randn(40, 30, generator=torch.Generator().manual_seed(1)) * torch.logspace(0, -2, 30)
    np.testing.assert_allclose(leading_singular_values(matrix), torch.linalg.svdvals(matrix)[:3], rtol=1e-4)
    np.testing.assert_allclose(leading_singular_values(torch.eye(2)), [1, 1, 0], atol=1e-6)
