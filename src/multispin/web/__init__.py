"""Pages that an edge serves: one that drafts in a browser, and one that shows what happens."""

from multispin.web.board import Board
from multispin.web.dashboard import Dashboard
from multispin.web.device_page import DevicePage, PageDrafter, PageTokens

__all__ = ["Board", "Dashboard", "DevicePage", "PageDrafter", "PageTokens"]
