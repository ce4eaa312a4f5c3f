"""Numbers and names as text for people."""


def percent(share: float | None) -> str:
    """A fraction as text: `12.3%`, small ones with the digits they need, and 0 as a dash."""
    if not share:
        return "–"
    if share >= 0.9995:
        return "100%"
    if share >= 0.0095:
        return f"{100 * share:.1f}%"
    return f"{100 * share:.2f}%" if share >= 0.00005 else "< 0.01%"


def printable(text: str) -> str:
    """Text that any output takes: bytes of a file name that are no UTF-8 become `?`."""
    return text.encode("utf-8", "replace").decode()
