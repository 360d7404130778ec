#!/usr/bin/env bash
# One visit to a GPU machine: build, `pytest -m gpu`, benchmarks, in under nine minutes. No venv and no network needed.
#
#   PYTHON=python3 OUT=build/gpu-session benchmarks/gpu_session.sh
#
# Needs torch for CUDA with its nvcc, numpy, safetensors, setuptools, ninja, pytest, pytest-benchmark. Logs and the JSON
# are copied to $OUT as they appear; the exit status is that of the first phase that failed.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
OUT=${OUT:-build/gpu-session}
TOTAL=${TOTAL:-510} # seconds
PROBE=${PROBE:-60}  # of these at most for asking torch which device there is: a broken driver may never answer
mkdir -p "$OUT"
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 MCFHE_WITH_CUDA=1
export MAX_JOBS=${MAX_JOBS:-$(nproc)}
STATUS=0
SUMMARY=()

left() { echo $((TOTAL - SECONDS)); }

# phase NAME LIMIT COMMAND...: run within LIMIT seconds, log to $OUT/NAME.log, note the outcome.
phase() {
    local name=$1 limit=$2 start=$SECONDS code
    shift 2
    if ((limit < 5)); then
        SUMMARY+=("$(printf '%-8s not run: no time left' "$name")")
        ((STATUS)) || STATUS=124
        return 124
    fi
    timeout --kill-after=10 "$limit" "$@" > "$OUT/$name.log" 2>&1
    code=$?
    SUMMARY+=("$(printf '%-8s exit %d after %d s' "$name" "$code" $((SECONDS - start)))")
    if ((code)); then
        ((STATUS)) || STATUS=$code
        echo "--- $name failed; the end of its log:"
        tail -n 40 "$OUT/$name.log"
    fi
    return "$code"
}

INTERRUPTIBLE_PYTEST='
import signal, sys, pytest
signal.signal(signal.SIGTERM, signal.default_int_handler)
sys.exit(pytest.main(sys.argv[1:]))'

least() { (($1 < $2)) && echo "$1" || echo "$2"; }

if [ -z "${TORCH_CUDA_ARCH_LIST:-}" ]; then
    TORCH_CUDA_ARCH_LIST=$(timeout --kill-after=5 "$PROBE" "$PYTHON" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || {
        echo "gpu_session: torch sees no CUDA device, or does not say so within $PROBE s" >&2
        exit 1
    }
    export TORCH_CUDA_ARCH_LIST
fi
timeout --kill-after=5 30 nvidia-smi > "$OUT/nvidia-smi.log" 2>&1

if phase build "$(least 200 "$(left)")" "$PYTHON" setup.py build_ext --inplace; then
    # A test that takes a minute shows where it stands; at the limit pytest stops and lists what failed so far.
    phase tests "$(least 190 $(($(left) - 120)))" "$PYTHON" -c "$INTERRUPTIBLE_PYTEST" tests/gpu -m "gpu and not slow" \
        -v -p no:cacheprovider -o faulthandler_timeout=60
    limit=$(left)
    phase bench "$limit" "$PYTHON" -m benchmarks.gpu --budget $((limit > 60 ? limit - 45 : 15)) --out "$OUT/gpu.json"
fi

echo "=== tests"
[ -f "$OUT/tests.log" ] && tail -n 12 "$OUT/tests.log"
echo "=== benchmarks"
[ -f "$OUT/bench.log" ] && tail -n 150 "$OUT/bench.log"
echo "=== phases"
printf '%s\n' "${SUMMARY[@]}"
echo "total $SECONDS s; logs and gpu.json in $OUT"
exit "$STATUS"
