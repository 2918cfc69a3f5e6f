"""Model + data -> LayerTrace: the layers that new knowledge lives in, found before training.

Read `trace.py` and `gains.py` (what is measured), `layer_trace.py` (what comes of it and what it is used for), then
`measure.py` and `ghost/` (how gradients are measured, one by one and a batch at a time) and `export.py`.
"""
