"""What a private step costs beside a plain one: time and peak memory, with the best of Opacus' modes beside it.

Time is that of the stepping thread, on one core, in turns with plain SGD in the same process. Our noise comes from the
operating system's generator through AES and is drawn ahead on another core; adding it is in the ratio, drawing it is
not. `all_cores` counts both: the whole process' time with the noise drawn in line, as a site draws it, which takes one
step a round. Opacus draws its own noise in line, from torch's generator.

Memory is what three steps add to a fresh process' peak, the model being loaded, with the allocator set as for the
times; `allocator_as_it_comes` is the same without that, `with_noise_ahead` with the vector that the times' noise needs.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(Path(__file__).parent)]

Row = dict[str, Any]
Step = Callable[[], None]
Noise = Callable[[int, Any], Callable[[Any], None]]
"""(length, grid) -> what adds noise to a vector."""
SECONDS = 6.0
LEAST_TURNS = 4
OPACUS_MODES = ("hooks", "functorch", "ew", "fastclip", "ghost")
# Fused by a compiler, a transformer's many small operations cost less; elsewhere book-keeping is faster.
ENGINES = {"transformer": ("compiled", "bookkeeping")}
MEMORY_GOAL = 1.6
MEMORY_TURNS = 3
KEPT = 1 << 20
LEARNING_RATE = 0.05
CLIP = STD = 1.0
THREADS = contextlib.ExitStack()


def rows() -> list[Row]:
    """`dp step …` for each model, then `dp memory resnet18-gn`. Takes under three minutes."""
    found = []
    for name in ("mlp", "resnet18-gn", "transformer", "cnn"):
        found.append(json.loads(_alone("time", name)))
    found.append(_memory("resnet18-gn"))
    return found


def _alone(*arguments: str) -> str:
    """This file's own command in a fresh process with one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, timeout=300)
    return done.stdout.decode().strip().splitlines()[-1]


def plain_step(name: str) -> Step:
    """SGD as torch has it."""
    import torch
    from dp_models import SETTINGS
    from torch.nn import functional

    torch.manual_seed(0)
    module = SETTINGS[name].make()
    inputs, targets = SETTINGS[name].batch()
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(module(inputs), targets).backward()
        optimizer.step()

    return step


def private_step(name: str, engine: str, noise: Noise) -> Step:
    """Ours: clipped sum, noise, update."""
    import torch
    from dp_models import SETTINGS
    from torch.nn import functional

    from privacy.dpsgd.noise_grid import noise_grid
    from privacy.dpsgd.private_gradients import PrivateGradients

    torch.manual_seed(0)
    module = SETTINGS[name].make()
    inputs, targets = SETTINGS[name].batch()
    # The parameters are views of one vector, as a round's model is: one addition updates them all.
    flat = torch.cat([p.detach().flatten() for p in module.parameters()])
    start = 0
    for parameter in module.parameters():
        parameter.data = flat[start : start + parameter.numel()].view(parameter.shape)
        start += parameter.numel()
    grid = noise_grid(flat.numel(), CLIP, STD)
    gradients = PrivateGradients(
        module,
        lambda output, target: functional.cross_entropy(output, target, reduction="none"),
        clip=CLIP if grid is None else grid.clip,
        engine=engine,  # type: ignore[arg-type]
        clock=time.thread_time,
    )
    add = noise(flat.numel(), grid)
    # A large model's sum takes the memory that the backward pass has given back; a small one's stays in the cache.
    kept = torch.empty_like(flat) if flat.numel() < KEPT else None

    def step() -> None:
        total = gradients.clipped_sum(inputs, targets, out=kept).total
        add(total)
        flat.add_(total, alpha=-LEARNING_RATE / inputs.shape[0])

    return step


def noise_in_line(_: int, grid: Any) -> Callable[[Any], None]:
    """On the grid as at a site: rounded before and after."""
    from privacy.dpsgd.tensor_noise import TensorNoise
    from privacy.entropy import KeyStream

    noise = TensorNoise(KeyStream.fresh(os.urandom))

    def add(values: Any) -> None:
        if grid is not None:
            grid.round_(values.numpy())
        noise.add_(values, STD)
        if grid is not None:
            grid.round_(values.numpy())

    return add


