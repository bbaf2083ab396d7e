"""A tiny family by formula, and what fusion_bench makes of it, kept beside this file.

``python -m tests.parity.fusion_bench CHECKOUT`` writes that anew with fusion_bench's own code, from a checkout of it.
"""

import importlib
import json
import re
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

KEPT = Path(__file__).with_suffix(".safetensors")
TEXTS = {"a": ["w3 w4 w5 w6 w7 w8", "w9 w3 w11", "w5 w5 w12 w13"], "b": ["w20 w21 w3 w22", "w23 w24 w25 w26 w27"]}
STEPS, LR, INIT, RATIO = 5, 0.05, 0.3, 0.9


def ids(text):
    """Token ids of a text, as the tokenizer of the tests gives them."""
    return [int(number) for number in re.findall(r"w(\d+)", text)]


def make_model(number):
    """Model 0 is the base, the others are fine-tunes of it; weights are sines, in float64."""
    config = LlamaConfig(
        vocab_size=41,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).double().eval()
    for at, (name, parameter) in enumerate(model.named_parameters()):
        steps = torch.arange(parameter.numel(), dtype=torch.float64)
        values = 0.4 * torch.sin(steps * (at + 1.37) + at) + number * 0.05 * torch.sin(steps * (number + 0.71) + 2 * at)
        parameter.data = (values + ("norm" in name)).reshape(parameter.shape)
    return model.requires_grad_(True)


def load(checkout):
    """The modules of fusion_bench that hold the formulas, without those that its packages would import beside them."""
    for package in ("", ".method", ".method.regmean", ".method.regmean_plusplus", ".models", ".models.wrappers",
                    ".method.adamerging", ".utils"):  # fmt: skip
        made = types.ModuleType(f"fusion_bench{package}")
        made.__path__ = [str(Path(checkout) / f"fusion_bench{package}".replace(".", "/"))]
        sys.modules[made.__name__] = made
    top = sys.modules["fusion_bench"]
    top.BaseAlgorithm, top.auto_register_config = type("BaseAlgorithm", (), {}), lambda made: made
    for name, offered in {"mixins": ["SimpleProfilerMixin"], "modelpool": ["BaseModelPool"]}.items():
        made = types.ModuleType(f"fusion_bench.{name}")
        for one in offered:
            setattr(made, one, type(one, (), {}))
        sys.modules[made.__name__] = made
    names = ("method.regmean_plusplus.regmean_plusplus", "models.wrappers.layer_wise_fusion")
    return [importlib.import_module(f"fusion_bench.{name}") for name in (*names, "method.adamerging.entropy_loss")]


def regmean_plusplus(theirs):
    """Their algorithm on these models, with what it leaves to the family filled in."""

    class Pool(sys.modules["fusion_bench.modelpool"].BaseModelPool):
        def named_models(self):
            return [(name, make_model(number)) for number, name in enumerate(TEXTS, 1)]

        def load_pretrained_model(self):
            return make_model(0)

        def load_train_dataset(self, name):
            return TEXTS[name]

    class ForLlama(theirs.RegMeanAlgorithmPlusPlus):
        def profile(self, _):
            return torch.no_grad()

        def print_profile_summary(self):
            pass

        def merge_embedding_layer(self, models_to_merge_dict):
            self.rotary = make_model(0).model.rotary_emb
            name = "model.embed_tokens.weight"
            return {name: torch.stack([one.state_dict()[name] for one in models_to_merge_dict.values()]).mean(dim=0)}

        def get_input_for_first_layer(self, model, train_dataset):
            return [model.model.embed_tokens(torch.tensor([ids(text)])) for text in train_dataset]

        def get_layers(self, model):
            return model.model.layers

        def update_merged_params_dict(self, merged_params_dict, new_merged_params, layer_idx):
            named = {f"model.layers.{layer_idx}.{name}": one for name, one in new_merged_params.items()}
            return merged_params_dict | named

        def layer_batches_forward(self, layer, batches_input):
            outputs = []
            for one in batches_input:
                length = one.shape[1]
                mask = torch.full((length, length), -torch.inf, dtype=one.dtype).triu(1)[None, None]
                places = self.rotary(one, torch.arange(length)[None])
                outputs.append(layer(one, attention_mask=mask, position_embeddings=places))
            return outputs

        def get_regmean_weights(self, model_name, layer, batches_input, linear_modules_to_merge):
            found, counts = {}, {}

            def hook(name):
                def note(_, inputs, __):
                    rows = inputs[0].reshape(-1, inputs[0].shape[-1])
                    found[name] = found.get(name, 0) + rows.T @ rows
                    counts[name] = counts.get(name, 0) + len(rows)

                return note

            hooks = [one.register_forward_hook(hook(name)) for name, one in linear_modules_to_merge.items()]
            self.layer_batches_forward(layer, batches_input)
            for one in hooks:
                one.remove()
            return {name: total / counts[name] for name, total in found.items()}

    made = ForLlama(
        num_regmean_examples=8, exclude_param_names_regex=[], reduce_non_diagonal_ratio=RATIO, weight_transpose=True
    )
    made.config = {}
    return made.run(Pool())


def adamerging(wrappers, losses):
    """Their wrapper and their loss, with the loop of their `test_time_adaptation`."""
    experts = [make_model(number) for number in range(1, len(TEXTS) + 1)]
    count = len(list(experts[0].parameters()))
    weights = wrappers.get_layer_wise_weights(len(experts), count, INIT)
    options = {"clamp_weights": False, "tie_weights": True, "strict": False}
    module = wrappers.LayerWiseMergedModel(weights, make_model(0), experts, **options)
    optimizer = torch.optim.Adam([module.merge_weight], lr=LR)
    module.merge_weights()
    for step in range(STEPS):
        for texts in TEXTS.values():
            logits = module(torch.tensor([ids(texts[step % len(texts)])])).logits[0]
            losses.entropy_loss(logits).backward(retain_graph=True)
        optimizer.step()
        optimizer.zero_grad()
        module.merge_weights()
    return module.merge_and_unload()


def write(checkout):
    """Keep what their code makes."""
    theirs, wrappers, losses = load(checkout)
    made = {"regmean_plusplus": regmean_plusplus(theirs), "layer_wise_adamerging": adamerging(wrappers, losses)}
    tensors = {
        f"{method}:{name}": parameter.detach().contiguous()
        for method, model in made.items()
        for name, parameter in model.named_parameters()
    }
    save_file(tensors, KEPT, {"made with": json.dumps({"steps": STEPS, "lr": LR, "init": INIT, "ratio": RATIO})})


if __name__ == "__main__":
    write(sys.argv[1])
