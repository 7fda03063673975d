"""The demo: real processes that talk over real sockets, and a live view of them."""
