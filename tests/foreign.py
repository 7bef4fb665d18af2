"""Closed forms in place of other people's networks."""

import torch


class Closed(torch.nn.Module):
    """``form(x, time)``, with the time shaped to broadcast against x."""

    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, x, time):
        return self.form(x, time.reshape(-1, *[1] * (x.ndim - 1)))
