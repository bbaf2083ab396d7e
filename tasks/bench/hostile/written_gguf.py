"""A Llama as a GGUF file, by the format's own package, as llama.cpp converts one."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

ENDS = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
BLOCK = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""What GGUF calls the tensors of a Llama."""


def write_gguf(
    path: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, quantised: bool = False
) -> None:
    """Write a tied model with its byte pairs; ``quantised``: matrices in Q4_1."""
    config = model.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    ordered = sorted(tokenizer.get_vocab().items(), key=lambda one: one[1])
    special, plain = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in ordered])
    writer.add_token_types([special if token.startswith("<|") else plain for token, _ in ordered])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    state: dict[str, Tensor] = model.state_dict()
    named = {name: (state[theirs], name) for theirs, name in ENDS.items()}
    for layer in range(config.num_hidden_layers):
        for theirs, ours in BLOCK.items():
            named[f"blk.{layer}.{ours}.weight"] = (state[f"model.layers.{layer}.{theirs}.weight"], ours)
    for name, (tensor, kind) in named.items():
        weight = np.ascontiguousarray(interleaved(tensor, heads[kind]) if kind in heads else tensor, dtype=np.float32)
        if quantised and weight.ndim == 2:
            form = gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(name, gguf.quantize(weight, form), raw_dtype=form)
        else:
            writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of a query or key matrix as llama.cpp orders them: the halves of the rotary pairs side by side."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
