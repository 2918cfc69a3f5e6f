"""What a localized step costs, against the optimizer it wraps and against other packages.

python -m benchmarks.speed.step                       the 135M model, fp32, every contender
python -m benchmarks.speed.step --model 1B --core     only fused AdamW and ours around it
python -m benchmarks.speed.step --model FOLDER --optimizer "SGD(momentum=0.9)" --policy "TopK(0.25)"
                                                      your own shapes, optimizer and policy, and nothing else
python -m benchmarks.speed.step --smoke               seconds, for CI
"""

from __future__ import annotations

import gc
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.optim import AdamW

from benchmarks.memory import growth
from benchmarks.speed import contenders, own
from benchmarks.speed.contenders import Contender
from benchmarks.speed.launches import calls
from benchmarks.speed.workloads import MODEL_HELP, Workload, of_layers, of_model
from benchmarks.stamp import stamp
from benchmarks.timing import Timing, bandwidth, interleave
from localopt.signals import layer_norms, reference_layer_norms
from localopt.steps.layout import segments

SHARES = (1.0, 0.5, 0.3, 0.1)
WATCHED = 0.5  # the share at which memory and calls are looked at
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console()


@app.command()
def main(
    models: Annotated[
        str, typer.Option("--model", "--models", help=f"{MODEL_HELP} Several: comma-separated.", metavar="MODEL")
    ] = "135M",
    optimizer: Annotated[
        str | None,
        typer.Option(help="Time this one alone, bare and localized: a class of torch.optim.", metavar="NAME"),
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="The policy that localizes it: one of localopt's.", metavar="NAME")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16: parameters, gradients and moments.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda" if torch.cuda.is_available() else "cpu",
    rounds: Annotated[int, typer.Option(help="Timed repetitions of every contender.")] = 21,
    core: Annotated[bool, typer.Option("--core", help="Leave out torch's other optimizers and the peers.")] = False,
    layers: Annotated[bool, typer.Option("--layers", help="Also: 8 to 512 layers at equal size, 35M to 1B.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the step against the share updated.")] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Seconds instead of minutes; the figures mean nothing.")
    ] = False,
) -> None:
    """Time one optimizer step: all contenders in turn, ratios within a round."""
    if smoke:
        models, rounds, layers = "smoke", 2, False
    place = torch.device(device)
    results: dict[str, Any] = {"stamp": stamp(), "dtype": dtype, "rounds": rounds, "models": {}}
    if optimizer is not None or policy is not None:
        chosen = own.Choice(optimizer or "AdamW", policy or "AboveMean")
        results["own"] = {name: own.time_own(name, chosen, DTYPES[dtype], device, rounds) for name in models.split(",")}
        if json_file is not None:
            json_file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        return
    results["bandwidth"] = bandwidth(place, 1 << 20 if smoke else 1 << 27)
    for name in models.split(","):
        results["models"][name] = time_model(name, DTYPES[dtype], device, rounds, core, results["bandwidth"])
    if layers:
        results["layers"] = time_layers(DTYPES[dtype], device, rounds)
    if json_file is not None:
        json_file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if plot is not None:
        from benchmarks.speed.step_plot import draw

        draw(results, plot)


def time_model(
    name: str, dtype: torch.dtype, device: str, rounds: int, core: bool, rates: dict[str, float]
) -> dict[str, Any]:
    """Time every contender on one model's shapes, and print one table."""
    workload = of_model(name, dtype, device)
    error = norm_error(workload)  # before there are moments: float64 takes room
    shares = {}
    inner = AdamW(workload.parameters.items(), lr=1e-5, fused=True)
    for share in SHARES:
        true_share = workload.choose(share)[1]
        entered = list(contenders.core(workload, inner, share))
        timings = interleave(entered, rounds, title=f"{name}, {share:g} of the parameters")
        shares[share] = {"share": true_share, "timings": {key: one.as_dict() for key, one in timings.items()}}
        shares[share]["ratios"] = _ratios(timings, true_share)
        if share == WATCHED:
            shares[share]["memory"], shares[share]["calls"] = {}, {}
            for one in entered:
                workload.restore_gradients(one.only)
                shares[share]["memory"][one.name] = growth(one.step, device)
                workload.restore_gradients(one.only)
                shares[share]["calls"][one.name] = calls(one.step, workload.noise.device)
    console.print(_share_table(name, workload, shares, rates, error))
    console.print(_watched_table(name, shares[WATCHED]))
    others: dict[str, Any] = {}
    if not core:
        others = _others(workload, inner, rounds)
        console.print(_others_table(name, others))
    found = {"parameters": workload.elements, "layers": len(workload.layers), "norm error": error}
    return found | {"shares": shares, "others": others}


