import pytest

from multispin.device import session_url
from multispin.device.address import without_secrets
from multispin.errors import InputError


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("ws://127.0.0.1:8765", "ws://127.0.0.1:8765/v1/session"),
        ("ws://edge.example:8765/", "ws://edge.example:8765/v1/session"),
        (" wss://edge.example ", "wss://edge.example/v1/session"),
        ("ws://[::1]:8765", "ws://[::1]:8765/v1/session"),
        ("ws://[fe80::1%25eth0]:8765", "ws://[fe80::1%25eth0]:8765/v1/session"),
        ("wss://edge.example/rooms/7", "wss://edge.example/rooms/7/v1/session"),
        ("ws://edge.example/v1/session", "ws://edge.example/v1/session"),
        ("ws://edge.example:8765?token=a%26b&x=1", "ws://edge.example:8765/v1/session?token=a%26b&x=1"),
    ],
)
def test_an_address_leads_to_the_session_endpoint(address, url):
    assert session_url(address) == url


@pytest.mark.parametrize(
    "address",
    [
        *("", "edge", "127.0.0.1:8765", "http://edge", "ws://", "ws://:8765", "ws://edge:99999", "ws://[::1"),
        *("ws://e#x", "ws://a..b", f"ws://{'a' * 64}.example", "ws://.:80"),
        *("ws://a b:1", "ws://a\u00a0b"),
    ],
)
def test_what_is_no_address_is_refused_in_one_sentence(address):
    with pytest.raises(InputError, match=r"is not an address|cannot have: leave it out"):
        session_url(address)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("wss://me:secret@edge.example:9/rooms/7?key=secret", "wss://edge.example:9/rooms/7"),
        ("ws://secret@[::1]:8765/v1/session", "ws://[::1]:8765/v1/session"),
        ("ws://127.0.0.1:8765/v1/session", "ws://127.0.0.1:8765/v1/session"),
    ],
)
def test_what_may_be_a_credential_in_an_address_is_not_shown(address, shown):
    assert without_secrets(address) == shown
