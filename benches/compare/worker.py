"""The PyTorch side of `run.py`. It reads lines `CASE ITERATIONS` and answers each with the seconds of every
iteration. The first argument is the mode: `eager`, `compile`, or `upstream` with a checkout as the second
argument. With `memory CASE` after it, prints the memory in MiB that one call of the case takes in addition. With
`values spatial`, prints the computed metrics."""

import copy
import json
import os
import sys
import time

import loader
import model as plain
import spatial
import torch

WIDTH = 768


def upstream_parts(checkout):
    """Returns upstream's network, loss and normalisation."""
    sys.path.insert(0, os.path.join(checkout, "ldm"))
    sys.modules.pop("model", None)
    from loss import SILoss
    from models.sit import SiT
    from utils import spatial_zscore

    return SiT, SILoss, spatial_zscore


def loss_case(mode, checkout):
    tokens = torch.randn(32, 256, WIDTH)
    projected = torch.randn(32, 256, WIDTH, requires_grad=True)
    loss = plain.alignment_loss
    if mode == "compile":
        loss = torch.compile(loss)
    if mode == "upstream":
        upstream_parts(checkout)
        from projection_loss import make_projection_loss
        from utils import spatial_zscore

        cosine = make_projection_loss("cosine")

        def loss(tokens, projected):
            return cosine(spatial_zscore(tokens, alpha=plain.ALPHA), projected)

    def run():
        loss(tokens, projected).backward()
        projected.grad = None

    return run


def step_case(mode, checkout, bf16, jit=False):
    count, side = (2, 256) if jit else (8, 32)
    images, labels = torch.rand(count, 3, side, side) * 2 - 1, torch.arange(count)
    tokens = torch.randn(count, 256, WIDTH)
    if mode == "upstream":
        network_type, objective, spatial_zscore = upstream_parts(checkout)
        network = network_type(
            path_type="linear",
            input_size=32,
            in_channels=3,
            hidden_size=384,
            decoder_hidden_size=384,
            encoder_depth=4,
            depth=12,
            num_heads=6,
            z_dims=[WIDTH],
            projection_layer_type="conv",
            proj_kwargs_kernel_size=3,
            fused_attn=True,
            qk_norm=False,
        )
        objective = objective(proj_coeff="1.0")
    else:
        network = plain.JiT() if jit else plain.SiT()
    average = copy.deepcopy(network).requires_grad_(False)
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    averages = [
        weight for weight, own in zip(average.parameters(), network.parameters(), strict=False) if own.requires_grad
    ]
    fused = None if mode == "upstream" else True
    optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.0, fused=fused)
    forward = torch.compile(network) if mode == "compile" else network
    align = torch.compile(plain.alignment_loss) if mode == "compile" else plain.alignment_loss

    def losses():
        if mode == "upstream":
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                with torch.no_grad():
                    target = spatial_zscore(tokens, alpha=plain.ALPHA)

                def network_in_float(*inputs, **kwargs):
                    # accelerate casts the outputs of the network to float32.
                    prediction, projected, hidden = network(*inputs, **kwargs)
                    return prediction.float(), [p.float() for p in projected], [h.float() for h in hidden]

            def autocast_network(*inputs, **kwargs):
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    return network_in_float(*inputs, **kwargs)

            denoising, projection, _ = objective(autocast_network, images, {"y": labels}, zs=[target])
            return denoising.mean() + projection.mean()
        predict, compared = network.predict(images, labels)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            prediction, projected = predict(forward)
        found, wanted = compared(prediction.float())
        return (found - wanted).square().mean() + align(tokens, projected.float())

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


def copy_case():
    source, target = torch.randn(32, 256, WIDTH), torch.zeros(32, 256, WIDTH)
    return lambda: target.copy_(source)


def make(case, mode, checkout):
    if case == "copy":
        return copy_case()
    if case == "loss":
        return loss_case(mode, checkout)
    if case == "spatial":
        return spatial.metrics(checkout)
    if case.startswith("loader"):
        return loader.batches(case, checkout)
    return step_case(mode, checkout, case.endswith("bf16"), jit="jit" in case)


def status(key):
    with open("/proc/self/status") as file:
        return next(float(line.split()[1]) for line in file if line.startswith(key))


def memory(case, mode, checkout):
    warm = torch.randn(2, 256, 64), torch.randn(2, 256, 64, requires_grad=True)
    plain.alignment_loss(*warm).backward()
    run = make(case, mode, checkout)
    if mode == "compile":
        # The memory that compilation takes does not count.
        run()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = status("VmRSS")
    run()
    return (status("VmHWM") - before) / 1024


def main():
    mode, *rest = sys.argv[1:]
    checkout = rest.pop(0) if mode == "upstream" else None
    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ.get("THREADS", torch.get_num_threads())))
    if rest and rest[0] == "memory":
        print(f"{memory(rest[1], mode, checkout):.1f}")
        return
    if rest == ["values", "spatial"]:
        print(json.dumps(spatial.values(checkout)))
        return
    cases = {}
    for line in sys.stdin:
        case, iterations = line.split()
        if case not in cases:
            cases[case] = make(case, mode, checkout)
            for _ in range(3):
                cases[case]()
        seconds = []
        for _ in range(int(iterations)):
            start = time.perf_counter()
            cases[case]()
            seconds.append(time.perf_counter() - start)
        print(*seconds, flush=True)


if __name__ == "__main__":
    main()
