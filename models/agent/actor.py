"""A(λ): the coefficients of a merge for every preference, trained by the gradient of the merged model.

A merge is Θ₀_l + Σ_k a_kl δ_kl, with a coefficient for each expert and layer. The actor is linear in the preference,
a(λ) = A_0 + Σ_j λ_j A_j, so one network gives a model for any preference at once, also for one that nobody asked for
while it was trained. Each member is a plain recipe of task arithmetic with a list of weights (method.md, section 4).

One step: draw a preference and some items of each task; ask how soft scores of these items and their slopes ∂f_j/∂a are
under a(λ) (``models.paths.slopes``); turn them into costs, shifted to what the real metric says; go down the smooth
Tchebycheff loss by Adam. The preference's task scores alone count here: depth is the search's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.candidate import Candidate
from models.front import Array
from models.merge.recipe import Recipe
from models.merge.space import RecipeSpace
from models.preferences import softened
from models.search.trial import PASSES, Trial

METHOD = "task_arithmetic"
PLACES = 4
"""Decimal places of a coefficient in a recipe."""

CENTROID, CORNERS = 0.15, 0.15
"""Shares of the steps whose preference weighs tasks alike, and nearly one task alone."""

LINEAR = 0.05
"""Weight of the sum of costs beside their maximum."""


SHARE = {True: 0.25, False: 0.5}
"""Of the budget, by whether depth counts: cuts have to be searched as well."""

MOST = 0.75
"""Of what is left of it: the actor's merges have to be scored."""


@dataclass(frozen=True)
class ActorSettings:
    """Hyperparameters of A(λ) and of its training."""

    share: float | None = None  # of the search's budget; by default SHARE
    items: int = 16  # of each task in a step, each charged three evaluations
    rate: float = 0.03  # of Adam, at the beginning
    sharpness: float = 0.1  # μ of the smooth maximum over tasks
    pull: float = 1e-3  # towards where the coefficients begin, over the sum of squares
    averaged: float = 0.9  # of an exponential mean of the parameters, which is what is kept
    layered: bool = True  # a coefficient for each layer, else one for each expert
    early: float = 0.3  # share of the steps after which merges are scored for the first time

    def cost(self, counts: Sequence[int]) -> int:
        """Item evaluations of a step, over tasks of so many items."""
        return PASSES * sum(min(self.items, count) for count in counts)

    def steps(self, budget: int, left: int, counts: Sequence[int], depth_counts: bool) -> int:
        """Steps that its share of a budget of item evaluations pays for, and what is left of it."""
        share = SHARE[depth_counts] if self.share is None else self.share
        cost = self.cost(counts)
        return int(min(share * budget, MOST * left) / cost) if cost else 0


def steps_of(trial: Trial, settings: ActorSettings) -> int:
    """Steps that the settings' share of a trial's budget pays for now."""
    return settings.steps(trial.budget, trial.left, trial.lab.answered, trial.reward.depth_counts)


class Actor:
    """A(λ) over E experts, L layers and K tasks."""

    def __init__(self, experts: Sequence[str], matrix: Tensor) -> None:
        """With the E experts' names, and A_0, A_1, … A_K as a matrix ``(1 + K, E, L)``."""
        self.experts = tuple(experts)
        self.matrix = matrix.double()

    @classmethod
    def untrained(cls, experts: Sequence[str], layers: int, tasks: int, own: Sequence[int]) -> Actor:
        """Coefficients where they begin: 0.4 + 0.5 (λ_j − 1/K) for an expert whose own task is j.

        Args:
            experts: by name.
            layers: L.
            tasks: K.
            own: of each expert the task that it is for.
        """
        matrix = torch.zeros(1 + tasks, len(experts), layers, dtype=torch.float64)
        matrix[0] = 0.4 - 0.5 / tasks
        for expert, task in enumerate(own):
            matrix[1 + task, expert] = 0.5
        return cls(experts, matrix)

    @property
    def tasks(self) -> int:
        """K."""
        return len(self.matrix) - 1

    def weights(self, preference: Array) -> Array:
        """Coefficients (E, L) for a preference over the tasks (K,), which need not sum to 1."""
        return _weights(self.matrix, preference / preference.sum()).numpy()

    def recipe(self, space: RecipeSpace, preference: Array) -> Recipe:
        """The merge for a preference over the tasks (K,)."""
        rounded = np.round(self.weights(preference), PLACES).tolist()
        own = dict(zip(self.experts, rounded, strict=True))
        return space.make(METHOD, {name: {"weight": _shortest(own[name])} for name in space.experts})

    def state(self) -> dict[str, Tensor]:
        """Its tensor, by name."""
        return {"matrix": self.matrix}


def own_tasks(costs: Array) -> list[int]:
    """The task that each expert is for, from the experts' costs (E, K): where it leads the others by most."""
    lead = costs - costs.mean(axis=0)
    return [int(row.argmin()) for row in lead]


def new_actor(trial: Trial, space: RecipeSpace) -> Actor:
    """An actor that has learned nothing, over the experts of a trial that has scored them."""
    experts = [Candidate.identity(name, trial.lab.layers) for name in space.experts]
    costs = trial.costs(experts)[:, : trial.reward.tasks]
    return Actor.untrained(tuple(space.experts), trial.lab.layers, trial.reward.tasks, own_tasks(costs))


