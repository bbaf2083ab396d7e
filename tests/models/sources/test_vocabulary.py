"""Models with different vocabularies are merged token by token, over the base's rows, and nothing is cut off."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE, Unigram
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from models.errors import BadInput
from models.merge.recipe import parse_recipes
from models.merge.source import open_recipes
from models.merge.write import merge_to_disk
from models.sources.checkpoint import open_checkpoint
from models.sources.vocabulary import Rule, Vocabulary
from models.sources.vocabulary_source import share_vocabulary, vocabulary_of

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SOUP = """
merge_method: linear
base_model: base
models:
- {model: base, parameters: {weight: 0.2}}
- {model: a, parameters: {weight: 0.3}}
- {model: b, parameters: {weight: 0.5}}
"""
WEIGHTS = {"base": 0.2, "a": 0.3, "b": 0.5}


def set_rows(folder, rows):
    """Change the number of rows, the new ones random."""
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(rows)
    for name in {EMBEDDING, HEAD} & set(tensors):
        new = torch.randn(rows, tensors[name].shape[1], generator=generator)
        kept = min(rows, len(tensors[name]))
        new[:kept] = tensors[name][:kept]
        tensors[name] = new
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": rows}))


def extend(folder, tokens, rows=None, special=False):
    """Add tokens to tokenizer and matrices."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(tokens, special_tokens=special)
    tokenizer.save_pretrained(folder)
    set_rows(folder, rows or len(tokenizer))


def permute(folder, seed=0):
    """Give the words of a tokenizer other ids, and the matrices their rows in that order."""
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    words = [word for word in vocabulary if word.startswith("w")]
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(seed)).tolist()
    moved = vocabulary | {word: vocabulary[words[place]] for word, place in zip(words, order, strict=True)}
    content["model"]["vocab"] = moved
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tensors = load_file(folder / "model.safetensors")
    for name in {EMBEDDING, HEAD} & set(tensors):
        new = tensors[name].clone()
        for word, row in vocabulary.items():
            new[moved[word]] = tensors[name][row]
        tensors[name] = new
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def rows_of(folder, name=EMBEDDING):
    """Token → row, as written."""
    tensor = load_file(folder / "model.safetensors")[name]
    return {token: tensor[row] for token, row in AutoTokenizer.from_pretrained(folder).get_vocab().items()}


def merge(root, text=SOUP, out="out"):
    merge_to_disk(parse_recipes(text, "recipe.yaml"), root / out, root.joinpath)
    return root / out


def same(one, other):
    assert set(one) == set(other)
    for token, row in one.items():
        torch.testing.assert_close(row, other[token], rtol=0, atol=1e-6, msg=token)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def tied(request):
    return request.param


@pytest.fixture
def root(make_family, tmp_path, tied):
    make_family(tmp_path, tied=tied)
    return tmp_path


def expected_union(root, name=EMBEDDING):
    """The rule, token by token."""
    held = {model: rows_of(root / model, name) for model in WEIGHTS}
    result = {}
    for token in dict.fromkeys(token for rows in held.values() for token in rows):
        having = [rows[token] for rows in held.values() if token in rows]
        default = held["base"].get(token, torch.stack(having).mean(0))
        result[token] = sum(weight * held[model].get(token, default) for model, weight in WEIGHTS.items())
    return result


def test_added_tokens_are_kept_and_the_bases_ids_stay(root, tied):
    extend(root / "a", ["<tool>", "both"])
    extend(root / "b", ["<plan>", "both"], special=True)
    out = merge(root)
    for name in (EMBEDDING,) if tied else (EMBEDDING, HEAD):
        same(rows_of(out, name), expected_union(root, name))
    tokenizer, before = (AutoTokenizer.from_pretrained(root / name) for name in ("out", "base"))
    assert tokenizer.get_vocab() == before.get_vocab() | {"<tool>": 41, "both": 42, "<plan>": 43}
    assert tokenizer.encode("w5 <tool> both<plan> w7", add_special_tokens=False) == [5, 41, 42, 43, 7]
    assert tokenizer.decode([5, 43, 41], skip_special_tokens=True) == "w5 <tool>"
    assert tokenizer.chat_template == before.chat_template is not None
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.vocab_size == 44 == model.get_input_embeddings().weight.shape[0]
    assert model(torch.tensor([[5, 43]])).logits.shape[-1] == 44
    assert "&lt;tool&gt;" in (out / "README.md").read_text()
    (written,) = parse_recipes((out / "recipe.yaml").read_text(), "x")
    assert written.tokenizer_source == "union"  # or mergekit would cut the matrices


