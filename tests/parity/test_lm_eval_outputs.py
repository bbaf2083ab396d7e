"""Each of lm-eval's output types by its real command on an exported checkpoint: equal values for the same items."""

import gzip
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.candidate import Candidate
from models.merge.recipe import parse_recipes
from models.merge.source import MergedSource
from models.paths.pool import Pool
from models.sources.checkpoint import open_checkpoint
from tasks.objectives.objectives import Objectives
from tasks.objectives.tokens import windows
from tasks.project.offline import offline_environment
from tasks.project.workspace import open_workspace
from tests.small_models import write_path
from tests.small_tasks import write_items, write_profile, write_task
from tests.warm import programs

ITEMS = {"search": 3, "selection": 2, "test": 4}
ROWS = 40
SHARED = (Path(os.environ.get("HM3_SHARED", "")) / "data" / "math.test.jsonl.gz").is_file()
PATH = Candidate("a", (("merged", 0), ("b", 1), ("a", 1), ("merged", 2)))
SENTENCE = "the quick brown fox jumps over a lazy dog and seven wise owls count 1234567890 stars in Question Answer: "
WORDS = SENTENCE.split()
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

RECIPE = """
merge_method: linear
models: [{model: a, parameters: {weight: 0.7}}, {model: b, parameters: {weight: 0.5}}]
"""
MEAN = {"aggregation": "mean", "higher_is_better": True}
GENERATE = {"until": ["\n"], "do_sample": False, "max_gen_toks": 6}
FILTERS = [
    {"name": "whole", "filter": [{"function": "take_first"}]},
    {"name": "first-word", "filter": [{"function": "regex", "regex_pattern": r"(\S+)"}, {"function": "take_first"}]},
]
TASKS = {
    "single": {"metric_list": [{"metric": "acc", **MEAN}, {"metric": "perplexity"}]},
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": " ",
        "metric_list": [{"metric": name} for name in ("acc", "acc_norm", "brier_score")],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    },
    "generated": {
        "output_type": "generate_until",
        "generation_kwargs": GENERATE,
        "doc_to_target": "{{generated}}",
        "filter_list": FILTERS,
        "metric_list": [{"metric": "exact_match", **MEAN}, {"metric": "chrf"}],
    },
    "shots": {
        "output_type": "generate_until",
        "generation_kwargs": GENERATE,
        "training_split": "train",
        "fewshot_split": "train",
        "num_fewshot": 2,
        "metric_list": [{"metric": "chrf"}, {"metric": "exact_match", **MEAN}],
    },
}
EXACT = ("generated", "shots", "gsm8k")
CHAT = ("choice_chat", "shots")


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """Base, ``a`` and ``b`` with a tokenizer of bytes and a few words, a chat template and room for long prompts."""
    folder = tmp_path_factory.mktemp("family")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 20, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )
    found = {}
    for seed, name in enumerate(("base", "a", "b")):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(fast),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=2048,
            initializer_range=0.3,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
        found[name] = folder / name
        LlamaForCausalLM(config).save_pretrained(found[name])
        fast.save_pretrained(found[name])
    return found


@pytest.fixture(scope="module")
def sources(family):
    opened = {name: open_checkpoint(folder) for name, folder in family.items()}
    (recipe,) = parse_recipes(RECIPE, "recipe")
    return opened | {"merged": MergedSource(recipe, opened.__getitem__)}


@pytest.fixture(scope="module")
def exported(sources, family, tmp_path_factory):
    """The path, deeper than the base and through a merge, as a checkpoint."""
    return write_path(sources, PATH, tmp_path_factory.mktemp("exported") / "path", family["base"])


@pytest.fixture(scope="module")
def pool(sources):
    pool = Pool(sources["base"].config, dtype=torch.float64)
    for name, source in sources.items():
        pool.add(name, source)
    return pool


