#!/usr/bin/env python3
"""The same training step in PyTorch, as a good practitioner writes it, to hold `gyrus bench step` against.

A 3-D masked autoencoder or the brain-age model: only the kept patches are embedded and only the removed ones
predicted, scaled_dot_product_attention (on a GPU the fastest of flash, cuDNN and efficient at these very shapes),
torch.compile, fused AdamW, clipping at 1, random volumes that lie on the device. `--dtype bf16` is autocast over f32
weights. Prints a JSON line for each variant, with the names of `gyrus bench step --json`.

    peer_mae.py --preset tiny --steps 20 [--tuned]
    peer_mae.py --device cuda --dtype bf16 --preset base --grid 160 192 160 --batch 32

Variants: eager, compile, or autotune (max-autotune-no-cudagraphs: minutes); with +graph the whole step, optimiser
included, is captured as one CUDA graph. Under bf16 the tokens between blocks are bf16 too, which is faster than the f32
that autocast leaves them in; +f32 leaves them so.
"""

import argparse
import contextlib
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import traceback

PRESETS = {  # width, depth, heads of the encoder, then of the decoder
    "tiny": ((192, 6, 3), (192, 2, 3)),
    "small": ((384, 12, 6), (192, 4, 3)),
    "base": ((768, 12, 12), (384, 8, 6)),
    "large": ((1024, 24, 16), (512, 8, 8)),
}
MASK_RATIO = 0.75


def start_tuned():
    """Starts again with what stock PyTorch lacks on a processor that is not Intel's: MKL takes its AVX-512 path, and
    malloc keeps freed memory instead of returning it after every large tensor."""
    if os.environ.get("PEER_TUNED"):
        return
    library = os.path.join(tempfile.gettempdir(), f"peer_mkl_{os.getuid()}.so")
    source = "int mkl_serv_intel_cpu_true(void){return 1;}\nint mkl_serv_intel_cpu(void){return 1;}\n"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", library], input=source.encode(), check=True
    )
    keep = {
        "MALLOC_TRIM_THRESHOLD_": str(1 << 36),
        "MALLOC_MMAP_THRESHOLD_": str(1 << 36),
        "MALLOC_TOP_PAD_": str(1 << 26),
    }
    os.execve(
        sys.executable,
        [sys.executable, *sys.argv],
        {**os.environ, "PEER_TUNED": "1", "LD_PRELOAD": library, **keep},
    )


if "--tuned" in sys.argv:
    start_tuned()

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import measure

# The model.


def positions(dim, grid):
    """Sines and cosines of the three coordinates, 2 ceil(dim / 6) channels each; a row of zeros for the class token."""
    waves = math.ceil(dim / 6)
    rates = 10000.0 ** (-torch.arange(waves, dtype=torch.float64) / waves)
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [a.reshape(-1, 1) * rates for a in axes]
    table = torch.cat([part for a in angles for part in (a.sin(), a.cos())], dim=1)[:, :dim]
    return (
        torch.cat([torch.zeros(1, dim, dtype=torch.float64), table])
        .unsqueeze(0)
        .to(torch.get_default_dtype())
    )


def patchify(volume, p):  # [B, 1, X, Y, Z] -> [B, L, p³]
    B, _, X, Y, Z = volume.shape
    split = volume.view(B, X // p, p, Y // p, p, Z // p, p).permute(0, 1, 3, 5, 2, 4, 6)
    return split.reshape(B, -1, p**3)


def take(x, ids):  # [B, T, D], [B, M] -> [B, M, D]
    return x.gather(1, ids.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):  # [B, T, D]
        B, T, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, T, D))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Encoder(nn.Module):
    def __init__(self, grid, patch, shape):
        super().__init__()
        dim, depth, heads = shape
        self.patch, self.grid = patch, [n // patch for n in grid]
        self.tokens = math.prod(self.grid)
        self.kept = int(self.tokens * (1 - MASK_RATIO))
        self.stream = None  # what the tokens between blocks are made; nothing: what they happen to be
        self.patch_embed = nn.Linear(patch**3, dim)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.register_buffer("pos_embed", positions(dim, self.grid))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))

    def init_linear(self):
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.xavier_uniform_(m.weight)
                nn.init.zeros_(m.bias)

    def run(self, blocks, x):
        x = x.to(self.stream or x.dtype)
        for block in blocks:
            x = block(x)
        return x

    def encode(self, patches, pos):  # both [B or 1, K, ..] -> [B, 1 + K, D]
        x = self.patch_embed(patches) + pos
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        return self.run(self.blocks, torch.cat([cls, x], dim=1))