def test_equal_vocabularies_change_nothing(root):
    shutil.rmtree(root / "b")
    shutil.copytree(root / "a", root / "b")
    sources = {name: open_checkpoint(root / name) for name in WEIGHTS}
    assert share_vocabulary(sources) == sources
    before = merge(root, out="plain")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (before / file).read_bytes() == (root / "base" / file).read_bytes()
    assert "tokenizer_source" not in (before / "recipe.yaml").read_text()
    assert "Vocabulary" not in (before / "README.md").read_text()


def test_padding_is_dropped_from_models_and_kept_in_the_base(root):
    whole = rows_of(merge(root, out="whole"))
    set_rows(root / "a", 64)
    same(rows_of(merge(root, out="of-a-model")), whole)
    assert open_checkpoint(root / "of-a-model").config["vocab_size"] == 41
    set_rows(root / "base", 48)
    out = merge(root, out="of-the-base")
    same(rows_of(out), whole)
    padding = [load_file(one / "model.safetensors")[EMBEDDING][41:] for one in (out, root / "base")]
    torch.testing.assert_close(*padding, rtol=0, atol=1e-6)


def test_new_tokens_take_the_rows_that_pad_the_base(root):
    """As with ``add_tokens``: the ids that follow the last, whether or not there are rows already."""
    set_rows(root / "base", 43)
    extend(root / "a", ["one", "two"], rows=43)
    extend(root / "b", ["three"], rows=48)
    out = merge(root)
    assert open_checkpoint(out).config["vocab_size"] == 44
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.convert_tokens_to_ids(["one", "two", "three"]) == [41, 42, 43]
    same(rows_of(out), expected_union(root))


def test_the_same_tokens_under_other_ids_are_brought_in_order(root, tied):
    plain = merge(root, out="plain")
    permute(root / "a")
    permute(root / "b", seed=1)
    out = merge(root)
    for name in (EMBEDDING,) if tied else (EMBEDDING, HEAD):
        torch.testing.assert_close(
            *(load_file(one / "model.safetensors")[name] for one in (plain, out)), rtol=0, atol=1e-6
        )
    assert (out / "tokenizer.json").read_bytes() == (root / "base" / "tokenizer.json").read_bytes()


def test_the_base_alone_may_be_asked_for(root):
    before = rows_of(merge(root, out="before"))
    extend(root / "a", ["<tool>"])
    out = merge(root, SOUP + "tokenizer_source: base\n")
    same(rows_of(out), before)
    assert "tokenizer_source: base" in (out / "recipe.yaml").read_text()


def test_a_models_vocabulary_may_be_asked_for(root):
    """Ids are that model's then, those of the config too, and tokens that it lacks are dropped."""
    extend(root / "b", ["dropped"])
    extend(root / "a", ["kept"])
    content = (root / "a" / "tokenizer.json").read_text()
    swapped = content.replace('"<s>": 1', '"<s>": 3').replace('"w3": 3', '"w3": 1')
    swapped = json.loads(swapped)
    for entry in swapped["added_tokens"]:
        entry["id"] = 3 if entry["content"] == "<s>" else entry["id"]
    (root / "a" / "tokenizer.json").write_text(json.dumps(swapped))
    out = merge(root, SOUP + "tokenizer_source: a\n")
    vocabulary = AutoTokenizer.from_pretrained(out).get_vocab()
    assert vocabulary == AutoTokenizer.from_pretrained(root / "a").get_vocab() and vocabulary["kept"] == 41
    union = expected_union(root)
    same(rows_of(out), {token: union[token] for token in vocabulary})
    assert open_checkpoint(out).config["bos_token_id"] == 3


