#!/usr/bin/env python3
"""Single operations in PyTorch at the shapes of `gyrus bench ops`, the costliest first.

    peer_ops.py --device cuda --preset base --grid 160 192 160 --batch 32
    gyrus bench ops --json .. > ops.json; peer_ops.py --device cuda --shapes ops.json

`--shapes` reads that, or a list of `{"op": .., "shape": {..}}`; without it the shapes are those of a preset's step.
Prints a JSON line for each way to do an operation:

    {"op": "linear", "shape": {"rows": .., "n": .., "k": ..}, "variant": "eager", "us": .., "tflops": .., "gbs": ..}

`us` is the median, on a GPU with a cold second-level cache; `gbs` counts inputs read once and outputs written once.
Activations and weights are bf16 on a GPU, statistics, parameters' gradients and the optimiser f32. `partial` marks
what does less than the operation: a product without what follows it, AdamW without the bf16 copy.
"""

import argparse
import contextlib
import json
import math
import sys
import time
import traceback
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch.nn.attention import sdpa_kernel

import measure
import shapes
from measure import uniform
from peer_mae import PRESETS, SDPA, MASK_RATIO, make_optimiser, patchify, reconstruction_loss, take

aten = torch.ops.aten


@dataclass
class Variant:
    """A way to do an operation: `call(*args)`. Where `fuse`, it is timed compiled too."""

    name: str
    call: callable
    args: tuple = ()
    fuse: bool = False
    partial: bool = False
    context: callable = contextlib.nullcontext
    bytes: int = 0  # where they are not the operation's


@dataclass
class Operation:
    flops: int
    bytes: int
    variants: list = field(default_factory=list)


def one_pass(bytes, call, args):
    """An operation without a product, which a compiler can do in one pass over its tensors."""
    return Operation(0, bytes, [Variant("eager", call, args, fuse=True)])


class Make:
    """Random tensors on the device: activations and weights in the products' precision, the rest f32."""

    def __init__(self, device, dtype):
        self.device, self.dtype, self.size = device, dtype, dtype.itemsize

    def __call__(self, *shape):
        return uniform(*shape, device=self.device, dtype=self.dtype)

    def real(self, *shape):
        return uniform(*shape, device=self.device, dtype=torch.float32)

    def shuffled(self, batch, tokens):
        return torch.rand(batch, tokens, device=self.device).argsort(dim=1)


# Linear layers.


def linear(m, rows, n, k):
    args = (m(rows, k), m(n, k), m(n))
    return Operation(
        2 * rows * n * k, m.size * (rows * k + n * k + rows * n), [Variant("eager", F.linear, args)]
    )


def linear_gelu(m, rows, n, k):
    """Both the pre-activation, which training needs, and its GELU."""

    def both(x, w, b):
        pre = F.linear(x, w, b)
        return pre, F.gelu(pre)

    args = (m(rows, k), m(n, k), m(n))
    return Operation(
        2 * rows * n * k,
        m.size * (rows * k + n * k + 2 * rows * n),
        [Variant("eager", both, args, fuse=True), Variant("product", F.linear, args, partial=True)],
    )


def linear_residual(m, rows, n, k):
    args = (m(rows, k), m(n, k), m(n))
    return Operation(
        2 * rows * n * k,
        m.size * (rows * k + n * k + 2 * rows * n),
        [
            Variant("eager", lambda x, w, b, skip: skip + F.linear(x, w, b), (*args, m(rows, n)), fuse=True),
            Variant("product", F.linear, args, partial=True),
        ],
    )


def linear_input_grad(m, rows, n, k):
    return Operation(
        2 * rows * n * k,
        m.size * (rows * n + n * k + rows * k),
        [Variant("eager", torch.mm, (m(rows, n), m(n, k)))],
    )


