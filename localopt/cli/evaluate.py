"""``localopt eval``."""

from __future__ import annotations

from typing import Annotated

import typer

from localopt.cli.shared import Model, Probes, Reference, loaded, out_console, placed, refuse_missing
from localopt.errors import InputError


def evaluate(
    model: Model,
    probe: Probes = None,
    reference: Reference = None,
    batch_size: Annotated[int, typer.Option(help="Examples scored at a time.", min=1)] = 8,
    limit: Annotated[
        int,
        typer.Option(help="Score at most this many probes, or pieces of text, of each file, spaced evenly.", min=1),
    ] = 1024,
    seq_len: Annotated[int, typer.Option(help="Tokens of a piece of text.", min=2)] = 512,
    show: Annotated[
        int, typer.Option(help="Also show, of so many probes of each file, what was asked, written, and wanted.", min=0)
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Score a model: loss and perplexity of the probes' spans, and the share of answers ranked first.

    The loss (NLL) is in nats a token. An answer is ranked first if greedy decoding after its prompt would write it.
    """
    if not probe and reference is None:
        raise InputError("nothing to score: give --probe NAME=FILE or --reference FILE.")
    refuse_missing(reference)

    from localopt.pretraining.processes import say
    from localopt.pretraining.scoring import read_sets, score_sets, score_table, scores_to_json
    from localopt.pretraining.written import as_records, write_answers, written_table

    given = read_sets(probe or [], reference, limit=limit, length=seq_len)
    network, tokenizer = loaded(model)
    sets = []
    for one in given:
        limited, count = one.encoded(network, tokenizer)
        sets.append(limited)
        if count > limit:
            say(f"{one.name}: scores {limit:,} of {count:,}, spaced evenly; --limit {count} scores all")
    scores = score_sets(placed(network), tokenizer, sets, batch_size=batch_size, progress=True)
    written = write_answers(network, tokenizer, sets, show) if show else {}
    if as_json:
        records = {name: as_records(answers) for name, answers in written.items()}
        print(scores_to_json(scores, records), flush=True)  # so that a full disk is noticed here
        return
    out_console.print(score_table(scores, title=model))
    for name, answers in written.items():
        out_console.print(written_table(name, answers))
