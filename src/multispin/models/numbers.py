"""The numbers that a target can compute in, and those that a GGUF file can hold; light, for the command line."""

FLOATS = ("float32", "bfloat16", "float16")
INT8 = "int8"
"""Beside them: weights and sums of linear layers in whole numbers, the rest float32 (see `quantised`)."""
NUMBERS = (*FLOATS, INT8)

GGUF_STORAGES = {"q8_0": 7, "q5_1": 9, "q5_0": 8, "q4_1": 3, "q4_0": 2, "bf16": 32, "f16": 1}
"""How the matrices of a GGUF file can be stored, with the number that the file says it by (`general.file_type`)."""