def noise_ahead(length: int, grid: Any) -> Callable[[Any], None]:
    """Drawn on a thread, which ends with this process' work."""
    from privacy.dpsgd.tensor_noise import NoiseAhead
    from privacy.entropy import KeyStream

    return THREADS.enter_context(NoiseAhead(length, STD, KeyStream.fresh(os.urandom), grid)).add_


def opacus_step(name: str, mode: str) -> Step:
    """One of Opacus' ways, with its own optimiser and noise."""
    import torch
    from dp_models import SETTINGS
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
    from opacus.grad_sample.gsm_exp_weights import GradSampleModuleExpandedWeights
    from opacus.optimizers import DPOptimizer
    from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    torch.manual_seed(0)
    module = SETTINGS[name].make()
    inputs, targets = SETTINGS[name].batch()
    base = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)
    settings = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "expected_batch_size": inputs.shape[0]}
    loss: Any = torch.nn.CrossEntropyLoss()
    if mode in ("ghost", "fastclip"):
        wrapped: Any = GradSampleModuleFastGradientClipping(
            module, max_grad_norm=1.0, use_ghost_clipping=mode == "ghost", loss_reduction="mean"
        )
        optimizer: Any = DPOptimizerFastGradientClipping(base, loss_reduction="mean", **settings)
        loss = DPLossFastGradientClipping(wrapped, optimizer, loss, loss_reduction="mean")
    elif mode == "ew":
        wrapped, optimizer = (
            GradSampleModuleExpandedWeights(module, loss_reduction="mean"),
            DPOptimizer(base, **settings),
        )
    else:
        wrapped = GradSampleModule(module, loss_reduction="mean", force_functorch=mode == "functorch")
        optimizer = DPOptimizer(base, **settings)

    def step() -> None:
        optimizer.zero_grad()
        loss(wrapped(inputs), targets).backward()
        optimizer.step()

    return step


def _time(name: str) -> Row:
    from dp_models import SETTINGS

    _keep_freed_memory()
    plain = plain_step(name)
    private: dict[str, Step] = {}
    for engine in ENGINES.get(name, ("bookkeeping",)):
        private[engine] = private_step(name, engine, noise_ahead)
    peers, failed = {}, {}
    for mode in OPACUS_MODES:
        try:
            peers[mode] = opacus_step(name, mode)
            peers[mode]()
        except Exception as error:  # noqa: BLE001 - a mode that cannot serve the model is a result too
            peers.pop(mode, None)
            failed[mode] = type(error).__name__
    skipped = _too_slow(plain, peers)
    goal = SETTINGS[name].goal
    steps = private | {f"opacus {mode}": step for mode, step in peers.items()}
    thread, _ = _ratios(plain, steps, time.thread_time)
    best = min(private, key=lambda engine: thread[engine][1])
    _, low, high = thread[best][1], *thread[best][::2]
    whole, milliseconds = _ratios(
        plain, {"all": private_step(name, best, noise_in_line)}, time.process_time, seconds=SECONDS / 3
    )
    opacus = {mode: round(thread[f"opacus {mode}"][1], 3) for mode in peers} | skipped
    best_mode = min(peers, key=lambda mode: thread[f"opacus {mode}"][1])
    ratio = thread[best][1]
    return {
        "name": f"dp step {name}",
        "ratio": round(ratio, 3),
        "of": "a plain SGD step",
        "goal": goal,
        "holds": ratio <= goal,
        "quartiles": [round(low, 3), round(high, 3)],
        "engine": best,
        "engines": {engine: round(thread[engine][1], 3) for engine in private},
        "all_cores": round(whole["all"][1], 3),
        "plain_milliseconds": round(milliseconds, 3),
        "peer": {"name": f"Opacus {best_mode}", "ratio": opacus[best_mode], "modes": opacus, "failed": failed},
    }


