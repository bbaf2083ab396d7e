"""Promotion: what the gates let through, what is written down, and what becomes of moves by others."""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
import pytest
from rich.console import Console

from models.candidate import Candidate
from models.errors import BadInput, Failed
from models.files import validate
from tasks.front.choice import choose_member
from tasks.front.front import Front
from tasks.front.table import summary
from tasks.project.progress import Progress
from tasks.project.workspace import open_workspace
from tasks.registry import trail
from tasks.registry.aliases import aliases_now, named
from tasks.registry.gates import KEPT, REGISTERED, REPRODUCED, Check, gate_markdown, gate_table, kept, reproduced
from tasks.registry.package import SUMS
from tasks.registry.promotion import Request, carry_out, check, examined, history, promote, resolve, rollback
from tasks.registry.publish import publish
from tasks.registry.versions import has_registry, open_registry
from tasks.schema.services import Promotion
from tests.promotable import change_profile, ids, keep_find, make_promotable_project

ID = ids()
SWAPPED = Candidate("b", (("b", 0), ("a", 1), ("b", 2)))
"""A path that is not in the front."""


@pytest.fixture(scope="module")
def made(make_family, tmp_path_factory):
    """A project that nothing is registered of; not to be written to."""
    return make_promotable_project(tmp_path_factory.mktemp("made") / "project", make_family)


@pytest.fixture
def fresh(made, tmp_path, monkeypatch):
    """The workspace of a copy."""
    for name in ("MLFLOW_TRACKING_URI", "HM3_STATE"):
        monkeypatch.delenv(name, raising=False)
    return open_workspace("p", shutil.copytree(made.root, tmp_path / "project"))


@pytest.fixture(scope="module")
def published(made, tmp_path_factory):
    """A workspace whose front is registered. Tests share it, each with an alias of its own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "HM3_STATE"):
            patch.delenv(name, raising=False)
        workspace = open_workspace("p", shutil.copytree(made.root, tmp_path_factory.mktemp("published") / "project"))
        publish(workspace)
        yield workspace


def ask(workspace, member=None, alias="champion", **given):
    return promote(workspace, Request(member=member, alias=alias, **given), Progress())


def alias_of(workspace, alias):
    return open_registry(workspace).aliases().get(alias)


def number(workspace, name):
    return open_registry(workspace).of_member(ID[name], Front.read(workspace.run).digest).number


def by_gate(promotion):
    return {
        gate: [one for one in promotion.decision.checks if one.gate == gate] for gate in (REGISTERED, REPRODUCED, KEPT)
    }


def package_of(workspace, name):
    """Where the package of a member's version lies on this machine."""
    registered = open_registry(workspace)
    version = registered.versions[number(workspace, name)]
    return Path(unquote(urlsplit(registered.client.get_logged_model(version.model_id).artifact_location).path))


def test_a_new_alias_goes_to_a_member_that_scores_as_recorded(published):
    result = ask(published, "b", "first")
    assert result.decision.passed
    assert alias_of(published, "first") == number(published, "b") == result.move.to
    again = {one.what: float(one.value) for one in by_gate(result)[REPRODUCED] if one.what != "checksums"}
    assert again == Front.read(published.run).member("b").scores["selection"]
    assert next(one for one in by_gate(result)[REPRODUCED] if one.what == "checksums").passed
    assert mlflow.pyfunc.load_model("models:/hm3-front-p@first").predict(["w3 w4"], params={"max_new_tokens": 2})


