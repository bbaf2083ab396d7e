"""`hm3 init`: a profile for models that one has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.options import JsonOption, emit
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
    dtype: Annotated[str, typer.Option(help="Number format of scoring: float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="torch device of scoring.")] = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Write a profile for your own models, list it in params.yaml, and run doctor on it.

    A model is a folder with safetensors, `FILE.gguf`, `hub:ORG/NAME@REVISION`, `package:DISTRIBUTION:FILE.gguf`, or
    one of these with a LoRA adapter, `MODEL+ADAPTER`. A task is one of lm-eval, or of a file in `profiles/NAME/`;
    where its data has fewer items than usual, as many are asked for as there are. Give the name alone to list and
    check a profile that you wrote yourself.

    Example: `hm3 init mine --base hub:Qwen/Qwen2.5-0.5B --expert math=models/math --expert code=models/code
    --task math=gsm8k:exact_match,flexible-extract --task code=mbpp`
    """
    from tasks.families import profile
    from tasks.project.workspace import find_root, profiles, read_yaml, state_folder, validate
    from tasks.schema.params import Params
    from tasks.schema.profile import Items

    root, here = find_root(), Path.cwd()
    written: str | None = None
    fewer: list[str] = []
    if base is None and not expert and not task:
        if name not in profiles(root):
            raise BadInput(f"profile {name!r}: unknown; give --base, --expert and --task to write it")
        profile.list_profile(root, name)
    else:
        if base is None or not expert or not task:
            missing = next(
                option for option, given in (("--base", base), ("--expert", expert), ("--task", task)) if not given
            )
            raise BadInput(f"{missing}: missing; a profile needs a base, an expert and a task at least")
        profile.require_free(root, name)
        params = validate(Params, read_yaml(root / "params.yaml"), "params.yaml")
        experts = profile.pairs("--expert", expert)
        state = state_folder(root)
        settle(root, state, 1, hub=True)
        content: dict[str, Any] = {
            "description": f"{', '.join(experts)} from {base}",
            "base": profile.reference(root, here, base),
            "experts": {one: profile.reference(root, here, model) for one, model in experts.items()},
            "objectives": profile.objectives(profile.pairs("--task", task), state, root / "profiles" / name),
            "dtype": dtype,
            "device": device,
            "hub": True,
        }
        items = profile.available(root, name, params, content, state)
        for one in content["objectives"]:
            if one["name"] in items and items[one["name"]] != Items():
                one["items"] = items[one["name"]].model_dump()
                fewer.append(f"{one['name']} {'/'.join(map(str, one['items'].values()))}")
        if own := profile.fitting(params, max((one.search for one in items.values()), default=10**9)):
            content["params"] = own
        written = profile.write_profile(root, name, content).relative_to(root).as_posix()
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
        diagnosis = look_aloud(name, output(), root)
    if not diagnosis.sound:
        raise typer.Exit(2)
