"""A drafter as a GGUF file: what an edge hands to pages that draft."""

from pathlib import Path

from multispin.errors import InputError
from multispin.models.drafter_name import DrafterKind, DrafterName
from multispin.models.gguf_drafter import file_for_llama_cpp
from multispin.models.gguf_header import check_end, check_header
from multispin.models.references import locate


def gguf_copy(drafter: str) -> Path:
    """The GGUF file of a drafter: the file itself, or the Q8_0 copy of a distilled one that the cache keeps.

    Args:
        drafter: a .gguf file, or a distilled drafter (small, medium, large or a folder).

    Raises:
        InputError: there is no such drafter, it has no weights that can be written as a GGUF file, or the file is none
            or goes on behind its tensors.

    """
    name = DrafterName.parse(drafter)
    if name.kind is DrafterKind.MODEL and isinstance(found := locate(name.reference), Path) and found.is_file():
        check_header(found)
        check_end(found)
        return found
    if name.kind is not DrafterKind.DISTILLED:
        raise InputError(f"{drafter!r} is neither a .gguf file nor a distilled drafter: see multispin convert --help")
    return file_for_llama_cpp(name, None)
