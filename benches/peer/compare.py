#!/usr/bin/env python3
"""Says how gyrus and the PyTorch peer compare, and records it.

    compare.py --python .peer/bin/python [--preset tiny] [--rounds 3] [--tuned] [--record]
    compare.py --run OUT [--record]

The first runs `gyrus bench step` and the peer in turn on this CPU, from the repository's root after `cargo build
--release`. Stored numbers are no use on a machine that others use too: only rounds taken in turn can be compared, and
only when `other_cpu_frac` is small. The second reads what `gpu.sh OUT` left. `--record` writes benches/results/.. too.
"""

import argparse
import datetime
import itertools
import json
import pathlib
import platform
import statistics
import subprocess
import sys

import shapes
from host import processor, text_of

HERE = pathlib.Path(__file__).resolve().parent
OPS_SHOWN = 30  # of each case; run.jsonl has them all


def last_json(command):
    """The last line of what `command` prints, which is JSON in both programs."""
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def commit():
    return text_of(["git", "describe", "--always", "--dirty"])


def write_record(name, record):
    """Under a name that no record has yet."""
    folder = HERE.parent / "results"
    names = itertools.chain([name], (f"{name}-{i}" for i in itertools.count(2)))
    path = next(p for p in (folder / f"{n}.json" for n in names) if not p.exists())
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"recorded as {path}")


# In turn, on a CPU.


def in_turn(args):
    shape = ["--preset", args.preset, "--batch", str(args.batch), "--steps", str(args.steps)]
    peer = [args.python, str(HERE / "peer_mae.py"), *shape, *(["--tuned"] if args.tuned else [])]
    rounds = []
    for i in range(args.rounds):
        ours = last_json([args.gyrus, "bench", "step", "--json", *shape])
        theirs = last_json(peer)
        rounds.append(dict(gyrus=ours, peer=theirs))
        print(
            f"round {i + 1}: gyrus {ours['step_ms_median']:.1f} ms, peer {theirs['step_ms_median']:.1f} ms, "
            f"others used {100 * theirs['other_cpu_frac']:.0f} % of the machine",
            flush=True,
        )

    both = lambda key, reduce: [reduce(r[who][key] for r in rounds) for who in ("gyrus", "peer")]
    rows = [
        ("step, ms, median of medians", *both("step_ms_median", statistics.median)),
        ("step, ms, least", *both("step_ms_min", min)),
        ("square product, GFLOP/s, most", *both("peak_gflops", max)),
        ("memory, MiB, most", *(b / 2**20 for b in both("peak_rss", max))),
    ]
    print(f"\n{'':32}{'gyrus':>10}{'peer':>10}{'peer/gyrus':>12}")
    for name, ours, theirs in rows:
        print(f"{name:32}{ours:10.1f}{theirs:10.1f}{theirs / ours:12.2f}")

    if args.record:
        today = datetime.date.today().isoformat()
        machine = dict(processor=processor(), threads=rounds[0]["gyrus"]["threads"], system=platform.system())
        command = {k: getattr(args, k) for k in ("preset", "batch", "steps", "rounds", "tuned")}
        record = dict(date=today, commit=commit(), machine=machine, command=command, rounds=rounds)
        write_record(f"{today}-{args.preset}{'-tuned' if args.tuned else ''}", record)


# A GPU run.


class Run:
    """What gpu.sh left in a folder."""

    def __init__(self, folder):
        self.parts = [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]
        self.machine = next(
            (line for part in self.parts if part["kind"] == "machine" for line in part["found"]), {}
        )

    def of(self, *kinds):
        return [part for part in self.parts if part["kind"] in kinds]

    def cases(self, kind):
        return list(dict.fromkeys(part["case"] for part in self.of(kind)))

    def lines(self, kind, case, program):
        """JSON lines of a case's parts of a program, those that say what went wrong left out."""
        parts = [p for p in self.of(kind) if p["case"] == case and p["program"] == program]
        return [line for part in parts for line in part["found"] if "error" not in line]

    def name(self):
        return f"{self.machine.get('gpu', 'no GPU')}, CUDA {self.machine.get('cuda', '?')}"


class Table:
    """Columns of numbers between a name and a remark."""

    def __init__(self, name, width, columns, remark):
        self.width, self.columns = width, columns
        heads = "".join(f"{head:>{wide}}" for head, wide, _ in columns)
        print(f"\n{name:{width}}{heads}  {remark}")

    def row(self, name, values, remark):
        cells = [
            f"{'-':>{wide}}" if value is None else f"{value:{wide}.{digits}f}"
            for value, (_, wide, digits) in zip(values, self.columns)
        ]
        print(f"{name:{self.width}}{''.join(cells)}  {remark}")


def quotient(a, b):
    return None if a is None or not b else a / b


def print_machine(run):
    m = run.machine
    print(f"{run.name()}, torch {m.get('torch', '?')}, gyrus {m.get('commit') or '?'}")
    if m:
        print(f"ceilings: product {m['peak_gflops'] / 1e3:.0f} TFLOP/s, copy {m['copy_gbs']:.0f} GB/s")


