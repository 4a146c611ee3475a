"""The colors that plots share; a separate module, since matplotlib is slow to import."""

BLACK, GRAY = "#222222", "#777777"
BLUE, RED, YELLOW, GREEN = "#4878a8", "#c8553d", "#c9a227", "#3d8f6b"
PURPLE, CYAN, BROWN, PINK = "#7b4fa3", "#58b4c4", "#8c6239", "#d0679d"
