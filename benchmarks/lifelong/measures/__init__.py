"""The measures of the field, taken of one model before and after each method: one system a file.

`definitions.py` says in one place what each measure is and between which numbers it lies.
"""
