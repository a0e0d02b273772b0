"""Draw the pictures of the documentation into docs/pictures/: `python docs/make_pictures.py`.

Each has a ground of its own, and follows the system from light to dark: so it can be read on any
page, also where a reader has switched the page and not the system.
"""

from pathlib import Path

PICTURES = Path(__file__).with_name("pictures")
STYLE = """
  text { font: 15px system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif; fill: #22302d }
  .strong { font-weight: 600 } .name { font-weight: 600; font-size: 17px }
  .soft { fill: #5b6a66; font-size: 13px }
  .ground { fill: #f5f8f7 } .card { fill: #ffffff; stroke: #cfdad6 }
  .frozen { fill: #cfe0ea; stroke: #5b87a3 } .trained { fill: #f2c29b; stroke: #b3641e }
  .gone { fill: none; stroke: #a9b5b1; stroke-dasharray: 4 4 }
  .line { fill: none; stroke: #5b6a66; stroke-width: 1.6 }
  .tip { fill: #5b6a66 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e3ebe8 } .soft { fill: #a3b1ad }
    .ground { fill: #1b2523 } .card { fill: #24302d; stroke: #3d4c48 }
    .frozen { fill: #2d4656; stroke: #7fa9c4 } .trained { fill: #6b4522; stroke: #e0a06a }
    .gone { stroke: #66756f } .line { stroke: #a3b1ad } .tip { fill: #a3b1ad }
  }
"""
LAYERS, WIDTH, GAP = 5, 26, 6


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{words}</text>'


def box(x: float, y: float, width: float, height: float, kind: str, radius: float = 4) -> str:
    size = f'width="{width}" height="{height}"'
    return f'<rect x="{x}" y="{y}" {size} rx="{radius}" class="{kind}"/>'


def arrow(x: float, y: float, to: float, to_y: float | None = None) -> str:
    end = y if to_y is None else to_y
    half = (x + to) / 2
    line = f'<path d="M{x} {y} C{half} {y} {half} {end} {to - 7} {end}" class="line"/>'
    return line + f'<path d="M{to} {end} l-9 -5 v10 z" class="tip"/>'


def network(x: float, y: float, kinds: str) -> str:
    """A row of layers and a head; `kinds` has f (frozen), t (trained) or g (gone) for each."""
    names = {"f": "frozen", "t": "trained", "g": "gone"}
    drawn, place = [], x
    for number, kind in enumerate(kinds):
        height = 66 - 9 * number if number < LAYERS else 18
        drawn.append(box(place, y - height / 2, WIDTH, height, names[kind]))
        place += WIDTH + GAP
    return "".join(drawn)


def picture(width: int, height: int, title: str, *parts: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{title}">\n<title>{title}</title>\n<style>{STYLE}</style>\n'
        + box(0, 0, width, height, "ground", 10)
        + "\n"
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def strategies() -> str:
    """The four strategies, by how many images there are and how like the source they are."""
    cells = [
        ("linear-probe", "A linear head on the last layer.", "ffffft"),
        ("truncated-probe", "Cut earlier; a head on the cut.", "fffggt"),
        ("finetune", "Train all on from its weights.", "tttttt"),
        ("retrain", "A new classifier, all trained.", "tttttt"),
    ]
    parts = [
        text(265, 34, "similar to the source", "strong", "middle"),
        text(587, 34, "different from the source", "strong", "middle"),
        text(20, 128, "few", "strong"),
        text(20, 148, "images"),
        text(20, 308, "many", "strong"),
        text(20, 328, "images"),
    ]
    for number, (name, what, kinds) in enumerate(cells):
        x, y = 110 + 322 * (number % 2), 50 + 180 * (number // 2)
        parts.append(box(x, y, 308, 166, "card", 8))
        parts.append(text(x + 16, y + 28, name, "name"))
        parts.append(network(x + 40, y + 82, kinds))
        if name == "retrain":
            parts.append(box(x + 40 + 6 * (WIDTH + GAP), y + 73, WIDTH, 18, "trained"))
        parts.append(text(x + 16, y + 146, what))
    parts += [
        *(box(110, 416, 18, 14, "frozen"), text(136, 428, "frozen", "soft")),
        *(box(210, 416, 18, 14, "trained"), text(236, 428, "trained", "soft")),
        *(box(310, 416, 18, 14, "gone"), text(336, 428, "not run", "soft")),
        text(740, 428, "classify advise measures which it is", "soft", "end"),
    ]
    return picture(760, 446, "Which of the four strategies", *parts)


def once() -> str:
    """Images, a network that is run once, a cache, and many heads on it."""
    parts = [box(24 + 9 * k, 76 + 9 * k, 66, 66, "card") for k in range(3)]
    parts += [text(66, 190, "images", "strong", "middle"), arrow(122, 118, 160)]
    parts += [network(170, 118, "fffff"), text(247, 190, "network, once", "strong", "middle")]
    parts += [text(247, 210, "featurize run", "soft", "middle"), arrow(332, 118, 370)]
    parts += [box(376, 72, 92, 92, "frozen")]
    parts += [f'<path d="M376 {95 + 23 * k} h92" class="line"/>' for k in range(3)]
    parts += [text(422, 190, "feature cache", "strong", "middle")]
    parts += [text(422, 210, "one HDF5 file", "soft", "middle")]
    for k, words in enumerate(("species", "season", "broken or whole", "the next question")):
        y = 46 + 44 * k
        parts += [arrow(474, 118, 536, y), box(540, y - 11, 22, 22, "trained")]
        parts += [text(572, y + 5, words)]
    parts += [text(590, 230, "heads, in seconds each: classify fit", "soft", "middle")]
    return picture(740, 246, "A network is run once; heads are trained on what it saw", *parts)


DRAWN = {"strategies.svg": strategies, "once.svg": once}


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    for name, draw in DRAWN.items():
        (PICTURES / name).write_text(draw())
