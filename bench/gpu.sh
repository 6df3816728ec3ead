#!/usr/bin/env bash
# Builds, tests, sanitizes and benchmarks tiledattn on a machine with a GPU, in under 9 minutes.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bench/gpu.sh OUT [--only STAGE] [--force] [--device cuda|cpu] [--seconds N]
       bench/gpu.sh --list | --help

Stages, each with OUT/STAGE.log; one that is done for this commit (where there is none, or the tree differs from it:
for these sources) is not done again:
  environment   device, driver and versions: OUT/environment.json
  build         the native library, in place; with --device cuda its CUDA kernels must build
  tests         the GPU-marked tests, all backends against the reference: OUT/tests.xml
  sanitizers    compute-sanitizer's memcheck, racecheck, initcheck and synccheck on small cases
  benchmark     times beside the peers': OUT/benchmark.json, .md and .html
  scaling       time and memory against canvas, halo and tile, short; into OUT/benchmark.json. If a minute is left
  quality       seams of painted pictures against compute, short, with diffusers: OUT/quality. If a minute is left

  --only STAGE  that stage alone (again: once for each)
  --force       also what is done already
  --device cpu  a rehearsal without a GPU
  --seconds N   for all stages together, default 520; a stage inherits what those before it left

environment: PYTHON (.venv/bin/python beside bench, else python3), TILEDATTN_GPU_JOBS (test processes at a time, with pytest-xdist),
  TILEDATTN_COMMIT (for a copy without .git), TILEDATTN_GPU_SHARES, default "environment=30 build=120 tests=180 sanitizers=70 benchmark=120 scaling=0 quality=0"
exit status: 0 all done, or as much of benchmark, scaling and quality as the time allowed, 1 a stage failed, 2 wrong usage or something is missing, 130 stopped
TEXT
}

STAGES=(environment build tests sanitizers benchmark scaling quality)
SHARES=${TILEDATTN_GPU_SHARES:-environment=30 build=120 tests=180 sanitizers=70 benchmark=120 scaling=0 quality=0}
OPTIONAL=(scaling quality) # no failure where time is short
LEAST_OPTIONAL=60
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[[ -n ${PYTHON:-} || ! -x $ROOT/.venv/bin/python ]] || PYTHON=$ROOT/.venv/bin/python
PYTHON=${PYTHON:-python3}
OUT='' DEVICE=cuda SECONDS_IN_ALL=520 FORCE='' ONLY=()
SKIPPED=77 # exit status of a stage that can't run here and says why
MISSING=78 # of one that lacks something
CUT_SHORT=79 # of one that goes on where it stopped, when the same command is run again

fail() {
  echo "gpu.sh: $1" >&2
  exit 2
}

while (($#)); do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --list) printf '%s\n' "${STAGES[@]}" && exit 0 ;;
    --only | --device | --seconds) (($# > 1)) || fail "$1 needs a value; see --help" ;;&
    --only) ONLY+=("$2") && shift ;;
    --device) DEVICE=$2 && shift ;;
    --seconds) SECONDS_IN_ALL=$2 && shift ;;
    --force) FORCE=1 ;;
    -*) fail "got $1; see --help" ;;
    *) [[ -z $OUT ]] || fail "got two folders, $OUT and $1" && OUT=$1 ;;
  esac
  shift
done
[[ -n $OUT ]] || { usage >&2 && exit 2; }
[[ $DEVICE == cuda || $DEVICE == cpu ]] || fail "--device: got $DEVICE; expected cuda or cpu"
[[ $SECONDS_IN_ALL =~ ^[1-9][0-9]*$ ]] || fail "--seconds: got $SECONDS_IN_ALL; expected a whole number"
for stage in "${ONLY[@]}"; do
  [[ " ${STAGES[*]} " == *" $stage "* ]] || fail "--only: got $stage; expected one of ${STAGES[*]}"
done
command -v "$PYTHON" >/dev/null || fail "$PYTHON was not found; set PYTHON to a Python with torch"
command -v timeout >/dev/null || fail "timeout was not found; it is part of GNU coreutils"
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
cd "$ROOT"
export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 TILEDATTN_TEST_DEVICE=$DEVICE
unset TILEDATTN_BACKEND TILEDATTN_LIBRARY TILEDATTN_SM90 TRITON_INTERPRET

hash_of_sources() {
  find . -name '.?*' -prune -o \( -name build -o -name __pycache__ \) -prune -o -type f \
    -regex '.*\.\(py\|toml\|sh\|cpp\|cu\|cuh\|h\)' -print0 |
    LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c 1-12
}

