"""A short form of `make soak`."""

import asyncio
from pathlib import Path

import pytest
from tests.chaos import soak

if not Path("/proc/self/statm").exists():
    pytest.skip("memory and descriptors are read from /proc", allow_module_level=True)


@pytest.mark.processes
@pytest.mark.parametrize("mode", ["mixture", "auto"])
def test_nothing_grows_while_devices_and_clients_come_and_go(mode):
    with soak.edge_process(mode, 2, grace_s=0.3) as (port, _):
        done, looks = asyncio.run(soak.soak(4.0, 4, port, stretches=4, quiet_s=1.8))
    assert min(done.device[0], done.http[0]) > 0
    soak.check(looks)


def test_growth_of_anything_is_seen():
    flat = soak.Look(2**30, 10, 4)
    soak.check([(flat, flat)] * soak.STRETCHES)
    for grown in (flat._replace(memory_bytes=2**30 + 2**26), flat._replace(descriptors=13), flat._replace(tasks=7)):
        for last, who in (((grown, flat), "edge"), ((flat, grown), "crowd")):
            with pytest.raises(AssertionError, match=f"of the {who} grew"):
                soak.check([(flat, flat)] * (soak.STRETCHES - 1) + [last])
