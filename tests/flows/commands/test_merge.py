"""`hm3 merge RECIPE OUT`: what it writes, what a kill leaves, and one line for everything that can't be used."""

import json
import logging
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from flows.cli import main
from tests.flows.project import hm3
from tests.small_adapters import make_adapter
from tests.warm import programs

RECIPE = {
    "merge_method": "ties",
    "base_model": "base",
    "models": [
        {"model": "a", "parameters": {"weight": 0.5, "density": 0.5}},
        {"model": "b", "parameters": {"weight": 0.7, "density": 0.5}},
    ],
}
HEADER = 2**16


@pytest.fixture(scope="module")
def family(make_family, tmp_path_factory):
    """Base, experts a and b, and an adapter; not to be written to."""
    folder = tmp_path_factory.mktemp("family")
    make_family(folder)
    make_adapter(folder / "adapter", folder / "base", r=2, target_modules=["q_proj"])
    return folder


@pytest.fixture
def root(family, tmp_path):
    return shutil.copytree(family, tmp_path / "work")


@pytest.fixture
def merge(root, monkeypatch, capsys):
    """The command in this process, where the libraries are imported already."""

    def call(recipe, *options):
        text = recipe if isinstance(recipe, str) else yaml.safe_dump(recipe)
        (root / "recipe.yaml").write_text(text)
        capsys.readouterr()  # what making the models said
        with monkeypatch.context() as patch:
            patch.chdir(root)
            patch.setattr(sys, "argv", ["hm3", "merge", "recipe.yaml", "out", *options])
            with pytest.raises(SystemExit) as ended:
                main()
        said = capsys.readouterr()
        return subprocess.CompletedProcess("merge", ended.value.code or 0, said.out, said.err)

    return call


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def load_quietly(folder, caplog):
    """The model, if neither transformers nor Python has anything to warn of."""
    caplog.clear()
    transformers_logging.enable_propagation()
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    transformers_logging.disable_propagation()
    assert not caplog.records
    assert not any(report.values())
    return model, tokenizer


def test_what_is_written_loads_without_a_warning(merge, root, caplog):
    """A path: a merge of two models, then layers of it and of another, one of them twice."""
    slices = [("r", 0, 2), ("a", 1, 2), ("a", 1, 3)]
    path = {
        "merge_method": "passthrough",
        "slices": [{"sources": [{"model": model, "layer_range": [low, high]}]} for model, low, high in slices],
    }
    done = merge(yaml.safe_dump_all([{"name": "r", **RECIPE}, path]))
    assert (done.returncode, done.stdout) == (0, "out: written\n")
    model, tokenizer = load_quietly(root / "out", caplog)
    assert model.config.num_hidden_layers == 5
    stored = load_file(root / "out" / "model.safetensors")
    assert "lm_head.weight" not in stored
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    for name in (name for name in stored if name.startswith("model.layers.2.")):
        assert torch.equal(stored[name], stored[name.replace(".2.", ".3.")])
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(root / "base").chat_template is not None
    assert {"recipe.yaml", "README.md", "generation_config.json"} <= {path.name for path in (root / "out").iterdir()}


def test_an_adapter_is_merged_and_a_vocabulary_extended(merge, root, caplog):
    tokenizer = AutoTokenizer.from_pretrained(root / "b")
    tokenizer.add_tokens(["<tool>"], special_tokens=True)
    tokenizer.save_pretrained(root / "b")
    model = AutoModelForCausalLM.from_pretrained(root / "b")
    model.resize_token_embeddings(42, mean_resizing=False)
    model.save_pretrained(root / "b")
    recipe = json.loads(json.dumps(RECIPE).replace('"a"', '"base+adapter"'))
    assert merge(recipe).returncode == 0
    model, tokenizer = load_quietly(root / "out", caplog)
    assert tokenizer.convert_tokens_to_ids("<tool>") == 41 and model.config.vocab_size == 42
    again = contents(root / "out")
    shutil.move(root / "out" / "recipe.yaml", root / "again.yaml")
    shutil.rmtree(root / "out")
    assert merge((root / "again.yaml").read_text()).returncode == 0
    assert contents(root / "out") == again


def test_a_bar_is_shown_on_a_terminal_and_the_last_line_says_where(root):
    (root / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    terminal, side = pty.openpty()
    process = subprocess.Popen([programs() / "hm3", "merge", "recipe.yaml", "out"], cwd=root, stdout=side, stderr=side)
    os.close(side)
    said = b""
    while True:
        try:
            said += os.read(terminal, 4096)
        except OSError:  # the other side is closed
            break
    os.close(terminal)
    assert process.wait() == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said.decode()).replace("\r", "\n").split("\n")
    count = len(load_file(root / "out" / "model.safetensors"))
    assert any("writing out" in line and f"{count}/{count} tensors" in line for line in shown)
    assert [line for line in shown if line.strip()][-1] == "out: written"


