"""The report's colours, of its page and of its plots alike.

The page's change with the reader's light or dark screen. A series' colour can be seen on both, at
3:1 against either surface (WCAG 2.2, 1.4.11), so that a plot is drawn once: in the page's SVGs the
LIGHT colours become the page's variables.
"""

LIGHT = {
    "page": "#f3f6f8",
    "surface": "#fefefe",
    "ink": "#1b2631",
    "quiet": "#566472",
    "line": "#dde4ea",
    "axis": "#8d9aa6",
    "shade": "#e9eef2",
    "good": "#1f6b43",
    "bad": "#a5281b",
}
DARK = {
    "page": "#10161c",
    "surface": "#18212a",
    "ink": "#e4ebf1",
    "quiet": "#a3b1be",
    "line": "#2c3945",
    "axis": "#71808e",
    "shade": "#202b35",
    "good": "#6fcf97",
    "bad": "#ff9384",
}

BLUE = "#2b7cc4"
ORANGE = "#c7661a"
GREEN = "#2c8a57"
RED = "#d14b48"
PURPLE = "#8c68c9"
TEAL = "#1b8893"
BROWN = "#a0703c"
GREY = "#7b8793"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, TEAL, BROWN, RED, GREY)


def variables(colours: dict[str, str]) -> str:
    """As CSS declares them."""
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())