def test_intermediate_merges_speak_what_they_were_merged_from(root):
    extend(root / "a", ["<tool>"])
    extend(root / "b", ["<plan>"])
    text = """
name: r
merge_method: linear
models:
- {model: base, parameters: {weight: 0.5}}
- {model: a, parameters: {weight: 0.5}}
TAIL
---
merge_method: linear
parameters: {weight: 0.5}
models: [{model: r}, {model: b}]
"""
    whole, cut = (
        merge(root, text.replace("TAIL", tail), out) for tail, out in (("", "x"), ("tokenizer_source: base", "y"))
    )
    base, a, b = (rows_of(root / name) for name in ("base", "a", "b"))
    assert AutoTokenizer.from_pretrained(whole).convert_tokens_to_ids(["<tool>", "<plan>"]) == [41, 42]
    assert "<tool>" not in AutoTokenizer.from_pretrained(cut).get_vocab()
    rows = rows_of(whole)
    torch.testing.assert_close(rows["<tool>"], a["<tool>"])
    torch.testing.assert_close(rows["<plan>"], b["<plan>"])
    torch.testing.assert_close(rows["w5"], 0.25 * base["w5"] + 0.25 * a["w5"] + 0.5 * b["w5"])


def test_the_digest_follows_the_vocabulary(root):
    def digests():
        found = share_vocabulary({name: open_checkpoint(root / name) for name in WEIGHTS})
        return {name: (source.digest("ends"), source.digest("layer.1")) for name, source in found.items()}

    before = digests()
    extend(root / "a", ["<tool>"])
    after = digests()
    for name in WEIGHTS:
        assert after[name][0] != before[name][0] and after[name][1] == before[name][1]
    set_rows(root / "a", 41)
    set_rows(root / "a", 42)
    tensors = load_file(root / "a" / "model.safetensors")
    tensors[EMBEDDING][41] += 1
    save_file(tensors, root / "a" / "model.safetensors", metadata={"format": "pt"})
    assert all(digests()[name][0] != after[name][0] for name in WEIGHTS)  # the base has the token's row from a


