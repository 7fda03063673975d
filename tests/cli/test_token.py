"""`multispin token`."""

import json

import pytest

from multispin.cli.main import run


@pytest.fixture
def token(tmp_path, capsys):
    def call(*arguments, code=0):
        assert run(["token", arguments[0], "--tokens", str(tmp_path / "tokens.json"), *arguments[1:]]) == code
        return capsys.readouterr()

    return call


def test_a_token_is_printed_once_and_can_be_revoked(token):
    secret = token("add", "anna").out
    assert secret.count("\n") == 1
    limits = ("--max-sessions", "2", "--tokens-per-minute", "600", "--max-prompt-tokens", "99")
    other = json.loads(token("add", "web\x1b[31m shop", *limits, "--json").out)["token"]
    listed = token("list").out
    assert "anna" in listed
    assert "web\\x1b[31m shop" in listed
    assert secret.strip() not in listed
    assert other not in listed
    rows = json.loads(token("list", "--json").out)["tokens"]
    assert [row["max_sessions"] for row in rows] == [0, 2]
    assert all("sha256" not in row for row in rows)
    token("revoke", rows[0]["id"])
    assert len(json.loads(token("list", "--json").out)["tokens"]) == 1


def test_a_code_joins_a_phone_with_a_new_token(token):
    *code, secret = token("add", "phone", "--page", "10.0.0.5:8765").out.splitlines()
    assert len(code) > 10
    assert " " not in secret


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("list",), "multispin token add NAME"),
        (("revoke", "anna"), "no token has the id or name"),
        (("add", ""), "1 to 80"),
        (("add", "x" * 81), "1 to 80"),
        (("add", "anna", "--max-sessions", "-1"), "not in the range"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(token, arguments, said):
    told = token(*arguments, code=2)
    assert said in told.err
    assert told.err.count("\n") == 1
