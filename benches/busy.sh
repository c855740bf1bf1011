#!/usr/bin/env bash
# Measures the speed of training beside 0, 1, 2, ... busy processes. Usage, in the root of the repository after a build:
#
#     bash benches/busy.sh PROGRAM [ROUNDS] > table.md
#
# PROGRAM is target/debug/irepa. Two parts:
#
# - one run of `train`, which uses all threads, with several spin counts of libgomp's idle threads. `default` is
#   libgomp's own;
# - a sweep of four cells, with one worker for all threads and with one worker for each thread.
#
# Settings alternate within a round; the table has medians. A busy process is `yes`.

set -euo pipefail
program=$(realpath "$1")
rounds=${2:-3}
threads=$(nproc)
config=configs/embedded.toml
work=$(mktemp -d)
busy=()
stop() {
    ((${#busy[@]} == 0)) || kill "${busy[@]}" 2>/dev/null || true
    busy=()
}
trap 'stop; rm -rf "$work"' EXIT

small=(--device cpu --set sample.count=0 --set sample.grid=0 --set evaluate.probe_images=0
    --set evaluate.spatial_images=0 --set data.encode_ahead=false)

# train SPINS STEPS: prints the steps per second of the second half of a run.
train() {
    local variable=(GOMP_SPINCOUNT="$1")
    # A value that libgomp does not understand leaves its default.
    [[ $1 == default ]] && variable=(OMP_WAIT_POLICY="")
    rm -rf "$work/run"
    env "${variable[@]}" "$program" train "$config" "${small[@]}" --out "$work/run" --set alignment.encoder=none \
        --set train.steps="$2" >"$work/log" 2>&1 || { cat "$work/log" >&2 && exit 1; }
    awk -F'"steps_per_s":' 'NF > 1 { split($2, part, /[,}]/); value[++n] = part[1] }
        END { for (i = int(n / 2) + 1; i <= n; i++) { sum += 1 / value[i]; count++ } printf "%.2f\n", count / sum }' \
        "$work/run/metrics.jsonl"
}

# sweep WORKERS STEPS: prints the steps per second of all cells together, start included.
sweep() {
    local start
    rm -rf "$work/sweep"
    cat >"$work/sweep.toml" <<TOML
name = "busy"
base = "$PWD/$config"
recipes = "$PWD/configs/recipes/embedded"
[grid]
recipe = ["none"]
encoder = ["hog"]
seed = [0, 1, 2, 3]
TOML
    start=$(date +%s.%N)
    "$program" sweep "$work/sweep.toml" "${small[@]}" --workers "$1" --out "$work/sweep" --set train.steps="$2" \
        >"$work/log" 2>&1 || { cat "$work/log" >&2 && exit 1; }
    awk -v start="$start" -v end="$(date +%s.%N)" -v steps=$((4 * $2)) \
        'BEGIN { printf "%.2f\n", steps / (end - start) }'
}

median() { sort -g | awk '{ value[NR] = $1 } END { print value[int((NR + 1) / 2)] }'; }

spins=(default 10000 5000 1000 0)
echo "| busy processes | $(printf 'spin count %s | ' "${spins[@]}")sweep, 1 worker | sweep, $threads workers |"
echo "| --- | $(printf -- '--- | %.0s' "${spins[@]}")--- | --- |"
for count in $(seq 0 "$threads"); do
    stop
    for ((i = 0; i < count; i++)); do
        yes >/dev/null &
        busy+=($!)
    done
    for ((round = 0; round < rounds; round++)); do
        for value in "${spins[@]}"; do
            train "$value" $((count ? 40 : 100)) >>"$work/$count-$value"
        done
        for workers in 1 "$threads"; do
            sweep "$workers" $((count ? 30 : 60)) >>"$work/$count-sweep-$workers"
        done
    done
    row="| $count |"
    for value in "${spins[@]}" sweep-1 "sweep-$threads"; do
        row+=" $(median <"$work/$count-$value") |"
    done
    echo "$row"
done
