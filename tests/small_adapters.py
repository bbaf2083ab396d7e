"""Adapters that peft itself makes, for tests."""

import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM


def make_adapter(folder, base, seed=1, kind=LoraConfig, resize=None, merge=True, **settings):
    """Write an adapter of a base whose parameters are all random, and return the model that peft merges.

    With ``resize`` the base's vocabulary is given that many rows before. Without ``merge`` it is the model that peft
    runs: of a tied base its merge changes both ends where the adapter changes one.
    """
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(_load(base, resize), kind(task_type="CAUSAL_LM", **settings))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(folder)
        running = PeftModel.from_pretrained(_load(base, resize), folder)
        return running.merge_and_unload() if merge else running


def _load(base, resize):
    model = AutoModelForCausalLM.from_pretrained(base)
    if resize:
        model.resize_token_embeddings(resize, mean_resizing=False)
    return model
