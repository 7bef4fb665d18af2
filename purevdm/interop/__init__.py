"""Parameters to and from other programs: safetensors files, and trees and checkpoints of the official Flax code."""

from purevdm.interop.files import load_params, save_params
from purevdm.interop.flax import Checkpoint, from_flax, load_flax, to_flax

__all__ = ["Checkpoint", "from_flax", "load_flax", "load_params", "save_params", "to_flax"]
