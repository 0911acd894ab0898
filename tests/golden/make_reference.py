#!/usr/bin/env python3
"""Record three training steps of a small masked autoencoder in float64, with numpy alone: what `gyrus check
--reference` computes again. It shares no code with the Rust program: gradients come from the reverse-mode
differentiation of array expressions below.

    make_reference.py DIR                  writes the recording
    make_reference.py DIR --from OTHER     computes another recording again, from its parameters and inputs

Needs numpy and safetensors. Conventions: tokens run with the last axis fastest; a patch is flattened [p0, p1, p2];
the patch embedding is [D, 1, p, p, p]; positions are sin-cos, 2 ceil(D/6) channels an axis, cut to D."""
import argparse, json, math, os
import numpy as np
from safetensors.numpy import load_file, save_file

erf = np.vectorize(math.erf)

class Var:
    """An array that remembers how it was made: `parents` holds (var, function from our gradient to its)."""
    def __init__(self, value, parents=()): self.value, self.parents = np.asarray(value, np.float64), parents
    def backward(self, seed):
        order, seen = [], set()
        def visit(v):
            if id(v) not in seen:
                seen.add(id(v))
                for p, _ in v.parents:
                    visit(p)
                order.append(v)
                v.grad = np.zeros_like(v.value)
        visit(self)
        self.grad = np.asarray(seed, np.float64)
        for v in reversed(order):
            for p, pull in v.parents:
                p.grad = p.grad + pull(v.grad)
    def __add__(a, b):
        b = var(b)
        return Var(a.value + b.value, [(a, lambda g: reduce_to(g, a.value.shape)), (b, lambda g: reduce_to(g, b.value.shape))])
    def __mul__(a, b):
        b = var(b)
        return Var(a.value * b.value, [(a, lambda g: reduce_to(g * b.value, a.value.shape)), (b, lambda g: reduce_to(g * a.value, b.value.shape))])
    def __sub__(a, b): return a + var(b) * -1.0
    def __matmul__(a, b):
        return Var(a.value @ b.value, [(a, lambda g: reduce_to(g @ b.value.swapaxes(-1, -2), a.value.shape)),
                                       (b, lambda g: reduce_to(a.value.swapaxes(-1, -2) @ g, b.value.shape))])
    def map(self, f, slope): return Var(f(self.value), [(self, lambda g: g * slope(self.value))])
    def reshape(self, *s): return Var(self.value.reshape(*s), [(self, lambda g: g.reshape(self.value.shape))])
    def transpose(self, *a): return Var(self.value.transpose(*a), [(self, lambda g: g.transpose(*np.argsort(a)))])
    def mean(self, axis, keepdims=False):
        n = self.value.shape[axis]
        spread = lambda g: np.repeat(g if keepdims else np.expand_dims(g, axis), n, axis) / n
        return Var(self.value.mean(axis, keepdims=keepdims), [(self, spread)])
    def sum(self): return Var(self.value.sum(), [(self, lambda g: np.full_like(self.value, g))])
    def __getitem__(self, at):
        def pull(g):
            whole = np.zeros_like(self.value)
            np.add.at(whole, at, g)
            return whole
        return Var(self.value[at], [(self, pull)])

def var(x): return x if isinstance(x, Var) else Var(x)
def reduce_to(g, shape):
    """Sums a gradient over the axes along which its array was broadcast."""
    g = g.sum(tuple(range(g.ndim - len(shape))))
    return g.sum(tuple(i for i, n in enumerate(shape) if n == 1 != g.shape[i]), keepdims=True)

def concat(parts):
    ends = np.cumsum([0] + [p.value.shape[1] for p in parts])
    pulls = [(p, lambda g, a=a, b=b: g[:, a:b]) for p, a, b in zip(parts, ends, ends[1:])]
    return Var(np.concatenate([p.value for p in parts], 1), pulls)

def softmax(s):
    e = np.exp(s.value - s.value.max(-1, keepdims=True))
    w = e / e.sum(-1, keepdims=True)
    return Var(w, [(s, lambda g: w * (g - (g * w).sum(-1, keepdims=True)))])

def gelu(x):
    cdf = lambda x: 0.5 * (1 + erf(x / math.sqrt(2)))
    return x.map(lambda x: x * cdf(x), lambda x: cdf(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi))

