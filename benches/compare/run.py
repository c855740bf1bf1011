"""Times the alignment loss, a training step, the spatial metrics and the loader in Python and in Rust, alternately
in one run, and prints the ratios as Markdown.

    .venv/bin/python benches/compare/run.py [--upstream CHECKOUT] [--rounds 7] [--only loss] [--threads 2]

Every contender runs in its own process, which waits while another one works. A time is the median over all
iterations of all rounds. A ratio compares the medians within a round, and is the median over the rounds, so that
other load on the machine affects both sides. `--upstream` names a checkout of
github.com/End2End-Diffusion/iREPA (its network needs timm), which runs eagerly, without changes to its code.
Needs PyTorch with its dependencies (`cargo xtask setup --python`).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

# Case: description, iterations per round, and the Rust case without fused operations, if there is one.
CASES = {
    "copy": ("copy of one token tensor, 32 x 256 x 768", 30, None),
    "loss": ("alignment loss, forward and backward, 32 x 256 x 768", 20, "loss_composed"),
    "step_fp32": ("training step, SiT-S/2 with iREPA, batch 8, fp32", 3, "step_fp32_composed"),
    "step_bf16": ("training step, SiT-S/2 with iREPA, batch 8, bf16", 3, "step_bf16_composed"),
    "step_jit_fp32": ("training step, JiT-B/16 with iREPA, batch 2, fp32", 3, "step_jit_fp32_composed"),
    "step_jit_bf16": ("training step, JiT-B/16 with iREPA, batch 2, bf16", 3, "step_jit_bf16_composed"),
    "spatial": ("LDS, CDS, SRSS and RMSC of 64 images, 256 x 768", 3, None),
    "loader": ("32 JPEGs of 500 x 375, decoded and cropped to 256, one thread each", 3, None),
}
# Contenders besides Rust, for cases that not all workers run: name, worker, and the worker's name for the case.
OTHERS = {
    "copy": [("PyTorch", "PyTorch", "copy")],
    **{
        case: [(name, name, case) for name in ("PyTorch", "torch.compile")]
        for case in ("step_jit_fp32", "step_jit_bf16")
    },
    "spatial": [("upstream", "upstream", "spatial")],
    "loader": [
        ("Pillow, ADM's crop", "PyTorch", "loader"),
        ("Pillow, torchvision", "PyTorch", "loader_torchvision"),
        ("upstream's crop", "upstream", "loader"),
    ],
}


def build(profile, bench="compare"):
    command = [
        "cargo",
        "bench",
        "--profile",
        profile,
        "-p",
        "benches",
        "--bench",
        bench,
        "--no-run",
        "--message-format",
        "json",
    ]
    lines = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()
    for message in map(json.loads, filter(lambda line: line.startswith("{"), lines)):
        if message.get("executable") and message["target"]["name"] == bench:
            return message["executable"]
    sys.exit("cargo did not report the benchmark's executable")


class Worker:
    def __init__(self, command, environment):
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE
        )

    def time(self, case, iterations):
        # Lets threads of the previous worker stop spinning.
        time.sleep(0.2)
        self.process.stdin.write(f"{case} {iterations}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"a worker ended while it ran {case}: {self.process.args}")
        return [float(seconds) for seconds in answer.split()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", help="a checkout of upstream's repository")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", help="run only cases whose name starts with this")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--profile", default="dev", help="cargo profile of the Rust side")
    parser.add_argument("--no-compile", action="store_true", help="do not run torch.compile")
    arguments = parser.parse_args()

    rust = build(arguments.profile)
    selected = [case for case in CASES if case.startswith(arguments.only or "")]
    inputs = tempfile.TemporaryDirectory()
    threads = str(arguments.threads)
    environment = {**os.environ, "THREADS": threads, "RAYON_NUM_THREADS": threads, "INPUTS": inputs.name}
    if {"spatial", "loader"}.intersection(selected):
        subprocess.run([rust, "inputs", inputs.name], check=True)
    python = [sys.executable, str(HERE / "worker.py")]
    commands = {"Rust": [rust], "PyTorch": [*python, "eager"]}
    if not arguments.no_compile:
        commands["torch.compile"] = [*python, "compile"]
    if arguments.upstream:
        commands["upstream"] = [*python, "upstream", str(Path(arguments.upstream).resolve())]
    workers = {name: Worker(command, environment) for name, command in commands.items()}

    print(f"{arguments.threads} threads, {arguments.rounds} rounds, load {os.getloadavg()[0]:.2f} at the start\n")
    print("| case | contender | median, ms | against Rust |\n| --- | --- | --- | --- |")
    for case in selected:
        what, iterations, unfused = CASES[case]
        contenders = [("Rust", workers["Rust"], case)]
        if unfused:
            contenders.append(("Rust, not fused", workers["Rust"], unfused))
        others = OTHERS.get(case) or [(name, name, case) for name in workers if name != "Rust"]
        contenders += [(name, workers[worker], own) for name, worker, own in others if worker in workers]
        times = {name: [] for name, _, _ in contenders}
        for _, worker, own in contenders:
            worker.time(own, 1)
        for _ in range(arguments.rounds):
            for name, worker, own in contenders:
                times[name].append(worker.time(own, iterations))
        for name, rounds in times.items():
            median = statistics.median(second for seconds in rounds for second in seconds)
            ratios = [
                statistics.median(own) / statistics.median(ours)
                for own, ours in zip(rounds, times["Rust"], strict=False)
            ]
            print(f"| {what} | {name} | {1e3 * median:.2f} | {statistics.median(ratios):.2f} |", flush=True)
            what = ""
    for worker in workers.values():
        worker.process.stdin.close()
        worker.process.wait()

    if "spatial" in selected and arguments.upstream:
        import spatial

        spatial.differences(commands, environment)

    if "loss" in selected:
        print("\n| memory of the loss beyond its inputs | MiB |\n| --- | --- |")
        print(f"| one token tensor | {32 * 256 * 768 * 4 / 2**20:.1f} |")
        commands["Rust, not fused"] = commands["Rust"]
        for name, command in commands.items():
            case = "loss_composed" if name == "Rust, not fused" else "loss"
            output = subprocess.run(
                [*command, "memory", case], env=environment, cwd=HERE, stdout=subprocess.PIPE, check=True, text=True
            )
            print(f"| {name} | {output.stdout.strip()} |", flush=True)


if __name__ == "__main__":
    main()
