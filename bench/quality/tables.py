"""Tables of the quality measurements in Markdown, from their rows."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean

from uid.bench.quality import metrics
from uid.bench.quality.ablation import AblationRow
from uid.bench.quality.comparison import UID_ON_SHARP, QualityRow, QualitySummary, summarise
from uid.bench.quality.gates import is_gate
from uid.bench.quality.methods import BLURRED, RICHARDSON_LUCY, UID, UNSHARP
from uid.bench.quality.pairs import PairRow
from uid.bench.quality.tradeoff import Setting, TradeoffRow, TradeoffSummary
from uid.bench.quality.tradeoff import summarise as summarise_tradeoff
from uid.bench.quality.transfer import STRENGTHS, TransferRow
from uid.bundles.declarations import built_in
from uid.bundles.manifest import read_bundle
from uid.train.held_out import PHOTOS

IN_WORDS = {RICHARDSON_LUCY: "Richardson-Lucy, told the kernel", UID: f"**{UID}**", BLURRED: "blurred input"}


def table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """The lines of a Markdown table."""
    names = list(headings)
    return [line_of(names), "|---" * len(names) + "|", *map(line_of, rows)]


def line_of(cells: Iterable[str]) -> str:
    """A line of a table; an empty cell has no spaces."""
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def share(value: float | None) -> str:
    """Of 1, in per cent; nothing where there is none."""
    return "" if value is None else f"{value:.0%}".replace("%", " %")


def signed(value: float | None) -> str:
    """With its sign and two decimals; nothing where there is none."""
    return "" if value is None else f"{value:+.2f}"


# -- the 16 cases -----------------------------------------------------------------------------------------------------


def methods_table(rows: Sequence[QualityRow]) -> list[str]:
    """Every method but the gates, on blurred images."""
    lines = [line for line in summarise(blurred_only(rows)) if not is_gate(line.method)]
    return table([*HEADINGS, *map(metrics.heading, lines[0].metrics)], map(cells, lines))


HEADINGS = ("method", "PSNR dB", "SSIM", "HaarPSI", "GMSD", "VIF", "gain dB", "worst dB", "beats unsharp", "by HaarPSI")


def cells(line: QualitySummary) -> list[str]:
    """The line of a method."""
    figures = f"{line.psnr:.2f}", f"{line.ssim:.3f}", f"{line.haarpsi:.3f}", f"{line.gmsd:.3f}", f"{line.vif:.3f}"
    compared = ["", "", "", ""]
    if line.method != BLURRED:
        beats = ["", ""] if line.method == UNSHARP else [share(line.beats_unsharp), share(line.looks_better)]
        compared = [signed(line.gain), signed(line.worst), *beats]
    return [
        IN_WORDS.get(line.method, line.method),
        *figures,
        *compared,
        *(f"{one:.3f}" for one in line.metrics.values()),
    ]


def gates_table(rows: Sequence[QualityRow]) -> list[str]:
    """The whole bundle, and then each gate: its gain, and how far that is from the whole bundle's."""
    lines = [line for line in summarise(blurred_only(rows)) if line.method == UID or is_gate(line.method)]
    whole = next(line for line in lines if line.method == UID)

    def difference(line: QualitySummary) -> str:
        return "" if line is whole else signed(line.psnr - whole.psnr)

    return table(
        ("gate", "PSNR dB", "SSIM", "HaarPSI", "gain dB", f"to {UID}, dB"),
        ([IN_WORDS.get(line.method, line.method), *short(line), signed(line.gain), difference(line)] for line in lines),
    )


def brief_table(rows: Sequence[QualityRow]) -> list[str]:
    """The methods and the gates in few columns."""
    lines = summarise(blurred_only(rows))
    ordered = [*(one for one in lines if not is_gate(one.method)), *(one for one in lines if is_gate(one.method))]
    gains = ["" if line.method == BLURRED else signed(line.gain) for line in ordered]
    names = [f"{UID}, {line.method}" if is_gate(line.method) else line.method for line in ordered]
    return table(
        ("method", "PSNR dB", "SSIM", "HaarPSI", "gain dB"),
        ([IN_WORDS.get(name, name), *short(one), gain] for name, one, gain in zip(names, ordered, gains, strict=True)),
    )


def short(line: QualitySummary) -> tuple[str, str, str]:
    """PSNR, SSIM and HaarPSI."""
    return f"{line.psnr:.2f}", f"{line.ssim:.3f}", f"{line.haarpsi:.3f}"


def blurred_only(rows: Iterable[QualityRow]) -> list[QualityRow]:
    """Without the sharp images."""
    return [row for row in rows if row.method != UID_ON_SHARP]


def sharp_table(rows: Sequence[QualityRow]) -> list[str]:
    """What becomes of images that were sharp."""
    groups: dict[str, list[QualityRow]] = {}
    for row in rows:
        if row.method == UID_ON_SHARP:
            kind = "photos" if row.photo in PHOTOS else "flat" if row.photo.startswith("flat") else row.photo
            groups.setdefault(kind, []).append(row)
    return table(
        ("sharp image", "comes back at, dB", "at worst, dB", "largest deviation, levels"),
        (
            [name, *level([row.psnr for row in group]), f"{max(row.largest for row in group):.1f}"]
            for name, group in groups.items()
        ),
    )


