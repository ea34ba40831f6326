#!/usr/bin/env bash
# Test on one GPU, in under ten minutes, what estune promises about GPUs; see docs/performance.md.
#
#   benchmarks/gpu_all.sh                    run all parts: tests kernels load model learn
#   benchmarks/gpu_all.sh tests kernels      run these parts
#   benchmarks/gpu_all.sh --cpu              run all parts at small sizes on a CPU, as a test
#   benchmarks/gpu_all.sh --output DIR       write results to DIR [runs/gpu, with --cpu runs/gpu-cpu]
#
# Each part's result is written to DIR/results.json as it ends. A part that this machine has measured
# is not run again. Exit status: 0, all was measured, whether or not the promises hold; 1, a part
# failed or is missing; 2, wrong arguments.
set -uo pipefail
cd "$(dirname "$0")/.."

refuse() { echo "gpu_all: $1" >&2; exit 2; }

cpu=() parts=() output=
while (($#)); do
  case $1 in
    --cpu) cpu=(--cpu) ;;
    --output) output=${2:-}; [[ $output ]] || refuse "--output needs a folder"; shift ;;
    tests | kernels | load | model | learn) parts+=("$1") ;;
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) refuse "no such part or option: '$1'; the parts are tests, kernels, load, model and learn" ;;
  esac
  shift
done
((${#parts[@]})) || parts=(tests kernels load model learn)
output=${output:-runs/gpu${cpu:+-cpu}}
mkdir -p "$output" || refuse "cannot create $output; name another folder with --output"

python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}
export PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false
needed='import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ["datasets", "gguf", "pydantic", "pytest"])))'
if ! "$python" -c "$needed"; then
  [[ -d carry/wheels ]] || refuse "$python lacks packages that estune needs: pip install '.[dev]', or copy carry/wheels here"
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target carry/site carry/wheels/*.whl ||
    refuse "cannot install the packages in carry/wheels"
  export PYTHONPATH=$PWD/carry/site:$PYTHONPATH
fi

if [[ ${cpu:-} ]]; then
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # on a busy machine, threads that spin while they wait take minutes
fi

limit() {  # seconds that a part may take: on a GPU, under ten minutes in all
  [[ ${cpu:-} ]] && { echo 400; return; }
  case $1 in tests) echo 90 ;; kernels) echo 120 ;; load) echo 90 ;; model) echo 120 ;; learn) echo 160 ;; esac
}

command_of() {
  case $1 in
    tests | load) echo "benchmarks.gpu_all.$1" ;;
    kernels) echo "benchmarks.gpu --json${cpu:+ --parameters-like tiny --device cpu}" ;;
    model) echo "benchmarks.gpu_all.model $output/run $model" ;;
    learn) echo "benchmarks.gpu_all.learn $output/learn $model $(($(limit learn) - 30))" ;;
  esac
}

results() { "$python" -m benchmarks.gpu_all.results "$@"; }

measure() {
  local part=$1 began=$SECONDS status flag=("${cpu[@]}")
  [[ $part == kernels ]] && flag=()
  # shellcheck disable=SC2046  # split the command into words
  timeout --kill-after=10 "$(limit "$part")" "$python" -m $(command_of "$part") "${flag[@]}" \
    >"$output/$part.out" 2>"$output/$part.log" &
  running=$!
  wait "$running"
  status=$?
  results put "$output" "$part" "$status" $((SECONDS - began)) "${cpu[@]}" || exit
  echo "$part: status $status after $((SECONDS - began)) s"
}

main() {
  running=
  trap '[[ $running ]] && kill "$running" && wait "$running"; exit 143' TERM
  trap '[[ $running ]] && kill "$running" && wait "$running"; exit 130' INT
  model=
  for part in "${parts[@]}"; do
    if results done "$output" "$part" "${cpu[@]}"; then
      echo "$part: measured already"
      continue
    fi
    if [[ $part =~ ^(model|learn)$ && ! $model ]]; then
      model=$("$python" -m benchmarks.gpu_all.carry model 2>"$output/carry.log") || { tail -n 1 "$output/carry.log" >&2; continue; }
    fi
    measure "$part"
  done
  results show "$output"
}

main  # a function is read whole, so this file may be edited while it runs
exit
