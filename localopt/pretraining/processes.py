"""One process, or several under torchrun: what the command line and `train` have to know about it.

accelerate finds out which it is, and connects the processes; Trainer relies on the same.
"""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

from rich.console import Console

from localopt.outside import shown

if TYPE_CHECKING:
    from accelerate import PartialState


def processes() -> PartialState:
    """Return this process's place among the others; the first call connects them. Alone, it is the main process."""
    import torch  # these two take seconds
    from accelerate import PartialState

    if torch.distributed.is_available():
        # Its functions have the group as a default argument: imported first, they do not hold it for ever (below).
        import torch.distributed.nn.functional
    return PartialState(cpu=not torch.accelerator.is_available())


def disconnect() -> None:
    """End what :func:`processes` began, and its threads; alone, nothing.

    A thread of gloo that lets go of a tensor late, while Python shuts down already, aborts the process after all was
    done, and torchrun would count the run as failed. The same thread hangs with a model that outlives its group.
    """
    if "accelerate" in sys.modules:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            gc.collect()  # models in circles, before their group
            dist.destroy_process_group()


def say(text: str) -> None:
    """Print to standard error, where progress goes; only the main process should."""
    for line in text.split("\n"):
        Console(stderr=True).print(shown(line), highlight=False, soft_wrap=True)
