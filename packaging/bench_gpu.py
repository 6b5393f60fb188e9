"""Images a second and peak memory on a GPU: private training beside plain training and Opacus' ghost clipping.

    python packaging/bench_gpu.py [--batch 256] [--micro-batch 64] [--seconds 20] [--out FILE]

ResNet-18 with group normalisation and a ViT-small, 224 pixels, bf16 forward passes, synthetic images already on the
card. Every contestant takes the same logical batch in the same micro-batches. Our noise is the product's: AES on the
host, drawn ahead on a thread, waited for where it is not ready, moved to the card; all of it is in the time.
Needs torch with CUDA and this repository. Where Opacus is not installed it is left out, saying so.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "packaging" / "bench")]

Step = Callable[[], None]
Row = dict[str, Any]
TIME_GOAL, MEMORY_GOAL = 1.25, 1.5
CLASSES = 8
LEARNING_RATE = 0.05


def resnet18() -> Any:
    from dp_models import ResNet18

    return ResNet18(CLASSES)


def vit_small() -> Any:
    """ViT-S/16 (Dosovitskiy et al. 2021; Touvron et al. 2021): width 384, depth 12, 6 heads, mean-pooled, fixed
    positions.
    """
    import torch
    from dp_models import TransformerBlock, waves
    from torch import nn

    class VisionTransformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 384, 16, 16)
            self.blocks = nn.Sequential(*[TransformerBlock(384, 6, fused=True) for _ in range(12)])
            self.norm, self.head = nn.LayerNorm(384), nn.Linear(384, CLASSES)
            self.register_buffer("positions", waves(196, 384))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
            return self.head(self.norm(self.blocks(x)).mean(1))

    return VisionTransformer()


MODELS: dict[str, Callable[[], Any]] = {"resnet18-gn 224": resnet18, "vit-small 224": vit_small}


class Contest:
    """One model, one batch on one device; makes the steps that are compared."""

    def __init__(self, make: Callable[[], Any], batch: int, micro_batch: int, device: str, pixels: int = 224) -> None:
        import torch

        self._make, self._micro_batch, self._device = make, micro_batch, device
        torch.manual_seed(0)
        self._inputs = torch.randn(batch, 3, pixels, pixels, device=device)
        self._targets = torch.randint(CLASSES, (batch,), device=device)

    def _parts(self) -> list[slice]:
        return [slice(start, start + self._micro_batch) for start in range(0, self._inputs.shape[0], self._micro_batch)]

    def _precision(self) -> Any:
        import torch

        return torch.autocast(self._device, dtype=torch.bfloat16)

    def plain(self) -> Step:
        import torch
        from torch.nn import functional

        module = self._make().to(self._device)
        optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)

        def step() -> None:
            optimizer.zero_grad()
            for rows in self._parts():
                with self._precision():
                    loss = functional.cross_entropy(module(self._inputs[rows]), self._targets[rows], reduction="sum")
                (loss / self._inputs.shape[0]).backward()
            optimizer.step()

        return step

    def private(self, threads: contextlib.ExitStack) -> Step:
        import torch
        from torch.nn import functional

        from privacy.dpsgd.noise_grid import noise_grid
        from privacy.dpsgd.private_gradients import PrivateGradients
        from privacy.dpsgd.tensor_noise import NoiseAhead
        from privacy.entropy import KeyStream

        module = self._make().to(self._device)
        flat = torch.cat([p.detach().flatten() for p in module.parameters()])
        start = 0
        for parameter in module.parameters():
            parameter.data = flat[start : start + parameter.numel()].view(parameter.shape)
            start += parameter.numel()
        grid = noise_grid(flat.numel(), 1.0, 1.0)
        gradients = PrivateGradients(
            module,
            lambda output, target: functional.cross_entropy(output, target, reduction="none"),
            clip=1.0 if grid is None else grid.clip,
            engine="bookkeeping",
            micro_batch=self._micro_batch,
            autocast=torch.bfloat16,
        )
        noise = threads.enter_context(NoiseAhead(flat.numel(), 1.0, KeyStream.fresh(os.urandom), grid))

        def step() -> None:
            total = gradients.clipped_sum(self._inputs, self._targets).total
            noise.add_(total)
            flat.add_(total, alpha=-LEARNING_RATE / self._inputs.shape[0])

        return step

    def opacus_ghost(self) -> Step:
        import torch
        from opacus.grad_sample import GradSampleModuleFastGradientClipping
        from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
        from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

        module = self._make().to(self._device)
        wrapped = GradSampleModuleFastGradientClipping(
            module, max_grad_norm=1.0, use_ghost_clipping=True, loss_reduction="mean"
        )
        optimizer = DPOptimizerFastGradientClipping(
            torch.optim.SGD(module.parameters(), lr=LEARNING_RATE),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            expected_batch_size=self._inputs.shape[0],
            loss_reduction="mean",
        )
        loss = DPLossFastGradientClipping(wrapped, optimizer, torch.nn.CrossEntropyLoss(), loss_reduction="mean")

        def step() -> None:
            parts = self._parts()
            for index, rows in enumerate(parts):
                optimizer.signal_skip_step(do_skip=index + 1 < len(parts))
                optimizer.zero_grad()
                with self._precision():
                    value = loss(wrapped(self._inputs[rows]), self._targets[rows])
                value.backward()
                optimizer.step()

        return step


def seconds_a_step(steps: dict[str, Step], seconds: float) -> dict[str, float]:
    """Medians, in turns, the card's queue empty before and after each."""
    import torch

    found: dict[str, list[float]] = {name: [] for name in steps}
    deadline = time.monotonic() + seconds * len(steps)
    while time.monotonic() < deadline or len(next(iter(found.values()))) < 5:
        for name, step in steps.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            step()
            torch.cuda.synchronize()
            found[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in found.items()}


