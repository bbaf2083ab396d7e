"""Seams are repaired as a dense regression in float64 would, in every family, and what comes of it is a plain model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from models.candidate import Candidate
from models.errors import BadInput
from models.paths.folded import Fold, RepairedSource, parts_of
from models.paths.path import path_model
from models.paths.repair import Seam, calibrate, seams_of
from models.sources.checkpoint import open_checkpoint
from tests.models.paths.dense import KINDS, Dense
from tests.models.paths.repairs import (
    Changed,
    pool_of,
    random_images,
    random_texts,
    repaired,
    requests_of,
    without,
    write,
)
from tests.small_families import DECODERS, LAYERS, VISION, random_model

FAMILIES = DECODERS | VISION
CUTS = [Seam("a", layer, "a", following) for layer in range(LAYERS - 1) for following in range(layer + 2, LAYERS + 1)]
OTHERS = [Seam("a", 2, "a", 2), Seam("a", 1, "b", 3), Seam("a", 3, "b", 1), Seam("a", 1, "b", 2), Seam("a", 3, "b", 4)]
"""A repeat, a foreign layer, a step back, another model from here on, another model's final norm."""
RIDGE = 0.003


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Makes a random model, or finds the one that it made."""
    made = {}

    def one(family, config, seed=0):
        key = family, repr(config), seed
        if key not in made:
            made[key] = open_checkpoint(random_model(tmp_path_factory.mktemp("model"), family, config, seed))
        return made[key]

    return one


def matrix(fold):
    """As :class:`tests.models.paths.dense.Dense` has it."""
    return (fold.weight if fold.bias is None else torch.cat([fold.weight, fold.bias[:, None]], dim=1)).double().numpy()


def same(folds, others):
    return folds.keys() == others.keys() and all(
        np.array_equal(matrix(fold), matrix(others[seam])) and fold.scale == others[seam].scale
        for seam, fold in folds.items()
    )


def items_of(family, count):
    return random_images(2 * count) if family in VISION else random_texts(count)


def fresh(family):
    """Items that no calibration has seen."""
    if family in VISION:
        return random_images(64, 1)
    return torch.tensor([(text * 30)[:30] for text in random_texts(16, 1)])


def output(pool, candidate, family):
    """Logits, or what stands in their place."""
    with torch.inference_mode():
        return path_model(pool, candidate)(fresh(family))[0]


def check_nearer(pool, source, family):
    """Repaired cuts are nearer to the uncut model than cuts alone; returns the folds."""
    folds = calibrate(pool, requests_of(pool, items_of(family, 150)), CUTS, RIDGE)
    whole = output(pool, without(), family)
    for cut in ([1], [2], [3], [1, 2], [2, 3], [1, 2, 3], [1, 3]):
        naive = output(pool, without(*cut), family)
        ours = output(pool, repaired(pool, source, without(*cut), folds), family)
        assert (ours - whole).square().mean() < 0.95 * (naive - whole).square().mean(), cut
    return folds


@pytest.fixture(scope="module", params=KINDS)
def dense(request, make):
    """A pool of two models, calibration items, and the same in numpy."""
    return dense_of(request.param, make)


@pytest.fixture(scope="module")
def gated(make):
    return dense_of("gated with biases", make)


def dense_of(kind, make):
    sources = {name: make(*KINDS[kind][:2], seed) for seed, name in enumerate("ab")}
    items = random_images(40) if kind == "images" else random_texts(24)
    return pool_of(**sources), items, Dense(kind, sources, items)


def test_folds_are_dense_solutions_wherever_the_next_layer_is_from(dense):
    pool, items, oracle = dense
    folds = calibrate(pool, requests_of(pool, items), [*CUTS, *OTHERS], RIDGE)
    assert set(folds) == {*CUTS, *OTHERS}
    for seam, fold in folds.items():
        assert fold.weight.dtype == torch.float32
        assert (fold.bias is not None) == oracle.has_bias
        assert fold.scale is None
        assert oracle.off(matrix(fold), oracle.fold(seam, RIDGE), seam) <= 1e-4


@given(
    st.builds(Seam, st.sampled_from("ab"), st.integers(0, LAYERS - 1), st.sampled_from("ab"), st.integers(0, LAYERS)),
    st.floats(1e-3, 10),
    st.integers(1, 400),
)
@settings(max_examples=12, deadline=None)
def test_folds_are_dense_solutions_for_any_ridge_and_batches(gated, seam, ridge, tokens):
    pool, texts, oracle = gated
    fold = calibrate(pool, requests_of(pool, texts, tokens), [seam], ridge)[seam]
    assert oracle.off(matrix(fold), oracle.fold(seam, ridge), seam) <= 1e-4


def test_a_run_s_repair_is_the_sum_of_its_layers(dense):
    pool, items, oracle = dense
    folds = calibrate(pool, requests_of(pool, items), CUTS, RIDGE)
    for seam, fold in folds.items():
        layers = range(seam.layer + 1, seam.next)
        parts = [oracle.fold(replace(seam, next=layer + 1), RIDGE, start=layer) for layer in layers]
        assert oracle.off(matrix(fold), sum(parts), seam) <= 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_matrix_and_the_norm_behind_it_can_do_is_found(make, family):
    source = make(*FAMILIES[family])
    architecture = source.architecture
    down, bias, norm = (architecture.join(1, part) for part in parts_of(architecture))

    def turn(name, tensor):
        """In layer 1 channels of what leaves the MLP move on by one, and the norm behind it multiplies by more."""
        if name == norm and architecture.behind:
            return (1 + tensor) * 1.5 - 1
        return tensor.roll(1, -1 if architecture.inputs_first else 0) if name in (down, bias) else tensor

    pool, seam = pool_of(a=source, b=Changed(source, turn)), Seam("a", 1, "b", 2)
    fold = calibrate(pool, requests_of(pool, items_of(family, 120)), [seam], 1e-4)[seam]
    pool.add("ours", RepairedSource(source, 1, lambda: fold, ""))
    naive, ours, theirs = (output(pool, Candidate.identity(name, LAYERS), family) for name in ("a", "ours", "b"))
    assert (ours - theirs).square().mean() <= 1e-3 * (naive - theirs).square().mean()


@pytest.mark.parametrize("family", ["llama", "gemma", "gemma2"])
def test_a_layer_that_does_nothing_leaves_nothing_to_repair(make, family):
    source = make(*FAMILIES[family])
    gemma2 = bool(source.architecture.behind)
    silent = ("post_attention_layernorm", "post_feedforward_layernorm") if gemma2 else ("o_proj", "down_proj")

    def idle(name, tensor):
        return tensor.fill_(-gemma2) if "layers.2." in name and any(map(name.count, silent)) else tensor

    pool, seam = pool_of(a=Changed(source, idle)), Seam("a", 1, "a", 3)
    fold = calibrate(pool, requests_of(pool, random_texts(30)), [seam], RIDGE)[seam]
    assert fold.weight.abs().max() <= 1e-6
    assert fold.scale == (pytest.approx(1, abs=1e-4) if gemma2 else None)


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
@pytest.mark.parametrize("gain", [0, 0.004])
def test_channels_that_a_norm_silences_do_not_spoil_the_others(make, family, gain):
    def silenced(name, tensor):
        if "post_feedforward_layernorm" in name:
            tensor[:2] = gain - 1
        return tensor

    source = Changed(make(*FAMILIES[family]), silenced)
    check_nearer(pool_of(a=source), source, family)


def test_an_mlp_that_gives_nothing_in_front_of_a_norm_is_no_division_by_zero(make):
    source = Changed(make(*DECODERS["gemma2"]), lambda name, tensor: tensor * ("1.mlp.down_proj" not in name))
    check_nearer(pool_of(a=source), source, "gemma2")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_repaired_cut_is_nearer_to_the_uncut_model_and_is_a_plain_checkpoint(make, family, tmp_path):
    source = make(*FAMILIES[family])
    pool = pool_of(a=source)
    folds = check_nearer(pool, source, family)
    path = repaired(pool, source, without(1, 3), folds)
    written = getattr(transformers, FAMILIES[family][0]).from_pretrained(write(pool, path, tmp_path)).eval()
    with torch.inference_mode():
        assert (output(pool, path, family) - written(fresh(family))[0]).abs().max() <= 1e-4


def test_the_first_token_of_a_text_has_no_weight(make):
    # without attention what a token becomes depends on that token alone
    blind = Changed(make(*DECODERS["llama"]), lambda name, tensor: tensor * ("o_proj" not in name))
    pool, texts = pool_of(a=blind), random_texts(12)
    folds = calibrate(pool, requests_of(pool, texts), CUTS, RIDGE)
    first = [[3 + number, *text[1:]] for number, text in enumerate(texts)]
    assert same(folds, calibrate(pool, requests_of(pool, first), CUTS, RIDGE))
    second = [[*text[:1], 3 + number, *text[2:]] for number, text in enumerate(texts)]
    assert not same(folds, calibrate(pool, requests_of(pool, second), CUTS, RIDGE))


def test_padding_has_no_weight(gated):
    pool, texts, oracle = gated
    requests = requests_of(pool, texts)
    assert any(not batch.real(batch.ids[..., None]).all() for batch in requests.batches)
    folds = calibrate(pool, requests, CUTS, RIDGE)
    batches = []
    for batch in requests.batches:
        padding = ~batch.real(batch.ids[..., None])
        batches.append(replace(batch, ids=batch.ids + 7 * padding))
    assert same(folds, calibrate(pool, replace(requests, batches=tuple(batches)), CUTS, RIDGE))
    alone = calibrate(pool, requests_of(pool, texts, tokens=1), CUTS, RIDGE)
    for seam, fold in folds.items():
        assert oracle.off(matrix(fold), matrix(alone[seam]), seam) <= 1e-4


def test_folds_depend_neither_on_threads_nor_on_which_seams_are_repaired_together(dense):
    pool, items, _ = dense
    requests, threads, found = requests_of(pool, items, tokens=100), torch.get_num_threads(), []
    assert len(requests.batches) > 2 or torch.is_tensor(items)
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(calibrate(pool, requests, CUTS, RIDGE))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert same(*found)
    for seam in CUTS:
        assert same({seam: found[0][seam]}, calibrate(pool, requests, [seam], RIDGE))


STEPS = st.tuples(st.sampled_from("ab"), st.integers(0, LAYERS - 1))


@given(st.lists(STEPS, min_size=1, max_size=8), st.sampled_from("ab"))
def test_seams_are_where_a_layer_is_not_followed_by_the_next_of_its_model(path, host):
    found = seams_of(Candidate(host, tuple(path)), LAYERS)
    for position, (model, layer) in enumerate(path):
        after = path[position + 1] if position + 1 < len(path) else (host, LAYERS)
        assert found.get(position, Seam(model, layer, model, layer + 1)) == Seam(model, layer, *after)
        assert (position in found) == (after != (model, layer + 1))


def test_a_path_without_cuts_has_no_seams():
    assert seams_of(without(), LAYERS) == {}
    assert seams_of(without(0, 1), LAYERS) == {}  # before its first layer there is nothing to refit
    assert seams_of(without(2), LAYERS) == {1: Seam("a", 1, "a", 3)}
    assert seams_of(without(3), LAYERS) == {2: Seam("a", 2, "a", LAYERS)}
    assert all(seam.leaves_out and seam == seam.within() for seam in CUTS)
    assert not any(seam.leaves_out and seam == seam.within() for seam in OTHERS)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_repaired_model_differs_in_one_layer_and_its_digest(make, family):
    source, asked = make(*FAMILIES[family]), []
    shape = source.tensor(source.architecture.join(1, source.architecture.down)).shape
    shape = shape[::-1] if source.architecture.inputs_first else shape
    fold = Fold(torch.ones(shape), torch.ones(shape[0]), 2.0)
    ours, other = (RepairedSource(source, 1, lambda: asked.append(1) or fold, key) for key in ("one", "other"))
    assert ours.names() == source.names()
    assert ours.config == source.config
    changed = {source.architecture.join(1, part) for part in parts_of(source.architecture)} & set(source.names())
    for name in source.names():
        asked.clear()
        assert torch.equal(ours.tensor(name), source.tensor(name)) == (name not in changed)
        assert bool(asked) == (name in changed)
    for group in ("ends", *(f"layer.{layer}" for layer in range(LAYERS))):
        assert (ours.digest(group) == source.digest(group)) == (group != "layer.1")
    assert len({model.digest("layer.1") for model in (source, ours, other)}) == 3


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float16, 0.006), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("family", ["gemma2", "gpt2", "llama"])
def test_half_precision_stays_and_is_close(make, family, dtype, apart):
    source = make(*FAMILIES[family])
    coarse = Changed(source, lambda _, tensor: tensor.to(dtype))
    wide = Changed(coarse, lambda _, tensor: tensor.float())
    exact, folds = (
        calibrate(pool, requests_of(pool, random_texts(60)), CUTS, 0.01)
        for pool in (pool_of(a=source), pool_of(dtype, a=coarse))
    )
    for seam, fold in folds.items():
        assert torch.dist(fold.weight, exact[seam].weight) <= apart * exact[seam].weight.norm()
        assert fold.scale == (pytest.approx(exact[seam].scale, rel=apart) if source.architecture.behind else None)
        ours, theirs = (RepairedSource(one, seam.layer, lambda fold=fold: fold, "") for one in (coarse, wide))
        for name in source.names():
            assert ours.tensor(name).dtype == dtype
            assert torch.equal(ours.tensor(name), theirs.tensor(name).to(dtype))


@pytest.mark.parametrize("part", ["mlp.down_proj", "mlp.up_proj", "self_attn.q_proj"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_activations_that_are_no_numbers_are_refused_with_model_and_layer(make, part, value):
    source = make(*DECODERS["llama"])
    broken = Changed(source, lambda name, tensor: tensor.fill_(value) if f"layers.2.{part}" in name else tensor)
    pool = pool_of(a=source, broken=broken)
    for seam in (Seam("broken", 0, "broken", 2), Seam("broken", 2, "broken", 4), Seam("a", 1, "broken", 3)):
        with pytest.raises(BadInput, match=r"^broken: layer 2: its activations are not finite on the calibration"):
            calibrate(pool, requests_of(pool, random_texts(5)), [seam], RIDGE)


def test_texts_of_which_no_token_counts_are_refused(make):
    pool = pool_of(a=make(*DECODERS["llama"]))
    with pytest.raises(BadInput, match="a: layer 1: too few calibration items to solve for it; give more"):
        calibrate(pool, requests_of(pool, [[5, 6], [7, 8]]), [Seam("a", 1, "a", 3)], RIDGE)


def test_progress_is_told_in_batches(gated):
    pool, texts, _ = gated
    requests, told = requests_of(pool, texts, tokens=100), []
    calibrate(pool, requests, CUTS, RIDGE, told.append)
    assert sum(told) == len(requests.batches) > 1
