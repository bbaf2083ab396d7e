"""The regression of a repair as textbooks have it, in float64, on what transformers' own models do with one item."""

import numpy as np
import torch
import transformers

from models.paths.repair import ANSWER
from tests.small_families import DECODER, DECODERS, LAYERS, VISION

KINDS = {
    "gated": (*DECODERS["llama"], "model.layers", "mlp.down_proj"),
    "gated with biases": ("LlamaForCausalLM", DECODER | {"mlp_bias": True}, "model.layers", "mlp.down_proj"),
    "plain with biases": (*DECODERS["gpt_neox"], "gpt_neox.layers", "mlp.dense_4h_to_h"),
    "inputs first": (*DECODERS["gpt2"], "transformer.h", "mlp.c_proj"),
    "images": (*VISION["vit"], "vit.layers", "mlp.fc2"),
}
"""Families by what their MLPs are; where transformers keeps blocks, and a block its second matrix."""


class Dense:
    """What whole models do with each item."""

    def __init__(self, kind, sources, items):
        family, _, blocks, self.down = KINDS[kind]
        self.has_bias, self.has_first = kind != "gated", kind != "images"
        self.seen = {}
        for name, source in sources.items():
            model = getattr(transformers, family).from_pretrained(source.path).double().eval()
            self.seen[name] = [self._streams(model, model.get_submodule(blocks), item) for item in items]

    def _streams(self, model, blocks, item):
        """What enters layer 0 … L−1 and what leaves the last, ``(T, D)`` each, and what enters each second matrix."""
        streams, inner = [], []
        hooks = [blocks[0].register_forward_pre_hook(lambda _, given: streams.append(given[0][0].numpy()))]
        for block in blocks:
            hooks.append(block.register_forward_hook(lambda _, given, out: streams.append(out[0].numpy())))
            second = block.get_submodule(self.down)
            hooks.append(second.register_forward_pre_hook(lambda _, given: inner.append(given[0].numpy())))
        with torch.inference_mode():
            model(torch.tensor([item[:-1]]) if self.has_first else item.double()[None])  # no one reads the last token
        for hook in hooks:
            hook.remove()
        return streams, [one.reshape(-1, one.shape[-1]) for one in inner]

    def rows(self, seam):
        """Inputs of the second matrix, ``(N, F)``, beside them 1 where there is a bias, and weights, ``(N, 1)``."""
        rows, weights = [], []
        for streams, inner in self.seen[seam.model]:
            rows.append(np.hstack([inner[seam.layer], np.ones((len(inner[0]), int(self.has_bias)))]))
            weights.append(1 / (streams[min(seam.layer + 2, LAYERS)] ** 2).mean(axis=1, keepdims=True))
            weights[-1][-1 if self.has_first else 0] *= ANSWER
            if self.has_first:
                weights[-1][0] = 0
        return np.concatenate(rows), np.concatenate(weights)

    def fold(self, seam, ridge, start=None):
        """``(D, F)``, with the bias as one more column; ``start``: the layer where a target begins, if not the seam."""
        start = seam.layer + 1 if start is None else start
        pairs = zip(self.seen[seam.model], self.seen[seam.towards], strict=True)
        targets = [theirs[seam.next] - mine[start] for (mine, _), (theirs, _) in pairs]
        return least_squares(*self.rows(seam), np.concatenate(targets), ridge, self.has_bias)

    def off(self, fold, other, seam):
        """How far apart two folds are in what they add to the tokens that count, relative to the second's size."""
        rows, weight = self.rows(seam)
        one, another = (np.sqrt(weight) * (rows @ each.T) for each in (fold, other))
        return np.linalg.norm(one - another) / max(float(np.linalg.norm(another)), 1e-9)


def least_squares(rows, weight, target, ridge, has_bias):
    """The penalty is as many further rows as there are inputs; the bias, which is last, sees none of them."""
    root, width = np.sqrt(weight), rows.shape[1] - has_bias
    penalty = np.sqrt(ridge * ((root * rows[:, :width]) ** 2).sum(axis=0).mean()) * np.eye(width, rows.shape[1])
    wanted = np.vstack([root * target, np.zeros((width, target.shape[1]))])
    return np.linalg.lstsq(np.vstack([root * rows, penalty]), wanted, rcond=None)[0].T