def peak_bytes(step: Step) -> int:
    """What a step holds at most beyond what was held before it."""
    import torch

    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - before)


def compare(name: str, contest: Contest, batch: int, seconds: float) -> Row:
    makers: dict[str, Callable[[], Step]] = {"plain": contest.plain}
    with contextlib.ExitStack() as threads:
        makers["private"] = lambda: contest.private(threads)
        if importlib.util.find_spec("opacus") is not None:
            makers["opacus ghost"] = contest.opacus_ghost
        steps: dict[str, Step] = {}
        memory: dict[str, int] = {}
        for who, make in makers.items():
            steps[who] = make()
            steps[who]()
            memory[who] = peak_bytes(steps[who])
        times = seconds_a_step(steps, seconds)
    time_ratio, memory_ratio = times["private"] / times["plain"], memory["private"] / memory["plain"]
    return {
        "name": name,
        "images_per_second": {who: round(batch / value, 1) for who, value in times.items()},
        "peak_megabytes": {who: round(value / 1e6, 1) for who, value in memory.items()},
        "time_ratio": round(time_ratio, 3),
        "memory_ratio": round(memory_ratio, 3),
        "holds": time_ratio <= TIME_GOAL and memory_ratio <= MEMORY_GOAL,
        "opacus": "measured" if "opacus ghost" in times else "not installed, left out",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure private training on a GPU.")
    parser.add_argument("--batch", type=int, default=256, help="images of one step")
    parser.add_argument("--micro-batch", type=int, default=64, help="images worked on at once")
    parser.add_argument("--seconds", type=float, default=20.0, help="per contestant and model")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    options = parser.parse_args()
    if options.batch < 1 or not 1 <= options.micro_batch <= options.batch or not options.seconds > 0:
        print("error: batch, micro-batch and seconds do not fit together", file=sys.stderr)
        print("remedy: 1 <= micro-batch <= batch, and seconds above 0", file=sys.stderr)
        return 1
    import torch

    if not torch.cuda.is_available():
        print("error: torch finds no CUDA device on this machine", file=sys.stderr)
        print("remedy: run this on a machine with an NVIDIA card and a torch built for CUDA", file=sys.stderr)
        return 1
    warnings.simplefilter("ignore")
    card = torch.cuda.get_device_name()
    found = []
    for name, make in MODELS.items():
        contest = Contest(make, options.batch, options.micro_batch, "cuda")
        found.append(compare(name, contest, options.batch, options.seconds))
        print(json.dumps(found[-1]), flush=True)
    report = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "card": card, "torch": torch.__version__}
    report |= {"batch": options.batch, "micro_batch": options.micro_batch, "rows": found}
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{card}, {report['date']}, torch {torch.__version__}")
    return 0 if all(row["holds"] for row in found) else 2


if __name__ == "__main__":
    sys.exit(main())
