"""Slopes are those of the values of the merged model, in every family, and a batch or a thread more changes nothing."""

import numpy as np
import pytest
import torch

from models.candidate import Candidate
from models.merge.recipe import Recipe
from models.merge.source import MergedSource
from models.paths.pool import Pool
from models.paths.prefix import PathLikelihoods, Requests
from models.paths.slopes import Choice, Lesson, Slopes
from models.paths.vision import ImageItems, image_requests
from models.sources.checkpoint import open_checkpoint
from models.sources.heads import Head
from tests.models.paths.repairs import random_images
from tests.small_families import DECODERS, LAYERS, VISION, random_model

FAMILIES = DECODERS | VISION
EXPERTS = ("one", "two")
WEIGHTS = np.random.default_rng(0).uniform(0.1, 0.7, (len(EXPERTS), LAYERS))
CLASSES = 5
STEP = 0.002
"""Norms of most families compute in single precision whatever is asked for: a smaller one drowns in its noise."""
FOURTH_ORDER = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}
"""Weights of a central difference, by steps."""


def close_to(base, folder, seed):
    """A fine-tune of a model: every tensor a little different."""
    generator = torch.Generator().manual_seed(seed)
    model = type(base).from_pretrained(base.name_or_path)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.05)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """A pool of a base and two fine-tunes, in double precision."""
    import transformers

    made = {}

    def one(name):
        if name not in made:
            kind, config = FAMILIES[name]
            folder = random_model(tmp_path_factory.mktemp("base"), kind, config, 0)
            base = getattr(transformers, kind).from_pretrained(folder)
            folders = [close_to(base, tmp_path_factory.mktemp(one), seed) for seed, one in enumerate(EXPERTS, 1)]
            sources = {
                model: open_checkpoint(at) for model, at in zip(("base", *EXPERTS), (folder, *folders), strict=True)
            }
            pool = Pool(sources["base"].config, dtype=torch.float64)
            for model, source in sources.items():
                pool.add(model, source)
            made[name] = pool, sources
        return made[name]

    return one


def pairs_of(count, seed):
    generator = np.random.default_rng(seed)

    def draw(low, high):
        return generator.integers(3, 61, int(generator.integers(low, high))).tolist()

    return [(draw(2, 12), draw(1, 4)) for _ in range(count)]


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def lessons_of(pool, name, tokens=64):
    """Items of every kind: likelihoods, greedy answers, and choices with lengths; or images by class."""
    if name in VISION:
        width = 16 if pool.architecture.classes == "texts" else 32
        head = Head(torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(5)), None)
        labels = torch.arange(7) % CLASSES
        requests = image_requests(pool, [ImageItems(random_images(7).double(), labels, head)])
        by_class = Lesson(requests, 7, 0.0, numbers(*[0.0] * 7), numbers(*[2.0] * 7))
        return (by_class, Lesson(requests, 7, 1.0, numbers(*[-0.5] * 7), numbers(*[0.0] * 7)))
    texts = pairs_of(6, 0)
    requests = Requests.from_pairs(texts, 128, tokens)
    bits = Lesson(requests, 6, 0.5, numbers(*np.linspace(0.1, 0.4, 6)), numbers(*[0.0] * 6))
    greedy = Lesson(requests, 6, 0.0, numbers(*[0.0] * 6), numbers(*[1.0] * 6))
    groups = [pairs_of(2, seed) for seed in range(4)]  # of two, or finite differences meet the edges of a maximum
    chosen = tuple(
        Choice((2 * n, 2 * n + 1), n % 2, tuple(1 / len(one[1]) for one in group), 1.0)
        for n, group in enumerate(groups)
    )
    none = numbers(*[0.0] * 8)
    return (bits, greedy, Lesson(Requests.from_groups(groups, 128, tokens), 4, 0.0, none, none, chosen))


def taught(pool, lessons, weights=WEIGHTS, **how):
    (found,) = Slopes(EXPERTS, weights, lessons, **how).run(pool, [Candidate.identity("base", 1)], lambda _: None)
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_slopes_are_those_of_finite_differences(make, name):
    pool, _ = make(name)
    lessons = lessons_of(pool, name)
    found = taught(pool, lessons)
    for direction in np.random.default_rng(1).standard_normal((2, *WEIGHTS.shape)):
        expected = np.zeros(len(lessons))
        for factor, share in FOURTH_ORDER.items():
            moved = taught(pool, lessons, WEIGHTS + factor * STEP * direction)
            expected += [share / STEP * one.soft for one in moved]
        along = np.array([(one.slopes * direction).sum() for one in found])
        sizes = np.array([np.abs(one.slopes).sum() for one in found])
        assert (sizes > 0).all()
        errors = np.abs(along - expected) / sizes
        assert errors[0] < 0.002
        assert (errors < 0.03).all()  # products of many sigmoids are steep


@pytest.mark.parametrize("name", FAMILIES)
def test_real_values_are_those_of_the_recipe(make, name):
    pool, sources = make(name)
    (lesson, *_) = lessons_of(pool, name)
    own = {model: {"weight": WEIGHTS[k].tolist()} for k, model in enumerate(EXPERTS)}
    recipe = Recipe.model_validate(
        {
            "merge_method": "task_arithmetic",
            "base_model": "base",
            "models": [{"model": model, "parameters": own[model]} for model in EXPERTS],
            "dtype": "float64",
        }
    )
    merged = Pool(sources["base"].config, dtype=torch.float64)
    merged.add("merged", MergedSource(recipe, sources.__getitem__))
    job = PathLikelihoods(lesson.requests)
    ((likelihoods, given),) = job.run(merged, [Candidate.identity("merged", LAYERS)], lambda _: None)
    value = lesson.offset + float((lesson.slope * likelihoods + lesson.gain * given).sum())
    assert taught(pool, [lesson])[0].real == pytest.approx(value / lesson.items, rel=1e-9)


def test_computing_layers_twice_changes_nothing(make):
    pool, _ = make("llama")
    lessons = lessons_of(pool, "llama")
    for one, other in zip(taught(pool, lessons), taught(pool, lessons, checkpointing=True), strict=True):
        assert one.soft == other.soft
        assert np.array_equal(one.slopes, other.slopes)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_no_bit(make, threads):
    pool, _ = make("llama")
    lessons, before = lessons_of(pool, "llama"), torch.get_num_threads()
    expected = taught(pool, lessons)
    try:
        torch.set_num_threads(threads)
        found = taught(pool, lessons)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(found, expected, strict=True):
        assert (one.soft, one.real) == (other.soft, other.real)
        assert np.array_equal(one.slopes, other.slopes)


def test_choices_of_one_item_are_read_together(make):
    pool, _ = make("llama")
    *_, choices = lessons_of(pool, "llama", tokens=30)
    assert len(choices.requests.batches) > 1
    for batch in choices.requests.batches:
        rows = set(batch.rows.tolist())
        assert all(set(one.rows) <= rows or not set(one.rows) & rows for one in choices.choices)
    *_, whole = lessons_of(pool, "llama", tokens=10_000)
    one, other = taught(pool, [choices])[0], taught(pool, [whole])[0]
    assert one.soft == pytest.approx(other.soft, rel=1e-9)
    assert one.real == other.real
    assert one.real in (0, 0.25, 0.5, 0.75, 1)


def test_what_is_not_finite_teaches_nothing(make):
    pool, _ = make("llama")
    lesson = lessons_of(pool, "llama")[0]
    assert taught(pool, [lesson], np.full_like(WEIGHTS, np.nan)) == [None]
    assert taught(pool, [lesson])[0] is not None
