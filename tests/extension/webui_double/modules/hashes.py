"""What the host remembers of files that it has hashed."""

remembered = {}


def cache(subsection):
    return remembered.setdefault(subsection, {})
