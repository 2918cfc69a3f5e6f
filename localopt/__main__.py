"""``python -m localopt`` is ``localopt``; so ``torchrun -m localopt`` runs it on several processes."""

from localopt.cli import main
from localopt.pretraining.processes import disconnect

if __name__ == "__main__":
    try:
        main()
    except SystemExit as end:
        if not end.code:
            disconnect()
        raise
