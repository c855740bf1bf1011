#!/usr/bin/env bash
# Trains the same small run in several ways and compares what they log: one process, two processes of this program's own,
# two of torchrun, and two of srun; and with a rank that is killed and started again. Prints Markdown.
#
# Needs `irepa` and `torchrun` on the PATH, and a SLURM cluster for the last rows (local-slurm.sh starts one).
# Usage: check.sh FOLDER, in the project's folder.

set -euo pipefail

here=$(realpath "$(dirname "$0")")
out=$(realpath -m "${1:?"usage: check.sh FOLDER"}")
mkdir -p "$out"
config=configs/embedded.toml
arguments=(--device cpu
    --set alignment.encoder=hog --set train.steps=60 --set train.batch_size=8 --set train.checkpoint_every=20
    --set train.log_speed=false --set sample.count=8 --set sample.grid=4 --set evaluate.reference_images=16
    --set evaluate.spatial_images=4)
export OMP_NUM_THREADS=1

# row NAME COMMAND...: runs a command, and compares its log with that of two processes.
row() {
    local name=$1 start=$SECONDS status=0
    shift
    "$@" >"$out/$name.out" 2>&1 || status=$?
    local log="$out/$name/metrics.jsonl" same=no
    if cmp -s "$log" "$out/processes/metrics.jsonl"; then
        same="to the bit"
    fi
    printf '| %s | `%s` | %s | %s s | %s | %s |\n' "$name" "$(printf '%s' "$1 ${2##*/}")" "$status" \
        $((SECONDS - start)) "$(wc -l <"$log")" "$same"
}

# killed NAME COMMAND...: as `row`, and kills one rank when there is a checkpoint.
killed() {
    local name=$1
    (
        until ls "$out/$name/checkpoints"/step-* >/dev/null 2>&1; do sleep 0.05; done
        for process in $(pgrep -f -- "--out $out/$name"); do
            if tr '\0' '\n' <"/proc/$process/environ" 2>/dev/null | grep -qE '^(RANK|SLURM_PROCID)=1$' &&
                [[ $(readlink "/proc/$process/exe") == */irepa ]]; then
                kill -KILL "$process"
            fi
        done
    ) &
    row "$@"
    wait
}

echo "| run | started by | exit code | time | lines | log equal to that of two processes |"
echo "| --- | --- | --- | --- | --- | --- |"
row processes irepa train "$config" "${arguments[@]}" --processes 2 --out "$out/processes"
row one irepa train "$config" "${arguments[@]}" --out "$out/one"
PROCESSES=2 row torchrun "$here/torchrun.sh" "$config" "${arguments[@]}" --out "$out/torchrun"
PROCESSES=2 killed torchrun-killed "$here/torchrun.sh" "$config" "${arguments[@]}" --out "$out/torchrun-killed"
if command -v srun >/dev/null && sinfo >/dev/null 2>&1; then
    row srun srun --ntasks 2 irepa train "$config" "${arguments[@]}" --out "$out/srun"
    small=(--nodes=1 --ntasks-per-node=2 --gpus-per-node=0 --cpus-per-task=1 --wait --output="$out/%x-%j.log")
    row sbatch sbatch "${small[@]}" "$here/slurm-train.sbatch" "$config" "${arguments[@]}" --out "$out/sbatch"
    # A rank that is killed fails the job. SLURM queues it again only for a node that failed, so it is submitted again.
    killed sbatch-killed sbatch "${small[@]}" "$here/slurm-train.sbatch" "$config" "${arguments[@]}" \
        --out "$out/sbatch-killed"
    row sbatch-killed sbatch "${small[@]}" "$here/slurm-train.sbatch" "$config" "${arguments[@]}" \
        --out "$out/sbatch-killed"
fi
