#!/usr/bin/env bash
# Measures the steps per second of the embedded model beside 0, 1 and 2 busy processes, for several spin counts of
# OpenMP's threads. Usage: bash benches/busy.sh PROGRAM [ROUNDS]. PROGRAM is target/debug/irepa, from the root of the
# project. Prints a table in Markdown: the median over the rounds, which alternate between the spin counts.

set -euo pipefail
program=$(realpath "$1")
rounds=${2:-3}
work=$(mktemp -d)
busy=()
stop() { ((${#busy[@]} == 0)) || kill "${busy[@]}" 2>/dev/null || true; busy=(); }
trap 'stop; rm -rf "$work"' EXIT

# speed SPINS STEPS: prints the steps per second of one run, without its start.
speed() {
    local log
    rm -rf "$work/run"
    log=$(GOMP_SPINCOUNT=$1 "$program" train configs/embedded.toml --out "$work/run" --device cpu \
        --set alignment.encoder=hog --set train.steps="$2" --set sample.count=0 --set sample.grid=0 2>&1)
    awk -F'"steps_per_s":' 'NF > 1 { split($2, part, /[,}]/); value[++n] = part[1] }
        END { for (i = int(n / 2) + 1; i <= n; i++) { sum += 1 / value[i]; count++ } print count / sum }' \
        "$work/run/metrics.jsonl" || { printf '%s\n' "$log" >&2; exit 1; }
}

median() { sort -g | awk '{ value[NR] = $1 } END { print value[int((NR + 1) / 2)] }'; }

echo "| busy processes | spin count | steps/s |"
echo "| --- | --- | --- |"
for count in 0 1 2; do
    stop
    for ((i = 0; i < count; i++)); do
        yes >/dev/null &
        busy+=($!)
    done
    for ((round = 0; round < rounds; round++)); do
        for spins in 300000 100000 10000 1000 0; do
            speed "$spins" $((count ? 60 : 120)) >>"$work/$count-$spins"
        done
    done
    for spins in 300000 100000 10000 1000 0; do
        echo "| $count | $spins | $(median <"$work/$count-$spins") |"
    done
done
