"""What a form gives overrides params.yaml, and what it leaves alone does not."""

from pathlib import Path

import pytest
import yaml

from flows.form import FORMS, Search, Train, filled, merged, project_params
from models.errors import BadInput
from tasks.schema.params import Params, SearchParams

ROOT = Path(__file__).parents[2]


def test_a_forms_values_are_those_of_the_project():
    params = project_params()
    assert set(FORMS) == set(Params.model_fields) - {"profiles", "seed"}
    for name, form in FORMS.items():
        assert form().model_dump() == getattr(params, name).model_dump()


def test_the_schema_keeps_its_own_values():
    assert SearchParams().budget == SearchParams.model_fields["budget"].default == 150_000
    written = yaml.safe_load((ROOT / "params.yaml").read_text())["search"]["budget"]
    assert Search().budget == project_params().search.budget == written != SearchParams().budget


def test_only_what_was_given_overrides():
    params = Params(search=SearchParams(batch=7, budget=50))
    after = merged(params, 3, Search(budget=70), Train())
    assert after == params.model_copy(update={"seed": 3, "search": params.search.model_copy(update={"budget": 70})})


def test_all_parameters_come_through():
    params = Params(seed=5, search=SearchParams(rungs=(8, 16), preferences=9))
    arguments = filled(params)
    assert merged(Params(), arguments.pop("seed"), *arguments.values()) == params


def test_what_the_schema_refuses_is_bad_input_inside_the_flow_too():
    unchecked = Search.model_construct(_fields_set={"budget"}, budget=-1)
    with pytest.raises(BadInput, match=r"parameters of the run: search\.budget: .* greater than or equal to 1"):
        merged(Params(), 0, unchecked)


def test_a_form_that_is_sent_off_untouched_leaves_what_the_profile_sets_for_itself():
    own = Params(seed=7, search=SearchParams(batch=7, budget=50))
    untouched = Search(**project_params().search.model_dump())
    assert merged(own, project_params().seed, untouched) == own
    changed = merged(own, 9, Search(**{**untouched.model_dump(), "preferences": 9}))
    assert changed == own.model_copy(update={"seed": 9, "search": own.search.model_copy(update={"preferences": 9})})