def rows(exported):
    """Items; every second one asks for what the exported model says."""
    from transformers import AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(exported), AutoTokenizer.from_pretrained(exported)
    generator = torch.Generator().manual_seed(5)

    def words(count):
        return " ".join(WORDS[one] for one in torch.randint(len(WORDS), (count,), generator=generator).tolist())

    found = []
    for number in range(ROWS):
        prompt = words(3 + number % 7)
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        said = tokenizer.decode(model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :])
        item = {"prompt": prompt, "answer": " " + words(1 + number % 3), "generated": said.partition("\n")[0]}
        item |= {"choices": [words(1 + one) for one in range(3)], "gold": number % 2}
        if number % 2:
            item["generated"] = words(2)
        else:
            item["answer"] = tokenizer.decode(model(ids).logits[0, -1].argmax())
        found.append(item | {"text": words(10 + 100 * number)})
    return found


@pytest.fixture(scope="module")
def workspace(exported, tmp_path_factory):
    """A project whose tasks have one file each, but for the one with examples, which has a file for every split."""
    root = tmp_path_factory.mktemp("project")
    items = rows(exported)
    write_items(root / "items.jsonl", items)
    files = {"train": items[:12], "search": items[12:16], "selection": items[16:20], "test": items[20:]}
    for name, own in files.items():
        write_items(root / f"{name}.jsonl", own)
    everything, split = {"test": "items.jsonl"}, {name: f"{name}.jsonl" for name in files}
    for name, changes in TASKS.items():
        files = {"data_files": split if name == "shots" else everything}
        write_task(root, name, **{"num_fewshot": 0, **changes, "dataset_kwargs": files})
    chat = TASKS["choice"] | {"dataset_kwargs": {"data_files": everything}, "gen_prefix": "So:"}
    write_task(root, "choice_chat", **chat)
    names = {"single": "acc", "choice": "acc", "rolling": "bits_per_byte", "generated": "exact_match,whole"}
    objectives = [{"name": one, "task": one, "metric": metric, "items": ITEMS} for one, metric in names.items()]
    shots = {"name": "shots", "task": "shots.yaml", "metric": "chrf", "scale": 0.01, "items": ITEMS}
    objectives.append(shots)
    if SHARED:
        files = {"train": "$HM3_SHARED/data/math.train.jsonl.gz", "test": "$HM3_SHARED/data/math.test.jsonl.gz"}
        asked = {"task": "gsm8k", "metric": "exact_match", "filter": "flexible-extract", "shots": 2}
        objectives.append({"name": "gsm8k", **asked, "data": {"files": files}, "items": ITEMS})
    write_profile(root, objectives, dtype="float64")
    asked = {"name": "choice_chat", "task": "choice_chat", "items": ITEMS}
    (root / "profiles" / "chat.yaml").write_text(
        yaml.safe_dump(
            yaml.safe_load((root / "profiles/p.yaml").read_text())
            | {"objectives": [asked, shots], "chat_template": True}
        )
    )
    (root / "profiles" / "chat").symlink_to(root / "profiles" / "p")
    return open_workspace("p", root)


@pytest.fixture(scope="module")
def ours(workspace, family):
    """Objectives without and with the chat template."""
    return {name: Objectives(open_workspace(name, workspace.root), "test", family["base"]) for name in ("p", "chat")}


