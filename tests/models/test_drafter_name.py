"""One grammar of drafters, for every command."""

import pytest

from multispin.errors import InputError
from multispin.models import DrafterKind, DrafterName, check_drafter_name, load_draft_source
from multispin.speculation import NoDrafter, PromptLookupDrafter, SamplingParams


@pytest.mark.parametrize(
    ("text", "kind", "reference", "bits"),
    [
        ("lookup", DrafterKind.LOOKUP, "", 0),
        ("none", DrafterKind.NONE, "", 0),
        ("small", DrafterKind.DISTILLED, "", 0),
        ("q8", DrafterKind.ROUNDED, "", 8),
        ("q3:owner/name", DrafterKind.ROUNDED, "owner/name", 3),
        ("q5:/a/folder:with a colon", DrafterKind.ROUNDED, "/a/folder:with a colon", 5),
        ("owner/name", DrafterKind.MODEL, "owner/name", 0),
        ("quick/q8", DrafterKind.MODEL, "quick/q8", 0),
    ],
)
def test_a_name_says_what_stands_behind_it(text, kind, reference, bits):
    name = DrafterName.parse(text)
    assert (name.text, name.kind, name.reference, name.bits) == (text, kind, reference, bits)


def test_a_folder_with_a_card_is_a_distilled_drafter_and_one_without_is_a_model(tmp_path):
    assert DrafterName.parse(str(tmp_path)).kind is DrafterKind.MODEL
    (tmp_path / "drafter.json").write_text("{}")
    name = DrafterName.parse(str(tmp_path))
    assert (name.kind, name.folder) == (DrafterKind.DISTILLED, tmp_path)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "empty"),
        ("q2", "2 bits"),
        ("q9:owner/name", "9 bits"),
        ("q8:", "no model after the colon"),
        ("q8:nothing", "there is no model 'nothing'"),
        ("tiny", "there is no model 'tiny'"),
        ("lookup:owner/name", "there is no model"),
        ("/no/such/folder", "there is no model"),
        ("caf\udce9", "is not UTF-8 text"),
        ("q8:caf\udce9.gguf", "is not UTF-8 text"),
        ("/no/such.gguf", "there is no GGUF file"),
    ],
)
def test_what_cannot_be_a_drafter_is_refused_in_one_sentence(text, part):
    with pytest.raises(InputError, match=part):
        check_drafter_name(text)


def test_one_source_makes_drafters_for_many_texts_and_drafts_the_targets_ids(tiny_folder):
    assert isinstance(load_draft_source("lookup", tiny_folder).drafter(32), PromptLookupDrafter)
    assert isinstance(load_draft_source("none", tiny_folder).drafter(32), NoDrafter)
    source = load_draft_source("q8", tiny_folder)
    first, second = source.drafter(32), source.drafter(32)
    text = source.tokenizer.encode_chat("Hello")
    drafted = first.draft(text, 4, SamplingParams())
    assert second.draft([*text, 5], 2, SamplingParams()) is not None
    assert first.draft(text, 4, SamplingParams()) == drafted  # the other's text is in a cache of its own
    with pytest.raises(InputError, match="runs no model in torch"):
        load_draft_source("none", tiny_folder).edge_drafter(2, 32)