def print_checks(run):
    for part in run.of("check", "build", "control", "sanitizer"):
        what = f"{part['kind']} {part['program']}, {part['case']}"
        print(f"{'ok  ' if part['ok'] else 'FAIL'} {what}: {part['says'][:90]}")


def print_steps(run):
    columns = [("gyrus ms", 10, 2), ("peer ms", 10, 2), ("peer/gyrus", 12, 2), ("TFLOP/s", 9, 0)]
    table = Table("step", 44, columns + [("GiB", 8, 1), ("peer GiB", 10, 1)], "the peer's best")
    for case in run.cases("step"):
        gyrus, peer = (run.lines("step", case, who) for who in ("gyrus", "peer"))
        best = min(peer, key=lambda line: line["step_ms_median"], default={})
        last = gyrus[-1] if gyrus else {}
        ours = statistics.median(line["step_ms_median"] for line in gyrus) if gyrus else None
        theirs = best.get("step_ms_median")
        memory = [last.get("peak_memory", last.get("planned")), best.get("peak_memory")]
        gib = [quotient(bytes, 2**30) for bytes in memory]
        values = [ours, theirs, quotient(theirs, ours), quotient(last.get("gflops"), 1e3), *gib]
        table.row(case, values, f"{best.get('variant', '')} {best.get('sdpa', '')}")


def microseconds(line):
    return None if line is None else line.get("us", line.get("us_median"))


def least_us(line, machine):
    """What an operation takes at the machine's ceilings, by its peer's rates."""
    if line is None or not machine:
        return None
    flop, byte = line["tflops"] * line["us"] * 1e6, line["gbs"] * line["us"] * 1e3
    return max(flop / machine["peak_gflops"], byte / machine["copy_gbs"]) / 1e3


def key_of(line):
    return line["op"], json.dumps(line["shape"], sort_keys=True)


def print_ops(run):
    columns = [("times", 7, 0), ("gyrus us", 10, 1), ("peer us", 10, 1), ("peer/gyrus", 12, 2)]
    for case in run.cases("ops"):
        ours, best = {}, {}
        for line in run.lines("ops", case, "gyrus"):
            ours |= {key_of(op): op for op in shapes.of(line)}
        for line in run.lines("ops", case, "peer"):
            known = best.get(key_of(line))
            if not line.get("partial") and (known is None or line["us"] < known["us"]):
                best[key_of(line)] = line
        any_of = best | ours
        cost = lambda key: microseconds(any_of[key]) * any_of[key].get("times", 1)
        table = Table(case, 84, columns + [("of ceiling", 12, 2)], "the peer's best")
        for key in sorted(any_of, key=cost, reverse=True)[:OPS_SHOWN]:
            entry = any_of[key]
            us, theirs = microseconds(ours.get(key)), microseconds(best.get(key))
            reached = quotient(least_us(best.get(key), run.machine), us)
            shape = " ".join(f"{name} {value}" for name, value in entry["shape"].items()).replace(", ", "x")
            values = [entry.get("times", 1), us, theirs, quotient(theirs, us), reached]
            table.row(f"{entry['op']}: {shape}", values, best.get(key, {}).get("variant", ""))


def print_failed(run):
    rows = [
        f"{part['kind']} {part['case']} {part['program']}: {part['says']}"
        for part in run.of("machine", "step", "ops")
        if not part["ok"]
    ]
    for part in run.of("step", "ops"):
        variants = {
            (line.get("op", "step"), line.get("variant", "")): line["error"]
            for line in part["found"]
            if "error" in line
        }
        rows += [
            f"{part['case']} {part['program']}, {op} {variant}: {error}"
            for (op, variant), error in variants.items()
        ]
    if rows:
        print("\nfailed or left out:")
    for row in rows:
        print(f"  {row[:150]}")


def of_run(args):
    run = Run(args.run)
    for show in (print_machine, print_checks, print_steps, print_ops, print_failed):
        show(run)
    if args.record:
        date = run.machine.get("date", datetime.date.today().isoformat())
        machine = dict(
            name=run.name(), **{k: v for k, v in run.machine.items() if k not in ("date", "commit")}
        )
        parts = [part for part in run.parts if part["kind"] not in ("machine", "build")]
        card = run.machine.get("gpu", "gpu").lower().replace("nvidia ", "").replace(" ", "-")
        write_record(
            f"{date}-{card}",
            dict(date=date, commit=run.machine.get("commit") or commit(), machine=machine, parts=parts),
        )
    return 0 if all(part["ok"] for part in run.parts) else 1


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=pathlib.Path, metavar="OUT", help="a folder that gpu.sh filled")
    parser.add_argument("--gyrus", default="target/release/gyrus")
    parser.add_argument("--python", help="the Python that has torch")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--tuned", action="store_true", help="the peer with MKL's AVX-512 path and a malloc that keeps memory"
    )
    parser.add_argument(
        "--record", action="store_true", help="write a record of its own to benches/results too"
    )
    args = parser.parse_args()
    if not args.run and not args.python:
        parser.error("one of --run and --python is needed")
    return of_run(args) if args.run else in_turn(args)


if __name__ == "__main__":
    sys.exit(main())
