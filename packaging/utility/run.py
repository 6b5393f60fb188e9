"""Every number and picture of docs/UTILITY.md, in one command.

    python packaging/utility/run.py [--quick | --survival] [--shared FOLDER] [--docs docs] [--workers 2]

Writes docs/utility/figures.json (one value for each seed), the SVG files beside it, and the generated section of
docs/UTILITY.md. --quick: two seeds and two epsilons into a folder of its own, to see that it works. --survival:
Fed-TCGA-BRCA alone anew, the rest as it is in figures.json. --report: no training; text and pictures anew from
figures.json.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE)]
logging.getLogger("absl").setLevel(logging.ERROR)  # the accountant's numerical notes are not for people

import arms  # noqa: E402 - the folder above is where they lie
import cohorts  # noqa: E402
import correlated  # noqa: E402
import experiments  # noqa: E402
import published_flamby as flamby  # noqa: E402
import tables  # noqa: E402

SEEDS, REPEATS, CORRELATED_SEEDS = 20, 5, 40
QUICK_EPSILONS = (1.0, 3.0)
DIGITS = 5


def problem_of(name: str, shared: Path) -> cohorts.Problem:
    """Built anew in each worker: cheap, and nothing has to cross."""
    if name == "wisconsin":
        return cohorts.wisconsin()
    return cohorts.heart(shared / "uci_heart_disease") if name == "heart" else cohorts.brca(shared / "fed_tcga_brca")


def one_seed(job: tuple[str, Path, experiments.Calibration, int, int]) -> experiments.Seed:
    """In a worker."""
    name, shared, calibration, seed, repeats = job
    logging.getLogger("absl").setLevel(logging.ERROR)
    warnings.simplefilter("error", RuntimeWarning)
    return experiments.run_seed(problem_of(name, shared), calibration, seed, repeats)


def gathered(seeds: list[experiments.Seed]) -> dict[str, Any]:
    """arm -> epsilon -> whom -> one value for each seed, null where undefined."""
    result: dict[str, Any] = {}
    for arm, by_epsilon in seeds[0].items():
        for epsilon in by_epsilon:
            names = sorted({who for seed in seeds for who in seed[arm][epsilon]})
            result.setdefault(arm, {})[epsilon] = {
                who: [plain(seed[arm][epsilon].get(who, math.nan)) for seed in seeds] for who in names
            }
    return result


def plain(value: float) -> float | None:
    """Rounded, and null for what is undefined: JSON has no NaN."""
    return None if math.isnan(value) else round(value, DIGITS)


def solved(
    names: tuple[str, ...], shared: Path, calibration: experiments.Calibration, workers: int, seeds: int, repeats: int
) -> dict[str, Any]:
    """Every arm of these problems."""
    problems: dict[str, Any] = {}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for name in names:
            problem = problem_of(name, shared)
            say(f"{problem.title}: {seeds} seeds")
            jobs = [(name, shared, calibration, seed, repeats) for seed in range(seeds)]
            problems[name] = {
                "title": problem.title,
                "measure": problem.measure,
                "patients": problem.patients,
                "seeds": seeds,
                "arms": gathered(list(pool.map(one_seed, jobs))),
            }
    return problems


def survival(shared: Path, calibration: experiments.Calibration, seeds: int) -> dict[str, Any]:
    """c-index on FLamby's own split."""
    say("FLamby's split of Fed-TCGA-BRCA")
    split = cohorts.flamby_brca(shared / "fed_tcga_brca")
    rows = experiments.concordances(problem_of("brca", shared), split, calibration, seeds)
    for row in rows:
        row["values"] = [plain(value) for value in row["values"]]
    return {**cohorts.tested(split), "seeds": seeds, "rows": rows}


