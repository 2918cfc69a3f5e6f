"""Names of methods -> what each does to a model and its optimizer."""