def attend(q, k, v, valid=None):
    s = q @ k.transpose(0, 1, 3, 2) * (1 / math.sqrt(q.value.shape[-1]))
    if valid is not None:
        s = s + np.where(np.arange(s.value.shape[-1]) < valid[:, None], 0.0, -np.inf)[:, None, None]
    return softmax(s) @ v

class Model:
    """The masked autoencoder of facebookresearch/mae on volumes, with timm's names; `seen` gets what modules yield."""
    def __init__(self, meta, params):
        self.m, self.p, self.seen = meta, {n: Var(v) for n, v in params.items()}, {}
    def see(self, name, x):
        self.seen[name] = x.value
        return x
    def linear(self, n, x): return self.see(n, x @ self.p[n + ".weight"].transpose(1, 0) + self.p[n + ".bias"])
    def norm(self, n, x):
        x = x - x.mean(-1, True)
        x = x * ((x * x).mean(-1, True) + 1e-6).map(lambda v: v ** -0.5, lambda v: -0.5 * v ** -1.5)
        return self.see(n, x * self.p[n + ".weight"] + self.p[n + ".bias"])
    def block(self, n, x, heads):
        B, T, D = x.value.shape
        qkv = self.linear(n + ".attn.qkv", self.norm(n + ".norm1", x)).reshape(B, T, 3, heads, D // heads)
        q, k, v = (qkv.transpose(2, 0, 3, 1, 4)[i] for i in range(3))
        o = attend(q, k, v).transpose(0, 2, 1, 3).reshape(B, T, D)
        x = x + self.see(n + ".attn", self.linear(n + ".attn.proj", o))
        h = self.see(n + ".mlp.act", gelu(self.linear(n + ".mlp.fc1", self.norm(n + ".norm2", x))))
        return self.see(n, x + self.see(n + ".mlp", self.linear(n + ".mlp.fc2", h)))
    def blocks(self, stack, x, depth, heads):
        self.see(stack + ".0.input", x)
        for i in range(depth):
            x = self.block(f"{stack}.{i}", x, heads)
        return x
    def embed(self, patches):
        w = self.p["patch_embed.proj.weight"].reshape(self.m["dim"], -1)
        x = self.see("patch_embed", Var(patches) @ w.transpose(1, 0) + self.p["patch_embed.proj.bias"])
        return self.see("embed_plus_pos", x + self.p["pos_embed"].value[:, 1:])
    def with_cls(self, x):
        return concat([self.p["cls_token"] + self.p["pos_embed"].value[:, :1] + np.zeros((len(x.value), 1, 1)), x])
    def pretrain(self, patches, noise):
        m, (B, L) = self.m, noise.shape
        shuffle, restore, mask = masking(noise, m["mask_ratio"])
        kept, sample = int(L * (1 - m["mask_ratio"])), np.arange(B)[:, None]
        x = self.with_cls(self.embed(patches)[sample, shuffle[:, :kept]])
        x = self.norm("norm", self.blocks("blocks", x, m["depth"], m["heads"]))
        x = self.linear("decoder_embed", x)
        tokens = concat([x[:, 1:], self.p["mask_token"] + np.zeros((B, L - kept, 1))])[sample, restore]
        x = concat([x[:, :1], tokens]) + self.p["decoder_pos_embed"].value
        x = self.blocks("decoder_blocks", x, m["ddepth"], m["dheads"])
        pred = self.see("pred", self.linear("decoder_pred", self.norm("decoder_norm", x))[:, 1:])
        mean, var = patches.mean(-1, keepdims=True), patches.var(-1, ddof=1, keepdims=True)
        target = (patches - mean) / np.sqrt(var + 1e-6)
        self.seen |= {"patches": patches, "target": target}
        each = self.see("loss_per_patch", ((pred - target) * (pred - target)).mean(-1))
        return self.see("loss", (each * (mask / mask.sum())).sum())
    def age(self, patches, y):
        x = self.blocks("blocks", self.with_cls(self.embed(patches)), self.m["depth"], self.m["heads"])
        pred = self.linear("head", self.norm("fc_norm", x[:, 1:].mean(1)))
        return pred, (pred - y).map(np.abs, np.sign).sum() * (1 / y.size)
    def gradients(self, loss):
        loss.backward(1.0)
        return {n: v.grad for n, v in self.p.items() if not n.endswith("pos_embed")}

def masking(noise, ratio):
    shuffle = np.argsort(noise, 1, kind="stable")
    restore = np.argsort(shuffle, 1)
    return shuffle, restore, (restore >= int(noise.shape[1] * (1 - ratio))).astype(float)

def positions(dim, grid):
    waves = math.ceil(dim / 6)
    angle = np.indices(grid).reshape(3, -1, 1) * 10000.0 ** (-np.arange(waves) / waves)
    table = np.concatenate([f(a) for a in angle for f in (np.sin, np.cos)], 1)[:, :dim]
    return np.concatenate([np.zeros((1, dim)), table])[None]

def patchify(volume, p):
    B, _, X, Y, Z = volume.shape
    x = volume.reshape(B, X // p, p, Y // p, p, Z // p, p).transpose(0, 1, 3, 5, 2, 4, 6)
    return x.reshape(B, -1, p ** 3)

def shapes(m):
    """Trained parameters and their shapes: the encoder's, the decoder's, the age head's."""
    def stack(name, dim, depth):
        for i in range(depth):
            for part, out, inn in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4)):
                yield f"{name}.{i}.{part}.weight", (out * dim, inn * dim)
                yield f"{name}.{i}.{part}.bias", (out * dim,)
            yield from norm(f"{name}.{i}.norm1", dim)
            yield from norm(f"{name}.{i}.norm2", dim)
    norm = lambda name, dim: [(name + ".weight", (dim,)), (name + ".bias", (dim,))]
    D, d, p = m["dim"], m["ddim"], m["patch"]
    encoder = [("cls_token", (1, 1, D)), ("patch_embed.proj.weight", (D, 1, p, p, p)), ("patch_embed.proj.bias", (D,)),
               *stack("blocks", D, m["depth"])]
    decoder = [*norm("norm", D), ("mask_token", (1, 1, d)), ("decoder_embed.weight", (d, D)), ("decoder_embed.bias", (d,)),
               *stack("decoder_blocks", d, m["ddepth"]), *norm("decoder_norm", d),
               ("decoder_pred.weight", (p ** 3, d)), ("decoder_pred.bias", (p ** 3,))]
    return encoder, decoder, [*norm("fc_norm", D), ("head.weight", (1, D)), ("head.bias", (1,))]