def linear_input_grad_gelu(m, rows, n, k):
    dy, w, pre = m(rows, n), m(n, k), m(rows, k)
    return Operation(
        2 * rows * n * k,
        m.size * (rows * n + n * k + 2 * rows * k),
        [
            Variant("eager", lambda dy, w, pre: aten.gelu_backward(dy @ w, pre), (dy, w, pre), fuse=True),
            Variant("product", torch.mm, (dy, w), partial=True),
        ],
    )


def linear_weight_grad(m, rows, n, k):
    """Weight and bias gradients, in f32, of a product that leaves bf16, as autocast has it, or f32."""
    dy, x = m(rows, n), m(rows, k)
    variants = [
        Variant("eager", lambda dy, x: ((dy.t() @ x).float(), dy.sum(0, dtype=torch.float32)), (dy, x)),
        Variant("product", lambda dy, x: dy.t() @ x, (dy, x), partial=True),
    ]
    if m.device == "cuda":
        wide = lambda dy, x: (torch.mm(dy.t(), x, out_dtype=torch.float32), dy.sum(0, dtype=torch.float32))
        variants.append(Variant("f32 product", wide, (dy, x)))
    return Operation(2 * rows * n * k, m.size * (rows * n + rows * k) + 4 * (n * k + n), variants)