def train_actor(
    actor: Actor,
    trial: Trial,
    settings: ActorSettings,
    steps: int,
    rng: np.random.Generator,
    on_step: Callable[[], None] | None = None,
    done: int = 0,
) -> list[dict[str, float | str]]:
    """Train in place for so many steps, which the trial pays for; tasks without right answers don't count.

    Args:
        actor: what is trained.
        trial: pays, and says what a merge is worth.
        settings: hyperparameters.
        steps: how many; the rate falls to zero over them.
        rng: draws preferences and items.
        on_step: called after each step.
        done: steps before these, for the rows' numbers.

    Returns:
        A row a step: the loss, and the largest soft cost.
    """
    counts, scale, k = trial.lab.answered, trial.reward.scale, actor.tasks
    ideal = np.array(scale.ideal[:k])
    span = ideal - np.array(scale.nadir[:k])
    parameters = actor.matrix.clone().requires_grad_()
    optimiser = torch.optim.Adam([parameters], lr=settings.rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
    decks = [Deck(count, settings.items, rng) for count in counts]
    shift, start, mean = Shift(k), actor.matrix, actor.matrix
    rows: list[dict[str, float | str]] = []
    for step in range(1, steps + 1):
        preference = draw_preference(k, rng)
        weights = _weights(parameters, preference)
        answers = trial.slopes(weights.detach().numpy(), [deck.deal() for deck in decks])
        known, taught = [j for j, one in enumerate(answers) if one], [one for one in answers if one]
        if taught:
            soft, real = (np.array([getattr(one, name) for one in taught]) for name in ("soft", "real"))
            costs = torch.tensor((ideal[known] - soft - shift.learn(known, real - soft)) / span[known])
            loss, slope = smooth_tchebycheff(costs, torch.tensor(preference[known]), settings.sharpness)
            towards = torch.tensor(np.stack([one.slopes for one in taught]) / -span[known, None, None])
            downhill = (torch.einsum("j,jel->el", slope, towards) * weights).sum()
            pull = settings.pull * (parameters - start).square().sum()
            (gradient,) = torch.autograd.grad(downhill + pull, parameters)
            parameters.grad = gradient if settings.layered else gradient.mean(dim=-1, keepdim=True).expand_as(gradient)
            optimiser.step()
            rows.append({"network": "actor", "step": done + step, "loss": float(loss), "cost": float(costs.max())})
        schedule.step()
        mean = settings.averaged * mean + (1 - settings.averaged) * parameters.detach()
        if on_step:
            on_step()
    actor.matrix = mean
    return rows


@dataclass
class Shift:
    """What the real metric says beyond soft scores, a running mean a task: soft ones understate long answers."""

    tasks: int
    kept: float = 0.9

    def __post_init__(self) -> None:
        self.total, self.weight = np.zeros(self.tasks), np.zeros(self.tasks)

    def learn(self, known: Sequence[int], difference: Array) -> Array:
        """The mean of each known task, with one more difference each."""
        self.total[known] = self.kept * self.total[known] + (1 - self.kept) * difference
        self.weight[known] = self.kept * self.weight[known] + (1 - self.kept)
        return np.asarray(self.total[known] / self.weight[known])


class Deck:
    """Items of a task, dealt so that none comes a second time before all have come."""

    def __init__(self, count: int, size: int, rng: np.random.Generator) -> None:
        self.count, self.size, self.rng = count, min(size, count), rng
        self.left: list[int] = []

    def deal(self) -> list[int]:
        """So many different items, in order."""
        dealt: list[int] = []
        while len(dealt) < self.size:
            if not self.left:
                mixed = self.rng.permutation(self.count).tolist()
                self.left = sorted(mixed, key=lambda item: item not in dealt)  # those in hand come last
            dealt.append(self.left.pop())
        return sorted(dealt)


def draw_preference(tasks: int, rng: np.random.Generator) -> Array:
    """A preference (K,): the centroid, a softened corner, or one from a flat Dirichlet distribution."""
    kind = rng.random()
    if kind < CENTROID:
        return np.full(tasks, 1 / tasks)
    if kind < CENTROID + CORNERS:
        return softened(np.eye(tasks)[int(rng.integers(tasks))])
    return rng.dirichlet(np.ones(tasks))


def smooth_tchebycheff(costs: Tensor, preference: Tensor, sharpness: float) -> tuple[Tensor, Tensor]:
    """μ log Σ_j exp(K λ_j c_j / μ) + 0.05 Σ_j K λ_j c_j of costs (K,), and its slope in them (K,).

    Source: Lin et al., Smooth Tchebycheff Scalarization for Multi-Objective Optimization, ICML 2024.
    """
    costs = costs.clone().requires_grad_()
    weighed = len(costs) * preference / preference.sum() * costs
    loss = sharpness * torch.logsumexp(weighed / sharpness, dim=0) + LINEAR * weighed.sum()
    (slope,) = torch.autograd.grad(loss, costs)
    return loss.detach(), slope


def _weights(matrix: Tensor, preference: Array) -> Tensor:
    """a(λ) ``(E, L)``."""
    return matrix[0] + torch.einsum("j,jel->el", torch.tensor(preference), matrix[1:])


def _shortest(values: list[float]) -> float | list[float]:
    """One number where all are the same."""
    return values if len(set(values)) > 1 else values[0]
