"""Requests a second and CPU a request of every subject, as bars in SVG."""

from xml.sax.saxutils import escape  # escapes text for writing, parses nothing

from bench.turns import Series, Spread

_LEFT, _BAR, _WIDTH, _ROW, _TOP, _BETWEEN = 150, 18, 330, 30, 84, 130
_COLOURS = ("#4477aa", "#ee6677")  # told apart also without red and green (Paul Tol's "bright" palette)


def as_svg(series: Series, title: str, machine: str) -> str:
    """Draw one row a subject: its median as a bar, its rounds' range as a line. Same figures, same bytes."""
    rates = {name: Spread.of(s.requests_per_second for s in samples) for name, samples in series.items()}
    costs = {name: Spread.of(s.cpu_us for s in samples) for name, samples in series.items()}
    width = _LEFT + 2 * _WIDTH + _BETWEEN + 90
    height = _TOP + len(series) * _ROW + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12" role="img">',
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="16" y="26" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    for panel, (heading, figures) in enumerate((("requests a second", rates), ("CPU µs a request", costs))):
        left = _LEFT + panel * (_WIDTH + _BETWEEN)
        parts.append(f'<text x="{left}" y="{_TOP - 24}" fill="#555555">{heading}</text>')
        most = max((spread.high for spread in figures.values()), default=1.0) or 1.0
        for row, (name, spread) in enumerate(figures.items()):
            y = _TOP + row * _ROW
            scale = _WIDTH / most
            if panel == 0:
                parts.append(f'<text x="16" y="{y + 13}">{escape(name)}</text>')
            parts += [
                f'<rect x="{left}" y="{y}" width="{spread.median * scale:.1f}" height="{_BAR}" '
                f'fill="{_COLOURS[panel]}"/>',
                f'<path d="M{left + spread.low * scale:.1f} {y + _BAR / 2}H{left + spread.high * scale:.1f}" '
                'stroke="#222222"/>',
                f'<text x="{left + spread.high * scale + 6:.1f}" y="{y + 13}">{spread.median:,.0f}</text>',
            ]
    parts.append(f'<text x="16" y="{height - 12}" fill="#555555" font-size="10">{escape(machine)}</text>')
    parts.append("</svg>\n")
    return "\n".join(parts)