def measure(shared: Path, workers: int, quick: bool) -> dict[str, Any]:
    """All figures."""
    seeds, repeats = (2, 1) if quick else (SEEDS, REPEATS)
    epsilons = QUICK_EPSILONS if quick else experiments.EPSILONS
    say("calibrating")
    calibration = experiments.calibrate(epsilons)
    problems = solved(("wisconsin", "heart", "brca"), shared, calibration, workers, seeds, repeats)
    say("FLamby's split")
    split = cohorts.flamby_heart(shared / "uci_heart_disease")
    counts = {name: group.patients for name, group in split.training.items()}
    if counts != flamby.TRAINING:
        raise SystemExit(f"error: FLamby's training rows are not {flamby.TRAINING}\nremedy: fetch the files again")
    ours = experiments.accuracies(problem_of("heart", shared).network, split, calibration, seeds)
    for row in ours:
        row["mean"], row["pooled"] = [plain(v) for v in row["mean"]], [plain(v) for v in row["pooled"]]
    nominal = [value for value in flamby.DP_ACCURACY if value is not None]
    say("correlated noise")
    sites = correlated.SITES[:1] if quick else correlated.SITES
    compared = correlated.compare(4 if quick else CORRELATED_SEEDS, sites)
    for row in compared:
        row["auc"] = [plain(value) for value in row["auc"]]  # type: ignore[attr-defined]
    return {
        "quick": quick,
        "rounds": arms.RECIPE.rounds,
        "retries": arms.RETRIES,
        "delta": arms.DELTA,
        "goal": experiments.GOAL,
        "promises": experiments.promises(calibration, 4),
        "problems": problems,
        "flamby": {
            "ours": ours,
            "recomputed": {f"{value:g}": flamby.recomputed(value) for value in nominal},
            "published_dp": {"none" if k is None else f"{k:g}": v for k, v in flamby.DP_ACCURACY.items()},
            "published": flamby.HEART_ACCURACY,
        },
        "flamby_brca": survival(shared, calibration, seeds),
        "published_brca": flamby.BRCA_CONCORDANCE,
        "correlated": compared,
        "correlated_sites": list(sites),
    }


def write(figures: dict[str, Any], docs: Path) -> None:
    """Pictures, and the section between the markers; the text around it is left as it is."""
    import pictures

    folder = docs / "utility"
    for name, problem in figures["problems"].items():
        pictures.curves(problem, "all", folder / f"{name}.svg")
        if len(problem["patients"]) > 1:
            pictures.grid(problem, folder / f"{name}-sites.svg")
    page = docs / "UTILITY.md"
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(tables.BEGIN)
    _, end, after = rest.partition(tables.END)
    if not begin or not end:
        raise SystemExit(
            f"error: {page} lacks the markers of its generated part\nremedy: restore it from the repository"
        )
    page.write_text(f"{before}{begin}\n\n{tables.generated(figures)}\n\n{end}{after}", encoding="utf-8")


def say(what: str) -> None:
    """Progress, with the seconds since the start."""
    print(f"{time.monotonic() - START:5.0f} s  {what}", flush=True)


START = time.monotonic()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two seeds, two epsilons, into utility-quick/")
    parser.add_argument("--report", action="store_true", help="no training: text and pictures from figures.json")
    parser.add_argument("--survival", action="store_true", help="train for Fed-TCGA-BRCA alone, keep the other figures")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the data sets")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    docs = options.docs
    if options.quick:
        docs = Path("utility-quick")
        docs.mkdir(exist_ok=True)
        (docs / "UTILITY.md").write_text(f"# A quick run\n\n{tables.BEGIN}\n{tables.END}\n", encoding="utf-8")
    (docs / "utility").mkdir(parents=True, exist_ok=True)
    store = docs / "utility" / "figures.json"
    if options.report:
        figures = json.loads(store.read_text(encoding="utf-8"))
    else:
        for name in ("uci_heart_disease", "fed_tcga_brca"):
            if not (options.shared / name).is_dir():
                print(f"error: there is no folder {options.shared / name}", file=sys.stderr)
                print("remedy: name the folder that holds the data sets with --shared", file=sys.stderr)
                return 1
        if options.survival:
            figures = json.loads(store.read_text(encoding="utf-8"))
            calibration = experiments.calibrate(experiments.EPSILONS)
            figures["flamby_brca"] = survival(options.shared, calibration, SEEDS)
            figures["problems"] |= solved(("brca",), options.shared, calibration, options.workers, SEEDS, REPEATS)
        else:
            figures = measure(options.shared, options.workers, options.quick)
        store.write_text(json.dumps(figures, separators=(",", ":"), allow_nan=False) + "\n", encoding="utf-8")
    write(figures, docs)
    say(f"written: {docs / 'UTILITY.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
