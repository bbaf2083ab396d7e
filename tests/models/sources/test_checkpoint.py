"""Checkpoints are read a tensor at a time, written a shard at a time, and refused when they are broken."""

import json
import shlex
import shutil
import weakref

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.errors import BadInput
from models.sources.architecture import architecture_of, with_layers
from models.sources.checkpoint import check_finite, open_checkpoint, write_checkpoint
from models.sources.compatibility import check_compatible
from models.sources.shards import HEADER_BYTES, write_shards


def stream(source):
    return ((name, source.tensor(name)) for name in source.names())


def edit(folder, change):
    """Change the tensors of a checkpoint in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.fixture
def folder(make_llama, tmp_path):
    return make_llama(tmp_path / "model", seed=3)


def refused(action, *args):
    with pytest.raises(BadInput) as caught:
        action(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_holds_the_models_tensors(make_llama, tmp_path, tied):
    source = open_checkpoint(make_llama(tmp_path / "model", tied=tied))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    expected = dict(model.named_parameters())
    assert source.names() == sorted(expected)
    assert ("lm_head.weight" in source.names()) != tied
    for name, parameter in expected.items():
        assert torch.equal(source.tensor(name), parameter)


def test_a_tied_head_and_buffers_that_were_stored_all_the_same_are_left_out(folder):
    names = open_checkpoint(folder).names()

    def add(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    edit(folder, add)
    assert open_checkpoint(folder).names() == names


def test_a_released_checkpoint_can_be_read_on(folder):
    source = open_checkpoint(folder)
    held = source.tensor("model.norm.weight")
    before = held.clone()
    source.release()
    assert torch.equal(held, before) and torch.equal(source.tensor("model.norm.weight"), before)


def test_groups_are_blocks_and_ends(folder):
    config = open_checkpoint(folder).config
    assert architecture_of(config).group("model.layers.12.mlp.up_proj.weight") == "layer.12"
    ends = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    assert {architecture_of(config).group(name) for name in ends} == {"ends"}
    assert "vision.patch: no tensor of this architecture" in refused(architecture_of(config).group, "vision.patch")


def test_a_digest_names_the_content_of_a_group(folder, make_llama, tmp_path):
    source = open_checkpoint(folder)
    before = {group: source.digest(group) for group in ("ends", "layer.0", "layer.1", "layer.2")}
    assert len(set(before.values())) == 4
    again = open_checkpoint(make_llama(tmp_path / "again", seed=3))
    assert {group: again.digest(group) for group in before} == before
    edit(folder, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].view(-1)[5:6].add_(1e-3))
    changed = open_checkpoint(folder)
    assert {group for group in before if changed.digest(group) != before[group]} == {"layer.1"}


def test_equal_layers_have_equal_digests_wherever_they_stand(folder):
    def repeat(tensors):
        for name in list(tensors):
            if name.startswith("model.layers.0."):
                tensors[name.replace(".0.", ".2.")] = tensors[name].clone()

    edit(folder, repeat)
    source = open_checkpoint(folder)
    assert source.digest("layer.0") == source.digest("layer.2") != source.digest("layer.1")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard_bytes", [2**29, 4096, 1])
def test_what_is_written_reads_back_and_loads(make_llama, tmp_path, shard_bytes, tied):
    source = open_checkpoint(make_llama(tmp_path / "model", tied=tied))
    write_checkpoint(
        tmp_path / "out",
        source.config,
        stream(source),
        tokenizer_from=tmp_path / "model",
        extra={"recipe.yaml": "x: 1\n"},
        shard_bytes=shard_bytes,
    )
    written = open_checkpoint(tmp_path / "out")
    assert written.names() == source.names()
    assert written.digest("layer.1") == source.digest("layer.1") and written.digest("ends") == source.digest("ends")
    assert (tmp_path / "out" / "recipe.yaml").read_text() == "x: 1\n"
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    if shard_bytes == 1:
        assert len(shards) == len(source.names()) and shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    assert (shards == ["model.safetensors"]) == (shard_bytes == 2**29)
    ids = torch.arange(1, 9)[None]
    one, other = (AutoModelForCausalLM.from_pretrained(tmp_path / name)(ids).logits for name in ("model", "out"))
    assert torch.equal(one, other)
    tokenizers = [AutoTokenizer.from_pretrained(tmp_path / name) for name in ("model", "out")]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    assert tokenizers[0].chat_template == tokenizers[1].chat_template is not None
    for name in ("generation_config.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


@pytest.mark.parametrize("shard_bytes", [6000, 5 * 10**9])
def test_a_tensor_is_on_the_disk_and_forgotten_before_the_next_is_made(folder, tmp_path, shard_bytes):
    source, written = open_checkpoint(folder), 0
    held = weakref.WeakSet()

    def watched():
        nonlocal written
        for name in source.names():
            assert not held
            files = [file.stat().st_size for file in (tmp_path / ".out.partial").glob("*.part")]
            assert sum(files) - len(files) * HEADER_BYTES == written
            tensor = source.tensor(name).clone()
            held.add(tensor)
            written += tensor.nbytes
            yield name, tensor
            del tensor

    write_checkpoint(tmp_path / "out", source.config, watched(), tokenizer_from=folder, shard_bytes=shard_bytes)


def test_a_file_whose_list_of_tensors_is_full_is_closed(tmp_path):
    """More tensors than a header names, of three item sizes: readers want each to start at a multiple of its own."""
    dtypes = (torch.bfloat16, torch.float32, torch.float64)
    tensors = {f"model.layers.{i}.weight": torch.full((3,), i, dtype=dtypes[i % 3]) for i in range(1200)}
    shards, dtype = write_shards(tmp_path, tensors.items(), 10**9)
    assert dtype == "float64" and len(shards) > 1
    read = {name: tensor for shard in shards for name, tensor in load_file(shard.path).items()}
    assert set(read) == set(tensors)
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in tensors.items())
    for shard in shards:
        with safe_open(shard.path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}


def test_the_same_model_gives_the_same_bytes(folder, tmp_path):
    source = open_checkpoint(folder)
    for name in ("one", "two"):
        write_checkpoint(tmp_path / name, source.config, stream(source), tokenizer_from=folder, shard_bytes=5000)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir())
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_config_names_the_dtype_that_was_written_and_no_path(folder, tmp_path):
    source = open_checkpoint(folder)
    halves = ((name, source.tensor(name).bfloat16()) for name in source.names())
    config = source.config | {"_name_or_path": "/home/somebody/model", "torch_dtype": "float32"}
    write_checkpoint(tmp_path / "out", config, halves, tokenizer_from=folder)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == source.config | {"dtype": "bfloat16"}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_a_write_that_breaks_off_leaves_nothing(folder, tmp_path):
    source = open_checkpoint(folder)

    def breaks():
        yield from list(stream(source))[:5]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "out", source.config, breaks(), tokenizer_from=folder, shard_bytes=100)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / ".out.partial").mkdir()  # what a killed process leaves
    (tmp_path / ".out.partial" / "rest").touch()
    write_checkpoint(tmp_path / "out", source.config, stream(source), tokenizer_from=folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]
    assert not (tmp_path / "out" / "rest").exists()


def test_nothing_is_written_over(folder):
    source = open_checkpoint(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    message = refused(lambda: write_checkpoint(folder, source.config, stream(source), tokenizer_from=folder))
    assert message == f"{folder}: is there already; name another folder or remove it"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_lists_with_an_entry_a_layer_follow_the_layers():
    config = {"architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 3, "layer_types": ["x", "y", "z"]}
    assert with_layers(config, [2, 0, 0, 1]) == config | {"num_hidden_layers": 4, "layer_types": ["z", "x", "x", "y"]}
    assert "phantom is unknown" in refused(architecture_of, {"architectures": ["phantom"]})


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"layers": 2}, "num_hidden_layers: 2, but the base has 3"),
        ({"hidden_size": 32}, "hidden_size: 32, but the base has 16"),
        ({"vocabulary": 44}, "vocab_size: 44, but the base has 41"),
        ({"num_key_value_heads": 2}, "num_key_value_heads: 2, but the base has 1"),
    ],
    ids=str,
)
def test_models_of_other_sizes_are_incompatible(folder, make_llama, tmp_path, sizes, message):
    other = open_checkpoint(make_llama(tmp_path / "other", **sizes))
    assert message in refused(check_compatible, open_checkpoint(folder), other, "experts.math")
    assert refused(check_compatible, open_checkpoint(folder), other, "experts.math").startswith(
        "experts.math: config.json"
    )


def test_another_architecture_is_incompatible(folder, make_llama, tmp_path):
    edit_config(make_llama(tmp_path / "other"), architectures=["MistralForCausalLM"])
    message = refused(check_compatible, open_checkpoint(folder), open_checkpoint(tmp_path / "other"), "m")
    assert message.startswith("m: config.json: architectures: MistralForCausalLM, but the base is a LlamaForCausalLM; ")


def test_a_fine_tune_is_compatible(folder, make_llama, tmp_path):
    check_compatible(open_checkpoint(folder), open_checkpoint(make_llama(tmp_path / "tune", base=folder)), "m")


BREAKAGES = {
    "folder": (shutil.rmtree, "model: no such folder"),
    "config": (lambda folder: (folder / "config.json").unlink(), "model: config.json: missing"),
    "config that is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json: not readable"),
    "config without a family": (
        lambda folder: edit_config(folder, architectures=["BertModel"]),
        "model: config.json: architectures: BertModel is unknown; there are LlamaForCausalLM",
    ),
    "config without layers": (
        lambda folder: edit_config(folder, num_hidden_layers=None),
        "num_hidden_layers: None is no",
    ),
    "weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "model: model.safetensors: no safetensors file",
    ),
    "end of the weights": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100]),
        "model: model.safetensors: truncated or no safetensors file",
    ),
    "weights but a few bytes": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"abc"),
        "model: model.safetensors: truncated or no safetensors file",
    ),
    "tensor": (
        lambda folder: edit(folder, lambda tensors: tensors.pop("model.layers.2.mlp.up_proj.weight")),
        "model: model.layers.2.mlp.up_proj.weight: tensor is missing",
    ),
    "layer more": (
        lambda folder: edit_config(folder, num_hidden_layers=2),
        "model: model.layers.2.input_layernorm.weight: tensor is unknown",
    ),
    "quantised": (
        lambda folder: edit(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(16).char()})),
        "model: model.norm.weight: stored as I8; merging needs a checkpoint that is not quantised",
    ),
}


@pytest.mark.parametrize("what", BREAKAGES)
def test_broken_checkpoints_are_refused(folder, what):
    breaks, message = BREAKAGES[what]
    breaks(folder)
    assert message in refused(open_checkpoint, folder)


@pytest.mark.parametrize("what", ["missing", "truncated", "other"])
def test_broken_shards_are_refused(folder, tmp_path, what):
    source = open_checkpoint(folder)
    write_checkpoint(tmp_path / "out", source.config, stream(source), tokenizer_from=folder, shard_bytes=5000)
    shard, other = sorted((tmp_path / "out").glob("*.safetensors"))[:2]
    if what == "missing":
        shard.unlink()
    elif what == "truncated":
        shard.write_bytes(shard.read_bytes()[:-1])
    else:
        shutil.copy(other, shard)
    message = refused(open_checkpoint, tmp_path / "out")
    assert message.startswith(f"{tmp_path / 'out'}: {shard.name}: ")
    assert {"missing": "missing;", "truncated": "truncated", "other": "lacks"}[what] in message


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_weights_that_are_no_numbers_are_refused(folder, value):
    edit(folder, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"][3].fill_(float(value)))
    message = refused(check_finite, open_checkpoint(folder), "experts.math")
    assert message.startswith("experts.math: model.layers.1.mlp.up_proj.weight: holds NaN or Inf")


@pytest.mark.parametrize("name", ["model", 'John\'s "model" $(exit 3) `exit 4`'])
def test_a_pickled_checkpoint_is_refused_with_the_command_that_converts_it(folder, name):
    folder = folder.rename(folder.with_name(name))
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    expected = open_checkpoint(folder).digest("layer.0")
    (folder / "model.safetensors").unlink()
    message = refused(open_checkpoint, folder)
    assert message.startswith(f"{folder}: pytorch_model.bin: a pickled checkpoint can run code and is refused")
    python, flag, program = shlex.split(message.split("run: ")[1])
    assert (python, flag) == ("python", "-c")
    exec(program, {})
    assert open_checkpoint(folder).digest("layer.0") == expected
