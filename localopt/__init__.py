"""localopt: update the layers where new knowledge lives, leave the rest of the model alone."""

__version__ = "0.1.0"
