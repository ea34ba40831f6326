#!/usr/bin/env bash
# Put to the test on one GPU, in under ten minutes, what estune promises of GPUs; see docs/performance.md.
#
#   benchmarks/gpu_all.sh                    all parts: tests kernels load model learn
#   benchmarks/gpu_all.sh tests kernels      some
#   benchmarks/gpu_all.sh --cpu              all of them in small, on a CPU: this shows that they run
#   benchmarks/gpu_all.sh --output DIR       where results go [runs/gpu, runs/gpu-cpu with --cpu]
#
# Each part is written to DIR/results.json as it ends, and a part that is there from this machine is not run again.
# Exit status: 0, all was measured, whether or not the promises hold; 1, a part failed or is missing; 2, wrong arguments.
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
    *) refuse "there is no part or option '$1'; the parts are tests, kernels, load, model and learn" ;;
  esac
  shift
done
((${#parts[@]})) || parts=(tests kernels load model learn)
output=${output:-runs/gpu${cpu:+-cpu}}
mkdir -p "$output" || refuse "$output cannot be made; name another folder with --output"

python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}
export PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false
needed='import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ["datasets", "gguf", "pydantic", "pytest"])))'
if ! "$python" -c "$needed"; then
  [[ -d carry/wheels ]] || refuse "$python lacks packages that estune needs: pip install '.[dev]', or copy carry/wheels here"
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target carry/site carry/wheels/*.whl ||
    refuse "the packages in carry/wheels cannot be installed"
  export PYTHONPATH=$PWD/carry/site:$PYTHONPATH
fi

if [[ ${cpu:-} ]]; then
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # threads that wait for one another in a loop take minutes on a busy machine
fi

limit() {  # seconds that a part may take; on a GPU together under ten minutes
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
  # shellcheck disable=SC2046  # a command's words
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

main  # a function, so that this file may be edited while it runs
exit
