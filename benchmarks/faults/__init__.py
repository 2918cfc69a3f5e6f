"""Faults on purpose, counted: damaged files, planted code, kills, full disks, gradients that are no numbers."""
