"""`hm3 bench front`: fair accounting, anytime fronts as stage `pareto` chooses them, and runs that resume."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml

from models.agent.hm3 import HM3Settings
from models.agent.phases import DatasetSettings, SampleSettings
from models.candidate import Candidate
from models.errors import BadInput
from models.front import hypervolume, utility
from tasks import pareto
from tasks.bench.process import edges
from tasks.bench.searches.amortisation import measure
from tasks.bench.searches.arms import ARMS, Arm, hm3_arms, hm3_settings
from tasks.bench.searches.compare import FAMILIES, FIRST_SEED, Wanted, compare_fronts
from tasks.bench.searches.cuts import cuts
from tasks.bench.searches.family import TRIES, Family
from tasks.bench.searches.figures import steps_of
from tasks.bench.searches.page import write_searches
from tasks.bench.searches.points import TENTHS, anytime, short_path, spent
from tasks.bench.searches.rows import Files, latest
from tasks.bench.searches.run import MARKS, Case, Finished, run_arm
from tasks.bench.searches.summary import studies
from tasks.project.progress import Progress
from tasks.project.records import Anchors, ScoredModel
from tasks.project.workspace import open_workspace
from tasks.schema.params import Params
from tests.models.agent.small import SMALL
from tests.small_tasks import COUNTS, make_family_project

pytestmark = pytest.mark.lab

WHOLE = 2 * COUNTS["search"]
"""Item evaluations of a candidate."""
BUDGET = 25 * WHOLE + 5


def halving(trial, space, rules, rng):
    """Recipes on half of the items, the better half of them on all; then paths that lack a layer of the best."""
    half = trial.archive.full // 2
    added = [trial.add(space.recipe(point)) for point in space.sample(12, rng)]
    trial.spend_on(added, "recipe", half)
    order = np.argsort(trial.costs(added).sum(axis=1), kind="stable")
    trial.spend_on([added[i] for i in order[:6]], "recipe", number=1)
    best = added[order[0]]
    paths = [Candidate(best.host, best.path[:cut] + best.path[cut + 1 :]) for cut in range(best.depth)]
    trial.spend_on(paths, "edit", number=2)
    return [{"evaluations": trial.spent, "reward": -float(trial.costs(paths).sum(axis=1).min())}]


HALVING = Arm("halving", "halves and edits", "none", halving, "ablation")


@pytest.fixture(scope="module", autouse=True)
def two_arms():
    """Random recipes, and one that halves and edits."""
    order = list(ARMS)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HM3_STATE", raising=False)
        for name in [one for one in ARMS if one != "random-recipes"]:
            patch.delitem(ARMS, name)
        patch.setitem(ARMS, "halving", HALVING)
        yield
    for name in order:  # pages list arms in this order
        ARMS[name] = ARMS.pop(name)


@pytest.fixture(scope="module")
def project(tmp_path_factory, make_family, two_arms):
    """A given random family of three layers that answers about half of its items."""
    root = tmp_path_factory.mktemp("front") / "project"
    make_family_project(root, make_family)
    path = root / "profiles" / "p.yaml"
    data = yaml.safe_load(path.read_text()) | {"made": None, "base": "runs/p/zoo/base"}
    data["experts"] = {name: f"runs/p/zoo/{name}" for name in ("a", "b")}
    path.write_text(yaml.safe_dump(data))
    (root / "params.yaml").write_text(yaml.safe_dump({"profiles": ["p"], "pareto": {"members": 4, "rescored": 6}}))
    return open_workspace("p", root)


@pytest.fixture
def workspace(project, tmp_path):
    """A copy."""
    return open_workspace("p", shutil.copytree(project.root, tmp_path / "project"))


@pytest.fixture(scope="module")
def ground(project, tmp_path_factory):
    """The family, open, with a journal for this module."""
    return Family(0, project, tmp_path_factory.mktemp("kept")).open()


def case_of(ground, name, depth=True):
    return Case(0, ground.digest, FIRST_SEED, name, depth, BUDGET)


@pytest.fixture(scope="module")
def finished(ground):
    """Each arm's run, with depth as an objective."""
    return {name: run_arm(ground, ARMS[name], case_of(ground, name)) for name in ("random-recipes", "halving")}


