"""The options of `serve` for pages in a browser, and the pages that they add."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from multispin.cli.options import together
from multispin.errors import InputError, require

if TYPE_CHECKING:
    from aiohttp import web

    from multispin.edge import EdgeServer
    from multispin.models import Tokenizer
    from multispin.web.device_page import Guard


web_options = together(
    click.option(
        "--allowed-origin",
        "allowed_origins",
        metavar="ORIGIN",
        multiple=True,
        help="Other server whose web pages may use this edge, such as https://chat.example; repeatable.",
    ),
    click.option(
        "--allowed-host",
        "allowed_hosts",
        metavar="NAME",
        multiple=True,
        help="Host name by which browsers may reach this edge, beside its addresses and localhost; repeatable.",
    ),
    click.option(
        "--dashboard/--no-dashboard",
        default=True,
        show_default=True,
        help="Serve http://HOST:PORT/dashboard, which shows who drafts for whom.",
    ),
    click.option(
        "--web-draft",
        metavar="DRAFTER",
        show_default="small for the embedded target",
        help="Drafter of the page: small, medium, large, a folder that distill wrote, or a .gguf file.",
    ),
    click.option(
        "--web", is_flag=True, help="Serve a page that drafts, at http://HOST:PORT/device: open it on a phone."
    ),
)
"""--web, --web-draft, --dashboard, --allowed-host and --allowed-origin, for a command."""


def check_web(options: Mapping[str, Any]) -> None:
    """InputError, before any model is loaded, if the page cannot be served."""
    if options["web_draft"] is not None and not options["web"]:
        raise InputError("--web-draft is for the page of --web: add --web")
    if options["web"]:
        from multispin.web.files import wllama_folder

        require("segno")
        wllama_folder()
        _page_drafter(options)


class Pages:
    """The pages of an edge.

    Args:
        options: the options of `serve`.
        server: server of the edge.
        app: web application of the edge.
        tokenizer: tokenizer of the target.
        max_length: most tokens of a text, prompt included.
        guard: wraps handlers that only callers with access to this edge may use.

    """

    def __init__(
        self,
        options: Mapping[str, Any],
        server: "EdgeServer",
        app: "web.Application",
        tokenizer: "Tokenizer",
        max_length: int,
        guard: "Guard",
    ) -> None:
        from multispin.web import Board, Dashboard, DevicePage, PageDrafter
        from multispin.web.join import join_picture

        self._options = options
        self._dashboard: Dashboard | None = None
        if options["web"]:
            from multispin.models.token_table import token_table

            name, path = _page_drafter(options)
            page = DevicePage(options["target"], tokenizer, token_table(tokenizer), max_length, PageDrafter(name, path))
            page.add_routes(app, guard)
        if options["dashboard"]:
            board = Board(options["target"])
            server.audience.add(board.tell)
            self._dashboard = Dashboard(board, join_picture, max_share=options["max_share"])
            self._dashboard.add_routes(app, guard)

    def opened(self, port: int) -> str:
        """What to print about the pages once the edge listens, with a QR code if a phone can reach it."""
        from multispin.edge import place_of
        from multispin.web.join import join_address, join_code, own_addresses

        host, lines = self._options["host"], list[str]()
        scheme = "https" if self._options.get("tls_certificate") else "http"
        here = own_addresses(host)
        place = place_of(here[0] if here else host, port)
        if self._dashboard is not None:
            lines.append(f"who drafts for whom: {scheme}://{place}/dashboard")
        if not self._options["web"]:
            return "\n".join(lines)
        lines.append(f"a page that drafts: {join_address(place, scheme=scheme)}")
        if not here:
            return "\n".join(lines) + " (on this machine only: --host 0.0.0.0 lets phones in)"
        if self._dashboard is not None:
            self._dashboard.invite(place, scheme)
        return "\n".join([*lines, join_code(join_address(place, self._options["credential"] or "", scheme))])


def _page_drafter(options: Mapping[str, Any]) -> tuple[str, Path]:
    """Name and GGUF file of what the page drafts with."""
    from multispin.models.gguf_copy import gguf_copy
    from multispin.models.references import EMBEDDED

    spec = options["web_draft"] or ("small" if options["target"] == EMBEDDED else None)
    if spec is None:
        raise InputError(f"--web has no drafter for the target {options['target']}: give a .gguf file with --web-draft")
    path = gguf_copy(spec)
    return Path(spec).stem, path
