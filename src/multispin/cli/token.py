"""`multispin token`: makes, lists and revokes an edge's tokens."""

import json
import re
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click
import msgspec

from multispin.checks import shown
from multispin.cli.options import FILE, CommandGroup, Decorator
from multispin.errors import InputError, require
from multispin.outside import one_line, user_path, whole_characters

if TYPE_CHECKING:
    from multispin.edge import TokenFile

MAX_LIMIT = 10**9
_MOST_PAGE = 300
"""Most characters of --page: phones cannot read the QR code of a longer address."""

tokens_option = click.option(
    "--tokens",
    "file",
    type=FILE,
    default="tokens.json",
    show_default=True,
    metavar="FILE",
    help="File of tokens.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def _limit(name: str, text: str) -> Decorator:
    return click.option(name, type=click.IntRange(0, MAX_LIMIT), default=0, show_default=True, help=text)


@click.group("token", cls=CommandGroup)
def command() -> None:
    """Make, list and revoke the tokens that `multispin serve --tokens FILE` asks for.

    The file has only hashes of the tokens. A running edge reads it again within a second or two after a change.

    \b
    Examples:
      multispin token add anna-laptop
      multispin token add web-shop --max-sessions 8 --tokens-per-minute 6000 --max-prompt-tokens 2000
      multispin token list
      multispin token revoke anna-laptop
    """


@command.command("add")
@click.argument("name")
@tokens_option
@_limit("--max-sessions", "Most sessions at once; 0: no limit.")
@_limit("--tokens-per-minute", "Most prompt and generated tokens per minute; 0: no limit.")
@_limit("--max-prompt-tokens", "Most tokens of a prompt; 0: no limit.")
@click.option("--expires", metavar="WHEN", show_default="never",
              help="When it expires: 2027-01-31 (after that day), 2027-01-31T12:00Z, or after 30d or 12h.")  # fmt: skip
@click.option("--page", metavar="ADDRESS", help="Print a QR code with which a phone joins, with this token, the edge "
              "at HOST:PORT, or https://HOST:PORT if it uses TLS. The edge needs --web.")  # fmt: skip
@json_option
def add(
    name: str,
    file: str,
    max_sessions: int,
    tokens_per_minute: int,
    max_prompt_tokens: int,
    expires: str | None,
    page: str | None,
    as_json: bool,
) -> None:
    """Make a token for NAME and print it once. It is stored nowhere.

    \b
    Examples:
      multispin token add anna-laptop > anna.token
      multispin token add visitor --expires 12h
      multispin token add anna-phone --page 192.168.1.20:8765
      multispin token add anna-phone --page https://edge.example.org
    """
    if page is not None:
        require("segno")
        _check_page(page)
    if not 1 <= len(whole_characters(name, "NAME")) <= 80:
        raise InputError(f"NAME has {len(name)} characters; it must have 1 to 80")
    until = None if expires is None else _time(expires, datetime.now(UTC))
    secret = _file(file).add(name, max_sessions, tokens_per_minute, max_prompt_tokens, until)
    if as_json:
        print(json.dumps({"name": name, "token": secret, "tokens": file, "expires": _as_json(until)}))
        return
    if page is not None:
        from multispin.web.join import join_address, join_code

        click.echo(join_code(join_address(page, secret)))
    print(secret)
    click.echo(
        f"The token of {one_line(name)} is shown above, and stored nowhere. Give it to a device in a file "
        "(--credential-file) or in MULTISPIN_CREDENTIAL, or to an OpenAI client as its API key.",
        err=True,
    )


@command.command("list", short_help="List the tokens by id and name, with their limits.")
@tokens_option
@json_option
def show(file: str, as_json: bool) -> None:
    """List the tokens' ids, names and limits, but not the tokens themselves.

    \b
    Example:
      multispin token list --tokens tokens.json
    """
    tokens = _file(file).read()
    if as_json:
        rows = [msgspec.structs.asdict(each) for each in tokens]
        for row in rows:
            del row["sha256"]
            row["expires"] = _as_json(row["expires"])
        print(json.dumps({"tokens": rows}))
        return
    click.echo(f"{'id':8}  {'sessions':>8}  {'tokens/min':>10}  {'prompt':>8}  {'made':25}  {'expires':25}  name")
    for each in tokens:
        limits = [str(limit or "-") for limit in (each.max_sessions, each.tokens_per_minute, each.max_prompt_tokens)]
        ends = "-" if each.expires is None else each.expires.astimezone(UTC).isoformat(timespec="seconds")
        click.echo(
            f"{each.id:8}  {limits[0]:>8}  {limits[1]:>10}  {limits[2]:>8}  {one_line(each.created):25}  {ends:25}  "
            f"{one_line(each.name)}{' (expired)' if each.has_expired() else ''}"
        )


@command.command("revoke")
@click.argument("id_or_name")
@tokens_option
@json_option
def revoke(id_or_name: str, file: str, as_json: bool) -> None:
    """Revoke the token with this id or name. A running edge ends its sessions within a second or two.

    \b
    Example:
      multispin token revoke anna-laptop
    """
    token = _file(file).revoke(id_or_name)
    if as_json:
        print(json.dumps({"id": token.id, "name": token.name}))
    else:
        click.echo(f"revoked {token.id} ({one_line(token.name)})")


def _check_page(page: str) -> None:
    """InputError if --page is not an address at which a phone can reach an edge."""
    try:
        place = urlsplit(page if "://" in page else f"http://{page}")
        found = bool(re.fullmatch(r"[\w.:%-]+", place.hostname or "")) and (place.port or "://" in page)
    except ValueError:  # wrong brackets or a wrong port
        found = False
    if not found or len(page) > _MOST_PAGE or place.scheme not in ("http", "https") or re.search(r"[\s?#@\\]", page):
        raise InputError(f"--page {shown(page)} is neither HOST:PORT nor an address such as https://edge.example.org")


def _time(text: str, now: datetime) -> datetime:
    """The time that --expires names; InputError if it is malformed or past."""
    found = None
    if (duration := re.fullmatch(r"(\d{1,5})([dh])", text)) is not None:
        number = int(duration[1])
        found = now + (timedelta(days=number) if duration[2] == "d" else timedelta(hours=number))
    else:
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            raise InputError(
                f"--expires {text!r} is no date, no time and no number of days or hours: write, for example, 30d"
            ) from None
        if re.fullmatch(r"\d{4}-?\d{2}-?\d{2}", text):
            found = datetime.combine(found.date(), time(23, 59, 59), UTC)
        if found.tzinfo is None:
            raise InputError(f"--expires {text!r} has no time zone: add Z for UTC, or +01:00")
    try:
        if found <= now:
            raise InputError(f"--expires {text!r} is not in the future")
        return found.astimezone(UTC).replace(microsecond=0)
    except OverflowError:  # the year 9999 in a time zone west of here
        raise InputError(f"--expires {text!r} is beyond the year 9999") from None


def _as_json(expires: datetime | None) -> str | None:
    return None if expires is None else expires.isoformat()


def _file(name: str) -> "TokenFile":
    from multispin.edge import TokenFile

    return TokenFile(user_path(name))
