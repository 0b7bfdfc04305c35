"""Terminal pictures that look the same everywhere: braille, which few fonts have, is drawn as dots."""

from __future__ import annotations

import html
import re

# Cell size of Rich's and Textual's SVG export, in its own units.
_CELL_WIDTH, _CELL_HEIGHT = 12.2, 24.4
_RADIUS = 1.9
_ARC = f"a{_RADIUS} {_RADIUS} 0 1 0"
_CIRCLE = f"{_ARC} {2 * _RADIUS} 0{_ARC} {-2 * _RADIUS} 0"
# Column and row of the dots of U+2800, by bit.
_DOTS = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3))
_TEXT = re.compile(r'<text class="([^"]+)" x="([^"]+)" y="([^"]+)"[^>]*>([^<]*[\u2801-\u28ff][^<]*)</text>')


def portable(svg: str) -> str:
    """The picture with its braille drawn, and without fonts that have to be fetched."""
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace("Fira Code", "DejaVu Sans Mono, Menlo, Consolas")
    return _TEXT.sub(_drawn, svg)


def _drawn(match: re.Match[str]) -> str:
    style, left, base, text = match[1], float(match[2]), float(match[3]), html.unescape(match[4])
    # The export sets text on a line 18.5 units below the top of its cell.
    top = base - 18.5
    path, letters = [], []
    for column, character in enumerate(text):
        x = left + column * _CELL_WIDTH
        bits = ord(character) - 0x2800
        if not 0 <= bits <= 0xFF:
            if not character.isspace():
                letters.append(f'<text class="{style}" x="{x:.1f}" y="{base:g}">{html.escape(character)}</text>')
            continue
        for bit, (dot_column, dot_row) in enumerate(_DOTS):
            if bits >> bit & 1:
                cx = x + (dot_column + 0.5) * _CELL_WIDTH / 2
                cy = top + (dot_row + 0.5) * _CELL_HEIGHT / 4
                path.append(f"M{cx - _RADIUS:.1f} {cy:.1f}{_CIRCLE}")
    return f'<path class="{style}" d="{"".join(path)}"/>' + "".join(letters)
