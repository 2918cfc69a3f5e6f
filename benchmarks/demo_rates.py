"""Chooses the learning rates of `localopt demo`, on facts that its comparison never sees.

    python -m benchmarks.demo_rates --model MODEL --out FILE.json

The tuning facts (`localopt/demo/data/tuning_*`) are 20 instead of 40, so a step reads 12 passages instead of 24: as
many steps and passes as in the demo. A method's best rate is the one that takes in most at equal forgetting: the mean
uptake where the loss of the tuning page has risen by LEVELS nats a token, on the straight way between the weights
before and after (localopt/demo/path.py). A rate that never forgets so much counts with its end.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from torch.optim import Optimizer
from transformers import PreTrainedModel

from benchmarks.stamp import stamp
from localopt.demo.exam import Exam
from localopt.demo.lessons import read_lessons
from localopt.demo.methods import adamw, one_line
from localopt.demo.path import walk
from localopt.demo.training import Effort, read_passages, teach
from localopt.pretraining.models import load_model

LEVELS = (0.05, 0.1, 0.2)
Make = Callable[[PreTrainedModel, float], Optimizer]
RATES: dict[str, tuple[Make, tuple[float, ...]]] = {
    "one line": (one_line, (1.5e-4, 3e-4, 6e-4, 1.2e-3, 2.4e-3)),
    "AdamW": (adamw, (1.5e-4, 3e-4, 6e-4, 1.2e-3)),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="demo_rates", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", required=True, help="SmolLM2-135M: hub id, folder or GGUF file")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="goes on with what is there already")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    model, tokenizer = load_model(chosen.model)
    lessons, effort = read_lessons("tuning"), Effort(batch=12, seed=chosen.seed)
    rows, exam = read_passages(lessons.passages, tokenizer), Exam(lessons, tokenizer)
    start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    before = exam.mark(model)
    runs = json.loads(chosen.out.read_text(encoding="utf-8"))["runs"] if chosen.out.exists() else []
    done = {(run["method"], run["rate"]) for run in runs}
    todo = [(name, make, lr) for name, (make, rates) in RATES.items() for lr in rates if (name, lr) not in done]
    for name, make, lr in todo:
        teach(model, rows, make(model, lr), effort)
        path = walk(model, start, before, exam.mark)
        gains, reached = path.mean_gains(LEVELS)
        uptake, end = gains.mean().item(), path.marks[-1]
        print(f"{name} {lr:g}: {'' if reached else 'at least '}{uptake:.3f} nats", flush=True)
        run = {"method": name, "rate": lr, "uptake": round(uptake, 4), "reached": reached}
        run["points"] = [(round(lost, 4), round(won, 4)) for lost, won in path.points]
        runs.append(run | {"answered": end.answered, "known": end.known})
        best = {
            one: max((r for r in runs if r["method"] == one), key=lambda r: r["uptake"])["rate"]
            for one in RATES
            if any(r["method"] == one for r in runs)
        }
        result = {"levels": LEVELS, "effort": asdict(effort), "best": best, "runs": runs, "stamp": stamp()}
        chosen.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
