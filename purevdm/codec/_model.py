"""What a file asks of a model, and the digest by which it knows one."""

import re

from purevdm import _checks, parts
from purevdm._vdm import VDM
from purevdm.codec import _chain, _codes
from purevdm.codec._chain import Callback
from purevdm.model import direct
from purevdm.types import Params

LANES = 32
STEPS = 250


def check(model: VDM, compile: bool, callback: Callback | None) -> None:
    """Checks what writing and reading both take."""
    direct(_checks.instance("model", model, VDM, "a purevdm VDM"), "files", coded=True)
    _codes.codable(model.code)
    if model.decoder.log_probs is None or model.decoder.vocab_size is None:
        raise ValueError(
            f"model.decoder: expected finitely many values (decoders.discrete), got {model.decoder.support}, which would "
            "need infinitely many bits"
        )
    _checks.boolean("compile", compile)
    if callback is not None:
        _checks.function("callback", callback)


def digest(model: VDM, params: Params) -> bytes:
    """Computes 16 bytes by which another model differs from this: in its parameters and in what a network's output means."""
    network, reverse, decoder = model.network, model.reverse, model.decoder
    text = f"{network.predicts} {network.self_condition} {network.residual}"
    if reverse != parts.posterior() or decoder.takes_estimate:  # the first files had no others
        text += re.sub(" at 0x[0-9a-f]+", "", f" {network.outputs} {reverse!r} {decoder!r}")
    if model.code is not None:
        text += re.sub(" at 0x[0-9a-f]+", "", f" {model.code!r}")
    return _chain.tree_digest(params, 16, text)