def patch_embed(m, batch, grid, patch, kept, dim):
    tokens, values = math.prod(n // patch for n in grid), patch**3
    args = (m(batch, 1, *grid), m.shuffled(batch, tokens)[:, :kept], m(dim, values), m(dim))
    embed = lambda volume, ids, w, b: F.linear(take(patchify(volume, patch), ids), w, b)
    rows = batch * kept
    return Operation(
        2 * rows * dim * values,
        m.size * (rows * values + dim * values + rows * dim),
        [Variant("eager", embed, args, fuse=True)],
    )


# Rows of tokens.


def layer_norm(m, rows, cols):
    call = lambda x, gamma, beta: aten.native_layer_norm(x, [cols], gamma, beta, 1e-6)
    return one_pass(m.size * 2 * rows * cols + 8 * rows, call, (m(rows, cols), m(cols), m(cols)))


def layer_norm_grad(m, rows, cols, skip):
    x, gamma, beta = m(rows, cols), m(cols), m(cols)
    mean, rstd = aten.native_layer_norm(x, [cols], gamma, beta, 1e-6)[1:]

    def grad(dy, x, mean, rstd, gamma, beta, other):
        dx, dgamma, dbeta = aten.native_layer_norm_backward(
            dy, x, [cols], mean, rstd, gamma, beta, [True] * 3
        )
        return dx if other is None else dx + other, dgamma, dbeta

    args = (m(rows, cols), x, mean, rstd, gamma, beta, m(rows, cols) if skip else None)
    return one_pass(m.size * (3 + skip) * rows * cols + 8 * rows, grad, args)


def queries_keys_values(m, batch, length, heads, width):
    """`[B, H, L, width]` each, lying as a linear layer packs them."""
    packed = m(batch, length, 3, heads, width)
    return [x.detach().requires_grad_() for x in packed.permute(2, 0, 3, 1, 4)]


def each_sdpa(m, make):
    if m.device != "cuda":
        return [Variant("default", make(contextlib.nullcontext))]
    variants = []
    for name, backend in SDPA.items():
        context = lambda backend=backend: sdpa_kernel(backend)
        try:
            variants.append(Variant(name, make(context), context=context))
        except RuntimeError:  # an attention that this build, card or dtype lacks
            continue
    return variants


def attention(m, batch, length, heads, width):
    q, k, v = queries_keys_values(m, batch, length, heads, width)
    values = batch * length * heads * width
    call = lambda: F.scaled_dot_product_attention(q, k, v)
    return Operation(
        4 * values * length,
        4 * m.size * values + 4 * batch * heads * length,
        each_sdpa(m, lambda context: call),
    )


def attention_grad(m, batch, length, heads, width):
    """Gradients of queries, keys and values each by itself: packing them is not counted."""
    q, k, v = queries_keys_values(m, batch, length, heads, width)
    dy = m(batch, length, heads, width).transpose(1, 2)

    def make(context):
        with context():
            y = F.scaled_dot_product_attention(q, k, v)
        return lambda: torch.autograd.grad(y, (q, k, v), dy, retain_graph=True)

    values = batch * length * heads * width
    return Operation(
        10 * values * length, 8 * m.size * values + 4 * batch * heads * length, each_sdpa(m, make)
    )


def embed_tokens(m, batch, tokens, kept, dim):
    def embed(x, cls, pos, ids):
        first = (cls + pos[:, :1]).expand(batch, -1, -1)
        return torch.cat([first, x + take(pos[:, 1:].expand(batch, -1, -1), ids)], dim=1).to(x.dtype)

    args = (
        m(batch, kept, dim),
        m.real(1, 1, dim),
        m.real(1, 1 + tokens, dim),
        m.shuffled(batch, tokens)[:, :kept],
    )
    return one_pass(m.size * batch * (2 * kept + 1) * dim + 4 * (1 + tokens) * dim, embed, args)


def embed_tokens_grad(m, batch, tokens, kept, dim):
    grad = lambda dy: (dy[:, 1:].contiguous(), dy[:, 0].sum(0, dtype=torch.float32))
    return one_pass(m.size * batch * (2 * kept + 1) * dim, grad, (m(batch, 1 + kept, dim),))


def append_mask_tokens(m, batch, tokens, kept, dim):
    def append(x, mask_token, pos, ids):
        fill = mask_token.to(x.dtype).expand(batch, tokens - kept, -1)
        places = torch.cat([pos[:, :1].expand(batch, -1, -1), take(pos[:, 1:].expand(batch, -1, -1), ids)], dim=1)
        return (torch.cat([x, fill], dim=1) + places).to(x.dtype)

    args = (m(batch, 1 + kept, dim), m.real(1, 1, dim), m.real(1, 1 + tokens, dim), m.shuffled(batch, tokens))
    return one_pass(m.size * batch * (2 + kept + tokens) * dim + 4 * (1 + tokens) * dim, append, args)


def append_mask_tokens_grad(m, batch, tokens, kept, dim):
    def grad(dy):
        return dy[:, : 1 + kept].contiguous(), dy[:, 1 + kept :].sum((0, 1), dtype=torch.float32)

    args = (m(batch, 1 + tokens, dim),)
    return one_pass(m.size * batch * (2 + kept + tokens) * dim, grad, args)


def last_tokens(m, batch, length, count, dim):
    call = lambda x: x[:, length - count :].contiguous()
    return one_pass(m.size * 2 * batch * count * dim, call, (m(batch, length, dim),))


def last_tokens_grad(m, batch, length, count, dim):
    call = lambda dy: F.pad(dy, (0, 0, length - count, 0))
    return one_pass(m.size * batch * (count + length) * dim, call, (m(batch, count, dim),))


def mean_pool(m, batch, length, dim):
    call = lambda x: x[:, 1:].mean(dim=1)
    return one_pass(m.size * batch * length * dim, call, (m(batch, length, dim),))


def mean_pool_grad(m, batch, length, dim):
    call = lambda dy: F.pad((dy / (length - 1)).unsqueeze(1).expand(-1, length - 1, -1), (0, 0, 1, 0))
    return one_pass(m.size * batch * (1 + length) * dim, call, (m(batch, dim),))


# Losses and the optimiser.


def loss_inputs(m, batch, grid, patch, count):
    tokens = math.prod(n // patch for n in grid)
    return m(batch, count, patch**3), m(batch, 1, *grid), m.shuffled(batch, tokens)[:, :count]


def reconstruction_loss_(m, batch, grid, patch, count):
    call = lambda pred, volume, ids: reconstruction_loss(
        pred, take(patchify(volume, patch), ids), torch.float32
    )
    args = loss_inputs(m, batch, grid, patch, count)
    return one_pass(2 * m.size * batch * count * patch**3, call, args)


def reconstruction_loss_grad(m, batch, grid, patch, count):
    def grad(pred, volume, ids):
        patches = take(patchify(volume, patch), ids).float()
        target = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
        return ((pred.float() - target) * (2 / pred.numel())).to(pred.dtype)

    args = loss_inputs(m, batch, grid, patch, count)
    return one_pass(3 * m.size * batch * count * patch**3, grad, args)


def grad_norm(m, params):
    """The norm alone, which is all that gyrus takes a pass for, and the pass that clips too."""
    param = torch.nn.Parameter(m.real(params))
    param.grad = m.real(params)
    clip = lambda: torch.nn.utils.clip_grad_norm_([param], 1e30)
    return Operation(
        0,
        4 * params,
        [
            Variant("eager", torch.linalg.vector_norm, (param.grad,)),
            Variant("clip_grad_norm_", clip, bytes=12 * params),
        ],
    )


def adamw(m, params):
    """One flat tensor, which is the best case: no list of tensors has to be walked."""
    param = torch.nn.Parameter(m.real(params))
    param.grad = m.real(params)
    optimiser = make_optimiser(torch.nn.ParameterList([param]), 1e-4, fused=True)
    copy = torch.empty(params, device=m.device, dtype=torch.bfloat16)

    def with_copy():
        optimiser.step()
        copy.copy_(param.detach())

    return Operation(
        0,
        30 * params,
        [
            Variant("fused, then the bf16 copy", with_copy),
            Variant("fused", optimiser.step, partial=True, bytes=28 * params),
        ],
    )


# Ceilings.


def product(m, n):
    return Operation(2 * n**3, 3 * m.size * n * n, [Variant("eager", torch.mm, (m(n, n), m(n, n)))])


def copy(m, bytes):
    source = m.real(bytes // 4)
    target = torch.empty_like(source)
    return Operation(0, 2 * bytes, [Variant("eager", target.copy_, (source,))])


OPERATIONS = dict(
    linear=linear,
    linear_gelu=linear_gelu,
    linear_residual=linear_residual,
    linear_input_grad=linear_input_grad,
    linear_input_grad_gelu=linear_input_grad_gelu,
    linear_weight_grad=linear_weight_grad,
    patch_embed=patch_embed,
    layer_norm=layer_norm,
    layer_norm_grad=layer_norm_grad,
    attention=attention,
    attention_grad=attention_grad,
    embed_tokens=embed_tokens,
    embed_tokens_grad=embed_tokens_grad,
    append_mask_tokens=append_mask_tokens,
    append_mask_tokens_grad=append_mask_tokens_grad,
    last_tokens=last_tokens,
    last_tokens_grad=last_tokens_grad,
    mean_pool=mean_pool,
    mean_pool_grad=mean_pool_grad,
    reconstruction_loss=reconstruction_loss_,
    reconstruction_loss_grad=reconstruction_loss_grad,
    grad_norm=grad_norm,
    adamw=adamw,
    product=product,
    copy=copy,
)


def block_params(dim, depth):
    """The elements of each parameter of so many transformer blocks."""
    linears = [3 * dim * dim, 3 * dim, dim * dim, dim, 4 * dim * dim, 4 * dim, 4 * dim * dim, dim]
    return (linears + 4 * [dim]) * depth


def of_preset(mode, preset, grid, patch, batch):
    """The operations of a preset's step, as gyrus records them, each with how often a step does it."""
    (dim, depth, n_heads), (ddim, ddepth, dheads) = PRESETS[preset]
    tokens, values = math.prod(n // patch for n in grid), patch**3
    kept = int(tokens * (1 - MASK_RATIO)) if mode == "pretrain" else tokens
    found = []

    def add(op, times=1, **shape):
        found.append(dict(op=op, shape=shape, times=times))

    def add_linear(op, rows, n, k, times=1):
        add(op, times, rows=rows, n=n, k=k)
        add("linear_weight_grad", times, rows=rows, n=n, k=k)

    def add_plain(rows, n, k, times=1):
        add_linear("linear", rows, n, k, times)
        add("linear_input_grad", times, rows=rows, n=n, k=k)

    def add_norm(rows, d, times, skip):
        add("layer_norm", times, rows=rows, cols=d)
        add("layer_norm_grad", times, rows=rows, cols=d, skip=skip)

    def add_blocks(length, d, times, n_heads):
        rows = batch * length
        add_norm(rows, d, 2 * times, True)
        add_plain(rows, 3 * d, d, times)
        add_linear("linear_residual", rows, d, d, times)
        add("linear_input_grad", times, rows=rows, n=d, k=d)
        add_linear("linear_gelu", rows, 4 * d, d, times)
        add("linear_input_grad", times, rows=rows, n=4 * d, k=d)
        add_linear("linear_residual", rows, d, 4 * d, times)
        add("linear_input_grad_gelu", times, rows=rows, n=d, k=4 * d)
        for op in ("attention", "attention_grad"):
            add(op, times, batch=batch, length=length, heads=n_heads, width=d // n_heads)

    add("patch_embed", batch=batch, grid=list(grid), patch=patch, kept=kept, dim=dim)
    add("linear_weight_grad", rows=batch * kept, n=dim, k=values)
    for op in ("embed_tokens", "embed_tokens_grad"):
        add(op, batch=batch, tokens=tokens, kept=kept, dim=dim)
    add_blocks(1 + kept, dim, depth, n_heads)
    params = [dim * values, dim, dim] + block_params(dim, depth)
    if mode == "finetune":
        for op in ("mean_pool", "mean_pool_grad"):
            add(op, batch=batch, length=1 + tokens, dim=dim)
        add_norm(batch, dim, 1, False)
        add_plain(batch, 1, dim)
        params += [dim, dim, dim, 1]
    else:
        removed, length = tokens - kept, 1 + tokens
        add_norm(batch * (1 + kept), dim, 1, False)
        add_plain(batch * (1 + kept), ddim, dim)
        for op in ("append_mask_tokens", "append_mask_tokens_grad"):
            add(op, batch=batch, tokens=tokens, kept=kept, dim=ddim)
        add_blocks(length, ddim, ddepth, dheads)
        for op in ("last_tokens", "last_tokens_grad"):
            add(op, batch=batch, length=length, count=removed, dim=ddim)
        add_norm(batch * removed, ddim, 1, False)
        add_plain(batch * removed, values, ddim)
        for op in ("reconstruction_loss", "reconstruction_loss_grad"):
            add(op, batch=batch, grid=list(grid), patch=patch, count=removed)
        params += [dim, dim, ddim * dim, ddim, ddim] + block_params(ddim, ddepth)
        params += [ddim, ddim, values * ddim, values]
    # Each parameter begins at a multiple of this many elements.
    params = sum(-(-n // 16) * 16 for n in params)
    add("grad_norm", params=params)
    add("adamw", params=params)
    return merged(found)


def key_of(entry):
    return entry["op"], json.dumps(entry["shape"], sort_keys=True)


def merged(entries):
    """Each operation and shape once, with how often they occur."""
    found = {}
    for entry in entries:
        same = found.setdefault(key_of(entry), dict(op=entry["op"], shape=entry["shape"], times=0))
        same["times"] += entry.get("times", 1)
    return list(found.values())


def from_file(path):
    with sys.stdin if path == "-" else open(path) as f:
        read = json.load(f)
    return merged(shapes.of(read) if isinstance(read, dict) else read)


def costliest_first(entries):
    """By what a GPU would need for them at its ceilings."""

    def least_seconds(entry):
        if entry["op"] not in OPERATIONS:
            return 0.0
        operation = OPERATIONS[entry["op"]](Make("meta", torch.bfloat16), **entry["shape"])
        return entry["times"] * max(operation.flops / 800e12, operation.bytes / 4e12)

    return sorted(entries, key=least_seconds, reverse=True)


class Timer:
    def __init__(self, args):
        self.device, self.dtype = args.device, torch.bfloat16 if args.dtype == "bf16" else torch.float32
        self.kinds, self.budget_s = args.kinds.split(","), args.each_ms / 1e3
        self.flush = measure.Flush() if args.device == "cuda" else None

    def lines(self, entry):
        """A JSON object for each way to do `entry`, as it is found."""
        about = {key: entry[key] for key in ("op", "shape", "times") if key in entry}
        if entry["op"] not in OPERATIONS:
            yield about | dict(error="the peer has no such operation")
            return
        operation = OPERATIONS[entry["op"]](Make(self.device, self.dtype), **entry["shape"])
        for variant in operation.variants:
            for kind in self.kinds if variant.fuse else ["eager"]:
                name = (
                    variant.name
                    if kind == "eager"
                    else f"{kind}, {variant.name}" if variant.name != "eager" else kind
                )
                try:
                    yield about | dict(variant=name) | self.time(operation, variant, kind)
                except Exception as error:  # one variant that a machine cannot run says nothing of the others
                    traceback.print_exc()
                    yield about | dict(variant=name, error=f"{type(error).__name__}: {error}"[:300])

    def time(self, operation, variant, kind):
        call = variant.call
        if kind != "eager":
            torch._dynamo.reset()  # or a shape too many of the same function is left uncompiled
            mode = "max-autotune-no-cudagraphs" if kind == "autotuned" else None
            call = torch.compile(call, mode=mode, dynamic=False)
        with variant.context():
            us, us_min = measure.median_min_us(
                lambda: call(*variant.args), self.device, self.flush, self.budget_s
            )
        found = dict(
            us=us,
            us_min=us_min,
            tflops=operation.flops / us / 1e6,
            gbs=(variant.bytes or operation.bytes) / us / 1e3,
        )
        return found | (dict(partial=True) if variant.partial else {})


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", metavar="FILE", help="- for standard input")
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--mode", choices=("pretrain", "finetune"), default="pretrain")
    parser.add_argument("--grid", type=int, nargs=3, default=(80, 96, 80), metavar=("X", "Y", "Z"))
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--dtype", choices=("f32", "bf16"), help="of products and activations; bf16 on a GPU, else f32"
    )
    parser.add_argument(
        "--kinds", default="eager,compiled", help="of eager, compiled, autotuned (slow to begin with)"
    )
    parser.add_argument("--only", default="", help="operations whose name contains this")
    parser.add_argument("--each-ms", type=float, default=60, help="time that the calls of one variant take")
    parser.add_argument(
        "--budget-s", type=float, default=math.inf, help="start no operation after this many seconds"
    )
    parser.add_argument("--print-shapes", action="store_true", help="print the list of shapes and stop")
    args = parser.parse_args()
    args.dtype = args.dtype or ("bf16" if args.device == "cuda" else "f32")
    return args


def main():
    args, start = arguments(), time.perf_counter()
    found = (
        from_file(args.shapes)
        if args.shapes
        else of_preset(args.mode, args.preset, args.grid, args.patch, args.batch)
    )
    found = costliest_first(entry for entry in found if args.only in entry["op"])
    if args.print_shapes:
        print(json.dumps(found))
        return
    timer = Timer(args)
    for entry in found:
        if time.perf_counter() - start > args.budget_s:
            print(json.dumps(dict(op=entry["op"], shape=entry["shape"], error="no time was left")))
            continue
        for line in timer.lines(entry):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