def test_no_more_is_imported_than_a_merge_needs(root):
    program = (
        "import sys; from flows.cli import main; sys.argv = ['hm3', 'merge', 'recipe.yaml', 'out']\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    (root / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "torch" in loaded and (root / "out").is_dir()
    assert "transformers" in loaded  # it is asked whether it loads what was written
    assert not loaded & {"lm_eval", "mlflow", "prefect", "pandas", "pymoo", "datasets", "dvc"}


def test_a_killed_merge_leaves_no_folder_that_looks_whole(make_family, tmp_path):
    """Killed among the tensors; then the same command makes the model."""
    make_family(tmp_path, layers=12, hidden_size=192, intermediate_size=768)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    before = sorted(path.name for path in tmp_path.iterdir())
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "merge", "recipe.yaml", "out"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    file, ends = tmp_path / ".out.partial" / "0.part", time.monotonic() + 60
    whole = (tmp_path / "base" / "model.safetensors").stat().st_size
    while not (file.is_file() and file.stat().st_size > HEADER + whole / 10):
        assert process.poll() is None and time.monotonic() < ends
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert file.stat().st_size < whole
    with pytest.raises(Exception, match=r"(?i)header"):
        load_file(file)  # the part isn't even a file of safetensors
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == before
    done = hm3(tmp_path, "merge", "recipe.yaml", "out")
    assert done.returncode == 0 and done.stdout == "out: written\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "out"])
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def edit(folder, change, file="model.safetensors"):
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file, metadata={"format": "pt"})


def spoil(value):
    def change(root):
        name = "model.layers.2.mlp.up_proj.weight"
        edit(root / "b", lambda tensors: tensors[name].view(-1)[7:8].fill_(float(value)))

    return change


def pickled(root):
    torch.save(AutoModelForCausalLM.from_pretrained(root / "b").state_dict(), root / "b" / "pytorch_model.bin")
    (root / "b" / "model.safetensors").unlink()


def config(root, **changes):
    content = json.loads((root / "b" / "config.json").read_text())
    (root / "b" / "config.json").write_text(json.dumps(content | changes))


def without_tokenizer(root, make):
    make(root / "b", vocabulary=44)
    (root / "b" / "tokenizer.json").unlink()


def foreign_adapter(root):
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    edit(root / "adapter", lambda tensors: tensors.update({key: torch.zeros(2, 32)}), "adapter_model.safetensors")


def recipe(**changes):
    return RECIPE | changes


def setting(**parameters):
    return recipe(models=[{"model": "a", "parameters": {"weight": 0.5} | parameters}, RECIPE["models"][1]])


def passthrough(model, *layers):
    return {"merge_method": "passthrough", "slices": [{"sources": [{"model": model, "layer_range": list(layers)}]}]}


def as_it_is(root):
    pass


