"""Small random checkpoints of real architectures."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto import CONFIG_MAPPING

from models.paths.pool import Pool
from models.sources.checkpoint import open_checkpoint

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def write_random_model(folder, seed, kind="llama", **changes):
    """A checkpoint with weights large enough that every layer matters."""
    config = CONFIG_MAPPING[kind](**SIZES | {"tie_word_embeddings": False} | changes)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(
                torch.randn(parameter.shape) * (0.3 if parameter.dim() > 1 else 0.2) + (parameter.dim() == 1)
            )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_pool(tmp_path_factory):
    """A function that makes a pool of three random models ``a``, ``b``, ``c`` of one family."""

    def make(kind="llama", device="cpu", dtype=torch.float32, max_bytes=2**30, **changes):
        folder = tmp_path_factory.mktemp("models")
        sources = {
            name: open_checkpoint(write_random_model(folder / name, seed, kind, **changes))
            for seed, name in enumerate("abc")
        }
        pool = Pool(sources["a"].config, device, dtype, max_bytes)
        for name, source in sources.items():
            pool.add(name, source)
        return pool

    return make


@pytest.fixture(scope="session", params=[True, False], ids=["tied", "untied"])
def pool(request, make_pool):
    return make_pool(tie_word_embeddings=request.param)