def norm_error(workload: Workload) -> float:
    """The largest relative error of a layer's norm, against one taken in float64."""
    workload.restore_gradients()
    names = workload.layers
    layer_of = [names.index(layer) for layer in workload.layer_of.values()]
    gradients = [parameter.grad for parameter in workload.parameters.values()]
    norms = layer_norms(gradients, segments(layer_of, len(names), workload.noise.device)).cpu().double()
    exact = reference_layer_norms(gradients, layer_of, len(names))
    return ((norms - exact).abs() / exact).max().item()


def _ratios(timings: dict[str, Timing], share: float) -> dict[str, Any]:
    bare, clipped, norms = timings["AdamW fused"], timings["clip + AdamW fused"], timings["norms"]
    alone = timings["AdamW fused, chosen layers alone"]
    floor, with_clip = share + norms.median / bare.median, (share * 32 + 4) / 40
    return {
        "online / AdamW": timings["online"].ratio(bare),
        "its floor": floor,
        "online + clip / clip + AdamW": timings["online + clip"].ratio(clipped),
        "its floor by bytes": with_clip,
        "fixed / AdamW on the chosen": timings["fixed"].ratio(alone),
        "fixed + clip / clip + AdamW": timings["fixed + clip"].ratio(clipped),
        "norms / AdamW": norms.ratio(bare),
    }


def _share_table(
    name: str, workload: Workload, shares: dict[float, Any], rates: dict[str, float], error: float
) -> Table:
    nbytes = sum(p.numel() * p.element_size() for p in workload.parameters.values())
    medians = {key: statistics.median(one["seconds"]) for key, one in shares[SHARES[0]]["timings"].items()}
    bare, norms = medians["AdamW fused"], medians["norms"]
    table = Table(
        title=f"{name}: {workload.elements / 1e6:.0f}M parameters, {len(workload.layers)} layers",
        caption=(
            f"Medians (quartiles) of ratios. Fused AdamW: {bare * 1e3:.1f} ms, {7 * nbytes / bare / 1e9:.0f} GB/s. "
            f"Norms: {norms * 1e3:.1f} ms, {nbytes / norms / 1e9:.0f} GB/s, {nbytes / norms / rates['read']:.0%} of "
            f"the read bandwidth, error {error:.0e}; this machine reads {rates['read'] / 1e9:.0f}, copies "
            f"{rates['copy'] / 1e9:.0f} GB/s."
        ),
    )
    table.add_column("share updated")
    for column in ("online / AdamW", "floor", "online + clip / clip + AdamW", "floor", "fixed / AdamW on the chosen"):
        table.add_column(column, justify="right")
    for entry in shares.values():
        ratios = entry["ratios"]
        table.add_row(
            f"{entry['share']:.2f}",
            _shown(ratios["online / AdamW"]),
            f"{ratios['its floor']:.2f}",
            _shown(ratios["online + clip / clip + AdamW"]),
            f"{ratios['its floor by bytes']:.2f}",
            _shown(ratios["fixed / AdamW on the chosen"]),
        )
    return table