def scored_items(workspace):
    """Item scores in the journal, every one of which was computed."""
    count = 0
    for segment in (workspace.state / "bench" / "front" / "p" / "given" / "journal").glob("*.jsonl"):
        for line in segment.read_text().splitlines()[1:]:
            count += sum(len(values) for values in json.loads(line)["scores"].values())
    return count


def raw(workspace, part=""):
    return Files(workspace.root / "docs" / "results" / "raw", "p").read(part)


def test_hm3_takes_its_settings_from_the_profile(ground, workspace):
    assert hm3_settings(Params()) == HM3Settings()
    own = {"sample": {"candidates": 5}, "dataset": {"items": 8}, "train": {"steps": 9}, "search": {"rungs": [2, 4]}}
    (workspace.root / "params.yaml").write_text(
        yaml.safe_dump({"profiles": ["p"], "pareto": {"members": 4, "rescored": 6}} | own)
    )
    changed = open_workspace("p", workspace.root)
    settings = hm3_settings(changed.params)
    assert (settings.sample.candidates, settings.dataset.items) == (5, 8)
    assert (settings.train.steps, settings.search.rungs) == (9, (2, 4))
    assert Family(0, changed, workspace.root / "kept").open().digest != ground.digest


def test_hm3_is_run_with_the_settings_of_the_profile(workspace, monkeypatch):
    def stop(trial, space, rules, rng, settings):
        raise KeyboardInterrupt(settings.sample.candidates)

    monkeypatch.setattr("tasks.bench.searches.arms.hm3", stop)
    monkeypatch.setitem(ARMS, "hm3", next(iter(hm3_arms(HM3Settings()))))
    (workspace.root / "params.yaml").write_text(yaml.safe_dump({"profiles": ["p"], "sample": {"candidates": 5}}))
    wanted = Wanted(seeds=1, arms=("hm3",), budget=BUDGET)
    with pytest.raises(KeyboardInterrupt, match="5"):
        compare_fronts(open_workspace("p", workspace.root), wanted, Progress())


def measured(table):
    """Rows without what depends on the clock and on what was known before."""
    return table.drop(columns=["evaluating_seconds", "outside_seconds", "computed"])


# accounting


@pytest.mark.parametrize("name", ["random-recipes", "halving"])
def test_what_is_charged_is_what_the_archive_holds(finished, name):
    archive, last = finished[name].archive, finished[name].marks.iloc[-1]
    assert archive["charged"].sum() == last["evaluations"] <= BUDGET
    assert (archive["charged"][3:] == archive["items"][3:] * 2).all()
    assert archive["at"].max() == last["evaluations"]
    assert list(archive["kind"][:3]) == ["base", "expert", "expert"]
    assert (archive[["charged", "at"]][:3] == 0).all(axis=None)


def test_the_budget_is_spent_but_for_less_than_a_candidate(finished):
    one = finished["random-recipes"]
    assert 0 <= BUDGET - one.marks["evaluations"].iloc[-1] < WHOLE
    assert (one.archive["kind"] == "recipe").sum() == 25


def test_scores_are_shared_between_arms_while_each_is_charged(ground, tmp_path):
    apart = Family(0, ground.workspace, tmp_path).open()
    case, told = case_of(apart, "random-recipes"), []
    first = run_arm(apart, ARMS["random-recipes"], case)
    again = run_arm(apart, ARMS["random-recipes"], case, told.append)
    pd.testing.assert_frame_equal(first.archive, again.archive)
    counted = ["evaluations", "forwards", "shared_forwards"]
    pd.testing.assert_frame_equal(first.marks[counted], again.marks[counted])
    assert sum(told) == again.marks["evaluations"].iloc[-1]
    assert first.marks["computed"].iloc[-1] == first.marks["evaluations"].iloc[-1]
    assert again.marks["computed"].iloc[-1] == 0


