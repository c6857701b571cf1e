"""Draws docs/architecture.svg from the imports in the code. A test checks that it is up to date.

    python docs/draw_architecture.py

Each package is a box with its files. A line means that the upper box imports the lower box. It is
faint if there is also an indirect path through other boxes.
"""

import ast
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PICTURE = Path(__file__).with_name("architecture.svg")
ROWS = (
    ("commands", "data_prep"),
    ("runs",),
    ("checkpoints", "interchange", "reports"),
    ("engine", "tasks"),
    ("model",),
    ("data",),
    ("settings",),
    ("distributed",),
    ("base",),
)
"""The rows of boxes from top to bottom. A box imports only from lower rows."""
WIDTH, MARGIN, GAP = 1080, 20, 24
BOX_HEIGHT, ROW_STEP = 62, 104
CHARACTERS_A_LINE_PIXEL = 1 / 6.1


class Box(NamedTuple):
    name: str
    x: float
    y: float
    width: float

    @property
    def middle(self) -> float:
        return self.x + self.width / 2


def package_of(path: Path) -> str:
    """The box that a source file belongs to."""
    folder, *rest = path.relative_to(ROOT).parts
    if folder == "data_prep":
        return "data_prep"
    return rest[0] if len(rest) > 1 else "commands"


def sources() -> list[Path]:
    folders = (ROOT / "gpt1_ds", ROOT / "data_prep")
    paths = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    return [path for path in paths if path.name != "__init__.py"]


def imports() -> set[tuple[str, str]]:
    """The pairs (box, imported box), from the import statements."""
    found = set()
    for path in sources():
        importer = package_of(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                imported = imported_box(node.module, [alias.name for alias in node.names])
                found |= {(importer, box) for box in imported if box != importer}
    return found


def imported_box(module: str, names: Iterable[str]) -> set[str]:
    first, *rest = module.split(".")
    if first == "data_prep":
        return {"data_prep"}
    if first != "gpt1_ds":
        return set()
    candidates = {rest[0]} if rest else set(names)
    known = {box for row in ROWS for box in row}
    return {name if name in known else "commands" for name in candidates}


def files() -> dict[str, list[str]]:
    """The files of each box; for data_prep its commands and folders."""
    found: dict[str, list[str]] = {}
    for path in sources():
        box = package_of(path)
        inner = box == "data_prep" and path.parent.name != box
        name = f"{path.parent.name}/" if inner else path.stem
        names = found.setdefault(box, [])
        if name not in names:
            names.append(name)
    return found


def boxes() -> dict[str, Box]:
    placed = {}
    for number, row in enumerate(ROWS):
        width = (WIDTH - 2 * MARGIN - GAP * (len(row) - 1)) / len(row)
        if len(row) == 1:
            width = 640
        left = (WIDTH - len(row) * width - GAP * (len(row) - 1)) / 2
        for column, name in enumerate(row):
            x = left + column * (width + GAP)
            placed[name] = Box(name, x, MARGIN + number * ROW_STEP, width)
    return placed


def wrapped(words: list[str], width: float) -> list[str]:
    """The words in at most two lines that fit into the given number of pixels."""
    room = int(width * CHARACTERS_A_LINE_PIXEL)
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + 1 + len(word) > room:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    if len(lines) > 2:
        lines = [lines[0], f"{lines[1]} .."]
    return lines


def draw_box(box: Box, names: list[str]) -> list[str]:
    parts = [
        f'<g id="{box.name}"><rect x="{box.x:.0f}" y="{box.y:.0f}" width="{box.width:.0f}" '
        f'height="{BOX_HEIGHT}" rx="8"/>',
        f'<text class="name" x="{box.middle:.0f}" y="{box.y + 20:.0f}">{escape(box.name)}</text>',
    ]
    for number, line in enumerate(wrapped(names, box.width - 20)):
        y = box.y + 38 + 15 * number
        parts.append(f'<text x="{box.middle:.0f}" y="{y:.0f}">{escape(line)}</text>')
    return [*parts, "</g>"]


def is_implied(arrow: tuple[str, str], arrows: set[tuple[str, str]]) -> bool:
    """Whether there is an indirect path from the upper to the lower box."""
    upper, lower = arrow
    others = {box for start, box in arrows if start == upper and box != lower}
    reached: set[str] = set()
    while others:
        reached |= others
        others = {box for start, box in arrows if start in others} - reached
    return lower in reached


def draw_arrow(upper: Box, lower: Box, implied: bool) -> str:
    start = f"{upper.middle:.0f} {upper.y + BOX_HEIGHT:.0f}"
    end = f"{lower.middle:.0f} {lower.y:.0f}"
    rows = round((lower.y - upper.y) / ROW_STEP)
    if rows == 1:
        path = f"M{start} L{end}"
    else:
        # The line goes around the boxes between the two, on the side of the upper box.
        side = MARGIN / 2 if upper.middle <= WIDTH / 2 else WIDTH - MARGIN / 2
        side += (rows - 2) * (9 if side < WIDTH / 2 else -9)
        path = f"M{start} C{side:.0f} {upper.y + ROW_STEP:.0f} {side:.0f} {lower.y - 40:.0f} {end}"
    look = ' class="implied"' if implied else ""
    return f'<path d="{path}"{look} data-from="{upper.name}" data-to="{lower.name}"/>'


def picture() -> str:
    placed, names = boxes(), files()
    height = MARGIN * 2 + (len(ROWS) - 1) * ROW_STEP + BOX_HEIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui, sans-serif" font-size="12" text-anchor="middle">',
        "<style>rect{fill:#f4f6f8;stroke:#5b6b7b}.name{font-weight:600;font-size:14px}"
        "path{fill:none;stroke:#5b6b7b;stroke-width:1.6}"
        ".implied{stroke-width:1;stroke-opacity:.22}</style>",
        '<rect width="100%" height="100%" style="fill:#fff;stroke:none"/>',
    ]
    arrows = imports()
    for upper, lower in sorted(arrows):
        implied = is_implied((upper, lower), arrows)
        lines.append(draw_arrow(placed[upper], placed[lower], implied))
    for name, box in placed.items():
        lines += draw_box(box, names.get(name, []))
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    print(PICTURE.relative_to(ROOT))
