#!/usr/bin/env python3
"""Clocks, and what a machine is and reaches: shared by the peer's programs. By itself it prints one JSON line: names,
versions, clocks, and the two ceilings (a large copy, a large square product)."""

import datetime
import json
import math
import os
import platform
import statistics
import time

import torch

from host import processor, text_of

GROUP = 10  # calls that are queued at once
BACKLOG_CYCLES = 6_000_000  # about 3 ms in which the host queues a group
FLUSH_BYTES = 1 << 28  # several times the second-level cache of an H100 (50 MB) or H200 (60 MB)


def synchronise(device):
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(fn, device):
    synchronise(device)
    start = time.perf_counter()
    fn()
    synchronise(device)
    return time.perf_counter() - start


class Flush:
    """Fills the second-level cache with something else. It reads, so that nothing is left to be written back."""

    def __init__(self):
        self.other = torch.ones(FLUSH_BYTES // 4, device="cuda")

    def __call__(self):
        self.other.sum()


def times_ms(fn, device, calls, flush=None):
    """Milliseconds of each of `calls` calls.

    On a GPU they are queued behind a pause, a group at a time: events then measure the device alone and not how fast
    the host launches. With `flush`, what `fn` reads is not in the cache. On a CPU it is wall time, in a warm cache.
    """
    if device == "cpu":
        return [1e3 * seconds(fn, device) for _ in range(calls)]
    times = []
    while len(times) < calls:
        pairs = [
            [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            for _ in range(min(GROUP, calls - len(times)))
        ]
        torch.cuda._sleep(BACKLOG_CYCLES)
        for before, after in pairs:
            if flush:
                flush()
            before.record()
            fn()
            after.record()
        torch.cuda.synchronize()
        times += [before.elapsed_time(after) for before, after in pairs]
    return times


def median_min_us(fn, device, flush=None, budget_s=0.3, most=100):
    """Median and least microseconds of a call, over as many calls as fit the budget (10 to `most`)."""
    for _ in range(3):
        fn()
    once = seconds(fn, device)
    calls = min(most, max(10 if device == "cuda" else 3, int(budget_s / max(once, 1e-6))))
    times = times_ms(fn, device, calls, flush)
    return 1e3 * statistics.median(times), 1e3 * min(times)


def uniform(*shape, device, dtype):
    """Random in [-1, 1]: a GPU is faster on zeros than it will ever be on data."""
    return (2 * torch.rand(*shape, device=device) - 1).to(dtype)


def product_gflops(device, dtype, n=None):
    """GFLOP/s of a square product: the median call on a GPU, where short runs ride on fresh clocks; the best of
    several on a CPU, where others may be at work."""
    n = n or (8192 if device == "cuda" else 2048)
    a, b = (uniform(n, n, device=device, dtype=dtype) for _ in range(2))
    median, least = median_min_us(lambda: a @ b, device, budget_s=0.5, most=50)
    return 2 * n**3 / (median if device == "cuda" else least) / 1e3


def copy_gbs(device):
    """GB/s of a large copy, bytes read and bytes written together."""
    elements = 1 << (28 if device == "cuda" else 24)
    source = uniform(elements, device=device, dtype=torch.float32)
    target = torch.empty_like(source)
    return 8 * elements / median_min_us(lambda: target.copy_(source), device)[0] / 1e3


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
        spent = os.cpu_count() * (time.perf_counter() - self.start)
        return max(0.0, (self.machine() - self.busy - (time.process_time() - self.own)) / spent)


def nvidia_smi():
    fields = [
        "name",
        "driver_version",
        "memory.total",
        "clocks.sm",
        "clocks.max.sm",
        "clocks.mem",
        "power.limit",
    ]
    found = text_of(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "--id=0"])
    return dict(zip(fields, (value.strip() for value in found.split(",")))) if found else {}


def machine(device):
    found = dict(
        torch=torch.__version__,
        processor=processor(),
        threads=torch.get_num_threads(),
        system=platform.system(),
    )
    if device == "cuda":
        about = torch.cuda.get_device_properties(0)
        found |= dict(
            gpu=about.name,
            cuda=torch.version.cuda,
            multiprocessors=about.multi_processor_count,
            cache_bytes=about.L2_cache_size,
            memory_bytes=about.total_memory,
            cudnn=torch.backends.cudnn.version(),
        )
    return found


def main():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    found = dict(date=datetime.date.today().isoformat(), device=device, **machine(device))
    found["commit"] = os.environ.get("COMMIT") or text_of(["git", "describe", "--always", "--dirty"])
    found |= dict(peak_gflops=product_gflops(device, dtype), copy_gbs=copy_gbs(device))
    if device == "cuda":
        nothing = times_ms(lambda: None, device, 50)
        found |= dict(event_us=1e3 * statistics.median(nothing), nvidia_smi=nvidia_smi())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
