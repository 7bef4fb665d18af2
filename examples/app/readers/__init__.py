"""Where data sets come from: scikit-learn's digits, published archives, arrays, folders of images, Hugging Face.

Each reader returns a :class:`~purevdm.training.data.Dataset`. What is missing, damaged or of another form is refused with
a :class:`DataError` that names the file, what was found and what is wanted. Nothing is downloaded except by Hugging Face's
own library.
"""

from readers._common import DataError, reading
from readers.files import array, huggingface, image_folder
from readers.idx import idx
from readers.published import cifar10, digits, imagenet

__all__ = ["DataError", "array", "cifar10", "digits", "huggingface", "idx", "image_folder", "imagenet", "reading"]
