from dataclasses import replace

import numpy as np
import pytest
import torch

from models.agent.archive import Archive, Entry
from models.agent.offline import OfflineData, TrainSettings, train_offline
from models.agent.online import SearchSettings, advantages, affordable, ppo, promising, search, thompson, utilities
from models.agent.proposals import beam, roll_out
from models.front import utility
from models.preferences import preferences
from tests.models.agent.planted import ITEMS, every_path, new_agent, planted

SMALL = SearchSettings(budget=1600, batch=12, rungs=(8,), rollouts=48, beam=6, per_round=3, updates=4)
WANTED = preferences(3, 8, np.random.default_rng(0))


def start(world, count=40, seed=0):
    """A trained agent and an archive: pool models scored on all items, random paths on half of them."""
    rng = np.random.default_rng(seed)
    paths = {world.space.identity(model): ("identity", ITEMS) for model in world.space.models}
    while len(paths) < count:
        paths.setdefault(world.space.random_path(rng), ("random", ITEMS // 2))
    entries = [Entry(p, kind, 0, n, world.score([p], 0, n)[0]) for p, (kind, n) in paths.items()]
    agent = new_agent(world)
    data = OfflineData(tuple(paths), np.array([e.scores for e in entries]), np.array([e.items for e in entries]))
    train_offline(agent, data, TrainSettings(steps=40), rng)
    return agent, Archive(entries, [ITEMS, ITEMS])


class Journal:
    """Scores candidates and keeps what was asked for; or answers from what another has kept."""

    def __init__(self, world, known=None, fails=lambda candidate: False):
        self.world, self.known, self.fails, self.asked = world, known, fails, {}

    def __call__(self, candidates, first, stop):
        found = []
        for one in candidates:
            key = (one, first, stop)
            assert key not in self.asked, "scored twice"
            if self.known is not None:
                self.asked[key] = self.known[key]
            else:
                self.asked[key] = None if self.fails(one) else self.world.score([one], first, stop)[0]
            found.append(self.asked[key])
        return found

    @property
    def spent(self):
        return sum(2 * (stop - first) for _, first, stop in self.asked)


@pytest.fixture(scope="module")
def searched():
    world = planted()
    agent, archive = start(world)
    before = list(archive.entries)
    journal = Journal(world)
    rows = search(agent, archive, WANTED, journal, SMALL, np.random.default_rng(1))
    return world, agent, before, archive, journal, rows


def test_generalised_advantages_against_hand_calculation():
    values = torch.tensor([[0.1, 0.4, 0.2, 9.0], [0.3, 9.0, 9.0, 9.0]])
    taken = torch.tensor([[True, True, True], [True, False, False]])
    found = advantages(torch.tensor([1.0, -1.0]), values, taken, gae=0.5)
    third = 1.0 - 0.2
    second = (0.2 - 0.4) + 0.5 * third
    first = (0.4 - 0.1) + 0.5 * second
    torch.testing.assert_close(found, torch.tensor([[first, second, third], [-1.3, 0, 0]]))


def test_with_gae_one_an_advantage_is_the_return_less_the_value():
    values, taken = torch.rand(5, 7), torch.ones(5, 6, dtype=torch.bool)
    returns = torch.rand(5)
    torch.testing.assert_close(advantages(returns, values, taken, 1.0), returns[:, None] - values[:, :-1])


def test_rollouts_are_legal_and_their_probabilities_those_of_the_policy():
    world = planted()
    agent = new_agent(world)
    drawn = roll_out(agent, WANTED, torch.Generator().manual_seed(0))
    assert world.space.are_legal(drawn.actions).all()
    actions = torch.from_numpy(drawn.actions)
    with torch.no_grad():
        states = agent.actor.encoder(actions)[:, :-1]
        log_policy = agent.actor.log_policy(states, drawn.preferences[:, None], drawn.legal)
    again = log_policy.gather(-1, actions.clamp_min(0)[..., None])[..., 0]
    torch.testing.assert_close(drawn.log_probability[drawn.taken], again[drawn.taken], atol=1e-4, rtol=1e-4)


def test_a_wide_beam_without_chance_finds_the_path_of_greatest_value():
    world = planted(models=("a", "b"), layers=3)
    agent = new_agent(world)
    paths = every_path(world.space)
    wanted = torch.full((3,), 1 / 3)
    actions = torch.from_numpy(paths)
    with torch.no_grad():
        values = agent.critic.value(agent.critic.encoder(actions), wanted)
    last = values[torch.arange(len(paths)), (actions >= 0).sum(dim=1)]
    found = beam(agent, wanted.double().numpy(), 100_000, 0.0, np.random.default_rng(0))
    assert found[0] == world.space.decode(paths[int(last.argmax())])
    assert len(found) == len(set(found)) == len(paths)


def test_a_narrow_beam_gives_legal_paths_each_once():
    world = planted()
    found = beam(new_agent(world), WANTED[0], 6, 0.3, np.random.default_rng(0))
    assert 0 < len(found) <= 6
    assert len(set(found)) == len(found)
    assert all(world.space.contains(path) for path in found)


def test_ppo_raises_the_return_that_the_surrogate_promises():
    world = planted()
    agent, _ = start(world)
    optimiser = torch.optim.AdamW([*agent.actor.parameters(), *agent.critic.parameters()], lr=1e-3)
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    wanted = np.tile(np.full(3, 1 / 3), (128, 1))
    rows = [ppo(agent, optimiser, roll_out(agent, wanted, generator), SMALL, 0.0, rng) for _ in range(20)]
    first, last = (np.mean([row["return"] for row in part]) for part in (rows[:5], rows[-5:]))
    assert last > first + 0.02
    assert rows[0]["entropy"] > 0


def test_thompson_takes_turns_between_preferences_and_takes_no_path_twice():
    world = planted()
    agent, rng = new_agent(world), np.random.default_rng(0)
    fresh = list(dict.fromkeys(world.space.random_path(rng) for _ in range(30)))
    predicted = agent.predict(world.space.encode(fresh))[:1]
    chosen = thompson(agent, predicted, fresh, WANTED[1:3], 10, rng)
    assert len(set(chosen)) == 10
    depths = np.array([path.depth for path in fresh])
    u = utility(agent.reward.costs(predicted[0], depths), WANTED[1:3])
    assert chosen[0] == u[:, 0].argmax()
    u[chosen[0]] = -np.inf
    assert chosen[1] == u[:, 1].argmax()


def test_promising_is_what_beats_all_that_is_fully_scored_somewhere():
    world = planted()
    agent, archive = start(world)
    partly, full = archive.scored(1, ITEMS), archive.scored(ITEMS)
    gain = utilities(agent, archive, partly, WANTED) - utilities(agent, archive, full, WANTED).max(axis=0)
    found = promising(agent, archive, partly, WANTED, 100)
    better = {archive.entries[i].candidate for i, row in zip(partly, gain, strict=True) if (row > 0).any()}
    assert found and {entry.candidate for entry in found} <= better
    assert found[0] == archive.entries[partly[np.maximum(gain, 0).mean(axis=1).argmax()]]
    reached = np.max(
        [utilities(agent, archive, np.array([archive.entries.index(e)]), WANTED)[0] for e in found], axis=0
    )
    known = utilities(agent, archive, full, WANTED).max(axis=0)
    best = np.maximum(utilities(agent, archive, partly, WANTED).max(axis=0), known)
    np.testing.assert_allclose(np.maximum(reached, known), best)


def test_a_round_is_cut_to_what_the_budget_pays_for():
    _, archive = start(planted())
    each = 2 * 8 + 0.25 * 2 * 8
    assert affordable(archive, [8, 16], SMALL, 10**6) == SMALL.batch
    assert affordable(archive, [8, 16], SMALL, int(5 * each)) == 5
    assert affordable(archive, [8, 16], SMALL, int(each) - 1) == 0


def test_the_budget_is_kept_and_every_evaluation_is_accounted_for(searched):
    _, _, before, archive, journal, rows = searched
    assert SMALL.budget - 2 * ITEMS < journal.spent <= SMALL.budget
    assert rows[-1]["evaluations"] == journal.spent
    assert sum(entry.charged for entry in archive.entries) == journal.spent
    assert [entry.candidate for entry in archive.entries[: len(before)]] == [entry.candidate for entry in before]


def test_scores_of_the_archive_are_means_over_the_items_it_says(searched):
    world, _, _, archive, _, _ = searched
    for entry in archive.entries:
        assert entry.scores == pytest.approx(world.score([entry.candidate], 0, entry.items)[0])


def test_the_archive_holds_legal_paths_each_once_by_their_kind(searched):
    world, _, before, archive, _, rows = searched
    added = archive.entries[len(before) :]
    assert len({entry.candidate for entry in archive.entries}) == len(archive)
    assert all(world.space.contains(entry.candidate) for entry in added)
    assert {entry.kind for entry in added} <= {"beam", "policy", "edit"}
    assert {entry.round for entry in added} == set(range(1, len(rows)))
    assert {entry.items for entry in added} == {8, ITEMS}


def test_hypervolume_and_utility_of_what_is_fully_scored_never_fall(searched):
    *_, rows = searched
    for name in ("hv", "utility", "evaluations", "full"):
        values = [row[name] for row in rows]
        assert values == sorted(values)
    assert rows[-1]["utility"] > rows[0]["utility"]


def test_the_same_seed_gives_the_same_archive_and_agent_also_in_a_replay(searched):
    world, agent, _, archive, journal, rows = searched
    again, other = start(world)
    replayed = search(again, other, WANTED, Journal(world, journal.asked), SMALL, np.random.default_rng(1))
    assert other.entries == archive.entries
    assert str(replayed) == str(rows)
    for name, network in agent.networks().items():
        for a, b in zip(network.parameters(), again.networks()[name].parameters(), strict=True):
            assert torch.equal(a, b)


def test_failed_candidates_are_kept_charged_and_never_promoted():
    world = planted()
    agent, archive = start(world)
    journal = Journal(world, fails=lambda candidate: candidate.depth == 3)
    search(agent, archive, WANTED, journal, replace(SMALL, budget=700), np.random.default_rng(1))
    failed = [entry for entry in archive.entries if entry.scores is None]
    assert failed and all(entry.candidate.depth == 3 for entry in failed)
    assert sum(entry.charged for entry in archive.entries) == journal.spent


def test_one_preference_alone_can_be_searched():
    world = planted()
    agent, archive = start(world)
    rows = search(agent, archive, WANTED[1:2], Journal(world), replace(SMALL, budget=700), np.random.default_rng(1))
    assert rows[-1]["utility"] >= rows[0]["utility"]
    assert len(rows) > 2


def test_a_search_over_a_space_that_is_exhausted_ends():
    world = planted(models=("a", "b"), layers=2)
    agent, archive = start(world, count=5)
    known = {entry.candidate for entry in archive.entries}
    rest = [path for row in every_path(world.space) if (path := world.space.decode(row)) not in known]
    for path, scores in zip(rest, world.score(rest, 0, ITEMS), strict=True):
        archive.record(path, "random", 0, ITEMS, scores)
    rows = search(agent, archive, WANTED, Journal(world), SMALL, np.random.default_rng(1))
    assert rows[-1]["evaluations"] < SMALL.budget


def test_the_planted_optimum_is_found_where_random_paths_at_equal_budget_fall_short():
    """Mean over seeds of the regret of the best fully scored path, over all preferences, by brute force."""
    regrets = {"search": [], "random": []}
    for seed in range(2):
        world = planted(seed)
        paths = [world.space.decode(row) for row in every_path(world.space)]
        depths = np.array([path.depth for path in paths])
        agent, archive = start(world, seed=seed)
        best = utility(agent.reward.costs(world.score(paths, 0, ITEMS), depths), WANTED).max(axis=0)
        rng = np.random.default_rng(seed)
        drawn = [archive.entries[i].candidate for i in archive.scored(ITEMS)]
        drawn += [world.space.random_path(rng) for _ in range(SMALL.budget // (2 * ITEMS))]
        costs = agent.reward.costs(world.score(drawn, 0, ITEMS), np.array([path.depth for path in drawn]))
        regrets["random"].append((best - utility(costs, WANTED).max(axis=0)).mean())
        rows = search(agent, archive, WANTED, Journal(world), SMALL, rng)
        regrets["search"].append(best.mean() - rows[-1]["utility"])
    assert np.mean(regrets["search"]) < 0.5 * np.mean(regrets["random"])
    assert np.mean(regrets["search"]) < 0.05
