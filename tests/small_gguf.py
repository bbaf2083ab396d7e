"""A GGUF file of a random Llama, written with the format's own package."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tasks.bench.hostile import written_gguf
from tasks.bench.hostile.made import small_tokenizer


def write_gguf(path, quantised=False, seed=0):
    """Write the file; returns the model and the tokenizer that are in it."""
    torch.manual_seed(seed)
    tokenizer = small_tokenizer(["<|end|>"], 300)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 50_000.0},
    )
    model = LlamaForCausalLM(config)
    written_gguf.write_gguf(path, model, tokenizer, quantised=quantised)
    return model, tokenizer