def test_each_move_is_written_down_where_mlflow_shows_it(published, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    ask(published, "a", "written", reason="a start")
    ask(published, "short", "written", reason="as good, shallower")
    moves = [one for one in history(published)[1] if one.alias == "written"]
    assert [(one.before, one.to) for one in moves] == [(None, number(published, "a")), (moves[0].to, moves[1].to)]
    assert [one.who for one in moves] == ["ann", "ann"]
    assert moves[0].when < moves[1].when
    assert moves[1].scores == pytest.approx(Front.read(published.run).member("short").scores["selection"], abs=1e-6)
    assert not moves[1].forced
    client = open_registry(published).client
    stored = client.get_registered_model("hm3-front-p").tags
    assert json.loads(stored[moves[1].key])["reason"] == "as good, shallower"
    tag = client.get_model_version("hm3-front-p", str(moves[1].to)).tags["moved.written"]
    assert "by ann" in tag and "as good, shallower" in tag


def test_one_that_falls_below_the_present_holder_is_refused_and_the_table_says_where(published):
    ask(published, "b", "holds")
    before = trail.read(open_registry(published))
    result = ask(published, "a", "holds")
    assert result.refused
    assert [one.what for one in by_gate(result)[KEPT] if not one.passed] == ["two"]
    assert re.search(
        r"holds stays at version \d+: .*two 0\.0000, bound ≥ 0\.4800 \(now 0\.5000\); `--force", str(result)
    )
    assert alias_of(published, "holds") == number(published, "b")
    assert trail.read(open_registry(published)) == before


def test_more_layers_are_a_loss_too(published):
    ask(published, "short", "depth")
    result = ask(published, "a", "depth")
    assert [one.what for one in by_gate(result)[KEPT] if not one.passed] == ["layers"]


def test_force_with_a_reason_overrules_a_gate_and_the_trail_says_so(published):
    ask(published, "b", "forced")
    result = ask(published, "a", "forced", force=True, reason="math first")
    assert alias_of(published, "forced") == number(published, "a")
    assert (result.move.forced, result.move.reason) == (True, "math first")
    assert len(result.move.overruled) == 1 and "two" in result.move.overruled[0]
    unneeded = ask(published, "a", "forced-in-vain", force=True, reason="just in case")
    assert not unneeded.move.forced


def test_a_member_for_a_preference_is_the_one_that_choose_gives(published):
    result = ask(published, alias="preferred", prefer="one=0.2,two=0.8")
    assert result.decision.member == choose_member(Front.read(published.run), "one=0.2,two=0.8").id


def test_a_member_goes_by_id_beginning_name_and_every_alias(published):
    ask(published, "b", "known")
    for key in (ID["b"], ID["b"][:5], "b", "best-two", "known"):
        front, registered = Front.read(published.run), open_registry(published)
        _, member, version = resolve(published, front, registered, Request(member=key))
        assert (member, version.number) == (ID["b"], number(published, "b"))


def test_an_alias_that_is_there_already_is_left_alone(published):
    ask(published, "b", "there")
    result = ask(published, "b", "there")
    assert result.unchanged and not result.refused and result.move is None
    assert len([one for one in history(published)[1] if one.alias == "there"]) == 1


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "name a member, or a preference"),
        ({"member": "a", "prefer": "one=1"}, "name a member, or a preference"),
        ({"member": "a", "force": True}, "--force: needs --reason"),
        ({"member": "a", "force": True, "reason": "  "}, "--force: needs --reason"),
        ({"member": "a", "alias": "latest"}, "MLflow keeps this name"),
        ({"member": "a", "alias": "v3"}, "MLflow keeps this name"),
        ({"member": "a", "alias": "best-one"}, "`hm3 publish` moves it"),
        ({"member": "a", "alias": "balanced-7"}, "`hm3 publish` moves it"),
        ({"member": "nobody"}, "member 'nobody': none of that name"),
        ({"prefer": "nothing=1"}, "unknown objective"),
    ],
)
def test_a_request_that_cannot_be_meant_is_bad_input(published, request_, message):
    with pytest.raises(BadInput, match=re.escape(message)):
        promote(published, validate(Request, request_, "promote"), Progress())


def test_an_alias_that_mlflow_would_refuse_is_bad_input():
    with pytest.raises(BadInput, match="promote: alias: "):
        validate(Request, {"member": "a", "alias": "no spaces"}, "promote")
    check(Request(member="a", alias="v3-final"))


