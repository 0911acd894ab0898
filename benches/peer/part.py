#!/usr/bin/env python3
"""Runs one part of a GPU run, within its time, and appends what came of it to OUT/run.jsonl.

    part.py --out OUT --deadline EPOCH [--only REGEX] KIND CASE PROGRAM LIMIT_S -- COMMAND..

The JSON lines that the command prints are kept as `found`, all that it prints goes to OUT/log.txt. A part is `ok` when
its command exits with 0; a `sanitizer` also needs summaries, and none with an error; a `control`, a sanitizer on a
planted fault, is ok when the fault is reported.
"""

import argparse
import json
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import time

RESERVED_S = 5  # for the table, last
SUMMARY = re.compile(r"^========= (?:ERROR|RACECHECK|LEAK) SUMMARY: (\d+) .*", re.MULTILINE)


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument(
        "--deadline", type=float, required=True, help="of the whole run, in seconds since 1970"
    )
    parser.add_argument(
        "--only", default="", help="parts whose `KIND CASE PROGRAM` matches this; others are left out"
    )
    parser.add_argument("kind")
    parser.add_argument("case")
    parser.add_argument("program")
    parser.add_argument("limit_s", type=float)
    parser.add_argument("command", nargs="+")
    return parser.parse_args()


def run(command, limit_s):
    """What `command` prints, its exit status (-1 where it does not start, 124 where it is stopped), and its seconds."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as output:
        try:
            child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        except OSError as error:
            return str(error), -1, 0.0
        try:
            status = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            # Its own process group: what it started ends with it.
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            status = 124
        output.seek(0)
        return output.read().decode(errors="replace"), status, time.monotonic() - start


def json_lines(output):
    found = []
    for line in output.splitlines():
        if line.startswith("{"):
            try:
                found.append(json.loads(line))
            except ValueError:  # a line that the end cut off
                continue
    return found


def judge(kind, output, status):
    """Whether the part is ok, and what it says."""
    last = output.strip().splitlines()[-1:] or [""]
    if kind not in ("sanitizer", "control"):
        return status == 0, last[0][:300]
    summaries = list(SUMMARY.finditer(output))
    if not summaries:
        return False, f"no summary: {last[0]}"[:300]
    errors, said = sum(int(s[1]) for s in summaries), "; ".join(
        s[0].removeprefix("========= ") for s in summaries
    )
    return (errors > 0 and status != 0) if kind == "control" else (errors == 0 and status == 0), said


def main():
    args = arguments()
    name = f"{args.kind} {args.case} {args.program}"
    if not re.search(args.only, name):
        return
    args.out.mkdir(parents=True, exist_ok=True)
    about = dict(kind=args.kind, case=args.case, program=args.program)
    limit_s = min(args.limit_s, args.deadline - time.time() - RESERVED_S)
    if limit_s < 3:
        about |= dict(ok=False, says="not run: no time was left", found=[])
    else:
        output, status, seconds = run(args.command, limit_s)
        ok, says = judge(args.kind, output, status)
        if status == 124:
            says = f"stopped after {limit_s:.0f} s; last: {says}"
        about |= dict(ok=ok, says=says, status=status, seconds=round(seconds, 1), found=json_lines(output))
        with open(args.out / "log.txt", "a") as log:
            log.write(
                f"== {name}: {' '.join(args.command)}\n{output}\n== exit status {status}, {seconds:.1f} s\n\n"
            )
    with open(args.out / "run.jsonl", "a") as record:
        record.write(json.dumps(about) + "\n")
    shown = "" if about["ok"] and about["found"] else f": {about['says'][:120]}"
    print(
        f"{'ok  ' if about['ok'] else 'FAIL'} {about.get('seconds', 0.0):6.1f} s  {name}{shown}", flush=True
    )


if __name__ == "__main__":
    main()
