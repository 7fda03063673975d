"""The numbers that a target can compute in, by name; light to import, for the command line."""

FLOATS = ("float32", "bfloat16", "float16")
INT8 = "int8"
"""Beside them: weights and sums of linear layers in whole numbers, the rest float32 (see `quantised`)."""
NUMBERS = (*FLOATS, INT8)
