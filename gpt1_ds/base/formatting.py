"""Numbers as text."""


def duration(seconds: float) -> str:
    """Such as `3 days 4 h`, `2 h 10 min`, `5 min`, `40 s`: two units at most."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes} min"
    return (
        f"{minutes // 60} h {minutes % 60} min"
        if hours < 48
        else f"{hours // 24} days {hours % 24} h"
    )
