"""What goes wrong with files."""


class CodecError(ValueError):
    """A file that is damaged, cut short, of another model, of a later format, or made for another machine; the message says
    which, and where."""


class UnboundedError(ValueError):
    """A network or a decoder whose output is not finite, or far from all that lattices hold."""
