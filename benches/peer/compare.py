#!/usr/bin/env python3
"""Runs `gyrus bench step` and the PyTorch peer in turn, and prints how they compare.

    compare.py --python .peer/bin/python [--preset tiny] [--rounds 3] [--tuned] [--record]

Run from the repository's root, after `cargo build --release`, with any Python. Stored numbers are no use on a machine
that others use too: only rounds taken in turn can be compared, and only when `other_cpu_frac` is small.
"""
import argparse
import datetime
import json
import pathlib
import platform
import statistics
import subprocess

HERE = pathlib.Path(__file__).resolve().parent


def last_json(command):
    """The last line of what `command` prints, which is JSON in both programs."""
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def text_of(command):
    return subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.strip()


def processor():
    try:
        with open("/proc/cpuinfo") as f:
            return next(line.split(":")[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gyrus", default="target/release/gyrus")
    parser.add_argument("--python", required=True, help="the Python that has torch")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tuned", action="store_true", help="the peer with MKL's AVX-512 path and a malloc that keeps memory")
    parser.add_argument("--record", action="store_true", help="write benches/results/DATE-PRESET.json too")
    args = parser.parse_args()

    shape = ["--preset", args.preset, "--batch", str(args.batch), "--steps", str(args.steps)]
    peer = [args.python, str(HERE / "peer_mae.py"), *shape, *(["--tuned"] if args.tuned else [])]
    rounds = []
    for i in range(args.rounds):
        ours = last_json([args.gyrus, "bench", "step", "--json", *shape])
        theirs = last_json(peer)
        rounds.append(dict(gyrus=ours, peer=theirs))
        print(f"round {i + 1}: gyrus {ours['step_ms_median']:.1f} ms, peer {theirs['step_ms_median']:.1f} ms, "
              f"others used {100 * theirs['other_cpu_frac']:.0f} % of the machine", flush=True)

    both = lambda key, reduce: [reduce(r[who][key] for r in rounds) for who in ("gyrus", "peer")]
    rows = [("step, ms, median of medians", *both("step_ms_median", statistics.median)),
            ("step, ms, least", *both("step_ms_min", min)),
            ("square product, GFLOP/s, most", *both("peak_gflops", max)),
            ("memory, MiB, most", *(b / 2 ** 20 for b in both("peak_rss", max)))]
    print(f"\n{'':32}{'gyrus':>10}{'peer':>10}{'peer/gyrus':>12}")
    for name, ours, theirs in rows:
        print(f"{name:32}{ours:10.1f}{theirs:10.1f}{theirs / ours:12.2f}")

    if args.record:
        today = datetime.date.today().isoformat()
        machine = dict(processor=processor(), threads=rounds[0]["gyrus"]["threads"], system=platform.system())
        record = dict(date=today, commit=text_of(["git", "describe", "--always", "--dirty"]), machine=machine,
                      command={k: v for k, v in vars(args).items() if k not in ("python", "gyrus")}, rounds=rounds)
        name = f"{today}-{args.preset}{'-tuned' if args.tuned else ''}.json"
        (HERE.parent / "results" / name).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
