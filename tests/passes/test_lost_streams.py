"""Streams of devices that were lost: what they hold meanwhile, and what they hear when they are back."""

from tests.passes.test_streams import Site, expected

from multispin.protocol import Idle, Window


def test_a_text_that_lost_its_slot_does_not_stream_before_it_has_one_again():
    site = Site(slots=2, slot_grace_s=0.05)
    first, _ = site.join("first", 200), site.join("second", 200)
    site.run(0.3)
    site.lose(first)
    for name in ("third", "fourth"):
        site.join(name, 200)
    site.queue.at(site.queue.now_s + 0.1, lambda: (site.passes.expire(site.queue.now_s), site.wake()))
    site.run(0.8)
    assert isinstance(site.passes.session(first).stage, Idle)
    site.connect(site.phones[first])
    site.run()
    assert site.phones[first].session.generated == expected(200)


def test_a_device_that_cannot_draft_is_told_no_window_when_it_comes_back():
    site = Site()
    number = site.join("d", 60, drafts=False)
    site.run(0.5)
    site.lose(number)
    site.run(0.6)
    site.connect(site.phones[number])
    site.run()
    assert site.phones[number].session.generated == expected(60)
    assert not any(isinstance(message, Window) for message in site.phones[number].heard)
