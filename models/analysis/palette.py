"""The colors of all figures; a separate module, because Matplotlib is slow to import.

Most are Okabe and Ito's (2008, "Color Universal Design"), which color-blind readers tell apart, too.
"""

BLACK, GRAY = "#222222", "#6b6b6b"
BLUE, RED, YELLOW, GREEN = "#0072b2", "#d55e00", "#e69f00", "#009e73"
PURPLE, CYAN, BROWN, PINK = "#882255", "#56b4e9", "#7a4a00", "#cc79a7"
COLORS = (BLUE, RED, GREEN, YELLOW, PURPLE, CYAN, BROWN, PINK)  # in the order in which series take them
LIGHT_BLUE = "#9ac6e3"  # beside BLUE, for a second part of the same thing
