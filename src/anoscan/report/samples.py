"""Draw what a generator has learned: samples, interpolations, and a visual Turing test.

The Turing test is that of the AnoGAN and f-AnoGAN papers (Schlegl et al. 2019, doi
10.1016/j.media.2019.01.010, section 4.3). Experts say of each image of a shuffled sheet whether it
is real or generated. Real images are shown as the networks see them: in full resolution, their
sharpness would give them away.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from anoscan.core.arrays import Floats
from anoscan.core.errors import InputError, UsageError
from anoscan.core.files import defused, encodable, replacing
from anoscan.core.results import ModelReference, SampleReport, Skipped, TuringTest
from anoscan.core.runtime import Runtime, exact_float32, random_stream
from anoscan.images.canvas import TRIES
from anoscan.images.decode import Decoded, ImageRule, decode_one
from anoscan.images.decode import decode_all as decoded_stream
from anoscan.images.files import ImageFile, find, named
from anoscan.images.layout import training_paths
from anoscan.model.model import Model
from anoscan.report import pictures
from anoscan.scoring.measure import CHUNK

SAMPLES = 64
MOST_SAMPLES = 4096
STEPS = 9  # images of an interpolation, including both ends
WALKS = 8  # interpolations on one sheet


class Sampler:
    """Draws images from the generator of a model; the same `seed` gives the same images.

    Raises
    ------
    UsageError
        When the model was trained without a GAN.
    """

    def __init__(self, model: Model, runtime: Runtime, seed: int) -> None:
        if model.config.images_shown == 0:
            raise UsageError(
                "this model has no GAN that could draw images.",
                hint="Train one without --images-shown 0.",
            )
        self.model, self.runtime, self.seed = model, runtime, seed

    def write(
        self,
        output: Path,
        reference: ModelReference,
        *,
        n: int = SAMPLES,
        between: Sequence[str | Path] | None = None,
        turing: str | Path | None = None,
    ) -> SampleReport:
        """Write the pictures into the folder `output`, replacing those that are there.

        `reference` names the model in the result. `n`, `between` and `turing` are those of
        `Detector.sample`. The result has the paths of the pictures, and the files of `turing` that
        could not be read.

        Raises
        ------
        UsageError
            When `n` is not from 2 to `MOST_SAMPLES`, or `between` does not name two images.
        InputError
            When an image of `between`, or every image of `turing`, cannot be read, or a picture
            cannot be written.
        """
        if not 2 <= n <= MOST_SAMPLES:
            raise UsageError(f"--n must be from 2 to {MOST_SAMPLES}. Got {n}.")
        # Images are read before anything is written, because reading may fail.
        journey = None if between is None else self._between(between)
        test, skipped = (None, []) if turing is None else self._turing(turing, n)
        saved = _save(
            pictures.grid(self._shown(self.images(self.latents(n, "samples"))), _columns(n)),
            output / "samples.png",
        )
        return SampleReport(
            model=reference,
            seed=self.seed,
            n=n,
            grid=saved,
            interpolation=_save(self._walks(), output / "interpolation.png"),
            between=None if journey is None else _save(journey, output / "between.png"),
            turing=None if test is None else _save_test(self._shown(test[0]), test[1], output),
            skipped=tuple(skipped),
        )

    def latents(self, n: int, name: str) -> Tensor:
        """Draw latents (n, d), float32, from N(0, I); each `name` has its own random stream."""
        generator = random_stream(self.seed, f"sample-{name}")
        return torch.randn(n, self.model.config.latent_dim, generator=generator)

    def images(self, z: Tensor) -> Floats:
        """Generate images (n, c, s, s), float32 in [-1, 1], from latents (n, d)."""
        return self._drawn(self.model.networks.generator, z)

    def _shown(self, images: Floats) -> Floats:
        """Return the channels of images (n, c, h, w) that pictures show."""
        return self._rule.picture(images)

    def _drawn(self, network: nn.Module, z: Tensor) -> Floats:
        with exact_float32():
            parts = [
                network(part.to(self.runtime.device)).float().cpu().numpy()
                for part in torch.split(z, CHUNK)
            ]
        return np.concatenate(parts)

    def _walks(self) -> Image.Image:
        ends = self.latents(2 * WALKS, "interpolation")
        walks = [slerp(a, b, STEPS) for a, b in ends.view(WALKS, 2, -1)]
        return pictures.grid(self._shown(self.images(torch.cat(walks))), STEPS)

    def _between(self, paths: Sequence[str | Path]) -> Image.Image:
        """Draw one row: an image, the interpolation to a second image, and that image.

        The interpolation is between the latents that the encoder gives for both images. The
        network that makes their reconstructions draws it.
        """
        if len(paths) != 2:
            raise UsageError("--between needs two images.")
        ends = []
        for path in paths:
            try:
                ends.append(decode_one(named(str(path), Path(path), ""), self._rule))
            except InputError as error:
                raise InputError(f"--between {path}: {error.message}.") from None
        shown = np.stack([end.canvas.centre(self._rule.size) for end in ends])
        with exact_float32():
            x = torch.from_numpy(shown).to(self.runtime.device)
            # Images are encoded one by one: a latent must not depend on the other image.
            a, b = (self.model.networks.encoder(image[None])[0].float().cpu() for image in x)
        way = self._drawn(self.model.networks.mirror[1], slerp(a, b, STEPS))
        row = np.concatenate([shown[:1], way, shown[1:]])
        return pictures.grid(self._shown(row), STEPS + 2)

    @property
    def _rule(self) -> ImageRule:
        return self.model.rule

    def _turing(
        self, folder: str | Path, n: int
    ) -> tuple[tuple[Floats, list[str | None]], list[Skipped]]:
        """Draw the images (n, c, s, s) of the Turing test in the order of the sheet.

        Returns them with the path of each real one (else None), and the files that could not be
        read.
        """
        real, skipped = self._real(find(training_paths([folder])[0]), n // 2)
        if not real:
            raise InputError(
                f"--turing: none of the {len(skipped)} images in {folder} can be read.",
                hint=f"The first: {skipped[0].path!r}: {skipped[0].reason}.",
            )
        made = self.images(self.latents(len(real), "turing"))
        both = np.concatenate([self._seen(real), made])
        names = [decoded.image.path for decoded in real] + [None] * len(made)
        order = torch.randperm(
            len(both), generator=random_stream(self.seed, "sample-shuffle")
        ).tolist()
        return (both[order], [names[place] for place in order]), skipped

    def _seen(self, real: Sequence[Decoded]) -> Floats:
        """Return images (n, c, s, s) as the networks see them: whole, or a random patch of each."""
        if self._rule.patch is None:
            return np.stack([decoded.pixels for decoded in real])
        generator = random_stream(self.seed, "sample-patches")
        draws = torch.rand(len(real), 1, TRIES, 2, generator=generator, dtype=torch.float64).numpy()
        side = self._rule.size
        pairs = zip(real, draws, strict=True)
        return np.concatenate([decoded.canvas.crops(side, draw) for decoded, draw in pairs])

    def _real(self, files: Sequence[ImageFile], wanted: int) -> tuple[list[Decoded], list[Skipped]]:
        """Decode at most `wanted` of the files, drawn at random.

        Returns the images, and those of the drawn files that could not be read.
        """
        drawn = torch.randperm(
            len(files), generator=random_stream(self.seed, "sample-real")
        ).tolist()
        real: list[Decoded] = []
        skipped: list[Skipped] = []
        outcomes = decoded_stream(
            (files[place] for place in drawn), self._rule, workers=self.runtime.workers
        )
        for outcome in outcomes:
            if isinstance(outcome, Skipped):
                skipped.append(outcome)
            else:
                real.append(outcome)
            if len(real) == wanted:
                break
        return real, skipped


def slerp(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """Return latents (steps, d), float32, on the arc from a (d,) to b (d,), including both ends.

    On a straight line between two samples of N(0, I), latents are shorter than those of the
    training (White 2016, "Sampling Generative Networks", arXiv 1609.04468). Where `a` and `b` are
    parallel there is no single arc, and the line is straight.
    """
    way = torch.linspace(0, 1, steps, dtype=torch.float64)[:, None]
    start, end = a.double(), b.double()
    cosine = torch.dot(start, end) / (start.norm() * end.norm()).clamp_min(1e-12)
    angle = torch.arccos(cosine.clamp(-1, 1))
    if torch.sin(angle) < 1e-4:
        return torch.lerp(start, end, way).float()
    arc = torch.sin((1 - way) * angle) * start + torch.sin(way * angle) * end
    return (arc / torch.sin(angle)).float()


def _columns(n: int) -> int:
    return math.ceil(math.sqrt(n))


def _save(picture: Image.Image, path: Path) -> str:
    pictures.save_png(picture, path)
    return path.as_posix()


def _save_test(shown: Floats, names: Sequence[str | None], output: Path) -> TuringTest:
    columns = _columns(len(shown))
    sheet = _save(pictures.numbered(shown, columns), output / "turing.png")
    text = io.StringIO()
    key = csv.writer(text, lineterminator="\n")
    key.writerow(["row", "column", "source", "path"])
    for place, name in enumerate(names):
        row, column = divmod(place, columns)
        source = "generated" if name is None else "real"
        key.writerow([row + 1, column + 1, source, defused(encodable(name or ""))])
    path = output / "turing-key.csv"
    with replacing(path) as file:
        file.write(text.getvalue().encode("utf-8"))
    real = sum(name is not None for name in names)
    return TuringTest(sheet=sheet, key=path.as_posix(), real=real, generated=len(names) - real)
