"""From images to terms: fitting them on normal images, measuring queries, drawing residuals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from anoscan import registry
from anoscan.architectures import Networks
from anoscan.images import Decoded, ImageRule
from anoscan.latent_search import latents
from anoscan.maps import Maps
from anoscan.runtime import exact_float32
from anoscan.scores import ENCODER, Inversion
from anoscan.terms import ROWS, Evidence, Tensors, Term, gather
from anoscan.tiles import LARGEST_PICTURE, Blender, Canvas, Floats, Grid, Reduced, worst

CHUNK = 64
OnRows = Callable[[int, Floats], None]
OnTiles = Callable[[int, int], None]


@dataclass(frozen=True)
class Measured:
    """Terms of images, and the pictures behind them; arrays in the order of the images.

    Parameters
    ----------
    terms : ndarray of shape (n, k), float64
        Unscaled, one column a term.
    x_hat : ndarray of shape (n, c, s, s), float32 in [-1, 1]
    residual : ndarray of shape (n, s, s), float32 >= 0
        Absolute difference of image and reconstruction, mean over channels.
    trust : ndarray of shape (n, k), float64
        What each image says of how far each term can be trusted; see `Term`.
    oddness : ndarray of shape (n, s, s), float32
        Anomaly maps, or smoothed residuals of a model without any; empty where not wanted.
    """

    terms: np.ndarray
    x_hat: np.ndarray
    residual: np.ndarray
    trust: np.ndarray
    oddness: np.ndarray


def terms_of(*, turned: bool, patches: bool) -> tuple[str, ...]:
    """Terms that a model has.

    All, but for `rotation` where the task was not learned, and those that are not `of_patches`
    where images are parts of larger ones.
    """

    def has(name: str) -> bool:
        term: Term = registry.load("terms", name)
        return (turned or name != "rotation") and (term.of_patches or not patches)

    return tuple(name for name in registry.names("terms") if has(name))


def fit_terms(
    networks: Networks, names: Sequence[str], batches: Iterable[Tensor]
) -> dict[str, Tensors]:
    """Fit terms in one pass over normal training images.

    Parameters
    ----------
    networks : Networks
        Frozen.
    names : sequence of str
    batches : iterable of Tensor of shape (n, c, s, s)

    Returns
    -------
    dict from the term's name to what its `measure` needs.
    """
    return fit_sums([term_sums(networks, names, batches)])


def term_sums(
    networks: Networks, names: Sequence[str], batches: Iterable[Tensor]
) -> dict[str, Tensors]:
    """What terms add up over normal images, for `fit_sums`; see `fit_terms`."""
    terms: dict[str, Term] = {name: registry.load("terms", name) for name in names}
    totals: dict[str, Tensors] = {name: {} for name in terms}
    rows: dict[str, list[Tensor]] = {name: [] for name in terms}
    with exact_float32():
        for batch in batches:
            evidence = gather(networks, batch, networks.encoder(batch))
            for name, term in terms.items():
                for key, value in term.sums(evidence).items():
                    if key == ROWS:
                        rows[name].append(value)
                    else:
                        totals[name][key] = totals[name].get(key, torch.zeros_like(value)) + value
    for name, found in rows.items():
        if found:
            totals[name][ROWS] = torch.cat(found)
    return totals


def fit_sums(parts: Sequence[dict[str, Tensors]]) -> dict[str, Tensors]:
    """Terms fitted on the images of all parts together."""
    fitted = {}
    with exact_float32():
        for name in parts[0]:
            term: Term = registry.load("terms", name)
            fitted[name] = term.fit(_together([part[name] for part in parts]))
    return fitted


def _together(parts: Sequence[Tensors]) -> Tensors:
    found = {}
    for key in parts[0]:
        values = [part[key] for part in parts]
        found[key] = torch.cat(values) if key == ROWS else torch.stack(values).sum(0)
    return found


def measure(
    networks: Networks,
    fitted: dict[str, Tensors],
    x: Tensor,
    how: Inversion = ENCODER,
    maps: Maps | None = None,
    *,
    mapped: bool = False,
) -> Measured:
    """Terms and reconstructions of images (n, c, s, s) in [-1, 1], on the networks' device.

    The columns of the terms are in the order of `fitted`. With `mapped` the oddness of places is
    measured too: by `maps`, or as residuals where there are none.
    """
    with exact_float32():
        evidence = gather(networks, x, latents(networks, x, how))
        terms: dict[str, Term] = {name: registry.load("terms", name) for name in fitted}
        columns = [term.measure(evidence, fitted[name]) for name, term in terms.items()]
        one = columns[0].new_ones(len(x))
        trusts = [term.trust(evidence) if term.trust else one for term in terms.values()]
        residuals = residual(evidence).cpu().numpy()
        return Measured(
            torch.stack(columns, 1).cpu().numpy(),
            evidence.x_hat.cpu().numpy(),
            residuals,
            torch.stack(trusts, 1).cpu().numpy(),
            _oddness(evidence, residuals, maps) if mapped else np.empty((len(x), 0, 0), np.float32),
        )


def _oddness(evidence: Evidence, residuals: np.ndarray, maps: Maps | None) -> np.ndarray:
    return smooth(residuals) if maps is None else maps.measure(evidence)


def views(decoded: Decoded, rule: ImageRule) -> Iterator[np.ndarray]:
    """What the networks are given of an image, (n, c, s, s), at most `CHUNK` at a time.

    The image itself; with patches, overlapping tiles in reading order.
    """
    if rule.patch is None:
        yield decoded.pixels[None]
    else:
        yield from _grid(decoded, rule).cut(decoded.canvas, CHUNK)


def _grid(decoded: Decoded, rule: ImageRule) -> Grid:
    return Grid.over(decoded.canvas.height, decoded.canvas.width, rule.size)


@dataclass(frozen=True)
class Tiled:
    """One large image, measured tile by tile.

    Parameters
    ----------
    measured : Measured
        Of the image: terms (1, k), those of its oddest tiles (`tiles.worst`); x_hat (1, c, h, w),
        residual (1, h, w) and oddness (1, h, w), blended and `tiles.Reduced`, or empty; trust
        (1, k), the tiles' mean.
    terms : ndarray of shape (t, k), float64
        Of each tile, in reading order.
    grid : Grid
    error : float
        Mean squared residual of all tiles.
    level : float
        Residual that the brightest thousandth of the pixels reaches.
    """

    measured: Measured
    terms: np.ndarray
    grid: Grid
    error: float
    level: float


def measure_tiled(
    networks: Networks,
    fitted: dict[str, Tensors],
    decoded: Decoded,
    rule: ImageRule,
    device: torch.device,
    how: Inversion = ENCODER,
    *,
    picture: bool,
    maps: Maps | None = None,
    on_rows: OnRows | None = None,
    on_tiles: OnTiles | None = None,
) -> Tiled:
    """Measure a large image in tiles, a fixed number at a time, never beside those of another.

    Parameters
    ----------
    picture : bool
        Whether residual and reconstruction are wanted; they are empty otherwise.
    maps : Maps, optional
    on_rows : callable, optional
        Called with (top, rows (h, width)) of the anomaly map, from the top down.
    on_tiles : callable, optional
        Called with how many tiles are measured, and how many there are.
    """
    grid = _grid(decoded, rule)
    mosaic = _Mosaic(grid, decoded.canvas, rule.channels, picture, maps is not None, on_rows)
    # Filled in place: what torch allocated would be kept, between all that it lets go.
    terms, trusts = np.empty((2, len(grid), len(fitted)))
    squares, levels, end = np.empty(len(grid)), [], 0
    for tiles in views(decoded, rule):
        x = torch.from_numpy(tiles).to(device)
        measured = measure(networks, fitted, x, how, maps, mapped=maps is not None)
        start, end = end, end + len(tiles)
        terms[start:end], trusts[start:end] = measured.terms, measured.trust
        squares[start:end] = np.square(tiles - measured.x_hat).mean((1, 2, 3))
        levels.append(np.quantile(measured.residual, 0.999))
        mosaic.add(measured)
        if on_tiles is not None:
            on_tiles(end, len(grid))
    pictures = mosaic.x_hat.picture[None], mosaic.residual.picture
    whole = Measured(worst(terms)[None], *pictures, trusts.mean(0)[None], mosaic.oddness.picture)
    return Tiled(whole, terms, grid, float(squares.mean()), float(np.mean(levels)))


class _Mosaic:
    """Pictures of a large image, made of those of its tiles; empty where they are not wanted."""

    def __init__(
        self,
        grid: Grid,
        canvas: Canvas,
        channels: int,
        picture: bool,
        mapped: bool,
        on_rows: OnRows | None,
    ) -> None:
        self._canvas, self._picture, self._mapped = canvas, picture, mapped
        self._on_rows = on_rows
        drawn = (1 + channels) * picture
        self._blender = Blender(grid, drawn + mapped) if drawn + mapped else None
        size = (canvas.height, canvas.width)
        shown, charted = size if picture else (0, 0), size if mapped else (0, 0)
        self.x_hat = Reduced(channels, *shown, LARGEST_PICTURE, mean=True)
        self.residual = Reduced(1, *shown, LARGEST_PICTURE)
        self.oddness = Reduced(1, *charted)

    def add(self, measured: Measured) -> None:
        """Take the next tiles."""
        if self._blender is None:
            return
        layers = [measured.residual[:, None], measured.x_hat] * self._picture
        layers += [measured.oddness[:, None]] * self._mapped
        for top, rows in self._blender.add(np.concatenate(layers, 1)):
            if self._picture:
                self.residual.add(top, rows[:1])
                self.x_hat.add(top, rows[1 : len(rows) - self._mapped])
            if self._mapped:
                self._chart(top, rows[-1])

    def _chart(self, top: int, rows: Floats) -> None:
        counted = self._canvas.counted_rows(top, rows)
        self.oddness.add(top, counted[None])
        if self._on_rows is not None:
            self._on_rows(top, counted)


def residual(evidence: Evidence) -> Tensor:
    """Absolute residual |x - G(z)|, mean over channels, (n, s, s)."""
    return (evidence.x - evidence.x_hat).abs().mean(1)


def chunks(
    rows: Sequence[int] | np.ndarray, read: Callable[[np.ndarray], np.ndarray], device: torch.device
) -> Iterator[Tensor]:
    """Batches of at most `CHUNK` images on a device, from row numbers."""
    for start in range(0, len(rows), CHUNK):
        block = np.ascontiguousarray(read(np.asarray(rows[start : start + CHUNK])))
        yield torch.from_numpy(block).to(device)


def smooth(residuals: np.ndarray) -> np.ndarray:
    """Residuals (n, s, s) blurred by one pixel, so that a region is more than a noisy pixel."""
    blurred: np.ndarray = ndimage.gaussian_filter(residuals, sigma=(0, 1, 1), mode="nearest")
    return blurred
