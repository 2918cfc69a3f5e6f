"""The command line's work: texts, probes and a model in, continued pretraining, scores and pictures out.

Read `settings.py` and `train.py` (a run), `trainer.py` (its loop), then `probes.py` and `evaluate.py` (what a model
knows) and `scoring.py`, `results.py`, `history.py` (what is shown and kept of it).
"""
