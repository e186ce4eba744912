from wesar_sweep.config.methods import BUILT_IN_METHODS
from wesar_sweep.reports.theme import ROLE_COLOURS, colour, series_styles


def luminance(code: str) -> float:
    """Relative luminance of WCAG 2."""
    parts = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_oklch_of_white_black_and_srgb_red() -> None:
    assert colour(1.0, 0.0, 0.0) == "#ffffff"
    assert colour(0.0, 0.0, 0.0) == "#000000"
    assert colour(0.6280, 0.2577, 29.23) == "#ff0000"


def test_every_colour_stands_out_on_both_pages() -> None:
    series = [(name, name) for name in BUILT_IN_METHODS]
    series += [(f"wesar {n}", "wesar") for n in range(5)]
    found = {name: style.colour for name, style in series_styles(series).items()}
    for name, code in {**found, **ROLE_COLOURS}.items():
        for page in ("#ffffff", "#12161c"):
            assert contrast(code, page) >= 3, (name, code, page, contrast(code, page))


def test_a_method_keeps_its_colour_whatever_is_beside_it() -> None:
    two = series_styles([("he", "he"), ("wesar", "wesar")])
    more = series_styles([("small", "small"), ("wesar", "wesar"), ("he", "he"), ("mine", "mine")])
    assert two["he"].colour == more["he"].colour
    assert two["wesar"].colour == more["wesar"].colour
    assert len({style.colour for style in more.values()}) == 4


def test_series_of_one_method_can_be_told_apart_without_colour() -> None:
    styles = series_styles([(f"wesar {n}", "wesar") for n in range(4)] + [("he", "he")])
    assert len({(style.shape, style.dash) for style in styles.values()}) == 5
    assert len({style.colour for style in styles.values()}) == 5
    alone = series_styles([(f"wesar {n}", "wesar") for n in range(6)])
    assert len({style.colour for style in alone.values()}) == 6