def _watched_table(name: str, entry: dict[str, Any]) -> Table:
    table = Table(title=f"{name}: one warm step at {entry['share']:.2f} of the parameters")
    for column in ("contender", "memory above that before it", "kernel launches", "waits for the device"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for contender, grown in entry["memory"].items():
        counted = entry["calls"][contender] or {"launches": "not measured", "waits": "not measured"}
        memory = "not measured" if grown is None else f"{grown / 1e6:.1f} MB"
        table.add_row(contender, memory, str(counted["launches"]), str(counted["waits"]))
    return table


def _others(workload: Workload, inner: AdamW, rounds: int) -> dict[str, Any]:
    """Torch's other optimizers and the peers, each beside fused AdamW and ours at half the parameters."""
    found: dict[str, Any] = {}
    ours = [one for one in contenders.core(workload, inner, 0.5) if one.name in ("AdamW fused", "online", "fixed")]
    peers: list[Callable[[], list[Contender]]] = [lambda: list(contenders.of_torch(workload))]
    peers.append(lambda: [contenders.masked(workload, 0.5)])
    for peer in (contenders.schedule_free, contenders.eight_bit, contenders.badam):
        # They change parameters in ways of their own, so each gets its own.
        peers.append(
            lambda peer=peer: [peer(of_model(workload.name, workload.noise.dtype, workload.noise.device.type))]
        )
    for enter in peers:
        try:
            entered = enter()
        except ImportError:
            found[_name_of(enter)] = {"error": "not installed, the extra bench brings it: pip install '.[bench]'"}
            continue
        except Exception as error:  # it cannot run here: reported as such
            found[_name_of(enter)] = {"error": f"failed: {type(error).__name__}: {error}".split("\n")[0]}
            continue
        timings = interleave([*ours, *entered], rounds, title="others")
        for name, timing in timings.items():
            ratio = None if timing.error else timing.ratio(timings["AdamW fused"])
            found.setdefault(name, {**timing.as_dict(), "ratio": ratio})
        del entered
        gc.collect()
    return found


def _name_of(enter: Callable[[], Any]) -> str:
    defaults = enter.__defaults__ or ()
    return defaults[0].__name__ if defaults else "torch"


def _others_table(name: str, others: dict[str, Any]) -> Table:
    table = Table(title=f"{name}: one step / fused AdamW (ours at half the parameters)")
    table.add_column("contender")
    table.add_column("median (quartiles)", justify="right")
    known = {key: one for key, one in others.items() if one.get("ratio")}
    for key, one in sorted(known.items(), key=lambda pair: pair[1]["ratio"][0]):
        table.add_row(key, _shown(one["ratio"]))
    for key, one in others.items():
        if one.get("error"):
            table.add_row(key, one["error"][:80])
    return table


def time_layers(dtype: torch.dtype, device: str, rounds: int) -> dict[str, Any]:
    """Time the online step with clipping over the number of layers, and over the number of parameters."""
    found: dict[str, Any] = {"by layers": {}, "by parameters": {}, "overhead": {}}
    table = Table(title="online + clip at half the parameters")
    for column in ("layers", "parameters", "ms", "ns a parameter", "/ (clip + AdamW)"):
        table.add_column(column, justify="right")
    cases = [(count, 135_000_000) for count in (8, 32, 128, 512)]
    cases += [(64, elements) for elements in (35_000_000, 135_000_000, 360_000_000, 1_000_000_000)]
    cases += [(count, 0) for count in (8, 62, 512)]  # next to no bytes: what is left is Python
    for count, elements in cases:
        workload = of_layers(count, elements, dtype, device)
        workload.restore_gradients()
        inner = AdamW(workload.parameters.items(), lr=1e-5, fused=True)
        entered = [one for one in contenders.core(workload, inner, 0.5) if "chosen" not in one.name]
        timings = interleave(entered, rounds, title=f"{count} layers")
        ours, theirs = timings["online + clip"], timings["clip + AdamW fused"]
        kind = (
            "overhead" if not elements else "by layers" if elements == 135_000_000 and count != 64 else "by parameters"
        )
        found[kind][f"{count} layers, {workload.elements} parameters"] = {
            key: one.as_dict() for key, one in timings.items()
        }
        nanoseconds = f"{ours.median / workload.elements * 1e9:.3f}" if elements else "Python only"
        table.add_row(
            str(count),
            f"{workload.elements / 1e6:.0f}M",
            f"{ours.median * 1e3:.2f}",
            nanoseconds,
            _shown(ours.ratio(theirs)),
        )
        del workload, inner, entered
        gc.collect()
    console.print(table)
    return found


def _shown(ratio: tuple[float, float, float]) -> str:
    median, low, high = ratio
    return f"{median:.2f} ({low:.2f}-{high:.2f})"


if __name__ == "__main__":
    app()
