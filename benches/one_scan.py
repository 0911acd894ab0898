"""Times `gyrus qc` and `gyrus distort` on one scan of 256x256x180 voxels of 1 mm and one core; standard library only.

    cargo build --release && python3 benches/one_scan.py --rounds 5 --record benches/results/DATE-one-scan.json

The scan is a synthetic head (`gyrus phantom`) whose field of view is filled up with its own air, as .nii.gz in int16.
"""
import argparse
import array
import datetime
import gzip
import json
import os
import pathlib
import random
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time

from peer.host import processor, text_of

SHAPE = (256, 256, 180)


def widened(path, out, air):
    """Copies the image `path` to `out` with SHAPE voxels: its longest axes first, the image in the middle, `air` around."""
    data = gzip.open(path).read()
    dims = struct.unpack_from("<3h", data, 42)
    code, offset = struct.unpack_from("<h", data, 70)[0], int(struct.unpack_from("<f", data, 108)[0])
    voxels = array.array({2: "B", 4: "h", 16: "f"}[code], data[offset:])
    slope, inter = struct.unpack_from("<2f", data, 112)
    order = sorted(range(3), key=lambda axis: -dims[axis])
    low = [(n - dims[axis]) // 2 for n, axis in zip(SHAPE, order)]
    assert min(low) >= 0, f"{path}: {dims} does not fit"
    steps = (1, dims[0], dims[0] * dims[1])
    a, b, c = order
    if air:
        # The first plane across the shortest axis has nothing but air.
        pool = [v for j in range(dims[b]) for v in voxels[j * steps[b] : j * steps[b] + dims[a] * steps[a] : steps[a]]]
        random.Random(0).shuffle(pool)
    else:
        pool = [0] * 40_000
    pool, at = array.array(voxels.typecode, pool), random.Random(1)
    image = array.array(voxels.typecode)
    for k in range(SHAPE[2]):
        for j in range(SHAPE[1]):
            start = at.randrange(len(pool) - SHAPE[0])
            row = pool[start : start + SHAPE[0]]
            if 0 <= j - low[1] < dims[b] and 0 <= k - low[2] < dims[c]:
                first = (j - low[1]) * steps[b] + (k - low[2]) * steps[c]
                row[low[0] : low[0] + dims[a]] = voxels[first : first + dims[a] * steps[a] : steps[a]]
            image.extend(row)
    scaled = array.array("h", (round(slope * v + inter) for v in image)) if air else image
    header = bytearray(data[:352])
    struct.pack_into("<8h", header, 40, 3, *SHAPE, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 4 if air else 2, 16 if air else 8)
    struct.pack_into("<3f", header, 80, 1.0, 1.0, 1.0)
    struct.pack_into("<3f", header, 108, 352.0, 1.0, 0.0)
    # No qform; columns of the sform in the new order, of 1 mm.
    struct.pack_into("<2h", header, 252, 0, 1)
    for row in range(3):
        old = struct.unpack_from("<4f", header, 280 + 16 * row)
        columns = [(1.0 if old[axis] > 0 else -1.0) * (abs(old[axis]) > 0.5) for axis in order]
        struct.pack_into("<4f", header, 280 + 16 * row, *columns, -sum(c * n / 2 for c, n in zip(columns, SHAPE)))
    out.parent.mkdir(parents=True)
    with gzip.open(out, "wb", compresslevel=6) as file:
        file.write(bytes(header) + scaled.tobytes())


def ticks():
    """Of all processors since the system started: busy, and in all."""
    values = [int(v) for v in open("/proc/stat").readline().split()[1:9]]
    return sum(values) - values[3] - values[4], sum(values)


def timed(command, folder):
    """Processor and wall seconds of a command on one core."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    env = {**os.environ, "RAYON_NUM_THREADS": "1"}
    subprocess.run(command, cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gyrus", type=pathlib.Path, default=pathlib.Path("target/release/gyrus"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", type=pathlib.Path)
    args = parser.parse_args()
    gyrus = str(args.gyrus.resolve())
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        phantom = [gyrus, "phantom", "--out", "heads", "--subjects", "1", "--spacing", "1"]
        subprocess.run(phantom, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        for name, air in [
            ("sub-001/anat/sub-001_T1w.nii.gz", True),
            ("derivatives/phantom/sub-001/anat/sub-001_desc-brain_mask.nii.gz", False),
        ]:
            widened(folder / "heads" / name, folder / "scan" / name, air)
        (folder / "scan" / "participants.tsv").write_text("participant_id\tage\nsub-001\t50\n")
        commands = {"qc": ["qc", "scan"]} | {f"distort {n}": ["distort", "scan", "--level", str(n)] for n in range(1, 5)}
        found = {name: [] for name in commands}
        before = ticks()
        for number in range(args.rounds):
            for name, command in commands.items():
                out = ["--out", f"out-{name.replace(' ', '-')}-{number}"]
                found[name].append(timed([gyrus, *command, *out], folder))
        busy, all_ticks = (now - then for now, then in zip(ticks(), before))
        ours = sum(cpu for rounds in found.values() for cpu, _ in rounds) * os.sysconf("SC_CLK_TCK")
    record = {
        "date": datetime.date.today().isoformat(),
        "commit": text_of(["git", "describe", "--always", "--dirty"]),
        "machine": {"processor": processor(), "cores": os.cpu_count()},
        "command": ["python3", *sys.argv],
        "other_cpu_frac": round(max(0.0, busy - ours) / all_ticks, 3),
        "scan": "256x256x180 voxels of 1 mm, int16, .nii.gz, with a brain mask",
        "seconds": {
            name: {
                "cpu_median": round(statistics.median(cpu for cpu, _ in rounds), 3),
                "wall_median": round(statistics.median(wall for _, wall in rounds), 3),
                "rounds": [{"cpu": round(cpu, 3), "wall": round(wall, 3)} for cpu, wall in rounds],
            }
            for name, rounds in found.items()
        },
    }
    text = json.dumps(record, indent=1) + "\n"
    print(text)
    if args.record:
        args.record.write_text(text)


if __name__ == "__main__":
    main()
