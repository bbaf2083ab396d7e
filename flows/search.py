"""Search for one preference: stages `search` and `pareto` alone, from the networks that the pipeline has trained."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.form import Pareto, Search, merged, project_params
from flows.pipeline import STAGE_HOURS, opened, walk
from flows.versions.experiments import experiment
from models.errors import BadInput
from tasks.scoring.where import EngineName, scoring_on


@flow(name="hm3-search", persist_result=False)
def hm3_search(
    profile: str = project_params().profiles[0],
    prefer: str = "",
    engine: EngineName = "inline",
    stage_hours: float = STAGE_HOURS,
    search: Search = Search(),  # noqa: B008 (frozen)
    pareto: Pareto = Pareto(),  # noqa: B008
) -> dict[str, Any]:
    """Spend the budget of the search on one preference, and choose the member for it.

    The run is a DVC experiment in a working tree of its own. The stages before `search` are taken as they are.

    Args:
        profile: The model family, a file in profiles/.
        prefer: What matters how much, such as `translation=0.5,math=0.3,code=0.2`. Empty: all objectives equally.
        engine: Where candidates are scored: `inline`, in the stages, or by the workers of a `ray` cluster.
        stage_hours: Hours after which a stage is stopped; the next run goes on from there.
        search: Stage search: the online search over paths.
        pareto: Stage pareto: which candidates become members of the front.
    """
    from tasks.front.choice import choose_member
    from tasks.front.table import member_data

    with opened(profile, "hm3-search") as (workspace, screen), scoring_on(engine):
        preference = normalised(prefer, workspace.profile.objective_names)
        wanted = search.model_copy(update={"preference": preference})
        params = merged(workspace.params, workspace.params.seed, wanted, pareto, form=True)
        with experiment(workspace, params, screen.line) as (tree, name):
            front, done = walk(tree, screen, experiment_name=name, first="search", hours=stage_hours)
            member = choose_member(front, preference)
        screen.line(f"for {preference}: member {member.id} of experiment {name}", "green")
        return done | {"preference": preference, "chosen": member_data(front, member)}


def normalised(prefer: str, names: tuple[str, ...]) -> str:
    """A preference in one spelling, so that the same one gives the same experiment; raises BadInput."""
    from models.preferences import parse_preference

    if not prefer.strip():
        return ",".join(f"{name}=1" for name in names)
    try:
        weights = parse_preference(prefer, names)
    except BadInput as error:
        raise BadInput(f"prefer: {error}") from None
    return ",".join(f"{name}={weight:g}" for name, weight in zip(names, weights, strict=True) if weight > 0)
