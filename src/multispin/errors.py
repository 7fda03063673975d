"""The error for refused input, and the sentence for a missing optional library."""

from importlib.util import find_spec

Where = tuple[str | int, ...]
"""Path of a value in its document, outermost first: ("device", 3, "acceptance_rate")."""

EXTRAS = {
    "accelerate": "models",
    "gguf": "llama",  # in "models" too, which is much larger
    "huggingface_hub": "device",
    "ik_llama_cpp": "llama",
    "jinja2": "device",
    "matplotlib": "figures",
    "prometheus_client": "models",
    "rich": "llama",  # of the core, and left out where requirements-device.txt was installed
    "safetensors": "llama",
    "segno": "web",
    "tokenizers": "device",
    "torch": "models",
    "transformers": "models",
}
"""The extra of this package that installs each optional library."""


class InputError(ValueError):
    """Something from outside (a flag, a file, a model folder, a frame) was refused.

    Args:
        message: one sentence that names what was refused and says what to do; the command line prints it alone and
            exits with code 2.
        where: path of the refused value in the document that is checked; default empty: it is not known. A reader of
            files turns it into a line.
    """

    def __init__(self, message: str, *, where: Where = ()) -> None:
        super().__init__(message)
        self.where = where


def require(module: str) -> None:
    """InputError if an optional library is not installed. Call it before long work that needs it at the end."""
    if find_spec(module) is None:
        missing = ModuleNotFoundError(f"No module named {module!r}", name=module)
        raise missing_extra(missing) or missing


def missing_extra(error: ModuleNotFoundError) -> InputError | None:
    """A sentence for a user whose installation lacks an optional library; None if the missing module is another."""
    extra = EXTRAS.get((error.name or "").partition(".")[0])
    if extra is None:
        return None
    return InputError(f"this needs {error.name}, which is not installed: {how_to_install(extra)}")


def how_to_install(extra: str) -> str:
    """The end of a sentence: how to install one of this package's extras, which no package index has."""
    return f"run `pip install '.[{extra}]'` in a clone of multispin"
