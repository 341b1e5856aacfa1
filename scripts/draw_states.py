"""Draws the states of a job, as `TRANSITIONS` has them, into `docs/states.svg`.

    python scripts/draw_states.py

Each state has an arrow to each state that can follow. Where all states in the large box can follow, one arrow
leads to the box.
"""

from __future__ import annotations

from pathlib import Path

from fifo_background._core.state import TRANSITIONS, JobState

FIGURE = Path(__file__).parent.parent / "docs" / "states.svg"

WIDTH, HEIGHT = 116, 34  # of one state
STATES = {  # the upper left corner of each
    JobState.PENDING: (24, 70),
    JobState.QUEUED: (224, 70),
    JobState.RUNNING: (424, 70),
    JobState.SUCCEEDED: (624, 40),
    JobState.FAILED: (624, 100),
    JobState.SKIPPED: (24, 180),
    JobState.SUPERSEDED: (158, 180),
    JobState.DROPPED: (291, 180),
    JobState.CANCELLED: (424, 180),
}
TOGETHER = frozenset({JobState.SKIPPED, JobState.SUPERSEDED, JobState.DROPPED, JobState.CANCELLED})
BOX = (12, 168, 540, 58)  # x, y, width, height of the large box around them

HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 764 240" role="img"
font-family="sans-serif" font-size="14">
<title>The states of a job, and what can follow each</title>
<defs>
<marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">
<path d="M0 0 8 4 0 8z" fill="#444"/>
</marker>
</defs>
<rect width="764" height="240" rx="6" fill="#fff"/>
"""
ARROW = '<path d="{}" fill="none" stroke="#444" stroke-width="1.4" marker-end="url(#head)"/>\n'


def arrow(start: JobState, end: JobState) -> str:
    """From one state to another: straight on or down, or in a bow over the states between them."""
    (x, y), (to_x, to_y) = STATES[start], STATES[end]
    middle, to_middle = x + WIDTH // 2, to_x + WIDTH // 2
    if to_x == x:
        path = f"M{middle} {y + HEIGHT}V{to_y}"
    elif to_y == y and to_x - x > 200:
        path = f"M{middle} {y}C{middle + 60} 10 {to_middle - 60} 10 {to_middle} {y}"
    elif to_y > y + HEIGHT:
        path = f"M{middle} {y + HEIGHT}L{to_middle} {to_y}"
    else:
        path = f"M{x + WIDTH} {y + HEIGHT // 2}L{to_x} {to_y + HEIGHT // 2}"
    return ARROW.format(path)


def arrow_to_box(start: JobState) -> str:
    x, y = STATES[start]
    return ARROW.format(f"M{x + WIDTH // 2} {y + HEIGHT}V{BOX[1]}")


def state(name: JobState) -> str:
    (x, y), fill = STATES[name], "#e4e4e4" if name.ended else "#fff"
    return (
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="{fill}" stroke="#444"/>\n'
        f'<text x="{x + WIDTH // 2}" y="{y + 22}" text-anchor="middle" fill="#222">{name.name}</text>\n'
    )


def draw() -> str:
    x, y, width, height = BOX
    parts = [
        HEAD,
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="none" stroke="#999"/>\n',
    ]
    for start in JobState:
        following = TRANSITIONS[start]
        if following >= TOGETHER:
            parts.append(arrow_to_box(start))
            following -= TOGETHER
        parts.extend(arrow(start, end) for end in JobState if end in following)
    return "".join([*parts, *map(state, JobState), "</svg>\n"])


if __name__ == "__main__":
    FIGURE.write_text(draw(), encoding="utf-8")
