"""Recipes are mergekit's YAML, and what can't be meant is refused in one line that names file, field and remedy."""

import pytest
from pydantic import ValidationError

from models.errors import BadInput
from models.merge.recipe import Recipe, dump_recipes, mergekit_level, parse_recipes, recipe_name

TIES = """
merge_method: ties
base_model: runs/tiny/zoo/base
models:
  - model: runs/tiny/zoo/math
    parameters: {weight: 0.5, density: 1}
  - model: runs/tiny/zoo/code
    parameters:
      weight: [0.2, 0.8]
parameters: {density: [{filter: mlp, value: [0.1, 0.9]}, {value: 3e-1}], lambda: 1.2, normalize: true}
dtype: float32
"""
PATH = """
name: r-1
merge_method: dare_ties
base_model: zoo/base
models:
  - {model: zoo/math, parameters: {weight: 0.5}}
parameters: {seed: 7, density: 0.5}
---
merge_method: passthrough
slices:
  - sources: [{model: zoo/math, layer_range: [0, 0]}]
  - sources: [{model: r-1, layer_range: [0, 3]}]
"""
REPAIRED = f"""
merge_method: passthrough
base_model: zoo/math
slices:
  - sources: [{{model: zoo/math, layer_range: [0, 2]}}]
  - sources: [{{model: zoo/math, layer_range: [4, 6]}}]
repair: {{rows: rows.safetensors, sha256: {"ab" * 32}, tokens: 24000, ridge: 0.003, dtype: bfloat16, layers: [1, 3]}}
"""


def test_a_dumped_recipe_reads_back_as_it_was():
    for text in (TIES, PATH, REPAIRED):
        recipes = parse_recipes(text, "recipe.yaml")
        assert parse_recipes(dump_recipes(recipes), "recipe.yaml") == recipes


def test_a_name_depends_on_what_a_recipe_means_not_on_how_it_is_written():
    (recipe,) = parse_recipes(TIES, "recipe.yaml")
    respelled = (
        TIES.replace("density: 1}", "density: 1.0}")
        .replace("weight: 0.5, ", "")
        .replace("density: 1.0}", "density: 1.0, weight: 5e-1}")
    )
    assert recipe_name(recipe) == recipe_name(parse_recipes(f"name: x\n{respelled}", "recipe.yaml")[0])
    assert recipe_name(recipe) != recipe_name(parse_recipes(TIES.replace("1.2", "1.3"), "recipe.yaml")[0])
    assert recipe_name(recipe).startswith("r-") and len(recipe_name(recipe)) == 10


def test_numbers_are_floats_and_a_seed_stays_whole():
    ties, (dare, _) = parse_recipes(TIES, "x")[0], parse_recipes(PATH, "x")
    assert ties.models[0].parameters == {"density": 1.0, "weight": 0.5}
    assert ties.parameters["density"] == [{"filter": "mlp", "value": [0.1, 0.9]}, {"value": 0.3}]
    assert ties.parameters["normalize"] is True
    assert dare.seed == 7 and "seed: 7" in dump_recipes([dare])


def test_random_masks_make_a_recipe_in_distribution():
    assert mergekit_level(parse_recipes(TIES, "x")) == "exact"
    assert mergekit_level(parse_recipes(PATH, "x")) == "in-distribution"


DELLA = """
merge_method: della
base_model: zoo/base
models: [{model: zoo/math}, {model: zoo/code}]
parameters: {weight: 0.5, density: 0.5, %s}
"""


@pytest.mark.parametrize(
    ("more", "level"),
    [
        ("rescale: true", "in-distribution"),
        ("elect_sign: weighted", "in-distribution"),
        ("rescale: l1", "no"),
        ("rescale: inverse_density", "no"),
        ("rescale: [{filter: mlp, value: inverse_density}, {value: true}]", "no"),
        ("elect_sign: unweighted", "no"),
    ],
)
def test_a_value_that_mergekit_lacks_makes_a_recipe_ours_alone(more, level):
    recipes = parse_recipes(DELLA % more, "recipe.yaml")
    assert mergekit_level(recipes) == level
    assert parse_recipes(dump_recipes(recipes), "recipe.yaml") == recipes


