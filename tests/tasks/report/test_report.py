"""The HTML report and its figures."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import yaml

from models.errors import BadInput
from models.merge.recipe import parse_recipes
from tasks.bench.engine.large import make_project
from tasks.front.composition import Composition
from tasks.front.front import Front
from tasks.front.running_costs import known_costs
from tasks.project.workspace import open_workspace
from tasks.report import figures
from tasks.report.report import hypervolumes, write_report
from tasks.tracking.record import read_lock


class Page(HTMLParser):
    """Text, elements and addresses of a page; fails on elements that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.words, self.addresses = [], [], [], []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "br"):
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in ("meta", "br"):
            self.stack.pop()

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def report(shared_project):
    """Workspace, front, text of the report's file, and the page."""
    text = write_report(shared_project).read_text()
    return shared_project, Front.read(shared_project.run), text, Page(text)


def test_the_report_is_one_file_that_fetches_nothing(report):
    _, _, text, page = report
    assert [one for one in page.addresses if not one.startswith("#")] == []
    assert "script" not in page.tags
    assert "url(http" not in text
    assert "@import" not in text


def test_it_lies_beside_the_outs_and_names_no_place_on_this_machine(report):
    workspace, _, text, _ = report
    path = workspace.run / "report.html"
    outs = {workspace.root / out.path for stage in read_lock(workspace).values() for out in stage.outs}
    assert path.is_file()
    assert not outs & {path, *path.parents}
    assert str(workspace.root) not in text


def test_every_member_and_reference_is_in_it_with_its_scores(report):
    _, front, text, page = report
    for model in (*front.members, *front.references):
        assert model.name in page.text
        for name in front.tasks:
            assert f"{model.scores['test'][name]:.3f}" in page.text
            assert f"{model.scores['selection'][name]:.3f}" in page.text
    for alias in front.aliases():
        assert f'<span class="tag">{alias}</span>' in text


def test_the_best_of_each_column_is_marked_once(report):
    _, front, text, _ = report
    marked = re.findall(r"score best[^>]*><span>([\d.]+)</span>", text)
    best = [max(one.scores["test"][name] for one in (*front.members, *front.references)) for name in front.tasks]
    assert sorted(marked) == sorted(f"{one:.3f}" for one in best)
    leading = re.findall(r'score[^>]* leads"[^>]*><span>([\d.]+)</span>', text)
    assert sorted(leading) == sorted(
        f"{max(one.scores['test'][name] for one in front.members):.3f}" for name in front.tasks
    )


def test_the_recipes_in_it_can_be_read_again(report):
    workspace, front, text, _ = report
    page = re.findall(r"</summary>\s*<pre>(.*?)</pre>", text, re.DOTALL)
    for member, shown in zip(front.members, page, strict=True):
        source = (workspace.run / member.recipe).read_text()
        assert yaml.safe_load_all(shown) is not None
        assert parse_recipes(shown.replace("&#39;", "'").replace("&#34;", '"'), "page") == parse_recipes(source, "file")


def test_hypervolumes_are_those_of_the_front_file_and_of_brute_force(report):
    workspace, front, _, page = report
    own, *others = hypervolumes(front)
    metrics = json.loads((workspace.run / "metrics.json").read_text())
    assert own.reported == pytest.approx(front.hv["test"]) == pytest.approx(metrics["hv"]["test"])
    rivals = next(one for one in others if one.name == "base, experts and plain merges")
    assert rivals.reported == pytest.approx(metrics["hv_references"]["test"])
    costs = front.costs(front.members, "test")
    low = costs.min(axis=0)
    samples = np.random.default_rng(0).uniform(low, 1.1, (200_000, len(low)))
    covered = (costs[None, :, :] <= samples[:, None, :]).all(axis=2).any(axis=1).mean()
    assert own.reported == pytest.approx(covered * np.prod((1.1 - low) / 1.1), abs=0.003)
    assert f"{own.reported:.3f}" in page.text


