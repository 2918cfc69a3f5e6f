"""What ``localopt demo`` runs: a real model taught invented facts, or with ``--tiny`` a miniature of it."""