def test_a_repair_makes_a_recipe_ours_alone_and_has_its_place_in_the_name():
    (recipe,), block = parse_recipes(REPAIRED, "recipe.yaml"), REPAIRED[REPAIRED.index("repair:") :]
    assert recipe.repair.layers == (1, 3)
    assert mergekit_level([recipe]) == "no"
    plain = parse_recipes(one(REPAIRED, (block, "")), "x")
    assert mergekit_level(plain) == "exact"
    assert mergekit_level([recipe.model_copy(update={"name": "r-1"}), *plain]) == "no"
    assert (
        len({recipe_name(recipe), recipe_name(*plain), recipe_name(*parse_recipes(one(REPAIRED, ("24", "25")), "x"))})
        == 3
    )


def test_a_method_that_mergekit_lacks_makes_a_recipe_ours_alone():
    for name in ("pcb", "consensus", "tsv_m", "iso_c", "wudi"):
        text = f"merge_method: {name}\nbase_model: b\nmodels: [{{model: c}}, {{model: d}}]"
        assert mergekit_level(parse_recipes(text, "x")) == "no"


@pytest.mark.parametrize(
    "text",
    [
        "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\nparameters: {t: [0, 0.5, 1]}",
        "merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: 0.5}",
        "merge_method: nuslerp\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}",
        "merge_method: nuslerp\nbase_model: c\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}",
        "merge_method: model_stock\nbase_model: c\nmodels: [{model: a}, {model: b}]",
        "merge_method: karcher\nbase_model: c\nmodels: [{model: a}, {model: b}]\nparameters: {max_iter: 4, tol: 1e-6}",
    ],
)
def test_numbers_of_models_that_mergekit_takes(text):
    recipes = parse_recipes(text, "recipe.yaml")
    assert parse_recipes(dump_recipes(recipes), "recipe.yaml") == recipes
    assert mergekit_level(recipes) == "exact"


def test_a_recipe_made_in_code_is_checked_too():
    with pytest.raises(ValidationError, match="unknown key"):
        Recipe(merge_method="linear", models=[{"model": "a", "parameters": {"weights": 1}}])


def one(text, *replace):
    for old, new in replace:
        assert old in text
        text = text.replace(old, new)
    return text