@pytest.mark.parametrize("source", ["union", "base", "a"])
def test_mergekit_gives_the_same_rows(root, source):
    """Its own ids differ; the rows of the tokens don't."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    extend(root / "a", ["<tool>", "both"])
    extend(root / "b", ["<plan>", "both"])
    permute(root / "b")
    text = f"{SOUP}tokenizer_source: {source}\n"
    absolute = text
    for name in WEIGHTS:
        absolute = absolute.replace(f"model: {name},", f"model: {root / name},")
    absolute = absolute.replace("base_model: base", f"base_model: {root / 'base'}")
    absolute = absolute.replace("tokenizer_source: a", f"tokenizer_source: {root / 'a'}")
    config = MergeConfiguration.model_validate(yaml.safe_load(absolute))
    run_merge(config, str(root / "theirs"), MergeOptions(quiet=True))
    same(rows_of(merge(root, text)), rows_of(root / "theirs"))


def byte_pairs(folder, texts, size):
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<|end|>"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)
    set_rows(folder, tokenizer.get_vocab_size())


def pieces(folder, texts, size):
    tokenizer = Tokenizer(Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    set_rows(folder, tokenizer.get_vocab_size())


@pytest.mark.parametrize("train", [byte_pairs, pieces])
def test_tokenizers_of_other_kinds_are_extended(make_family, tmp_path, train):
    make_family(tmp_path)
    texts = ["the cat sat on the mat", "the dog ate the cat", "a dog and a cat and a mat"] * 5
    for model in WEIGHTS:
        train(tmp_path / model, texts, 40)
    extend(tmp_path / "a", ["<tool>", "<call>"], special=True)
    extend(tmp_path / "b", ["<plan>"])
    out = merge(tmp_path)
    same(rows_of(out), expected_union(tmp_path))
    tokenizer, before = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("out", "base"))
    count = len(before)
    assert tokenizer.convert_tokens_to_ids(["<tool>", "<call>", "<plan>"]) == [count, count + 1, count + 2]
    assert tokenizer.encode("the dog") == before.encode("the dog")
    assert count + 2 in tokenizer.encode("the dog<plan> sat")


def test_words_of_a_larger_vocabulary_become_words(make_llama, tmp_path):
    make_llama(tmp_path / "base")
    make_llama(tmp_path / "a", vocabulary=50, seed=1)
    make_llama(tmp_path / "b", seed=2, base=tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(merge(tmp_path))
    assert tokenizer.encode("w49 w41 w5", add_special_tokens=False) == [49, 41, 5]
    same(rows_of(tmp_path / "out"), expected_union(tmp_path))


def test_without_a_tokenizer_a_vocabulary_of_another_size_is_refused(root):
    set_rows(root / "a", 44)
    (root / "a" / "tokenizer.json").unlink()
    with pytest.raises(BadInput) as caught:
        merge(root)
    assert str(caught.value).startswith("a: tokenizer.json: missing, so its tokens can't be told apart")
    assert "vocab_size is 44, but base has 41" in str(caught.value) and not (root / "out").exists()


def test_without_a_tokenizer_a_vocabulary_of_the_same_size_counts_as_the_bases(root):
    plain = merge(root, out="plain")
    (root / "a" / "tokenizer.json").unlink()
    torch.testing.assert_close(
        *(load_file(one / "model.safetensors")[EMBEDDING] for one in (plain, merge(root))), rtol=0, atol=0
    )
    extend(root / "b", ["<plan>"])
    same(rows_of(merge(root, out="extended")), rows_of(plain) | {"<plan>": rows_of(root / "b")["<plan>"]})


def test_a_model_without_tokenizer_follows_the_base_when_the_ids_move(root):
    plain = rows_of(merge(root, out="plain"))
    permute(root / "a")
    (root / "b" / "tokenizer.json").unlink()
    same(rows_of(merge(root, SOUP + "tokenizer_source: a")), plain)


def test_a_damaged_tokenizer_is_refused(root):
    (root / "a" / "tokenizer.json").write_text("{")
    with pytest.raises(BadInput, match=r"a: tokenizer.json: not readable"):
        merge(root)


def test_matrices_that_differ_from_the_config_are_refused(root):
    extend(root / "a", ["<tool>"])
    config = json.loads((root / "b" / "config.json").read_text())
    (root / "b" / "config.json").write_text(json.dumps(config | {"vocab_size": 45}))
    with pytest.raises(BadInput, match=r"b: \S+.weight: has 41 rows, but config.json has vocab_size 45"):
        merge(root)
    assert not (root / "out").exists()


def test_a_live_merge_shows_what_is_written(root):
    extend(root / "a", ["<tool>"])
    recipes = parse_recipes(SOUP, "x")
    live = open_recipes(recipes, lambda name: open_checkpoint(root / name))
    written = open_checkpoint(merge(root))
    assert live.config["vocab_size"] == written.config["vocab_size"] == 42
    assert vocabulary_of(written).tokens["<tool>"] == 41
    for name in live.names():
        assert torch.equal(live.tensor(name), written.tensor(name))


def test_a_vocabulary_is_within_one_that_has_more_tokens_behind_its_own():
    few, more = Vocabulary(3, {"a": 0, "b": 1, "c": 2}), Vocabulary(4, {"a": 0, "b": 1, "c": 2, "d": 3})
    assert few.within(more) and few.within(few)
    assert not more.within(few)
    assert not few.within(Vocabulary(4, {"b": 0, "a": 1, "c": 2, "d": 3}))
    assert not few.within(replace(more, rules={0: Rule("m", 1, True)}))
    assert not few.within(Vocabulary(4)) and not Vocabulary(3).within(more)
    assert Vocabulary(4).within(more)  # as far as is known