def test_what_members_take_to_run_stands_beside_their_layers(report):
    workspace, front, _, page = report
    costs = known_costs(workspace)
    assert set(costs.of) == {one.layers for one in front.members}
    parameters, one, many, cache = costs.headings
    assert f"layers {parameters} {cache} {one} {many}" in page.text
    for model in (*front.members, *front.references):
        layers = getattr(model, "layers", front.layers)
        parameters, one, many, cache = costs.cells(layers)
        assert f" {layers} {parameters} {cache} {one} {many} {model.scores['test']['translation']:.3f} " in page.text
    assert costs.note[1:] in page.text


def test_without_models_the_report_has_no_such_columns(project):
    for name in ("base", "math"):
        shutil.rmtree(project.zoo / name)
    page = Page(write_report(project).read_text())
    assert "ms/token" not in page.text
    assert "What members take to run is not known" in page.text
    assert str(project.root) not in page.text


def test_two_writings_differ_in_the_footer_alone(report):
    workspace, _, text, _ = report
    again = write_report(workspace).read_text()
    assert again.partition("<footer>")[0] == text.partition("<footer>")[0]


def test_words_of_the_user_are_text_and_never_markup(project):
    path = project.root / "profiles" / "tiny.yaml"
    profile = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(profile | {"description": "<script>alert(1)</script> & more"}, sort_keys=False))
    page = Page(write_report(open_workspace("tiny", project.root)).read_text())
    assert "script" not in page.tags
    assert "<script>alert(1)</script> & more" in page.text


def test_missing_curves_are_said_and_the_rest_stands(project):
    missing = ("search.csv", "train.csv", "archive.parquet", "metrics.json")
    for name in missing:
        (project.run / name).unlink()
    page = Page(write_report(project).read_text())
    for name in missing[:3]:
        assert f"{name} is missing" in page.text
    assert "unknown" in page.text
    assert Front.read(project.run).members[0].id in page.text


def test_without_a_front_there_is_no_report(project):
    (project.run / "front.json").unlink()
    with pytest.raises(BadInput, match="hm3 run"):
        write_report(project)
    assert not (project.run / "report.html").exists()


def test_a_missing_recipe_is_named(project):
    member = Front.read(project.run).members[0]
    (project.run / member.recipe).unlink()
    with pytest.raises(BadInput, match=member.id):
        write_report(project)


def test_a_front_without_depth_as_an_objective_has_a_report(project):
    path = project.run / "front.json"
    front = json.loads(path.read_text())
    front["objectives"].remove("layers")
    for model in (*front["members"], *front["references"]):
        for scores in model["scores"].values():
            del scores["layers"]
    path.write_text(json.dumps(front))
    page = Page(write_report(project).read_text())
    assert "Scores and depth" not in page.text
    assert "Trade-offs" in page.text


def test_a_front_with_one_objective_or_many_is_drawn(report):
    workspace, front, _, _ = report
    archive = pd.read_parquet(workspace.run / "archive.parquet")
    assert figures.conflicts(front, archive) == [("translation", "math"), ("translation", "code"), ("math", "code")]
    many = {f"t{index}": archive["math"] * index for index in range(6)}
    wide = object.__new__(Front)
    wide.__dict__.update(vars(front), objectives=tuple(many))
    assert len(figures.conflicts(wide, archive.assign(**many))) == figures.PAIRS


def test_the_shares_of_a_merged_layer_follow_the_weights(report):
    workspace, front, _, _ = report
    composition = Composition.read(workspace, front)
    arithmetic = next(one for one in front.members if one.path[0][0].startswith("r-") and one.layers == 4)
    shares = composition.shares(arithmetic.host, 0)
    assert shares == pytest.approx({"translation": 4 / 13, "math": 4 / 13, "code": 5 / 13})
    assert composition.shares("math", 2) == {"math": 1.0}


def test_a_gradient_of_weights_changes_the_shares_by_layer(report):
    workspace, front, _, _ = report
    text = """
merge_method: task_arithmetic
base_model: runs/tiny/zoo/base
models:
- {model: runs/tiny/zoo/math, parameters: {weight: [0.0, 0.6]}}
- {model: runs/tiny/zoo/code, parameters: {weight: 0.3}}
"""
    known = Composition.read(workspace, front)
    composition = Composition({"r-1": parse_recipes(text, "x")[0]}, known.sources, 4)
    assert composition.shares("r-1", 0) == pytest.approx({"math": 0.0, "code": 1.0})
    assert composition.shares("r-1", 3) == pytest.approx({"math": 2 / 3, "code": 1 / 3})


