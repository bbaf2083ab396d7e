"""The model card of a merged model: what was merged, how, and how to make it again. No date and no absolute path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath

import yaml

from models.merge.recipe import Group, Recipe, SliceSource, mergekit_level
from models.sources.vocabulary import Vocabulary
from models.text import code, markdown

REBUILD = {
    "exact": "mergekit (`mergekit-multi`) makes the same model from it.",
    "in-distribution": "mergekit makes a model from it that differs by its random masks alone.",
    "no": "mergekit lacks a method that it uses, or repairs no seams.",
}


def model_card(
    name: str,
    recipes: Sequence[Recipe],
    vocabulary: Vocabulary | None = None,
    classes: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Markdown with a Hugging Face header.

    Args:
        recipes: the last makes the model, those before it are its intermediate merges.
        vocabulary: the model's, if its tokenizer is to be described.
        classes: of each task, if it sees images.
    """
    methods = sorted({recipe.merge_method for recipe in recipes})
    tags = ["merge", "hm3", *(method.replace("_", "-") for method in methods)]
    header = yaml.safe_dump({"library_name": "transformers", "tags": tags}, sort_keys=False)
    lines = ["---", *header.splitlines(), "---", "", f"# {markdown(name)}", ""]
    lines += ["This model was merged from fine-tunes of one base model.", ""]
    for recipe in recipes:
        lines += [f"## {markdown(recipe.name or name)}", "", _sentence(recipe), "", *_table(recipe), ""]
    if vocabulary is not None and vocabulary.extra:
        lines += ["## Vocabulary", "", _extension(vocabulary), ""]
    if classes:
        lines += ["## Classes", "", _heads(classes), ""]
    lines += [
        "## Making it again",
        "",
        f"`recipe.yaml` holds the whole recipe: `hm3 merge recipe.yaml OUT`. {REBUILD[mergekit_level(recipes)]}",
        "",
    ]
    if (repair := recipes[-1].repair) is not None:
        lines += [f"The seams of its path are repaired on the items in {code(repair.rows)}, which it takes, too.", ""]
    return "\n".join(lines)


def _sentence(recipe: Recipe) -> str:
    method = recipe.method
    base = f", base {code(_shown(recipe.base_model))}" if recipe.base_model else ""
    settings = "".join(markdown(f", {key} {value}") for key, value in recipe.parameters.items())
    return f"[{method.title}]({method.reference}){base}{settings}."


def _table(recipe: Recipe) -> list[str]:
    rows = [_row(group, number) for group in recipe.groups for number in range(len(group.sources))]
    return ["| model | layers | settings |", "|---|---|---|", *rows]


def _row(group: Group, number: int) -> str:
    source = group.sources[number]
    layers = "all"
    if isinstance(source, SliceSource):
        layers = f"{source.layers.start}–{source.layers.stop - 1}" if source.layers else "embedding, norm and head only"
    settings = ", ".join(markdown(f"{key} {value}") for key, value in {**group.parameters, **source.parameters}.items())
    return f"| {code(_shown(source.model))} | {layers} | {settings} |"


def _shown(model: str) -> str:
    """The model's name, with its adapter's; of an absolute path only the folder."""
    return "+".join(PurePath(one).name if PurePath(one).is_absolute() else one for one in model.split("+"))


def _heads(classes: Mapping[str, Sequence[str]]) -> str:
    rows = "\n".join(
        f"| {markdown(task)} | {len(names)} | {markdown(', '.join(names[:4]))}, … |" for task, names in classes.items()
    )
    return (
        "One encoder serves several tasks, each with a head of its own: it isn't merged. `heads.safetensors` holds"
        " weight, bias and scale by task, `heads.json` the names of the classes. Where the model is a classifier, it"
        " holds all heads one behind the other, its labels are `TASK/CLASS`, and the answer to a task is the likeliest"
        f" of that task's rows.\n\n| task | classes | |\n|---|---|---|\n{rows}"
    )


def _extension(vocabulary: Vocabulary) -> str:
    shown = ", ".join(code(token) for token in vocabulary.extra[:8])
    more = f" and {len(vocabulary.extra) - 8} more" if len(vocabulary.extra) > 8 else ""
    return (
        f"The base's tokens keep their ids. {len(vocabulary.extra)} tokens of the other models follow: {shown}{more}."
        " A model that lacks a token took part with the base's row for it, else with the mean over those that have it."
    )
