"""Does a model learn new facts without losing old ones? Data, runs and tables."""
