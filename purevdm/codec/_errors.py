"""What goes wrong with files."""


class CodecError(ValueError):
    """A file that is damaged, cut short, of another model, of a later format, or made for another machine; the message says
    which, and where."""