def test_the_profile_sets_tolerance_and_floors(published):
    ask(published, "b", "ruled")
    lenient = published.profile.model_copy(update={"promotion": Promotion(tolerance=0.5, floors={"one": 0.2})})
    workspace = replace(published, profile=lenient)
    result = ask(workspace, "a", "ruled")
    assert all(one.passed for one in by_gate(result)[KEPT])
    assert str(result).count("floor: one 0.1250, bound ≥ 0.2000") == 1


def test_a_floor_for_no_objective_is_bad_input(fresh):
    with pytest.raises(BadInput, match=r"promotion\.floors: layers: no task objective"):
        change_profile(fresh, promotion={"floors": {"layers": 0.5}})


def test_what_is_damaged_in_the_registry_is_refused(published):
    package = package_of(published, "mixed")
    weights = next(package.rglob("*.safetensors"))
    shutil.copy(published.zoo / "b" / "model.safetensors", weights)
    result = ask(published, "mixed", "damaged")
    assert result.refused
    (failed,) = by_gate(result)[REPRODUCED]
    assert "model.safetensors: is not what its checksum in the registry says" in failed.note
    (package / SUMS).unlink()
    result = ask(published, "mixed", "damaged")
    assert [one.what for one in by_gate(result)[REPRODUCED] if not one.passed] == ["two"]
    weights.unlink()
    result = ask(published, "mixed", "damaged")
    assert [one.passed for one in result.decision.checks[:3]] == [True, False, None]
    assert alias_of(published, "damaged") is None


def test_a_member_that_is_not_registered_cannot_be_promoted_even_by_force(published, tmp_path, monkeypatch):
    monkeypatch.setenv("HM3_STATE", str(published.state))
    path = shutil.copytree(published.root / "runs", tmp_path / "runs") / "p" / "front.json"
    for name in ("profiles", "params.yaml"):
        source = published.root / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    path.write_text(path.read_text() + "\n")
    changed = open_workspace("p", tmp_path)
    result = ask(changed, "b", "unregistered", force=True, reason="now")
    assert result.refused
    assert "`hm3 publish` registers the front" in str(result)
    notes = aliases_now(changed, Front.read(changed.run)).notes
    assert any("this front is not registered" in note for note in notes)


def test_without_a_registry_nothing_is_made(fresh):
    shutil.rmtree(fresh.state / "mlflow")  # the new database that the project was given
    with pytest.raises(BadInput, match="no MLflow registry here yet; run `hm3 publish"):
        ask(fresh, "b")
    aliases = aliases_now(fresh, Front.read(fresh.run))
    assert aliases.source == "front.json"
    assert "balanced" in [alias for own in aliases.of.values() for alias in own]
    assert not has_registry(fresh.state)
    assert not (fresh.state / "mlflow").exists()


def test_rolled_back_again_an_alias_goes_further_back(published):
    for name in ("a", "b"):
        ask(published, name, "back", force=True, reason="in turn")
    ask(published, "short", "back", force=True, reason="in turn")
    a, b, short = (number(published, name) for name in ("a", "b", "short"))
    first = rollback(published, "back", "short was too short")
    assert (first.before, first.to, first.kind, first.reason) == (short, b, "rollback", "short was too short")
    assert alias_of(published, "back") == b
    assert rollback(published, "back").to == alias_of(published, "back") == a
    with pytest.raises(BadInput, match=rf"nothing to roll back to: back is version {a}"):
        rollback(published, "back")
    assert [(one.before, one.to) for one in history(published)[1] if one.alias == "back"][3:] == [(short, b), (b, a)]
    with pytest.raises(BadInput, match="has no alias nowhere"):
        rollback(published, "nowhere")