def test_forwards_are_layers_times_items_and_prefixes_count_once(finished):
    one = finished["halving"]
    archive = one.archive[one.archive["charged"] > 0]
    assert one.marks["forwards"].iloc[-1] == pytest.approx((archive["charged"] * archive["layers"] * 3).sum())
    # three paths of two layers behind one host: 12, 02 and 01, of which the last two share the first 0
    assert one.marks["shared_forwards"].iloc[-1] == one.marks["forwards"].iloc[-1] - WHOLE
    paths = [Candidate("a", tuple(("a", layer) for layer in path)) for path in ((0, 1), (0, 2), (1, 2))]
    assert edges(paths) == 5
    assert edges([*paths, Candidate("b", (("a", 0), ("a", 1)))]) == 7


def test_what_was_spent_grows_evenly_within_a_call():
    marks = pd.DataFrame([[0] * 6, [100, 30, 20, 100, 4.0, 1.0], [100, 30, 20, 100, 4.0, 2.0]], columns=list(MARKS))
    assert spent(marks, 50) == dict(zip(MARKS, (50, 15, 10, 50, 2.0, 1.0), strict=True))
    assert spent(marks, np.inf)["outside_seconds"] == 2.0


def test_paths_are_written_short():
    path = (("a", 0), ("a", 1), ("b", 2), ("a", 2), ("a", 2))
    assert short_path(Candidate("a", path)) == "a: a 0-1, b 2, a 2 2"


# anytime fronts


def stage_pareto(workspace, ground, finished):
    """What the stage makes of the same archive."""
    names = ground.tasks.names
    sources = finished.archive[:3].to_dict("records")
    scored = [
        ScoredModel(one.host, str(row["kind"]), one.host, None, {name: row[name] for name in names})
        for one, row in zip(ground.sources, sources, strict=True)
    ]
    unknown = dict.fromkeys(names, 0.5)
    scored += [ScoredModel(name, "recipe", name, text, unknown) for name, text in finished.recipes.items()]
    ideal, nadir = (dict(zip(names, values, strict=True)) for values in (ground.tasks.ideal, ground.tasks.nadir))
    Anchors(list(names), ideal, nadir, 0, [], scored).write(workspace.run)
    finished.archive.assign(recipes=None).to_parquet(workspace.run / "archive.parquet")
    pareto.run(workspace, Progress())
    return json.loads((workspace.run / "front.json").read_text())


@pytest.mark.parametrize("name", ["random-recipes", "halving"])
def test_the_last_front_is_what_stage_pareto_chooses(workspace, ground, finished, name):
    points = anytime(ground, case_of(ground, name), finished[name])
    front = stage_pareto(workspace, ground, finished[name])
    last = points.members[points.members["tenths"].str[-1] == "1"]
    assert set(last["id"]) == {one["id"] for one in front["members"]}
    assert points.rows["hv"].iloc[-1] == pytest.approx(front["hv"]["test"], abs=1e-12)


def test_a_front_holds_only_what_was_scored_on_all_items_by_then(ground, finished):
    archive = finished["halving"].archive
    points = anytime(ground, case_of(ground, "halving"), finished["halving"])
    by_id = archive.set_index("id")
    for tenth in TENTHS:
        members = points.members.loc[points.members["tenths"].str[tenth - 1] == "1", "id"]
        assert len(members) == points.rows["members"].iloc[tenth - 1]
        assert (by_id.loc[members, "at"] <= BUDGET * tenth / 10).all()
        assert (by_id.loc[members, "items"] == COUNTS["search"]).all()
    assert points.rows["scored"].iloc[-1] == 6 + 3
    assert set(points.members.loc[points.members["tenths"].str[0] == "1", "id"]) <= {one.id for one in ground.sources}
    charged = archive[archive["charged"] > 0].groupby("kind")["charged"].sum()
    assert points.kinds.groupby("kind")["charged"].sum().to_dict() == charged.to_dict()


