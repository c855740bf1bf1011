"""Times the alignment loss and training steps on a CUDA device in PyTorch and in Rust, alternately in one run,
and prints the ratios as Markdown. `cuda.sh` runs it.

    .venv/bin/python benches/compare/cuda.py [--upstream CHECKOUT] [--rounds 5] [--only loss] [--batch 256]

As in `run.py`, every contender runs in its own process, times are medians over all rounds, and ratios are
medians over the rounds. If a batch does not fit in the memory of one contender, it is halved for all. Upstream's
network is compiled, as with `train.py --compile`.
"""

import argparse
import copy
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent

# Case: description, iterations per round, PyTorch contenders, and further Rust contenders.
CASES = {
    "copy": ("copy of one token tensor, fp32", 50, ["eager"], {}),
    "loss": (
        "alignment loss, forward and backward, fp32",
        50,
        ["eager", "compile", "upstream"],
        {"Rust, not fused": "loss_composed"},
    ),
    "loss_bf16": (
        "alignment loss, forward and backward, bf16",
        50,
        ["eager", "compile"],
        {"Rust, not fused": "loss_bf16_composed"},
    ),
    "sit_b2": (
        "training step, SiT-B/2 with iREPA, bf16",
        10,
        ["eager", "compile", "upstream"],
        {"Rust, not fused": "sit_b2_composed", "Rust, CUDA graph": "sit_b2_graphs"},
    ),
    "sit_xl2": (
        "training step, SiT-XL/2 with iREPA, bf16",
        5,
        ["eager", "compile", "upstream"],
        {"Rust, not fused": "sit_xl2_composed", "Rust, CUDA graph": "sit_xl2_graphs"},
    ),
}
# Width, number of blocks, number of heads, and number of the block whose tokens are aligned.
SIZES = {"sit_b2": (768, 12, 12, 4), "sit_xl2": (1152, 28, 16, 8)}
TOKENS, WIDTH = 256, 768


class Failed(Exception):
    pass


