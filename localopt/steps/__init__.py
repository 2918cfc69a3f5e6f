"""Scales -> updates: how the wrapped optimizer steps every layer by its scale.

Read `layout.py` (which parameter belongs to which layer), `split.py` (the step on any optimizer), then `fused.py` (the
same without waiting for the device). `anchor.py` decays what was updated toward where training began, which `starts.py`
keeps. `telling.py` says what was done. The rest: `sharding.py`, `wrapper.py`, `checkpoint.py`, `checks.py`,
`report.py`.
"""
