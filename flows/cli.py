"""The command line. Each command imports what it needs when it runs, so that `hm3 --help` answers at once."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.bench.command import app as bench
from flows.commands.choose import choose
from flows.commands.evaluate import evaluate
from flows.commands.export import export
from flows.commands.init import init
from flows.commands.options import JsonOption, ProfileOption, check_split, emit, progress_of_command
from flows.commands.promote import promote
from flows.commands.zoo import zoo
from flows.processes.settle import enter
from flows.screen.watch import output
from models.errors import BadInput, Failed, one_line
from tasks.project.processes import uncollected
from tasks.scoring.where import EngineName

app = typer.Typer(
    name="hm3",
    help="Merge the fine-tunes of one base model into a Pareto front of models, and choose from it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Dtype = Literal["float32", "bfloat16", "float16", "float64"]


def main() -> None:
    """The console script: bad input is one line on stderr and exit 2, failed work one line and exit 1."""
    enter()
    try:
        app()
    except (BadInput, Failed) as error:
        sys.stderr.write(f"hm3: {one_line(error)}\n")
        sys.exit(2 if isinstance(error, BadInput) else 1)


@app.command()
def run(
    profile: ProfileOption = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("-S", "--set", metavar="KEY=VALUE", help="Run with another parameter, as a DVC experiment."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute everything again, and reuse no score.")] = False,
    push: Annotated[bool, typer.Option("--push", help="Send the outs to DVC's default remote at the end.")] = False,
    engine: Annotated[
        EngineName | None,
        typer.Option(
            help="Where candidates are scored: in the stages, or by Ray workers. Default: HM3_ENGINE, inline."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run the whole pipeline: make or check the models, search, choose the front, register it.

    What an interrupted run finished is kept; stages whose inputs did not change are not run. With `-S`, params.yaml
    stays as it is: the run happens in a working tree of its own and is kept as a DVC experiment. `--engine ray` scores
    on the cluster that `RAY_ADDRESS` or the profile names, and without either on a new one of this machine.

    Example: `hm3 run --profile tiny -S search.budget=60000`
    """
    from flows.commands.run import run_pipeline

    console = output(stderr=as_json)
    result = run_pipeline(profile, settings or [], fresh=fresh, push=push, engine=engine, console=console)
    if as_json:
        emit(result)


@app.command()
def stage(
    name: Annotated[str, typer.Argument(help="zoo, sample, dataset, train, search or pareto.")],
    profile: ProfileOption = None,
) -> None:
    """Run one stage, bare: what dvc.yaml calls.

    Example: `hm3 stage search --profile tiny`
    """
    from flows.stage import run_stage

    run_stage(name, profile, output(stderr=True))


@app.command()
def publish(profile: ProfileOption = None, as_json: JsonOption = False) -> None:
    """Send the front to the MLflow registry; does nothing if this very front is there.

    Example: `hm3 publish --profile tiny`
    """
    from tasks.project.workspace import open_workspace

    workspace = open_workspace(profile)
    from tasks.registry.publish import publish as send

    with progress_of_command() as progress:
        published = send(workspace, progress)
    if as_json:
        emit(asdict(published))
    else:
        output().print(str(published), highlight=False)


app.command()(init)
app.command()(zoo)


@app.command()
def doctor(profile: ProfileOption = None, as_json: JsonOption = False) -> None:
    """Check everything that a run needs before anything is computed, and print what it will cost.

    Each line comes as soon as it is known; what is quickly looked at comes first.

    Example: `hm3 doctor --profile tiny`
    """
    from flows.commands.doctor import look, look_aloud

    if as_json:
        diagnosis = look(profile)
        emit(diagnosis.to_json())
    else:
        diagnosis = look_aloud(profile, output())
    if not diagnosis.sound:
        raise typer.Exit(2)


