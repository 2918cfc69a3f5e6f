"""How a process of a distributed test ends: in order, and then at once. `-m tests.distributed.ending FILE` runs a file.

torch joins gloo's threads where nothing holds the process groups any more; but DTensor's caches hold them beyond
``destroy_process_group()``, and so do the default arguments of ``torch.distributed.nn.functional`` if that is imported
after ``init_process_group()``. A thread that lives on may be late, where the machine is busy, to let go of the last
tensor it was given. It takes the GIL for that, and if the interpreter shuts down meanwhile, CPython ends the thread
within a destructor: the process aborts ("terminate called without an active exception") after all was done, and
torchrun counts the run as failed. A DDP model that outlives its group is as bad: it joins these threads with the GIL in
its hand, and hangs. Nothing public ends the threads for certain, so here Python does not shut down.
"""

from __future__ import annotations

import gc
import os
import runpy
import sys
from typing import NoReturn

import torch.distributed as dist


def leave() -> NoReturn:
    """End this process, whose work succeeded; after all others have come as far."""
    if dist.is_initialized():
        gc.collect()  # of models in circles, before their group
        dist.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    held = runpy.run_path(sys.argv[1], run_name="__main__")  # among it the model, whose group the file has ended
    leave()