COMMIT=${TILEDATTN_COMMIT:-$(git describe --always --dirty 2>/dev/null || echo unknown)}
case $COMMIT in
  unknown) COMMIT=sources-$(hash_of_sources) ;;
  *-dirty) COMMIT+=-$(hash_of_sources) ;;
esac
export TILEDATTN_COMMIT=$COMMIT
MARK="$COMMIT $DEVICE"

run_environment() {
  "$PYTHON" -m tiledattn.bench.environment "$DEVICE" >"$OUT/.environment.json" || return
  mv "$OUT/.environment.json" "$OUT/environment.json"
  cat "$OUT/environment.json"
}

run_build() {
  [[ $DEVICE != cuda ]] || export TILEDATTN_CUDA=1
  TILEDATTN_NO_EXT=0 "$PYTHON" setup.py -q build_ext --inplace || return
  "$PYTHON" -m tiledattn.bench.environment "$DEVICE" >"$OUT/.environment.json" || return # now with what the library says
  mv "$OUT/.environment.json" "$OUT/environment.json"
}

run_tests() {
  local files options=(-p no:cacheprovider -rfEs --junitxml "$OUT/.tests.xml")
  mapfile -t files < <(grep -rlE --include='test_*.py' 'mark\.gpu\b|import .*\bMARKS\b' tests)
  if "$PYTHON" -c 'import xdist' 2>/dev/null; then
    options+=(--dist worksteal -n "${TILEDATTN_GPU_JOBS:-$(($(nproc) > 12 ? 6 : ($(nproc) + 1) / 2))}")
  fi
  local status=0
  "$PYTHON" -m pytest -m gpu "${options[@]}" "${files[@]}" || status=$?
  [[ ! -e $OUT/.tests.xml ]] || mv "$OUT/.tests.xml" "$OUT/tests.xml"
  return "$status"
}

run_sanitizers() {
  if [[ $DEVICE == cpu ]]; then
    "$PYTHON" -m bench.gpu.sanitize --device cpu || return
    echo "no GPU to sanitize: the cases ran on the CPU" && return "$SKIPPED"
  fi
  local tool sanitizer pids=() tools=(memcheck racecheck initcheck synccheck) failed=''
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null) ||
    { echo "compute-sanitizer was not found; it is part of the CUDA toolkit" && return "$SKIPPED"; }
  "$PYTHON" -m bench.gpu.sanitize || return # also compiles what the tools would wait for
  if ! "$sanitizer" "$PYTHON" -m bench.gpu.sanitize --nothing >"$OUT/.tool.log" 2>&1; then
    tail -n 5 "$OUT/.tool.log" && rm "$OUT/.tool.log"
    echo "compute-sanitizer can't work on this device" && return "$SKIPPED"
  fi
  for tool in "${tools[@]}"; do # every allocation a buffer of its own, so that none hides behind its neighbour
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" --error-exitcode 9 \
      "$PYTHON" -m bench.gpu.sanitize >"$OUT/sanitizers.$tool.log" 2>&1 &
    pids+=($!)
  done
  for tool in "${tools[@]}"; do
    if wait "${pids[0]}"; then echo "$tool: clean"; else failed=1 && tail -n 40 "$OUT/sanitizers.$tool.log"; fi
    pids=("${pids[@]:1}")
  done
  rm -f "$OUT/.tool.log"
  [[ -z $failed ]]
}

run_benchmark() {
  "$PYTHON" -m tiledattn.bench --device "$DEVICE" --out "$OUT" --seconds "$((LIMIT * 4 / 5))" --case-seconds 3 || {
    local status=$?
    ((status != 3)) || return "$CUT_SHORT" # its seconds ran out
    return "$status"
  }
}

run_scaling() {
  "$PYTHON" -m tiledattn.bench scaling --quick --device "$DEVICE" --json "$OUT/benchmark.json" || return
  "$PYTHON" -m tiledattn.bench --report --out "$OUT"
}

run_quality() {
  "$PYTHON" -c 'import diffusers' 2>/dev/null || { echo "diffusers is not installed" && return "$SKIPPED"; }
  "$PYTHON" -m tiledattn.bench quality --quick --device "$DEVICE" --out "$OUT/quality"
}

optional() { [[ " ${OPTIONAL[*]} " == *" $1 "* ]]; }