def test_a_move_by_hand_is_noticed_and_can_be_rolled_back(published):
    ask(published, "b", "hand")
    short, b = number(published, "short"), number(published, "b")
    open_registry(published).client.set_registered_model_alias("hm3-front-p", "hand", str(short))
    front = Front.read(published.run)
    aliases = aliases_now(published, front)
    assert aliases.source == "registry"
    assert "hand" in aliases.of[ID["short"]]
    assert named(published, front, "hand").id == ID["short"]
    shown = {one["id"]: one["aliases"] for one in summary(front, aliases.of)["members"]}
    assert "hand" in shown[ID["short"]] and "hand" not in shown[ID["b"]]
    line = f"hand was moved by hand to version {short}; the audit trail says: promoted last to version {b}"
    assert any(note.startswith(line) for note in aliases.notes)
    assert any(note.startswith(line) for note in history(published)[2])
    assert rollback(published, "hand").to == b
    assert not any(note.startswith("hand ") for note in aliases_now(published, front).notes)
    open_registry(published).client.delete_registered_model_alias("hm3-front-p", "hand")
    assert f"hand was taken away by hand; it was version {b}" in aliases_now(published, front).notes


def test_an_alias_that_was_only_ever_set_by_hand_is_noticed(published):
    client = open_registry(published).client
    client.set_registered_model_alias("hm3-front-p", "manual", "1")
    client.set_registered_model_alias("hm3-front-p", "best-two", "1")
    notes = aliases_now(published, Front.read(published.run)).notes
    assert "manual was moved by hand to version 1; the audit trail says: never promoted" in notes
    assert "best-two was moved by hand to version 1; `hm3 publish` moves it back" in notes
    publish(published)
    assert not any(note.startswith("best-two") for note in aliases_now(published, Front.read(published.run)).notes)


def decide(workspace, member, alias):
    """A decision, with the workspace as it is at this moment."""
    registered = open_registry(workspace)
    request = Request(member=member, alias=alias)
    meant = resolve(workspace, Front.read(workspace.run), registered, request)
    before = registered.aliases().get(alias)
    with examined(workspace, registered, request, meant, before, Progress()) as decision:
        return registered, decision, request


def test_an_alias_that_moved_while_the_gates_were_looked_at_is_left_alone(published):
    registered, decision, request = decide(published, "b", "meanwhile")
    registered.client.set_registered_model_alias("hm3-front-p", "meanwhile", "1")
    with pytest.raises(Failed, match="meanwhile was not set and is version 1 meanwhile; nothing was moved"):
        carry_out(published, registered, decision, request)
    assert alias_of(published, "meanwhile") == 1


def test_of_several_at_once_one_moves_the_alias(published):
    decisions = [decide(published, name, "race") for name in ("a", "b", "short")]

    def attempt(one):
        registered, decision, request = one
        try:
            return carry_out(published, registered, decision, request).to
        except Failed:
            return None

    with ThreadPoolExecutor(3) as pool:
        moved = [one for one in pool.map(attempt, decisions) if one is not None]
    assert moved == [alias_of(published, "race")]
    assert [one.to for one in history(published)[1] if one.alias == "race"] == moved


def test_the_holder_from_another_front_is_scored_again(fresh):
    publish(fresh)
    ask(fresh, "b")
    path = fresh.run / "front.json"
    front = json.loads(path.read_text())
    front["members"] = [one for one in front["members"] if one["name"] != "b"]
    path.write_text(json.dumps(front))
    publish(fresh)
    registered = open_registry(fresh)
    holder = registered.versions[registered.aliases()["champion"]]
    for objective in ("one", "two", "layers"):  # as if it had been scored on easier items
        metric = ("selection/" + objective, 0.01)
        registered.client.log_metric(holder.entry.run_id, *metric, model_id=holder.model_id)
    result = ask(fresh, "a")
    assert [(one.what, one.passed) for one in by_gate(result)[KEPT]] == [
        ("one", True),
        ("two", False),
        ("layers", True),
    ]
    notes = aliases_now(fresh, Front.read(fresh.run)).notes
    told = f"champion is version {holder.number}, which is member {ID['b']} of another front"
    assert told in notes
    with pytest.raises(
        BadInput, match=f"^{told}; `mlflow artifacts download --artifact-uri models:/hm3-front-p@champion"
    ):
        named(fresh, Front.read(fresh.run), "champion")
    with pytest.raises(BadInput, match="member 'nobody': none of that name"):
        named(fresh, Front.read(fresh.run), "nobody")


