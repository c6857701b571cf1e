"""Numbers as text."""


def duration(seconds: float) -> str:
    """A time as text in at most two units, such as `3 days 4 h`, `2 h 10 min`, `5 min`, `40 s`."""
    minutes = round(seconds / 60)
    hours = round(seconds / 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} days {hours % 24} h"
