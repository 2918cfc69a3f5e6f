"""``python -m localopt`` is ``localopt``; so ``torchrun -m localopt`` runs it on several processes."""

from localopt.cli import main

if __name__ == "__main__":
    main()
