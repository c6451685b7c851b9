"For all tests: pictures without a screen, and one thread, so that the tests neither fight over the cores nor depend on their number. And a server to fetch from."
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
