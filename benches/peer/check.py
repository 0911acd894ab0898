#!/usr/bin/env python3
"""Holds the peer's models against a recorded training step (`tests/golden/README.md` has the format), in f64: losses,
gradient norms, gradients and updated parameters of every step, and the fine-tuning step. What gyrus equals, the peer
equals too, and so they are timed at the same work.

    check.py tests/golden/tiny
"""

import json
import pathlib
import struct
import sys

import numpy as np
import torch
from torch import nn

import peer_mae

BOUND = 1e-9


def load(path):
    """The arrays of a safetensors file."""
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    kinds = {"F64": np.float64, "F32": np.float32, "I64": np.int64}
    arrays = {}
    for name, about in json.loads(data[8:start]).items():
        if name != "__metadata__":
            values = data[start:][slice(*about["data_offsets"])]
            arrays[name] = torch.from_numpy(np.frombuffer(values, kinds[about["dtype"]]).copy()).view(
                about["shape"]
            )
    return arrays


def renamed(arrays):
    """By the peer's names, where `arrays` have those of facebookresearch/mae."""
    shorter = (
        lambda name: name.replace(".attn.", ".")
        .replace(".mlp.", ".")
        .replace("patch_embed.proj", "patch_embed")
    )
    return {shorter(name): a for name, a in arrays.items()}


def take_up(model, arrays, worst):
    own = model.state_dict()
    arrays = {name: a.view(own[name].shape) for name, a in renamed(arrays).items()}
    for name, a in arrays.items():
        if name.endswith("pos_embed"):
            worst.add("positions", own[name], a)
    model.load_state_dict(arrays)


class Worst:
    """The largest difference of each kind of thing, relative to its largest value where that is above 1."""

    def __init__(self):
        self.found = {}

    def add(self, kind, got, expected):
        got, expected = (torch.as_tensor(x).detach().reshape(-1) for x in (got, expected))
        assert got.shape == expected.shape, f"{kind}: {got.shape} against {expected.shape}"
        error = float((got - expected).abs().max() / max(1.0, float(expected.abs().max())))
        self.found[kind] = max(error, self.found.get(kind, 0.0))

    def add_all(self, kind, got, expected):
        """`expected` may have frozen tensors too, which are no parameters."""
        for name, value in got.items():
            self.add(kind, value, expected[name])


def pretraining(folder, meta, worst):
    inputs, activations = load(folder / "input.safetensors"), load(folder / "activations.safetensors")
    shapes = [
        tuple(meta[key] for key in keys) for keys in (("dim", "depth", "heads"), ("ddim", "ddepth", "dheads"))
    ]
    model = peer_mae.Mae(meta["volume"], meta["patch"], *shapes)
    take_up(model, load(folder / "params.safetensors"), worst)
    params = dict(model.named_parameters())
    optimiser = peer_mae.make_optimiser(model, 0.0)
    for i, step in enumerate(meta["steps"]):
        ids = inputs[f"noise.{i}"].argsort(dim=1)
        if i == 0:
            pred = model.predict(peer_mae.patchify(inputs["volume"], meta["patch"]), ids)
            worst.add("predictions", pred, peer_mae.take(activations["pred"], ids[:, model.kept :]))
        loss = model(inputs["volume"], ids)
        optimiser.zero_grad()
        loss.backward()
        worst.add("losses", loss.detach(), step["loss"])
        recorded = renamed(load(folder / f"grads.{i}.safetensors"))
        worst.add_all("gradients", {name: p.grad for name, p in params.items()}, recorded)
        norm = nn.utils.clip_grad_norm_(params.values(), meta["clip_norm"])
        worst.add("gradient norms", norm, step["grad_norm"])
        for group in optimiser.param_groups:
            group["lr"] = step["lr"]
        optimiser.step()
        worst.add_all("updated parameters", params, renamed(load(folder / f"params_after.{i}.safetensors")))


def finetuning(folder, meta, worst):
    recorded = load(folder / "finetune.safetensors")
    model = peer_mae.BrainAge(
        meta["volume"], meta["patch"], tuple(meta[key] for key in ("dim", "depth", "heads"))
    )
    part = lambda prefix: {name[len(prefix) :]: a for name, a in recorded.items() if name.startswith(prefix)}
    take_up(model, part("param."), worst)
    age = recorded["y"].view(-1)
    worst.add("fine-tuning predictions", model.predict(recorded["volume"]), recorded["pred"])
    loss = model(recorded["volume"], age)
    loss.backward()
    worst.add("fine-tuning losses", loss.detach(), recorded["loss"])
    worst.add_all(
        "fine-tuning gradients",
        {name: p.grad for name, p in model.named_parameters()},
        renamed(part("grad.")),
    )


def main():
    folder = pathlib.Path(sys.argv[1])
    torch.set_default_dtype(torch.float64)
    meta, worst = json.loads((folder / "meta.json").read_text()), Worst()
    pretraining(folder, meta, worst)
    finetuning(folder, meta, worst)
    for kind, error in worst.found.items():
        print(f"{kind:24} {error:9.1e} {'ok' if error < BOUND else 'FAIL'}")
    return 0 if max(worst.found.values()) < BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
