import pytest

from multispin.device import session_url
from multispin.edge import place_of


@pytest.mark.parametrize(
    ("host", "place"),
    [
        ("127.0.0.1", "127.0.0.1:8765"),
        ("edge.example", "edge.example:8765"),
        ("::1", "[::1]:8765"),
        ("::", "[::]:8765"),
    ],
)
def test_a_place_is_written_so_that_a_device_can_read_it(host, place):
    assert place_of(host, 8765) == place
    assert session_url(f"ws://{place}") == f"ws://{place}/v1/session"