class Worker:
    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE)

    def time(self, case, batch, iterations):
        """Returns the seconds of each iteration, and the peak memory in MiB."""
        self.process.stdin.write(f"{case} {batch} {iterations}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"a worker ended while it ran {case}: {self.process.args}")
        if answer.startswith("failed:"):
            raise Failed(answer.strip())
        *seconds, memory = [float(figure) for figure in answer.split()]
        return seconds, memory


def compare(case, workers, batch, rounds):
    what, iterations, others, forms = CASES[case]
    contenders = [("Rust", "rust", case)]
    contenders += [(name, "rust", form) for name, form in forms.items()]
    names = {"eager": "PyTorch", "compile": "torch.compile", "upstream": "upstream, compiled"}
    contenders += [(names[mode], mode, case) for mode in others if mode in workers]
    times = {name: [] for name, _, _ in contenders}
    peaks = {}
    for _ in range(rounds):
        for name, worker, own in contenders:
            seconds, peaks[name] = workers[worker].time(own, batch, iterations)
            times[name].append(seconds)
    for name, measured in times.items():
        median = statistics.median(second for seconds in measured for second in seconds)
        ratios = [
            statistics.median(own) / statistics.median(ours) for own, ours in zip(measured, times["Rust"], strict=False)
        ]
        print(
            f"| {what}, batch {batch} | {name} | {1e3 * median:.3f} | {statistics.median(ratios):.2f} | "
            f"{peaks[name]:.0f} |",
            flush=True,
        )


def drive(arguments):
    import torch

    if not torch.cuda.is_available():
        sys.exit("PyTorch finds no CUDA device, so nothing can be compared")
    from run import build

    python = [sys.executable, str(HERE / "cuda.py"), "--worker"]
    commands = {"rust": [build(arguments.profile, "compare_cuda")], "eager": [*python, "eager"]}
    if not arguments.no_compile:
        commands["compile"] = [*python, "compile"]
    if arguments.upstream:
        commands["upstream"] = [*python, "upstream", "--upstream", str(Path(arguments.upstream).resolve())]
    workers = {name: Worker(command) for name, command in commands.items()}
    print(
        f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, {arguments.rounds} rounds, tokens "
        f"{TOKENS} x {WIDTH}\n"
    )
    print("| case | contender | median, ms | against Rust | peak memory, MiB |\n| --- | --- | --- | --- | --- |")
    for case in CASES:
        if arguments.only and not case.startswith(arguments.only):
            continue
        batch = arguments.batch
        while True:
            try:
                compare(case, workers, batch, arguments.rounds)
                break
            except Failed as failure:
                if "memory" not in str(failure) or batch == 1:
                    sys.exit(f"{case}: {failure}")
                print(f"{case}: batch {batch} is too large: {failure}", file=sys.stderr)
                batch //= 2
    for worker in workers.values():
        worker.process.stdin.close()
        worker.process.wait()


def loss_case(mode, checkout, batch, dtype):
    import model as plain
    import torch
    import worker

    tokens = torch.randn(batch, TOKENS, WIDTH, device="cuda", dtype=dtype)
    projected = torch.randn(batch, TOKENS, WIDTH, device="cuda", dtype=dtype, requires_grad=True)
    loss = plain.alignment_loss
    if mode == "upstream":
        _, _, spatial_zscore = worker.upstream_parts(checkout)
        from projection_loss import make_projection_loss

        cosine = make_projection_loss("cosine")

        def loss(tokens, projected):
            return cosine(spatial_zscore(tokens, alpha=plain.ALPHA), projected)
    elif mode == "compile":
        loss = torch.compile(loss)

    def run():
        loss(tokens.float(), projected.float()).backward()
        projected.grad = None

    return run


def step_case(case, mode, checkout, batch):
    import model as plain
    import torch
    import worker

    width, depth, heads, aligned = SIZES[case]
    images, labels = torch.rand(batch, 3, 32, 32, device="cuda") * 2 - 1, torch.arange(batch, device="cuda") % 1000
    tokens = torch.randn(batch, TOKENS, WIDTH, device="cuda")
    if mode == "upstream":
        network_type, objective, spatial_zscore = worker.upstream_parts(checkout)
        network = network_type(
            path_type="linear",
            input_size=32,
            in_channels=3,
            hidden_size=width,
            decoder_hidden_size=width,
            encoder_depth=aligned,
            depth=depth,
            num_heads=heads,
            z_dims=[WIDTH],
            projection_layer_type="conv",
            proj_kwargs_kernel_size=3,
            fused_attn=True,
            qk_norm=False,
        ).cuda()
        objective = objective(proj_coeff="1.0")
    else:
        network = plain.SiT(width, depth, heads, encoder_width=WIDTH, aligned=aligned).cuda()
    average = copy.deepcopy(network).requires_grad_(False)
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    averages = [
        weight for weight, own in zip(average.parameters(), network.parameters(), strict=False) if own.requires_grad
    ]
    fused = None if mode == "upstream" else True
    optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.0, fused=fused)
    forward = network if mode == "eager" else torch.compile(network)
    align = torch.compile(plain.alignment_loss) if mode == "compile" else plain.alignment_loss

    def losses():
        if mode == "upstream":
            with torch.autocast("cuda", torch.bfloat16), torch.no_grad():
                target = spatial_zscore(tokens, alpha=plain.ALPHA)

            def in_float(*inputs, **kwargs):
                # accelerate casts the outputs of the network to float32.
                with torch.autocast("cuda", torch.bfloat16):
                    prediction, projected, hidden = forward(*inputs, **kwargs)
                return prediction.float(), [p.float() for p in projected], [h.float() for h in hidden]

            denoising, projection, _ = objective(in_float, images, {"y": labels}, zs=[target])
            return denoising.mean() + projection.mean()
        t = torch.rand(batch, device="cuda")
        noise = torch.randn_like(images)
        mixed = (1 - t.view(-1, 1, 1, 1)) * images + t.view(-1, 1, 1, 1) * noise
        dropped = torch.where(torch.rand(batch, device="cuda") < 0.1, 1000, labels)
        with torch.autocast("cuda", torch.bfloat16):
            prediction, projected = forward(mixed, t, dropped)
        denoising = (prediction.float() - (noise - images)).square().mean()
        return denoising + align(tokens, projected.float())

    def run():
        losses().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            if mode == "upstream":
                for kept, weight in zip(averages, weights, strict=False):
                    kept.mul_(0.9999).add_(weight, alpha=1e-4)
            else:
                torch._foreach_mul_(averages, 0.9999)
                torch._foreach_add_(averages, weights, alpha=1e-4)

    return run


def make(case, mode, checkout, batch):
    import torch

    if case == "copy":
        source = torch.randn(batch, TOKENS, WIDTH, device="cuda")
        target = torch.zeros_like(source)
        return lambda: target.copy_(source)
    if case.startswith("loss"):
        return loss_case(mode, checkout, batch, torch.bfloat16 if case == "loss_bf16" else torch.float32)
    return step_case(case, mode, checkout, batch)


def work(mode, checkout):
    """Answers lines in the same format as the Rust side."""
    import torch

    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    for line in sys.stdin:
        case, batch, iterations = line.split()
        run = None
        try:
            run = make(case, mode, checkout, int(batch))
            for _ in range(3):
                run()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            figures = []
            for _ in range(int(iterations)):
                start = time.perf_counter()
                run()
                torch.cuda.synchronize()
                figures.append(time.perf_counter() - start)
            print(*figures, torch.cuda.max_memory_allocated() / 2**20, flush=True)
        except torch.OutOfMemoryError as error:
            print("failed: out of memory:", str(error).replace("\n", " "), flush=True)
        # Frees memory for the other contenders.
        del run
        torch.cuda.empty_cache()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", help="a checkout of upstream's repository")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="run only cases whose name starts with this")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--profile", default="release", help="cargo profile of the Rust side")
    parser.add_argument("--no-compile", action="store_true", help="do not run torch.compile")
    parser.add_argument("--worker", choices=["eager", "compile", "upstream"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.upstream)
    else:
        drive(arguments)


if __name__ == "__main__":
    main()
