"""What ``localopt demo`` runs: a real model is taught invented facts, or with ``--tiny`` a miniature of it all."""
