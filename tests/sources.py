"""Sources whose ideal denoiser is known."""

from purevdm.testing.sources import *  # noqa: F403
from purevdm.testing.sources import Mixture, categorical, entropy, gaussian, gaussian_pmf, mean_and_error  # noqa: F401
