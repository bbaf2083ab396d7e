"""A path over checkpoints written as one checkpoint by hand, so that nothing of the tested code takes part."""

from safetensors.torch import save_file
from transformers import AutoConfig, AutoTokenizer


def write_path(sources, candidate, folder, tokenizer_from=None):
    """Sources by name, all opened from folders of one Llama-like family; returns the folder."""
    host = sources[candidate.host]
    tensors = {name: host.tensor(name) for name in host.names() if not name.startswith("model.layers.")}
    for position, (model, layer) in enumerate(candidate.path):
        prefix = f"model.layers.{layer}."
        for name in sources[model].names():
            if name.startswith(prefix):
                tensors[f"model.layers.{position}.{name.removeprefix(prefix)}"] = sources[model].tensor(name)
    folder.mkdir(parents=True)
    copies = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(copies, folder / "model.safetensors", {"format": "pt"})
    config = AutoConfig.from_pretrained(host.path)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for _, layer in candidate.path]
    config.num_hidden_layers = candidate.depth
    config.save_pretrained(folder)
    if tokenizer_from:
        AutoTokenizer.from_pretrained(tokenizer_from).save_pretrained(folder)
    return folder