ADAPTED = json.loads(json.dumps(RECIPE).replace('"a"', '"base+adapter"'))
WEIGHTS, LORA = "model.safetensors", "adapter_model.safetensors"
CASES = {
    # what is done to the models (root, make_llama), the recipe, and file, field and remedy of the message
    "unknown key": (as_it_is, recipe(base="base"), ("recipe.yaml", "base", "remove it or mend its spelling")),
    "unknown key of a model": (
        as_it_is,
        recipe(models=[{"model": "a", "wieght": 1}, RECIPE["models"][1]]),
        ("recipe.yaml", "models.0.wieght", "remove it or mend its spelling"),
    ),
    "unknown parameter": (as_it_is, setting(wieght=1), ("recipe.yaml", "models.0.parameters.wieght", "has weight")),
    "unknown method": (as_it_is, recipe(merge_method="tise"), ("recipe.yaml", "tise", "there are")),
    "weight that is no number": (as_it_is, setting(weight="much"), ("recipe.yaml", "models.0.parameters.weight", "mu")),
    "weight that is infinite": (as_it_is, setting(weight=float("inf")), ("recipe.yaml", "weight", "must be finite")),
    "density below 0": (as_it_is, setting(density=-0.1), ("recipe.yaml", "parameters.density", "between 0 and 1")),
    "density above 1": (as_it_is, setting(density=1.5), ("recipe.yaml", "parameters.density", "between 0 and 1")),
    "no recipe": (as_it_is, "", ("recipe.yaml", "holds no recipe", "see `hm3 merge --help`")),
    "no YAML": (as_it_is, "models: [", ("recipe.yaml", "line", "not readable as YAML")),
    "tokenizer of another model": (
        as_it_is,
        recipe(tokenizer_source="c"),
        ("recipe.yaml", "tokenizer_source", "must be `union`, `base`"),
    ),
    "unknown model": (
        as_it_is,
        json.loads(json.dumps(RECIPE).replace('"b"', '"nowhere"')),
        ("nowhere", "no such folder", "a model is a folder with"),
    ),
    "another architecture": (
        lambda root: config(root, architectures=["MistralForCausalLM"]),
        RECIPE,
        ("b: config.json", "architectures: MistralForCausalLM", "only fine-tunes of one base"),
    ),
    "unknown architecture": (
        lambda root: config(root, architectures=["PhantomLM"]),
        RECIPE,
        ("b: config.json", "architectures: PhantomLM", "there are LlamaForCausalLM"),
    ),
    "another number of layers": (
        lambda root, make: make(root / "b", layers=4),
        RECIPE,
        ("b: config.json", "num_hidden_layers: 4", "only fine-tunes of one base"),
    ),
    "another width": (
        lambda root, make: make(root / "b", hidden_size=32),
        RECIPE,
        ("b: config.json", "hidden_size: 32", "only fine-tunes of one base"),
    ),
    "another vocabulary without a tokenizer": (
        without_tokenizer,
        RECIPE,
        ("b: tokenizer.json", "vocab_size is 44", "put the tokenizer that it was trained with into its folder"),
    ),
    "no config": (
        lambda root: (root / "b" / "config.json").unlink(),
        RECIPE,
        ("b", "config.json", "a model is a folder"),
    ),
    "no weights": (lambda root: (root / "b" / WEIGHTS).unlink(), RECIPE, ("b", WEIGHTS, "fetch or copy")),
    "truncated weights": (
        lambda root: (root / "b" / WEIGHTS).write_bytes((root / "b" / WEIGHTS).read_bytes()[:-100]),
        RECIPE,
        ("b", WEIGHTS, "fetch or copy it again"),
    ),
    "missing tensor": (
        lambda root: edit(root / "b", lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight")),
        RECIPE,
        ("b", "model.layers.1.mlp.up_proj.weight", "fetch or copy the checkpoint again"),
    ),
    "pickled weights": (pickled, RECIPE, ("b", "pytorch_model.bin", "save_pretrained(")),
    "NaN": (spoil("nan"), RECIPE, ("b", "model.layers.2.mlp.up_proj.weight: holds NaN", "take another one")),
    "infinity": (spoil("-inf"), RECIPE, ("b", "model.layers.2.mlp.up_proj.weight: holds NaN", "take another one")),
    "unknown layer": (as_it_is, passthrough("a", 1, 4), ("slices.0", "layer_range: layer 3 is unknown", "0 to 2")),
    "layers backwards": (as_it_is, passthrough("a", 2, 1), ("recipe.yaml", "layer_range", "can't be the smaller")),
    "adapter of another base": (
        foreign_adapter,
        ADAPTED,
        ("adapter", "q_proj.lora_A.weight: gives [16, 32]", "take the adapter of this base"),
    ),
    "adapter without weights": (
        lambda root: (root / "adapter" / LORA).unlink(),
        ADAPTED,
        ("adapter", LORA, "missing; fetch or copy it again"),
    ),
    "folder that is there": (
        lambda root: shutil.copytree(root / "a", root / "out"),
        RECIPE,
        ("out", "is there already", "name another folder or remove it"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_told_in_one_line_and_nothing_is_written(merge, root, make_llama, case):
    spoils, text, parts = CASES[case]
    spoils(*(root, make_llama)[: spoils.__code__.co_argcount])
    before = contents(root)
    done = merge(text)
    assert done.returncode == 2, done.stderr
    line = done.stderr.rstrip("\n")
    assert line.startswith("hm3: ") and "\n" not in line
    for part in parts:
        assert part in line
    after = contents(root)
    after.pop("recipe.yaml")
    assert after == before and not (root / ".out.partial").exists()
    assert done.stdout == ""


@pytest.mark.parametrize("case", ["NaN", "unknown key"])
def test_bad_input_ends_the_process_with_2(root, case):
    spoils, text, _ = CASES[case]
    spoils(root)
    (root / "recipe.yaml").write_text(yaml.safe_dump(text))
    done = hm3(root, "merge", "recipe.yaml", "out")
    assert done.returncode == 2 and re.fullmatch(r"hm3: .*\n", done.stderr) and done.stdout == ""
    assert not (root / "out").exists()
