import pytest
from tests.web.site import Target
from tests.web.tab import Browsers


@pytest.fixture(scope="session")
def browsers():
    found = Browsers()
    yield found
    found.close()


@pytest.fixture(scope="session")
def target(browsers):
    return Target(browsers)