def test_slices_pass_on_the_shares_of_their_sources(report):
    workspace, front, _, _ = report
    text = """
merge_method: passthrough
slices:
- sources: [{model: runs/tiny/zoo/math, layer_range: [0, 2]}]
- sources: [{model: runs/tiny/zoo/code, layer_range: [1, 3]}]
"""
    known = Composition.read(workspace, front)
    composition = Composition({"r-1": parse_recipes(text, "x")[0]}, known.sources, 4)
    assert [list(composition.shares("r-1", layer)) for layer in range(4)] == [["math"], ["math"], ["code"], ["code"]]


def test_a_path_is_described_by_its_runs_of_layers(report):
    workspace, front, _, _ = report
    composition = Composition.read(workspace, front)
    assert "math as it is" in {composition.describe(one) for one in front.members}
    pruned = next(one for one in front.members if one.layers == 3 and len(one.candidate.models) == 1)
    assert composition.describe(pruned) == f"{pruned.host} 0–1, 3"
    assert composition.merges(pruned)[pruned.host].startswith("task_arithmetic: translation 0.4, math 0.4, code 0.5")
    mixed = next(one for one in front.members if len(one.candidate.models) == 3)
    assert composition.describe(mixed).startswith(("code 0 → ", f"{mixed.host} 0–2 → code 1 → math 2; embedding"))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A project with many members and candidates, and the text of its report."""
    workspace = make_project(tmp_path_factory.mktemp("large"), 200, 5_000, 0)
    return workspace, write_report(workspace).read_text()


def test_of_a_large_front_a_bounded_part_is_shown_and_the_page_says_which(large):
    workspace, text = large
    front, page = Front.read(workspace.run), Page(text)
    shown = re.findall(r"<summary>.*?<span class=\"id\">(\w+)", text)
    assert len(shown) == len(set(shown)) == figures.MEMBERS
    assert {one.id for one in front.aliases().values()} <= set(shown)
    assert f"{figures.MEMBERS} of the 200" in page.text
    assert len(text) < 2 * 2**20


def test_of_a_large_archive_a_bounded_number_of_points_is_drawn(large):
    workspace, text = large
    front = Front.read(workspace.run)
    archive = figures.candidates(workspace, front)
    table = pd.read_parquet(workspace.run / "archive.parquet")
    assert len(archive) == (table["items"] == table["items"].max()).sum() > 2 * figures.POINTS
    drawn = figures.fronts(figures.drawn(front), archive)
    dots = [len(one.get_offsets()) for axes in drawn.axes for one in axes.collections]
    assert len(dots) == 2 * len(figures.conflicts(front, archive))
    assert all(figures.POINTS / 2 < one <= figures.POINTS for one in dots)
    assert f"{dots[0]:,} of the {len(archive):,} candidates" in Page(text).text


def test_the_report_reads_no_more_columns_than_it_draws_and_no_more_recipes_than_it_shows(large, monkeypatch):
    workspace, _ = large
    columns, recipes, read = [], [], pd.read_parquet
    monkeypatch.setattr(pd, "read_parquet", lambda *a, columns, **k: asked(columns) or read(*a, columns=columns, **k))
    monkeypatch.setattr("tasks.front.composition.parse_recipes", lambda *a: recipes.append(a) or parse_recipes(*a))
    asked = columns.append
    write_report(workspace)
    assert columns == [["items", "translation", "math", "code"]]
    assert len(recipes) == figures.MEMBERS


def test_an_archive_that_is_none_is_named(project):
    (project.run / "archive.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(BadInput, match=r"archive.parquet: .*`search`"):
        write_report(project)
    pd.DataFrame({"items": [1]}).to_parquet(project.run / "archive.parquet")
    with pytest.raises(BadInput, match=r"archive.parquet: .*`search`"):
        write_report(project)
