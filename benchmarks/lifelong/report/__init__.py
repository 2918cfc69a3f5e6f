"""Records of runs -> statistics, tables, pictures, a page."""