def test_without_depth_members_are_chosen_on_the_tasks_alone(ground):
    case = case_of(ground, "random-recipes", False)
    points = anytime(ground, case, run_arm(ground, ARMS["random-recipes"], case))
    last = points.members[points.members["tenths"].str[-1] == "1"]
    scores = last[list(ground.tasks.names)].to_numpy()
    assert points.rows["hv_tasks"].iloc[-1] == pytest.approx(hypervolume(ground.tasks.costs(scores)))
    full = ground.scale(True).costs(np.column_stack([scores, last["depth_layers"] / 3]))
    assert points.rows["hv"].iloc[-1] == pytest.approx(hypervolume(full))


def test_a_run_can_be_kept_and_taken_up_again(ground, finished, tmp_path):
    case, one = case_of(ground, "halving"), finished["halving"]
    points = anytime(ground, case, one)
    one.write(tmp_path / "run")
    fresh, kept = Family(0, ground.workspace, ground.family.folder).open(), Finished.read(tmp_path / "run")
    kept.join(fresh)
    for ours, theirs in zip(vars(points).values(), vars(anytime(fresh, case, kept)).values(), strict=True):
        pd.testing.assert_frame_equal(ours, theirs)
    assert kept.episodes["reward"].iloc[0] == one.episodes["reward"].iloc[0]


# the whole benchmark


@pytest.fixture(scope="module")
def compared(project, tmp_path_factory):
    """A project in which both arms have run with two seeds, with depth; what came of it, and the pools they met."""
    workspace = open_workspace("p", shutil.copytree(project.root, tmp_path_factory.mktemp("whole") / "project"))
    pools = []

    def look(trial, space, rules, rng):
        pools.append(set(trial.lab.ground.engine.pool.names))
        return halving(trial, space, rules, rng)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARMS, "halving", replace(HALVING, run=look))
        return workspace, compare_fronts(workspace, Wanted(seeds=2, budget=BUDGET), Progress()), pools


def test_the_pool_forgets_recipes_between_arms(compared):
    assert compared[2] == [{"base", "a", "b"}] * 2


def test_an_interrupted_benchmark_gives_the_same_rows_and_scores_nothing_twice(compared, workspace, monkeypatch):
    whole, (uninterrupted, _, _), calls = Wanted(seeds=2, budget=BUDGET), compared, []

    def killed(trial, space, rules, rng):
        if len(calls) == 1:
            trial.spend_on([trial.add(space.recipe(point)) for point in space.sample(12, rng)], "recipe", 7)
            raise KeyboardInterrupt
        calls.append(trial)
        return halving(trial, space, rules, rng)

    monkeypatch.setitem(ARMS, "halving", replace(HALVING, run=killed))
    with pytest.raises(KeyboardInterrupt):
        compare_fronts(workspace, whole, Progress())
    assert len(raw(workspace)) == 3 * 10
    before = scored_items(workspace)
    monkeypatch.setitem(ARMS, "halving", HALVING)
    plans = []
    compare_fronts(workspace, whole, Progress(), plans.append)
    assert (plans[0].runs, plans[0].finished) == (4, 3)
    assert before < scored_items(workspace) == scored_items(uninterrupted)
    for part in ("", "members", "kinds", "episodes", "families"):
        one, other = raw(uninterrupted, part), raw(workspace, part)
        pd.testing.assert_frame_equal(*((one, other) if part else (measured(one), measured(other))))


