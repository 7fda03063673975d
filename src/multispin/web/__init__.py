"""The pages that an edge serves: one drafts in a browser, one is the dashboard."""

from multispin.web.board import Board
from multispin.web.dashboard import Dashboard
from multispin.web.device_page import DevicePage, PageDrafter, PageTokens

__all__ = ["Board", "Dashboard", "DevicePage", "PageDrafter", "PageTokens"]
