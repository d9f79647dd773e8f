"""The page's style sheet and its only script; both stand in the page, and nothing else may run."""

from harmonic_jax.report.palette import DARK, DARK_RAMP, LIGHT, RAMP


def _variables(colors: dict[str, str], ramp: tuple[str, ...], scheme: str) -> str:
    named = colors | {f"d{i}": color for i, color in enumerate(ramp)}
    return f"color-scheme:{scheme};" + "".join(f"--{k}:{v};" for k, v in named.items())


_LIGHT = _variables(LIGHT, RAMP, "light")
_DARK = _variables(DARK, DARK_RAMP, "dark")

_RULES = """
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:76rem;background:var(--paper);color:var(--ink);
 font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.2;margin:.5rem 0}
h2{font-size:1.25rem;margin:2.5rem 0 .5rem}
h3{font-size:1.05rem;margin:1.5rem 0 .25rem}
p{margin:.4rem 0;max-width:48rem}
small,.quiet{color:var(--muted);font-size:.875rem}
fieldset{border:1px solid var(--grid);border-radius:.5rem;padding:.1rem .8rem;
 display:inline-block}
fieldset label{margin-right:.8rem;white-space:nowrap}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:.6rem;
 margin:1rem 0;padding:0;list-style:none}
.tiles li{background:var(--card);border:1px solid var(--grid);border-radius:.5rem;
 padding:.6rem .8rem;display:flex;flex-direction:column}
.tiles b{margin-top:auto;font-size:1.5rem;line-height:1.3;font-variant-numeric:tabular-nums}
figure{margin:0}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr));gap:1rem}
.panels svg{width:100%;max-width:27rem;height:auto;display:block}
.many .panels{grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr))}
figcaption{margin-top:.5rem}
.wide{overflow-x:auto;max-width:100%;border:1px solid var(--grid);border-radius:.5rem;
 margin:.6rem 0}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;
 overflow-wrap:normal}
th,td{padding:.3rem .7rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--grid)}
th:first-child{text-align:left;white-space:normal;min-width:8rem;max-width:16rem}
thead th{background:var(--card)}
tbody th{font-weight:normal}
th.group{font-weight:bold;background:var(--card)}
td small{display:block;font-size:.75rem}
details{border:1px solid var(--grid);border-radius:.5rem;padding:.4rem .8rem;margin:.6rem 0}
summary{cursor:pointer;font-weight:600;padding:.3rem 0}
:focus-visible{outline:3px solid var(--b);outline-offset:2px}
.shots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr));gap:1rem;
 margin:.8rem 0}
.shots figure{background:var(--card);border:1px solid var(--grid);border-radius:.5rem;padding:.5rem;
 font-size:.875rem}
.shots figure[hidden]{display:none}
.shot{width:100%;aspect-ratio:4/3;display:block;background:var(--paper)}
.key{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;list-style:none;padding:0;margin:.5rem 0}
.key svg{width:2.6rem;height:1.4rem;vertical-align:middle;margin-right:.4rem}
.defs{position:absolute;width:0;height:0}
text{font:12px system-ui,sans-serif;fill:var(--ink)}
.head{font-weight:600;font-size:13px}
.tick,.label{fill:var(--muted)}
.small{font-size:9.5px}
.note{font-size:11px}
.mid{text-anchor:middle}
.end{text-anchor:end}
.grid{stroke:var(--grid);stroke-width:1;fill:none}
.line{fill:none;stroke-width:2;stroke-linejoin:round}
.whisker{fill:none;stroke:var(--ink);stroke-width:1.4}
.line.a{stroke:var(--a)}
.line.b{stroke:var(--b);stroke-dasharray:7 4}
.line.c{stroke:var(--c);stroke-dasharray:8 3 2 3}
.line.muted{stroke:var(--ink);stroke-width:1.4;stroke-dasharray:2 3}
.marker.a,.fill.a{fill:var(--a)}
.marker.b{fill:var(--b)}
.marker.c{fill:var(--c)}
.fill.b{fill:url(#hatch-b);stroke:var(--b)}
.fill.c{fill:url(#hatch-c);stroke:var(--c)}
.fill.muted{fill:var(--grid)}
.hatch-b{stroke:var(--b);stroke-width:3}
.hatch-c{fill:var(--c)}
.blank{fill:var(--grid)}
.rim,.box{fill:none;vector-effect:non-scaling-stroke}
.rim{stroke:#191919;stroke-width:4.5}
.box{stroke-width:2.5}
.box.truth{stroke:#56b4e9;stroke-dasharray:9 6}
.box.found{stroke:#e69f00}
.box.other{stroke:#fff;stroke-dasharray:2 4}
@media print{fieldset,.filter{display:none}}
"""

STYLE = (
    f":root{{{_LIGHT}}}\n"
    f"@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}\n"
    f":root:has(#light:checked){{{_LIGHT}}}\n"
    f":root:has(#dark:checked){{{_DARK}}}\n"
    + "".join(f".d{i}{{fill:var(--d{i})}}\n" for i in range(len(RAMP)))
    + _RULES
)

HATCHES = (
    '<svg class="defs" aria-hidden="true"><defs>'
    '<pattern id="hatch-b" width="6" height="6" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><path class="hatch-b" d="M0 0V6"/></pattern>'
    '<pattern id="hatch-c" width="5" height="5" patternUnits="userSpaceOnUse">'
    '<circle class="hatch-c" cx="2.5" cy="2.5" r="1.4"/></pattern></defs></svg>'
)

# The page is whole without it: it only shows the choice of a class, and hides other pictures.
SCRIPT = """
const choice = document.getElementById("class");
if (choice) {
  choice.closest("p").hidden = false;
  choice.addEventListener("change", () => {
    for (const shot of document.querySelectorAll(".shots figure"))
      shot.hidden = choice.value !== "" && shot.dataset.label !== choice.value;
  });
}
"""
