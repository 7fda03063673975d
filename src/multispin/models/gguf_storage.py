"""How the matrices of a GGUF file can be stored; apart, so that `--help` can list it at once."""

GGUF_STORAGES = {"q8_0": 7, "q5_1": 9, "q5_0": 8, "q4_1": 3, "q4_0": 2, "bf16": 32, "f16": 1}
"""Each way, with the number that the file says it by (`general.file_type`)."""
