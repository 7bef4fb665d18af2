"""Where data sets come from: scikit-learn's digits, published archives, folders of images, arrays, Hugging Face.

Each reader returns a :class:`~purevdm.training.data.Dataset`. What is missing or damaged is refused with a
:class:`DataError` that names the file and where to get it; nothing is downloaded but by Hugging Face's own library.
"""

from purevdm.training.sources._common import DataError
from purevdm.training.sources.own import array, huggingface, image_folder
from purevdm.training.sources.published import cifar10, digits, imagenet

__all__ = ["DataError", "array", "cifar10", "digits", "huggingface", "image_folder", "imagenet"]