class Mae(Encoder):
    def __init__(self, grid, patch, encoder, decoder):
        super().__init__(grid, patch, encoder)
        dim, (ddim, ddepth, dheads) = encoder[0], decoder
        self.norm, self.decoder_norm = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(ddim, eps=1e-6)
        self.decoder_embed, self.decoder_pred = nn.Linear(dim, ddim), nn.Linear(ddim, patch**3)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, ddim))
        self.register_buffer("decoder_pos_embed", positions(ddim, self.grid))
        self.decoder_blocks = nn.ModuleList(Block(ddim, dheads) for _ in range(ddepth))
        self.init_linear()

    def predict(self, patches, ids):
        """Predictions of the removed patches, `ids[:, kept:]`.

        Attention does not know an order, so the decoder's tokens stay shuffled, kept ones first: nothing has to be
        put back into its place, and what is to be predicted is a slice.
        """
        B, L = ids.shape
        pos = self.pos_embed[:, 1:].expand(B, -1, -1)
        keep = ids[:, : self.kept]
        x = self.decoder_embed(self.norm(self.encode(take(patches, keep), take(pos, keep))))
        fill = self.mask_token.expand(B, L - self.kept, -1)
        pos = self.decoder_pos_embed.expand(B, -1, -1)
        x = torch.cat([x, fill], dim=1) + torch.cat([pos[:, :1], take(pos[:, 1:], ids)], dim=1)
        x = self.run(self.decoder_blocks, x)
        return self.decoder_pred(self.decoder_norm(x[:, 1 + self.kept :]))

    def forward(self, volume, ids):  # ids: all patches, the kept ones first
        patches = patchify(volume, self.patch)
        pred = self.predict(patches, ids)
        return reconstruction_loss(pred, take(patches, ids[:, self.kept :]), self.mask_token.dtype)


def reconstruction_loss(pred, patches, dtype):
    patches = patches.to(dtype)
    target = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    return ((pred.to(dtype) - target) ** 2).mean()


class BrainAge(Encoder):
    def __init__(self, grid, patch, encoder):
        super().__init__(grid, patch, encoder)
        self.fc_norm, self.head = nn.LayerNorm(encoder[0], eps=1e-6), nn.Linear(encoder[0], 1)
        self.init_linear()
        nn.init.normal_(self.head.weight, std=2e-5)

    def predict(self, volume):
        x = self.encode(patchify(volume, self.patch), self.pos_embed[:, 1:])
        return self.head(self.fc_norm(x[:, 1:].mean(dim=1)))[:, 0]

    def forward(self, volume, age):
        return F.l1_loss(self.predict(volume).to(age.dtype), age)


def make_model(mode, preset, grid, patch):
    encoder, decoder = PRESETS[preset]
    return Mae(grid, patch, encoder, decoder) if mode == "pretrain" else BrainAge(grid, patch, encoder)


def make_optimiser(model, lr, **how):
    params = list(model.parameters())
    groups = [
        dict(params=[p for p in params if p.ndim > 1], weight_decay=0.05),
        dict(params=[p for p in params if p.ndim == 1], weight_decay=0.0),
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), **how)


