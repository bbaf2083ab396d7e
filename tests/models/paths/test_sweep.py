"""A cut model that is refitted as a whole is nearer to the uncut one than one whose seams alone are."""

import pytest
import torch

from models.candidate import Candidate
from models.errors import BadInput
from models.paths.folded import RepairedSource
from models.paths.path import path_model
from models.paths.pool import unwatched
from models.paths.repair import calibrate, seams_of
from models.paths.sweep import Sweep, can_sweep
from models.sources.architecture import GEMMA2, LLAMA
from models.sources.checkpoint import open_checkpoint
from tests.models.paths.repairs import Changed, pool_of, random_images, random_texts, repaired, requests_of, without
from tests.small_families import DECODERS, LAYERS, VISION, random_model

FAMILIES = DECODERS | VISION
RIDGE = 0.003
CUT = without(1, 3)


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    def made(family):
        return open_checkpoint(random_model(tmp_path_factory.mktemp("model"), *FAMILIES[family], seed=0))

    return made


def swept(pool, source, cut, requests, first=0):
    """The path with its layers refitted."""
    (folds,) = Sweep(requests, RIDGE, tuple(range(first, cut.depth))).run(pool, [cut], unwatched)
    path = list(cut.path)
    for position, fold in folds.items():
        name = f"{cut.id} {position}"
        pool.add(name, RepairedSource(source, path[position][1], lambda fold=fold: fold, name))
        path[position] = name, path[position][1]
    return Candidate(cut.host, tuple(path)), folds


def off(pool, candidate, given):
    """Squared distance of a path's output from the uncut model's."""
    with torch.inference_mode():
        mine, whole = (path_model(pool, one).eval()(given)[0] for one in (candidate, Candidate.identity("a", LAYERS)))
    return float((mine - whole).square().sum())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "vit"])
def test_what_is_refitted_as_a_whole_is_nearer_than_seams_alone(make, family):
    source = make(family)
    pool, images = pool_of(a=source), family in VISION
    items = random_images(150) if images else random_texts(150)
    fresh = random_images(8, seed=9) if images else torch.randint(3, 61, (8, 24), generator=torch.manual_seed(9))
    requests = requests_of(pool, items)
    seams = seams_of(CUT, LAYERS)
    alone = repaired(pool, source, CUT, calibrate(pool, requests, seams.values(), RIDGE))
    whole, folds = swept(pool, source, CUT, requests, min(seams))
    assert list(folds) == list(range(min(seams), CUT.depth))
    assert off(pool, whole, fresh) < off(pool, alone, fresh) < off(pool, CUT, fresh)


def test_an_uncut_model_has_nothing_to_refit(make):
    source = make("llama")
    pool = pool_of(a=source)
    whole = Candidate.identity("a", LAYERS)
    _, folds = swept(pool, source, whole, requests_of(pool, random_texts(20)))
    assert len(folds) == LAYERS
    assert max(float(fold.weight.abs().max()) for fold in folds.values()) <= 1e-5


def test_threads_make_no_difference(make):
    pool = pool_of(a=make("llama"))
    requests, found = requests_of(pool, random_texts(40)), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found += Sweep(requests, RIDGE, tuple(range(CUT.depth))).run(pool, [CUT], unwatched)
    finally:
        torch.set_num_threads(before)
    one, two = found
    assert all(torch.equal(one[position].weight, two[position].weight) for position in one)


def test_activations_that_are_not_finite_are_refused_with_the_layer(make):
    source = Changed(make("llama"), lambda name, tensor: tensor * (float("nan") if "layers.2.mlp.up" in name else 1))
    pool = pool_of(a=source)
    with pytest.raises(BadInput, match="a: layer 2: its activations are not finite on the calibration items"):
        Sweep(requests_of(pool, random_texts(5)), RIDGE, tuple(range(CUT.depth))).run(pool, [CUT], unwatched)


@pytest.mark.parametrize(
    ("path", "can"),
    [
        ((0, 1, 4), True),
        ((0, 2, 2, 3), False),
        ((0, 3, 2), False),
    ],
)
def test_only_paths_forward_have_an_uncut_model_beside_them(path, can):
    kinds = LLAMA, GEMMA2
    mine, others = (Candidate(host, tuple(("a", layer) for layer in path)) for host in ("a", "b"))
    assert [can_sweep(one, mine) for one in kinds] == [can, False]
    assert not can_sweep(LLAMA, others)