@pytest.mark.slow
def test_fresh_runs_an_arm_again_and_more_seeds_add_rows(compared, workspace, monkeypatch):
    shutil.copytree(compared[0].root, workspace.root, dirs_exist_ok=True)
    first, items, runs = raw(workspace), scored_items(workspace), []

    def again(trial, space, rules, rng):
        runs.append(trial)
        return halving(trial, space, rules, rng)

    monkeypatch.setitem(ARMS, "halving", replace(HALVING, run=again))
    compare_fronts(workspace, Wanted(seeds=2, budget=BUDGET), Progress())
    assert not runs
    pd.testing.assert_frame_equal(raw(workspace), first)
    compare_fronts(workspace, Wanted(seeds=3, budget=BUDGET, arms=("halving",), fresh=True), Progress())
    assert len(runs) == 3
    rows = raw(workspace)
    assert rows.groupby("arm")["seed"].nunique().to_dict() == {"halving": 3, "random-recipes": 2}
    common = rows[rows["seed"] < FIRST_SEED + 2].sort_values(["seed", "arm", "tenth"], ignore_index=True)
    pd.testing.assert_frame_equal(
        measured(common), measured(first.sort_values(["seed", "arm", "tenth"], ignore_index=True)), check_dtype=False
    )
    assert scored_items(workspace) > items  # of the third seed


def test_raw_rows_and_members_agree(compared):
    (study,) = studies(Files(compared[0].root / "docs" / "results" / "raw", "p"))
    assert (study.depth, len(study.rows)) == (True, 40)
    for row in study.rows.itertuples():
        own = study.members[(study.members["arm"] == row.arm) & (study.members["seed"] == row.seed)]
        whole, tasks, _, _ = study.costs(0, own[own["tenths"].str[row.tenth - 1] == "1"])
        assert hypervolume(whole) == pytest.approx(row.hv, abs=1e-4)
        assert hypervolume(tasks) == pytest.approx(row.hv_tasks, abs=1e-4)


def test_the_page_shows_tables_and_figures(compared):
    overview = compared[1].page
    assert overview.name == "search.md"
    assert "\n\n- [p, with depth as an objective](search-p-depth.md)\n\n##" in overview.read_text()
    page = overview.with_name("search-p-depth.md")
    text = page.read_text()
    assert text.startswith("# p, with depth as an objective\n")
    assert f"`hm3 bench front --profile p --seeds 2 --budget {BUDGET}`: {BUDGET} item evaluations a run" in text
    assert "search seeds 9001, 9002; the family is given" in text
    assert "| halving | halves and edits | none |" in text
    assert "\n\n\n" not in text
    for name in ("curves", "fronts", "kinds", "episodes"):
        assert f"(search-p-depth-{name}.png)" in text
        assert (page.parent / f"search-p-depth-{name}.png").read_bytes().startswith(b"\x89PNG")
    final = text.partition("## At the whole budget")[2].partition("##")[0]
    assert re.search(r"^\| random-recipes \| 2 \| 0\.\d{3}", final, re.MULTILINE)


def test_cuts_are_the_best_of_their_depth_on_search_and_held_on_test(ground, finished):
    archive = finished["halving"].archive
    (row,) = cuts(ground, archive).to_dict("records")
    names = list(ground.tasks.names)
    whole = archive[archive["items"] == COUNTS["search"]]
    uncut = whole[whole["layers"] == 1.0]
    balanced = uncut.iloc[int(utility(ground.tasks.costs(uncut[names]), np.full(2, 0.5)).argmax())]
    shorter = whole[whole["layers"] < 1.0]
    loss = ((balanced[names] - shorter[names]) / balanced[names].abs()).astype(float).max(axis=1)
    assert (row["left"], row["loss_search"]) == (2, pytest.approx(loss.min()))
    pair = [Candidate.from_json(one) for one in (balanced["candidate"], shorter.loc[loss.idxmin(), "candidate"])]
    before, after = (one.mean() for one in ground.engine.scored(pair, "test"))
    assert row["loss_test"] == pytest.approx(((before - after) / np.maximum(np.abs(before), 1e-9)).max())


