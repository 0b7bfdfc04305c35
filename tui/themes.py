"""Two themes beside Textual's own, and the colours of curves, which colour-blind readers can distinguish.

Curves take the palette of Okabe and Ito (https://jfly.uni-koeln.de/color/), darker on light backgrounds.
"""

from __future__ import annotations

from dataclasses import replace

from textual.theme import Theme

_ON_DARK = {
    "curve-1": "#E69F00",  # orange
    "curve-2": "#56B4E9",  # sky blue
    "curve-3": "#009E73",  # bluish green
    "curve-4": "#CC79A7",  # reddish purple
    "curve-5": "#F0E442",  # yellow
    "curve-6": "#0072B2",  # blue
    "limit": "#D55E00",  # vermillion
}
_ON_LIGHT = {
    **_ON_DARK,
    "curve-1": "#B36B00",
    "curve-2": "#0072B2",
    "curve-3": "#00795A",
    "curve-4": "#A3477B",
    "curve-5": "#8A7F00",
    "curve-6": "#30638E",
    "limit": "#BF2E00",
}

MLXZO = Theme(
    name="mlxzo",
    primary="#56B4E9",
    secondary="#8FA3B5",
    accent="#E69F00",
    warning="#E69F00",
    error="#D55E00",
    success="#2BB58A",
    foreground="#D7DEE6",
    background="#10151B",
    surface="#161D25",
    panel="#1F2933",
    dark=True,
    variables={
        "footer-background": "#161D25",
        "footer-key-foreground": "#E69F00",
        "border": "#56B4E9",
        "block-cursor-background": "#27506B",
        "block-cursor-foreground": "#FFFFFF",
        "input-selection-background": "#56B4E9 35%",
    },
)
MLXZO_LIGHT = Theme(
    name="mlxzo-light",
    primary="#0072B2",
    secondary="#52606D",
    accent="#B36B00",
    warning="#B36B00",
    error="#B23B00",
    success="#00795A",
    foreground="#1F2933",
    background="#F7F8FA",
    surface="#FFFFFF",
    panel="#E6EAEE",
    dark=False,
    variables={"footer-key-foreground": "#B36B00", "border": "#0072B2"},
)


def themes(*, truecolor: bool) -> tuple[Theme, Theme]:
    """The dark and the light theme.

    Args:
        truecolor: False for a terminal of 256 colours, such as Terminal.app: of blueish greys it would show the dark
            ones as black and navy, so these themes have plain greys, each of which it has.
    """
    if truecolor:
        return MLXZO, MLXZO_LIGHT
    dark = {**MLXZO.variables, "footer-background": "#1C1C1C", "block-cursor-background": "#005F87"}
    return (
        replace(MLXZO, background="#121212", surface="#1C1C1C", panel="#303030", variables=dark),
        replace(MLXZO_LIGHT, background="#F0F0F0", surface="#FFFFFF", panel="#DADADA"),
    )


def curve_colours(*, dark: bool) -> dict[str, str]:
    """The theme variables of curves, for a dark or a light background."""
    return _ON_DARK if dark else _ON_LIGHT
