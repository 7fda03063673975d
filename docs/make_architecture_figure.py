"""Write docs/images/architecture.svg: the path of a draft, and the rooms of the package, in the same colours.

python docs/make_architecture_figure.py
"""

from html import escape
from pathlib import Path

WIDTH, HEIGHT = 1200, 760
INK, LINE = "#1a1a1a", "#555555"
COLOURS = {
    "programs": "#e8e8e8",
    "studies": "#ddd3ee",
    "network": "#cfe3f7",
    "passes": "#f7d9b8",
    "protocol": "#fbeeb4",
    "models": "#cfe8cf",
    "speculation": "#f4cfd6",
    "planning": "#c9e6e6",
    "ground": "#f4f4f4",
}
LAYERS = [  # the rooms, highest first, as import-linter holds them: what a layer is called, its colour, its rooms
    ("commands", "programs", ["cli"]),
    ("front door", "programs", ["api"]),
    ("figures, demo", "programs", ["report", "demo"]),
    ("the paper's figures", "studies", ["paper"]),
    ("virtual time", "studies", ["simulation"]),
    ("measure and train", "models", ["profiling", "distillation"]),
    ("clients, browsers", "network", ["gateway", "web"]),
    ("sockets", "network", ["edge", "device"]),
    ("the loop", "passes", ["passes"]),
    ("messages, sessions", "protocol", ["protocol"]),
    ("language models", "models", ["models"]),
    ("learn", "planning", ["estimation"]),
    ("rules, codecs, seams", "speculation", ["speculation"]),
    ("plan", "planning", ["control"]),
    ("the uplink", "planning", ["radio"]),
    ("used by all", "ground", ["data", "checks", "outside", "errors", "lazily"]),
]
EDGE = [  # the steps at the edge: height of the box, colour, number and title, where it is
    (84, "passes", "1  grant", "how many tokens, how much band", "passes"),
    (232, "passes", "4  choose", "whose drafts go into this pass", "passes"),
    (312, "models", "5  verify", "one forward pass over all drafts", "models (engine)"),
    (392, "speculation", "6  settle", "the rule decides what is accepted", "speculation"),
    (472, "protocol", "7  deliver", "accepted tokens, next token, next grant", "protocol"),
    (582, "planning", "9  learn", "acceptance, speed, link, pass time", "estimation"),
    (662, "planning", "10  plan", "lengths and bands with the best goodput", "control, radio"),
]
DEVICE = [
    (120, "models", "2  draft", "the small model writes some tokens", "device, models (drafter)"),
    (200, "protocol", "3  send", "ids as bits, over the granted band", "protocol, speculation"),
    (508, "network", "8  go on", "show the text, draft from it", "device"),
]
DEVICE_X, EDGE_X, BOX, TALL = 24, 424, 300, 62
ROOMS_X, ROOMS_WIDTH = 800, 376


def text(x, y, words, size=14, weight="normal", anchor="start", colour=INK):
    """One line of text."""
    style = f'font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" fill="{colour}"'
    return f'<text x="{x}" y="{y}" {style}>{escape(words)}</text>'


def box(x, y, width, height, colour):
    """A rounded box."""
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="7" fill="{COLOURS[colour]}" stroke="{LINE}"'
        ' stroke-width="1"/>'
    )


def step(x, y, colour, title, words, room):
    """A step of a draft: its box, title, explanation and room."""
    return [
        box(x, y, BOX, TALL, colour),
        text(x + 12, y + 22, title, 15, "bold"),
        text(x + BOX - 12, y + 22, room, 12, anchor="end", colour=LINE),
        text(x + 12, y + 45, words, 13),
    ]


def arrow(points, label="", at=None):
    """An arrow along points, with a label at a place."""
    path = " ".join(f"{x},{y}" for x, y in points)
    drawn = [f'<polyline points="{path}" fill="none" stroke="{LINE}" stroke-width="1.6" marker-end="url(#tip)"/>']
    if label:
        drawn.append(text(*at, label, 12, anchor="middle", colour=LINE))
    return drawn


def path_of_a_draft():
    """The left half."""
    drawn = [text(DEVICE_X, 34, "The path of a draft", 19, "bold")]
    drawn += [text(DEVICE_X + BOX / 2, 66, "DEVICE", 13, "bold", "middle", LINE)]
    drawn += [text(EDGE_X + BOX / 2, 66, "EDGE", 13, "bold", "middle", LINE)]
    for y, *rest in EDGE:
        drawn += step(EDGE_X, y, *rest)
    for y, *rest in DEVICE:
        drawn += step(DEVICE_X, y, *rest)
    right, left = DEVICE_X + BOX, EDGE_X
    middle = (right + left) / 2
    drawn += arrow([(left, 115), (middle, 115), (middle, 151), (right, 151)], "Grant", (middle, 106))
    drawn += arrow([(DEVICE_X + 150, 182), (DEVICE_X + 150, 199)])
    drawn += arrow([(right, 231), (middle, 231), (middle, 263), (left, 263)], "Draft", (middle, 222))
    for begin, end in ((294, 311), (374, 391), (454, 471), (534, 581), (644, 661)):
        drawn += arrow([(EDGE_X + 150, begin), (EDGE_X + 150, end)])
    drawn += arrow([(left, 503), (middle, 503), (middle, 539), (right, 539)], "Verdict", (middle, 494))
    drawn += arrow([(DEVICE_X, 539), (DEVICE_X - 14, 539), (DEVICE_X - 14, 151), (DEVICE_X - 1, 151)])
    loop = EDGE_X + BOX
    drawn += arrow([(loop, 693), (loop + 26, 693), (loop + 26, 115), (loop + 1, 115)])
    return drawn


def rooms():
    """The right half: the layers of the package, highest first."""
    drawn = [text(ROOMS_X, 34, "The rooms in src/multispin/", 19, "bold")]
    drawn.append(text(ROOMS_X, 58, "A room imports only rooms that stand lower.", 13, colour=LINE))
    height, gap, label = 35, 7, 150
    for index, (name, colour, members) in enumerate(LAYERS):
        y = 74 + index * (height + gap)
        drawn.append(text(ROOMS_X, y + 22, name, 13, colour=LINE))
        width = (ROOMS_WIDTH - label - 8 * (len(members) - 1)) / len(members)
        for place, member in enumerate(members):
            x = ROOMS_X + label + place * (width + 8)
            drawn.append(box(round(x, 1), y, round(width, 1), height, colour))
            size = 14 if len(members) < 3 else 9
            drawn.append(text(round(x + width / 2, 1), y + 22, member, size, "bold", "middle"))
    return drawn


def main():
    """Write the picture."""
    tip = (
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7"'
        f' orient="auto"><path d="M0,0 L10,5 L0,10 z" fill="{LINE}"/></marker></defs>'
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        ' font-family="DejaVu Sans, Verdana, sans-serif">'
    )
    paper = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    lines = [head, tip, paper, *path_of_a_draft(), *rooms(), "</svg>"]
    out = Path(__file__).parent / "images" / "architecture.svg"
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
