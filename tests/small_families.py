"""A small random model of every family, and of every kind of tensor that one may have."""

import torch
import transformers

LAYERS = 4
COMMON = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
TOKENS = {"vocab_size": 61, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
DECODER = COMMON | TOKENS | {"num_key_value_heads": 2}
IMAGE = COMMON | {"image_size": 8, "patch_size": 4}
GPT2 = {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 128, "vocab_size": 61}
SLIDING = {"head_dim": 8, "sliding_window": 5}

DECODERS = {
    "llama": ("LlamaForCausalLM", DECODER),
    "mistral": ("MistralForCausalLM", DECODER | {"sliding_window": 6}),
    "qwen2": ("Qwen2ForCausalLM", DECODER),
    "qwen3": ("Qwen3ForCausalLM", DECODER | {"head_dim": 8}),
    "gemma": ("GemmaForCausalLM", DECODER | {"head_dim": 8}),
    "gemma2": ("Gemma2ForCausalLM", DECODER | SLIDING | {"final_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3ForCausalLM", DECODER | SLIDING | {"layer_types": ["full_attention", "sliding_attention"] * 2}),
    "phi3": ("Phi3ForCausalLM", DECODER | {"rms_norm_eps": 1e-6}),
    "gpt2": ("GPT2LMHeadModel", GPT2 | {"bos_token_id": 1, "eos_token_id": 2}),
    "gpt_neox": ("GPTNeoXForCausalLM", COMMON | TOKENS),
    "gpt_neox tied": ("GPTNeoXForCausalLM", COMMON | TOKENS | {"tie_word_embeddings": True}),
}
VISION = {
    "vit": ("ViTForImageClassification", IMAGE | {"num_labels": 5}),
    "clip": ("CLIPVisionModelWithProjection", IMAGE | {"projection_dim": 16}),
}


def random_model(folder, family, config, seed):
    kind = getattr(transformers, family)
    torch.manual_seed(seed)
    model = kind(kind.config_class(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2 + (parameter.dim() == 1) * 0.5)
    model.save_pretrained(folder)
    return folder