def test_champion_alone_gets_its_weights_at_promotion(fresh):
    workspace = change_profile(fresh, registry={"weights": "champion"})
    publish(workspace)
    count = len(open_registry(workspace).versions)
    result = ask(workspace, "b")
    assert result.move.to == count + 1
    version = open_registry(workspace).versions[count + 1]
    assert version.has_weights and version.member == ID["b"]
    assert next(one for one in by_gate(result)[REPRODUCED] if one.what == "checksums").passed
    assert mlflow.pyfunc.load_model("models:/hm3-front-p@champion").predict(["w3"], params={"max_new_tokens": 2})
    refused = ask(workspace, "a")
    assert refused.refused
    assert len(open_registry(workspace).versions) == count + 1
    assert ask(workspace, "b").unchanged
    assert publish(workspace).already
    with pytest.raises(Failed, match="no space"):
        with_damage(workspace)
    assert len(open_registry(workspace).versions) == count + 1


def with_damage(workspace):
    """Ends while the gates are looked at, after the weights of a version were uploaded."""
    registered = open_registry(workspace)
    request = Request(member="a", alias="other")
    _, _, version = meant = resolve(workspace, Front.read(workspace.run), registered, request)
    with examined(workspace, registered, request, meant, None, Progress()) as decision:
        assert decision.version.number not in (version.number, None)
        raise Failed("no space left")


def test_without_weights_in_the_registry_the_member_is_rebuilt_from_its_recipe(fresh):
    workspace = change_profile(fresh, registry={"weights": "none"})
    publish(workspace)
    result = ask(workspace, "mixed")
    assert result.move is not None
    scored = [one for one in by_gate(result)[REPRODUCED] if one.what in ("one", "two", "layers")]
    assert {one.note for one in scored} == {"rebuilt from the registered recipe"}
    assert "recipe alone" in by_gate(result)[REGISTERED][1].value


def test_a_version_by_recipe_alone_does_not_pass_where_members_have_weights(fresh):
    publish(change_profile(fresh, registry={"weights": "none"}))
    result = ask(change_profile(fresh, registry={"weights": "members"}), "b")
    assert result.refused
    assert "`hm3 publish` registers the front with its weights" in by_gate(result)[REGISTERED][1].note


def test_what_a_search_found_is_registered_once_and_promoted_as_a_member_is(published):
    front = Front.read(published.run)
    before = open_registry(published).versions
    find = keep_find(published, SWAPPED)
    result = ask(published, find.id[:6], "found")
    assert [one.passed for one in result.decision.checks] == [True] * len(result.decision.checks)
    assert {gate: len(checks) > 0 for gate, checks in by_gate(result).items()} == dict.fromkeys(by_gate(result), True)
    registered = open_registry(published)
    (version,) = [one for number, one in registered.versions.items() if number not in before]
    assert alias_of(published, "found") == version.number == result.move.to
    assert version.found and version.has_weights and version.member == find.id
    assert version.front_id not in {one.front_id for one in before.values()}
    assert registered.scores(version) == find.scores["selection"]
    tags = version.entry.tags
    assert {name for name in tags if "." in name} == {"selection.one", "selection.two", "moved.found"}
    assert mlflow.pyfunc.load_model("models:/hm3-front-p@found").predict(["w3 w4"], params={"max_new_tokens": 2})
    again = ask(published, find.id, "found-too")
    assert (again.move.to, len(open_registry(published).versions)) == (version.number, len(before) + 1)
    assert named(published, front, "found") == find
    assert f"found is version {version.number}, which is {find.id}, found by `hm3 choose --search`" in (
        aliases_now(published, front).notes
    )
    assert ask(published, "b", "found", force=True, reason="back").move.before == version.number
    assert rollback(published, "found").to == version.number
    assert ask(published, "found", "found-by-alias").move.to == version.number
    assert publish(published).already