def level(figures: Sequence[float]) -> tuple[str, str]:
    """The mean and, where there are several, the least."""
    return f"{fmean(figures):.1f}", f"{min(figures):.1f}" if len(figures) > 1 else ""


# -- the wide cases ---------------------------------------------------------------------------------------------------


def wide_table(rows: Sequence[QualityRow]) -> list[str]:
    """Gain by family, by level of noise, and of all cases; for each length of the blur and in the worst case."""
    lengths = list(dict.fromkeys(row.length for row in rows))
    groups = {row.kernel: [one for one in rows if one.kernel == row.kernel] for row in rows}
    for noise in dict.fromkeys(row.noise_levels for row in rows):
        groups[f"noise of {noise:g}"] = [one for one in rows if one.noise_levels == noise]
    lines = []
    for name, mine in {**groups, "all": rows}.items():
        of_length = {length: [row for row in mine if row.length == length] for length in lengths}
        gains = [signed(of(UID, group).gain) for group in of_length.values()]
        own, unsharp = of(UID, mine), of(UNSHARP, mine)
        others = [signed(unsharp.gain), f"{own.haarpsi:.3f}", f"{unsharp.haarpsi:.3f}"]
        lines.append([name, *gains, signed(own.gain), signed(own.worst), *others])
    pixels = [f"{length:g} pixels" for length in lengths]
    return table(("blur", *pixels, "all", "worst", "unsharp, all", "HaarPSI", "unsharp's"), lines)


def of(method: str, rows: Sequence[QualityRow]) -> QualitySummary:
    """The summary of one method."""
    return next(line for line in summarise(rows) if line.method == method)


# -- other measurements -----------------------------------------------------------------------------------------------


def presets_table(rows: Sequence[TradeoffRow]) -> list[str]:
    """The presets of the built-in bundle, the best first."""
    bundle = read_bundle(built_in())
    found = {line.setting: line for line in summarise_tradeoff(rows)}
    folder = next(iter(found)).bundle
    lines = []
    for name, preset in bundle.presets.items():
        line = found[Setting(folder, preset.steps, preset.transforms)]
        default = ", the default" if name == bundle.preset else ""
        lines.append([f"`{name}`{default}", f"{preset.steps}", f"{preset.transforms}", *preset_cells(line)])
    headings = ("gain dB", "worst dB", "HaarPSI", "dB to the first", "SSIM to it", "times as fast")
    return table(("`--preset`", "steps", "transforms", *headings), lines)


def preset_cells(line: TradeoffSummary) -> list[str]:
    """Of a preset, what was measured."""
    first = ["", ""] if line.psnr_to_first >= 100.0 else [f"{line.psnr_to_first:.1f}", f"{line.ssim_to_first:.3f}"]
    return [signed(line.gain), signed(line.worst), f"{line.haarpsi:.3f}", *first, f"{line.speed:.1f}"]


def transfer_table(rows: Sequence[TransferRow]) -> list[str]:
    """The share of the gradient left under Gaussians of another photo."""

    def line(deviation: float) -> list[str]:
        same = [row for row in rows if row.kernel == f"gaussian {deviation:g}"]
        left, wanted = fmean(row.sharpness for row in same), fmean(row.sharpness_wanted for row in same)
        return [f"{deviation:g}", f"{left:.2f}", f"{wanted:.2f}"]

    return table(("Gaussian, pixels", "gradient left", "wanted"), map(line, STRENGTHS))


def ablation_table(rows: Sequence[AblationRow]) -> list[str]:
    """The variants of the paper's ablation."""
    return table(
        ("variant", "PSNR dB", "SSIM", "gain dB"),
        ([row.variant, f"{row.psnr:.2f}", f"{row.ssim:.3f}", signed(row.gain)] for row in rows if row.steps),
    )


def pairs_table(rows: Sequence[PairRow]) -> list[str]:
    """Every method over all pairs: means, and FID where it was measured."""
    methods: dict[str, list[PairRow]] = {}
    for row in rows:
        methods.setdefault(row.method, []).append(row)
    learned, with_fid = list(rows[0].metrics), rows[0].fid is not None
    lines = []
    for method, own in methods.items():
        plain = f"{mean(own, 'psnr'):.2f}", *(f"{mean(own, name):.3f}" for name in ("ssim", "haarpsi", "gmsd", "vif"))
        scores = [f"{fmean(row.metrics[name] for row in own):.3f}" for name in learned]
        lines.append([method, *plain, *scores, *([f"{own[0].fid:.2f}"] if with_fid else [])])
    headings = "method", "PSNR dB ↑", "SSIM ↑", "HaarPSI ↑", "GMSD ↓", "VIF ↑"
    return table([*headings, *map(metrics.heading, learned), *(["FID ↓"] if with_fid else [])], lines)


def mean(rows: Sequence[PairRow], name: str) -> float:
    """Of a figure."""
    return fmean(getattr(row, name) for row in rows)


KINDS: Mapping[str, tuple[type, Callable[..., list[str]]]] = {  # of tables in a page: their rows, and what makes them
    "methods": (QualityRow, methods_table),
    "gates": (QualityRow, gates_table),
    "brief": (QualityRow, brief_table),
    "sharp": (QualityRow, sharp_table),
    "wide": (QualityRow, wide_table),
    "presets": (TradeoffRow, presets_table),
    "transfer": (TransferRow, transfer_table),
    "ablation": (AblationRow, ablation_table),
    "pairs": (PairRow, pairs_table),
}
