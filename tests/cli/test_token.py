"""`multispin token`."""

import json
from datetime import UTC, datetime

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


@pytest.mark.parametrize("page", ["10.0.0.5:8765", "[::1]:8765", "edge.lan:1", "https://edge.example.org/llm"])
def test_a_code_may_be_of_any_address(token, page):
    assert len(token("add", "phone", "--page", page).out.splitlines()) > 10


@pytest.mark.parametrize(
    "page",
    ["", "nan", "10.0.0.5", "a:b", "h:99999", "a b:1", "ftp://h:1", "http://me@h:1", "h:1?x", "\udcff:1", "x" * 9999],
)
def test_a_page_that_is_no_address_is_refused_before_a_token_is_made(token, page):
    token("add", "anna")
    told = token("add", "phone", "--page", page, code=2)
    assert "is neither HOST:PORT nor an address" in told.err
    assert told.err.count("\n") == 1
    assert len(json.loads(token("list", "--json").out)["tokens"]) == 1


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


def test_a_file_in_no_folder_is_refused_as_such(tmp_path, capsys):
    assert run(["token", "add", "anna", "--tokens", str(tmp_path / "nowhere" / "tokens.json")]) == 2
    assert f"there is no folder {tmp_path / 'nowhere'}" in capsys.readouterr().err


def test_a_token_can_end(token):
    (listed,) = _listed(token, "2999-12-31")
    assert listed["expires"] == "2999-12-31T23:59:59+00:00"
    assert "2999-12-31T23:59:59+00:00" in token("list").out
    (_, listed) = _listed(token, "2999-12-31T12:00+01:00")
    assert listed["expires"] == "2999-12-31T11:00:00+00:00"
    (*_, listed) = _listed(token, "12h")
    hours = (datetime.fromisoformat(listed["expires"]) - datetime.now(UTC)).total_seconds() / 3600
    assert hours == pytest.approx(12, abs=0.1)
    assert json.loads(token("add", "for ever", "--json").out)["expires"] is None


def _listed(token, when):
    token("add", "visitor", "--expires", when)
    return json.loads(token("list", "--json").out)["tokens"]


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ("soon", "no date, no time and no number of days or hours"),
        ("2020-01-31", "not in the future"),
        ("2999-02-30", "no date"),
        ("2999-01-31T12:00", "no time zone"),
        ("0d", "not in the future"),
        ("-3d", "no date"),
        ("9999-12-31T23:59:59-23:59", "beyond the year 9999"),
    ],
)
def test_a_time_that_is_none_is_refused(token, when, said):
    told = token("add", "visitor", "--expires", when, code=2)
    assert said in told.err
    assert told.err.count("\n") == 1
    assert "no file" not in token("list", code=2).err  # nothing was made
