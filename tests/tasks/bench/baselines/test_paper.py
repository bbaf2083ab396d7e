"""The published algorithm keeps to its budget and to its equations, and learns where there is much to spend."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from models.candidate import Candidate
from models.search.environment import PathSpace
from models.search.features import FEATURES
from tasks.bench.baselines.paper import loose, merged, paper, rewards
from tasks.bench.baselines.paper_policy import (
    Actor,
    Critic,
    PaperSettings,
    advantages,
    log_density,
    nearest,
    ppo,
    roll_out,
    spread,
    wolpertinger,
)
from tests.models.lab import EXPERTS, RULES, new_trial, recipe_space

pytestmark = pytest.mark.lab

SMALL = PaperSettings(each=20, hidden=16, rollouts=4)


def statistics(models, layers):
    return np.random.default_rng(3).standard_normal((len(models), layers, FEATURES))


def run(trial, seed=0, settings=SMALL):
    rows = paper(trial, recipe_space(), RULES, np.random.default_rng(seed), settings)
    return trial, rows


def networks(layers=4, rules=RULES, seed=0):
    """Paths over three models, and untrained networks for them."""
    space = PathSpace(EXPERTS, layers, loose(rules))
    torch.manual_seed(seed)
    numbers = statistics(EXPERTS, layers)
    return space, Actor(space, numbers, SMALL), Critic(space, numbers, SMALL)


@pytest.mark.parametrize("depth", [True, False])
@pytest.mark.parametrize("candidates", [0, 1, 2, 30, 61])
def test_it_spends_its_budget_and_no_more(candidates, depth):
    told = []
    trial = new_trial(candidates, depth)
    trial.on_spent = told.append
    _, rows = run(trial)
    assert sum(told) == trial.spent == trial.whole * len(trial.lab.calls) <= trial.budget
    assert trial.left < trial.whole
    if rows:
        assert rows[-1]["evaluations"] == trial.spent
        assert rows[-1]["full"] == len(trial.archive)


def test_the_same_seed_gives_the_same_archive_and_leaves_other_generators_alone():
    first, rows = run(new_trial(60))
    np.random.seed(5)
    torch.manual_seed(5)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state()
    again, same = run(new_trial(60))
    assert again.archive.entries == first.archive.entries
    assert str(same) == str(rows)
    assert again.recipes == first.recipes
    assert np.random.get_state()[1].tolist() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert run(new_trial(60), seed=1)[0].archive.entries != first.archive.entries


def test_no_candidate_is_scored_twice_or_in_part():
    trial, _ = run(new_trial(80))
    assert len(set(trial.lab.calls)) == len(trial.lab.calls)
    assert all(entry.items == trial.archive.full for entry in trial.archive.entries)


def test_a_path_that_is_known_costs_nothing_and_is_learned_from():
    trial = new_trial(70, layers=2)
    _, rows = run(trial, settings=replace(SMALL, rollouts=16, preferences=1))
    assert len(rows) * 16 > len(trial.archive)
    assert len(set(trial.lab.calls)) == len(trial.lab.calls)


@pytest.mark.parametrize("masked", [True, False])
def test_every_path_is_legal_over_the_experts_and_the_merge_of_its_preference(masked):
    trial, rows = run(new_trial(80), settings=replace(SMALL, masked=masked))
    rules = RULES if masked else loose(RULES)
    merge, merges, paths = None, 0, 0
    for entry in trial.archive.entries[4:]:
        if entry.kind == "recipe":
            merge, merges = entry.candidate.host, merges + 1
            assert entry.candidate.is_identity(trial.lab.layers)
        else:
            paths += 1
            assert PathSpace((*EXPERTS, merge), trial.lab.layers, rules).contains(entry.candidate)
    assert merges == len(trial.recipes) == max(row["preference"] for row in rows) == 4
    assert paths > 70
    if not masked:
        strict = PathSpace((*EXPERTS, *trial.recipes), trial.lab.layers, RULES)
        assert not all(strict.contains(entry.candidate) for entry in trial.archive.entries[4:])


def test_the_preferences_have_equal_shares():
    trial, _ = run(new_trial(90))
    merges = [i for i, entry in enumerate(trial.archive.entries[4:]) if entry.kind == "recipe"]
    assert len(merges) == 4
    sizes = np.diff([*merges, len(trial.archive) - 4])
    assert sizes.max() - sizes.min() <= 2


def test_what_failed_has_the_worst_reward_and_breaks_nothing():
    for every, how in ((1, None), (3, None), (3, "nan")):
        trial, _ = run(new_trial(60, fails=(every, how)))
        assert trial.spent <= trial.budget
        assert trial.left < trial.whole
    failed = [entry.candidate for entry in trial.archive.entries if entry.scores is None]
    sound = np.array([entry.scores for entry in trial.archive.entries if entry.scores is not None])
    preference = np.array([0.2, 0.5, 0.3])
    assert failed
    np.testing.assert_allclose(rewards(trial, failed, preference, 0.0), sound.min(axis=0) @ preference)


def test_the_reward_weighs_scores_and_charges_layers():
    trial = new_trial(60)
    expert, short = Candidate.identity("a", 6), Candidate("b", (("b", 1), ("a", 3)))
    trial.spend_on([short], "policy")
    found = rewards(trial, [expert, short], np.array([0.5, 0.25, 0.25]), 0.01)
    scores = [trial.lab.scores(one) for one in (expert, short)]
    wanted = [x / 2 + y / 4 + z / 4 - 0.01 * depth for (x, y, z), depth in zip(scores, (6, 2), strict=True)]
    np.testing.assert_allclose(found, wanted)


def test_the_merge_has_the_preference_as_weights():
    trial = new_trial(60)
    recipe = merged(trial, recipe_space(), np.array([0.2, 0.5, 0.3]), 0.4)
    assert recipe.merge_method == "dare_ties"
    assert [one.parameters for one in recipe.models] == [
        {"weight": weight, "density": 0.4} for weight in (0.2, 0.5, 0.3)
    ]


def test_of_several_tasks_that_no_expert_is_named_for_each_counts_for_the_expert_that_does_best():
    trial = new_trial(60)
    trial.lab.strengths["a"][1] = 2.0
    entries = [replace(one, scores=tuple(trial.lab.scores(one.candidate))) for one in trial.archive.entries]
    trial.archive.entries[:] = entries
    recipe = merged(trial, recipe_space(), np.array([0.2, 0.5, 0.3]), 0.4)
    assert [one.parameters["weight"] for one in recipe.models] == [0.7, 0.0, 0.3]


def test_the_log_density_is_that_of_a_normal_distribution():
    generator = torch.Generator().manual_seed(0)
    mean, protos, log_sigma = (torch.randn(shape, generator=generator) for shape in ((5, 7, 6), (5, 7, 6), (6,)))
    oracle = Normal(mean, log_sigma.exp()).log_prob(protos).sum(dim=-1)
    torch.testing.assert_close(log_density(protos, mean, log_sigma), oracle)


def test_rollouts_have_the_density_of_the_policy_and_pool_layers_near_to_their_proto_actions():
    space, actor, critic = networks()
    drawn = roll_out(actor, critic, space, replace(SMALL, rollouts=40), torch.Generator().manual_seed(0))
    actions = torch.from_numpy(drawn.actions)
    with torch.no_grad():
        mean = actor.head(actor.encoder(actions)[:, :-1])
        oracle = Normal(mean, actor.log_sigma.exp()).log_prob(drawn.protos).sum(dim=-1)
    taken = actions >= 0
    torch.testing.assert_close(drawn.log_density[taken], oracle[taken], atol=1e-4, rtol=1e-4)
    assert all(space.contains(space.decode(row)) for row in drawn.actions)
    lengths = {space.decode(row).depth for row in drawn.actions}
    assert max(lengths) == space.longest
    assert len(lengths) > 1
    for row, protos in zip(drawn.actions, drawn.protos, strict=True):
        for t, action in enumerate(row[row >= 0]):
            distance = (actor.actions - protos[t]).norm(dim=1)
            if t == 0:
                distance[space.stop] = torch.inf  # nothing can stop yet
            order = distance.argsort()
            if action == space.stop:
                assert order[0] == space.stop
            else:
                assert action in order[: max(round(SMALL.nearest * space.stop), 2) + 1]
                assert order[0] != space.stop


def test_wolpertinger_picks_as_brute_force_does():
    space, actor, critic = networks()
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    prefixes = torch.from_numpy(rng.integers(0, space.stop, (30, 3)))
    legal = torch.from_numpy(rng.random((30, space.stop)) < 0.5)
    legal[0] = False
    legal[0, 5] = True
    protos = torch.randn(30, actor.actions.shape[1], generator=generator)
    with torch.no_grad():
        near = nearest(protos, actor.actions[:-1], legal, 4)
        states = critic.encoder(prefixes)[:, -1]
        certain = replace(SMALL, epsilon=0.0)
        chosen = wolpertinger(critic, states, near, False, certain, generator)
        last = wolpertinger(critic, states, near, True, certain, generator)
        for i in range(30):
            allowed = np.flatnonzero(legal[i].numpy())
            distance = {a: float((actor.actions[a] - protos[i]).norm()) for a in allowed}
            closest = sorted(allowed, key=distance.get)[:4]
            assert [a for a in near[i].tolist() if a >= 0] == closest
            paths = torch.stack([torch.cat([prefixes[i], torch.tensor([a])]) for a in closest])
            values = critic.value(critic.encoder(paths)[:, -1])
            assert chosen[i] == closest[int(values.argmax())]
            assert last[i] == closest[0]
    assert len({near[i].tolist().index(chosen[i]) for i in range(30)}) > 1


def test_with_probability_epsilon_wolpertinger_picks_uniformly():
    _, _, critic = networks()
    generator = torch.Generator().manual_seed(0)
    near = torch.tensor([[3, 7, 1, -1]]).expand(6000, 4)
    states = critic.encoder(torch.zeros(1, 0, dtype=torch.int64))[:, 0].expand(6000, -1)
    with torch.no_grad():
        greedy = wolpertinger(critic, states[:1], near[:1], False, replace(SMALL, epsilon=0.0), generator)
        chosen = wolpertinger(critic, states, near, False, replace(SMALL, epsilon=0.3), generator)
    for action in (3, 7, 1):
        expected = 0.3 / 3 + 0.7 * float(greedy == action)
        assert (chosen == action).float().mean() == pytest.approx(expected, abs=0.03)


def test_the_reward_is_spread_over_the_layers_of_a_path():
    actions = torch.tensor([[4, 0, 12, -1], [1, 2, 3, 4]])
    found = spread(torch.tensor([1.0, -2.0]), actions, stop=12)
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.5, 0, 0], [-0.5, -0.5, -0.5, -0.5]]))


def test_generalised_advantages_against_hand_calculation():
    given = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    values = torch.tensor([[0.1, 0.4, 0.2, 9.0], [0.3, 9.0, 9.0, 9.0]])
    taken = torch.tensor([[True, True, True], [True, False, False]])
    found = advantages(given, values, taken, discount=0.9, gae=0.5)
    third = 0.0 - 0.2
    second = (0.5 + 0.9 * 0.2 - 0.4) + 0.45 * third
    first = (0.5 + 0.9 * 0.4 - 0.1) + 0.45 * second
    torch.testing.assert_close(found, torch.tensor([[first, second, third], [0.7, 0, 0]]))


def test_ppo_raises_the_density_of_what_was_rewarded_and_the_critic_learns_the_return():
    space, actor, critic = networks()
    settings = replace(SMALL, rollouts=32, epochs=20)
    drawn = roll_out(actor, critic, space, settings, torch.Generator().manual_seed(0))
    first = torch.from_numpy(drawn.actions[:, 0] < space.layers).float()  # the first layer is the first model's
    optimiser = torch.optim.AdamW([*actor.parameters(), *critic.parameters()], lr=3e-3)
    fixed = actor.actions.clone()
    before = critic_error(critic, drawn, first, settings)
    result = ppo(actor, critic, optimiser, drawn, first, settings)
    with torch.no_grad():
        mean = actor.head(actor.encoder(torch.from_numpy(drawn.actions))[:, :-1])
        change = (log_density(drawn.protos, mean, actor.log_sigma) - drawn.log_density)[:, 0]
    assert change[first == 1].mean() > change[first == 0].mean() + 0.1
    assert critic_error(critic, drawn, first, settings) < before / 2
    assert torch.equal(actor.actions, fixed)
    entropy = Normal(torch.zeros(len(actor.log_sigma)), actor.log_sigma.exp()).entropy().sum()
    assert result["entropy"] == pytest.approx(float(entropy), rel=0.02)


def critic_error(critic, drawn, reward, settings):
    """Mean squared error of V in the first state, of which all but the discount is known: R, R/T at a time."""
    actions = torch.from_numpy(drawn.actions)
    given = spread(reward, actions, stop=len(critic.encoder.statistics))
    returns = (given * settings.discount ** torch.arange(given.shape[1])).sum(dim=1)
    with torch.no_grad():
        return float((critic.value(critic.encoder(actions)[:, 1]) - returns).square().mean())


@pytest.mark.slow  # of the published algorithm, which runs from the bench alone
def test_with_one_preference_and_a_generous_budget_it_learns_to_beat_random_paths():
    """Medians over seeds of mean rewards: the last quarter of its rollouts, the first, and random paths."""
    learned, before, uniform, forward = [], [], [], []
    for seed in range(5):
        trial = new_trial(250, layers=4, seed=seed)
        _, rows = run(trial, seed, PaperSettings(preferences=1))
        mean = [row["reward"] for row in rows]
        quarter = len(mean) // 4
        learned.append(np.mean(mean[-quarter:]))
        before.append(np.mean(mean[:quarter]))
        rng = np.random.default_rng(seed)
        preference = np.random.default_rng(seed).dirichlet(np.ones(3), size=1)[0]
        (merge,) = trial.recipes
        space = PathSpace((*EXPERTS, merge), 4, loose(RULES))
        for into, draw in ((uniform, uniform_path), (forward, PathSpace.random_path)):
            paths = [draw(space, rng) for _ in range(250)]
            scores = np.array([trial.lab.scores(one) for one in paths])
            into.append((scores @ preference - 0.02 / 4 * np.array([one.depth for one in paths])).mean())
    assert np.median(learned) > np.median(before) + 0.1
    assert np.median(learned) > np.median(uniform) + 0.1
    assert np.median(learned) > np.median(forward) + 0.1


def uniform_path(space, rng):
    """A path of legal actions, each as likely as any other."""
    prefix = []
    while not prefix or prefix[-1] != space.stop:
        legal = space.legal(np.array([prefix], dtype=np.int64).reshape(1, -1))[0]
        prefix.append(int(rng.choice(np.flatnonzero(legal))))
    return space.decode(prefix)
