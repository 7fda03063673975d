"""A drafter as a GGUF file, made once and kept: what an edge hands to pages that draft."""

from pathlib import Path

from multispin.errors import InputError
from multispin.models.drafter_card import WEIGHTS_FILE
from multispin.models.drafter_name import DrafterKind, DrafterName
from multispin.models.gguf_drafter import GgufOrder, write_gguf
from multispin.models.references import cache_folder, locate, sha256_of


def gguf_copy(drafter: str) -> Path:
    """The GGUF file of a drafter: the file itself, or a Q8_0 copy of a distilled one, among the converted models.

    Args:
        drafter: a .gguf file, or a distilled drafter (small, medium, large or a folder).

    Raises:
        InputError: there is no such drafter, or it has no weights that can be written as a GGUF file.

    """
    name = DrafterName.parse(drafter)
    if name.kind is DrafterKind.MODEL and isinstance(found := locate(name.reference), Path) and found.is_file():
        return found
    if name.kind is not DrafterKind.DISTILLED or name.folder is None:
        raise InputError(f"{drafter!r} is no .gguf file and no distilled drafter: see multispin convert --help")
    sha256 = sha256_of(name.folder / WEIGHTS_FILE)
    path = cache_folder() / "drafters" / f"{name.folder.name}-{sha256[:16]}.gguf"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_gguf(GgufOrder(drafter, path))
    return path
