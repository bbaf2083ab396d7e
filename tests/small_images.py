"""Small projects with images: random encoders, and data sets of which they classify a part rightly."""

import numpy as np
import torch
import yaml
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from tasks.objectives.images.items import write_images
from tasks.project.workspace import open_workspace
from tests.conftest import random_tokenizer

LAYERS, SIZE = 4, 8
ENCODER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
ENCODER |= {"image_size": SIZE, "patch_size": 4}
CLASSES = {"one": ("w5", "w6_w7", "w8"), "two": ("w9", "w10", "w11", "w12", "w13")}
COUNTS = {"search": 14, "selection": 8, "test": 12}
SEARCH = {
    "sample": {"candidates": 8, "anchors": 1, "methods": ["linear", "task_arithmetic"]},
    "dataset": {"edits": 10, "random": 4, "items": 8},
    "train": {"steps": 4},
    "search": {"budget": 1200, "batch": 4, "rungs": [7, 14]},
    "pareto": {"members": 3, "rescored": 4},
}


def shaken(model, seed, scale=0.3):
    """A model with random weights large enough that every layer matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim():  # CLIP's scale of logits stays
                parameter.copy_(
                    torch.randn(parameter.shape, generator=generator) * scale + (parameter.dim() == 1) * 0.5
                )
    return model.eval()


def tuned(model, seed, noise=0.15):
    """A fine-tune of a model: its weights plus noise."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * noise * (parameter.dim() > 0))
    return model.eval()


def pictures(count, seed):
    """Random images in colour, some with another shape."""
    generator = np.random.default_rng(seed)
    shapes = [(SIZE, SIZE + 4 * (number % 5 == 0), 3) for number in range(count)]
    return [Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]


def labels(model, processor, images, head=None, every=3):
    """What a model takes images for, but for each third the next class."""
    with torch.inference_mode():
        pixels = torch.cat([processor(one, return_tensors="pt").pixel_values for one in images])
        logits = model(pixels).logits if head is None else head(pixels)
    found = logits.argmax(-1).tolist()
    return [(one + (number % every == 0)) % logits.shape[1] for number, one in enumerate(found)]


def write_set(folder, images, answers, classes):
    """A folder that `datasets` reads, with the one split ``test``."""
    folder.mkdir(parents=True)
    write_images(folder / "test.parquet", images, answers, classes)


def write_profile(root, base, experts, **images):
    (root / "profiles").mkdir(exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump({"profiles": ["p"], **SEARCH}))
    objectives = [
        {"name": name, "images": {"data": f"data/{name}", **images}, "items": COUNTS, "metric": "ll"}
        for name in CLASSES
    ]
    profile = {"base": base, "experts": experts, "objectives": objectives, "layers": {"ideal": 0.4}, "threads": 1}
    profile["paths"] = {"repair": False}  # it has no images to spare
    (root / "profiles" / "p.yaml").write_text(yaml.safe_dump(profile))
    return open_workspace("p", root)


def make_vit_project(root, count=90):
    """Classifiers ``one`` and ``two``, each with a head of its own, fine-tuned from one encoder."""
    processor = ViTImageProcessorPil(size={"height": SIZE, "width": SIZE})
    base = shaken(ViTForImageClassification(ViTConfig(**ENCODER, num_labels=2)), 0)
    for seed, (name, classes) in enumerate([("base", ("x", "y")), *CLASSES.items()]):
        model = shaken(ViTForImageClassification(ViTConfig(**ENCODER, id2label=dict(enumerate(classes)))), seed)
        model.vit.load_state_dict(base.vit.state_dict())
        tuned(model, seed, noise=0.0 if name == "base" else 0.15)
        model.save_pretrained(root / "models" / name)
        processor.save_pretrained(root / "models" / name)
        if name != "base":
            images = pictures(count, seed)
            write_set(root / "data" / name, images, labels(model, processor, images), classes)
    experts = {name: f"models/{name}" for name in CLASSES}
    return write_profile(root, "models/base", experts)


def make_clip_project(root, count=90):
    """A whole CLIP model as base, and vision towers ``one`` and ``two`` that were tuned with its texts."""
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"vocab_size": 41, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = CLIPConfig(text_config=text, vision_config={**ENCODER, "projection_dim": 12}, projection_dim=12)
    base = shaken(CLIPModel(config), 0)
    base.save_pretrained(root / "models" / "base")
    processor.save_pretrained(root / "models" / "base")
    tokenizer = random_tokenizer(41)
    tokenizer._tokenizer.post_processor = TemplateProcessing("<s> $A </s>", None, [("<s>", 1), ("</s>", 2)])
    tokenizer.save_pretrained(root / "models" / "base")
    for seed, (name, classes) in enumerate(CLASSES.items(), start=1):
        tower = CLIPVisionModel(config.vision_config)
        tower.load_state_dict(base.vision_model.state_dict())
        tuned(tower, seed).save_pretrained(root / "models" / name)
        images = pictures(count, seed)
        texts = tokenizer([f"w3 {one.replace('_', ' ')}" for one in classes], return_tensors="pt", padding=True)

        def zero_shot(pixels, tower=tower, texts=texts):
            whole = CLIPModel(config).eval()
            whole.load_state_dict(base.state_dict())
            whole.vision_model.load_state_dict(tower.state_dict())
            inputs = {key: texts[key] for key in ("input_ids", "attention_mask")}
            return whole(pixel_values=pixels, **inputs).logits_per_image

        write_set(root / "data" / name, images, labels(None, processor, images, zero_shot), classes)
    experts = {name: f"models/{name}" for name in CLASSES}
    return write_profile(root, "models/base", experts, templates=["w3 {}"])