def _too_slow(plain: Step, peers: dict[str, Step]) -> dict[str, float]:
    """Modes a third slower than the fastest are timed once, not in turns; removed from `peers`."""

    def once(step: Step) -> float:
        start = time.thread_time()
        step()
        return time.thread_time() - start

    plain()
    base = once(plain)
    costs = {mode: once(step) / base for mode, step in peers.items()}
    slow = {mode: round(cost, 2) for mode, cost in costs.items() if cost > 1.34 * min(costs.values())}
    for mode in slow:
        del peers[mode]
    return slow


def _ratios(
    plain: Step, steps: dict[str, Step], clock: Callable[[], float], seconds: float = SECONDS
) -> tuple[dict[str, list[float]], float]:
    """Each step's quartiles of time over that of plain SGD just before it, and SGD's milliseconds."""
    for step in (plain, *steps.values()):
        step()
        step()
    start = clock()
    plain()
    repeat = max(1, int(0.03 / max(clock() - start, 1e-4)))

    def measure(step: Step) -> float:
        begin = clock()
        for _ in range(repeat):
            step()
        return clock() - begin

    found: dict[str, list[float]] = {name: [] for name in steps}
    bases: list[float] = []
    deadline = time.monotonic() + seconds
    for turn in itertools.count():
        if turn >= LEAST_TURNS and time.monotonic() > deadline:
            break
        for name, step in steps.items():
            base = measure(plain)
            bases.append(base / repeat * 1e3)
            found[name].append(measure(step) / base)
    return {name: statistics.quantiles(values, n=4) for name, values in found.items()}, statistics.median(bases)


def _keep_freed_memory() -> None:
    """For all alike: glibc keeps what is freed, so that nobody's time is that of fresh pages from the kernel."""
    if sys.platform == "linux":
        trim_threshold, mmap_threshold, never = -1, -3, 1 << 30
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):
            library.mallopt(trim_threshold, never)
            library.mallopt(mmap_threshold, never)


def _memory(name: str) -> Row:
    def added(who: str, *settings: str) -> float:
        return float(_alone("memory", name, who, *settings))

    # How the heap happens to be laid out moves a process' peak by some percent.
    turns = [(added("plain"), added("bookkeeping")) for _ in range(MEMORY_TURNS)]
    plain, ours = (statistics.median(peaks) for peaks in zip(*turns, strict=True))
    peers = {mode: round(added(f"opacus {mode}") / plain, 2) for mode in ("ghost", "fastclip")}
    best = min(peers, key=lambda mode: peers[mode])
    ratio = ours / plain
    return {
        "name": f"dp memory {name}",
        "ratio": round(ratio, 3),
        "of": "the peak of plain SGD steps",
        "goal": MEMORY_GOAL,
        "holds": ratio <= MEMORY_GOAL,
        "turns": sorted(round(private / base, 3) for base, private in turns),
        "plain_megabytes": round(plain / 1e6, 1),
        "with_noise_ahead": round(added("ahead") / plain, 3),
        "allocator_as_it_comes": round(added("bookkeeping", "default") / added("plain", "default"), 3),
        "peer": {"name": f"Opacus {best}", "ratio": peers[best], "modes": peers},
    }


def _added(name: str, who: str) -> int:
    """Bytes that three steps add to the peak of this process."""
    import resource

    if who == "plain":
        step = plain_step(name)
    elif who in ("bookkeeping", "ahead"):
        step = private_step(name, "bookkeeping", noise_ahead if who == "ahead" else noise_in_line)
    else:
        step = opacus_step(name, who.removeprefix("opacus "))
    if "default" not in sys.argv:
        _keep_freed_memory()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    for _ in range(3):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - pages * resource.getpagesize()


def main() -> int:
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    task, name = sys.argv[1:3]
    with THREADS:
        print(json.dumps(_time(name)) if task == "time" else _added(name, sys.argv[3]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
