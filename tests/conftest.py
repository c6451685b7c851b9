"""For all tests: pictures without a screen, and a server to fetch from.

And one thread, so that the tests neither fight over the cores nor depend on their number."""
import matplotlib, pytest, torch
from server import Server

matplotlib.use('Agg')
torch.set_num_threads(1)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    s = Server()
    yield s
    s.close()


def pytest_collection_modifyitems(items):
    "The files that take longest first, so that of two workers none has the pipeline alone at the end."
    long = 'test_pipeline.py', 'test_paper.py'
    items.sort(key=lambda item: item.path.name not in long) # stable: the others keep their order
