import os

import pytest
from tests.web.chromium import Chromium
from tests.web.firefox import Firefox
from tests.web.site import Target
from tests.web.tab import Browsers


def pytest_generate_tests(metafunc):
    """`kind` is each kind of browser in turn: both for marked tests, and for all tests where somebody asks for it."""
    if "kind" in metafunc.fixturenames:
        both = metafunc.definition.get_closest_marker("both_browsers") or os.environ.get("MULTISPIN_BOTH_BROWSERS")
        metafunc.parametrize("kind", [Chromium, Firefox] if both else [Chromium], indirect=True)


@pytest.fixture
def kind(request):
    """A kind of browser that is installed here."""
    request.param.path()
    return request.param


@pytest.fixture(scope="session")
def browsers():
    found = Browsers()
    yield found
    found.close()


@pytest.fixture(scope="session")
def target(browsers):
    return Target.embedded(browsers)


@pytest.fixture(scope="session")
def tiny(browsers, tiny_copy):
    return Target.tiny(browsers, tiny_copy)
