"""A trained model and its forgetting budget -> the model as far on its way as the budget allows, and its end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from localopt.errors import InputError
from localopt.pretraining.interpolation import interpolate, share_within
from localopt.pretraining.models import save_model
from localopt.pretraining.processes import processes, say
from localopt.pretraining.scoring import REFERENCE

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Scores = dict[str, dict[str, Any]]


def keep_within(
    model: PreTrainedModel,
    start: Mapping[str, Tensor],
    scores: Callable[[], Scores],
    rise: float,
    end: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    progress: bool,
) -> dict[str, Any]:
    """Move a model back, until the reference's loss has risen by at most ``rise`` since the start.

    Args:
        model: as training left it.
        start: the weights that training began with, by name.
        scores: scores the model as it then is on every set, as numbers; the reference among them.
        rise: in nats a token.
        end: where the end of training is saved, if the model does not stay there.
        tokenizer: saved with it.
        progress: say each share that is tried.

    Returns:
        ``{"rise", "share", "path": [{"share", "sets"}, ...]}``, the path from the start to the end.

    Raises:
        InputError: the reference's loss before training is not finite.
    """
    tried: list[Scores] = []

    def score(_: nn.Module) -> float:
        tried.append(scores())
        nll = tried[-1][REFERENCE]["nll"]
        if progress:
            said = "not finite" if nll is None else f"{nll:.3f}"
            say(f"forgetting budget: scored model {len(tried)} between start and end, reference now {said}")
        return math.nan if nll is None else float(nll)

    try:
        found = share_within(model, start, score, rise)
    except ValueError as error:
        raise InputError(f"{error}: give another --reference, or leave --budget out.") from error
    if found.share < 1:
        interpolate(model, found.end, 0)
        if processes().is_main_process and not end.exists():  # a run that was killed after this saved it whole
            save_model(model, tokenizer, end)
        interpolate(model, start, found.share)
    path = sorted(zip(found.tried, tried, strict=True), key=lambda pair: pair[0])
    return {"rise": rise, "share": found.share, "path": [{"share": share, "sets": sets} for share, sets in path]}
