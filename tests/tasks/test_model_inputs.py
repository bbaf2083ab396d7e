"""Experts of a profile may be adapters, and may know more tokens than the base."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.candidate import Candidate
from models.errors import BadInput
from models.merge.recipe import parse_recipes
from tasks.doctor.doctor import Found, examine, model
from tasks.front.checkpoint import merge_recipe
from tasks.project.progress import Progress
from tasks.project.workspace import open_workspace
from tasks.scoring.engine import Engine
from tasks.scoring.evaluation import evaluate
from tasks.zoo import check_models
from tests.small_adapters import make_adapter
from tests.small_tasks import make_family_project

ADAPTED = "runs/p/zoo/base+runs/p/zoo/adapter"
RECIPE = f"""
merge_method: task_arithmetic
base_model: runs/p/zoo/base
models:
- {{model: runs/p/zoo/a, parameters: {{weight: 0.5}}}}
- {{model: {ADAPTED}, parameters: {{weight: 0.7}}}}
"""


def extend(folder):
    """Add a token, with a row that is often the likeliest."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[-1] *= 9
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def workspace(make_family, tmp_path_factory):
    """Expert ``a`` has a token more, expert ``b`` is an adapter, and ``whole`` the model that peft makes with it."""
    root = tmp_path_factory.mktemp("inputs")
    workspace = make_family_project(root, make_family)
    zoo = workspace.zoo
    extend(zoo / "a")
    merged = make_adapter(zoo / "adapter", zoo / "base", r=4, lora_alpha=16, target_modules=["q_proj", "down_proj"])
    shutil.copytree(zoo / "base", zoo / "whole")
    merged.save_pretrained(zoo / "whole")
    name_experts(workspace, a="runs/p/zoo/a", b=ADAPTED)
    (root / "params.yaml").write_text(yaml.safe_dump({"profiles": ["p"], "search": {"budget": 9000, "rungs": [4, 14]}}))
    return open_workspace("p", root)


def name_experts(workspace, **experts):
    (workspace.zoo / "family.json").write_text(json.dumps({"base": "runs/p/zoo/base", "experts": experts}))


def scores(engine, *names):
    return [one.items for one in engine.scored([Candidate.identity(name, 3) for name in names], "search")]


def test_the_models_of_a_pool_share_one_vocabulary(workspace):
    engine = Engine(workspace)
    assert engine.pool.config["vocab_size"] == 42
    (items,) = scores(engine, "a")
    found = evaluate(workspace, "runs/p/zoo/a", "search", workspace.root, Progress())
    assert {name: sum(values) / len(values) for name, values in items.items()} == {
        name: found.scores[name] for name in items
    }


def test_an_adapter_scores_as_the_model_that_it_makes(workspace, tmp_path):
    with_adapter = scores(Engine(workspace), "b")
    copy = shutil.copytree(workspace.root, tmp_path / "copy", ignore=shutil.ignore_patterns(".hm3"))
    other = open_workspace("p", copy)
    name_experts(other, a="runs/p/zoo/a", b="runs/p/zoo/whole")
    assert scores(Engine(other), "b") == with_adapter
    one, whole = (
        evaluate(workspace, target, "test", workspace.root, Progress()) for target in (ADAPTED, "runs/p/zoo/whole")
    )
    assert one.scores == whole.scores


def test_a_merge_in_the_pool_scores_as_the_folder_that_the_recipe_makes(workspace, tmp_path):
    engine = Engine(workspace)
    added = engine.add(parse_recipes(RECIPE, "x")[0])
    (scored,) = engine.scored([added], "search")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    merge_recipe(tmp_path / "recipe.yaml", tmp_path / "out", [workspace.root], "cpu", None, Progress())
    for target in ("recipe.yaml", "out"):
        found = evaluate(workspace, target, "search", tmp_path, Progress())
        assert scored.means() == {name: found.scores[name] for name in scored.items}
    assert AutoTokenizer.from_pretrained(tmp_path / "out").convert_tokens_to_ids("<tool>") == 41


def test_the_doctor_opens_adapters_and_longer_vocabularies(workspace):
    found = examine(workspace, {})
    checks = {check.what: check for check in found.checks}
    assert checks["a"].status == checks["b"].status == "good", (checks["a"].text, checks["b"].text)
    assert checks["b"].text.startswith(f"{ADAPTED}: ")


def test_a_given_family_is_checked_with_its_adapters(workspace, tmp_path):
    given = {"base": "base", "a": "a", "b": "base+adapter"}
    digests = check_models(given, workspace.zoo.joinpath, Progress())
    assert len(set(digests.values())) == 3
    zoo = shutil.copytree(workspace.zoo, tmp_path / "zoo")
    tensors = load_file(zoo / "adapter" / "adapter_model.safetensors")
    next(iter(tensors.values())).view(-1)[:1] = float("nan")
    save_file(tensors, zoo / "adapter" / "adapter_model.safetensors")
    with pytest.raises(BadInput, match=r"adapter: .*lora_A.weight: holds NaN or Inf"):
        check_models(given, zoo.joinpath, Progress())


def test_an_expert_without_tokenizer_and_of_another_size_names_the_remedy(workspace, tmp_path):
    copy = open_workspace("p", shutil.copytree(workspace.root, tmp_path / "copy"))
    (copy.zoo / "a" / "tokenizer.json").unlink()
    found = Found()
    model(copy, found, "base", "runs/p/zoo/base")
    with pytest.raises(BadInput, match=r"expert a: tokenizer.json: missing, .* put the tokenizer"):
        model(copy, found, "a", "runs/p/zoo/a")