# The seconds that a stage may take: its share and what the ones before it left of theirs.
limit_of() {
  local stage share sum=0 whole=0 found=''
  for share in $SHARES; do whole=$((whole + ${share#*=})); done
  for stage in "${STAGES[@]}"; do
    for share in $SHARES; do [[ ${share%%=*} != "$stage" ]] || sum=$((sum + ${share#*=})); done
    [[ $stage != "$1" ]] || { found=1 && break; }
  done
  [[ -n $found && $whole -gt 0 ]] && echo $((sum * SECONDS_IN_ALL / whole - SECONDS))
}

# A stage runs as a process of its own, in the background, so that signals reach this script meanwhile.
if [[ -n ${TILEDATTN_GPU_STAGE:-} ]]; then
  LIMIT=$SECONDS_IN_ALL stage=$TILEDATTN_GPU_STAGE status=0
  [[ -n ${TILEDATTN_GPU_CHECKED:-} || $stage == environment ]] ||
    "$PYTHON" -m tiledattn.bench.environment --missing "$DEVICE" || exit "$MISSING"
  unset TILEDATTN_GPU_STAGE TILEDATTN_GPU_CHECKED
  "run_$stage" || status=$?
  exit "$status"
fi

CHILD='' LOG=''
stop() {
  trap '' INT TERM
  if [[ -n $CHILD ]] && kill -TERM "$CHILD" 2>/dev/null; then wait "$CHILD" || true; fi
  [[ -z $LOG || ! -e $OUT/.$LOG ]] || mv "$OUT/.$LOG" "$OUT/$LOG"
  rm -f "$OUT"/.environment.json "$OUT"/.tests.xml "$OUT"/.tool.log "$OUT"/.*.done
  echo "gpu.sh: stopped; the same command goes on where it was" >&2
  exit 130
}
trap stop INT TERM

FAILED='' CHECKED=''
for stage in "${STAGES[@]}"; do
  ((${#ONLY[@]} == 0)) || [[ " ${ONLY[*]} " == *" $stage "* ]] || continue
  if [[ -z $FORCE && -e $OUT/$stage.done && $(head -n 1 "$OUT/$stage.done") == "$MARK" ]]; then
    echo "$stage: $(tail -n 1 "$OUT/$stage.done") (before)"
    continue
  fi
  rm -f "$OUT/$stage.done"
  limit=$(limit_of "$stage") || fail "TILEDATTN_GPU_SHARES: got '$SHARES'; expected seconds for each of ${STAGES[*]}"
  if optional "$stage" && ((limit < LEAST_OPTIONAL)); then
    echo "$stage: left out: less than $LEAST_OPTIONAL s are left; the same command goes on here"
    continue
  fi
  if ((limit < 1)); then
    echo "$stage: no time left; the same command goes on here" && FAILED=1
    continue
  fi
  LOG=$stage.log began=$SECONDS status=0
  TILEDATTN_GPU_STAGE=$stage TILEDATTN_GPU_CHECKED=$CHECKED timeout --kill-after=10 "$limit" "$ROOT/bench/gpu.sh" "$OUT" --device "$DEVICE" \
    --seconds "$limit" >"$OUT/.$LOG" 2>&1 &
  CHILD=$!
  wait "$CHILD" || status=$?
  CHILD='' CHECKED=1
  mv "$OUT/.$LOG" "$OUT/$LOG"
  case $status in
    0) outcome="done in $((SECONDS - began)) s" ;;
    "$SKIPPED") outcome="skipped: $(tail -n 1 "$OUT/$LOG")" ;;
    "$MISSING") outcome="something is missing" ;;
    "$CUT_SHORT") outcome="out of time after $((SECONDS - began)) s; the same command goes on here" ;;
    124 | 137) outcome="stopped after its $limit s" ;;
    *) outcome="failed with status $status" ;;
  esac
  echo "$stage: $outcome"
  if ((status == 0 || status == SKIPPED)); then
    printf '%s\n%s\n' "$MARK" "$outcome" >"$OUT/.$stage.done"
    mv "$OUT/.$stage.done" "$OUT/$stage.done"
    continue
  fi
  ((status != CUT_SHORT)) || continue
  if optional "$stage" && ((status == 124 || status == 137)); then continue; fi
  FAILED=1
  tail -n 20 "$OUT/$LOG" | sed 's/^/  | /'
  [[ $stage != environment && $status != "$MISSING" ]] || exit 2
done
[[ ! -e $OUT/benchmark.md ]] || cat "$OUT/benchmark.md"
[[ -z $FAILED ]]