def test_paths_are_drawn_layer_by_layer():
    assert steps_of("math: math 0-2, r-1a 2 4, math 5", "edit", 6) == [
        *(("math", layer) for layer in range(3)),
        ("a merge", 2),
        ("a merge", 4),
        ("math", 5),
    ]
    assert steps_of("", "recipe", 2) == [("a merge", 0), ("a merge", 1)]
    assert steps_of("", "expert", 2) == [("an expert", 0), ("an expert", 1)]


def test_rows_of_another_budget_or_family_do_not_mix():
    rows = pd.DataFrame(
        {
            "depth": [1, 1, 1, 1, 0],
            "budget": [10, 20, 20, 20, 30],
            "family": [1, 1, 1, 2, 1],
            "instance": ["old", "old", "new", "two", "new"],
        }
    )
    assert latest(rows, True)["instance"].tolist() == ["new", "two"]
    assert latest(rows, False)["budget"].tolist() == [30]


def test_what_cannot_be_run_is_bad_input(workspace):
    with pytest.raises(BadInput, match=r"^--arm nothing: unknown; there are random-recipes"):
        compare_fronts(workspace, Wanted(arms=("nothing",)), Progress())
    with pytest.raises(BadInput, match=r"^--seeds 0: must be 1 or more$"):
        compare_fronts(workspace, Wanted(seeds=0), Progress())
    with pytest.raises(BadInput, match=rf"^--budget {WHOLE - 1}: one candidate takes {WHOLE}; raise it$"):
        compare_fronts(workspace, Wanted(budget=WHOLE - 1), Progress())


def test_a_small_run_leaves_no_result_and_says_what_it_will_take(workspace):
    plans = []
    outcome = compare_fronts(workspace, Wanted(seeds=1, small=True), Progress(), plans.append)
    assert outcome.page.is_relative_to(workspace.state)
    assert not (workspace.root / "docs").exists()
    (plan,) = plans
    assert (plan.runs, plan.finished, plan.candidates) == (2, 0, 20)
    assert plan.usage.cpu > 0
    assert "2 runs of 560 item evaluations (20 candidates on all items), 0 of them finished." in str(plan)


def test_headroom_shows_each_kind_of_model_against_recipes(workspace):
    names = ("recipes", "ordered", "free")
    wanted = Wanted(seeds=1, budget=BUDGET, kind="headroom", arms=names)
    outcome = compare_fronts(workspace, wanted, Progress())
    (table,) = outcome.sheets
    assert [row[0] for row in table.rows] == ["recipes", "ordered paths", "free paths"]
    rows = Files(workspace.root / "docs" / "results" / "raw", "p", "headroom").read()
    final = rows[rows["tenth"] == 10].set_index("arm")["hv"]
    for name, row in zip(names, table.rows, strict=True):
        assert row[3] == f"{final[name]:.3f}"
        assert row[4] == ("" if name == "recipes" else f"{final[name] - final['recipes']:+.3f}")
    assert "| ordered paths | 1 |" in outcome.page.read_text()
    members = Files(workspace.root / "docs" / "results" / "raw", "p", "headroom").read("members")
    assert not (workspace.root / "docs" / "results" / "search.md").exists()
    ordered = members[(members["arm"] == "ordered") & (members["path"] != "")]
    for path in ordered["path"]:
        layers = [int(one) for one in re.findall(r"(?<=[ -])\d+", path)]
        assert layers == sorted(layers)
    with pytest.raises(BadInput, match=r"^--arm hm3: unknown; there are recipes, layered, ordered, free, deletion$"):
        Wanted(arms=("hm3",), kind="headroom").chosen()


