"""A plot of admitted and limited requests over time, one row a principal, as SVG."""

from xml.sax.saxutils import escape  # escapes text for writing, parses nothing

from mitmgate.audit.reading import printable
from mitmgate.replay.what_if import Timeline, moment

ROWS = 16
_LEFT, _WIDTH, _HEIGHT, _GAP, _TOP = 260, 720, 44, 18, 76
_ADMITTED, _LIMITED = "#4477aa", "#cc3311"  # told apart also without red and green (Paul Tol's "bright" palette)


def as_svg(timeline: Timeline, title: str) -> str:
    """Draw a timeline: the principals that were limited most, each on its own scale. Same data, same bytes."""
    ranked = timeline.ranked
    rows = ranked[:ROWS]
    count = max((max(line.buckets, default=0) for _, line in rows), default=0) + 1
    height = _TOP + len(rows) * (_HEIGHT + _GAP) + 46
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 90}" height="{height}" '
        'font-family="sans-serif" font-size="12" role="img">',
        f"<title>{escape(printable(title))}</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="16" y="26" font-size="15" font-weight="bold">{escape(printable(title))}</text>',
        f'<rect x="16" y="40" width="12" height="12" fill="{_ADMITTED}"/><text x="34" y="50">admitted</text>',
        f'<rect x="110" y="40" width="12" height="12" fill="{_LIMITED}"/><text x="128" y="50">limited</text>',
        f'<text x="200" y="50" fill="#555555">a bar is {timeline.width:g} s; each row has its own scale</text>',
    ]
    bar = _WIDTH / count
    for row, (who, line) in enumerate(rows):
        bottom = _TOP + row * (_HEIGHT + _GAP) + _HEIGHT
        top = max((sum(bucket) for bucket in line.buckets.values()), default=1) or 1
        shown = printable(who)
        shown = shown if len(shown) <= 36 else shown[:35] + "…"
        parts.append(f'<text x="16" y="{bottom - 22}">{escape(shown)}</text>')
        parts.append(
            f'<text x="16" y="{bottom - 6}" fill="#555555">{line.admitted:,} admitted, {line.limited:,} limited, '
            f"{line.newly:,} newly</text>"
        )
        parts.append(f'<path d="M{_LEFT} {bottom}h{_WIDTH}" stroke="#999999"/>')
        for number, (admitted, limited) in sorted(line.buckets.items()):
            x, below = _LEFT + number * bar, bottom * 1.0
            for amount, colour in ((admitted, _ADMITTED), (limited, _LIMITED)):
                size = amount * _HEIGHT / top
                below -= size
                if amount:
                    parts.append(
                        f'<rect x="{x:.2f}" y="{below:.2f}" width="{max(bar - 0.5, 0.5):.2f}" height="{size:.2f}" '
                        f'fill="{colour}"/>'
                    )
        parts.append(f'<text x="{_LEFT + _WIDTH + 8}" y="{bottom - _HEIGHT + 10}" fill="#555555">{top}</text>')
    axis = _TOP + len(rows) * (_HEIGHT + _GAP) + 8
    begin = timeline.begin or 0.0
    parts.append(f'<text x="{_LEFT}" y="{axis}" fill="#555555">{moment(begin) or ""}</text>')
    end = moment(begin + count * timeline.width) if begin else ""
    parts.append(f'<text x="{_LEFT + _WIDTH}" y="{axis}" text-anchor="end" fill="#555555">{end}</text>')
    if len(ranked) > len(rows):
        parts.append(f'<text x="16" y="{axis + 22}" fill="#555555">and {len(ranked) - len(rows)} more</text>')
    parts.append("</svg>\n")
    return "\n".join(parts)
