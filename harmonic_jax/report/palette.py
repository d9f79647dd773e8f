"""Colours, for light and dark: the series are apart for every kind of colour vision.

Blue and orange are Okabe and Ito's; beside their green, blue is hard to tell without its own cones.
Series differ in line style, marker and hatching as well. The ramp is one hue by lightness.
"""

LIGHT = {
    "paper": "#ffffff",
    "card": "#f6f7f9",
    "ink": "#1b1f24",
    "muted": "#57606a",
    "grid": "#dde1e6",
    "a": "#0072b2",
    "b": "#d55e00",
    "c": "#882255",
}
DARK = {
    "paper": "#14171a",
    "card": "#1d2126",
    "ink": "#e8eaed",
    "muted": "#a6adb5",
    "grid": "#363d45",
    "a": "#56b4e9",
    "b": "#e69f00",
    "c": "#f2d5e5",
}
# Faint to strong: away from the paper in both.
RAMP = ("#d6e6f4", "#abcfe6", "#6aaed6", "#3787c0", "#1b69ad", "#0b4083", "#08224f")
DARK_RAMP = ("#17324d", "#1f4b73", "#2c6a9c", "#4a8cc0", "#79b0da", "#aed1ec", "#e6f3ff")
