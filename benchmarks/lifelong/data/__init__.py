"""Public files -> what is taught, asked, kept and read."""