def test_new_families_have_a_page_of_their_own(compared, workspace, monkeypatch):
    raw = shutil.copytree(compared[0].root / "docs" / "results" / "raw", workspace.root / "docs" / "results" / "raw")
    for path in [*raw.iterdir()]:
        shutil.copy(path, path.with_name(path.name.replace("front-", "confirm-", 1)))
    monkeypatch.setitem(ARMS, "halving", HALVING)
    write_searches(raw.parent)
    seen, new = ((raw.parent / f"{name}-p-depth.md").read_text() for name in ("search", "confirm"))
    assert new.startswith("# p, with depth as an objective, new families\n")
    assert "hm3 bench front --profile p --seeds 2" in seen
    assert "hm3 bench confirm --profile p --seeds 2" in new
    assert (raw.parent / "confirm-p-depth-curves.png").is_file()
    assert "confirm-p-depth-curves.png" in new
    assert "search-p-depth" not in new


def test_new_families_have_seeds_that_no_other_benchmark_makes(workspace, monkeypatch):
    asked = []

    def look(user, folder, count, small, progress, first):
        asked.append(range(first, first + count + TRIES))
        raise BadInput("seen")

    monkeypatch.setattr("tasks.bench.searches.compare.open_families", look)
    path = workspace.root / "profiles" / "p.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"made": "tiny", "experts": {}, "base": None}))
    for kind in ("front", "headroom", "confirm"):
        with pytest.raises(BadInput, match=r"^seen$"):
            compare_fronts(open_workspace("p", workspace.root), Wanted(kind=kind), Progress())
    front, headroom, confirm = map(set, asked)
    assert front == headroom
    assert len(confirm) == FAMILIES + TRIES
    assert not confirm & front


def test_rows_of_other_rules_for_paths_do_not_compare(workspace, tmp_path):
    def digest(**paths):
        path = workspace.root / "profiles" / "p.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"paths": {"repair": False, **paths}}))
        return Family(0, open_workspace("p", workspace.root), tmp_path / "kept").open().digest

    assert len({digest(), digest(end=3), digest(start=1), digest(forward=2)}) == 4
    assert digest(start=2, end=2) == digest()


def test_a_family_that_is_given_can_not_be_confirmed_on_another(workspace):
    with pytest.raises(
        BadInput, match=r"^profiles/p.yaml: its family is given, so there is no other one to confirm on$"
    ):
        compare_fronts(workspace, Wanted(kind="confirm"), Progress())


@pytest.mark.parametrize(("candidates", "count"), [(20, 1), pytest.param(40, 3, marks=pytest.mark.slow)])
def test_amortisation_compares_three_ways_to_serve_new_preferences(workspace, monkeypatch, candidates, count):
    settings = replace(SMALL, sample=SampleSettings(6, batch=2), dataset=DatasetSettings(6, 0, 4))
    asked = {"seeds": 1, "budget": candidates * WHOLE, "count": count, "settings": settings}
    path, (table,) = measure(workspace, Progress(), **asked)
    rows = pd.read_csv(workspace.root / "docs" / "results" / "raw" / "amortisation-p.csv")
    assert rows["preference"].tolist() == list(range(count))
    weights = rows[[name for name in rows if name.startswith("weight_")]]
    assert weights.sum(axis=1).tolist() == pytest.approx([1] * count, abs=1e-5)
    assert (rows["evaluations_front"] == 0).all()
    assert (rows["evaluations_continued"] <= candidates / 10 * WHOLE).all() and (
        rows["evaluations_continued"] > 0
    ).any()
    assert (rows["evaluations_from_nothing"] <= 0.4 * candidates * WHOLE).all()
    assert (rows["evaluations_from_nothing"] > (0.4 * candidates - 1) * WHOLE).all()
    assert [row[2] for row in table.rows] == [
        f"{rows[way].median():.3f}" for way in ("from_nothing", "continued", "front")
    ]
    assert "| continued, a quarter of it |" in path.read_text()
    monkeypatch.setattr("tasks.bench.searches.amortisation.amortise", lambda *given: pytest.fail("measured twice"))
    assert measure(workspace, Progress(), **asked)[1] == [table]
