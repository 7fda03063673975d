"""The files of @wllama/wllama, as data."""
