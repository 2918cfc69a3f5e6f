"""One process, or several under torchrun: what the command line and `train` have to know about it.

accelerate finds out which it is, and connects the processes; Trainer relies on the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from localopt.outside import shown

if TYPE_CHECKING:
    from accelerate import PartialState


def processes() -> PartialState:
    """Return this process's place among the others; the first call connects them. Alone, it is the main process."""
    import torch  # these two take seconds
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())


def say(text: str) -> None:
    """Print to standard error, where progress goes; only the main process should."""
    for line in text.split("\n"):
        Console(stderr=True).print(shown(line), highlight=False, soft_wrap=True)