META = dict(config="tiny", volume=[4, 6, 4], patch=2, dim=10, depth=2, heads=2, ddim=8, ddepth=1, dheads=2, batch=2,
            batch_used=2, channels=1, mask_ratio=0.75, mlp_ratio=4, layernorm_eps=1e-6, gelu="exact (erf)",
            norm_pix_var="unbiased", norm_pix_eps=1e-6, dtype="float64", seed=7, betas=[0.9, 0.95], adam_eps=1e-8,
            weight_decay=0.05, clip_rule="scale = min(1, clip_norm / (norm + 1e-6))", grads="before clipping")
LRS = [5e-4, 1e-3, 1e-3]

def fresh():
    """A model, volumes, ages, masks and attention inputs: no bias is zero and no norm weight is one."""
    m, r = dict(META), np.random.default_rng(META["seed"])
    def draw(list_):
        scale = lambda s: 1 / math.sqrt(np.prod(s[1:])) if len(s) > 1 and s[0] > 1 else 0.1
        return {n: (1.0 if "norm" in n and n.endswith("weight") else 0.0) + scale(s) * r.standard_normal(s) for n, s in list_}
    encoder, decoder, head = shapes(m)
    grid = [n // m["patch"] for n in m["volume"]]
    tables = {"pos_embed": positions(m["dim"], grid), "decoder_pos_embed": positions(m["ddim"], grid)}
    params, tuned = draw(encoder + decoder) | tables, draw(encoder + head) | {"pos_embed": tables["pos_embed"]}
    B, L, f32 = m["batch"], math.prod(grid), lambda x: x.astype(np.float32).astype(np.float64)
    inputs = {"volume": f32(r.standard_normal((B, 1, *m["volume"])) + np.sin(np.arange(m["volume"][2])))}
    inputs |= {f"noise.{i}": f32(r.random((B, L))) for i in range(3)}
    sdpa = {n: r.standard_normal((3, 2, 11, 8)) for n in ("q", "k", "v", "grad_out")} | {"valid_keys": np.array([11, 7, 1])}
    return m, params, inputs, tuned, f32(r.standard_normal((B, 1))), sdpa

def read(folder):
    load = lambda name: load_file(os.path.join(folder, name + ".safetensors"))
    meta, tuned = json.load(open(os.path.join(folder, "meta.json"))), load("finetune")
    params = {n[6:]: v for n, v in tuned.items() if n.startswith("param.")}
    return meta, load("params"), load("input"), params, tuned["y"], load("sdpa_key_padding")

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("dir")
    ap.add_argument("--from", dest="other", metavar="OTHER")
    a = ap.parse_args()
    m, params, inputs, tuned, y, sdpa = read(a.other) if a.other else fresh()
    os.makedirs(a.dir, exist_ok=True)
    save = lambda name, d: save_file({k: np.array(v, order="C") for k, v in d.items()}, os.path.join(a.dir, name + ".safetensors"))
    patches = patchify(inputs["volume"], m["patch"])
    shuffle, restore, mask = masking(inputs["noise.0"], m["mask_ratio"])
    kept = int(mask.shape[1] * (1 - m["mask_ratio"]))
    save("params", params)
    save("input", inputs | {"ids_shuffle": shuffle, "ids_keep": shuffle[:, :kept], "ids_restore": restore, "mask": mask})
    trained = [n for n in params if not n.endswith("pos_embed")]
    m["decayed"] = [n for n in trained if params[n].ndim > 1]
    m["not_decayed"], m["not_trained"] = [n for n in trained if params[n].ndim == 1], ["pos_embed", "decoder_pos_embed"]
    lrs, m["steps"] = [s["lr"] for s in m["steps"]] if "steps" in m else LRS, []
    p, first, second, (b1, b2) = dict(params), {n: 0.0 for n in trained}, {n: 0.0 for n in trained}, m["betas"]
    for i, lr in enumerate(lrs):
        model = Model(m, p)
        loss = model.pretrain(patches, inputs[f"noise.{i}"])
        grads = model.gradients(loss)
        size = math.sqrt(sum((g ** 2).sum() for g in grads.values()))
        if i == 0:
            save("activations", model.seen)
            m.setdefault("clip_norm", float(np.float32(size / 2)))  # so that clipping acts
        for n, g in grads.items():
            g = g * min(1.0, m["clip_norm"] / (size + 1e-6))
            first[n], second[n] = b1 * first[n] + (1 - b1) * g, b2 * second[n] + (1 - b2) * g * g
            step = first[n] / (1 - b1 ** (i + 1)) / (np.sqrt(second[n] / (1 - b2 ** (i + 1))) + m["adam_eps"])
            p[n] = p[n] * (1 - lr * (m["weight_decay"] if n in m["decayed"] else 0.0)) - lr * step
        save(f"grads.{i}", grads)
        save(f"params_after.{i}", p)
        m["steps"].append(dict(step=i, lr=lr, loss=float(loss.value), grad_norm=size))
    model = Model(m, tuned)
    pred, loss = model.age(patches, y)
    grads = model.gradients(loss)
    save("finetune", {"volume": inputs["volume"], "y": y, "pred": pred.value, "loss": loss.value,
                      **{"param." + n: v for n, v in tuned.items()}, **{"grad." + n: g for n, g in grads.items()}})
    m["finetune"] = dict(loss=float(loss.value), pool="mean of patch tokens, no final norm before it, then fc_norm, head")
    q, k, v = (Var(sdpa[n]) for n in "qkv")
    out = attend(q, k, v, sdpa["valid_keys"])
    out.backward(sdpa["grad_out"])
    given = {n: sdpa[n] for n in ("q", "k", "v", "valid_keys", "grad_out")}
    save("sdpa_key_padding", given | {"out": out.value, "grad_q": q.grad, "grad_k": k.grad, "grad_v": v.grad})
    json.dump(m, open(os.path.join(a.dir, "meta.json"), "w"), indent=1)

main()