def start(workspace, exported, out, names, samples, *options):
    """lm-eval's command on some tasks, each restricted to some rows of its data."""
    command = [programs() / "python", "-m", "lm_eval", "run", "--model", "hf"]
    command += ["--model_args", f"pretrained={exported},dtype=float64", "--device", "cpu"]
    command += ["--include_path", str(workspace.task_folder), "--output_path", str(out), "--tasks", ",".join(names)]
    environment = {**os.environ, **offline_environment(out), "OMP_NUM_THREADS": "1", "LMEVAL_LOG_LEVEL": "WARNING"}
    return subprocess.Popen(
        [*command, "--samples", json.dumps(samples), *options],
        cwd=workspace.root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def indices(path, part):
    """Rows of a file that are the items of a part, in the order of the file, in which lm-eval takes them."""
    content = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(content.index(doc) for doc in part.built.docs)


@pytest.fixture(scope="module")
def theirs(workspace, exported, ours, tmp_path_factory):
    """What the command prints, without and with the chat template; both run at once."""
    root, samples = workspace.root, {"p": {}, "chat": {}}
    for name, objectives in ours.items():
        for objective, one in objectives.composed.items():
            file = root / ("test.jsonl" if objective == "shots" else "items.jsonl")
            if objective != "gsm8k":
                samples[name][objective] = indices(file, one.parts[0])
    if SHARED:
        samples["p"]["gsm8k"] = place_gsm8k(root, ours["p"].composed["gsm8k"].parts[0].built.docs)
    running, results = {}, {}
    for name, options in (("p", ("--num_fewshot", "2")), ("chat", ("--apply_chat_template",))):
        out = tmp_path_factory.mktemp(name)
        running[name] = start(workspace, exported, out, samples[name], samples[name], *options), out
    for name, (process, out) in running.items():
        try:
            said, _ = process.communicate(timeout=400)
        finally:
            process.kill()
        assert process.returncode == 0, said[-3000:]
        (result,) = out.rglob("results_*.json")
        results[name] = json.loads(result.read_text())["results"]
    return results


def place_gsm8k(root, docs):
    """Put our items where the built-in task looks for its data set when it is run from here; returns their rows."""
    folder = root / "openai" / "gsm8k"
    write_items(folder / "test.jsonl", docs)
    (folder / "train.jsonl").write_bytes(
        gzip.decompress((Path(os.environ["HM3_SHARED"]) / "data/math.train.jsonl.gz").read_bytes())
    )
    files = [{"split": split, "path": f"{split}.jsonl"} for split in ("train", "test")]
    configs = {"configs": [{"config_name": "main", "data_files": files}]}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(configs)}---\n")
    return list(range(len(docs)))


@pytest.fixture(scope="module")
def found(ours, pool):
    """Scores by item, and results by task, of the path in memory."""
    return {name: objectives.evaluate(pool, PATH) for name, objectives in ours.items()}


def values(results):
    return {key: one for key, one in results.items() if "," in key and "_stderr" not in key}


GSM8K = pytest.param(
    "gsm8k", marks=pytest.mark.skipif(not SHARED, reason="HM3_SHARED names no folder with data/math.test.jsonl.gz")
)


@pytest.mark.parametrize("name", [*TASKS, GSM8K])
def test_every_metric_equals_that_of_the_command(name, found, theirs):
    wanted, got = values(theirs["p"][name]), found["p"][1][name][name]
    assert len(got) == len(wanted) >= 2
    if name in EXACT:
        assert got == wanted
    else:
        assert got == pytest.approx(wanted, rel=1e-9, abs=1e-9)
    if name == "generated":
        assert 0 < got["exact_match,whole"] < 1
    if name == "single":
        assert 0 < got["acc,none"] < 1


def test_chat_templates_are_applied_as_the_command_does(found, theirs):
    for name in CHAT:
        assert found["chat"][1][name][name] == pytest.approx(values(theirs["chat"][name]), rel=1e-9, abs=1e-9)
    assert values(theirs["chat"]["shots"]) != values(theirs["p"]["shots"])


def test_means_over_items_are_what_the_command_prints_of_means(found, theirs):
    scores = {name: sum(one) / len(one) for name, one in found["p"][0].items.items()}
    for name, key in (("single", "acc,none"), ("choice", "acc,none"), ("generated", "exact_match,whole")):
        assert scores[name] == pytest.approx(theirs["p"][name][key], abs=1e-12)


def test_a_long_text_is_scored_in_windows(ours, pool):
    rolling = ours["p"].composed["rolling"].parts[0]
    asked = [instance for item in rolling.built.requests for instance in item]
    assert max(map(len, windows(ours["p"].tokenizer(), asked, pool.max_length))) > 1
    assert {len(one) for one in windows(ours["p"].tokenizer(), asked, 2**30)} == {1}