def test_what_was_found_is_held_against_the_holder_before_anything_is_sent(published):
    ask(published, "b", "kept")
    count = len(open_registry(published).versions)
    find = keep_find(published, Candidate("a", (("a", 0), ("a", 1), ("a", 2), ("a", 1))))
    result = ask(published, find.id, "kept")
    assert result.refused
    assert [one.passed for one in by_gate(result)[REGISTERED] + by_gate(result)[REPRODUCED]] == [None, None]
    assert "two" in [one.what for one in by_gate(result)[KEPT] if not one.passed]
    assert str(result).endswith("`--force --reason TEXT` moves it all the same")
    assert len(open_registry(published).versions) == count
    forced = ask(published, find.id, "kept", force=True, reason="all the same")
    assert forced.move.forced and alias_of(published, "kept") == forced.move.to > count


def test_what_does_not_score_as_it_was_found_leaves_no_version_behind(published):
    count = len(open_registry(published).versions)
    find = keep_find(published, Candidate("b", (("b", 0), ("b", 1), ("b", 2), ("b", 1))), one=0.9)
    result = ask(published, find.id, "too-good")
    assert [one.what for one in by_gate(result)[REPRODUCED] if not one.passed] == ["one"]
    assert alias_of(published, "too-good") is None
    assert len(open_registry(published).versions) == count


@pytest.mark.parametrize("weights", ["champion", "none"])
def test_what_was_found_is_registered_as_the_profile_registers_what_is_promoted(fresh, weights):
    workspace = change_profile(fresh, registry={"weights": weights})
    publish(workspace)
    find = keep_find(workspace, SWAPPED)
    result = ask(workspace, find.id)
    assert result.move.member == find.id
    version = open_registry(workspace).versions[result.move.to]
    assert version.has_weights == (weights == "champion")
    notes = {one.note for one in by_gate(result)[REPRODUCED]}
    assert ("rebuilt from the registered recipe" in notes) == (weights == "none")
    shutil.rmtree(workspace.state / "found")
    with pytest.raises(BadInput, match=f"champion is version {version.number}, which is {find.id}, found by"):
        named(workspace, Front.read(workspace.run), "champion")


def test_a_server_that_is_away_is_a_failure_and_the_front_is_shown_all_the_same(fresh, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Failed, match=r"MLflow at http://127\.0\.0\.1:9"):
        ask(fresh, "b")
    aliases = aliases_now(fresh, Front.read(fresh.run))
    assert aliases.source == "front.json"
    assert "promotions are not shown: MLflow at http://127.0.0.1:9" in aliases.notes[0]


def test_rounding_passes_and_one_item_does_not():
    recorded = {"one": 0.7421875, "two": -31.25}
    close = {"one": 0.7421875 + 1e-7, "two": -31.25 + 2e-4}
    assert all(one.passed for one in reproduced(close, recorded, recorded, 1e-5))
    off = {"one": 0.7421875 - 1 / 4096, "two": -31.25 + 4e-4}
    assert not any(one.passed for one in reproduced(off, recorded, recorded, 1e-5))
    assert not reproduced(close, {}, ["one"], 1.0)[0].passed


def test_the_tolerance_itself_is_still_within_it():
    rules = Promotion(tolerance=0.02, floors={"one": 0.3})
    present = {"one": 0.32, "layers": 0.9}
    assert all(one.passed for one in kept({"one": 0.3, "layers": 0.92}, present, present, rules))
    assert [one.passed for one in kept({"one": 0.299, "layers": 0.921}, present, present, rules)] == [
        False,
        False,
        False,
    ]
    assert [one.passed for one in kept({"one": 0.4}, {}, ["one"], rules)] == [True, True]
    assert [one.passed for one in kept({}, present, ["one"], rules)] == [False, False]


def test_the_terminal_and_the_page_show_the_same_checks():
    checks = [Check(KEPT, "one", "0.1", "≥ 0.2", False, "now [0.22]"), Check(KEPT, "two", "", "", None)]
    with (console := Console(width=120)).capture() as captured:
        console.print(gate_table("title", checks))
    for text in (captured.get(), gate_markdown("title", checks)):
        for word in (KEPT, "one", "0.1", "≥ 0.2", "fail", "now [0.22]", "not run"):
            assert word in text
