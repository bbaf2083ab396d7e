"""The surrogate: task scores of a candidate from its description, by a Gaussian process (Rasmussen & Williams 2006).

A Matérn kernel of smoothness 3/2 with a length scale for each group of features, shared by the tasks; noise falls with
the items over which a score is a mean. Hyperparameters maximise the marginal likelihood under a weak prior, which says
that most features matter little. It replaced an ensemble of networks: on a few hundred examples it explains far more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.front import Array

LIMIT = 5.0
"""Standardised features are clipped here."""

PRIOR_SCALE, PRIOR_SPREAD = -3.0, 1.5
"""Mean and standard deviation of a group's log inverse squared length scale, before any data."""

PRIOR_NOISE = -3.0
"""Mean of the log noise variance of a score over all items; its standard deviation is 1."""

SUBSET = 300
"""Examples on which hyperparameters are fitted; all are used to predict."""

JITTER = 1e-6


@dataclass
class Hyperparameters:
    """What the marginal likelihood decides, all logarithms."""

    scales: Tensor  # (G,) inverse squared length scales
    amplitude: Tensor  # ()
    noise: Tensor  # ()


class Surrogate:
    """Posterior over the task scores of described candidates."""

    def __init__(self, groups: npt.NDArray[np.int64]) -> None:
        """Nothing known yet; ``groups`` (F,) says to which group each feature belongs, from 0 to G - 1."""
        self.groups = torch.from_numpy(np.asarray(groups, dtype=np.int64))
        self.sizes = torch.bincount(self.groups).double()
        scales, noise = torch.full((len(self.sizes),), PRIOR_SCALE).double(), torch.tensor(-2.5).double()
        self.hyper = Hyperparameters(scales, torch.zeros(()).double(), noise)
        self.known = False

    def fit(
        self,
        descriptions: Array,
        scores: Array,
        items: Array,
        steps: int,
        rng: np.random.Generator,
        on_step: Callable[[int, float], None] | None = None,
    ) -> float:
        """Learn from described candidates (N, F), task scores (N, K_tasks), and the items that each averages (N,).

        Args:
            steps: of Adam on the marginal likelihood, from the hyperparameters as they are; 0 keeps them.
            rng: draws the examples on which they are fitted, where there are many.
            on_step: called behind each step with its number and the value below; predictions are those after it.

        Returns:
            Negative log marginal likelihood of an example and task where it was fitted, in nats; NaN without steps.
        """
        self.centre, spread = descriptions.mean(axis=0), descriptions.std(axis=0)
        self.spread = np.where(spread > JITTER, spread, np.inf)  # a feature that never varied says nothing
        self.offset, self.unit = scores.mean(axis=0), scores.std(axis=0) + JITTER
        self.inputs = self._standardise(descriptions)
        self.target = torch.from_numpy((scores - self.offset) / self.unit)
        self.share = torch.from_numpy(np.max(items) / np.asarray(items, dtype=np.float64))
        value = float("nan")
        if steps:
            chosen = torch.from_numpy(rng.permutation(len(scores))[:SUBSET])
            value = self._maximise(self.inputs[chosen], self.target[chosen], self.share[chosen], steps, on_step)
        self._condition()
        return value

    @torch.no_grad()
    def _condition(self) -> None:
        """The posterior under the hyperparameters as they are."""
        covariance = self._kernel(self.inputs, self.inputs) + torch.diag(self._noise(self.share))
        self.factor = torch.linalg.cholesky(covariance)
        self.weights = torch.cholesky_solve(self.target, self.factor)
        self.known = True

    def _standardise(self, descriptions: Array) -> Tensor:
        return torch.from_numpy(np.clip((descriptions - self.centre) / self.spread, -LIMIT, LIMIT))

    def _kernel(self, left: Tensor, right: Tensor) -> Tensor:
        width = torch.exp(self.hyper.scales / 2)[self.groups] / self.sizes.sqrt()[self.groups]
        a, b = left * width, right * width
        squared = a.square().sum(1)[:, None] - 2 * a @ b.T + b.square().sum(1)
        distance = (3 * squared.clamp_min(0) + 1e-12).sqrt()
        kernel: Tensor = torch.exp(self.hyper.amplitude) * (1 + distance) * torch.exp(-distance)
        return kernel

    def _noise(self, share: Tensor) -> Tensor:
        return torch.exp(self.hyper.noise) * share + JITTER

    def _maximise(
        self, inputs: Tensor, target: Tensor, share: Tensor, steps: int, on_step: Callable[[int, float], None] | None
    ) -> float:
        """Adam on the log posterior of the hyperparameters."""
        parts = [self.hyper.scales, self.hyper.amplitude, self.hyper.noise]
        for part in parts:
            part.requires_grad_()
        optimiser = torch.optim.Adam(parts, lr=0.1)
        tasks, value = target.shape[1], 0.0
        for step in range(1, steps + 1):
            optimiser.zero_grad()
            covariance = self._kernel(inputs, inputs) + torch.diag(self._noise(share))
            factor = torch.linalg.cholesky(covariance)
            fit = 0.5 * (target * torch.cholesky_solve(target, factor)).sum()
            likelihood = fit + tasks * factor.diagonal().log().sum()
            prior = 0.5 * ((self.hyper.scales - PRIOR_SCALE) / PRIOR_SPREAD).square().sum()
            prior = prior + 0.5 * (self.hyper.noise - PRIOR_NOISE).square() + 0.5 * self.hyper.amplitude.square()
            torch.autograd.backward(likelihood + prior)
            optimiser.step()
            value = float(likelihood.detach()) / target.numel() + 0.5 * np.log(2 * np.pi)
            if on_step:
                self._condition()
                on_step(step, value)
        for part in parts:
            part.requires_grad_(False)
        return value

    @torch.no_grad()
    def predict(self, descriptions: Array) -> tuple[Array, Array]:
        """Mean and standard deviation (N, K_tasks) of the scores of described candidates (N, F), without noise."""
        mean, explained, _ = self._posterior(descriptions)
        variance = torch.exp(self.hyper.amplitude) - explained.square().sum(0)
        deviation = variance.clamp_min(0).sqrt()[:, None] * torch.from_numpy(self.unit)
        return self._scores(mean), np.asarray(deviation.numpy())

    @torch.no_grad()
    def draw(self, descriptions: Array, count: int, rng: np.random.Generator) -> Array:
        """So many joint samples (count, N, K_tasks) of the scores of described candidates (N, F), without noise."""
        mean, explained, inputs = self._posterior(descriptions)
        covariance = self._kernel(inputs, inputs) - explained.T @ explained
        jitter = 1e-4 * torch.exp(self.hyper.amplitude) * torch.eye(len(covariance)).double()
        factor = torch.linalg.cholesky(covariance + jitter)
        noise = torch.from_numpy(rng.standard_normal((count, *mean.shape)))
        return self._scores(mean + factor @ noise)

    def _posterior(self, descriptions: Array) -> tuple[Tensor, Tensor, Tensor]:
        inputs = self._standardise(descriptions)
        across = self._kernel(self.inputs, inputs)
        return across.T @ self.weights, torch.linalg.solve_triangular(self.factor, across, upper=False), inputs

    def _scores(self, standardised: Tensor) -> Array:
        return np.asarray(standardised.numpy() * self.unit + self.offset)

    def state(self) -> dict[str, Tensor]:
        """Everything that decides its predictions, for a safetensors file."""
        arrays = {"centre": self.centre, "spread": self.spread, "offset": self.offset, "unit": self.unit}
        tensors = {"groups": self.groups, "inputs": self.inputs, "target": self.target, "share": self.share}
        hyper = {"scales": self.hyper.scales, "amplitude": self.hyper.amplitude, "noise": self.hyper.noise}
        return {**{name: torch.from_numpy(one) for name, one in arrays.items()}, **tensors, **hyper}

    @classmethod
    def load(cls, state: dict[str, Tensor]) -> Surrogate:
        """Inverse of :meth:`state`."""
        made = cls(state["groups"].numpy())
        made.centre, made.spread, made.offset, made.unit = (
            state[name].numpy() for name in ("centre", "spread", "offset", "unit")
        )
        made.inputs, made.target, made.share = (state[name] for name in ("inputs", "target", "share"))
        made.hyper = Hyperparameters(state["scales"], state["amplitude"], state["noise"])
        made._condition()
        return made
