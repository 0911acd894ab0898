#!/usr/bin/env python3
"""The same training step in PyTorch, as a good practitioner writes it, to hold `gyrus bench step` against.

A 3-D masked autoencoder: only the kept patches are embedded, scaled_dot_product_attention, torch.compile, fused AdamW,
clipping at 1; f32 on the CPU. Prints one JSON line with the names of `gyrus bench step --json`, and `other_cpu_frac`,
the share of the machine that other processes used meanwhile (below 0.04 is quiet).

    peer_mae.py --preset tiny --steps 20 [--tuned]
"""
import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

GRID, PATCH, MASK_RATIO = (80, 96, 80), 16, 0.75
PRESETS = {  # width, depth, heads of the encoder, then of the decoder
    "tiny": ((192, 6, 3), (192, 2, 3)),
    "small": ((384, 12, 6), (192, 4, 3)),
    "base": ((768, 12, 12), (384, 8, 6)),
    "large": ((1024, 24, 16), (512, 8, 8)),
}


def start_tuned():
    """Starts again with what stock PyTorch lacks on a processor that is not Intel's: MKL takes its AVX-512 path, and
    malloc keeps freed memory instead of returning it after every large tensor."""
    if os.environ.get("PEER_TUNED"):
        return
    library = os.path.join(tempfile.gettempdir(), f"peer_mkl_{os.getuid()}.so")
    source = "int mkl_serv_intel_cpu_true(void){return 1;}\nint mkl_serv_intel_cpu(void){return 1;}\n"
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", library], input=source.encode(), check=True)
    keep = {"MALLOC_TRIM_THRESHOLD_": str(1 << 36), "MALLOC_MMAP_THRESHOLD_": str(1 << 36), "MALLOC_TOP_PAD_": str(1 << 26)}
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PEER_TUNED": "1", "LD_PRELOAD": library, **keep})


if "--tuned" in sys.argv:
    start_tuned()

import torch
import torch.nn.functional as F
from torch import nn


def positions(dim, grid):
    """Sines and cosines of the three coordinates, 2 ceil(dim / 6) channels each; a row of zeros for the class token."""
    waves = math.ceil(dim / 6)
    rates = 10000.0 ** (-torch.arange(waves, dtype=torch.float64) / waves)
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [a.reshape(-1, 1) * rates for a in axes]
    table = torch.cat([part for a in angles for part in (a.sin(), a.cos())], dim=1)[:, :dim]
    return torch.cat([torch.zeros(1, dim), table.float()]).unsqueeze(0)


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):  # [B, L, D]
        B, L, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, L, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, L, D))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


def take(x, ids):
    return x.gather(1, ids.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


class Mae(nn.Module):
    def __init__(self, encoder, decoder):
        super().__init__()
        (dim, depth, heads), (ddim, ddepth, dheads) = encoder, decoder
        grid = [n // PATCH for n in GRID]
        self.tokens = math.prod(grid)
        self.kept = int(self.tokens * (1 - MASK_RATIO))
        self.patch_embed = nn.Linear(PATCH ** 3, dim)
        self.cls_token, self.mask_token = (nn.Parameter(0.02 * torch.randn(1, 1, d)) for d in (dim, ddim))
        self.register_buffer("pos_embed", positions(dim, grid))
        self.register_buffer("decoder_pos_embed", positions(ddim, grid))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm, self.decoder_norm = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(ddim, eps=1e-6)
        self.decoder_embed, self.decoder_pred = nn.Linear(dim, ddim), nn.Linear(ddim, PATCH ** 3)
        self.decoder_blocks = nn.ModuleList(Block(ddim, dheads) for _ in range(ddepth))
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.xavier_uniform_(m.weight)
                nn.init.zeros_(m.bias)

    def forward(self, volume):  # [B, 1, X, Y, Z]
        B, p, (gx, gy, gz) = volume.shape[0], PATCH, [n // PATCH for n in GRID]
        patches = volume.view(B, gx, p, gy, p, gz, p).permute(0, 1, 3, 5, 2, 4, 6).reshape(B, self.tokens, p ** 3)
        ids_shuffle = torch.rand(B, self.tokens).argsort(dim=1)
        ids_restore, ids_keep = ids_shuffle.argsort(dim=1), ids_shuffle[:, :self.kept]
        mask = (ids_restore >= self.kept).float()

        pos = self.pos_embed.expand(B, -1, -1)
        x = self.patch_embed(take(patches, ids_keep)) + take(pos[:, 1:], ids_keep)
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(B, -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.decoder_embed(self.norm(x))
        fill = self.mask_token.expand(B, self.tokens - self.kept, -1)
        x = torch.cat([x[:, :1], take(torch.cat([x[:, 1:], fill], dim=1), ids_restore)], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        pred = self.decoder_pred(self.decoder_norm(x))[:, 1:]

        target = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
        return (((pred - target) ** 2).mean(-1) * mask).sum() / mask.sum()


class OtherLoad:
    """The share of the machine's processors that other processes use between its making and `frac`."""
    def __init__(self):
        self.start, self.own, self.busy = time.perf_counter(), time.process_time(), self.machine()

    @staticmethod
    def machine():
        with open("/proc/stat") as f:
            user, nice, system, _, _, irq, softirq = map(int, f.readline().split()[1:8])
        return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")

    def frac(self):
        seconds = os.cpu_count() * (time.perf_counter() - self.start)
        return max(0.0, (self.machine() - self.busy - (time.process_time() - self.own)) / seconds)


def product_gflops(n=2048):
    a, b, best = torch.randn(n, n), torch.randn(n, n), math.inf
    for _ in range(7):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * n ** 3 / best / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--tuned", action="store_true", help=start_tuned.__doc__)
    args = parser.parse_args()

    torch.manual_seed(0)
    model = Mae(*PRESETS[args.preset]).train()
    params = list(model.parameters())
    groups = [dict(params=[p for p in params if p.ndim > 1], weight_decay=0.05),
              dict(params=[p for p in params if p.ndim == 1], weight_decay=0.0)]
    optimiser = torch.optim.AdamW(groups, lr=1.5e-4, betas=(0.9, 0.95), fused=True)
    compiled = model if args.eager else torch.compile(model, dynamic=False)
    volume = torch.randn(args.batch, 1, *GRID)

    def step():
        loss = compiled(volume)
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return loss

    for _ in range(4):
        step()
    load, times = OtherLoad(), []
    for _ in range(args.steps):
        start = time.perf_counter()
        loss = step()
        times.append(1e3 * (time.perf_counter() - start))
    other, median = load.frac(), statistics.median(times)
    peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(dict(
        torch=torch.__version__, preset=args.preset, batch=args.batch, threads=torch.get_num_threads(),
        compile=not args.eager, tuned=args.tuned, steps_per_s=1e3 / median, volumes_per_s=1e3 / median * args.batch,
        step_ms_median=median, step_ms_min=min(times), step_ms_p90=sorted(times)[int(0.9 * (len(times) - 1))],
        peak_gflops=product_gflops(), peak_rss=peak_rss, loss=float(loss.detach()), other_cpu_frac=round(other, 3))))


if __name__ == "__main__":
    main()
