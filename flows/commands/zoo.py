"""`hm3 zoo`: experts of a base from data."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.options import CompletionOption, JsonOption, PromptOption, emit, progress_of_command, templates
from flows.processes.settle import settle
from flows.screen.watch import output


def zoo(
    name: Annotated[str, typer.Argument(help="Name of the profile that is written: profiles/NAME.yaml.")],
    base: Annotated[str, typer.Option(help="The base model: a folder, FILE.gguf, hub:ORG/NAME@REVISION or package:….")],
    data: Annotated[list[str], typer.Option(metavar="NAME=FILE.jsonl", help="Data of an expert; several times.")],
    prompt: PromptOption = "",
    completion: CompletionOption = "",
    full: Annotated[bool, typer.Option("--full", help="Train all weights, not LoRA adapters.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of each expert.")] = 200,
    rate: Annotated[float | None, typer.Option(help="AdamW's learning rate. Default: 2e-3, with --full 1e-5.")] = None,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapters.")] = 16,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a batch, padding included.")] = 2048,
    longest: Annotated[int, typer.Option(min=2, help="Tokens of the longest row; longer ones are left out.")] = 1024,
    held_out: Annotated[
        float, typer.Option(min=0.01, max=0.9, help="Share of the rows that are kept for scoring.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the trainings.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Train experts of a base on data (LoRA or all weights), and write their profile.

    A file holds one JSON object per line, gzipped or not. Rows are split by hash: most are trained on, the others
    become the items of the objectives, scored in bits per byte of the answer. Experts go to zoo/NAME/.

    Example: `hm3 zoo mine --base models/base --data math=math.jsonl --data code=code.jsonl
    --prompt 'Question: {question}\\nAnswer:' --completion ' {answer}'`
    """
    from models.files import validate
    from tasks.families import profile
    from tasks.project.workspace import find_root, read_yaml, state_folder

    root, here = find_root(), Path.cwd()
    files = {one: here / path for one, path in profile.pairs("--data", data).items()}
    state = state_folder(root)
    settle(root, state, threads, hub=base.startswith("hub:"))
    from tasks.families.experts import make_experts
    from tasks.families.finetune import Settings
    from tasks.families.spare_rows import fit_repair
    from tasks.project.references import model_finder
    from tasks.schema.params import Params

    settings = Settings(steps, rate or (1e-5 if full else 2e-3), batch_tokens, longest, rank, full, seed, held_out)
    reference, find = profile.reference(root, here, base), model_finder(state, root)
    params = validate(Params, read_yaml(root / "params.yaml"), "params.yaml")
    with progress_of_command() as progress:
        made = make_experts(
            root, name, reference, find, files, templates(prompt, completion), settings, params, progress
        )
    unrepaired = fit_repair(root, name)
    if as_json:
        emit(asdict(made))
        return
    for one, trained in made.experts.items():
        text = f"{one}: {trained.rows:,} rows, loss {trained.first_loss:.3f} → {trained.last_loss:.3f}"
        output().print(f"{text}; {made.items[one]['search']} search items", highlight=False)
    if unrepaired:
        output().print(unrepaired, highlight=False)
    output().print(f"profiles/{name}.yaml: written; next: hm3 doctor --profile {name}", highlight=False)
