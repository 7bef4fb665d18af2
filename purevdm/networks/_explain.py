"""Turns torch's errors about what a network does into errors that name the network and say what to do."""

import re
import traceback

from purevdm.networks._network import Network

_REMATERIALISE = (
    "torch.func cannot differentiate through checkpoints. Take gradients by purevdm.training.gradients(model, remat=True) "
    "or by loss.backward(), which can, or compile, which leaves them out under torch.func; for per-example gradients, "
    "likelihoods and differentiable samples, switch them off"
)

# A pattern of torch's message, or of the function that raised it (" in name"); what happened in plain words; what to do.
_KNOWN = (
    ("saved tensor hooks", "checkpoints its activations", _REMATERIALISE),
    (
        "setup_context",
        "runs an autograd.Function without setup_context, as reentrant checkpoints do",
        f"{_REMATERIALISE}. Give a function of your own a setup_context",
    ),
    (
        "Expected more than 1 (value per channel.* in group_norm|spatial element)",
        "normalises over a single value",
        "A group norm needs more than one value in each group of an example, and an instance norm in each channel",
    ),
    (
        "Expected more than 1 value per channel",
        "normalises over the batch, which holds one example",
        "A batch norm needs a batch of at least 2 in training; in evaluation (train=False) one will do",
    ),
    (
        "Batch norm got a batched tensor",
        "normalises over the batch, and is given one example at a time",
        "Per-example gradients of a batch norm exist only in evaluation: leave the key out (train=False), or use a norm "
        "that stays within an example, such as torch.nn.GroupNorm",
    ),
    (
        "mutate a captured Tensor|inplace arithmetic|in-place operation|is not possible because there exists a Tensor",
        "writes in place to a tensor that it did not make in this call",
        "Keep what changes in registered buffers, which VDM.update hands back, or write out of place",
    ),
    (
        "could not generate a fallback|[Bb]atching rule not implemented|do not support batching operators",
        "calls an operation that torch.func.vmap does not know",
        "Take gradients of whole batches, or use another operation",
    ),
    (
        "must only return Tensors",
        "returns something else than a tensor",
        "Return only the tensor, such as the field of an object that holds it",
    ),
    (
        "forward AD|forward-mode",
        "calls an operation without a forward-mode derivative",
        "Use reverse mode, or another operation (a GRU for an LSTM), or write it out",
    ),
    (
        "randomness error mode|randomness='error'",
        "draws from torch's global generator under vmap",
        "Draw by the key that apply is given: purevdm.random, or the dropout of networks.from_module",
    ),
    (
        r"calling \.item\(\)|data-dependent control flow",
        "reads a tensor's value as a Python number",
        "Compute with the tensor, by torch.where for a choice",
    ),
)


def explained(network: Network, error: BaseException) -> RuntimeError | None:
    """Makes the error to raise instead of torch's, or None for an unknown one, which passes as it is."""
    trace = traceback.extract_tb(error.__traceback__)
    text = " in ".join([str(error), *(frame.name for frame in reversed(trace) if not frame.name.startswith("_"))])
    for pattern, happened, remedy in _KNOWN:
        if re.search(pattern, text):
            return RuntimeError(f"network: {network.name} {happened}. {remedy}.")
    return None
