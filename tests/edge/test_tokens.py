"""The file of tokens."""

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from multispin.edge.tokens import PREFIX, TokenFile, token_digest
from multispin.errors import InputError


@pytest.fixture
def file(tmp_path):
    return TokenFile(tmp_path / "tokens.json")


def test_a_token_is_in_no_file_and_its_hash_is(file):
    secret = file.add("anna", max_sessions=2)
    assert secret.startswith(PREFIX)
    assert len(secret) >= len(PREFIX) + 43  # 256 bits
    text = file.path.read_text()
    assert secret.removeprefix(PREFIX) not in text
    [token] = file.read()
    assert (token.name, token.max_sessions, token.sha256) == ("anna", 2, token_digest(secret))
    assert file.add("anna") != secret


def test_only_its_owner_may_read_the_file(file):
    file.add("anna")
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    file.path.chmod(0o640)
    with pytest.raises(InputError, match="chmod 600"):
        file.read()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_that_the_administrator_changes_stays_its_owners(file):
    file.add("anna")
    os.chown(file.path, 65534, 65534)
    file.add("bert")
    file.revoke("anna")
    found = file.path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (65534, 65534, 0o600)


def test_a_token_is_revoked_by_id_or_by_a_name_that_only_it_has(file):
    for name in ("anna", "ben", "ben"):
        file.add(name)
    ids = [token.id for token in file.read()]
    assert file.revoke("anna").id == ids[0]
    with pytest.raises(InputError, match="2 tokens have the name 'ben'"):
        file.revoke("ben")
    assert file.revoke(ids[2]).name == "ben"
    with pytest.raises(InputError, match="no token has the id or name 'anna'"):
        file.revoke("anna")
    assert [token.id for token in file.read()] == [ids[1]]
    assert list(file.path.parent.iterdir()) == [file.path]


def test_a_change_through_a_link_is_seen_by_who_reads_the_file_itself(file, tmp_path):
    """Else a token that was revoked through the link would go on working at an edge that reads the file."""
    file.add("anna")
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link.json"
    link.symlink_to(file.path)
    TokenFile(link).revoke("anna")
    assert file.read() == []
    assert link.is_symlink()
    assert list(link.parent.iterdir()) == [link]


def test_commands_at_the_same_time_lose_nothing(file):
    with ThreadPoolExecutor(8) as pool:
        secrets = set(pool.map(lambda number: TokenFile(file.path).add(f"device-{number}"), range(32)))
    assert {token.sha256 for token in file.read()} == {token_digest(secret) for secret in secrets}


def test_a_change_is_seen_once(file):
    file.add("anna")
    assert [token.name for token in file.read_if_changed()] == ["anna"]
    assert file.read_if_changed() is None
    TokenFile(file.path).add("ben")
    assert [token.name for token in file.read_if_changed()] == ["anna", "ben"]
    assert file.read_if_changed() is None


GOOD = {"id": "a", "name": "x", "sha256": "0" * 64, "created": ""}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no file of tokens"),
        ("[" * 100_000, "no file of tokens"),
        ("{}", "missing required field `tokens`"),
        (json.dumps({"tokens": [GOOD | {"sha256": "secret"}]}), "sha256"),
        (
            json.dumps({"tokens": [GOOD]})[:-3] + ', "sha256": "' + "1" * 64 + '"}]}',
            "no file of tokens: the key 'sha256' comes",
        ),
        ('{"tokens": [], ' + json.dumps({"tokens": [GOOD]})[1:], "no file of tokens: the key 'tokens' comes twice"),
        (json.dumps({"tokens": [GOOD | {"max_session": 3}]}), "max_session"),
        (json.dumps({"tokens": [GOOD | {"max_sessions": -1}]}), "max_sessions"),
        (json.dumps({"tokens": [GOOD, GOOD | {"id": "b"}]}), "same sha256 twice"),
        (json.dumps({"tokens": [GOOD, GOOD | {"sha256": "1" * 64}]}), "same id twice"),
        (json.dumps({"tokens": [GOOD | {"expires": "9999-12-31T23:59:59-23:59"}]}), "beyond the year 9999"),
    ],
)
def test_what_is_no_file_of_tokens_is_refused(file, text, said):
    file.path.write_text(text)
    file.path.chmod(0o600)
    with pytest.raises(InputError, match=said):
        file.read()


def test_what_is_no_ordinary_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="multispin token add"):
        TokenFile(tmp_path / "nowhere.json").read()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for path in (pipe, tmp_path, "/dev/zero"):
        with pytest.raises(InputError):
            TokenFile(type(tmp_path)(path)).read()
