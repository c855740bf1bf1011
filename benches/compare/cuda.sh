#!/usr/bin/env bash
# Runs all tests of the CUDA kernels and the benchmarks on a CUDA device, and writes docs/results/cuda.md.
# Usage: benches/compare/cuda.sh [arguments of cuda.py, such as --upstream CHECKOUT]
# Needs a CUDA device, and PyTorch with its dependencies (`cargo xtask setup --python`).

set -euo pipefail
cd "$(dirname "$0")/../.."

python=.venv/bin/python
if ! "$python" -c "import torch; raise SystemExit(not torch.cuda.is_available())"; then
    echo "cuda.sh: PyTorch in $python finds no CUDA device, so nothing was run" >&2
    exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Tests that need a CUDA device, tests that need its compiler, and tests of emulated kernels.
packages=(-p torch-ext -p ops -p alignment -p diffusion -p training)
{
    cargo xtask test --cuda "${packages[@]}"
    cargo xtask test --python "${packages[@]}"
    cargo xtask test -p torch-ext --test cuda
    cargo xtask test -p ops --lib
} 2>&1 | tee "$work/tests"
counted=$(grep -o '^[0-9]* passed' "$work/tests" | awk '{ sum += $1 } END { print sum + 0 }')
"$python" benches/compare/cuda.py "$@" | tee "$work/table"
cargo bench -p benches --bench alignment -- loss_cuda | tee "$work/criterion"

{
    echo "# CUDA"
    echo
    echo "Written by \`benches/compare/cuda.sh $*\` on $(date -u +%F), commit $(git rev-parse --short HEAD)."
    echo "Before that, all $counted tests of the CUDA kernels passed."
    echo
    echo "## Comparison with PyTorch"
    echo
    cat "$work/table"
    echo
    echo "## By width"
    echo
    echo "Alignment loss, 256 x 256 x width, float32; lower bound, median and upper bound of criterion."
    echo
    echo "| benchmark | time |"
    echo "| --- | --- |"
    awk '/^loss_cuda/ { name = $1 } /time:/ { sub(/.*time: */, ""); print "| " name " | " $0 " |" }' "$work/criterion"
} >"$work/page"
mv "$work/page" docs/results/cuda.md
echo "cuda.sh: wrote docs/results/cuda.md" >&2
