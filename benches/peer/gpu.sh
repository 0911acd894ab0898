#!/usr/bin/env bash
# Everything that needs a GPU, in one go: checks, sanitizers, gyrus and its PyTorch peer in turn. Needs a built gyrus, a
# Python with PyTorch, and the CUDA toolkit; neither Rust nor a network. A part that fails does not stop the others.
#
#   gpu.sh OUT [GYRUS]        OUT gets run.jsonl (a line for each part), log.txt and table.txt
#
# Exits with 1 when a part failed or was left out.
#
# BUDGET_S    seconds for all of it (540); what is worth most comes first, what is left over is reported as not run
# ONLY        a regular expression: only parts whose `kind case program` matches, e.g. '^step base' or 'sanitizer'
# PYTHON      the Python with PyTorch (python3)
# SANITIZED   names of cases that run under sanitizers, each by itself (all cases together)
# COMMIT      what was built, where git cannot say
set -uo pipefail

out=${1:?usage: gpu.sh OUT [GYRUS]}
gyrus=${2:-target/release/gyrus}
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
deadline=$(($(date +%s) + ${BUDGET_S:-540}))
export PYTHONUNBUFFERED=1
mkdir -p "$out"
case $gyrus in */*) ;; *) gyrus=./$gyrus ;; esac

part() { # KIND CASE PROGRAM LIMIT_S COMMAND..
    "$python" "$here/part.py" --out "$out" --deadline "$deadline" --only "${ONLY:-}" "${@:1:4}" -- "${@:5}"
}

# The steps that are timed: preset, mode, grid, patch, batch.
shape() { # PRESET MODE X Y Z PATCH BATCH
    shape=(--preset "$1" --mode "$2" --grid "$3" "$4" "$5" --patch "$6" --batch "$7")
    label="$1 $2 $3x$4x$5/$6 batch $7"
}
gyrus_step() { # LIMIT_S SHAPE..
    shape "${@:2}"
    part step "$label" gyrus "$1" "$gyrus" bench step --device cuda --steps 30 --json "${shape[@]}"
}
peer_step() { # LIMIT_S VARIANTS SHAPE..
    shape "${@:3}"
    part step "$label" peer "$1" "$python" "$here/peer_mae.py" --device cuda --dtype bf16 --steps 30 \
        --variants "$2" --budget-s "$(($1 - 20))" "${shape[@]}"
}
ops() { # GYRUS_LIMIT_S PEER_LIMIT_S KINDS SHAPE..
    shape "${@:4}"
    part ops "$label" gyrus "$1" "$gyrus" bench ops --device cuda --json "${shape[@]}"
    part ops "$label" peer "$2" "$python" "$here/peer_ops.py" --device cuda --kinds "$3" \
        --budget-s "$(($2 - 10))" "${shape[@]}"
}

# compute-sanitizer, which lies beside nvcc or in a folder of its own.
find_tool() {
    local nvcc toolkit tool
    nvcc=$(readlink -f "$(command -v nvcc || echo "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc")")
    toolkit=${nvcc%/bin/nvcc}
    for tool in "$(command -v "$1")" "$toolkit"/bin/"$1" "$toolkit"/compute-sanitizer/"$1"; do
        [ -f "$tool" ] && [ -x "$tool" ] && { echo "$tool"; return; }
    done
    echo "$1"
}
sanitizer=$(find_tool compute-sanitizer)
sanitize() { # KIND CASE TOOL LIMIT_S COMMAND..
    local options=(--tool "$3" --error-exitcode 9 --print-limit 20)
    # gyrus asks the driver for one parameter more than a kernel has, to see that it has no more, and looks at what
    # every call returns itself.
    [ "$3" = memcheck ] && options+=(--report-api-errors no)
    part "$1" "$2" "$3" "$4" "$sanitizer" "${options[@]}" "${@:5}"
}
faults=$(mktemp -d)
trap 'rm -rf "$faults"' EXIT

base=(base pretrain 160 192 160 16 32)
finetune=(base finetune 160 192 160 16 32)
large=(large pretrain 160 192 160 16 32)
patch8=(base pretrain 80 96 80 8 32)
coarse=(base pretrain 80 96 80 16 128)
small=(small pretrain 80 96 80 16 64)
tiny=(tiny pretrain 80 96 80 16 4)

part machine "names, clocks, ceilings" peer 30 "$python" "$here/measure.py"
part check "every case" gyrus 60 "$gyrus" check --device cuda
gyrus_step 30 "${base[@]}"
gyrus_step 30 "${finetune[@]}"
gyrus_step 30 "${large[@]}"
gyrus_step 30 "${patch8[@]}"
gyrus_step 30 "${coarse[@]}"
gyrus_step 30 "${small[@]}"
gyrus_step 30 "${tiny[@]}"
peer_step 150 compile,compile+graph "${base[@]}"
gyrus_step 30 "${base[@]}"
ops 30 100 eager,compiled "${base[@]}"

part build "planted faults" nvcc 40 "$(find_tool nvcc)" -arch=native -o "$faults/faults" "$here/faults.cu"
for tool in memcheck racecheck synccheck initcheck; do
    sanitize control "planted fault" "$tool" 20 "$faults/faults" "$tool"
    for filter in ${SANITIZED:-""}; do
        sanitize sanitizer "${filter:-every case}" "$tool" 60 "$gyrus" check --device cuda ${filter:+"$filter"}
    done
done

peer_step 100 compile+graph "${finetune[@]}"
peer_step 100 compile+graph "${tiny[@]}"
peer_step 120 compile+graph "${large[@]}"
peer_step 100 compile+graph "${patch8[@]}"
peer_step 100 compile+graph "${coarse[@]}"
peer_step 100 compile+graph "${small[@]}"
peer_step 300 compile+f32+graph,autotune+graph "${base[@]}"
ops 30 100 eager,compiled "${large[@]}"
ops 30 100 eager,compiled "${patch8[@]}"

echo
"$python" "$here/compare.py" --run "$out" | tee "$out/table.txt"