@app.command()
def merge(
    recipe: Annotated[Path, typer.Argument(help="Recipe in mergekit's YAML, one document or several.")],
    out: Annotated[str, typer.Argument(help="Folder to write, or s3://bucket/prefix; it must not exist yet.")],
    device: Annotated[str, typer.Option(help="torch device on which tensors are merged.")] = "cpu",
    dtype: Annotated[
        Dtype | None, typer.Option(help="Number format to store. Default: the recipe's, or the models'.")
    ] = None,
) -> None:
    """Build a plain Hugging Face checkpoint from a recipe, tensor by tensor.

    Models are looked for from here, from the recipe's folder, and from the project's folder. A model is a Hugging Face
    folder, or `FOLDER+ADAPTER` with a LoRA adapter of peft. Tokens that only some models know are kept; with
    `tokenizer_source` a recipe asks for the vocabulary of one of them.

    Example: `hm3 merge my-recipe.yaml merged/ --dtype bfloat16`, where my-recipe.yaml holds

        merge_method: task_arithmetic
        base_model: models/base
        models:
          - {model: models/math, parameters: {weight: 0.6}}
          - {model: models/code, parameters: {weight: 0.4}}
    """
    from tasks.front.checkpoint import merge_recipe
    from tasks.project.workspace import find_root
    from tasks.storage.folders import destination

    places = [Path.cwd(), recipe.absolute().parent]
    with suppress(BadInput):  # a recipe needs no project
        places.append(find_root())
    with progress_of_command() as progress, destination(out, progress) as folder:
        merge_recipe(recipe, folder, places, device, dtype, progress)
    output().print(f"{out}: written", highlight=False)


app.command()(evaluate)


@app.command()
@uncollected()
def front(
    profile: ProfileOption = None,
    split: Annotated[str | None, typer.Option(help="Show one split only: test, selection or search.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the members of the front: scores by split, layers, what they take to run, what each gives up, aliases.

    A model gives up what it loses on its worst task against the balanced model of full depth, in percent of that
    model's score. It serves the preference for which it leads the other members by most. A corner is the best of one
    objective, listed beside the members.

    Parameters, milliseconds a token one text and 32 texts at a time, and bytes of KV cache a token are measured on this
    machine when they are first shown, where the models are. Aliases are those of the MLflow registry at this moment.

    Example: `hm3 front --split selection`
    """
    from tasks.front.front import Front
    from tasks.front.running_costs import running_costs
    from tasks.front.table import front_table, summary
    from tasks.project.workspace import open_workspace
    from tasks.registry.aliases import aliases_now

    workspace = open_workspace(profile)
    found = Front.read(workspace.run)
    splits = reversed(found.splits) if split is None else [check_split(split)]
    with progress_of_command() as progress:
        costs = running_costs(workspace, found, progress)
    aliases = aliases_now(workspace, found)
    if as_json:
        more = {"aliases_from": aliases.source, "costs_from": costs.note, "notes": aliases.notes}
        emit(summary(found, aliases.of, costs) | more)
        return
    for one in splits:
        output().print(front_table(found, one, aliases.of, costs), "")
    output().print(costs.note, style="dim" if costs.of else "yellow", highlight=False)
    for note in aliases.notes:
        output().print(note, style="yellow", highlight=False)


app.command()(choose)


app.command()(export)


app.command()(promote)


@app.command()
@uncollected()
def report(profile: ProfileOption = None) -> None:
    """Write the HTML report of the front and print its path.

    Example: `hm3 report --profile tiny`
    """
    from tasks.project.workspace import open_workspace
    from tasks.report.report import write_report

    with progress_of_command() as progress:
        path = write_report(open_workspace(profile), progress)
    sys.stdout.write(f"{one_line(path)}\n")


@app.command()
def up(
    prefect_port: Annotated[int | None, typer.Option(help="Port of the Prefect server. Default: a free one.")] = None,
    mlflow_port: Annotated[int | None, typer.Option(help="Port of the MLflow server. Default: a free one.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Start a Prefect server with a worker and an MLflow server on this machine; later commands use them.

    The addresses that it prints open their pages, and are for you alone.

    Example: `hm3 up --prefect-port 4200 --mlflow-port 5000`
    """
    from rich.text import Text

    from flows.servers.up import addresses, openings
    from flows.servers.up import up as start
    from tasks.project.workspace import find_root, state_folder

    root = find_root()
    console = output(stderr=True)
    with console.status("") as status:

        def say(text: str) -> None:
            status.update(Text(text))
            if not console.is_terminal:
                console.print(text, highlight=False)

        state = state_folder(root)
        servers = start(root, state, prefect_port, mlflow_port, say)
    if as_json:
        emit(addresses(servers) | {"open": openings(servers, state)})
        return
    for name, url in openings(servers, state).items():
        output().print(f"{name:8} {url}", highlight=False, soft_wrap=True)


@app.command()
def down() -> None:
    """End the servers that `hm3 up` started, with everything under them.

    Example: `hm3 down`
    """
    from flows.servers.up import down as stop
    from tasks.project.workspace import find_root, state_folder

    ended = stop(state_folder(find_root()))
    output().print(f"ended: {', '.join(ended)}" if ended else "nothing runs", highlight=False)


app.add_typer(bench, name="bench")


if __name__ == "__main__":
    main()
