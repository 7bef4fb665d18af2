"""Sources whose ideal denoiser is known."""

from purevdm.testing.sources import *  # noqa: F403