def products(mode, preset, grid, patch, batch):
    """The matrix products of a forward pass: linear layers as (rows, outputs, inputs, times), patch embedding first,
    and attentions as (length, heads, head width, times)."""
    (dim, depth, heads), (ddim, ddepth, dheads) = PRESETS[preset]
    tokens, values = math.prod(n // patch for n in grid), patch**3
    kept = int(tokens * (1 - MASK_RATIO)) if mode == "pretrain" else tokens

    def blocks(rows, d, times):
        return [
            (rows, 3 * d, d, times),
            (rows, d, d, times),
            (rows, 4 * d, d, times),
            (rows, d, 4 * d, times),
        ]

    seen = batch * (1 + kept)
    linear = [(batch * kept, dim, values, 1)] + blocks(seen, dim, depth)
    attention = [(1 + kept, heads, dim // heads, depth)]
    if mode == "finetune":
        return linear + [(batch, 1, dim, 1)], attention
    linear += [(seen, ddim, dim, 1)] + blocks(batch * (1 + tokens), ddim, ddepth)
    linear += [(batch * (tokens - kept), values, ddim, 1)]
    return linear, attention + [(1 + tokens, dheads, ddim // dheads, ddepth)]


def flops(mode, preset, grid, patch, batch):
    """Multiplications and additions of a step's matrix products, as `gyrus bench step` counts them: a linear layer has
    three, but the patch embedding two, for nobody asks for the volume's gradient; an attention has two and five.
    """
    linear, attention = products(mode, preset, grid, patch, batch)
    once = [2 * m * n * k * times for m, n, k, times in linear]
    heads = [2 * batch * h * length**2 * width * times for length, h, width, times in attention]
    return 3 * sum(once) - once[0] + 7 * sum(heads)


# The machine.

SDPA = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def sdpa_ms(backend, attention, batch, dtype):
    """Milliseconds that a step's attentions take, forward and backward."""
    total = 0.0
    for length, heads, width, times in attention:
        packed = measure.uniform(batch, length, 3, heads, width, device="cuda", dtype=dtype)
        q, k, v = (x.detach().requires_grad_() for x in packed.permute(2, 0, 3, 1, 4))
        gradient = measure.uniform(batch, length, heads, width, device="cuda", dtype=dtype).transpose(1, 2)

        def both():
            torch.autograd.grad(F.scaled_dot_product_attention(q, k, v), (q, k, v), gradient)

        with sdpa_kernel(backend):
            total += times * measure.median_min_us(both, "cuda", budget_s=0.05)[0] / 1e3
    return total


def choose_sdpa(wanted, attention, batch, dtype):
    """Lets PyTorch use one attention alone, the fastest where none is wanted; returns it, and what each took."""
    found = {}
    for name, backend in SDPA.items():
        if wanted in ("best", name):
            with contextlib.suppress(RuntimeError):  # an attention that this build, card or dtype lacks
                found[name] = sdpa_ms(backend, attention, batch, dtype)
    if not found:
        raise RuntimeError(f"no attention of {list(SDPA)} runs here as {dtype}")
    best = min(found, key=found.get)
    torch.backends.cuda.enable_flash_sdp(best == "flash")
    torch.backends.cuda.enable_cudnn_sdp(best == "cudnn")
    torch.backends.cuda.enable_mem_efficient_sdp(best == "efficient")
    torch.backends.cuda.enable_math_sdp(False)
    return best, found


class Step:
    """A training step, ready to be called once `prepare` has run; `loss` is the last one's."""

    MODES = {"compile": None, "autotune": "max-autotune-no-cudagraphs"}

    def __init__(self, how, stream, args):
        self.device, self.dtype = args.device, args.dtype
        torch.manual_seed(0)
        self.model = make_model(args.mode, args.preset, args.grid, args.patch).to(args.device).train()
        self.model.stream = stream
        self.forward = self.model
        if how != "eager":
            self.forward = torch.compile(self.model, mode=self.MODES[how], dynamic=False)
        self.params = list(self.model.parameters())
        on_gpu = args.device == "cuda"
        # Only with its rate on the device can AdamW be captured.
        lr = torch.tensor(1.5e-4, device="cuda") if on_gpu else 1.5e-4
        self.optimiser = make_optimiser(self.model, lr, fused=True, capturable=on_gpu)
        self.inputs = inputs(args, self.model)
        self.loss, self.graph = None, None

    def run(self):
        with torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == "bf16"):
            loss = self.forward(*self.inputs)
        loss.backward()
        self.loss = loss.detach()
        nn.utils.clip_grad_norm_(self.params, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def prepare(self, captured):
        """Compiles and warms up, and then captures the whole step, if asked to."""
        self.graph = None
        measure.synchronise(self.device)
        stream = (
            torch.cuda.Stream() if captured else None
        )  # what is captured is warmed up on the stream it is captured on
        with torch.cuda.stream(stream):
            for _ in range(4):
                self.run()
        measure.synchronise(self.device)
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        if captured:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=stream):
                self.run()

    def __call__(self):
        if self.graph:
            self.graph.replay()
        else:
            self.run()


class Steps:
    """Makes the step of a variant; variants that only differ in being captured share what was compiled."""

    def __init__(self, args):
        self.args, self.made, self.step = args, None, None

    def of(self, variant):
        how, *extras = variant.split("+")
        stream = torch.bfloat16 if self.args.dtype == "bf16" and "f32" not in extras else None
        if self.made != (how, stream):
            self.step = None
            torch._dynamo.reset()  # the step before is forgotten, and its memory free, before more is taken
            self.step, self.made = Step(how, stream, self.args), (how, stream)
        self.step.prepare("graph" in extras)
        return self.step


def inputs(args, model):
    """Random volumes, and their masks or ages. Masks are data, as in gyrus: nobody's time includes their making."""
    like = dict(device=args.device)
    volume = torch.randn(args.batch, 1, *args.grid, **like).to(
        torch.bfloat16 if args.dtype == "bf16" else torch.float32
    )
    if args.mode == "pretrain":
        return volume, torch.rand(args.batch, model.tokens, **like).argsort(dim=1)
    return volume, torch.randn(args.batch, **like)


def step_times(step, steps):
    """Milliseconds of each step. On a GPU from event to event, with nothing in between that waits."""
    if step.device == "cpu":
        return [1e3 * measure.seconds(step, "cpu") for _ in range(steps)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    step()
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) for before, after in zip(events, events[1:])]


def measure_variant(variant, steps, peak):
    args, start = steps.args, time.perf_counter()
    step = steps.of(variant)
    ready_s = time.perf_counter() - start
    load = measure.OtherLoad()
    times = sorted(step_times(step, args.steps))
    other, median = load.frac(), statistics.median(times)
    done = flops(args.mode, args.preset, args.grid, args.patch, args.batch) / median / 1e6
    found = dict(
        variant=variant,
        steps_per_s=1e3 / median,
        volumes_per_s=1e3 / median * args.batch,
        step_ms_median=median,
        step_ms_min=times[0],
        step_ms_p90=times[int(0.9 * (len(times) - 1))],
        gflops=done,
        peak_gflops=peak,
        peak_share=done / peak,
        peak_rss=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
    if args.device == "cuda":
        found |= dict(
            peak_memory=torch.cuda.max_memory_allocated(), reserved_memory=torch.cuda.max_memory_reserved()
        )
    params = sum(p.numel() for p in step.params)
    return found | dict(
        params=params, loss=float(step.loss), ready_s=round(ready_s, 1), other_cpu_frac=round(other, 3)
    )


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--mode", choices=("pretrain", "finetune"), default="pretrain")
    parser.add_argument("--grid", type=int, nargs=3, default=(80, 96, 80), metavar=("X", "Y", "Z"))
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--variants", help="separated by commas; compile, and on a GPU compile,compile+graph")
    parser.add_argument("--sdpa", choices=("best", *SDPA), default="best", help="on a GPU")
    parser.add_argument(
        "--budget-s", type=float, default=math.inf, help="start no variant after this many seconds"
    )
    parser.add_argument("--tuned", action="store_true", help=start_tuned.__doc__)
    args = parser.parse_args()
    args.variants = (
        args.variants or ("compile,compile+graph" if args.device == "cuda" else "compile")
    ).split(",")
    if args.device == "cpu" and any("+graph" in variant for variant in args.variants):
        parser.error("only a GPU's steps can be captured")
    if any(n % args.patch for n in args.grid):
        parser.error("the grid is not made of whole patches")
    return args


def main():
    args, start = arguments(), time.perf_counter()
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    about = {
        key: vars(args)[key]
        for key in ("preset", "mode", "grid", "patch", "batch", "device", "dtype", "tuned")
    }
    about |= dict(torch=torch.__version__, threads=torch.get_num_threads())
    if args.device == "cuda":
        attention = products(args.mode, args.preset, args.grid, args.patch, args.batch)[1]
        best, found = choose_sdpa(args.sdpa, attention, args.batch, dtype)
        about |= dict(gpu=torch.cuda.get_device_name(), cuda=torch.version.cuda, sdpa=best, sdpa_ms=found)
    peak, steps, succeeded = measure.product_gflops(args.device, dtype), Steps(args), 0
    for variant in args.variants:
        found = dict(variant=variant)
        if time.perf_counter() - start > args.budget_s:
            found["error"] = "no time was left"
        else:
            try:
                found |= measure_variant(variant, steps, peak)
                succeeded += 1
            except Exception as error:  # one variant that a machine cannot run says nothing of the others
                traceback.print_exc()
                found["error"] = f"{type(error).__name__}: {error}"[:300]
        print(json.dumps(about | found), flush=True)
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
