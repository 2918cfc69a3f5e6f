"""Several periods one after the other, each taught from where the last one ended: what lifelong pretraining means."""
