"""`hm3 init`: a profile for models that one has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.options import CompletionOption, JsonOption, PromptOption, emit, templates
from flows.processes.settle import settle
from flows.screen.watch import output
from models.errors import BadInput


def init(
    name: Annotated[str, typer.Argument(help="Name of the profile: profiles/NAME.yaml.")],
    base: Annotated[str | None, typer.Option(help="The base model; its forms are above.")] = None,
    expert: Annotated[
        list[str] | None, typer.Option(metavar="NAME=MODEL", help="A fine-tune of the base; several times.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=TASK[:METRIC]", help="An objective: a task of lm-eval, by default its first metric."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE.jsonl", help="An objective on your own rows: bits per byte of their answers."),
    ] = None,
    prompt: PromptOption = "",
    completion: CompletionOption = "",
    dtype: Annotated[str, typer.Option(help="Number format of scoring: float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="torch device of scoring.")] = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Write a profile for your own models, list it in params.yaml, and run doctor on it.

    A model is a folder with safetensors, `FILE.gguf`, `hub:ORG/NAME@REVISION`, `package:DISTRIBUTION:FILE.gguf`, or
    one of these with a LoRA adapter, `MODEL+ADAPTER`. A task is one of lm-eval, or of a file in `profiles/NAME/`;
    where its data has fewer items than usual, as many are asked for as there are. Rows of your own, one JSON object a
    line that no expert was trained on, are split by hash and become the items of an objective. Budget and rungs of
    the search follow from the items and the size of the base. Give the name alone to list and check a profile that
    you wrote yourself.

    Example: `hm3 init mine --base hub:Qwen/Qwen2.5-0.5B --expert math=models/math --expert code=models/code
    --task math=gsm8k:exact_match,flexible-extract --task code=mbpp`
    """
    from models.files import validate
    from tasks.families import profile
    from tasks.families.sizing import fitting, parameter_count
    from tasks.project.workspace import find_root, profiles, read_yaml, state_folder
    from tasks.schema.params import Params
    from tasks.schema.profile import Items

    root, here = find_root(), Path.cwd()
    written: str | None = None
    fewer: list[str] = []
    unrepaired = ""
    if base is None and not expert and not task and not data:
        if name not in profiles(root):
            raise BadInput(f"profile {name!r}: unknown; give --base, --expert and --task to write it")
        profile.list_profile(root, name)
    else:
        if base is None or not expert or not (task or data):
            asked = (("--base", base), ("--expert", expert), ("--task", task or data))
            missing = next(option for option, given in asked if not given)
            raise BadInput(f"{missing}: missing; a profile needs a base, an expert and a task or data at least")
        profile.require_free(root, name)
        params = validate(Params, read_yaml(root / "params.yaml"), "params.yaml")
        experts = profile.pairs("--expert", expert)
        tasks, rows = profile.pairs("--task", task or []), profile.pairs("--data", data or [])
        if twice := sorted(set(tasks) & set(rows)):
            raise BadInput(f"--data {twice[0]}: is the name of a task, too; take another")
        state = state_folder(root)
        settle(root, state, 1, hub=True)
        size, kept = 0, None
        if rows:
            from models.sources.lora import open_model
            from tasks.families import held_out
            from tasks.project.references import model_finder

            files = {one: here / path for one, path in rows.items()}
            size = parameter_count(open_model(profile.reference(root, here, base), model_finder(state, root)))
            kept = held_out.keep(name, files, templates(prompt, completion))
        of_tasks = profile.objectives(tasks, state, root / "profiles" / name)
        content: dict[str, Any] = {
            "description": f"{', '.join(experts)} from {base}",
            "base": profile.reference(root, here, base),
            "experts": {one: profile.reference(root, here, model) for one, model in experts.items()},
            "objectives": of_tasks,
            "dtype": dtype,
            "device": device,
            "hub": True,
        }
        if of_tasks:
            items, counted = profile.available(root, name, params, content, state)
            size = counted or size
            for one in of_tasks:
                if one["name"] in items and items[one["name"]] != Items():
                    one["items"] = items[one["name"]].model_dump()
        content["objectives"] = of_tasks + (kept.objectives if kept else [])
        counts = {one["name"]: one["items"] for one in content["objectives"] if "items" in one}
        fewer = [f"{one} {'/'.join(map(str, splits.values()))}" for one, splits in counts.items()]
        search = [counts.get(one["name"], Items().model_dump())["search"] for one in content["objectives"]]
        if size and (own := fitting(params, search, size)):
            content["params"] = own
        path = profile.write_profile(root, name, content, kept.files if kept else None)
        written = path.relative_to(root).as_posix()
        for objective, splits in kept.splits.items() if kept else ():
            held_out.write_rows(root, name, objective, splits)
        from tasks.families.spare_rows import fit_repair

        unrepaired = fit_repair(root, name)
    from flows.commands.doctor import look, look_aloud

    if as_json:
        diagnosis = look(name, root)
        emit({"profile": name, "written": written, "doctor": diagnosis.to_json()})
    else:
        if written:
            output().print(
                f"{written}: written, and listed in params.yaml; change what you like in it", highlight=False
            )
        if fewer:
            output().print(f"items by split, as many as the data has: {', '.join(fewer)}", highlight=False)
        if unrepaired:
            output().print(unrepaired, highlight=False)
        diagnosis = look_aloud(name, output(), root)
    if not diagnosis.sound:
        raise typer.Exit(2)
