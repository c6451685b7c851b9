"For all tests: pictures without a screen, and one thread, so that the tests neither fight over the cores nor depend on their number."
import matplotlib, torch

matplotlib.use('Agg')
torch.set_num_threads(1)
