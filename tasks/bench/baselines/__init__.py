"""What HM3 is compared with: searches that spend the same budget through the same trial (method.md, section 5).

HM3's own search is in ``models/agent``; comparisons run in ``tasks/bench/searches``.
"""

from __future__ import annotations

from tasks.bench.baselines.baseline import Baseline, Run
from tasks.bench.baselines.deletion import block_influence, greedy_deletion
from tasks.bench.baselines.grids import search_grids
from tasks.bench.baselines.paths import de_paths, ea_paths, nsga2_paths, random_paths
from tasks.bench.baselines.recipes import layered_recipes, nsga2_recipes

__all__ = ["BASELINES", "Baseline", "Run"]

POOL = "after NSGA-II over recipes with 35 % of the budget; pool: experts and 3 anchors"
SWITCHES = (
    "Akiba et al. 2024's array of switches, r = 2, layer by layer, repaired to legal paths, without their input "
    "scales, which candidates don't hold"
)

_ALL = (
    Baseline(
        "grids",
        "Merge methods on their grids",
        "uniform average; the grids that Ilharco 2023 (task arithmetic), Yadav 2023 (TIES), Yu 2024 (DARE-TIES), "
        "Du 2024 (PCB) and Wang 2024 (Consensus) tune on; methods in turn, each from coarse to fine",
        search_grids,
        paths=False,
    ),
    Baseline(
        "nsga2-recipes",
        "NSGA-II over recipes",
        "mergenetic's search (Minut et al. 2025, pymoo's operators) with the method searched too; population 24, "
        "12 offspring, started from the usual merges and a Latin hypercube",
        nsga2_recipes,
        paths=False,
    ),
    Baseline(
        "layered-recipes",
        "NSGA-II over per-layer recipes",
        "as nsga2-recipes for 40 % of the budget, then gradients of 3 values a weight from its population on; NSGA-II "
        "and not CMA-ES (Akiba et al. 2024), which would divide the budget by preferences and can't choose methods",
        layered_recipes,
        paths=False,
    ),
    Baseline("random-paths", "Random paths", f"random legal paths, {POOL}", random_paths, paths=True),
    Baseline(
        "ea-paths",
        "CMA-ES over paths",
        f"{SWITCHES}; separable CMA-ES (Ros & Hansen 2008), population 10, from the best known path on, for up to "
        f"K + 1 preferences of 40 candidates at least; {POOL}",
        ea_paths,
        paths=True,
    ),
    Baseline(
        "nsga2-paths",
        "NSGA-II over paths",
        f"{SWITCHES}; population 24, 12 offspring, two-point crossover, a child loses one switch and gains half a one; "
        f"{POOL}",
        nsga2_paths,
        paths=True,
    ),
    Baseline(
        "de-paths",
        "Differential evolution over paths",
        f"{SWITCHES}; best/1/bin, F = 0.8, CR = 0.5 (Storn & Price 1997), population 16 of the best known paths, "
        f"preferences as ea-paths; {POOL}",
        de_paths,
        paths=True,
    ),
    Baseline(
        "greedy-deletion",
        "Greedy layer deletion",
        "SLEB's greedy rule (Song et al. 2024) on the utility, evaluated lazily (Minoux 1978), from the best recipe "
        "for one preference after the other, after NSGA-II over recipes with 35 % of the budget",
        greedy_deletion,
        paths=True,
    ),
    Baseline(
        "block-influence",
        "Deletion by block influence",
        "ShortGPT (Men et al. 2025): 1 to L/2 layers of least influence, measured for each recipe on all search items "
        "and charged as a candidate; up to 16 best recipes, after NSGA-II over recipes with half of the budget",
        block_influence,
        paths=True,
    ),
)

BASELINES: dict[str, Baseline] = {one.name: one for one in _ALL}
"""By name."""