BAD = {
    "no YAML": ("{", "recipe.yaml: not readable as YAML"),
    "empty": ("", "recipe.yaml: holds no recipe"),
    "a list": ("[1]", "recipe.yaml: must be a mapping"),
    "unknown key": (one(TIES, ("dtype", "dtypo")), "recipe.yaml: dtypo: unknown key; remove it or mend its spelling"),
    "unknown key of a model": (
        one(TIES, ("  - model: runs/tiny/zoo/math", "  - model: m\n    weight: 1")),
        "recipe.yaml: models.0.weight: unknown key",
    ),
    "unknown parameter": (
        one(TIES, ("lambda", "lamda")),
        "recipe.yaml: parameters.lamda: unknown key; ties has weight, density, normalize, rescale, lambda, int8_mask",
    ),
    "unknown method": (one(TIES, ("ties", "tries")), "recipe.yaml: merge_method: tries is unknown; there are linear"),
    "weight that is no number": (
        one(TIES, ("weight: 0.5", "weight: much")),
        "recipe.yaml: models.0.parameters.weight: 'much' must be a number",
    ),
    "switch as a weight": (
        one(TIES, ("weight: 0.5", "weight: true")),
        "models.0.parameters.weight: true must be a num",
    ),
    "infinite weight": (one(TIES, ("weight: 0.5", "weight: .inf")), "models.0.parameters: weight: inf must be finite"),
    "number as a switch": (one(TIES, ("normalize: true", "normalize: 2")), "parameters.normalize: 2.0 must be true or"),
    "density above one": (
        one(TIES, ("density: 1}", "density: 1.5}")),
        "recipe.yaml: models.0.parameters.density: 1.5 must lie between 0 and 1",
    ),
    "density below zero in a gradient": (one(TIES, ("[0.1, 0.9]", "[0.1, -0.9]")), "parameters.density: -0.9 must lie"),
    "condition without a value": (one(TIES, ("value: 3e-1", "valu: 3e-1")), "parameters: density: a condition holds"),
    "empty gradient": (one(TIES, ("[0.2, 0.8]", "[]")), "models.1.parameters: weight: a gradient is a list of numbers"),
    "parameters that are a list": (one(TIES, ("{weight: 0.5, density: 1}", "[1]")), "parameters: must be a mapping"),
    "shared parameter at one model": (
        one(TIES, ("weight: 0.5,", "weight: 0.5, normalize: true,")),
        "models.0.parameters.normalize: is for the whole recipe",
    ),
    "seed where nothing is random": (
        one(TIES, ("lambda: 1.2", "seed: 3")),
        "recipe.yaml: parameters.seed: ties draws nothing at random; remove it",
    ),
    "seed that is no whole number": (
        one(PATH, ("seed: 7", "seed: 7.5")),
        "parameters.seed: 7.5 must be a whole number",
    ),
    "missing weight": (
        one(TIES, ("weight: 0.5, ", "")),
        "recipe.yaml: models: runs/tiny/zoo/math: weight is missing; ties needs it",
    ),
    "missing base": (
        one(TIES, ("base_model: runs/tiny/zoo/base", "")),
        "recipe.yaml: base_model: missing; ties needs it",
    ),
    "a model twice": (one(TIES, ("zoo/code", "zoo/math")), "recipe.yaml: models: names a model twice"),
    "models and slices": (
        one(TIES, ("dtype: float32", "slices: [{sources: [{model: a, layer_range: [0, 1]}]}]")),
        "either",
    ),
    "no models": ("merge_method: linear", "recipe.yaml: models: give either `models` or `slices`"),
    "only the base": (
        "merge_method: ties\nbase_model: a\nmodels: [{model: a}]",
        "recipe.yaml: models: ties needs a model beside the base_model",
    ),
    "two models passed through": (
        "merge_method: passthrough\nmodels: [{model: a}, {model: b}]",
        "recipe.yaml: models: passthrough takes 1 model, not a, b",
    ),
    "slerp of three models": (
        "merge_method: slerp\nbase_model: c\nmodels: [{model: a}, {model: b}]\nparameters: {t: 0.5}",
        "recipe.yaml: models: slerp takes 1 model beside the base_model, not a, b",
    ),
    "slerp without a base": (
        "merge_method: slerp\nmodels: [{model: a}, {model: b}]\nparameters: {t: 0.5}",
        "recipe.yaml: base_model: missing; slerp needs it",
    ),
    "slerp without a place": (
        "merge_method: slerp\nbase_model: a\nmodels: [{model: b}]",
        "recipe.yaml: models: b: t is missing; slerp needs it",
    ),
    "nuslerp of one model and a base": (
        "merge_method: nuslerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}",
        "recipe.yaml: models: nuslerp takes 2 models beside the base_model, not b",
    ),
    "nuslerp of three models": (
        "merge_method: nuslerp\nmodels: [{model: a}, {model: b}, {model: c}]\nparameters: {weight: 1}",
        "recipe.yaml: models: nuslerp takes 2 models, not a, b, c",
    ),
    "model stock of one expert": (
        "merge_method: model_stock\nbase_model: a\nmodels: [{model: a}, {model: b}]",
        "recipe.yaml: models: model_stock takes at least 2 models beside the base_model, not b",
    ),
    "unknown named value": (
        DELLA % "elect_sign: weightless",
        "recipe.yaml: parameters.elect_sign: weightless must be weighted or unweighted",
    ),
    "named value where a switch may have one": (
        DELLA % "rescale: l2",
        "recipe.yaml: parameters.rescale: l2 must be true or false, or l1 or inverse_density",
    ),
    "named value that the method doesn't have": (
        one(TIES, ("normalize: true", "rescale: inverse_density")),
        "recipe.yaml: parameters.rescale: inverse_density must be true or false",
    ),
    "number as a named value": (DELLA % "elect_sign: 1", "parameters.elect_sign: 1.0 must be weighted or unweighted"),
    "named values over layers": (
        DELLA % "rescale: [l1, l1]",
        "recipe.yaml: parameters.rescale: takes one value for all layers, not a gradient",
    ),
    "fraction where only whole numbers go": (
        "merge_method: karcher\nmodels: [{model: a}]\nparameters: {max_iter: 2.5}",
        "recipe.yaml: parameters.max_iter: 2.5 must be a whole number",
    ),
    "whole numbers over layers": (
        "merge_method: karcher\nmodels: [{model: a}]\nparameters: {max_iter: [2, 5]}",
        "recipe.yaml: parameters.max_iter: takes one value for all layers, not a gradient",
    ),
    "base of an average without a weight": (
        "merge_method: linear\nbase_model: c\nmodels: [{model: a, parameters: {weight: 1}}]",
        "recipe.yaml: models: c: weight is missing; linear needs it",
    ),
    "slices of different length": (
        "merge_method: linear\nparameters: {weight: 1}\n"
        "slices: [{sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 1]}]}]",
        "recipe.yaml: slices.0.sources: layer_range: all need the same number of layers",
    ),
    "slice without the base": (
        "merge_method: ties\nbase_model: c\nparameters: {weight: 1}\n"
        "slices: [{sources: [{model: a, layer_range: [0, 2]}]}]",
        "recipe.yaml: slices.0.sources: ties needs the base_model among them",
    ),
    "range that runs backwards": (
        one(PATH, ("[0, 3]", "[3, 0]")),
        "document 2: slices.1.sources.0: layer_range: the sec",
    ),
    "unknown dtype": (one(TIES, ("float32", "float31")), "recipe.yaml: dtype: Input should be 'float32'"),
    "several modules": (
        "merge_method: linear\nmodules: {text: {models: [{model: a}]}, vision: {models: [{model: a}]}}",
        "recipe.yaml: modules: only models with one module are merged",
    ),
    "two sources of the tokenizer": (
        one(TIES, ("dtype: float32", "tokenizer: {source: base}\ntokenizer_source: base")),
        "recipe.yaml: tokenizer: give either `tokenizer` or `tokenizer_source`",
    ),
    "row of a model that takes no part": (
        one(TIES, ("dtype: float32", "tokenizer: {tokens: {x: {source: other}}}")),
        "recipe.yaml: tokenizer.tokens.x: other: is none of the models",
    ),
    "row of no token": (
        one(TIES, ("dtype: float32", "tokenizer: {tokens: {x: {source: {kind: model_token, model: a}}}}")),
        "give either `token` or `token_id`",
    ),
    "chat template of no name": (
        one(TIES, ("dtype: float32", "chat_template: chatmel")),
        "recipe.yaml: chat_template: chatmel: is auto, chatml, llama3, mistral, or the text of a template itself",
    ),
    "chat template that is none": (
        one(TIES, ("dtype: float32", "chat_template: '{% for %}'")),
        "recipe.yaml: chat_template: no template (TemplateSyntaxError: Expected an expression",
    ),
    "embed_slerp": (
        one(TIES, ("normalize: true", "embed_slerp: true")),
        "recipe.yaml: embed_slerp: mergekit no longer has it; remove it",
    ),
    "another architecture": (
        one(TIES, ("runs/tiny/zoo/math", "{model: {path: m}, override_architecture: X}")),
        "recipe.yaml: override_architecture: isn't supported",
    ),
    "tokenizer of a model that takes no part": (
        one(TIES, ("dtype: float32", "tokenizer_source: other")),
        "recipe.yaml: tokenizer_source: must be `union`, `base` for the base_model, or one of the models",
    ),
    "repair of a layer that is not there": (
        one(REPAIRED, ("[1, 3]", "[1, 4]")),
        "recipe.yaml: repair.layers: must be different layers of the result, 0 to 3",
    ),
    "repair of a layer twice": (one(REPAIRED, ("[1, 3]", "[1, 1]")), "repair.layers: must be different layers of the"),
    "repair of no layer": (one(REPAIRED, ("[1, 3]", "[]")), "recipe.yaml: repair.layers: Tuple should have at least 1"),
    "repair of a layer below zero": (
        one(REPAIRED, ("[1, 3]", "[-1]")),
        "recipe.yaml: repair.layers.0: Input should be",
    ),
    "repair of a merge": (
        one(REPAIRED, ("merge_method: passthrough", "merge_method: linear\nparameters: {weight: 1}")),
        "recipe.yaml: repair: is for slices of one model each under passthrough, with a base_model and no parameters",
    ),
    "repair of a whole model": (
        f"merge_method: passthrough\nbase_model: a\nmodels: [{{model: a}}]\n{REPAIRED[REPAIRED.index('repair:') :]}",
        "recipe.yaml: repair: is for slices of one model each",
    ),
    "repair without a base": (one(REPAIRED, ("base_model: zoo/math", "")), "recipe.yaml: repair: is for slices of one"),
    "repair of what is scaled": (
        one(REPAIRED, ("repair:", "parameters: {scale: 2}\nrepair:")),
        "recipe.yaml: repair: is for slices of one model each",
    ),
    "repair of a slice that is scaled": (
        one(REPAIRED, ("[4, 6]", "[4, 6], parameters: {scale: 2}")),
        "recipe.yaml: repair: is for slices of one model each",
    ),
    "repair of slices of two models": (
        one(REPAIRED, ("[4, 6]}", "[4, 6]}, {model: zoo/code, layer_range: [4, 6]}")),
        "recipe.yaml: ",
    ),
    "unknown key of a repair": (
        one(REPAIRED, ("ridge:", "seed: 1, ridge:")),
        "recipe.yaml: repair.seed: unknown key; remove it",
    ),
    "repair without rows": (
        one(REPAIRED, ("rows: rows.safetensors, ", "")),
        "recipe.yaml: repair.rows: Field required",
    ),
    "digest that is none": (
        one(REPAIRED, ("ab" * 32, "ab" * 31 + "gh")),
        "recipe.yaml: repair.sha256: String should match",
    ),
    "ridge of nothing": (one(REPAIRED, ("0.003", "0")), "recipe.yaml: repair.ridge: Input should be greater than 0"),
    "endless ridge": (one(REPAIRED, ("0.003", ".inf")), "recipe.yaml: repair.ridge: Input should be a finite number"),
    "ridge that is no number": (one(REPAIRED, ("0.003", ".nan")), "recipe.yaml: repair.ridge: Input should be"),
    "repair on no tokens": (
        one(REPAIRED, ("24000", "0")),
        "recipe.yaml: repair.tokens: Input should be greater than or",
    ),
    "repair in an unknown dtype": (one(REPAIRED, ("bfloat16", "int8")), "recipe.yaml: repair.dtype: Input should be"),
    "first document without a name": (one(PATH, ("name: r-1", "")), "recipe.yaml: document 1: name: missing"),
    "name used twice": (
        one(PATH, ("merge_method: pass", "name: r-1\nmerge_method: pass")),
        "document 2: name: r-1 was used",
    ),
    "document that comes later": (
        "\n---\n".join([*reversed(one(PATH, ("merge_method: pass", "name: r-2\nmerge_method: pass")).split("---"))]),
        "recipe.yaml: document 1: r-1: a recipe can only use those before it",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_recipes_are_refused_in_one_line(case):
    text, message = BAD[case]
    with pytest.raises(BadInput) as caught:
        parse_recipes(text, "recipe.yaml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("recipe.yaml: ") and "\n" not in str(caught.value)
